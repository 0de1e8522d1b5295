"""What metrics need of a row: its label's log-probability and rank, the most likely class, the Brier score.

Rows lie along their classes and are read from memory once, as in `along`. The headroom is smaller, since exponentials
are squared here.
"""

import math

import numpy as np

from crossent.kernels.cpu.along import LOOKED_AT
from crossent.kernels.cpu.blocks import BLOCK, largest, some_logits
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import exp
from crossent.kernels.cpu.row import (
    LABELS,
    OK,
    ahead,
    ahead_in_label_vector,
    brier,
    finish,
    finite_peak,
    load_within,
    negative_log,
)
from crossent.kernels.cpu.vector import (
    all_lanes_but,
    at,
    first_lanes,
    first_of,
    fma,
    get,
    lanes,
    larger,
    lift,
    load,
    max_of_lanes,
    prefetch,
    put,
    same,
    select,
    sum_of_lanes,
)

_HEADROOM = 30.0  # exp(2 * 30) times 2**31 classes is still finite in float32


@inline
def _scan(like, row, lo, hi, own, earlier, peak, others, squares, above, best, best_at):
    """Add the classes lo to hi, which fill their vectors, to what `_walk` sums; `earlier` if the label follows them."""
    while lo < hi:
        stop = min(lo + BLOCK, hi)
        part, part_squares, top = lift(like, 0.0), lift(like, 0.0), lift(like, -np.inf)
        for j in range(lo, stop, lanes(like)):
            prefetch(like, row, j)
            z = load(like, row, j)
            top = larger(z, top)
            above = above + ahead(like, z, own, earlier)
            e = exp(like, z - peak)
            part = part + e
            part_squares = fma(e, e, part_squares)
        others, squares = others + part, squares + part_squares
        highest = np.float64(max_of_lanes(top))
        if highest > best:
            best, best_at = highest, lo
        lo = stop
    return others, squares, above, best, best_at


@inline
def _walk(like, row, classes, label, own, peak):
    """Over the classes other than the label the sums of e = exp(z - peak) and of e * e, and the count of those ahead of
    it; the largest z of all, and where the block starts that has it first.
    """
    width, zero = lanes(like), lift(like, 0.0)
    full, special = classes // width * width, label // width * width
    others, squares, above, best, best_at = zero, zero, zero, -np.inf, 0
    lo, hi, apart = 0, min(special, full), special
    for turn in range(2):
        others, squares, above, best, best_at = _scan(
            like, row, lo, hi, own, turn == 0, peak, others, squares, above, best, best_at
        )
        if apart < classes:  # the label's vector, and after it one that is not full
            z = some_logits(like, row, apart, first_lanes(like, classes - apart), 0.0)
            e = select(all_lanes_but(like, label - apart), exp(like, z - peak), zero)
            others, squares = others + e, fma(e, e, squares)
            above = above + ahead_in_label_vector(like, z, own, label - apart)
            highest = np.float64(max_of_lanes(z))
            if highest > best:
                best, best_at = highest, apart
        if special == full:
            break
        lo, hi, apart = special + width, full, full
    return (
        np.float64(sum_of_lanes(others)), np.float64(sum_of_lanes(squares)), np.float64(sum_of_lanes(above)), best,
        best_at,
    )  # fmt: skip


@inline
def _position(like, row, classes, value, start):
    """The first class from `start` on with this logit; some class for nan."""
    width, wanted = lanes(like), lift(like, value)
    j, lane = start, lanes(like)
    while lane == width and j + width <= classes:
        lane = first_of(same(load(like, row, j), wanted))
        j += width
    if lane < width:
        return j - width + lane
    return min(j + first_of(same(load_within(like, row, j, classes), wanted)), classes - 1)


def forward(call, scratch, lo, hi, sums):
    """Rows lo to hi; nothing is written for those that are ignored."""
    like, weight_like, classes, inner = call.like, call.weight_like, call.classes, call.inner
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        label = get(LABELS, call.target, o * call.target_outer + i * call.target_inner)
        if label == call.ignore_index:
            continue
        if label < 0 or label >= classes:
            return finish(sums, r, 0.0, 0.0)
        row = at(like, call.x, o * call.x_outer + i * call.x_inner)
        own = np.float64(get(like, row, label))
        own_lanes = lift(like, get(like, row, label))
        guess = largest(like, row, min(classes, LOOKED_AT), 0.0)
        peak = finite_peak(max(own, guess))
        others, squares, above, best, best_at = _walk(like, row, classes, label, own_lanes, peak)
        if best > peak + _HEADROOM:
            peak = best
            others, squares, above, best, best_at = _walk(like, row, classes, label, own_lanes, peak)
        own_exp = math.exp(own - peak)
        total = others + own_exp
        put(weight_like, call.logprob, r, -negative_log(others, own_exp, peak - own))
        put(LABELS, call.rank, r, np.int64(above))
        put(LABELS, call.prediction, r, _position(like, row, classes, best, best_at))
        put(weight_like, call.confidence, r, math.exp(best - peak) / total)
        put(weight_like, call.brier, r, brier(others, squares, total))
    return finish(sums, OK, 0.0, 0.0)
