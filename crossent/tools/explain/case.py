"""A call of a loss as NumPy arrays: its labels and weights, and its logits by blocks of rows or one row at a time.

Rows are numbered in the order of the losses. Nothing here holds more than a block of the logits.
"""

import inspect
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from crossent import SparseTarget, _rows, cross_entropy, linear_cross_entropy, nll_loss
from crossent.tools.arrays import as_numpy, dtype_of, like, moved_axis
from crossent.tools.explain.tally import Tally, sizes
from crossent.tools.language import say

FUNCTIONS = (cross_entropy, nll_loss, linear_cross_entropy)
_BLOCK = 2**18  # numbers: the arrays made of a block stay in a core's cache
_PRODUCTS = 2**23  # of a head, whose products want many rows
_CLASSES = 2**12  # of a head's weight, widened at a time


def total(array):
    """Its sum in float64, whatever is in it."""
    with np.errstate(all="ignore"):
        return float(array.sum(dtype=np.float64))


def bind(function, args, kwargs):
    """The arguments by name, with the function's defaults."""
    if function not in FUNCTIONS:
        names = ", ".join(f.__name__ for f in FUNCTIONS)
        raise TypeError(say("wrong.function", names=names, got=repr(function)))
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def called(function, arguments, options):
    """The case of a call, with what the function returns where rows with bad labels are left out."""
    with np.errstate(over="ignore"):  # in float16, which is a finding
        try:
            value = function(**arguments)
            case = Case(function, arguments, options)
        except IndexError:
            case = Case(function, arguments, options)
            if not case.bad.any():
                raise
            case.repair()
            value = function(**case.arguments)
        losses = value
        if options.reduction != "none":
            losses = function(**case.arguments | {"reduction": "none", "denominator": None})
    case.result = None if losses is value else float(value)
    case.loss_dtype, case.losses = dtype_of(losses), as_numpy(losses).reshape(-1)
    case.look()
    return case


