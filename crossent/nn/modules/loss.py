"""torch.nn.modules.loss with crossent's `NLLLoss`, `CrossEntropyLoss` and `LinearCrossEntropyLoss` in it."""

import math
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch.nn.modules.loss as _torch_loss
from torch import Tensor, dtype as _Dtype
from torch.nn.modules.linear import Linear

from crossent._options import Reduction, head_options, loss_options
from crossent.functional import SparseTarget, cross_entropy, linear_cross_entropy, nll_loss
from crossent.nn._scripting import scripted_as

if TYPE_CHECKING:
    from torch.nn.modules.loss import (
        BCELoss as BCELoss,
        BCEWithLogitsLoss as BCEWithLogitsLoss,
        CosineEmbeddingLoss as CosineEmbeddingLoss,
        CTCLoss as CTCLoss,
        GaussianNLLLoss as GaussianNLLLoss,
        HingeEmbeddingLoss as HingeEmbeddingLoss,
        HuberLoss as HuberLoss,
        KLDivLoss as KLDivLoss,
        L1Loss as L1Loss,
        MarginRankingLoss as MarginRankingLoss,
        MSELoss as MSELoss,
        MultiLabelMarginLoss as MultiLabelMarginLoss,
        MultiLabelSoftMarginLoss as MultiLabelSoftMarginLoss,
        MultiMarginLoss as MultiMarginLoss,
        NLLLoss2d as NLLLoss2d,
        PoissonNLLLoss as PoissonNLLLoss,
        SmoothL1Loss as SmoothL1Loss,
        SoftMarginLoss as SoftMarginLoss,
        TripletMarginLoss as TripletMarginLoss,
        TripletMarginWithDistanceLoss as TripletMarginWithDistanceLoss,
        _Loss as _Loss,
        _WeightedLoss as _WeightedLoss,
    )

    _Target = TypeVar("_Target", contravariant=True)

    class _Call(Protocol[_Target]):
        """A module called, of which torch says that it takes and gives anything."""

        def __call__(
            self,
            input: Tensor,
            target: _Target,
            *,
            sample_weight: Tensor | None = None,
            denominator: float | Tensor | None = None,
        ) -> Tensor: ...


# PyTorch has the fused head as a module from 2.13 on.
_LinearLoss: Any = getattr(_torch_loss, "LinearCrossEntropyLoss", _torch_loss._WeightedLoss)


