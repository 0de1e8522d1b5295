"""What is said of the first loss or gradient that is not finite: the batch explained, and where it first arose."""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import get_total_norm
from torch.utils import _pytree

import crossent
from crossent import Explanation
from crossent.tools.watch.seen import Loss, here_of, unseen

HELD = 2**25  # bytes of logits, until the backward pass ends; more would add as much to the training's peak
_LISTED = 5  # names of parameters in a sentence


@dataclass(frozen=True)
class Fault:
    """The first loss or gradient that was not finite.

    `kind` is "loss" or "gradient". `module` is the name of the module in which it first arose, "" for the model itself,
    None where that is not known. `parameters` are the names of those whose values (of a loss) or gradients (of a
    gradient) are not finite, the likely first one first. `explanation` is what `crossent.explain` says of the loss.
    """

    step: int
    kind: str
    module: str | None
    parameters: tuple[str, ...]
    sentence: str
    explanation: Explanation | None


class NonFiniteError(FloatingPointError):
    """What `crossent.watch` raises for the first loss or gradient that is not finite; `fault` says where it arose."""

    def __init__(self, fault: Fault):
        super().__init__(fault.sentence)
        self.fault = fault


@dataclass(frozen=True, eq=False)
class Batch:
    """A call of a module, and what it takes to make it again."""

    module: Module
    args: tuple
    kwargs: dict[str, Any]
    seed: Tensor
    autocast: tuple[str, bool, torch.dtype]

    @classmethod
    def of(cls, module: Module, args: tuple, kwargs: dict[str, Any]) -> "Batch":
        parameter = next(module.parameters(), None)
        device = "cpu" if parameter is None else parameter.device.type
        autocast = device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        seed = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
        return cls(module, args, kwargs, seed, autocast)

    def again(self) -> None:
        """Without an effect on buffers, such as running means, and on random numbers to come."""
        device, enabled, dtype = self.autocast
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        eager = torch.compiler.set_stance("force_eager")  # compiled code would pass by the hooks of what is in it
        with eager, torch.random.fork_rng(), torch.enable_grad(), torch.autocast(device, dtype, enabled):
            (torch.cuda if device == "cuda" else torch).set_rng_state(self.seed)
            torch.func.functional_call(self.module, buffers, self.args, self.kwargs)


class Trace:
    """The modules of a batch in the order in which they ran, and the first number that was not finite."""

    def __init__(self, batches: list[Batch]):
        self.order: list[Module] = []
        self.found: tuple[Module | None, str] | None = None
        self._inside: list[Module] = []
        with ExitStack() as hooks:
            for module in {module: None for batch in batches for module in batch.module.modules()}:
                hooks.enter_context(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(self._leave))
            for batch in batches:
                batch.again()

    def _enter(self, module, args, kwargs):
        self.order.append(module)
        if self.found is None and not _finite((args, kwargs)):
            self.found = (self._inside[-1], "own code") if self._inside else (None, "inputs")
        self._inside.append(module)

    def _leave(self, module, args, output):
        self._inside.pop()
        if self.found is None and not _finite(output):
            self.found = module, "output"


def _finite(tree: Any) -> bool:
    """Of what is not differentiated -inf is fine: a mask."""
    for value in _pytree.tree_leaves(tree):
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value if value.requires_grad else value.clamp(min=torch.finfo(value.dtype).min)
            if not value.isfinite().all():
                return False
    return True


def bad_parameters(model: Module, gradients: bool) -> list[str]:
    """The names of those whose values, or whose gradients, are not finite."""
    named = ((name, p.grad if gradients else p.detach()) for name, p in model.named_parameters())
    return [name for name, value in named if value is not None and not dense(value).isfinite().all()]


