"""Cross entropy by the two stages in `crossent.kernels`, for any array library and any device that has them.

`lib` is what an array library provides. It has

    xp                                 its namespace, by the names of the array API standard
    dtypes                             the storage types of the arithmetic -> dtypes
    storage(array)                     its storage type or None
    is_integer(array), is_mask(array)
    contiguous(array), converted(array, dtype), cast(array, storage), broadcast(array, shape)
    labels(array)                      int64 labels, and the row of one that does not fit or None
    item(array, row)                   a number of it, as Python's
"""

import math
from typing import Any, NamedTuple

from crossent import _rows
from crossent.frontends._problem import class_weights, compute_storage, sample_weights
from crossent.kernels import Rows, Sums


class Finished(NamedTuple):
    """The loss, the sums that its gradient is made of, and what the rows' losses are multiplied by in it."""

    loss: Any
    sums: Sums
    scale: Any


def rows_of(lib, tensors, call, first_class=0, all_classes=None):
    """The rows of input, target, weight and sample_weight. All checks of their types and shapes are made here."""
    input, target, weight, sample_weight = tensors
    shape, storage = tuple(input.shape), lib.storage(input)
    axis, soft = _rows.target_kind(shape, tuple(target.shape), call.dim, True)
    if storage is None:
        raise _rows.dtype_error("input", input.dtype)
    _rows.check_target_dtype(soft, lib.storage(target) is not None, lib.is_integer(target), target.dtype)
    classes, reshape, dtype = shape[axis], lib.xp.reshape, lib.dtypes[compute_storage(storage)]
    row_shape = shape[:axis] + shape[axis + 1 :]
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if soft:
        _rows.check_soft_options(call.options)
        target = lib.cast(target, storage)
    else:
        labels, bad_row = lib.labels(target)
        if bad_row is not None:
            raise _label_error(lib, target, bad_row, all_classes or classes, call.options)
        target = labels
    if weight is not None:
        weight = class_weights(lib, weight, classes, dtype)
    if sample_weight is not None:
        sample_weight = reshape(sample_weights(lib, sample_weight, row_shape, dtype), (outer, inner))
    return Rows(
        reshape(input, (outer, classes, inner)),
        reshape(target, (outer, classes, inner) if soft else (outer, inner)),
        weight,
        sample_weight,
        call.options,
        soft,
        first_class,
        classes if all_classes is None else all_classes,
    )


def loss(lib, kernels, rows, call, labels, merge=None):
    """The `Finished` loss. `labels` is the caller's target; `merge` puts together the sums of all shards."""
    sums = kernels.sums(rows)
    return finished(lib, kernels, rows, sums if merge is None else merge(sums), call, labels)


def finished(lib, kernels, rows, sums, call, labels):
    """The second stage; `sums` are those of all shards."""
    losses, totals, bad = kernels.losses(rows, sums)
    if not rows.soft and int(bad) >= 0:
        raise _label_error(lib, labels, int(bad), rows.all_classes, call.options)
    if call.options.reduction == "none":
        shape = labels.shape
        if rows.soft:
            axis = _rows.class_axis(labels.ndim, call.dim)
            shape = labels.shape[:axis] + labels.shape[axis + 1 :]
        return Finished(lib.xp.reshape(losses, shape), sums, 1.0)
    if call.options.reduction == "sum":
        return Finished(totals[0], sums, 1.0)
    divisor = totals[1] if call.divisor is None else call.divisor
    return Finished(totals[0] / divisor, sums, 1.0 / (lib.xp.zeros_like(totals[1]) + divisor))


def gradients(lib, kernels, rows, finished, dloss, tensors, want_target=False, over_logits=False):
    """The gradients of input and target, the latter None if it is not wanted; `dloss` is the upstream gradient."""
    dtype = lib.dtypes[compute_storage(lib.storage(rows.logits))]
    shape = (rows.logits.shape[0], rows.logits.shape[2])
    upstream = lib.converted(lib.xp.asarray(dloss * finished.scale), dtype)
    upstream = lib.broadcast(upstream, shape) if upstream.ndim == 0 else lib.xp.reshape(upstream, shape)
    found = kernels.gradients(rows, finished.sums, upstream, want_target, over_logits)
    return [None if one is None else lib.xp.reshape(one, like.shape) for one, like in zip(found, tensors)]


def _label_error(lib, labels, row, classes, options):
    return _rows.label_error(lib.item(labels, row), row, tuple(labels.shape), classes, options.ignore_index)
