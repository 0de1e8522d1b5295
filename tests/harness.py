"""One way to run a case on every frontend: lay it out in memory, call, differentiate, compare with the reference."""

import contextlib
import functools
import inspect
import pickle
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import reference
import torch

import crossent
from crossent import _kept
from crossent._plan import PLAIN, STAGES

TORCH_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
EPS = {name: torch.finfo(dtype).eps for name, dtype in TORCH_DTYPES.items()}
# numbers below the smallest normal one of the arithmetic may become 0; float16's are normal numbers in float32
SMALLEST = {name: torch.finfo(dtype).smallest_normal for name, dtype in TORCH_DTYPES.items()} | {"float16": 2.0**-25}
FRONTENDS = ["torch", "composite", "numpy"]  # beside them "pytorch", the rival, and "cuda", where there is a GPU
SOFTMAXES = ("softmax", "log_softmax")
LAYOUTS = ["contiguous", "reversed", "classes_last", "strided", "offset", "expanded", "expanded_classes"]
# PyTorch's own where it has them; before, whatever has the attributes that are read.
Chunks = getattr(torch.nn, "LinearCrossEntropyOptions", None) or functools.partial(
    SimpleNamespace, batch_chunk_size=None, acc_policy="auto", acc_dtype=None
)
NUMPY_LAYOUTS = ["negative", "readonly", "swapped", "unaligned"]
EXPORTS = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="before PyTorch 2.7 nobody says that a program is exported"
)


def quantise(array, dtype):
    """The float64 array whose values are those that `dtype` can hold."""
    return torch.as_tensor(np.asarray(array, np.float64)).to(TORCH_DTYPES[dtype]).double().numpy()


def class_axis(array, dim):
    return (1 if array.ndim > 1 else 0) if dim is None else dim % array.ndim


def same_values(array, layout, dim=None):
    """What the layout can hold: an expanded one repeats its first row or its first class."""
    if layout == "expanded" and array.ndim > 1 and array.shape[0]:
        return np.broadcast_to(array[:1], array.shape).copy()
    if layout == "expanded_classes":
        axis = class_axis(array, dim)
        return np.broadcast_to(array.take([0], axis), array.shape).copy() if array.shape[axis] else array
    return array


def lay_out(x, layout, dim=None):
    """The torch tensor x, contiguous, with its values at other places in memory and nan between them."""
    if callable(layout):
        return layout(x)
    axis = class_axis(x, dim)
    order = tuple(reversed(range(x.ndim)))
    if layout == "reversed":
        return x.permute(order).contiguous().permute(order)
    if layout == "classes_last":
        return x.movedim(axis, -1).contiguous().movedim(-1, axis)
    if layout == "strided":
        buffer = x.new_full([2 * n + 3 for n in x.shape], torch.nan)
        view = buffer[tuple(slice(1, 1 + 2 * n, 2) for n in x.shape)]
        return view.copy_(x)
    if layout == "offset":
        buffer = x.new_full((x.numel() + 9,), torch.nan)
        return buffer[1 : 1 + x.numel()].view(x.shape).copy_(x)
    if layout == "expanded" and x.ndim > 1 and x.shape[0]:
        return x[:1].clone().expand(x.shape)
    if layout == "expanded_classes" and x.shape[axis]:
        return x.narrow(axis, 0, 1).clone().expand(x.shape)
    return x.clone()


def lay_out_numpy(x, layout, dim=None):
    if callable(layout):
        return layout(x)
    if layout == "negative":
        flip = (slice(None, None, -1),) * x.ndim
        return x[flip].copy()[flip]
    if layout == "readonly":
        x = x.copy()
        x.flags.writeable = False
        return x
    if layout == "swapped":
        return x.astype(x.dtype.newbyteorder())
    if layout == "unaligned":
        record = np.zeros(x.shape, np.dtype({"names": ["x"], "formats": [x.dtype], "offsets": [1]}))
        record["x"] = x
        return record["x"]
    return lay_out(torch.from_numpy(x.copy()), layout, dim).numpy()


