"""The arrays of a case, and what is timed of a function of them."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from crossent.tools.bench.cases import Case


def torch_arrays(case: Case) -> tuple[torch.Tensor, ...]:
    """What is differentiated, then what the function takes beside it."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    with torch.device(case.device):
        if case.head:
            tokens, features, classes = case.shape
            hidden = torch.randn(tokens, features, dtype=dtype, requires_grad=True)
            weight = (torch.randn(classes, features) / features**0.5).to(dtype).requires_grad_()
            return hidden, weight, torch.randint(classes, (tokens,))
        logits, classes = torch.randn(case.shape, dtype=dtype).requires_grad_(), case.shape[1]
        if case.function != "cross_entropy":
            return (logits,)
        if case.soft_targets:
            target = torch.randn(case.shape, dtype=dtype).softmax(dim=1)
        else:
            target = torch.randint(classes, (case.shape[0], *case.shape[2:]))
        return (logits, target, torch.rand(classes, dtype=dtype) + 0.5) if case.class_weights else (logits, target)


def numpy_arrays(case: Case) -> tuple[np.ndarray, ...]:
    """Logits, labels and, for who takes no logits, the probabilities."""
    from scipy.special import softmax

    generator = np.random.default_rng(0)
    logits = generator.standard_normal(case.shape).astype(case.dtype)
    labels = generator.integers(case.shape[1], size=(case.shape[0], *case.shape[2:]))
    return logits, labels, softmax(logits, axis=1)


def jax_arrays(case: Case) -> tuple:
    """Those of `torch_arrays`."""
    import jax  # pyright: ignore[reportMissingImports]

    if case.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    tensors = [tensor.detach() for tensor in torch_arrays(case)]
    # NumPy has no bfloat16, and float32 holds every number of it.
    arrays = [(tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy() for tensor in tensors]
    dtypes = [case.dtype if tensor.is_floating_point() else "int32" for tensor in tensors]
    return tuple(jax.numpy.asarray(array, dtype) for array, dtype in zip(arrays, dtypes, strict=True))


def grad_mode(mode: str) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(mode != "evaluation")


def of_arrays(function: Callable, mode: str, arrays: tuple) -> Callable[[], object]:
    """The call of a function of tensors or NumPy arrays; a "step" frees the gradients that it has made."""
    if mode != "step":
        return partial(function, *arrays)
    leaves, gradient = [array for array in arrays if array.requires_grad], None

    def step() -> None:
        nonlocal gradient
        found = function(*arrays)
        if gradient is None and found.ndim:
            gradient = torch.randn_like(found)  # in the first step, which nobody times
        found.backward(gradient)
        for leaf in leaves:
            leaf.grad = None  # here, so that nobody pays for unmapping another's gradient

    return step


def of_jax(function: Callable, mode: str, arrays: tuple) -> Callable[[], object]:
    """The same for JAX, compiled."""
    import jax  # pyright: ignore[reportMissingImports]

    inputs = tuple(range(len(arrays) - 1))  # all but the labels
    call = jax.jit(jax.value_and_grad(function, inputs) if mode == "step" else function)
    return lambda: jax.block_until_ready(call(*arrays))


def wait(device: str) -> None:
    """Until a device that works on its own has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