class Case:
    """What the arguments of a call, which the function has accepted, mean row by row.

    `result` is what it returned, None for reduction "none", and `losses`, in `loss_dtype`, are those of all rows.
    """

    result: float | None
    losses: np.ndarray
    loss_dtype: str
    stored = False  # in files

    def __init__(self, function, arguments, options):
        a = arguments
        self.name, self.arguments, self.options = function.__name__, a, options
        self.input, self.head, self.picks = a["input"], function is linear_cross_entropy, function is nll_loss
        self.dtype, self.shape = dtype_of(self.input), tuple(self.input.shape)
        self.shift = a["shift"].__index__() if self.head else 0
        if self.head:
            self.targets = self._take_head()
        else:
            kind = _rows.target_kind(self.shape, tuple(a["target"].shape), a["dim"], not self.picks)
            self.axis, self.soft = kind
            self.classes = self.shape[self.axis]
            self.row_shape = self.targets = self.shape[: self.axis] + self.shape[self.axis + 1 :]
            self.x = moved_axis(self.input, self.axis, -1)
        if not self.classes:
            raise ValueError(say("wrong.no_class", shape=self.shape))
        self.rows = int(np.prod(self.row_shape, dtype=np.int64))
        self._weigh()

    @property
    def spread(self):
        """Whether a target is more than one class."""
        return self.soft or bool(self.options.label_smoothing)

    def _take_head(self):
        """`x` are the inputs that have a loss; `layer` and `bias` have the classes last, but for the features."""
        target, weight, bias = (self.arguments[name] for name in ("target", "linear_weight", "linear_bias"))
        given = target if isinstance(target, SparseTarget) else tuple(target.shape)
        of_bias = None if bias is None else tuple(bias.shape)
        shape = _rows.HeadShape(self.shape, tuple(weight.shape), of_bias, given, self.shift)
        self.classes, self.axis, self.soft = shape.classes, len(shape.leading), shape.soft
        self.row_shape = shape.losses(self.shift)
        self.x = self.input[..., : self.row_shape[-1], :] if self.shift else self.input
        self.layer, self.bias = moved_axis(weight, 0, -2), None if bias is None else moved_axis(bias, 0, -1)
        return shape.targets

    def _weigh(self):
        """Class weights, sample weights, labels (None for probabilities), which rows count and for how much, `s`.

        The target of a row names the classes `named` (all of them if that is None), and gives each one of `probs`.
        """
        a, target = self.arguments, self.arguments["target"]
        self.weight: Any = None if a["weight"] is None else as_numpy(a["weight"]).astype(np.float64)
        self.samples: Any = None
        if a["sample_weight"] is not None:
            self.samples = self._later(np.broadcast_to(as_numpy(a["sample_weight"]), self.targets)).reshape(-1)
        wide = "float64" in (self.dtype, dtype_of(getattr(target, "probs", target)))
        self.arithmetic = np.float64 if wide else np.float32
        self.labels, self.named, self.bad = None, None, np.zeros(self.rows, bool)
        self.keep = np.ones(self.rows, bool) if self.samples is None else self.samples != 0
        if isinstance(target, SparseTarget):
            self.named, self.probs = (self._later(as_numpy(of), axis=-2) for of in (target.classes, target.probs))
        elif self.soft:
            self.probs = self._later(moved_axis(target, self.axis, -1), axis=-2)
        else:
            labels = self._later(as_numpy(target))
            self.labels, self.named = labels.reshape(-1), labels[..., None]
            self.probs = np.broadcast_to(1.0, self.named.shape)
            self.keep &= self.labels != self.options.ignore_index
        if self.named is not None:
            wrong = (self.named < 0) | (self.named >= self.classes)
            self.bad = self.keep & wrong.any(-1).reshape(-1)
            self.keep &= ~self.bad
        self.s = np.where(self.keep, 1.0 if self.samples is None else self.samples.astype(np.float64), 0.0)

    def repair(self):
        """Have the rows with bad labels ignored by the arguments."""
        target, given = (self.arguments[name] for name in ("target", "sample_weight"))
        counted = np.ones(self.targets, np.float32) * (1 if given is None else as_numpy(given))
        self._later(counted)[self.bad.reshape(self.row_shape)] = 0.0
        self.arguments |= {"sample_weight": like(self.input, counted)}
        if isinstance(target, SparseTarget):  # whose classes are looked at in rows of no weight too
            valid = as_numpy(target.classes).clip(0, self.classes - 1)
            self.arguments |= {"target": replace(target, classes=like(target.classes, valid))}

    def look(self):
        """Read all rows once, block by block: what holds for all, as a `tally`, and what each is like.

        Of each row: `high`, the largest logit, `top`, its class, and `lse`; `masked`, whether the target of a row that
        counts has a share of a class whose logit is -inf; `target_low` and `target_total`, the smallest, 0 at most, and
        the sum of what the target gives to classes.
        """
        wide = np.float64 if self.dtype == "float64" else np.float32
        of_rows = [np.empty(self.row_shape, dtype) for dtype in (wide, wide, np.int32, bool, wide, wide)]
        self.tally, keep = Tally(self.classes, self.dtype, self.head), self.keep.reshape(self.row_shape)
        with np.errstate(all="ignore"):
            for block in self.blocks():
                x, t = self.logits(block), as_numpy(self.probs[block])
                high, low, sums, lse = map(np.asarray, sizes(x))
                self.tally.add(*(array[keep[block]] for array in (high, low, sums, lse)))
                found = high, lse, x.argmax(-1), self._masked(block, x, t), t.min(-1, initial=0.0), t.sum(-1)
                for whole, part in zip(of_rows, found):
                    whole[block] = part
        flat = (whole.reshape(-1) for whole in of_rows)
        self.high, self.lse, self.top, self.masked, self.target_low, self.target_total = flat
        if self.labels is None:
            self.tally.counted = int(self.keep.sum())
        else:
            self.tally.add_labels(self.top[self.keep], self.labels[self.keep])

    def _masked(self, block, x, t):
        if self.options.label_smoothing:
            return (x == -np.inf).any(-1)
        if self.named is not None:
            x = np.take_along_axis(x, self.named[block].astype(np.intp).clip(0, self.classes - 1), -1)
        return ((x == -np.inf) & (t != 0.0)).any(-1)

    def _later(self, array, axis=-1):
        """Without the first targets of a sequence, which with a shift belong to no row."""
        following = (slice(None),) * (-1 - axis)
        return array[(..., slice(self.shift, None), *following)] if self.shift else array

    def index(self, row):
        """Of a row, among the rows' axes."""
        return tuple(int(i) for i in np.unravel_index(row, self.row_shape)) if self.row_shape else ()

    def position(self, row):
        """As the caller counts: one number, or one for each axis."""
        index = self.index(row) or (0,)
        return index[0] if len(index) == 1 else index

    def number(self, position):
        """The row number of a caller's position, or of a row number counted from either end."""
        index = position if isinstance(position, tuple) else (position,)
        if not all(hasattr(i, "__index__") for i in index):
            raise TypeError(say("wrong.row_kind", got=repr(position)))
        shape = self.row_shape if len(index) > 1 else (self.rows,)
        fits = len(index) == len(shape) and all(-size <= i < size for i, size in zip(index, shape))
        if not fits:
            key = "wrong.row_position" if len(self.row_shape) > 1 else "wrong.row_number"
            ends = {"low": -self.rows, "high": self.rows - 1}
            raise IndexError(say(key, **ends, shape=self.row_shape, got=repr(position)))
        return int(np.ravel_multi_index([i % size for i, size in zip(index, shape)], shape))

    def blocks(self):
        """Indices of the rows' axes, one after the other, for as many rows as are looked at together."""
        limit, size, axis = _PRODUCTS if self.head else _BLOCK, self.classes, len(self.row_shape)
        while axis and size * self.row_shape[axis - 1] <= limit:
            axis -= 1
            size *= self.row_shape[axis]
        if not axis:
            yield ()
            return
        step = max(1, limit // size)
        for lead in np.ndindex(self.row_shape[: axis - 1]):
            for lo in range(0, self.row_shape[axis - 1], step):
                yield (*lead, slice(lo, lo + step))

    def logits(self, block):
        """Those of some rows, classes last, in float32 or float64."""
        if not self.head:
            return as_numpy(self.x[block])
        lead, out = block[: self.axis], block[self.axis :]
        logits = np.tensordot(as_numpy(self.x[lead]), as_numpy(self.layer[out]), axes=(-1, -1))
        return logits if self.bias is None else logits + as_numpy(self.bias[out])

    def row_logits(self, row):
        """Those of one row, in float64."""
        if not self.head:
            return self.logits(self.index(row)).astype(np.float64)
        x, weights, bias = self._head_row(row)
        return np.concatenate([weight @ x for weight in weights]) + bias

    def row_size(self, row):
        """A bound of the numbers that were summed up to a row's logits, 0 where they were given."""
        if not self.head:
            return 0.0
        x, weights, _ = self._head_row(row)
        return float(np.abs(x) @ np.max([np.abs(weight).max(0) for weight in weights], axis=0))

    def _head_row(self, row):
        """The input of a row, the weight by some classes after the other, and the bias, in float64."""
        lead, out = self.index(row)[: self.axis], self.index(row)[self.axis :]
        weight, bias = self.layer[out], 0.0 if self.bias is None else as_numpy(self.bias[out])
        parts = (as_numpy(weight[lo : lo + _CLASSES]).astype(np.float64) for lo in range(0, self.classes, _CLASSES))
        return as_numpy(self.x[lead]).astype(np.float64), parts, bias

    def row_target(self, row):
        """t of every class: 1 at the label, or the probabilities; 0 where the row is ignored."""
        t, index = np.zeros(self.classes), self.index(row)
        if self.keep[row]:
            named = np.arange(self.classes) if self.named is None else self.named[index].astype(np.intp)
            np.add.at(t, named, as_numpy(self.probs[index]))
        return t

    def counts(self):
        """What each row adds to the divisor of the mean."""
        counts = self.s.copy()
        if self.labels is not None and self.weight is not None:
            with np.errstate(all="ignore"):
                counts[self.keep] *= self.weight[self.labels[self.keep].astype(np.intp)]
        return counts

    @cached_property
    def divisor(self):
        """What the mean divides by."""
        given = self.arguments["denominator"]
        return total(self.counts()) if given is None else float(given)

    def class_masses(self):
        """What all rows together hold of each class: the sum of s q_c."""
        keep, s = self.keep.reshape(self.row_shape), self.s.reshape(self.row_shape)
        smoothing = self.options.label_smoothing
        if self.named is None:
            found = np.zeros(self.classes)
            for b in self.blocks():
                found += s[b][keep[b]] @ as_numpy(self.probs[b])[keep[b]]
        else:
            t = self.probs[keep] * s[keep][:, None]
            found = np.bincount(self.named[keep].reshape(-1).astype(np.intp), t.reshape(-1), self.classes)
        found = (1.0 - smoothing) * found + smoothing / self.classes * s[keep].sum()
        return found if self.weight is None else found * self.weight


def detached(arguments):
    """The arguments without what autograd would record, those that are spread over processes as a whole."""

    def value(array):
        if isinstance(array, SparseTarget):
            return replace(array, classes=value(array.classes), probs=value(array.probs))
        array = array.full_tensor() if hasattr(array, "full_tensor") else array  # of a DTensor's parts
        return array.detach() if hasattr(array, "detach") else array

    return {name: value(array) for name, array in arguments.items()}
