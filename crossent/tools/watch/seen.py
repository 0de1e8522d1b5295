"""Losses where they pass: in the router of PyTorch's tensors, where torch.nn.functional's leave Python, and in the
operators of compiled code.

While a thread watches, functions stand there that tell of each call, and at the doors of backward passes and of
GradScaler. At all other times nothing is in the way. What a compiler reads stays as it is, so that nothing is compiled
again.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import _autograd  # pyright: ignore[reportAttributeAccessIssue]
from torch._guards import TracingContext
from torch.amp import GradScaler
from torch.autograd.graph import GradientEdge, get_gradient_edge

import crossent
from crossent import SparseTarget, _rows
from crossent._options import HeadOptions, LossOptions
from crossent.frontends.torch import compiled, fast, modes, router
from crossent.frontends.torch.operators import carried

try:
    from torch.nn.modules import linear_cross_entropy as chunked
except ImportError:  # before PyTorch 2.13
    chunked = None

_backward_pass = torch._C._current_graph_task_id  # its number, or -1
_KNOWS_HOOKS = hasattr(_autograd, "_top_saved_tensors_default_hooks")  # since PyTorch 2.8
_SEEN = "seen by crossent.watch"
_HIDDEN = {  # parts of the names of nodes: who computed what they differentiate
    "CompiledFunction": "inside of compiled code (call crossent.cross_entropy there, or leave the loss outside)",
    "crossent": "inside of an exported program (leave the loss outside)",
    "CheckpointFunction": "inside of a reentrant checkpoint",
}
ALONE = " of this process"  # in the name of a loss whose other classes other processes have
_IN_A_THREAD = "in another thread"
_CAPTURED = "inside of a CUDA graph (leave the loss outside, or compile without one)"


class Loss:
    """A call of a loss: the public function, its arguments by name, and what it returned, without its graph; and why
    the arguments are not to be held.
    """

    def __init__(self, function: Callable[..., Tensor], arguments: dict[str, Any], value: Tensor, passing: str = ""):
        self.function, self.arguments = function, arguments.copy()
        self.value = here_of(value.clone() if passing else value.detach())
        x, head, spread = arguments["input"], arguments.get("linear_weight"), arguments.get("spread")
        # Where classes or rows are spread over processes, this one has not all that belongs to a row.
        self.is_spread = spread is not None or hasattr(x, "to_local")
        self.passing = "it is spread over processes" if self.is_spread else passing
        self.is_head = head is not None
        self.axis = x.ndim - 1 if head is not None else _rows.class_axis(x.ndim, self["dim"])
        self.classes = x.shape[self.axis] if head is None else len(head)
        self.name = f"{function.__name__} of {self.classes} classes{'' if spread is None else ALONE}"

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def labels(self) -> Tensor | None:
        """Of every loss, None where targets are probabilities."""
        target = self["target"]
        if isinstance(target, SparseTarget) or target.is_floating_point():
            return None
        target = here_of(target)
        return target[..., self["shift"] :] if self["shift"] else target

    def counted(self) -> tuple[Tensor | int, int]:
        """How many rows count, and how many there are."""
        labels = self.labels
        if labels is None:
            rows = self["input"].numel() // max(1, self["input"].shape[self.axis])
            return rows, rows
        return (labels != self["ignore_index"]).sum(), labels.numel()

    def divided_by(self, counted: Any) -> Any:
        """What the sum of the rows' losses was divided by, if `counted` rows count."""
        given = self["denominator"]
        if given is None:
            return counted if self["reduction"] == "mean" else 1
        return given.detach() if isinstance(given, Tensor) else given


def here_of(tensor: Tensor) -> Tensor:
    """What this process has of it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]


class _Here(threading.local):
    """What a thread watches with, and whether it is inside of a loss, or at work on what it saw."""

    watchers: tuple[Any, ...] = ()
    inside = False
    is_backward = False
    hidden: frozenset[str] = frozenset()  # where the backward pass may meet losses that nobody saw
    scaler: GradScaler | None = None  # that makes a step

    def __init__(self):
        self.compiled: deque[int] = deque(maxlen=256)  # numbers of nodes whose compiled code has told of a loss


_here = _Here()
_lock, _everybody = threading.Lock(), []  # the watchers of all threads


@contextmanager
def unseen():
    """Losses computed here are nobody's."""
    _here.inside, before = True, _here.inside
    try:
        yield
    finally:
        _here.inside = before


