"""Losses where they pass: in the router of PyTorch's tensors, and where torch.nn.functional's leave Python.

While a thread watches, functions stand there that tell of each call. At all other times nothing is in the way.
"""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

import crossent
from crossent import SparseTarget, _rows
from crossent.frontends.torch import modes, router


@dataclass(slots=True, eq=False)
class Loss:
    """A call of a loss: the public function, its arguments by name, and what it returned, without its graph."""

    function: Callable[..., Tensor]
    arguments: dict[str, Any]
    value: Tensor

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def is_head(self) -> bool:
        return "linear_weight" in self.arguments

    @property
    def axis(self) -> int:
        return self["input"].ndim - 1 if self.is_head else _rows.class_axis(self["input"].ndim, self["dim"])

    @property
    def classes(self) -> int:
        return self["linear_weight"].shape[0] if self.is_head else self["input"].shape[self.axis]

    @property
    def name(self) -> str:
        return f"{self.function.__name__} of {self.classes} classes"

    @property
    def labels(self) -> Tensor | None:
        """Of every loss, None where targets are probabilities."""
        target = self["target"]
        if isinstance(target, SparseTarget) or target.is_floating_point():
            return None
        return target[..., self["shift"] :] if self["shift"] else target

    def counted(self) -> tuple[Tensor | int, int]:
        """How many rows count, and how many there are."""
        if self.labels is None:
            rows = self["input"].numel() // max(1, self["input"].shape[self.axis])
            return rows, rows
        return (self.labels != self["ignore_index"]).sum(), self.labels.numel()


class _Here(threading.local):
    """What a thread watches with, and whether it is inside of a loss, or at work on what it saw."""

    watchers: tuple[Callable[[Loss, Tensor], None], ...] = ()
    inside = False


_here = _Here()
_native = torch._C._nn  # pyright: ignore[reportAttributeAccessIssue]
_lock, _watching = threading.Lock(), 0


@contextmanager
def unseen():
    """Losses computed here are nobody's."""
    _here.inside, before = True, _here.inside
    try:
        yield
    finally:
        _here.inside = before


def begin(watcher: Callable[[Loss, Tensor], None]) -> None:
    """Tell of all losses that this thread computes to be differentiated."""
    global _watching
    with _lock:
        _watching += 1
        if _watching == 1:
            for (owner, name), (original, *site) in _SITES.items():
                setattr(owner, name, partial(_told, original, *site))
    _here.watchers += (watcher,)


def end(watcher: Callable[[Loss, Tensor], None]) -> None:
    global _watching
    _here.watchers = tuple(other for other in _here.watchers if other != watcher)
    with _lock:
        _watching -= 1
        if not _watching:
            for (owner, name), (original, *_) in _SITES.items():
                setattr(owner, name, original)


def _told(original, function, given_by, *args, **kwargs):
    if modes.compiling() or _here.inside or not _here.watchers:
        return original(*args, **kwargs)
    with unseen():
        value = original(*args, **kwargs)
        # Not where a checkpoint computes it again, nor what is transformed or has a type of its own.
        again = torch._C._current_graph_task_id() != -1
        if type(value) is Tensor and value.requires_grad and not again and not modes.transformed():
            given = given_by(*args, **kwargs)
            if type(given.get("input")) is Tensor:
                named = {name: given[name] for name in signature(function).parameters if name in given}
                for watcher in _here.watchers:
                    watcher(Loss(function, named, value.detach()), value)
    return value


def _of_loss(input, target, weight, sample_weight, denominator, dim, options, inplace_backward=False):
    arrays = {"input": input, "target": target, "weight": weight, "sample_weight": sample_weight}
    return arrays | {"denominator": denominator, "dim": dim, "inplace_backward": inplace_backward} | asdict(options)


def _of_head(input, linear_weight, target, linear_bias, weight, sample_weight, denominator, options, how, *spread):
    if spread:  # this process has some of the classes
        return {}
    arrays = {"input": input, "target": target, "weight": weight, "sample_weight": sample_weight}
    arrays |= {"linear_weight": linear_weight, "linear_bias": linear_bias, "denominator": denominator}
    return arrays | asdict(options) | {"shift": how.shift}


def _of_torchs(input, target, weight=None, reduction=1, ignore_index=-100, label_smoothing=0.0):
    named = {"input": input, "target": target, "weight": weight, "ignore_index": ignore_index}
    return named | {"label_smoothing": label_smoothing, "reduction": ("none", "mean", "sum")[reduction]}


# torch.nn.functional's own names are not replaced: types that take its functions over know them by identity.
_SITES = {
    (owner, name): (getattr(owner, name), function, given_by)
    for owner, name, function, given_by in (
        (router, "cross_entropy", crossent.cross_entropy, _of_loss),
        (router, "nll_loss", crossent.nll_loss, _of_loss),
        (router, "linear_cross_entropy", crossent.linear_cross_entropy, _of_head),
        (_native, "cross_entropy_loss", crossent.cross_entropy, _of_torchs),
        (_native, "nll_loss_nd", crossent.nll_loss, _of_torchs),
    )
}
