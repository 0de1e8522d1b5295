"""What a label's row says of it: its log-probability, the normaliser, the entropy and the label's rank.

Rows lie along their classes and are read once, as in `along`, whose peak and headroom are used here too.
"""

import math

import numpy as np

from crossent.kernels.cpu import rules, vector as v
from crossent.kernels.cpu.along import LOOKED_AT, out_of_headroom
from crossent.kernels.cpu.blocks import BLOCK, masked_logits, row_max
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import capped, exp
from crossent.kernels.cpu.row import (
    LABELS,
    OK,
    ahead,
    ahead_in_label_vector,
    exp_relative,
    finish,
    finite_peak,
    load_logit,
    scalar_nll,
)


@inline
def _scan(storage, row, lo, hi, own, earlier, peak, cap, others, dot, above, top):
    """Add the classes lo to hi, which fill their vectors, to what `_walk` sums; `earlier` if the label follows them."""
    zero = v.splat(storage, 0.0)
    while lo < hi:
        stop = min(lo + BLOCK, hi)
        part, part_dot = zero, zero
        for j in range(lo, stop, v.lanes(storage)):
            v.prefetch(storage, row, j)
            z = capped(storage, v.load(storage, row, j), cap)
            top = v.max(z, top)
            above = above + ahead(storage, z, own, earlier)
            z = z - peak
            e = exp(storage, z)
            part = part + e
            part_dot = part_dot + v.select(v.eq(e, zero), zero, e * z)
        others, dot = others + part, dot + part_dot
        lo = stop
    return others, dot, above, top


@inline
def _walk(storage, row, classes, label, own, peak, cap):
    """The sums of exp(z - peak) over the others and of exp(z - peak) * (z - peak) over all, the count of the classes
    ahead of the label, and the largest z.
    """
    width, zero = v.lanes(storage), v.splat(storage, 0.0)
    full, special = classes // width * width, label // width * width
    others, dot, above, top = zero, zero, zero, v.splat(storage, -np.inf)
    lo, hi, apart = 0, min(special, full), special
    for turn in range(2):
        others, dot, above, top = _scan(storage, row, lo, hi, own, turn == 0, peak, cap, others, dot, above, top)
        if apart < classes:  # the label's vector, and after it one that is not full
            z = masked_logits(storage, row, apart, v.first_n(storage, classes - apart), cap)
            top = v.max(z, top)
            above = above + ahead_in_label_vector(storage, z, own, label - apart)
            z = z - peak
            e = exp(storage, z)
            others = others + v.select(v.all_but(storage, label - apart), e, zero)
            dot = dot + v.select(v.eq(e, zero), zero, e * z)
        if special == full:
            break
        lo, hi, apart = special + width, full, full
    sums = v.reduce_sum(others), v.reduce_sum(dot), v.reduce_sum(above), v.reduce_max(top)
    return np.float64(sums[0]), np.float64(sums[1]), np.float64(sums[2]), np.float64(sums[3])


def forward(call, scratch, lo, hi, sums):
    """Rows lo to hi; nothing is written for those that are ignored."""
    storage, compute, classes, cap = call.storage, call.compute, call.classes, call.cap
    for r in range(lo, hi):
        label = v.load_scalar(LABELS, call.target, r * call.target_inner)
        if label == call.ignore_index:
            continue
        if label < 0 or label >= classes:
            return finish(sums, r, 0.0, 0.0)
        row = v.at(storage, call.x, r * call.x_inner)
        own = load_logit(storage, row, label, cap)
        guess = row_max(storage, row, min(classes, LOOKED_AT), cap)
        peak = finite_peak(max(own, guess))
        # As the vectors cap it, so that equal logits stay equal.
        own_lanes = capped(storage, v.splat(storage, v.load_scalar(storage, row, label)), cap)
        others, dot, above, top = _walk(storage, row, classes, label, own_lanes, peak, cap)
        if out_of_headroom(top, peak):
            peak = top
            others, dot, above, top = _walk(storage, row, classes, label, own_lanes, peak, cap)
        own_exp = exp_relative(own, peak)
        total = others + own_exp
        v.store_scalar(compute, call.logprob, r, -scalar_nll(others, own_exp, peak - own))
        v.store_scalar(compute, call.lse, r, peak + math.log(total))
        v.store_scalar(compute, call.entropy, r, rules.entropy_of(math.log(total), dot, total))
        v.store_scalar(LABELS, call.rank, r, np.int64(above))
    return finish(sums, OK, 0.0, 0.0)


@inline
def _upstream(storage, address, row):
    return np.float64(v.load_scalar(storage, address, row)) if address != 0 else 0.0


def backward(call, scratch, lo, hi, sums):
    """Rows lo to hi of the gradient, from the results; dx may be x. Those that are ignored get zeros."""
    storage, compute, classes, cap = call.storage, call.compute, call.classes, call.cap
    width, zero = v.lanes(storage), v.splat(storage, 0.0)
    for r in range(lo, hi):
        label = v.load_scalar(LABELS, call.target, r * call.target_inner)
        row, drow = v.at(storage, call.x, r * call.x_inner), v.at(storage, call.dx, r * call.dx_inner)
        if label == call.ignore_index:
            for j in range(0, classes, width):
                v.store_masked(storage, drow, j, v.first_n(storage, classes - j), zero)
            continue
        if label < 0 or label >= classes:
            return finish(sums, r, 0.0, 0.0)
        own = load_logit(storage, row, label, cap)
        lse, entropy = (
            np.float64(v.load_scalar(compute, call.lse, r)),
            np.float64(v.load_scalar(compute, call.entropy, r)),
        )
        logprob = np.float64(v.load_scalar(compute, call.logprob, r))
        dlogprob = _upstream(compute, call.dlogprob, r)
        dlse, dentropy = _upstream(compute, call.dlse, r), _upstream(compute, call.dentropy, r)
        for j in range(0, classes, width):
            v.prefetch(storage, row, j)
            within = v.first_n(storage, classes - j)
            z = masked_logits(storage, row, j, within, cap)
            log_p = z - lse
            p = exp(storage, log_p)
            log_p = v.select(v.eq(p, zero), zero, log_p)
            d = rules.token_grad(
                p,
                log_p,
                v.splat(storage, entropy),
                v.splat(storage, dlogprob),
                v.splat(storage, dlse),
                v.splat(storage, dentropy),
            )
            if cap > 0.0:
                d = d * rules.softcap_slope(z, cap)
            v.store_masked(storage, drow, j, within, d)
        # At the label from its own log-probability: 1 - p keeps its digits.
        p = math.exp(logprob)
        d = rules.token_grad(p, logprob, entropy, 0.0, dlse, dentropy) - math.expm1(logprob) * dlogprob
        v.store_scalar(storage, drow, label, d * rules.softcap_slope(own, cap) if cap > 0.0 else d)
    return finish(sums, OK, 0.0, 0.0)