class NLLLoss(_torch_loss.NLLLoss):
    """`crossent.nll_loss` with its options as a module; torch.nn.NLLLoss with another engine and two more options.

    Args:
        weight: a weight for each class, of shape (C,), kept as a buffer; None weighs all classes alike.
        size_average, reduce: deprecated, as in PyTorch: they override `reduction`.
        ignore_index: the label whose rows count for nothing.
        reduction: "mean", "sum" or "none".
        dim: the class axis of the input. None is PyTorch's: axis 1, or axis 0 of an input with one axis.
        loss_dtype: the dtype of the loss, float32 or float64; None is the input's.

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
    loss_dtype: _Dtype | str | None = None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        *,
        dim: int | None = None,
        loss_dtype: _Dtype | str | None = None,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction)
        loss_options(reduction=self.reduction, ignore_index=ignore_index, loss_dtype=loss_dtype)
        self.dim = dim
        self.loss_dtype = loss_dtype

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        return nll_loss(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            dim=self.dim,
            sample_weight=sample_weight,
            denominator=denominator,
            loss_dtype=self.loss_dtype,
        )

    if TYPE_CHECKING:
        reduction: Reduction
        __call__: _Call[Tensor]

    def __prepare_scriptable__(self):
        return scripted_as(self, NLLLoss, _torch_loss.NLLLoss, "dim", "loss_dtype")

    def extra_repr(self) -> str:
        return _changed(self, NLLLoss, "dim", "loss_dtype")


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
        loss_dtype: the dtype of the loss, float32 or float64; None is the input's.

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
    loss_dtype: _Dtype | str | None = None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        dim: int | None = None,
        softcap: float | None = None,
        z_loss: float = 0.0,
        inplace_backward: bool = False,
        loss_dtype: _Dtype | str | None = None,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        loss_options(None, None, self.reduction, ignore_index, label_smoothing, softcap, z_loss, loss_dtype)
        self.dim = dim
        self.softcap = softcap
        self.z_loss = z_loss
        self.inplace_backward = inplace_backward
        self.loss_dtype = loss_dtype

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
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
            loss_dtype=self.loss_dtype,
        )

    if TYPE_CHECKING:
        reduction: Reduction
        __call__: _Call[Tensor]

    def __prepare_scriptable__(self):
        own = "dim", "softcap", "z_loss", "inplace_backward", "loss_dtype"
        return scripted_as(self, CrossEntropyLoss, _torch_loss.CrossEntropyLoss, *own)

    def extra_repr(self) -> str:
        return _changed(self, CrossEntropyLoss, "dim", "softcap", "z_loss", "inplace_backward", "loss_dtype")


class LinearCrossEntropyLoss(_LinearLoss):
    """A linear layer and `crossent.linear_cross_entropy` of its output; torch.nn.LinearCrossEntropyLoss and more.

    Args:
        in_features: the number of features, D.
        num_classes: the number of classes, C.
        out_features: the sizes (d1, ..., dK) of a K-dimensional loss.
        bias: whether the layer has a bias.
        device, dtype: those of the layer's parameters.
        weight: a weight for each class, of shape (C,), kept as a buffer; None weighs all classes alike.
        reduction, ignore_index, label_smoothing, options, shift, softcap, z_loss, chunk_bytes, filter_eps, loss_dtype:
            those of `crossent.linear_cross_entropy`.

    The layer is `linear`, a torch.nn.Linear with C * d1 * ... * dK rows, as in PyTorch; its weight can be tied to an
    embedding's. Calling the module takes `input` and `target`, and by keyword `sample_weight` and `denominator`.
    Shapes, dtypes, errors and derivatives are those of `crossent.linear_cross_entropy`.

    Raises ValueError or TypeError, here and not first at the call, for an option that is out of range.

    >>> import torch
    >>> import crossent.nn as nn
    >>> head = nn.LinearCrossEntropyLoss(3, 5, shift=1)
    >>> hidden, tokens = torch.zeros(2, 4, 3), torch.randint(5, (2, 4))
    >>> head(hidden, tokens)  # log 5
    tensor(1.6094, grad_fn=<_LinearCrossEntropyBackward>)
    """

    shift: int = 0
    softcap: float | None = None
    z_loss: float = 0.0
    chunk_bytes: int | None = None
    filter_eps: float = 0.0
    loss_dtype: _Dtype | str | None = None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: Reduction = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        shift: int = 0,
        softcap: float | None = None,
        z_loss: float = 0.0,
        chunk_bytes: int | None = None,
        filter_eps: float = 0.0,
        loss_dtype: _Dtype | str | None = None,
    ) -> None:
        _torch_loss._WeightedLoss.__init__(self, weight=weight, reduction=reduction)
        if weight is not None and weight.shape != (num_classes,):
            raise ValueError(f"weight must have shape {(num_classes,)}, got {tuple(weight.shape)}")
        ignored = -100 if ignore_index is None else ignore_index
        loss_options(None, None, reduction, ignored, label_smoothing, softcap, z_loss, loss_dtype)
        head_options(shift, chunk_bytes, filter_eps, options)
        self.num_classes, self.out_features = num_classes, out_features
        self.ignore_index, self.label_smoothing, self.options = ignore_index, label_smoothing, options
        self.shift, self.softcap, self.z_loss = shift, softcap, z_loss
        self.chunk_bytes, self.filter_eps, self.loss_dtype = chunk_bytes, filter_eps, loss_dtype
        rows = math.prod(out_features, start=num_classes)
        self.linear = Linear(in_features, rows, bias=bias, device=device, dtype=dtype)

    def forward(
        self,
        input: Tensor,
        target: Tensor | SparseTarget,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        axes = self.num_classes, *self.out_features
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.reshape(*axes, -1),
            target,
            linear_bias=None if bias is None else bias.reshape(axes),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            shift=self.shift,
            sample_weight=sample_weight,
            denominator=denominator,
            softcap=self.softcap,
            z_loss=self.z_loss,
            chunk_bytes=self.chunk_bytes,
            filter_eps=self.filter_eps,
            loss_dtype=self.loss_dtype,
        )

    if TYPE_CHECKING:
        __call__: _Call[Tensor | SparseTarget]

    def __prepare_scriptable__(self):
        if type(self).forward is not LinearCrossEntropyLoss.forward:
            return self
        raise TypeError(
            "LinearCrossEntropyLoss cannot be scripted, nor can torch's own. Use torch.jit.trace or torch.export"
        )

    def extra_repr(self) -> str:
        size = f"in_features={self.linear.in_features}, num_classes={self.num_classes}"
        names = "shift", "softcap", "z_loss", "chunk_bytes", "filter_eps", "loss_dtype"
        extras = _changed(self, LinearCrossEntropyLoss, *names)
        return f"{size}, {extras}" if extras else size


def _changed(module, kind, *names):
    """Those of the named options that differ from the class's defaults, so that a plain module prints as torch's."""
    values = {name: getattr(module, name) for name in names}
    return ", ".join(f"{name}={value!r}" for name, value in values.items() if value != getattr(kind, name))


if not TYPE_CHECKING:  # a type checker would take any misspelt name for a good one

    def __getattr__(name):
        return getattr(_torch_loss, name)
