"""What type checkers know of the functions: those of NumPy arrays give numbers or arrays, those of tensors tensors."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray
from torch import Tensor, dtype as TorchDType
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from crossent._options import Reduction as Reduction
from crossent._plan import Plan as Plan
from crossent._rows import SparseTarget as SparseTarget

_Array: TypeAlias = NDArray[Any]
_Floats: TypeAlias = NDArray[np.floating[Any]]
_Number: TypeAlias = np.floating[Any]
_Divisor: TypeAlias = float | np.number[Any] | _Array

@overload
def softmax(input: _Array, dim: int | None = None, _stacklevel: int = 3, dtype: DTypeLike | None = None) -> _Floats: ...
@overload
def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: TorchDType | None = None) -> Tensor: ...
@overload
def log_softmax(
    input: _Array, dim: int | None = None, _stacklevel: int = 3, dtype: DTypeLike | None = None
) -> _Floats: ...
@overload
def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: TorchDType | None = None
) -> Tensor: ...

# Of each loss of NumPy arrays: a number; an array of the targets' shape; either, as the deprecated `reduce` says.
@overload
def nll_loss(
    input: _Array,
    target: _Array,
    weight: _Array | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: Literal[True] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    *,
    dim: int | None = None,
    sample_weight: _Array | None = None,
    denominator: _Divisor | None = None,
    loss_dtype: DTypeLike | None = None,
) -> _Number: ...
@overload
def nll_loss(
    input: _Array,
    target: _Array,
    weight: _Array | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    *,
    reduction: Literal["none"],
    dim: int | None = None,
    sample_weight: _Array | None = None,
    denominator: None = None,
    loss_dtype: DTypeLike | None = None,
) -> _Floats: ...
@overload
def nll_loss(
    input: _Array,
    target: _Array,
    weight: _Array | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    *,
    dim: int | None = None,
    sample_weight: _Array | None = None,
    denominator: _Divisor | None = None,
    loss_dtype: DTypeLike | None = None,
) -> _Number | _Floats: ...
@overload
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    *,
    dim: int | None = None,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    loss_dtype: TorchDType | str | None = None,
) -> Tensor: ...
@overload
def cross_entropy(
    input: _Array,
    target: _Array,
    weight: _Array | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: Literal[True] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int | None = None,
    sample_weight: _Array | None = None,
    denominator: _Divisor | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    inplace_backward: Literal[False] = False,
    loss_dtype: DTypeLike | None = None,
    group: None = None,
    first_class: None = None,
) -> _Number: ...
@overload
def cross_entropy(
    input: _Array,
    target: _Array,
    weight: _Array | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    *,
    reduction: Literal["none"],
    label_smoothing: float = 0.0,
    dim: int | None = None,
    sample_weight: _Array | None = None,
    denominator: None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    inplace_backward: Literal[False] = False,
    loss_dtype: DTypeLike | None = None,
    group: None = None,
    first_class: None = None,
) -> _Floats: ...
@overload
def cross_entropy(
    input: _Array,
    target: _Array,
    weight: _Array | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int | None = None,
    sample_weight: _Array | None = None,
    denominator: _Divisor | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    inplace_backward: Literal[False] = False,
    loss_dtype: DTypeLike | None = None,
    group: None = None,
    first_class: None = None,
) -> _Number | _Floats: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int | None = None,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    inplace_backward: bool = False,
    loss_dtype: TorchDType | str | None = None,
    group: ProcessGroup | DeviceMesh | None = None,
    first_class: int | None = None,
) -> Tensor: ...
@overload
def linear_cross_entropy(
    input: _Array,
    linear_weight: _Array,
    target: _Array | SparseTarget,
    *,
    linear_bias: _Array | None = None,
    weight: _Array | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    shift: int = 0,
    sample_weight: _Array | None = None,
    denominator: _Divisor | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk_bytes: int | None = None,
    filter_eps: float = 0.0,
    loss_dtype: DTypeLike | None = None,
    group: None = None,
    first_class: None = None,
) -> _Number: ...
@overload
def linear_cross_entropy(
    input: _Array,
    linear_weight: _Array,
    target: _Array | SparseTarget,
    *,
    linear_bias: _Array | None = None,
    weight: _Array | None = None,
    reduction: Literal["none"],
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    shift: int = 0,
    sample_weight: _Array | None = None,
    denominator: None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk_bytes: int | None = None,
    filter_eps: float = 0.0,
    loss_dtype: DTypeLike | None = None,
    group: None = None,
    first_class: None = None,
) -> _Floats: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | SparseTarget,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    shift: int = 0,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk_bytes: int | None = None,
    filter_eps: float = 0.0,
    loss_dtype: TorchDType | str | None = None,
    group: ProcessGroup | DeviceMesh | None = None,
    first_class: int | None = None,
) -> Tensor: ...

class TokenStats(NamedTuple):
    logprob: Any
    lse: Any
    entropy: Any
    rank: Any

@overload
def linear_token_stats(
    input: _Array,
    linear_weight: _Array,
    target: _Array,
    *,
    linear_bias: _Array | None = None,
    ignore_index: int = -100,
    shift: int = 0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
    group: None = None,
    first_class: None = None,
) -> TokenStats: ...
@overload
def linear_token_stats(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    ignore_index: int = -100,
    shift: int = 0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
    group: ProcessGroup | DeviceMesh | None = None,
    first_class: int | None = None,
) -> TokenStats: ...

class PredictionStats(NamedTuple):
    logprob: Any
    rank: Any
    prediction: Any
    confidence: Any
    brier: Any

@overload
def prediction_stats(
    input: _Array, target: _Array, *, dim: int | None = None, ignore_index: int = -100
) -> PredictionStats: ...
@overload
def prediction_stats(
    input: Tensor, target: Tensor, *, dim: int | None = None, ignore_index: int = -100
) -> PredictionStats: ...

class _ValueAndGrad(Protocol):
    @overload
    def __call__(self, input: _Array, *args: Any, **kwargs: Any) -> tuple[_Number, _Floats]: ...
    @overload
    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]: ...

def value_and_grad(function: Callable[..., Any]) -> _ValueAndGrad: ...
def plan(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Plan: ...
def empty_cache() -> None: ...
