"""Logits that a model's output embedding never makes, and the cross entropy of them that it makes instead."""

import contextlib
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from crossent._options import CHUNK_BYTES
from crossent.functional import cross_entropy, linear_cross_entropy, nll_loss
from crossent.integrations._parallel import as_dtensor, is_dtensor

_HALVES = (torch.float16, torch.bfloat16)
_MASKS = (torch.bool, torch.uint8)


# None of these classes is a dataclass: hooks of libraries look into those for tensors, and make copies of them.


class Step:
    """One call of a patched model: whose logits are left out, and whether a loss came of it.

    `head` is the output embedding as the model calls it, `answering` the patched modules in it that answer.
    """

    def __init__(self, head, answering):
        self.head, self.answering, self.has_loss = head, answering, False


def refused(what):
    return TypeError(
        f"{what} is not possible while a patched model trains: its logits are never made. "
        "Call it in evaluation or without labels where you need them, or unpatch it"
    )


def _has_autocast(device):
    return device != "meta" if torch.compiler.is_compiling() else torch.amp.is_autocast_available(device)


def autocasts(device):
    return _has_autocast(device) and torch.is_autocast_enabled(device)


class Logits:
    """With x = hidden @ weight.T + bias and y = x * times / over + shift: z = y, or cap * tanh(y).

    `times` and `over` are kept apart, so that what a softcap divides by and multiplies with cancels to exactly 1.
    """

    times, over, shift, cap = 1.0, 1.0, None, None

    def __init__(self, step, hidden, classes):
        autocast = autocasts(hidden.device.type) and hidden.dtype != torch.float64
        self.products = torch.get_autocast_dtype(hidden.device.type) if autocast else None  # the hidden states' dtype
        self.step, self.hidden, self.classes, self.dtype = step, hidden, classes, self.products or hidden.dtype
        self.mesh = getattr(hidden, "device_mesh", None)  # of a DTensor

    def _with(self, **changes):
        made = Logits(self.step, self.hidden, self.classes)
        for name, value in (self.__dict__ | changes).items():
            setattr(made, name, value)
        return made

    @property
    def shape(self):
        return torch.Size((*self.hidden.shape[:-1], self.classes))

    @property
    def device(self):
        return self.hidden.device

    def __repr__(self):
        return f"<logits of shape {tuple(self.shape)}, which a patched model did not make>"

    def size(self, dim=None):
        return self.shape if dim is None else self.shape[dim]

    def contiguous(self):
        return self

    # What hooks of parallelize_module do with logits, after they have made a DTensor of the hidden states.

    @property
    def placements(self):
        return self.hidden.placements

    def redistribute(self, *args, **kwargs):
        return self

    def to_local(self):
        return self._with(hidden=self.hidden.to_local())

    def float(self):
        return self.to(torch.float32)

    def to(self, *args, **kwargs):
        like = self.hidden.new_empty(0, dtype=self.dtype).to(*args, **kwargs)
        if like.device != self.device:
            raise refused(f"Moving logits from {self.device} to {like.device}")
        return self._with(dtype=like.dtype)

    def view(self, *shape):
        shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        if not shape or shape[-1] not in (-1, self.classes):
            raise refused(f"Viewing logits of {self.classes} classes as {shape}")
        return self._with(hidden=self.hidden.reshape(*shape[:-1], self.hidden.shape[-1]))

    reshape = view

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        if not all(i is ... or isinstance(i, (int, slice, torch.Tensor)) and not isinstance(i, bool) for i in index):
            raise refused(f"Indexing logits with {index}")
        axes = sum(i.ndim if isinstance(i, torch.Tensor) and i.dtype in _MASKS else i is not ... for i in index)
        if axes < self.hidden.ndim and not (any(i is ... for i in index) and index[-1] is not ...):
            return self._with(hidden=self.hidden[index])
        kept = range(self.classes)[index[-1]] if isinstance(index[-1], slice) else range(0)
        if not kept or kept.start or kept.step != 1:  # the first ones are what padded vocabularies are cut to
            raise refused(f"Indexing classes with {index[-1]}")
        shift = None if self.shift is None else self.shift[: len(kept)]
        return self._with(hidden=self.hidden[(*index[:-1], slice(None))], classes=len(kept), shift=shift)

    def __mul__(self, factor):
        if not isinstance(factor, (int, float)):
            raise refused(f"Scaling logits with a {type(factor).__name__}")
        return self._scaled(factor, 1)

    __rmul__ = __mul__

    def __truediv__(self, divisor):
        if not isinstance(divisor, (int, float)):
            raise refused(f"Dividing logits by a {type(divisor).__name__}")
        return self._scaled(1, divisor)

    def _scaled(self, times, over):
        if self.cap is not None:
            return self._with(cap=self.cap * times / over)
        shift = None if self.shift is None else self.shift * times / over
        return self._with(times=self.times * times, over=self.over * over, shift=shift)

    def __add__(self, bias):
        if not isinstance(bias, torch.Tensor) or bias.shape[-1:] != self.shape[-1:] or bias.numel() != self.classes:
            raise refused("Adding to logits anything but a bias, a tensor with one number for each class,")
        if self.cap is not None:
            raise refused("Adding a bias after a softcap")
        shift = bias.reshape(-1) if self.shift is None else self.shift + bias.reshape(-1)
        return self._with(shift=shift, dtype=torch.promote_types(self.dtype, bias.dtype))

    __radd__ = __add__

    def tanh(self):
        if self.cap is not None:
            raise refused("A second softcap")
        return self._with(cap=1.0)

    def cross_entropy(
        self, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean",
        label_smoothing=0.0,
    ):  # fmt: skip
        if self.hidden.ndim != 2 or size_average is not None or reduce is not None:
            raise refused("Cross entropy of anything but (N, C), or with size_average or reduce,")
        options = {
            "weight": weight, "reduction": reduction, "ignore_index": ignore_index, "label_smoothing": label_smoothing,
        }  # fmt: skip
        loss = _Loss(self, options)
        if self.mesh is None:
            # A dictionary: hooks of libraries look into it for tensors, and other hooks' arithmetic fails with it.
            made = self.step.head({"input": self.hidden, "target": target, "loss": loss})["loss"]
        else:
            made = self.step.head(as_dtensor(self.hidden, self.mesh), target=target, loss=loss)["loss"]
            if not is_dtensor(self.hidden):
                made = made.to_local()
        self.step.has_loss = True
        return made

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func not in _FUNCTIONS or not isinstance(args[0], cls):
            raise refused(getattr(func, "__name__", str(func)))
        return _FUNCTIONS[func](*args, **(kwargs or {}))

    def __getattr__(self, name):
        raise AttributeError(str(refused(f"`{name}` of logits")))

    def __eq__(self, other):
        raise refused("Comparing logits")

    __ne__ = __eq__


