"""What a label's row says of it: its log-probability, the normaliser, the entropy and the label's rank.

Rows lie along their classes and are read once, as in `along`, whose peak and headroom are used here too.
"""

import math

import numpy as np

from crossent.kernels.cpu.along import LOOKED_AT, out_of_headroom
from crossent.kernels.cpu.blocks import BLOCK, largest, some_logits
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import capped, exp
from crossent.kernels.cpu.row import (
    LABELS,
    OK,
    ahead,
    ahead_in_label_vector,
    entropy_of,
    exponential,
    finish,
    finite_peak,
    negative_log,
    number,
    softcap_slope,
    token_grad,
)
from crossent.kernels.cpu.vector import (
    all_lanes_but,
    at,
    first_lanes,
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
    store_some,
    sum_of_lanes,
)


@inline
def _scan(like, row, lo, hi, own, earlier, peak, cap, others, dot, above, top):
    """Add the classes lo to hi, which fill their vectors, to what `_walk` sums; `earlier` if the label follows them."""
    zero = lift(like, 0.0)
    while lo < hi:
        stop = min(lo + BLOCK, hi)
        part, part_dot = zero, zero
        for j in range(lo, stop, lanes(like)):
            prefetch(like, row, j)
            z = capped(like, load(like, row, j), cap)
            top = larger(z, top)
            above = above + ahead(like, z, own, earlier)
            z = z - peak
            e = exp(like, z)
            part = part + e
            part_dot = part_dot + select(same(e, zero), zero, e * z)
        others, dot = others + part, dot + part_dot
        lo = stop
    return others, dot, above, top


@inline
def _walk(like, row, classes, label, own, peak, cap):
    """The sums of exp(z - peak) over the others and of exp(z - peak) * (z - peak) over all, the count of the classes
    ahead of the label, and the largest z.
    """
    width, zero = lanes(like), lift(like, 0.0)
    full, special = classes // width * width, label // width * width
    others, dot, above, top = zero, zero, zero, lift(like, -np.inf)
    lo, hi, apart = 0, min(special, full), special
    for turn in range(2):
        others, dot, above, top = _scan(like, row, lo, hi, own, turn == 0, peak, cap, others, dot, above, top)
        if apart < classes:  # the label's vector, and after it one that is not full
            z = some_logits(like, row, apart, first_lanes(like, classes - apart), cap)
            top = larger(z, top)
            above = above + ahead_in_label_vector(like, z, own, label - apart)
            z = z - peak
            e = exp(like, z)
            others = others + select(all_lanes_but(like, label - apart), e, zero)
            dot = dot + select(same(e, zero), zero, e * z)
        if special == full:
            break
        lo, hi, apart = special + width, full, full
    sums = sum_of_lanes(others), sum_of_lanes(dot), sum_of_lanes(above), max_of_lanes(top)
    return np.float64(sums[0]), np.float64(sums[1]), np.float64(sums[2]), np.float64(sums[3])


def forward(call, scratch, lo, hi, sums):
    """Rows lo to hi; nothing is written for those that are ignored."""
    like, weight_like, classes, cap = call.like, call.weight_like, call.classes, call.cap
    for r in range(lo, hi):
        label = get(LABELS, call.target, r * call.target_inner)
        if label == call.ignore_index:
            continue
        if label < 0 or label >= classes:
            return finish(sums, r, 0.0, 0.0)
        row = at(like, call.x, r * call.x_inner)
        own = number(like, row, label, cap)
        guess = largest(like, row, min(classes, LOOKED_AT), cap)
        peak = finite_peak(max(own, guess))
        # As the vectors cap it, so that equal logits stay equal.
        own_lanes = capped(like, lift(like, get(like, row, label)), cap)
        others, dot, above, top = _walk(like, row, classes, label, own_lanes, peak, cap)
        if out_of_headroom(top, peak):
            peak = top
            others, dot, above, top = _walk(like, row, classes, label, own_lanes, peak, cap)
        own_exp = exponential(own, peak)
        total = others + own_exp
        put(weight_like, call.logprob, r, -negative_log(others, own_exp, peak - own))
        put(weight_like, call.lse, r, peak + math.log(total))
        put(weight_like, call.entropy, r, entropy_of(math.log(total), dot, total))
        put(LABELS, call.rank, r, np.int64(above))
    return finish(sums, OK, 0.0, 0.0)


@inline
def _upstream(like, address, row):
    return np.float64(get(like, address, row)) if address != 0 else 0.0


def backward(call, scratch, lo, hi, sums):
    """Rows lo to hi of the gradient, from the results; dx may be x. Those that are ignored get zeros."""
    like, weight_like, classes, cap = call.like, call.weight_like, call.classes, call.cap
    width, zero = lanes(like), lift(like, 0.0)
    for r in range(lo, hi):
        label = get(LABELS, call.target, r * call.target_inner)
        row, drow = at(like, call.x, r * call.x_inner), at(like, call.dx, r * call.dx_inner)
        if label == call.ignore_index:
            for j in range(0, classes, width):
                store_some(like, drow, j, first_lanes(like, classes - j), zero)
            continue
        if label < 0 or label >= classes:
            return finish(sums, r, 0.0, 0.0)
        own = number(like, row, label, cap)
        lse, entropy = np.float64(get(weight_like, call.lse, r)), np.float64(get(weight_like, call.entropy, r))
        logprob = np.float64(get(weight_like, call.logprob, r))
        dlogprob = _upstream(weight_like, call.dlogprob, r)
        dlse, dentropy = _upstream(weight_like, call.dlse, r), _upstream(weight_like, call.dentropy, r)
        for j in range(0, classes, width):
            prefetch(like, row, j)
            within = first_lanes(like, classes - j)
            z = some_logits(like, row, j, within, cap)
            log_p = z - lse
            p = exp(like, log_p)
            log_p = select(same(p, zero), zero, log_p)
            d = token_grad(p, log_p, lift(like, entropy), lift(like, dlogprob), lift(like, dlse), lift(like, dentropy))
            if cap > 0.0:
                d = d * softcap_slope(z, cap)
            store_some(like, drow, j, within, d)
        # At the label from its own log-probability: 1 - p keeps its digits.
        p = math.exp(logprob)
        d = token_grad(p, logprob, entropy, 0.0, dlse, dentropy) - math.expm1(logprob) * dlogprob
        put(like, drow, label, d * softcap_slope(own, cap) if cap > 0.0 else d)
    return finish(sums, OK, 0.0, 0.0)
