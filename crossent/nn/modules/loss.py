"""torch.nn.modules.loss with crossent's `NLLLoss` and `CrossEntropyLoss` in it."""

import torch.nn.modules.loss as _torch_loss

from crossent._options import loss_options
from crossent.functional import cross_entropy, nll_loss


class NLLLoss(_torch_loss.NLLLoss):
    """`crossent.nll_loss` with its options as a module; torch.nn.NLLLoss with another engine and one more option.

    Args:
        weight: a weight for each class, of shape (C,), kept as a buffer; None weighs all classes alike.
        size_average, reduce: deprecated, as in PyTorch: they override `reduction`.
        ignore_index: the label whose rows count for nothing.
        reduction: "mean", "sum" or "none".
        dim: the class axis of the input. None is PyTorch's: axis 1, or axis 0 of an input with one axis.

    Calling it takes `input` (log-probabilities) and `target`, and by keyword `sample_weight`, a weight per target, and
    `denominator`, what "mean" divides by. Shapes, dtypes, errors and derivatives are those of `crossent.nll_loss`.

    Raises ValueError or TypeError, here and not first at the call, for an option that is out of range.

    >>> import torch
    >>> import crossent.nn as nn
    >>> log_probabilities = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    >>> nn.NLLLoss(reduction="none")(log_probabilities, torch.tensor([0, 1]))
    tensor([0.6931, 0.2877])
    """

    dim: int | None = None

    def __init__(
        self, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean", *, dim=None
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction)
        loss_options(reduction=self.reduction, ignore_index=ignore_index)
        self.dim = dim

    def forward(self, input, target, *, sample_weight=None, denominator=None):
        return nll_loss(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            dim=self.dim,
            sample_weight=sample_weight,
            denominator=denominator,
        )

    def extra_repr(self) -> str:
        return _changed(self, NLLLoss, "dim")


class CrossEntropyLoss(_torch_loss.CrossEntropyLoss):
    """`crossent.cross_entropy` with its options as a module; torch.nn.CrossEntropyLoss with another engine and more.

    Args:
        weight: a weight for each class, of shape (C,), kept as a buffer; None weighs all classes alike.
        size_average, reduce: deprecated, as in PyTorch: they override `reduction`.
        ignore_index: the label whose rows count for nothing.
        reduction: "mean", "sum" or "none".
        label_smoothing: the share of every target, between 0 and 1, that is spread over all classes alike.
        dim: the class axis of the input. None is PyTorch's: axis 1, or axis 0 of an input with one axis.
        softcap: the bound c that replaces the logits x by c * tanh(x / c), or None.
        z_loss: the factor of the squared log-normaliser that is added to every row's loss.
        inplace_backward: write the gradient over the logits. A later backward that needs their values then raises.

    Calling it takes `input` (logits) and `target` (labels or class probabilities), and by keyword `sample_weight`, a
    weight per target, and `denominator`, what "mean" divides by. Shapes, dtypes, errors and derivatives are those of
    `crossent.cross_entropy`.

    Raises ValueError or TypeError, here and not first at the call, for an option that is out of range.

    >>> import torch
    >>> import crossent.nn as nn
    >>> logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]], requires_grad=True)
    >>> loss = nn.CrossEntropyLoss()(logits, torch.tensor([1, 0]))
    >>> loss.item()  # (log 2 + log(1 + exp(-2))) / 2
    0.4100...
    >>> loss.backward()
    >>> logits.grad[0]
    tensor([ 0.2500, -0.2500])
    """

    dim: int | None = None
    softcap: float | None = None
    z_loss: float = 0.0
    inplace_backward: bool = False

    def __init__(
        self,
        weight=None,
        size_average=None,
        ignore_index=-100,
        reduce=None,
        reduction="mean",
        label_smoothing=0.0,
        *,
        dim=None,
        softcap=None,
        z_loss=0.0,
        inplace_backward=False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        loss_options(None, None, self.reduction, ignore_index, label_smoothing, softcap, z_loss)
        self.dim = dim
        self.softcap = softcap
        self.z_loss = z_loss
        self.inplace_backward = inplace_backward

    def forward(self, input, target, *, sample_weight=None, denominator=None):
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            dim=self.dim,
            sample_weight=sample_weight,
            denominator=denominator,
            softcap=self.softcap,
            z_loss=self.z_loss,
            inplace_backward=self.inplace_backward,
        )

    def extra_repr(self) -> str:
        return _changed(self, CrossEntropyLoss, "dim", "softcap", "z_loss", "inplace_backward")


def _changed(module, kind, *names):
    """Those of the named options that differ from the class's defaults, so that a plain module prints as torch's."""
    values = {name: getattr(module, name) for name in names}
    return ", ".join(f"{name}={value!r}" for name, value in values.items() if value != getattr(kind, name))


def __getattr__(name):
    return getattr(_torch_loss, name)
