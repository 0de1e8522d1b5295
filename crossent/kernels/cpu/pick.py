"""The negative log likelihood of given log-probabilities: one entry of a row is read, so any strides will do."""

import numpy as np

from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.row import (
    LABELS,
    OK,
    add,
    added,
    class_weight_of,
    finish,
    label_weight,
    sample_weight_of,
    upstream_of,
)
from crossent.kernels.cpu.vector import get, put


@inline
def _keep_of(like, label, samples, row, ignore_index):
    return 0.0 if label == ignore_index else sample_weight_of(like, samples, row)


def forward(call, scratch, lo, hi, sums):
    """Rows lo to hi: write losses."""
    like, weight_like, classes, inner = call.like, call.weight_like, call.classes, call.inner
    loss_sum, loss_rest, weight_sum, weight_rest = 0.0, 0.0, 0.0, 0.0
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        label = get(LABELS, call.target, o * call.target_outer + i * call.target_inner)
        keep, value = _keep_of(weight_like, label, call.samples, r, call.ignore_index), 0.0
        if keep != 0.0:
            if label < 0 or label >= classes:
                return finish(sums, r, 0.0, 0.0)
            w = class_weight_of(weight_like, call.weight, label)
            mass = label_weight(w, keep, 0.0)
            if mass != 0.0:
                where = o * call.x_outer + label * call.x_class + i * call.x_inner
                value = -mass * np.float64(get(like, call.x, where))
            loss_sum, loss_rest = add(loss_sum, loss_rest, value)
            weight_sum, weight_rest = add(weight_sum, weight_rest, mass)
        if call.loss != 0:
            put(weight_like, call.loss, r, value)
    return finish(sums, OK, added(loss_sum, loss_rest), added(weight_sum, weight_rest))


def backward(call, scratch, lo, hi, sums):
    """Rows lo to hi of the gradient of scale * dloss * loss, into a dx of zeros."""
    like, weight_like, classes, inner = call.like, call.weight_like, call.classes, call.inner
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        label = get(LABELS, call.target, o * call.target_outer + i * call.target_inner)
        keep = _keep_of(weight_like, label, call.samples, r, call.ignore_index)
        if keep != 0.0:
            if label < 0 or label >= classes:
                return finish(sums, r, 0.0, 0.0)
            g = upstream_of(weight_like, call.dloss, r, call.scale)
            mass = label_weight(class_weight_of(weight_like, call.weight, label), keep, 0.0)
            put(like, call.dx, o * call.new_outer + label * call.new_class + i * call.new_inner, -mass * g)
    return finish(sums, OK, 0.0, 0.0)
