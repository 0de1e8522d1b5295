"""The negative log likelihood of given log-probabilities: one entry of a row is read, so any strides will do."""

import numpy as np

from crossent.kernels.cpu import rules, vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.row import (
    LABELS,
    OK,
    class_weight_of,
    finish,
    neumaier_add,
    neumaier_total,
    sample_weight_of,
    upstream_of,
)


@inline
def _keep_of(storage, label, samples, row, ignore_index):
    return 0.0 if label == ignore_index else sample_weight_of(storage, samples, row)


def forward(call, scratch, lo, hi, sums):
    """Rows lo to hi: write losses."""
    storage, compute, classes, inner = call.storage, call.compute, call.classes, call.inner
    loss_sum, loss_rest, weight_sum, weight_rest = 0.0, 0.0, 0.0, 0.0
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        label = v.load_scalar(LABELS, call.target, o * call.target_outer + i * call.target_inner)
        keep, value = _keep_of(compute, label, call.samples, r, call.ignore_index), 0.0
        if keep != 0.0:
            if label < 0 or label >= classes:
                return finish(sums, r, 0.0, 0.0)
            w = class_weight_of(compute, call.weight, label)
            mass = rules.label_weight(w, keep, 0.0)
            if mass != 0.0:
                where = o * call.x_outer + label * call.x_class + i * call.x_inner
                value = -mass * np.float64(v.load_scalar(storage, call.x, where))
            loss_sum, loss_rest = neumaier_add(loss_sum, loss_rest, value)
            weight_sum, weight_rest = neumaier_add(weight_sum, weight_rest, mass)
        if call.loss != 0:
            v.store_scalar(compute, call.loss, r, value)
    return finish(sums, OK, neumaier_total(loss_sum, loss_rest), neumaier_total(weight_sum, weight_rest))


def backward(call, scratch, lo, hi, sums):
    """Rows lo to hi of the gradient of scale * dloss * loss, into a dx of zeros."""
    storage, compute, classes, inner = call.storage, call.compute, call.classes, call.inner
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        label = v.load_scalar(LABELS, call.target, o * call.target_outer + i * call.target_inner)
        keep = _keep_of(compute, label, call.samples, r, call.ignore_index)
        if keep != 0.0:
            if label < 0 or label >= classes:
                return finish(sums, r, 0.0, 0.0)
            g = upstream_of(compute, call.dloss, r, call.scale)
            mass = rules.label_weight(class_weight_of(compute, call.weight, label), keep, 0.0)
            v.store_scalar(
                storage, call.dx, o * call.new_outer + label * call.new_class + i * call.new_inner, -mass * g
            )
    return finish(sums, OK, 0.0, 0.0)
