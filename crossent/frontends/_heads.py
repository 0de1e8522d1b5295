"""From a call of the fused head to its loss and gradients, in the same way for every array library.

Arrays come in one order: input, linear_weight, linear_bias, target, class weights, sample weights. Of a sparse target
they have the probabilities, and the call has its classes.
"""

from functools import partial
from typing import Any, NamedTuple

from crossent import _rows
from crossent._head import Head
from crossent.frontends._problem import class_weights, sample_weights
from crossent.kernels import plain


def shape_of(arrays, classes, shift):
    """The head's shapes, after a check that they fit."""
    input, linear_weight, linear_bias, target, *_ = arrays
    bias = None if linear_bias is None else tuple(linear_bias.shape)
    kind = tuple(target.shape) if classes is None else _rows.SparseTarget(classes, target)
    return _rows.HeadShape(tuple(input.shape), tuple(linear_weight.shape), bias, kind, shift)


def check_classes(lib, classes, count):
    """The classes of a sparse target as int64, after a check; and which are bad, where that is told later."""
    wide, _ = lib.labels(classes)  # PyTorch's uint8 counts 300 as 44
    bad = (wide < 0) | (wide >= count)
    _refuse(lib, bad, classes, partial(_class_error, tuple(classes.shape), count))
    return wide, bad


def _refuse(lib, bad, values, error):
    """Raise the error of the first value that is bad and its number; on a device it is told later."""
    if not lib.reads:
        lib.tell(bad, values, error)
    elif bad.any():
        number = int(lib.xp.argwhere(bad.reshape(-1))[0, 0])
        raise error(lib.item(values, number), number)


def _class_error(shape, count, value, number):
    return _rows.class_error(value, _rows.place_of(number, shape), count)


def _counts(lib, labels, samples, call):
    """Which targets count. With a shift the first targets of a sequence do not: they belong to no row."""
    shape, shift = call.shape, call.how.shift
    counts = lib.xp.full(shape.targets, True) if shape.soft else labels != call.options.ignore_index
    if samples is not None:
        counts &= samples != 0
    if shift:
        counts[..., :shift] = False
    return counts


def _targets(lib, target, samples, call):
    """int64 labels or probabilities, how much each target counts (None: as a whole), which count, and which of them are
    bad, where that is told later.
    """
    shape = call.shape
    is_float = lib.storages.get(target.dtype) not in (None, "labels")
    _rows.check_target_dtype(shape.soft, is_float, lib.is_integer(target), target.dtype)
    given = target
    classes, ignore_index = (call.shard or shape).classes, call.options.ignore_index
    error = partial(_rows.label_error, row_shape=shape.targets, classes=classes, ignore_index=ignore_index)
    if shape.soft:
        _rows.check_soft_options(call.options)
    else:
        target, bad = lib.labels(given)
        if bad is not None:
            raise error(lib.item(given, bad), bad)
    if samples is not None:
        samples = sample_weights(lib, samples, shape.targets, lib.dtypes["float64"])
    counts, bad = _counts(lib, target, samples, call), None
    if not shape.soft:
        bad = ((target < 0) | (target >= classes)) & counts
        _refuse(lib, bad, given, error)
    return target, None if samples is None else lib.xp.where(counts, samples, 0.0), counts, bad


def head_of(arrays, call, products_for):
    """The head of the targets that count, what its gradients are still to be multiplied by, and the divisor."""
    given, shape = _given(arrays, call, products_for), call.shape
    lib, x, counted = given.fields["products"].lib, given.fields["x"], given.counts.any(1)
    everything = not call.how.shift and bool(counted.all())
    _, scale = _rows.reduced(call.options.reduction, 0.0, given.divisor, None)
    # float16 has few exponents: its gradients are made for the sum, and divided while they have 32 bits.
    later = scale if lib.storages.get(x.dtype) == "float16" and bool(counted.any()) else 1.0
    kept = slice(0, shape.rows) if everything else lib.xp.argwhere(counted)[:, 0]
    return Head(**given.fields, kept=kept, scale=1.0 if later != 1.0 else scale), later, given.divisor


class DeviceHead(NamedTuple):
    """A head; the numbers of the targets in it, None if it has all rows; what its gradients are still to be multiplied
    by; the divisor; which targets count, and which are bad, (rows, places). The latter is None where no target can be
    bad.
    """

    head: Any
    kept: Any
    later: Any
    divisor: Any
    counts: Any
    bad: Any


def head_on_device(arrays, call, products_for, kept_of):
    """The `DeviceHead` on a device from which nothing is read but by `kept_of(counted)`, which gives the numbers of the
    targets that count, or None if they are not known here.

    Then all rows take part in the products: `x` is 0 in those that do not count. It begins with the rows of the first
    targets, which with a shift are the last ones.
    """
    given, shift = _given(arrays, call, products_for), call.how.shift
    lib, x, counted = given.fields["products"].lib, given.fields["x"], given.counts.any(1)
    kept = kept_of(counted)
    if kept is None:
        given.fields["x"] = lib.xp.where(counted[:, None], lib.xp.roll(x, shift, 0) if shift else x, 0.0)
    (_, scale), later = reduced(call.options.reduction, 0.0, given.divisor), 1.0
    if lib.storages.get(x.dtype) == "float16" and call.options.reduction == "mean":  # as in `head_of`
        scale, later = 1.0, lib.xp.where(counted.any(), scale, 1.0)
    head = Head(**given.fields, kept=slice(0, call.shape.rows) if kept is None else kept, scale=scale)
    return DeviceHead(head, kept, later, given.divisor, given.counts, given.bad)