_FUNCTIONS = {F.cross_entropy: Logits.cross_entropy, torch.tanh: Logits.tanh}


class _Loss:
    """What the output embedding is asked for; `hidden` are the rows that it was given with it."""

    def __init__(self, logits, options):
        self.logits, self.options = logits, options

    def of_linear(self, head, hidden, target):
        if is_dtensor(head.weight) and not is_dtensor(hidden):
            loss: Any = self.of_linear(head, as_dtensor(hidden, head.weight.device_mesh), target)
            return loss.to_local()
        logits, classes = self.logits, self.logits.classes
        matrix = head.weight[:classes] if classes < len(head.weight) else head.weight
        bias = None if head.bias is None else head.bias[:classes]
        factor, shift, softcap = self._transform()
        if factor != 1:
            hidden, bias = hidden * factor, None if bias is None else bias * factor
        if shift is not None:
            shift = as_dtensor(shift, hidden.device_mesh) if is_dtensor(hidden) else shift
            bias = (shift if bias is None else bias + shift).to(hidden.dtype)
        products = logits.products or hidden.dtype
        half = products in _HALVES
        # Products in the head's dtype, whoever chose it, and losses in float32.
        with self._autocast(dtype=products if half else None, enabled=half):
            loss = linear_cross_entropy(hidden, matrix, target, linear_bias=bias, softcap=softcap, **self.options)
        return self._rounded(loss)

    def by_chunks(self, module, head, hidden, target):
        """Of any function of rows: the forward of an adapted module."""
        reduction, classes = self.options["reduction"], self.logits.classes
        options: dict[str, Any] = self.options | {"reduction": "none" if reduction == "none" else "sum"}
        factor, shift, softcap = self._transform()

        def losses(hidden, target):
            x = head(hidden)
            x = x.to(torch.promote_types(x.dtype, torch.float32))[:, :classes]
            x = x if factor == 1 else x * factor
            return cross_entropy(x if shift is None else x + shift, target, softcap=softcap, **options)

        rows = max(1, CHUNK_BYTES // (4 * classes))
        chunks = list(zip(hidden.split(rows), target.split(rows)))
        if reduction == "none" or torch.compiler.is_compiling():
            made = [checkpoint(losses, *chunk, use_reentrant=False) for chunk in chunks]
            if reduction == "none":
                return self._rounded(torch.cat(made))
            total = torch.stack(made).sum()
        else:
            shared = [tensor for tensor in (*module.parameters(), shift) if tensor is not None and tensor.requires_grad]
            total = _SumOverChunks.apply(losses, chunks, hidden, *shared)
        return self._rounded(total / self._divisor(target) if reduction == "mean" else total)

    def _transform(self):
        """y = factor * x + shift, of which the softcap is taken: cap * tanh(y / cap), whatever the sign of cap."""
        logits, outer = self.logits, 1.0 if self.logits.cap is None else self.logits.cap
        shift = None if logits.shift is None else logits.shift * outer
        return logits.times * outer / logits.over, shift, None if logits.cap is None else abs(logits.cap)

    def _divisor(self, target):
        """The sum of the weights that the labels have: of losses that are 1 without them."""
        ones = self.logits.hidden.new_full((1, 1), -1.0, dtype=torch.float32).expand(self.logits.shape)
        options = {name: self.options[name] for name in ("weight", "ignore_index")}
        return nll_loss(ones, target, reduction="sum", **options)

    def _autocast(self, **how):
        device = self.logits.device.type
        return torch.autocast(device, **how) if _has_autocast(device) else contextlib.nullcontext()

    def _rounded(self, loss):
        return loss if autocasts(self.logits.device.type) else loss.to(self.logits.dtype)


class _SumOverChunks(torch.autograd.Function):
    """The sum of the losses, whose gradients are made in forward, while the logits of a chunk of rows are there."""

    @staticmethod
    def forward(ctx, losses, chunks, hidden, *shared):
        total, rows = 0.0, []
        sums = [torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)) for tensor in shared]
        differentiated = any(ctx.needs_input_grad)
        for some, target in chunks:
            some = some.detach().requires_grad_(differentiated)
            with torch.set_grad_enabled(differentiated):
                loss = losses(some, target)
            total = total + loss.detach()
            if differentiated:
                drows, *gradients = torch.autograd.grad(loss, (some, *shared), materialize_grads=True)
                rows.append(drows)
                for summed, gradient in zip(sums, gradients):
                    summed += gradient
        if differentiated:
            ctx.save_for_backward(torch.cat(rows), *sums)
            ctx.dtypes = [tensor.dtype for tensor in (hidden, *shared)]
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dtotal):
        return None, None, *((made * dtotal).to(dtype) for made, dtype in zip(ctx.saved_tensors, ctx.dtypes))
