"""What metrics need of a row: its label's log-probability and rank, the most likely class, the Brier score.

Rows lie along their classes and are read from memory once, as in `along`. The headroom is smaller, since exponentials
are squared here.
"""

import math

import numpy as np

from crossent.kernels.cpu import rules, vector as v
from crossent.kernels.cpu.along import LOOKED_AT
from crossent.kernels.cpu.blocks import BLOCK, masked_logits, row_max
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import exp
from crossent.kernels.cpu.row import LABELS, OK, ahead, ahead_in_label_vector, finish, finite_peak, load_n, scalar_nll

_HEADROOM = 30.0  # exp(2 * 30) times 2**31 classes is still finite in float32


@inline
def _scan(storage, row, lo, hi, own, earlier, peak, others, squares, above, best, best_at):
    """Add the classes lo to hi, which fill their vectors, to what `_walk` sums; `earlier` if the label follows them."""
    while lo < hi:
        stop = min(lo + BLOCK, hi)
        part, part_squares, top = v.splat(storage, 0.0), v.splat(storage, 0.0), v.splat(storage, -np.inf)
        for j in range(lo, stop, v.lanes(storage)):
            v.prefetch(storage, row, j)
            z = v.load(storage, row, j)
            top = v.max(z, top)
            above = above + ahead(storage, z, own, earlier)
            e = exp(storage, z - peak)
            part = part + e
            part_squares = v.fma(e, e, part_squares)
        others, squares = others + part, squares + part_squares
        highest = np.float64(v.reduce_max(top))
        if highest > best:
            best, best_at = highest, lo
        lo = stop
    return others, squares, above, best, best_at


@inline
def _walk(storage, row, classes, label, own, peak):
    """Over the classes other than the label the sums of e = exp(z - peak) and of e * e, and the count of those ahead of
    it; the largest z of all, and where the block starts that has it first.
    """
    width, zero = v.lanes(storage), v.splat(storage, 0.0)
    full, special = classes // width * width, label // width * width
    others, squares, above, best, best_at = zero, zero, zero, -np.inf, 0
    lo, hi, apart = 0, min(special, full), special
    for turn in range(2):
        others, squares, above, best, best_at = _scan(
            storage, row, lo, hi, own, turn == 0, peak, others, squares, above, best, best_at
        )
        if apart < classes:  # the label's vector, and after it one that is not full
            z = masked_logits(storage, row, apart, v.first_n(storage, classes - apart), 0.0)
            e = v.select(v.all_but(storage, label - apart), exp(storage, z - peak), zero)
            others, squares = others + e, v.fma(e, e, squares)
            above = above + ahead_in_label_vector(storage, z, own, label - apart)
            highest = np.float64(v.reduce_max(z))
            if highest > best:
                best, best_at = highest, apart
        if special == full:
            break
        lo, hi, apart = special + width, full, full
    return (
        np.float64(v.reduce_sum(others)), np.float64(v.reduce_sum(squares)), np.float64(v.reduce_sum(above)), best,
        best_at,
    )  # fmt: skip


@inline
def _position(storage, row, classes, value, start):
    """The first class from `start` on with this logit; some class for nan."""
    width, wanted = v.lanes(storage), v.splat(storage, value)
    j, lane = start, v.lanes(storage)
    while lane == width and j + width <= classes:
        lane = v.find_first(v.eq(v.load(storage, row, j), wanted))
        j += width
    if lane < width:
        return j - width + lane
    return min(j + v.find_first(v.eq(load_n(storage, row, j, classes), wanted)), classes - 1)


def forward(call, scratch, lo, hi, sums):
    """Rows lo to hi; nothing is written for those that are ignored."""
    storage, compute, classes, inner = call.storage, call.compute, call.classes, call.inner
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        label = v.load_scalar(LABELS, call.target, o * call.target_outer + i * call.target_inner)
        if label == call.ignore_index:
            continue
        if label < 0 or label >= classes:
            return finish(sums, r, 0.0, 0.0)
        row = v.at(storage, call.x, o * call.x_outer + i * call.x_inner)
        own = np.float64(v.load_scalar(storage, row, label))
        own_lanes = v.splat(storage, v.load_scalar(storage, row, label))
        guess = row_max(storage, row, min(classes, LOOKED_AT), 0.0)
        peak = finite_peak(max(own, guess))
        others, squares, above, best, best_at = _walk(storage, row, classes, label, own_lanes, peak)
        if best > peak + _HEADROOM:
            peak = best
            others, squares, above, best, best_at = _walk(storage, row, classes, label, own_lanes, peak)
        own_exp = math.exp(own - peak)
        total = others + own_exp
        v.store_scalar(compute, call.logprob, r, -scalar_nll(others, own_exp, peak - own))
        v.store_scalar(LABELS, call.rank, r, np.int64(above))
        v.store_scalar(LABELS, call.prediction, r, _position(storage, row, classes, best, best_at))
        v.store_scalar(compute, call.confidence, r, math.exp(best - peak) / total)
        v.store_scalar(compute, call.brier, r, rules.brier(others, squares, total))
    return finish(sums, OK, 0.0, 0.0)
