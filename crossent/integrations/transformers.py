"""Causal language models of the transformers library that never make their training logits.

`patch` gives a model and its output embedding subclasses of their own classes. While the model trains with labels, the
embedding answers with `_Logits`, which note what the model does to logits, and the cross entropy of these is
`crossent.linear_cross_entropy` of the hidden states. The model's own loss function is what calls it, so what labels,
shifts and divisors mean stays where it was.
"""

import dataclasses
import functools
import inspect
from contextvars import ContextVar
from fractions import Fraction
from typing import Any

import torch
from torch.nn import functional as F

from crossent.functional import linear_cross_entropy

_HALVES = (torch.float16, torch.bfloat16)
_MASKS = (torch.bool, torch.uint8)
_step: ContextVar[Any] = ContextVar("crossent_step", default=None)


@dataclasses.dataclass(eq=False)
class _Step:
    """One call of a patched model: whose logits are left out, and whether a loss came of it."""

    head: Any
    has_loss: bool = False


def _refused(what):
    return TypeError(f"{what} is not possible while a patched model trains: its logits are never made. Unpatch it")


@dataclasses.dataclass(eq=False)
class _Logits:
    """Logits that are never made: x = hidden @ weight.T + bias, and z = scale * x or cap * tanh(scale * x).

    Fractions, so that what a softcap divides by and multiplies with cancels to exactly 1.
    """

    step: _Step
    hidden: Any
    classes: int
    products: torch.dtype
    dtype: torch.dtype
    scale: Fraction = Fraction(1)
    cap: Fraction | None = None

    @property
    def shape(self):
        return torch.Size((*self.hidden.shape[:-1], self.classes))

    @property
    def device(self):
        return self.hidden.device

    def size(self, dim=None):
        return self.shape if dim is None else self.shape[dim]

    def contiguous(self):
        return self

    def float(self):
        return self.to(torch.float32)

    def to(self, *args, **kwargs):
        like = self.hidden.new_empty(0, dtype=self.dtype).to(*args, **kwargs)
        if like.device != self.device:
            raise _refused(f"Moving logits from {self.device} to {like.device}")
        return dataclasses.replace(self, dtype=like.dtype)

    def view(self, *shape):
        shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        if not shape or shape[-1] not in (-1, self.classes):
            raise _refused(f"Viewing logits of {self.classes} classes as {shape}")
        return dataclasses.replace(self, hidden=self.hidden.reshape(*shape[:-1], self.hidden.shape[-1]))

    reshape = view

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        if not all(i is ... or isinstance(i, (int, slice, torch.Tensor)) and not isinstance(i, bool) for i in index):
            raise _refused(f"Indexing logits with {index}")
        axes = sum(i.ndim if isinstance(i, torch.Tensor) and i.dtype in _MASKS else i is not ... for i in index)
        if axes < self.hidden.ndim and not (any(i is ... for i in index) and index[-1] is not ...):
            return dataclasses.replace(self, hidden=self.hidden[index])
        kept = range(self.classes)[index[-1]] if isinstance(index[-1], slice) else range(0)
        if not kept or kept.start or kept.step != 1:  # the first ones are what padded vocabularies are cut to
            raise _refused(f"Indexing classes with {index[-1]}")
        return dataclasses.replace(self, hidden=self.hidden[(*index[:-1], slice(None))], classes=len(kept))

    def __mul__(self, factor):
        if not isinstance(factor, (int, float, Fraction)):
            raise _refused(f"Scaling logits with a {type(factor).__name__}")
        scaled = "scale" if self.cap is None else "cap"
        return dataclasses.replace(self, **{scaled: getattr(self, scaled) * Fraction(factor)})

    __rmul__ = __mul__

    def __truediv__(self, divisor):
        return self * (1 / Fraction(divisor) if isinstance(divisor, (int, float)) else divisor)

    def tanh(self):
        if self.cap is not None:
            raise _refused("A second softcap")
        return dataclasses.replace(self, cap=Fraction(1))

    def cross_entropy(
        self, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean",
        label_smoothing=0.0,
    ):  # fmt: skip
        if self.hidden.ndim != 2 or size_average is not None or reduce is not None:
            raise _refused("Cross entropy of anything but (N, C), or with size_average or reduce,")
        head, hidden, device = self.step.head, self.hidden, self.device.type
        matrix = head.weight[: self.classes] if self.classes < len(head.weight) else head.weight
        bias = None if head.bias is None else head.bias[: self.classes]
        factor = float(self.scale * (1 if self.cap is None else self.cap))
        if factor != 1:
            hidden, bias = hidden * factor, None if bias is None else bias * factor
        autocast, half = torch.is_autocast_enabled(device), self.products in _HALVES
        # Products in the head's dtype, whoever chose it, and losses in float32.
        with torch.autocast(device, dtype=self.products if half else None, enabled=half):
            loss = linear_cross_entropy(
                hidden, matrix, target, linear_bias=bias, weight=weight, reduction=reduction,
                ignore_index=ignore_index, label_smoothing=label_smoothing,
                softcap=None if self.cap is None else float(abs(self.cap)),
            )  # fmt: skip
        self.step.has_loss = True
        return loss if autocast else loss.to(self.dtype)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func not in _FUNCTIONS or not isinstance(args[0], cls):
            raise _refused(getattr(func, "__name__", str(func)))
        return _FUNCTIONS[func](*args, **(kwargs or {}))

    def __getattr__(self, name):
        raise AttributeError(str(_refused(f"`{name}` of logits")))

    def __eq__(self, other):
        raise _refused("Comparing logits")

    __ne__ = __eq__


