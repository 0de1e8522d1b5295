"""Every scalar option, validated once."""

import math
import warnings
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args

Reduction = Literal["none", "mean", "sum"]
REDUCTIONS = get_args(Reduction)
_MADE_AT_MOST = 1024
_made = {}
_usual_heads = {}
_NOT_CARRIED = {"carried": False}  # by operators, since it is for whoever calls them
is_traced = bool  # False, unless there is an array library that traces Python code


@dataclass(frozen=True, eq=False)
class LossOptions:
    """What a row's loss means beyond its arrays, and how rows are reduced.

    `loss_options` gives out one object for each set of values, so identity serves as equality, and quickly.
    """

    reduction: str = "mean"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    softcap: float | None = None
    z_loss: float = 0.0
    loss_dtype: str | None = field(default=None, metadata=_NOT_CARRIED)

    @cached_property
    def summed(self):
        """The same for the sum of the losses."""
        return self.changed(reduction="sum")

    @cached_property
    def by_row(self):
        """The same for the losses of rows."""
        return self.changed(reduction="none")

    def changed(self, **values):
        """The options with other values for some."""
        return loss_options(**{name: getattr(self, name) for name in _LOSS_FIELDS} | values)


_LOSS_FIELDS = tuple(option.name for option in fields(LossOptions))


def loss_options(
    size_average=None, reduce=None, reduction="mean", ignore_index=-100, label_smoothing=0.0, softcap=None, z_loss=0.0,
    loss_dtype=None,
):  # fmt: skip
    """The validated options; the deprecated `size_average` and `reduce` override `reduction`, as in PyTorch."""
    if size_average is not None or reduce is not None:
        reduction = _reduction_of_deprecated(size_average, reduce)
    values = reduction, ignore_index, label_smoothing, softcap, z_loss, loss_dtype
    if is_traced():
        return LossOptions(*_validated(*values))
    try:
        return _made[values, type(ignore_index)]  # True equals 1, but is no index
    except (KeyError, TypeError):
        values = _validated(*values)
    if len(_made) >= _MADE_AT_MOST:
        _made.clear()
    return _made.setdefault((values, int), LossOptions(*values))


def of_arguments(arguments) -> dict[str, Any]:
    """What `loss_options` takes of a call's arguments, by their names; where they say None, no label is ignored."""
    found = {name: arguments[name] for name in ("size_average", "reduce", *_LOSS_FIELDS) if name in arguments}
    return found | ({"ignore_index": -100} if found.get("ignore_index", -100) is None else {})


def tell_of_tracing(is_compiling):
    """Where it is so, nothing is looked up: a compiler that saw what is kept would compile again once there is more."""
    global is_traced
    is_traced = is_compiling


def _validated(reduction, ignore_index, label_smoothing, softcap, z_loss, loss_dtype):
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of 'none', 'mean' and 'sum', got {reduction!r}")
    ignore_index = integer("ignore_index", ignore_index)
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit 64 bits, got {ignore_index}")
    label_smoothing = number("label_smoothing", label_smoothing)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0.0 and 1.0, got {label_smoothing}")
    if softcap is not None:
        softcap = number("softcap", softcap)
        if not 0.0 < softcap < math.inf:
            raise ValueError(f"softcap must be a positive finite number or None, got {softcap}")
    z_loss = number("z_loss", z_loss)
    if not 0.0 <= z_loss < math.inf:
        raise ValueError(f"z_loss must be a finite number of at least 0, got {z_loss}")
    return reduction, ignore_index, label_smoothing, softcap, z_loss, _wide_float("loss_dtype", loss_dtype)


def _wide_float(name, dtype):
    """What a dtype of any array library is called."""
    if dtype is None:
        return None
    found = (getattr(dtype, "__name__", None) or str(dtype)).removeprefix("torch.")
    if found not in ("float32", "float64"):
        raise TypeError(f"{name} must be float32, float64 or None, got {dtype!r}")
    return found


CHUNK_BYTES = 2**26  # of logits, on the CPU


@dataclass(frozen=True)
class HeadOptions:
    """What the fused head needs to know beyond its loss: how it goes about it, and which target belongs to a row.

    `chunk_bytes` is None for what is usual where the head is computed.
    """

    shift: int = 0
    chunk_bytes: int | None = None
    chunk_rows: int | None = None
    filter_eps: float = 0.0
    exact: bool = False
    given: Any = field(default=None, metadata=_NOT_CARRIED)


def head_options(shift=0, chunk_bytes=None, filter_eps=0.0, options=None, exact=False):
    """Validated; `options` is a torch.nn.LinearCrossEntropyOptions, of which an explicit chunk size counts, and whether
    it wants logits that are `exact`, of 32 bits whatever that costs.
    """
    usual = shift, chunk_bytes, filter_eps, exact, type(shift), type(chunk_bytes), type(filter_eps)
    if options is None and not is_traced():
        try:
            return _usual_heads[usual]
        except (KeyError, TypeError):
            pass
    filter_eps = number("filter_eps", filter_eps)
    if not 0.0 <= filter_eps < 1.0:
        raise ValueError(f"filter_eps must be at least 0 and below 1, got {filter_eps}")
    chunk_rows = None if options is None else options.batch_chunk_size
    if chunk_rows is not None:
        chunk_rows = whole_number("options.batch_chunk_size", chunk_rows, 1)
    sums = getattr(options, "acc_dtype", None)
    exact = exact or getattr(options, "acc_policy", None) == "accurate" or getattr(sums, "itemsize", 0) > 2
    shift = whole_number("shift", shift, 0)
    if chunk_bytes is not None:
        chunk_bytes = whole_number("chunk_bytes", chunk_bytes, 1)
    found = HeadOptions(shift, chunk_bytes, chunk_rows, filter_eps, exact, options)
    if options is not None or is_traced() or len(_usual_heads) >= _MADE_AT_MOST:
        return found
    return _usual_heads.setdefault(usual, found)


def whole_number(name, value, at_least):
    value = integer(name, value)
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
    return value


def integer(name, value):
    if type(value) is int:
        return value
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        try:
            return value.__index__()
        except TypeError:  # which names no argument, of arrays that hold several numbers
            pass
    raise TypeError(f"{name} must be an integer, got {value!r}")


def number(name, value):
    if not isinstance(value, str):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{name} must be a number, got {value!r}")


def _reduction_of_deprecated(size_average, reduce):
    average = True if size_average is None else size_average
    reduction = "none" if reduce is False else "mean" if average else "sum"
    warnings.warn(f"size_average and reduce are deprecated, please use reduction='{reduction}' instead", stacklevel=4)
    return reduction
