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
from functools import partial
from typing import Any, NamedTuple

from crossent import _rows
from crossent.frontends._problem import class_weights, compute_storage, sample_weights
from crossent.kernels import Note, Rows, Sums


class Finished(NamedTuple):
    """The loss, the sums that its gradient is made of, and what the rows' losses are multiplied by in it."""

    loss: Any
    sums: Sums
    scale: Any


def rows_of(lib, tensors, call, first_class=0, all_classes=None):
    """The rows of input, target, weight and sample_weight. All checks of their types and shapes are made here."""
    input, target, weight, sample_weight = tensors
    shape, storage = tuple(input.shape), lib.storage(input)
    axis, soft = _rows.target_kind(shape, tuple(target.shape), call.dim, not call.picks)
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
            raise error_of_notes(tuple(target.shape), all_classes or classes, call.options)(
                lib.item(target, bad_row), bad_row
            )
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


def raise_now(bad, error):
    """Raise `error(row)` for the row of a bad label, or of a `Note` `error(label, row)`, if there is one. It waits for
    the device. `bad` is as in `Outcome`.
    """
    row, *label = bad.found.tolist()[:2] if isinstance(bad, Note) else [int(bad)]
    if row >= 0:
        raise error(*label, row)


def loss(lib, kernels, rows, call, labels, merge=None, refuse=raise_now):
    """The `Finished` loss. `labels` is the caller's target; `merge` puts together the sums of all shards. What
    `refuse` does, in the place of `raise_now`, is up to the caller.
    """
    if merge is not None:
        return finished(lib, kernels, rows, merge(kernels.sums(rows)), call, labels, refuse)
    sums, outcome = kernels.forward(rows, call.out_dtype)
    return reduced(lib, rows, sums, outcome, call, labels, refuse)


def finished(lib, kernels, rows, sums, call, labels, refuse=raise_now):
    """The second stage; `sums` are those of all shards."""
    return reduced(lib, rows, sums, kernels.losses(rows, sums, call.out_dtype), call, labels, refuse)


def reduced(lib, rows, sums, outcome, call, labels, refuse=raise_now):
    """The `Finished` loss of an `Outcome`."""
    if not rows.soft:
        refuse(outcome.bad, _error_of(lib, outcome.bad, labels, rows.all_classes, call.options))
    if call.options.reduction == "none":
        shape = labels.shape
        if rows.soft:
            axis = _rows.class_axis(labels.ndim, call.dim)
            shape = labels.shape[:axis] + labels.shape[axis + 1 :]
        return Finished(lib.xp.reshape(outcome.losses, shape), sums, 1.0)
    if call.options.reduction == "sum" and outcome.total is not None:
        return Finished(outcome.total, sums, 1.0)
    if call.divisor is None and outcome.mean is not None:
        return Finished(outcome.mean, sums, outcome.scale)
    total, weights = outcome.totals
    if call.options.reduction == "sum":
        return Finished(total, sums, 1.0)
    divisor = weights if call.divisor is None else call.divisor
    return Finished(total / divisor, sums, 1.0 / (lib.xp.zeros_like(weights) + divisor))


def predictions(lib, kernels, rows, call, labels, refuse=raise_now):
    """What metrics need of every row; the rest is as in `loss`."""
    found, bad = kernels.predictions(rows)
    refuse(bad, _error_of(lib, bad, labels, rows.all_classes, call.options))
    return tuple(lib.xp.reshape(one, labels.shape) for one in found)


def gradients(lib, kernels, rows, finished, dloss, tensors, want_target=False, over_logits=False):
    """The gradients of input and target, the latter None if it is not wanted; `dloss` is the upstream gradient."""
    shape = (rows.logits.shape[0], rows.logits.shape[2])
    dloss = lib.xp.asarray(dloss)
    upstream = lib.broadcast(dloss, shape) if dloss.ndim == 0 else lib.xp.reshape(dloss, shape)
    found = kernels.gradients(rows, finished.sums, upstream, finished.scale, want_target, over_logits)
    return [None if one is None else lib.xp.reshape(one, like.shape) for one, like in zip(found, tensors)]


def _error_of(lib, bad, labels, classes, options):
    """What makes the error of a row: of a `Note`, which has the label, the labels are not kept for it."""
    error = error_of_notes(tuple(labels.shape), classes, options)
    return error if isinstance(bad, Note) else lambda row: error(lib.item(labels, row), row)


def error_of_notes(shape, classes, options):
    """What makes the error of a label and its row; `shape` is that of the labels."""
    return partial(_rows.label_error, row_shape=shape, classes=classes, ignore_index=options.ignore_index)
