"""The fused head for NumPy."""

import numpy as np

from crossent import _rows
from crossent._head import Head
from crossent.frontends._problem import HeadKernels, broadcast_samples, compute_storage, multiply
from crossent.frontends.numpy.losses import NUMPY, divisor_of, new_array, readable, result, tape_of_call
from crossent.kernels import plain as formulas


def _compute(array):
    return np.dtype(compute_storage(NUMPY.storage(array)))


class NumPyHead(HeadKernels, NUMPY):
    """What `_head` needs of an array library."""

    @staticmethod
    def logits_bytes(x):
        return _compute(x).itemsize

    @staticmethod
    def rows_at_once(x):
        return 1

    @staticmethod
    def buffer(shape, x):
        return new_array(shape, _compute(x))

    @staticmethod
    def zeros(shape, x):
        return np.zeros(shape, _compute(x))

    @staticmethod
    def empty_like(array, unscaled):
        return new_array(array.shape, _compute(array) if unscaled else array.dtype)

    @classmethod
    def zeros_like(cls, array, unscaled):
        zeros = cls.empty_like(array, unscaled)
        zeros[...] = 0
        return zeros

    @staticmethod
    def accumulator(array):
        return np.zeros(array.shape, _compute(array))

    @classmethod
    def logits(cls, x, weight, bias, out):
        if bias is not None:
            out[...] = bias
        multiply(cls, x.astype(out.dtype, copy=False), weight.T, out, adds=bias is not None)

    @staticmethod
    def rounded(dlogits):
        return dlogits

    @classmethod
    def to_input(cls, dlogits, weight, numbers=None):
        total = np.empty((len(dlogits), weight.shape[1]), dlogits.dtype)
        multiply(cls, dlogits, weight, total, b_rows=numbers)
        return total

    @classmethod
    def to_weight(cls, dweight, dlogits, x, numbers=None):
        multiply(cls, dlogits.T, x, dweight, adds=True, c_rows=numbers)

    @staticmethod
    def to_bias(dbias, dlogits):
        dbias += dlogits.sum(0, dtype=dbias.dtype)

    @staticmethod
    def wide(vectors):
        return np.stack(vectors).astype(np.float64)

    @staticmethod
    def narrow(array, storage):
        return array.astype(storage)

    @staticmethod
    def numbers(chosen):
        return np.flatnonzero(chosen)

    @staticmethod
    def columns(matrix, numbers):
        return matrix[:, numbers]

    @staticmethod
    def dense(classes, probs, out):
        out[...] = 0
        np.add.at(out, (np.arange(len(classes))[:, None], classes), probs)
        return out

    @staticmethod
    def picked(dense, classes):
        return np.take_along_axis(dense, classes, 1)

    @staticmethod
    def token_results(rows, x):
        return *np.zeros((3, rows), _compute(x)), np.full(rows, -1)


def _labels(target, keep, shape, options):
    """int64 labels, after a check of those that count."""
    labels, bad = NUMPY.labels(target)
    if bad is None:
        wrong = np.flatnonzero((keep != 0) & ((labels < 0) | (labels >= shape.classes)))
        bad = int(wrong[0]) if wrong.size else None
    if bad is not None:
        raise _rows.label_error(NUMPY.item(target, bad), bad, shape.targets, shape.classes, options.ignore_index)
    return labels


def _counts(target, sample_weight, shape, options, shift):
    """How much each target counts. With a shift the first targets of a sequence count 0: they belong to no row."""
    keep = np.ones(shape.targets)
    if sample_weight is not None:
        keep = broadcast_samples(NUMPY, sample_weight, shape.targets).astype(np.float64)
    if not shape.soft:
        keep = np.where(target == options.ignore_index, 0.0, keep)
    if shift:
        keep = np.where(np.arange(shape.leading[-1]) >= shift, keep, 0.0)
    return keep


def _same_dtype(name, array, input):
    if array is None:
        return None
    array = readable(name, array)
    if array.dtype != input.dtype:
        raise TypeError(f"{name} must have the dtype of input, {input.dtype}, got {array.dtype}")
    return array


