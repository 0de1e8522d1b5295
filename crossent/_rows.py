"""From arrays to rows: the class axis, the kind of a target, the errors of shapes and labels, and the reduction.

Everything here speaks of shapes, strides (counted in elements) and plain numbers, never of an array library.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

from crossent._kept import kept
from crossent._options import integer

_SHORT = 64  # classes at most, of rows that a kernel may transpose


class Layout:
    """Rows in memory: two loops over rows, `outer` and `inner`, with strides (outer, class, inner) in elements.

    `last` says that the classes of a row lie side by side; otherwise the inner rows do. `short` says that so few
    classes lie side by side that a kernel may transpose the rows; then their labels must lie side by side too. `order`
    is the order of the logits' axes in memory that this layout walks best. `inverse` is the way back, None if the axes
    are in that order already. `contiguous` says that the logits fill memory in the order of their axes. `new_strides`
    are the strides of a new array, whose axes lie in memory in `order`.
    """

    __slots__ = (
        "axis", "classes", "contiguous", "inner", "inverse", "last", "new_strides", "order", "outer", "row_shape",
        "rows", "short", "split", "strides",
    )  # fmt: skip

    def __init__(self, shape, strides, axis, split, contiguous):
        row_shape = shape[:axis] + shape[axis + 1 :]
        self.outer, self.inner = math.prod(row_shape[:split]), math.prod(row_shape[split:])
        self.rows, self.classes, self.strides = self.outer * self.inner, shape[axis], strides
        self.last, self.axis, self.split, self.row_shape = strides[1] == 1, axis, split, row_shape
        self.contiguous = contiguous
        self.short = self.last and self.classes <= _SHORT
        natural = tuple(range(len(shape)))
        rows = [a for a in natural if a != axis]
        self.order = (*rows, axis) if self.last else (*rows[:split], axis, *rows[split:])
        if contiguous:
            self.order = natural
        inverse = tuple(sorted(natural, key=self.order.__getitem__))
        self.inverse = None if self.order == inverse == natural else inverse
        new = [0] * len(shape)
        for i, a in enumerate(self.order):
            new[a] = math.prod(shape[following] for following in self.order[i + 1 :])
        self.new_strides = _collapsed(shape, new, axis, split)

    @kept
    def strides_of(self, shape, strides):
        """(outer, class, inner) strides of another array of the logits' shape, or None if it needs a copy."""
        found = _collapsed(shape, strides, self.axis, self.split)
        if found is None or found[1 if self.last else 2] != 1:
            return None
        return found

    def label_strides_of(self, strides):
        """(outer, class, inner) strides of an array of the rows' shape, or None if it needs a copy."""
        if not self.rows:
            return 0, 0, 1
        first = _collapse(self.row_shape[: self.split], strides[: self.split])
        second = _collapse(self.row_shape[self.split :], strides[self.split :])
        if first is None or second is None or not (second == 1 or self.inner == 1 or (self.last and not self.short)):
            return None
        return first, 0, second


def _collapse(sizes, strides):
    """The one stride that walks all these axes in order, None if there is none."""
    result, expected = 0, None
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if expected is None:
            result = stride
        elif stride != expected:
            return None
        expected = stride * size
    return result


def _collapsed(shape, strides, axis, split):
    """(outer, class, inner) strides, None if the rows are more than two loops."""
    if 0 in shape:
        return 0, 1, 1
    rows = [(size, stride) for i, (size, stride) in enumerate(zip(shape, strides, strict=True)) if i != axis]
    first = _collapse([r[0] for r in rows[:split]], [r[1] for r in rows[:split]])
    second = _collapse([r[0] for r in rows[split:]], [r[1] for r in rows[split:]])
    if first is None or second is None:
        return None
    one_row = math.prod(r[0] for r in rows[split:]) == 1
    return first, 1 if shape[axis] == 1 else strides[axis], 1 if one_row else second


@kept
def layout_of(shape, strides, axis):
    """How a kernel walks these logits, or None if they have to be copied first."""
    usable = []
    contiguous = _collapse(shape, strides) == 1
    for split in dict.fromkeys((axis, *range(len(shape) - 1, -1, -1))):  # the first of equals: the class axis
        found = _collapsed(shape, strides, axis, split)
        if found is not None and (found[1] == 1 or found[2] == 1):
            layout = Layout(shape, found, axis, split, contiguous)
            sliding = found[1] == found[2] == 1 < min(layout.classes, layout.inner)  # windows that share memory
            usable += [] if sliding else [layout]
    return max(usable, key=lambda layout: (layout.last, layout.inner), default=None)


