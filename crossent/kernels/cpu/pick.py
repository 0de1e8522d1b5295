"""The negative log likelihood of given log-probabilities. One entry of a row is read, so any strides will do."""

import numpy as np

from crossent.kernels.cpu import rows, rules, vector as v
from crossent.kernels.cpu.compile import inline


def forward(call, scratch, lo, hi, outcome):
    """Rows lo to hi: write losses."""
    chunk = rows.NO_SUMS
    for r in range(lo, hi):
        place = rows.place_of(call, r)
        label = rows.label_of(call, place)
        keep, value = rows.keep_of(call, r, label), 0.0
        if keep != 0.0:
            if rows.is_no_class(call, label):
                return rows.refuse(outcome, r)
            mass = rules.label_weight(rows.class_weight_of(call, label), keep, 0.0)
            log_p = np.float64(v.load_scalar(call.storage, rows.logits_of(call, place), label * call.x_class))
            if mass != 0.0 or log_p != -np.inf:
                value = -mass * log_p
            chunk = rows.added(chunk, value, mass)
        if call.loss != 0:
            v.store_scalar(call.compute, call.loss, r, value)
    return rows.finish(outcome, chunk)


@inline
def _upstream_of(call, r):
    """What a row's gradient is multiplied by."""
    return call.scale * v.load_scalar(call.compute, call.dloss, r) if call.dloss != 0 else call.scale


def backward(call, scratch, lo, hi, outcome):
    """Rows lo to hi: write the gradient of scale * dloss * loss to dx, which holds zeros."""
    for r in range(lo, hi):
        place = rows.place_of(call, r)
        label = rows.label_of(call, place)
        keep = rows.keep_of(call, r, label)
        if keep != 0.0:
            if rows.is_no_class(call, label):
                return rows.refuse(outcome, r)
            mass = rules.label_weight(rows.class_weight_of(call, label), keep, 0.0)
            where = rows.offset(place, call.new_outer, call.new_inner) + label * call.new_class
            v.store_scalar(call.storage, call.dx, where, -mass * _upstream_of(call, r))
    return rows.finish(outcome, rows.NO_SUMS)