def _target(target, shape):
    """The classes of a sparse target, else None; and the labels or probabilities."""
    if not isinstance(target, _rows.SparseTarget):
        return None, target
    classes = target.classes
    if not NUMPY.is_integer(classes):
        raise TypeError(f"a SparseTarget's classes must be integers, got {classes.dtype}")
    bad = (classes < 0) | (classes >= shape.classes)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise _rows.class_error(int(classes[where]), where, shape.classes)
    return classes.reshape(shape.rows, classes.shape[-1]).astype(np.int64), target.probs


def head_of(input, linear_weight, target, linear_bias, weight, sample_weight, options, how):
    """The checked head, and what each of its targets adds to the mean's divisor."""
    x = readable("input", input)
    if NUMPY.storage(x) is None:
        raise _rows.dtype_error("input", x.dtype)
    matrix, bias = _same_dtype("linear_weight", linear_weight, x), _same_dtype("linear_bias", linear_bias, x)
    if isinstance(target, _rows.SparseTarget):
        target = kind = _rows.SparseTarget(readable("target", target.classes), readable("target", target.probs))
    else:
        target = readable("target", target)
        kind = target.shape
    shape = _rows.HeadShape(x.shape, matrix.shape, None if bias is None else bias.shape, kind, how.shift)
    classes, target = _target(target, shape)
    _rows.check_target_dtype(shape.soft, NUMPY.storage(target) is not None, NUMPY.is_integer(target), target.dtype)
    if shape.soft:
        _rows.check_soft_options(options)
    if weight is not None:
        weight = readable("weight", weight)
        if weight.shape != (shape.classes,):
            raise _rows.weight_error(weight.shape, shape.classes)
        if NUMPY.storage(weight) is None:
            raise _rows.dtype_error("weight", weight.dtype)
    if sample_weight is not None:
        sample_weight = readable("sample_weight", sample_weight)
    keep = _counts(target, sample_weight, shape, options, how.shift)
    labels = target if shape.soft else _labels(target, keep, shape, options)
    counted = (keep.reshape(shape.rows, shape.places) != 0).any(1)
    head = Head(
        lib=NumPyHead,
        shape=shape,
        x=x.reshape(shape.rows, shape.features),
        weight=matrix.reshape(shape.classes * shape.places, shape.features),
        bias=None if bias is None else bias.reshape(-1),
        target=labels.reshape(shape.rows, *labels.shape[len(shape.leading) :]),
        classes=classes,
        class_weight=weight,
        samples=None if sample_weight is None else keep.reshape(shape.rows, *shape.out),
        kept=slice(0, shape.rows) if counted.all() and not how.shift else np.flatnonzero(counted),
        options=options,
        how=how,
    )
    return head, formulas.row_weights(np, labels, shape.soft, weight, keep)


def linear_cross_entropy(input, linear_weight, target, linear_bias, weight, sample_weight, denominator, options, how):
    divisor, tape = divisor_of(options, denominator), tape_of_call.get()
    head, counts = head_of(input, linear_weight, target, linear_bias, weight, sample_weight, options, how)
    differentiates = tape is not None and tape.input is input
    if options.reduction == "none":
        losses = head.losses()
        value, gradients, factor = losses[..., how.shift :] if how.shift else losses, (), 1.0
    else:
        total, gradients = head.loss((differentiates, differentiates, differentiates and head.bias is not None, False))
        divisor = float(counts.sum()) if divisor is None else divisor
        value, factor = _rows.reduced(options.reduction, total, divisor, None)
        factor = factor if counts.any() else 1.0
    value = result(value, head.x.dtype, options)
    if differentiates:
        arrays = input, linear_weight, linear_bias
        tape.record(value, lambda: tuple(_finished(*pair, factor) for pair in zip(gradients, arrays)))
    return value


def _finished(gradient, array, factor):
    """The gradient multiplied by the factor of the loss, rounded to the array's dtype, and in the array's shape."""
    if gradient is None:
        return None
    if factor != 1.0:
        gradient *= factor
    return gradient.astype(array.dtype.newbyteorder("="), copy=False).reshape(array.shape)


def linear_token_stats(input, linear_weight, target, linear_bias, options, how):
    head, _ = head_of(input, linear_weight, target, linear_bias, None, None, options, how)
    _rows.check_tokens(head.shape)
    results = (result.reshape(head.shape.targets) for result in head.tokens())
    return tuple(result[..., how.shift :] if how.shift else result for result in results)