@dataclass(frozen=True)
class SparseTarget:
    """Class probabilities of which only some are given: `probs[..., j]` is that of the class `classes[..., j]`.

    Both have the shape of the labels with one more axis, of any length k: the most likely classes of a teacher, say.
    All others have probability 0, and a class that is named twice has the sum. `classes` are integers and `probs`
    floats, which need not sum to 1.
    """

    classes: Any
    probs: Any


class HeadShape:
    """The shapes of a fused head. `leading` are the input's axes without the last, which make `rows` rows. `out` are
    the axes of a K-dimensional loss, which has `places` targets for each row. `targets` is the shape of the labels,
    `logits` that of all logits, which never exist together; its axis number len(leading) has the classes."""

    __slots__ = ("classes", "features", "leading", "logits", "out", "places", "rows", "soft", "targets")

    def __init__(self, input, linear_weight, linear_bias, target, shift):
        if not input:
            raise ValueError("input must have a feature axis, got a 0-dimensional array")
        if len(linear_weight) < 2:
            raise ValueError(
                f"linear_weight must have at least 2 axes, (classes, features), got {_text(linear_weight)}"
            )
        if input[-1] != linear_weight[-1]:
            raise ValueError(
                "input and linear_weight must have as many features, which are their last axes, "
                f"got {_text(input)} and {_text(linear_weight)}"
            )
        self.sized(input, linear_weight)
        leading, out = self.leading, self.out
        if out and len(leading) != 1:
            raise ValueError(
                f"a K-dimensional loss, linear_weight of shape {_text(linear_weight)}, needs an input of shape "
                f"(N, {self.features}), got {_text(input)}"
            )
        if linear_bias is not None and linear_bias != linear_weight[:-1]:
            raise ValueError(f"linear_bias must have shape {_text(linear_weight[:-1])}, got {_text(linear_bias)}")
        if shift and (out or not leading):
            raise ValueError(f"shift needs an input of shape (..., time, features), got {_text(input)}")
        # A SparseTarget is compared with nothing, which PyTorch 2.6 cannot compile.
        self.soft = isinstance(target, SparseTarget) or target == self.logits
        if isinstance(target, SparseTarget):
            self._check_sparse(tuple(target.classes.shape), tuple(target.probs.shape))
        elif not self.soft and target != self.targets:
            raise ValueError(
                f"target has the wrong shape for an input of shape {_text(input)} and a linear_weight of shape "
                f"{_text(linear_weight)}: expected {_text(self.targets)} for labels or "
                f"{_text(self.logits)} for class probabilities, got {_text(target)}"
            )

    def _check_sparse(self, classes, probs):
        if self.out or classes != probs or classes[:-1] != self.leading or not classes:
            raise ValueError(
                f"a SparseTarget's classes and probs must both have shape {_text(self.leading)[:-1].rstrip(',')}, k), "
                f"got {_text(classes)} and {_text(probs)}"
            )

    def sized(self, input, linear_weight):
        """Set the sizes. A tracer sets them anew by those it records, once they have been checked as numbers."""
        (*leading, self.features), (self.classes, *out) = input, linear_weight[:-1]
        self.leading, self.out, self.rows, self.places = tuple(leading), tuple(out), math.prod(leading), math.prod(out)
        self.logits, self.targets = (*leading, self.classes, *out), (*leading, *out)

    def losses(self, shift):
        """The shape of the losses. With a shift a sequence has fewer losses than rows."""
        if not shift:
            return self.targets
        return *self.leading[:-1], max(0, self.leading[-1] - shift)


def class_axis(ndim, dim, name="dim"):
    """The class axis of a loss: the caller's, or PyTorch's where `dim` is None."""
    if ndim == 0:
        raise ValueError("input must have a class axis, got a 0-dimensional array")
    if dim is None:
        return 1 if ndim > 1 else 0
    axis = dim if type(dim) is int else integer(name, dim)
    if not -ndim <= axis < ndim:
        raise IndexError(f"{name} must be between {-ndim} and {ndim - 1} for an input of {ndim} axes, got {axis}")
    return axis % ndim