def composite():
    from crossent.frontends.torch import modes

    return modes.only(PLAIN)


def in_stages():
    from crossent.frontends.torch import modes

    return modes.only(STAGES)


@contextlib.contextmanager
def on_device(kernels):
    """As if tensors on the CPU lay on a device with these kernels."""
    from crossent.frontends.torch import staged

    before, staged.KERNELS_OF["cpu"] = staged.KERNELS_OF["cpu"], kernels
    try:
        with in_stages():
            yield
    finally:
        staged.KERNELS_OF["cpu"] = before


def on_dummy_device():
    from dummy_device import DummyKernels

    return on_device(DummyKernels())


def on_unknown_device():
    from crossent.frontends.torch.staged import PLAIN_KERNELS

    return on_device(PLAIN_KERNELS)


def grouped(a, b, end):
    """As PyTorch's grouped products of one group; what they do not write is nan."""
    end = int(end)
    if b.ndim == 2:
        return (a[:, :end] @ b[:end])[None]
    out = a.new_full((len(a), b.shape[2]), torch.nan)
    out[:end] = a[:end] @ b[0]
    return out


@functools.cache
def triton_kernels():
    """The module of the kernels' launches; conftest.py has chosen Triton's interpreter, which runs them on the CPU."""
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("beside a GPU, where tests/test_gpu_kernels.py has the kernels run there")
    from crossent.kernels.triton import launches

    return launches


@contextlib.contextmanager
def on_triton(softmax_from=0, **attributes):
    """On kernels of which these attributes have other values, and which make softmax of so many bytes."""
    pytest.importorskip("triton")
    from crossent.frontends.torch import late, softmax
    from crossent.kernels.triton.device import DeviceKernels

    kernels = DeviceKernels(processors=lambda device: 2, note=late.note)
    vars(kernels).update(attributes)
    with mock.patch.object(softmax, "_LAUNCH_FROM", softmax_from), on_device(kernels):
        yield


def on_triton_at_once():
    return on_triton(once_from=0)


WAYS = {
    "composite": composite,
    "stages": in_stages,
    "dummy device": on_dummy_device,
    "unknown device": on_unknown_device,
    "triton": on_triton,
    "triton at once": on_triton_at_once,
}


@contextlib.contextmanager
def new_plans():
    """Nothing planned before is used, nor used later."""
    _kept.forget()
    try:
        yield
    finally:
        _kept.forget()


@contextlib.contextmanager
def gradients_made_in_backward():
    """As for logits that do not stay in the caches."""
    from crossent.kernels.cpu import kernels

    with new_plans():
        before = kernels._LARGE_FROM, kernels._MUCH_FROM
        kernels._LARGE_FROM = kernels._MUCH_FROM = 0
        try:
            yield
        finally:
            kernels._LARGE_FROM, kernels._MUCH_FROM = before


def waiting_gradient(loss):
    """The gradient that the forward pass has made, or None."""
    return getattr(loss.grad_fn, "made", None)


def bits(tensor):
    """The tensor as integers of its size, which compare equal for nan too."""
    return tensor.detach().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def to_numpy(value):
    if isinstance(value, torch.Tensor):
        return value.detach().double().cpu().numpy()
    return np.asarray(value).astype(np.float64)


def tensor_of(array, frontend):
    return torch.as_tensor(array, device="cuda" if frontend == "cuda" else "cpu")


def cast(array, dtype, frontend):
    if frontend in ("numpy", "dummy library"):
        return array.astype(dtype)
    return tensor_of(array, frontend).to(TORCH_DTYPES[dtype])