_FUNCTIONS = {F.cross_entropy: _Logits.cross_entropy, torch.tanh: _Logits.tanh}


def _head_forward(base):
    def forward(self, input):
        step = _step.get()
        if step is None or step.head is not self:
            return base.forward(self, input)
        device = input.device.type
        autocast = torch.is_autocast_enabled(device) and input.dtype != torch.float64
        dtype = torch.get_autocast_dtype(device) if autocast else input.dtype
        return _Logits(step, input, len(self.weight), dtype, dtype)

    return forward


def _model_forward(base):
    position = list(inspect.signature(base.forward).parameters).index("labels") - 1  # without self

    def forward(self, *args, **kwargs):
        labels = args[position] if len(args) > position else kwargs.get("labels")
        if not self.training or labels is None or _base(self) is None:
            return base.forward(self, *args, **kwargs)
        head = self.get_output_embeddings()
        if _base(head) is None:
            raise ValueError(f"{base.__name__} has another output embedding than when it was patched: patch it again")
        step = _Step(head)
        token = _step.set(step)
        try:
            output = base.forward(self, *args, **kwargs)
        finally:
            _step.reset(token)
        if not step.has_loss:
            raise TypeError(f"{base.__name__} took no cross entropy of its output embedding's logits: unpatch it")
        if isinstance(output, tuple):
            return tuple(value for value in output if not isinstance(value, _Logits))
        made = {name: None for name, value in output.items() if isinstance(value, _Logits)}
        return dataclasses.replace(output, **made)

    return forward


@functools.cache
def _patched(base):
    """A subclass by the same name, since transformers looks up by class names."""
    forward = (_head_forward if issubclass(base, torch.nn.Linear) else _model_forward)(base)
    # What the Trainer reads. Not __wrapped__, through which accelerate's unwrapping would lose this forward.
    forward.__signature__ = inspect.signature(base.forward)  # pyright: ignore[reportFunctionMemberAccess]

    def __reduce_ex__(self, protocol):
        return _blank, (base,), *base.__reduce_ex__(self, protocol)[2:]

    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    names |= {"forward": forward, "__reduce_ex__": __reduce_ex__, "_crossent_base": base}
    return type(base.__name__, (base,), names)


def _blank(base):
    return _patched(base).__new__(_patched(base))


def _base(module):
    """The class that a patched module had, None for others."""
    return getattr(type(module), "_crossent_base", None)


def _head_of(model):
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if head is None:
        raise TypeError(f"{type(model).__name__} has no output embedding: get_output_embeddings() must return one")
    return head


def patch(model):
    """Make a causal language model of transformers train with the fused head, so that its logits are never made.

        loss = crossent.linear_cross_entropy(hidden_states, output_embedding.weight, labels, ...)

    Equals the unpatched model in loss and gradients, up to rounding. While `model.training` holds and `labels` are
    given, `logits` in the output is None (left out of a tuple); in evaluation, without labels and in generate
    everything is as before. The loss function stays the model's own, with what it makes of label shift, ignored
    labels, `shift_labels` and `num_items_in_batch`; of what happens to the logits, scaling by numbers, a softcap,
    float(), and the choice of positions or of the first classes are understood, and all else raises TypeError or
    AttributeError when the model is called.

    Args:
        model: any model whose `get_output_embeddings()` is a torch.nn.Linear (tied or not, with or without bias) and
            whose forward takes `labels`. Patch it before accelerate or a Trainer prepares it.

    The products are in the dtype of the hidden states, or autocast's; losses are made in float32 (float64 for float64).
    A scale is applied to the hidden states, in their dtype, and a softcap in float32.

    Returns the model, whose class and whose output embedding's class are now subclasses of the same names. Parameters,
    their names, state_dict, deepcopy and pickle work as before. Patching again is harmless, and needed once the output
    embedding is replaced.

    Raises TypeError, and changes nothing, for a model without output embedding, with one that is not a plain
    torch.nn.Linear (adapted or quantised ones), whose forward takes no labels, or whose forward or output embedding's
    forward was replaced on the instance.

    Example::

        model = crossent.integrations.transformers.patch(AutoModelForCausalLM.from_pretrained(name))
        Trainer(model, arguments, train_dataset=dataset).train()
    """
    head = _head_of(model)
    if not isinstance(head, torch.nn.Linear) or (_base(head) or type(head)).forward is not torch.nn.Linear.forward:
        raise TypeError(f"the output embedding must be a torch.nn.Linear with its own forward, got {type(head)}")
    if "labels" not in inspect.signature(type(model).forward).parameters:
        raise TypeError(f"{type(model).__name__}.forward must take labels, from which it makes its loss")
    for module in (model, head):
        if _base(module) is None and "forward" in vars(module):
            raise TypeError(f"{type(module).__name__}.forward was replaced on the instance: patch before that")
    for module in (model, head):
        if _base(module) is None:
            module.__class__ = _patched(type(module))
    return model


def unpatch(model):
    """Undo `patch`: the model and its output embedding get their own classes back.

    Returns the model, which makes its logits again. One that was not patched stays as it is.

    Raises TypeError for a model without output embedding, and where another library has put a class of its own on top
    since, as FSDP does.

    Example::

        model = crossent.integrations.transformers.unpatch(model)
    """
    patched = [module for module in (model, _head_of(model)) if _base(module) is not None]
    for module in patched:
        if type(module) is not _patched(_base(module)):
            raise TypeError(
                f"{type(module).__name__} was wrapped in another class after it was patched: undo that first"
            )
    for module in patched:
        module.__class__ = _base(module)
    return model