def target_kind(shape, target_shape, dim, soft_allowed):
    """The class axis, and whether the target holds probabilities ("soft") rather than labels."""
    axis = class_axis(len(shape), dim)
    expected = shape[:axis] + shape[axis + 1 :]
    if soft_allowed and target_shape == shape:
        kind = "soft"
    elif target_shape == expected:
        kind = "labels"
    else:
        soft = f" or {_text(shape)} for class probabilities" if soft_allowed else ""
        raise ValueError(
            f"target has the wrong shape for an input of shape {_text(shape)} with its classes along axis {axis}: "
            f"expected {_text(expected)} for labels{soft}, got {_text(target_shape)}"
        )
    return axis, kind == "soft"


def _text(shape):
    return str(tuple(int(size) for size in shape))


def check_tokens(shape):
    """Check that each row of a head has one label."""
    if shape.soft or shape.out:
        raise ValueError(
            f"linear_token_stats takes one label for each row, of shape {_text(shape.leading)}, and a linear_weight of "
            "shape (classes, features)"
        )


def check_target_dtype(soft, is_float, is_integer, dtype):
    if soft and not is_float:
        raise TypeError(f"target of the input's shape holds class probabilities, which must be floats, got {dtype}")
    if not soft and not is_integer:
        raise TypeError(f"target holds labels, which must be integers, got {dtype}")


def check_soft_options(options):
    if options.ignore_index >= 0:
        raise ValueError(
            f"ignore_index is not supported for a target of class probabilities, got {options.ignore_index}; "
            "give rows to leave out a sample_weight of 0"
        )


def weight_error(shape, classes):
    return ValueError(f"weight must have one entry for each of the {classes} classes, got shape {_text(shape)}")


def check_sample_weight(shape, row_shape):
    """Check that sample weights broadcast to the rows."""
    fits = len(shape) <= len(row_shape) and all(
        # Not `in`: where sizes vary, torch.compile takes 13 for none of (1, s).
        size == 1 or size == wanted
        for size, wanted in zip(reversed(shape), reversed(row_shape), strict=False)
    )
    if not fits:
        raise ValueError(f"sample_weight of shape {_text(shape)} does not broadcast to the targets, {_text(row_shape)}")


def check_denominator(options, ndim, narrow=None):
    """`narrow` is its dtype, if that is a float of 16 bits."""
    if options.reduction != "mean":
        raise ValueError(f"denominator replaces what the mean divides by, got reduction={options.reduction!r}")
    if ndim != 0:
        raise ValueError(f"denominator must be a number or a 0-dimensional array, got {ndim} axes")
    if narrow is not None:
        raise TypeError(f"denominator must be an integer or a float of 32 bits, which hold any count, got {narrow}")


def dtype_error(name, dtype):
    return TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {dtype}")


def place_of(number, shape):
    """The indices of an array's element that has this number."""
    place = []
    for size in reversed(shape):
        number, index = divmod(number, size)
        place.insert(0, index)
    return tuple(place)


def label_error(label, row, row_shape, classes, ignore_index):
    """IndexError for the label of row number `row`."""
    position = place_of(row, row_shape)
    where = f" at position {position if len(position) != 1 else position[0]}" if position else ""
    return IndexError(
        f"Target {label}{where} is out of bounds: labels must be between 0 and {classes - 1}, "
        f"or {ignore_index} to be ignored"
    )


def class_error(value, position, classes):
    """IndexError for a bad class in a SparseTarget."""
    return IndexError(
        f"Class {value} at position {position} of a SparseTarget is out of bounds: classes must be between 0 and "
        f"{classes - 1}"
    )


def softmax_axis(ndim, dim, name, stacklevel):
    """The caller's axis, or PyTorch's implicit choice, with its warning at the caller of the public function."""
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. "
            "Change the call to include dim=X as an argument.",
            stacklevel=stacklevel + 1,
        )
    return planned_softmax_axis(ndim, dim)


def planned_softmax_axis(ndim, dim):
    """As `softmax_axis`, without a warning."""
    if dim is None:
        return 0 if ndim in (0, 1, 3) else 1
    return class_axis(max(ndim, 1), dim)  # as PyTorch has it, a single number has one axis


def workable(scale):
    """Whether gradients stay in the range of numbers when they are made with this scale, or scaled by it later."""
    return (abs(scale) >= 1e-6) & (abs(scale) <= 1e6)


def reduced(reduction, losses, weights, denominator):
    """The sum or mean of losses, given their sum and that of the weights, and its derivative by each."""
    if reduction != "mean":
        return losses, 1.0
    by = weights if denominator is None else denominator
    if by != 0.0:
        return losses / by, 1.0 / by
    # Division by 0 as in arrays, without an exception.
    infinite = math.copysign(math.inf, by)
    return losses * infinite, infinite
