"""The rivals: for each a function that turns a case into a callable of its arrays.

SciPy and scikit-learn are imported where they are used: the latter brings OpenMP threads of its own.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

import crossent
from benchmarks.cases import Case


def torch_arrays(case: Case) -> tuple[torch.Tensor, ...]:
    """The logits, then what the function takes beside them."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    logits = torch.randn(case.shape, dtype=dtype).requires_grad_()
    if case.function != "cross_entropy":
        return (logits,)
    n_classes = case.shape[1]
    if case.soft_targets:
        target = torch.randn(case.shape, dtype=dtype).softmax(dim=1)
    else:
        target = torch.randint(n_classes, (case.shape[0], *case.shape[2:]))
    return (logits, target, torch.rand(n_classes, dtype=dtype) + 0.5) if case.class_weights else (logits, target)


def numpy_arrays(case: Case) -> tuple[np.ndarray, ...]:
    """Logits, labels and, for who takes no logits, the probabilities."""
    from scipy.special import softmax

    generator = np.random.default_rng(0)
    logits = generator.standard_normal(case.shape).astype(case.dtype)
    return logits, generator.integers(case.shape[1], size=case.shape[0]), softmax(logits, axis=1)


def _bound(library, case: Case) -> Callable:
    """The library's function as a caller writes it: the arrays by position, the options by name."""
    function = getattr(library, case.function)
    options = {"dim": 1} if case.function != "cross_entropy" else case.options
    return lambda *arrays: function(*arrays, **options)


def _compiled(library, case: Case) -> Callable:
    return torch.compile(_bound(library, case), fullgraph=True, dynamic=False)


def _empty_compiled(case: Case) -> Callable:
    """crossent, and then compiled code with next to nothing in it: what its call alone adds."""
    own = _bound(crossent, case)
    empty = torch.compile(lambda logits: logits[(0,) * logits.ndim] * 2, fullgraph=True, dynamic=False)

    def call(*arrays):
        loss = own(*arrays)
        empty(arrays[0])
        return loss

    return call


def _memory_read(_: Case) -> Callable:
    """Nothing but reading the logits, on as many threads as PyTorch has."""
    pool = ThreadPoolExecutor(torch.get_num_threads())

    def read(logits, *_):
        words = logits.detach().view(-1).view(torch.int64).numpy()
        return list(pool.map(np.add.reduce, np.array_split(words, torch.get_num_threads())))

    return read


def _scipy(_: Case) -> Callable:
    from scipy.special import log_softmax

    def cross_entropy(logits, labels, _):
        return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()

    return cross_entropy


def _sklearn(case: Case) -> Callable:
    from sklearn.metrics import log_loss

    classes = np.arange(case.shape[1])
    return lambda _, labels, probabilities: log_loss(labels, probabilities, labels=classes)


def ours(case: Case) -> Callable:
    if case.arrays == "numpy":
        return lambda logits, labels, _: crossent.cross_entropy(logits, labels)
    return _bound(crossent, case)


RIVALS: dict[str, Callable[[Case], Callable]] = {
    "eager": lambda case: _bound(torch.nn.functional, case),
    "compile": lambda case: _compiled(torch.nn.functional, case),
    "own compile": lambda case: _compiled(crossent, case),
    "empty compile": _empty_compiled,
    "memory read": _memory_read,
    "scipy": _scipy,
    "sklearn": _sklearn,
}