@contextmanager
def telling(watcher: Any):
    """Tell it of all losses that this thread computes to be differentiated: to `see` them, or to `miss` those that
    cannot be told; and `after_backward` of each backward pass.
    """
    _here.watchers = *_here.watchers, watcher
    _stand(_everybody.append, watcher)
    try:
        yield
    finally:
        _here.watchers = tuple(other for other in _here.watchers if other is not watcher)
        _stand(_everybody.remove, watcher)


def _stand(change: Callable[[Any], None], watcher: Any) -> None:
    with _lock:
        change(watcher)
        for (owner, name), functions in _SITES.items():
            setattr(owner, name, functions[len(_everybody) > 0])


def _hidden_in(tensors: Any) -> frozenset[str]:
    """Where losses are computed that nobody saw, of those that these are made of."""
    roots = (tensors,) if isinstance(tensors, Tensor | GradientEdge) else tensors
    waiting = [(get_gradient_edge(root) if isinstance(root, Tensor) else root).node for root in roots]
    met, found = set(), frozenset()
    while waiting:
        node = waiting.pop()
        if node is None or node in met or _SEEN in node.metadata:  # pyright: ignore[reportOperatorIssue]
            continue
        met.add(node)
        if node._sequence_nr() not in _here.compiled:
            where = {where for part, where in _HIDDEN.items() if part in node.name()}
            found |= where
            waiting += [] if where else [before for before, _ in node.next_functions]
    return found


def _is_again() -> bool:
    """Whether a checkpoint computes something again that was differentiable at first, as reentrant ones do not."""
    if _backward_pass() == -1:
        return False
    packs, _ = modes.top_hooks(True) or (None, None)
    return not _KNOWS_HOOKS or "_recomputation_hook" in getattr(packs, "__qualname__", "")


def _told_loss(original, function, names, *args, **kwargs):
    """`original` is PyTorch's own."""
    if modes.compiling() or _here.inside:
        return original(*args, **kwargs)
    return _told(partial(original, *args, **kwargs), function, _given(names, args, kwargs))


def _told_call(called, *args):
    """As `router.told`."""
    if _here.inside:
        return None
    given = _given(_CALLS[called], args, {})
    name = given.pop("function", called.__name__.removeprefix("spread_"))
    return _told(partial(called, *args), getattr(crossent, name), given)


def _told(call, function, given):
    _here.inside = True
    try:
        result = call()
        value = result[0] if type(result) is tuple else result
        if value.requires_grad and not _is_again():
            getattr(value.grad_fn, "metadata", {})[_SEEN] = True  # what is transformed may have none
            _here.hidden -= {_HIDDEN["CheckpointFunction"]}  # in the backward pass, which computes them again
            _tell(_elsewhere(given, value), function, given, value)
    finally:
        _here.inside = False
    return result


def _told_operator(original, names, *args):
    """In compiled code, which repeats in a backward pass what was there before."""
    result, given = original(*args), _given(names, args, {})
    wanted, picks, classes = (given.pop(name, None) for name in ("wanted", "picks", "classes"))
    if _here.inside or not (any(wanted) if isinstance(wanted, list) else wanted) or _backward_pass() != -1:
        return result
    if classes is not None:
        given["target"] = SparseTarget(classes, given["target"])
    head = crossent.linear_cross_entropy
    function = head if "linear_weight" in given else crossent.nll_loss if picks else crossent.cross_entropy
    is_captured = result[0].is_cuda and torch.cuda.is_current_stream_capturing()
    where = _CAPTURED if is_captured else None if _here.watchers else _IN_A_THREAD
    with unseen():
        _here.compiled.append(_autograd._get_sequence_nr() - 1)  # the node was numbered just before its code ran
        _tell(where, function, given, result[0], "compiled code may have written over it")
    return result


def _tell(missed: str | None, function: Callable, given: dict[str, Any], value: Tensor, passing: str = "") -> None:
    for watcher in _here.watchers or tuple(_everybody):
        if missed:
            watcher.miss(missed)
        else:
            watcher.see(Loss(function, given, value, passing), value)


