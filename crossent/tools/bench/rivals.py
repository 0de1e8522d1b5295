"""The rivals: for each what it needs, what it does not take, and a function that turns a case into one of its arrays.

Libraries other than PyTorch are imported where they are used: some bring threads of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import crossent
from crossent.tools.bench.cases import Case
from crossent.tools.bench.limits import at_limit

Function = Callable[..., object]


@dataclass(frozen=True)
class Rival:
    title: str
    module: str  # without which there is no such rival
    package: str  # what pip calls it
    build: Callable[[Case], Function]
    arrays: str = "torch"
    device: str = ""  # where alone it is measured
    head_alone: bool = False
    two_axes: bool = False  # of logits
    not_of: str = ""  # a dtype
    refuses: Callable[[Case], str] = lambda case: ""  # why else it does not take a case

    @property
    def modes(self) -> tuple[str, ...]:
        """NumPy has no derivatives."""
        return ("evaluation",) if self.arrays == "numpy" else ("evaluation", "step")

    def why_not(self, case: Case) -> str:
        """Why it cannot be measured here; empty where it can."""
        no_gpu = ": --device cuda" if torch.cuda.is_available() else ", and there is none"
        reasons = {
            f"runs on a GPU{no_gpu}": self.device == "cuda" and case.device == "cpu",
            "measured on the CPU alone": self.device == "cpu" and case.device != "cpu",
            "has the fused head alone": self.head_alone and not case.head,
            "has no fused head": self.arrays == "numpy" and case.head,
            "takes two axes alone": self.two_axes and not case.head and len(case.shape) > 2,
            f"takes no {case.dtype}": self.not_of == case.dtype,
            self.refuses(case): True,
            f"not installed: pip install {self.package}": find_spec(self.module) is None,
        }
        return next((reason for reason, holds in reasons.items() if reason and holds), "")


def bound(library, case: Case) -> Function:
    """The library's function as a caller writes it: the arrays by position, the options by name."""
    function = getattr(library, case.function)
    options = {"dim": 1} if "softmax" in case.function else case.options
    return lambda *arrays: function(*arrays, **options)


def ours(case: Case, arrays: str) -> Function:
    """crossent, of the rival's arrays or, for JAX's, of tensors."""
    if arrays == "numpy":
        return lambda logits, labels, _: crossent.cross_entropy(logits, labels)
    return bound(crossent, case)


def compiled(function: Function) -> Function:
    return torch.compile(function, fullgraph=True, dynamic=False)


def _torch(case: Case) -> Function:
    """A linear layer and its loss one after the other, for the fused head."""
    if case.head:
        return lambda hidden, weight, labels: F.cross_entropy(F.linear(hidden, weight), labels, **case.options)
    return bound(F, case)


def _chunked(case: Case) -> Function:
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda *arrays: F.linear_cross_entropy(*arrays, options=options, **case.options)


def _chunked_refuses(_: Case) -> str:
    there = hasattr(torch.nn, "LinearCrossEntropyOptions")
    return "" if there else f"PyTorch {torch.__version__} has no chunked linear_cross_entropy"


def _scipy(_: Case) -> Function:
    from scipy.special import log_softmax

    return lambda x, labels, _: -np.take_along_axis(log_softmax(x, axis=1), labels[:, None], axis=1).mean()


def _sklearn(case: Case) -> Function:
    from sklearn.metrics import log_loss

    classes = np.arange(case.shape[1])
    return lambda _, labels, probabilities: log_loss(labels, probabilities, labels=classes)


def _optax(case: Case) -> Function:
    loss = resolve_name("optax:softmax_cross_entropy_with_integer_labels")
    if case.head:
        return lambda hidden, weight, labels: loss(hidden @ weight.T, labels).mean()
    return lambda logits, labels: loss(logits, labels, axis=1).mean()


def _named(loss: str, head: str) -> Callable[[Case], Function]:
    """The function of the library, and that of its head, taken as they are."""
    return lambda case: resolve_name(head if case.head else loss)


LIGER = "liger_kernel.transformers.functional:liger_"
_liger = _named(f"{LIGER}cross_entropy", f"{LIGER}fused_linear_cross_entropy")
_cce = _named("", "cut_cross_entropy:linear_cross_entropy")
_quack = _named("quack.cross_entropy:cross_entropy", "quack.linear_cross_entropy:chunked_linear_cross_entropy")
NUMPY: dict[str, Any] = {"arrays": "numpy", "device": "cpu", "not_of": "bfloat16"}
RIVALS = {
    "eager": Rival("torch, eager", "torch", "torch", _torch),
    "compile": Rival("torch, compiled", "torch", "torch", lambda case: compiled(_torch(case))),
    "chunked": Rival("torch, chunked", "torch", "torch", _chunked, head_alone=True, refuses=_chunked_refuses),
    "scipy": Rival("SciPy", "scipy", "scipy", _scipy, **NUMPY),
    "sklearn": Rival("scikit-learn", "sklearn", "scikit-learn", _sklearn, two_axes=True, **NUMPY),
    "optax": Rival("optax, jitted", "optax", "optax", _optax, arrays="jax", device="cpu"),
    "liger": Rival("Liger-Kernel", "liger_kernel", "liger-kernel", _liger, device="cuda", two_axes=True),
    "cce": Rival("cut-cross-entropy", "cut_cross_entropy", "cut-cross-entropy", _cce, device="cuda", head_alone=True),
    "quack": Rival("quack", "quack", "quack-kernels", _quack, device="cuda", two_axes=True, not_of="float64"),
}
# No rival: what none goes below, measured on a GPU beside them.
LIMIT = Rival("the limit", "torch", "torch", lambda case: partial(at_limit, case), arrays="limit")
