"""From a call of the fused head to its loss and gradients, in the same way for every array library.

Arrays come in one order: input, linear_weight, linear_bias, target, class weights, sample weights. Of a sparse target
they have the probabilities, and the call has its classes.
"""

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
    """Check the classes of a sparse target."""
    wide, _ = lib.labels(classes)  # PyTorch's uint8 counts 300 as 44
    bad = (wide < 0) | (wide >= count)
    if bad.any():
        where = tuple(int(i) for i in lib.xp.argwhere(bad)[0])
        raise _rows.class_error(int(classes[where]), where, count)


def _counts(lib, labels, samples, call):
    """Which targets count. With a shift the first targets of a sequence do not: they belong to no row."""
    shape, shift = call.shape, call.how.shift
    counts = lib.xp.full(shape.targets, True) if shape.soft else labels != call.options.ignore_index
    if samples is not None:
        counts &= samples != 0
    if shift:
        counts[..., :shift] = False
    return counts


def _all_classes(call):
    return call.shape.classes if call.shard is None else call.shard.classes


def _check_labels(lib, target, labels, counts, call):
    bad = ((labels < 0) | (labels >= _all_classes(call))) & counts
    if bad.any():
        _refuse_label(lib, target, int(lib.xp.argwhere(bad.reshape(-1))[0, 0]), call)


def _refuse_label(lib, target, row, call):
    ignore_index = call.options.ignore_index
    raise _rows.label_error(lib.item(target, row), row, call.shape.targets, _all_classes(call), ignore_index)


def _targets(lib, target, samples, call):
    """int64 labels or probabilities, how much each target counts (None: as a whole), and which count, after a check."""
    shape = call.shape
    is_float = lib.storages.get(target.dtype) not in (None, "labels")
    _rows.check_target_dtype(shape.soft, is_float, lib.is_integer(target), target.dtype)
    if shape.soft:
        _rows.check_soft_options(call.options)
    else:
        given = target
        target, bad = lib.labels(given)
        if bad is not None:
            _refuse_label(lib, given, bad, call)
    if samples is not None:
        samples = sample_weights(lib, samples, shape.targets, lib.dtypes["float64"])
    counts = _counts(lib, target, samples, call)
    if not shape.soft:
        _check_labels(lib, target, target, counts, call)
    return target, None if samples is None else lib.xp.where(counts, samples, 0.0), counts


def head_of(arrays, call, products_for):
    """The head of the targets that count, what its gradients are still to be multiplied by, and the divisor."""
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
        check_classes(lib, classes, shape.classes)
        classes, _ = lib.labels(classes.reshape(shape.rows, classes.shape[-1]))
    if weight is not None:
        weight = class_weights(lib, weight, shape.classes, products.dtype)
    labels, samples, counts = _targets(lib, target, samples, call)
    if divisor is None and options.reduction == "mean":
        keep = counts if samples is None else samples
        keep = keep if weight is None else plain.row_weights(lib.xp, labels, shape.soft, weight, keep)
        divisor = lib.total(keep)
    counted = counts.reshape(shape.rows, shape.places).any(1)
    everything = not call.how.shift and bool(counted.all())
    _, scale = _rows.reduced(options.reduction, 0.0, divisor, None)
    # float16 has few exponents: its gradients are made for the sum, and divided while they have 32 bits.
    later = scale if storage == "float16" and bool(counted.any()) else 1.0
    head = Head(
        products=products,
        shape=shape,
        x=x,
        weight=matrix,
        bias=None if linear_bias is None else linear_bias.reshape(-1),
        target=labels.reshape(shape.rows, *labels.shape[len(shape.leading) :]),
        classes=classes,
        class_weight=weight,
        samples=None if samples is None else samples.reshape(shape.rows, *shape.out),
        kept=slice(0, shape.rows) if everything else lib.xp.argwhere(counted)[:, 0],
        options=options,
        how=call.how,
        shard=call.shard,
        scale=1.0 if later != 1.0 else scale,
    )
    return head, later, divisor


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