def _elsewhere(given: dict[str, Any], value: Tensor) -> str | None:
    """Where a loss was computed of which not all is here to be told."""
    if not _here.watchers:
        return _IN_A_THREAD
    if type(value) is not Tensor or type(given["input"]) not in (Tensor, torch.nn.Parameter):
        is_mean = given["reduction"] == "mean" and given.get("denominator") is None
        placements = getattr(value, "placements", ())
        if is_mean and placements and all(placement.is_replicate() for placement in placements):
            return None  # each process has all of it
        is_compiling = TracingContext.try_get() is not None  # whose tensors are of its own types
        return _HIDDEN["CompiledFunction"] if is_compiling else "of subclasses of tensors, such as DTensors"
    return "inside of a function transform or a dispatch mode" if modes.transformed() else None


def _told_backward(tensors, *args, **kwargs):
    if _here.is_backward or _here.inside or not _here.watchers:  # reentrant checkpoints have one inside of the other
        return _backward(tensors, *args, **kwargs)
    _here.is_backward, _here.hidden = True, frozenset()
    if not all(watcher.steps for watcher in _here.watchers):  # at first, since this may be the whole graph
        _here.hidden = _hidden_in(tensors)
    try:
        _backward(tensors, *args, **kwargs)
    finally:
        _here.is_backward = False
    for watcher in _here.watchers:
        for where in sorted(_here.hidden):
            watcher.miss(where)
        watcher.after_backward()


def _told_step(scaler, *args, **kwargs):
    _here.scaler = scaler
    try:
        return _step(scaler, *args, **kwargs)
    finally:
        _here.scaler = None


def scale() -> float:
    """That the gradients were multiplied by, of the step that is made now."""
    return _here.scaler.get_scale() if _here.scaler else 1.0


_backward, _step = torch.autograd.backward, GradScaler.step


_LOSS = ("input", "target", "weight", "sample_weight", "denominator", "dim", "options", "inplace_backward", "spread")
_HEAD = ("input", "linear_weight", "target", "linear_bias", "weight")
_OURS = (*_HEAD, "sample_weight", "denominator", "options", "how", "spread")
_TORCHS = ("input", "target", "weight", "reduction", "ignore_index", "label_smoothing")
_CALLS = {
    router._loss: ("function", *_LOSS),
    router.linear_cross_entropy: _OURS,
    router.spread_cross_entropy: _LOSS,
    router.spread_linear_cross_entropy: _OURS,
}
_OPERATORS = {
    "_loss_alone": ("wanted", *_LOSS[:4], "picks", "dim", *carried(LossOptions)),
    "_head": (
        "input", "linear_weight", "linear_bias", "target", "weight", "sample_weight", "classes", "wanted",
        *carried(HeadOptions), *carried(LossOptions),
    ),
}  # fmt: skip


def _given(names: tuple[str, ...], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a loss by their names, of which functions inside of others take some together."""
    flat = []
    for arg in args:
        flat += arg if type(arg) is tuple else [arg]
    given = {"reduction": "none"} | dict(zip(names, flat)) | kwargs
    for together in {"options", "how"} & given.keys():
        given |= vars(given.pop(together))
    if isinstance(given["reduction"], int):
        given["reduction"] = ("none", "mean", "sum")[given["reduction"]]
    return given


def _sites() -> Iterator[tuple[Any, str, Callable]]:
    """Owners and names, and what stands there while somebody watches."""
    native, head = torch._C._nn, crossent.linear_cross_entropy  # pyright: ignore[reportAttributeAccessIssue]
    for owner, name, function, names in (
        (native, "cross_entropy_loss", crossent.cross_entropy, _TORCHS),
        (native, "nll_loss_nd", crossent.nll_loss, _TORCHS),
        (chunked, "_linear_cross_entropy_batch_chunked", head, (*_HEAD, "reduction", "ignore_index")),
        (chunked, "_linear_cross_entropy_batch_chunked_no_reduction", head, (*_HEAD, "ignore_index")),
    ):
        if hasattr(owner, name):
            yield owner, name, partial(_told_loss, getattr(owner, name), function, names)
    yield router, "told", _told_call
    yield fast, "function_modes", lambda: True  # the short way is left
    for name, names in _OPERATORS.items():
        yield compiled, name, partial(_told_operator, getattr(compiled, name), names)
    yield torch.autograd, "backward", _told_backward
    yield GradScaler, "step", _told_step


# torch.nn.functional's own names are not replaced: types that take its functions over know them by identity.
_SITES = {(owner, name): (getattr(owner, name), told) for owner, name, told in _sites()}