def norm_of(gradients: list[Tensor]) -> float:
    """Of all of them together; nan where there is none."""
    gradients = [g if type(g) is Tensor and g.layout is torch.strided else dense(g) for g in gradients]
    if not gradients:
        return math.nan
    if {(g.device.type, g.dtype) for g in gradients} == {("cpu", torch.float32)}:
        # takes a third less time, and rounds less
        found = math.sqrt(sum(torch.dot(g, g).item() for g in map(torch.flatten, gradients)))
    else:
        found = float(get_total_norm(gradients))
    if math.isfinite(found):
        return found
    return math.hypot(*(torch.linalg.vector_norm(g, dtype=torch.float64).item() for g in gradients))


def dense(gradient: Tensor) -> Tensor:
    """What there is of it here, and is not 0."""
    gradient = here_of(gradient)
    return gradient._values() if gradient.is_sparse else gradient


def fault_of(
    model: Module, kind: str, step: int, losses: list[Loss], batches: list[Batch], bad: list[str] | None
) -> Fault:
    """`bad` are the parameters whose gradients are not finite, None for a loss."""
    what = f"The {kind} of step {step}" if kind == "gradient" else f"The loss of step {step}, {losses[-1].name},"
    said = [f"{what} is not finite."]
    with unseen():
        explanation = _explained(losses, kind, said)
        is_spread = any(loss.is_spread for loss in losses) or any(hasattr(p, "to_local") for p in model.parameters())
        trace = _traced(model, batches, is_spread, said)
    names = {module: name for name, module in model.named_modules()}
    if bad is None:
        module, where = _place(trace, names)
        said += [where] if where else []
        bad = sorted(bad_parameters(model, gradients=False), key=lambda name: name.rpartition(".")[0] != module)
    else:  # a gradient comes from the loss, so that of the modules the last to run has it first
        order = {names[module]: i for i, module in enumerate(trace.order if trace else names)}
        bad = sorted(bad, key=lambda name: -order.get(name.rpartition(".")[0], -1))
        module = bad[0].rpartition(".")[0]
        said.append(f"On its way back from the loss it first arose in {_called(names, model.get_submodule(module))}.")
    if bad:
        more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
        values = "Gradients" if kind == "gradient" else "Parameters"
        said.append(f"{values} that are not finite: {', '.join(bad[:_LISTED])}{more}.")
    if explanation is not None:
        said += [finding.sentence for finding in explanation.findings if finding.severity == "error"]
    return Fault(step, kind, module, tuple(bad), " ".join(said), explanation)


def _explained(losses: list[Loss], kind: str, said: list[str]) -> Explanation | None:
    if not losses or (kind == "gradient" and losses[-1]["inplace_backward"]):
        return None
    if losses[-1].is_spread or not losses[-1].arguments:
        why = losses[-1].passing or f"logits of more than {HELD // 2**20} MB are not held"
        said.append(f"Its batch is not explained: {why}.")
        return None
    function, given = losses[-1].function, losses[-1].arguments
    try:
        return crossent.explain(
            function=function, **{name: given[name] for name in signature(function).parameters if name in given}
        )
    except Exception as error:  # the fault has to be told whatever else is wrong
        said.append(f"It cannot be explained: {error}.")
        return None


def _traced(model: Module, batches: list[Batch], is_spread: bool, said: list[str]) -> Trace | None:
    if is_spread:
        why = "it is spread over processes, which would have to run it together"
    elif not batches:
        why = "it was not called as a module, was compiled, or the gradient came from another process"
    else:
        try:
            return Trace([batch for batch in batches if batch.module is model] or batches)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
    said.append(f"The model cannot be run again to see where: {why}.")
    return None


def _place(trace: Trace | None, names: dict[Module, str]) -> tuple[str | None, str]:
    """The name of the module in which a loss first became not finite, and the sentence that says so."""
    if trace is None:
        return None, ""
    if trace.found is None:
        return None, "All that the model's modules return is finite: it arose after them."
    module, where = trace.found
    if module is None:
        return None, "The inputs of the model are not finite."
    how = "whose inputs are finite and whose output is not" if where == "output" else "between the modules in it"
    return names[module], f"It first arose in {_called(names, module)}, {how}."


def _called(names: dict[Module, str], module: Module) -> str:
    return f"{names[module] or 'the model itself'} ({type(module).__name__})"