def run(frontend, name, logits, *args, dtype, layout="contiguous", upstream=1.0, **kwargs):
    """Value and gradient in float64, after checking their type and dtype. `logits` and float arguments are NumPy.

    The gradient is None where the frontend has none to give (NumPy arrays that are not reduced).
    """
    dim = kwargs.get("dim")
    if args and isinstance(args[0], np.ndarray) and args[0].dtype.kind == "f":
        args = (cast(args[0], dtype, frontend), *args[1:])
    if frontend == "numpy":
        x = lay_out_numpy(np.asarray(logits, np.float64).astype(dtype), layout, dim)
        before = x.tobytes()
        function = getattr(crossent, name)
        value, gradient = function(x, *args, **kwargs), None
        if np.ndim(value) == 0 and name not in SOFTMAXES:
            again, gradient = crossent.value_and_grad(function)(x, *args, **kwargs)
            assert np.asarray(again).tobytes() == np.asarray(value).tobytes()
            assert gradient.dtype == np.dtype(dtype) and gradient.shape == x.shape
            gradient = to_numpy(gradient) * upstream
        assert isinstance(value, (np.ndarray, np.generic)) and value.dtype == np.dtype(dtype)
        assert x.tobytes() == before
        return to_numpy(value), gradient
    if frontend == "dummy library":
        return _run_strict(name, logits, args, dtype, upstream, kwargs)
    torch_args = [tensor_of(a, frontend) if isinstance(a, np.ndarray) else a for a in args]
    arrays = (np.ndarray, np.float32)
    torch_kwargs = {k: tensor_of(v, frontend) if isinstance(v, arrays) else v for k, v in kwargs.items()}
    x = lay_out(cast(np.asarray(logits, np.float64), dtype, frontend), layout, dim)
    x.requires_grad_()
    before = x.detach().clone()
    with WAYS.get(frontend, contextlib.nullcontext)():
        library = torch.nn.functional if frontend == "pytorch" else crossent
        value = getattr(library, name)(x, *torch_args, **torch_kwargs)
        up = tensor_of(np.asarray(upstream, np.float64), frontend).to(value.dtype)
        (gradient,) = torch.autograd.grad(value, x, up.expand(value.shape))
    assert value.dtype == gradient.dtype == x.dtype and gradient.shape == x.shape
    assert torch.equal(bits(before), bits(x))
    return to_numpy(value), to_numpy(gradient)


def _run_strict(name, logits, args, dtype, upstream, kwargs):
    import array_api_strict

    def strict(array):
        return array_api_strict.asarray(array) if isinstance(array, np.ndarray | np.float32) else array

    x, args = strict(np.asarray(logits, np.float64).astype(dtype)), [strict(array) for array in args]
    kwargs, function = {key: strict(value) for key, value in kwargs.items()}, getattr(crossent, name)
    value, gradient = function(x, *args, **kwargs), None
    if value.ndim == 0:
        again, gradient = crossent.value_and_grad(function)(x, *args, **kwargs)
        assert again == value and gradient.dtype == x.dtype and gradient.shape == x.shape
        gradient = np.asarray(gradient).astype(np.float64) * upstream
    assert value.dtype == x.dtype
    return np.asarray(value).astype(np.float64), gradient


@functools.lru_cache(maxsize=32)
def _expected(name, pickled):
    args, kwargs = pickle.loads(pickled)
    return getattr(reference, name)(*args, **kwargs)


def expected(name, *args, **kwargs):
    """The reference's answer, kept for the next memory layout."""
    return _expected(name, pickle.dumps((args, kwargs)))


def rounding_of(frontend, dtype):
    """By how many units of half precision a result may be off: Triton's interpreter cuts float32 to bfloat16."""
    return 1.01 if frontend.startswith("triton") and dtype == "bfloat16" else 0.501


