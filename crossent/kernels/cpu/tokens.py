"""What a row says of its label: the log-probability, the normaliser (lse), the entropy and the label's rank.

The classes of a row lie side by side and are read once, as in `along`, with the same first guess of the peak.
"""

import math
from collections import namedtuple

import numpy as np

from crossent.kernels.cpu import rows, rules, vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import capped, exp, through_cap
from crossent.kernels.cpu.rows import LABELS

_Label = namedtuple("_Label", "storage own peak cap")  # `own`: the label's logit in every lane


@inline
def _add_whole(label, row, lo, hi, earlier, sums):
    storage, zero = label.storage, v.splat(label.storage, 0.0)
    others, dot, above, top = sums
    part, part_dot = zero, zero
    for j in range(lo, hi, v.lanes(storage)):
        v.prefetch(storage, row, j)
        z = capped(storage, v.load(storage, row, j), label.cap)
        top = v.max(z, top)
        above = above + rows.ahead(storage, z, label.own, earlier)
        z = z - label.peak
        e = exp(storage, z)
        part = part + e
        part_dot = part_dot + v.select(v.eq(e, zero), zero, e * z)
    return others + part, dot + part_dot, above, top


@inline
def _add_part(label, row, j, within, lane, sums):
    storage, zero = label.storage, v.splat(label.storage, 0.0)
    others, dot, above, top = sums
    z = rows.masked_logits(storage, row, j, within, label.cap)
    top = v.max(z, top)
    above = above + rows.ahead_in_label_vector(storage, z, label.own, lane)
    z = z - label.peak
    e = exp(storage, z)
    others = others + v.select(v.all_but(storage, lane), e, zero)
    return others, dot + v.select(v.eq(e, zero), zero, e * z), above, top


@inline
def _sums(call, storage, row, label, own, peak):
    """The sum of exp(z - peak) over all classes but the label, the sum of exp(z - peak) * (z - peak) over all classes,
    the number of classes ahead of the label, and the largest z.
    """
    zero = v.splat(storage, 0.0)
    sums, view = (zero, zero, zero, v.splat(storage, -np.inf)), _Label(storage, own, peak, call.cap)
    others, dot, above, top = rows.walk(view, row, call.classes, label, _add_whole, _add_part, sums)
    others, dot, above = v.reduce_sum(others), v.reduce_sum(dot), v.reduce_sum(above)
    return np.float64(others), np.float64(dot), np.float64(above), np.float64(v.reduce_max(top))


@inline
def _write_stats(call, storage, r, place, label):
    if label < 0:
        return
    compute, row = call.compute, rows.logits_of(call, place)
    own, own_lanes, peak = rows.first_peak(call, storage, row, label, call.cap)
    others, dot, above, top = _sums(call, storage, row, label, own_lanes, peak)
    if rows.out_of_headroom(top, peak):
        peak = top
        others, dot, above, top = _sums(call, storage, row, label, own_lanes, peak)
    own_exp = rows.exp_relative(own, peak)
    total = others + own_exp
    v.store_scalar(compute, call.logprob, r, -rows.scalar_nll(others, own_exp, peak - own))
    v.store_scalar(compute, call.lse, r, peak + math.log(total))
    v.store_scalar(compute, call.entropy, r, rules.entropy_of(math.log(total), dot, total))
    v.store_scalar(LABELS, call.rank, r, np.int64(above))


def forward(call, scratch, lo, hi, outcome):
    """Rows lo to hi; nothing is written for ignored rows."""
    return rows.visit(call, lo, hi, outcome, _write_stats)


@inline
def _number_of(call, address, r):
    """What row r has in the array at an address; 0 if there is no array."""
    return np.float64(v.load_scalar(call.compute, address, r)) if address != 0 else 0.0


@inline
def _write_gradient(call, storage, row, drow, lse, entropy, upstream):
    """Write the gradient of a row; the label's own entry is overwritten later."""
    classes, cap = call.classes, call.cap
    dlogprob, dlse, dentropy = upstream
    zero, entropy = v.splat(storage, 0.0), v.splat(storage, entropy)
    dlogprob, dlse, dentropy = v.splat(storage, dlogprob), v.splat(storage, dlse), v.splat(storage, dentropy)
    for j in range(0, classes, v.lanes(storage)):
        v.prefetch(storage, row, j)
        within = v.first_n(storage, classes - j)
        z = rows.masked_logits(storage, row, j, within, cap)
        log_p = z - lse
        p = exp(storage, log_p)
        log_p = v.select(v.eq(p, zero), zero, log_p)
        d = rules.token_grad(p, log_p, entropy, dlogprob, dlse, dentropy)
        v.store_masked(storage, drow, j, within, through_cap(d, z, cap))


@inline
def _differentiate(call, storage, r, place, label):
    row, drow = rows.logits_of(call, place), v.at(storage, call.dx, rows.offset(place, call.dx_outer, call.dx_inner))
    if label < 0:
        rows.fill_zero(storage, drow, call.classes)
        return
    own = rows.load_logit(storage, row, label, call.cap)
    lse, entropy, logprob = (
        _number_of(call, call.lse, r), _number_of(call, call.entropy, r), _number_of(call, call.logprob, r)
    )  # fmt: skip
    dlogprob, dlse, dentropy = (
        _number_of(call, call.dlogprob, r), _number_of(call, call.dlse, r), _number_of(call, call.dentropy, r)
    )  # fmt: skip
    _write_gradient(call, storage, row, drow, lse, entropy, (dlogprob, dlse, dentropy))
    # At the label it is made from the label's log-probability: so 1 - p keeps its digits.
    d = rules.token_grad(math.exp(logprob), logprob, entropy, 0.0, dlse, dentropy) - math.expm1(logprob) * dlogprob
    v.store_scalar(storage, drow, label, through_cap(d, own, call.cap))


def backward(call, scratch, lo, hi, outcome):
    """Rows lo to hi: write the gradient, made from forward's results; dx may be x. Ignored rows get zeros."""
    return rows.visit(call, lo, hi, outcome, _differentiate)
