"""What metrics need of a row: the label's log-probability and rank, the most likely class, the Brier score.

The classes of a row lie side by side, and are read from memory once, as in `along`. The headroom is smaller, because
exponentials are squared here.
"""

import math
from collections import namedtuple

import numpy as np

from crossent.kernels.cpu import rows, rules, vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import exp
from crossent.kernels.cpu.rows import LABELS

_HEADROOM = 30.0  # exp(2 * 30) times 2**31 classes is still finite in float32
_Label = namedtuple("_Label", "storage own peak")  # `own`: the label's logit in every lane


@inline
def _better(best, best_at, z, lo):
    """The larger of `best` and the largest lane of z, and from where on it is found: `best_at` or `lo`."""
    highest = np.float64(v.reduce_max(z))
    if highest > best:
        return highest, lo
    return best, best_at


@inline
def _add_whole(label, row, lo, hi, earlier, sums):
    storage, zero = label.storage, v.splat(label.storage, 0.0)
    others, squares, above, best, best_at = sums
    part, part_squares, top = zero, zero, v.splat(storage, -np.inf)
    for j in range(lo, hi, v.lanes(storage)):
        v.prefetch(storage, row, j)
        z = v.load(storage, row, j)
        top = v.max(z, top)
        above = above + rows.ahead(storage, z, label.own, earlier)
        e = exp(storage, z - label.peak)
        part = part + e
        part_squares = v.fma(e, e, part_squares)
    best, best_at = _better(best, best_at, top, lo)
    return others + part, squares + part_squares, above, best, best_at


@inline
def _add_part(label, row, j, within, lane, sums):
    storage, zero = label.storage, v.splat(label.storage, 0.0)
    others, squares, above, best, best_at = sums
    z = rows.masked_logits(storage, row, j, within, 0.0)
    e = v.select(v.all_but(storage, lane), exp(storage, z - label.peak), zero)
    above = above + rows.ahead_in_label_vector(storage, z, label.own, lane)
    best, best_at = _better(best, best_at, z, j)
    return others + e, v.fma(e, e, squares), above, best, best_at


@inline
def _sums(call, storage, row, label, own, peak):
    """Over all classes but the label: the sums of e = exp(z - peak) and of e * e, and the number of classes ahead of
    the label. Over all classes: the largest z, and where the first block begins that has it.
    """
    zero = v.splat(storage, 0.0)
    sums, view = (zero, zero, zero, -np.inf, 0), _Label(storage, own, peak)
    others, squares, above, best, best_at = rows.walk(view, row, call.classes, label, _add_whole, _add_part, sums)
    others, squares, above = v.reduce_sum(others), v.reduce_sum(squares), v.reduce_sum(above)
    return np.float64(others), np.float64(squares), np.float64(above), best, best_at


@inline
def _position(call, row, value, start):
    """The first class from `start` on with this logit; some class for nan."""
    storage, classes, wanted = call.storage, call.classes, v.splat(call.storage, value)
    width = v.lanes(storage)
    j, lane = start, width
    while lane == width and j + width <= classes:
        lane = v.find_first(v.eq(v.load(storage, row, j), wanted))
        j += width
    if lane < width:
        return j - width + lane
    return min(j + v.find_first(v.eq(rows.load_n(storage, row, j, classes), wanted)), classes - 1)


@inline
def _write_stats(call, storage, r, place, label):
    if label < 0:
        return
    compute, row = call.compute, rows.logits_of(call, place)
    own, own_lanes, peak = rows.first_peak(call, storage, row, label, 0.0)
    others, squares, above, best, best_at = _sums(call, storage, row, label, own_lanes, peak)
    if best > peak + _HEADROOM:
        peak = best
        others, squares, above, best, best_at = _sums(call, storage, row, label, own_lanes, peak)
    own_exp = math.exp(own - peak)
    total = others + own_exp
    v.store_scalar(compute, call.logprob, r, -rows.scalar_nll(others, own_exp, peak - own))
    v.store_scalar(LABELS, call.rank, r, np.int64(above))
    v.store_scalar(LABELS, call.prediction, r, _position(call, row, best, best_at))
    v.store_scalar(compute, call.confidence, r, math.exp(best - peak) / total)
    v.store_scalar(compute, call.brier, r, rules.brier(others, squares, total))


def forward(call, scratch, lo, hi, outcome):
    """Rows lo to hi; nothing is written for ignored rows."""
    return rows.visit(call, lo, hi, outcome, _write_stats)