def assert_close(ours, exact, dtype, scale, ulps=4, undefined=False, rounding=0.501):
    """Half precision may be off by its one rounding, and everything by a few units of the arithmetic times `scale`.

    With `undefined`, anything goes where the exact answer is nan.
    """
    exact = np.asarray(exact)
    assert ours.shape == exact.shape, f"shape {ours.shape}, expected {exact.shape}"
    half = dtype in ("float16", "bfloat16")
    arithmetic = EPS["float32"] if half else EPS[dtype]
    largest = torch.finfo(TORCH_DTYPES[dtype]).max
    with np.errstate(all="ignore"):
        allowed = ulps * arithmetic * np.maximum(scale, abs(exact)) + SMALLEST[dtype]
        if half:
            allowed = allowed + rounding * EPS[dtype] * abs(exact)
        error = abs(ours - exact)
        overflow = (abs(exact) > largest * (1 - EPS[dtype])) & (np.sign(ours) == np.sign(exact))
        good = (error <= allowed) | (ours == exact) | (np.isnan(ours) & np.isnan(exact)) | (np.isinf(ours) & overflow)
    if undefined:
        good |= np.isnan(exact)
    if not good.all():
        ours, exact = ours.astype(np.float64), exact.astype(np.float64)
        at = np.where(good, -1, np.where(np.isnan(error), np.inf, error)).argmax()
        worst = tuple(int(i) for i in np.unravel_index(at, good.shape))
        raise AssertionError(
            f"{(~good).sum()} of {good.size} wrong, at {worst} {ours[worst]:.9g} instead of {exact[worst]:.9g}"
            f", off by {float(error[worst] / allowed[worst]):.3g} times what is allowed"
        )


def size(logits):
    """The magnitude that decides how much rounding the logits themselves bring."""
    finite = np.abs(logits[np.isfinite(logits)])
    return max(1.0, float(finite.max())) if finite.size else 1.0


def largest(array):
    finite = np.abs(np.asarray(array, np.float64))
    finite = finite[np.isfinite(finite)]
    return float(finite.max()) if finite.size else 0.0


def check(frontend, name, logits, *args, dtype, layout="contiguous", upstream=None, ulps=4, **kwargs):
    """Runs the case and compares value and gradient with the reference."""
    logits = same_values(quantise(logits, dtype), layout, kwargs.get("dim"))
    if args and name not in SOFTMAXES and np.asarray(args[0]).dtype.kind == "f":
        args = (quantise(args[0], dtype), *args[1:])
    if upstream is None:
        upstream = 1.0
        if name in SOFTMAXES or kwargs.get("reduction") == "none":
            shape = np.shape(expected(name, logits, *args, **kwargs)[0])
            upstream = quantise(np.random.default_rng(3).normal(size=shape), dtype)
    names = inspect.signature(getattr(reference, name)).parameters
    options = {key: value for key, value in kwargs.items() if key in names}
    exact, exact_gradient = expected(name, logits, *args, upstream=upstream, **options)
    value, gradient = run(frontend, name, logits, *args, dtype=dtype, layout=layout, upstream=upstream, **kwargs)
    magnitude, rounding = size(logits), rounding_of(frontend, dtype)
    for array in (kwargs.get("weight"), kwargs.get("sample_weight")):
        magnitude *= max(1.0, largest(0.0 if array is None else array))
    if kwargs.get("reduction") == "sum":
        magnitude *= max(1.0, logits.size**0.5)
    elif kwargs.get("denominator") is not None:
        magnitude *= max(1.0, logits.size**0.5 / float(kwargs["denominator"]))
    if name not in SOFTMAXES:
        assert_close(value, exact, dtype, np.maximum(magnitude, np.abs(exact)), ulps, rounding=rounding)
        if gradient is not None:
            rows = logits.size // max(1, logits.shape[class_axis(logits, kwargs.get("dim"))])
            share = largest(upstream) / (max(1, rows) if kwargs.get("reduction", "mean") == "mean" else 1)
            scale = magnitude * max(largest(exact_gradient), share)
            assert_close(gradient, exact_gradient, dtype, scale, ulps, undefined=True, rounding=rounding)
        return value, gradient
    assert_close(value, exact, dtype, magnitude * (np.abs(exact) if name == "softmax" else 1), ulps, rounding=rounding)
    if gradient is not None:
        scale = magnitude * largest(upstream)
        try:
            assert_close(gradient, exact_gradient, dtype, scale, ulps, undefined=True, rounding=rounding)
        except AssertionError:
            # in half precision backward may start from the rounded result
            axis = class_axis(logits, args[0] if args else kwargs["dim"])
            from_result = getattr(reference, name + "_gradient")(value, axis, upstream)
            assert_close(gradient, from_result, dtype, scale, ulps, undefined=True, rounding=rounding)
    return value, gradient
