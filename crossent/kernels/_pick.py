"""The negative log likelihood of given log-probabilities: one entry of a row is read, so any strides will do."""

import numpy as np

from crossent.kernels._compile import inline, kernel
from crossent.kernels._leaves import (
    LABELS,
    OK,
    add,
    added,
    class_weight_of,
    label_weight,
    sample_weight_of,
    upstream_of,
)
from crossent.kernels._simd import at, get, put


@inline
def _keep_of(like, label, samples, row, ignore_index):
    return 0.0 if label == ignore_index else sample_weight_of(like, samples, row)


@kernel
def forward(
    like, weight_like, x_outer, x_class, x_inner, target_outer, target_inner, inner, classes, ignore_index,
    x, target, weight, samples, loss, lo, hi,
):  # fmt: skip
    """Rows lo to hi: write losses; a bad row or OK, the sums of losses and of weights."""
    loss_sum, loss_rest, weight_sum, weight_rest = 0.0, 0.0, 0.0, 0.0
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        label = get(LABELS, target, o * target_outer + i * target_inner)
        keep, value = _keep_of(weight_like, label, samples, r, ignore_index), 0.0
        if keep != 0.0:
            if label < 0 or label >= classes:
                return r, 0.0, 0.0
            w = class_weight_of(weight_like, weight, label)
            mass = label_weight(w, keep, 0.0)
            if mass != 0.0:
                value = -mass * np.float64(get(like, x, o * x_outer + label * x_class + i * x_inner))
            loss_sum, loss_rest = add(loss_sum, loss_rest, value)
            weight_sum, weight_rest = add(weight_sum, weight_rest, mass)
        if loss != 0:
            put(weight_like, loss, r, value)
    return OK, added(loss_sum, loss_rest), added(weight_sum, weight_rest)


@kernel
def backward(
    like, weight_like, x_outer, x_class, x_inner, target_outer, target_inner, inner, classes, ignore_index,
    x, target, weight, samples, dloss, scale, dx, dx_outer, dx_class, dx_inner, lo, hi,
):  # fmt: skip
    """Rows lo to hi of the gradient of scale * dloss * loss, into a dx of zeros."""
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        label = get(LABELS, target, o * target_outer + i * target_inner)
        keep = _keep_of(weight_like, label, samples, r, ignore_index)
        if keep != 0.0:
            if label < 0 or label >= classes:
                return r, 0.0, 0.0
            g = upstream_of(weight_like, dloss, r, scale)
            mass = label_weight(class_weight_of(weight_like, weight, label), keep, 0.0)
            put(like, at(like, dx, o * dx_outer + i * dx_inner), label * dx_class, -mass * g)
    return OK, 0.0, 0.0