def _left_out(lib, target, samples, counts, bad, call):
    """Target, sample weights and which targets count, without the bad ones. Those that do not count are ignored by
    their labels, or else by their sample weights.
    """
    if bad is not None:
        counts = counts & ~bad
    if samples is None and not call.shape.soft:
        return lib.xp.where(counts, target, call.options.ignore_index), None, counts
    if samples is not None or bad is not None or call.how.shift:
        samples = lib.xp.where(counts, 1.0 if samples is None else samples, 0.0)
    return target, samples, counts


def reduced(reduction, losses, divisor):
    """As `_rows.reduced`, for arrays, which are divided by 0 without an exception as they are."""
    return (losses / divisor, 1.0 / divisor) if reduction == "mean" else (losses, 1.0)


class _Given(NamedTuple):
    """The fields of a `Head` that a call gives, and beside them what a `DeviceHead` has."""

    fields: dict[str, Any]
    counts: Any
    divisor: Any
    bad: Any


def _given(arrays, call, products_for):
    """The `_Given` of a call's arrays, after a check."""
    input, linear_weight, linear_bias, target, weight, samples = arrays
    shape, options = call.shape, call.options
    x = input.reshape(shape.rows, shape.features)
    matrix = linear_weight.reshape(shape.classes * shape.places, shape.features)
    products = products_for(x, matrix, call.how.exact)
    lib, classes, divisor = products.lib, call.classes, call.divisor
    storage = lib.storages.get(x.dtype)
    if storage in (None, "labels"):
        raise _rows.dtype_error("input", x.dtype)
    if classes is not None:
        if not lib.is_integer(classes):
            raise TypeError(f"a SparseTarget's classes must be integers, got {classes.dtype}")
        classes, bad_classes = check_classes(lib, classes, shape.classes)
        classes = classes.reshape(shape.rows, classes.shape[-1])
    if divisor is not None and not lib.reads:
        divisor = lib.number(divisor)
    if weight is not None:
        weight = class_weights(lib, weight, shape.classes, products.dtype)
    labels, samples, counts, bad = _targets(lib, target, samples, call)
    if not lib.reads:
        if classes is not None:
            bad, classes = bad_classes.any(-1), lib.xp.where(bad_classes.reshape(classes.shape), 0, classes)
        labels, samples, counts = _left_out(lib, labels, samples, counts, bad, call)
    if divisor is None and options.reduction == "mean":
        keep = counts if samples is None else samples
        if call.shard is not None and weight is not None and not shape.soft:
            keep = call.shard.row_weights(labels, weight, keep)
        elif weight is not None:
            keep = plain.row_weights(lib.xp, labels, shape.soft, weight, keep)
        divisor = lib.total(keep)
    fields = {
        "products": products,
        "shape": shape,
        "x": x,
        "weight": matrix,
        "bias": None if linear_bias is None else linear_bias.reshape(-1),
        "target": labels.reshape(shape.rows, *labels.shape[len(shape.leading) :]),
        "classes": classes,
        "class_weight": weight,
        "samples": None if samples is None else samples.reshape(shape.rows, *shape.out),
        "options": options,
        "how": call.how,
        "shard": call.shard,
    }
    by_row = shape.rows, shape.places
    return _Given(fields, counts.reshape(by_row), divisor, None if bad is None else bad.reshape(by_row))


def loss_and_gradients(arrays, wanted, call, products_for):
    """The loss, its gradients, and what these are still to be multiplied by. No gradients for reduction "none"."""
    head, later, divisor = head_of(arrays, call, products_for)
    if call.options.reduction == "none":
        return losses_of(head.losses(), call), None, later
    total, gradients = head.loss(wanted)
    return _rows.reduced(call.options.reduction, total, divisor, None)[0], gradients, later


def losses_of(losses, call):
    """The losses without those of targets that belong to no row."""
    shift, losses = call.how.shift, losses.reshape(call.shape.targets)
    return losses[..., shift:] if shift else losses


def finished(lib, gradients, arrays, factor):
    """The gradients multiplied by the factor, each in the dtype and shape of its array; None stays None."""
    return [None if made is None else _finished(lib, made, array, factor) for made, array in zip(gradients, arrays)]


def _finished(lib, gradient, array, factor):
    if factor != 1.0:
        gradient *= factor
    if gradient.dtype != array.dtype:
        wide, gradient = gradient, lib.pooled(gradient.shape, array.dtype)
        gradient[...] = wide
    return gradient.reshape(array.shape)
