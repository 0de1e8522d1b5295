"""What a row says of its label: the log-probability, the normaliser (lse), the entropy and the label's rank.

The classes of a row lie side by side and are read once, as in `along`, with the same first guess of the peak.

Of one shard of the classes, `label_logits` and `sums` write what is put together with the other shards'. There a label
is its number among the shard's classes, -1 if it comes before them and their count if it comes after them.
"""

import math
from collections import namedtuple

import numpy as np

from crossent.kernels.cpu import rows, rules, vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import capped, exp, through_cap
from crossent.kernels.cpu.rows import LABELS

# `own` is the label's logit in every lane; `apart` says that the label is left out of the sum `dot` as well.
_Label = namedtuple("_Label", "storage own peak cap apart")
SUMS = "peak", "others", "dot", "ahead"


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
    rest = v.select(v.all_but(storage, lane), e, zero)
    if label.apart:
        e = rest
    return others + rest, dot + v.select(v.eq(e, zero), zero, e * z), above, top


@inline
def _sums(call, row, label, view):
    """The sum of exp(z - peak) over all classes but the label, the sum of exp(z - peak) * (z - peak) over all classes
    or all but the label, the number of classes ahead of the label, and the largest z.
    """
    zero = v.splat(view.storage, 0.0)
    sums = zero, zero, zero, v.splat(view.storage, -np.inf)
    others, dot, above, top = rows.walk(view, row, call.classes, label, _add_whole, _add_part, sums)
    others, dot, above = v.reduce_sum(others), v.reduce_sum(dot), v.reduce_sum(above)
    return np.float64(others), np.float64(dot), np.float64(above), np.float64(v.reduce_max(top))


@inline
def _safe_sums(call, storage, row, label, own, peak, apart):
    """The peak, and relative to it the first three of `_sums`. `peak` is the first one tried."""
    others, dot, above, top = _sums(call, row, label, _Label(storage, own, peak, call.cap, apart))
    if rows.out_of_headroom(top, peak):
        peak = top
        others, dot, above, top = _sums(call, row, label, _Label(storage, own, peak, call.cap, apart))
    return peak, others, dot, above


@inline
def _write_stats(call, storage, r, place, label):
    if label < 0:
        return
    compute, row = call.compute, rows.logits_of(call, place)
    own, own_lanes, guess = rows.first_peak(call, storage, row, label, call.cap)
    peak, others, dot, above = _safe_sums(call, storage, row, label, own_lanes, guess, False)
    own_exp = math.exp(own - peak)  # nan if both are inf
    total, nll = others + own_exp, rows.scalar_nll(others, own_exp, peak - own)
    # A confident row's peak is the label's logit. Its nll has digits that the logarithm of nearly 1 has lost.
    log_total = nll if own == peak and others <= own_exp else math.log(total)
    v.store_scalar(compute, call.logprob, r, -nll)
    v.store_scalar(compute, call.lse, r, peak + log_total)
    v.store_scalar(compute, call.entropy, r, rules.entropy_of(log_total, dot, total))
    v.store_scalar(LABELS, call.rank, r, np.int64(above))


def forward(call, scratch, lo, hi, outcome):
    """Rows lo to hi; nothing is written for ignored rows."""
    return rows.visit(call, lo, hi, outcome, _write_stats)


# Of one shard of the classes.


def label_logits(call, scratch, lo, hi, outcome):
    """Rows lo to hi: write the label's logit to `own`, if it is among these classes."""
    storage = call.storage
    for r in range(lo, hi):
        place = rows.place_of(call, r)
        label = rows.label_of(call, place)
        if not rows.is_no_class(call, label):
            own = rows.in_every_lane(storage, rows.logits_of(call, place), label, call.cap)
            v.store_scalar(call.compute, call.own, r, np.float64(v.reduce_max(own)))
    return rows.finish(outcome, rows.NO_SUMS)


@inline
def _write_sums(call, storage, r, place, label):
    row, own = rows.logits_of(call, place), np.float64(v.load_scalar(call.compute, call.own, r))
    guess = rows.finite_peak(max(own, rows.largest(storage, row, min(call.classes, rows.LOOKED_AT), call.cap)))
    sums = _safe_sums(call, storage, row, label, v.splat(storage, own), guess, True)
    for which, value in enumerate(sums):
        v.store_scalar(call.compute, call.stats, which * call.rows + r, value)


def sums(call, scratch, lo, hi, outcome):
    """Rows lo to hi: write SUMS to `stats`, arrays of one number for each row. `own` has the logits of the labels.

    They are `crossent.kernels.TokenSums`.
    """
    for r in range(lo, hi):
        place = rows.place_of(call, r)
        _write_sums(call, call.storage, r, place, rows.label_of(call, place))
    return rows.finish(outcome, rows.NO_SUMS)


# The gradient.


@inline
def _number_of(call, address, r):
    """What row r has in the array at an address; 0 if there is no array."""
    return np.float64(v.load_scalar(call.compute, address, r)) if address != 0 else 0.0


@inline
def _write_gradient(call, storage, row, drow, lse, entropy, upstream):
    """Write the gradient of a row; the label's own entry, if it has one, is overwritten later."""
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
    if label == call.ignore_index:
        rows.fill_zero(storage, drow, call.classes)
        return
    here = not rows.is_no_class(call, label)
    own = rows.load_logit(storage, row, label, call.cap) if here else 0.0
    lse, entropy, logprob = (
        _number_of(call, call.lse, r), _number_of(call, call.entropy, r), _number_of(call, call.logprob, r)
    )  # fmt: skip
    dlogprob, dlse, dentropy = (
        _number_of(call, call.dlogprob, r), _number_of(call, call.dlse, r), _number_of(call, call.dentropy, r)
    )  # fmt: skip
    _write_gradient(call, storage, row, drow, lse, entropy, (dlogprob, dlse, dentropy))
    if here:
        # At the label it is made from the label's log-probability: so 1 - p keeps its digits.
        d = rules.token_grad(math.exp(logprob), logprob, entropy, 0.0, dlse, dentropy) - math.expm1(logprob) * dlogprob
        v.store_scalar(storage, drow, label, through_cap(d, own, call.cap))


def backward(call, scratch, lo, hi, outcome):
    """Rows lo to hi: write the gradient, made from forward's results; dx may be x. Ignored rows get zeros.

    A label that is not among these classes has no entry in the row.
    """
    for r in range(lo, hi):
        place = rows.place_of(call, r)
        _differentiate(call, call.storage, r, place, rows.label_of(call, place))
    return rows.finish(outcome, rows.NO_SUMS)
