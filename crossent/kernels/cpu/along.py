"""Rows whose classes lie side by side: vectors run along a row, one row after the other.

The logits are read from memory once. Without soft targets and smoothing, the sums are made block by block
(`exponentials`). With them, every class has a target weight. The sums are then relative to a `peak` known before the
pass: the larger of the label's logit and the maximum of the row's first logits. So the maximum and the sums need only
one pass. If a later logit is so far above the peak that the sums could overflow, the row is passed again with its true
maximum.

The sums of up to `TILE` rows go to a `State` in the scratch memory. From there, `epilogue` makes the losses and the
factors of the gradients of all these rows together.
"""

from collections import namedtuple

import numpy as np

from crossent.kernels.cpu import exponentials, rows, rules, state as st, vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.epilogue import losses_of, prepare_gradients
from crossent.kernels.cpu.math import capped, exp, through_cap
from crossent.kernels.cpu.rows import BLOCK, LOOKED_AT, OK

# Rows whose losses are computed together. One by one they take 28 % longer
# (`python -m benchmarks --case '4096 x 1000'`).
TILE = 16
_GROUP = 4096  # logits in a group of rows, whose sums are made together
# A row in which every class has a target: the addresses of its probabilities and of the class weights (0 for none), its
# label, what its loss depends on, and the peak.
_Dense = namedtuple("_Dense", "storage compute soft weight classes all_classes label cap smoothing peak")
# The addresses for the row's gradient and for that of its probabilities, and what both are made with.
_Gradient = namedtuple("_Gradient", "drow dsoft cost factor scaled")


# Sums over the classes where every class has a target.


@inline
def _load(storage, address, j, within, whole, absent):
    """A vector of probabilities or class weights: `absent` in every lane if there are none, 0 in lanes not read."""
    if address == 0:
        return v.splat(storage, absent)
    return v.load(storage, address, j) if whole else v.load_masked(storage, address, j, within, v.splat(storage, 0.0))


@inline
def _add_dense(dense, row, j, within, whole, sums):
    """Add the vector at j to the sums of `_sums_of_dense`; `whole` says that all its lanes are within the row."""
    storage, zero = dense.storage, v.splat(dense.storage, 0.0)
    total, mass, dot, top = sums
    v.prefetch(storage, row, j)
    if whole:
        z = capped(storage, v.load(storage, row, j), dense.cap)
    else:
        z = rows.masked_logits(storage, row, j, within, dense.cap)
    top = v.max(z, top)
    z = z - dense.peak
    total = total + v.select(v.all_but(storage, dense.label - j), exp(storage, z), zero)
    w = _load(dense.compute, dense.weight, j, within, whole, 1.0)
    t = _load(storage, dense.soft, j, within, whole, 0.0)
    q = rules.target_weight(t, w, 1.0, dense.smoothing, np.float64(dense.all_classes))
    if not whole:
        q = v.select(within, q, zero)
    return total, mass + q, dot + v.select(v.eq(q, zero), zero, q * z), top


@inline
def _with_block(sums, block):
    total, mass, dot, _ = sums
    part, part_mass, part_dot, top = block
    return total + part, mass + part_mass, dot + part_dot, top


@inline
def _add_whole(dense, row, lo, hi, earlier, sums):
    storage, zero, (_, _, _, top) = dense.storage, v.splat(dense.storage, 0.0), sums
    block, width = (zero, zero, zero, top), v.lanes(storage)
    for j in range(lo, hi, width):
        block = _add_dense(dense, row, j, v.first_n(storage, width), True, block)
    return _with_block(sums, block)


@inline
def _add_part(dense, row, j, within, lane, sums):
    zero, (_, _, _, top) = v.splat(dense.storage, 0.0), sums
    return _with_block(sums, _add_dense(dense, row, j, within, False, (zero, zero, zero, top)))


@inline
def _sums_of_dense(dense, row):
    """The sum of exp(z - peak) over all classes but the label (-1 for none), the sums of q and of q * (z - peak) over
    all classes, for keep = 1, and the largest z.
    """
    zero = v.splat(dense.storage, 0.0)
    sums = zero, zero, zero, v.splat(dense.storage, -np.inf)
    total, mass, dot, top = rows.walk(dense, row, dense.classes, -1, _add_whole, _add_part, sums)
    total, mass, dot = v.reduce_sum(total), v.reduce_sum(mass), v.reduce_sum(dot)
    return np.float64(total), np.float64(mass), np.float64(dot), np.float64(v.reduce_max(top))


@inline
def _dense(call, storage, soft, label, peak):
    return _Dense(
        storage, call.compute, soft, call.weight, call.classes, call.all_classes, label, call.cap, call.smoothing, peak
    )


@inline
def _safe_sums_of_dense(call, storage, row, soft, label, guess):
    """The peak, and relative to it the others' sum, the mass and the dot of a row. `guess` is the first peak tried."""
    peak = rows.finite_peak(guess)
    others, mass, dot = 0.0, 0.0, 0.0
    for _ in range(2):
        others, mass, dot, top = _sums_of_dense(_dense(call, storage, soft, label, peak), row)
        if not rows.out_of_headroom(top, peak):
            break
        peak = top
    return peak, others, mass, dot


# What is known of a row.


@inline
def read_row(call, r, place):
    """A row's weight, whether its label is bad, the number of its label among these classes, -1 if it is not one of
    them, and the address of its probabilities or 0.
    """
    if call.is_soft != 0:
        where = rows.offset(place, call.target_outer, call.target_inner)
        return rows.sample_weight_of(call, r), False, -1, v.at(call.storage, call.target, where)
    label = rows.label_of(call, place)
    keep = rows.keep_of(call, r, label)
    bad, label = keep != 0.0 and (label < 0 or label >= call.all_classes), label - call.first_class
    return keep, bad, label if 0 <= label < call.classes else -1, 0


@inline
def clear(call, state):
    """Set the weight of every lane to 0: lanes that get no row must not count."""
    for which in (st.KEEP, st.WEIGHT):
        rows.fill_zero(call.compute, st.array(state, which), state.rows)


@inline
def _store_row(call, state, k, keep, label, sums):
    own, peak, others = sums
    st.store_one(state, st.KEEP, k, keep)
    st.store_one(state, st.PEAK, k, peak)
    st.store_one(state, st.OTHERS, k, others)
    if call.weight != 0:
        st.store_one(state, st.WEIGHT, k, rows.class_weight_of(call, label) if label >= 0 else 1.0)
    st.store_one(state, st.OWN, k, own - peak if label >= 0 else 0.0)


@inline
def own_exponentials(call, state, n):
    for j in range(0, n, v.lanes(call.storage)):
        if call.is_soft != 0:
            st.store(state, st.OWN_EXP, j, v.splat(call.storage, 0.0))
        else:
            st.store(state, st.OWN_EXP, j, exp(call.storage, st.load(state, st.OWN, j)))


@inline
def _dx_of(call, place):
    outer, _, inner = rows.strides_of_dx(call)
    return v.at(call.storage, call.dx, rows.offset(place, outer, inner))


@inline
def _kept_of(call, state, k, drow):
    """The addresses where the exponentials of row k are kept, and the maxima of its blocks."""
    blocks = (call.classes + BLOCK - 1) // BLOCK
    tops = v.at(rows.DOUBLES, state.address + call.tops_at, k * blocks)
    return drow if call.kept_at == 0 else v.at(call.compute, state.address + call.kept_at, k * call.classes), tops


@inline
def make_sums(call, state, first, n, group, keeps, kept):
    """Write the sums of n rows to the state, for the epilogue. Returns the number of a row with a bad label, or OK.

    `keeps` keeps the exponentials too. `kept` says that the sums are in `stats`, where forward wrote them.
    """
    storage, classes, cap = state.storage, call.classes, call.cap
    dense, ahead = call.is_soft != 0 or call.smoothing > 0.0, BLOCK if group == 1 else group * call.x_inner
    clear(call, state)
    # All maxima first: an exponential right after its maximum would wait for it. This saves 6 % of an evaluation
    # (`python -m benchmarks --case '4096 x 1000'`).
    for k in range(n):
        place = rows.place_of(call, first + k)
        keep, bad, _, _ = read_row(call, first + k, place)
        if bad:
            return first + k
        if keep != 0.0 and not kept:
            looked_at = min(classes, LOOKED_AT if dense else BLOCK)
            st.store_one(state, st.PEAK, k, rows.largest(storage, rows.logits_of(call, place), looked_at, cap))
    for k in range(n):
        place = rows.place_of(call, first + k)
        keep, _, label, soft = read_row(call, first + k, place)
        if keep == 0.0:
            continue
        row, top = rows.logits_of(call, place), st.load_one(state, st.PEAK, k)
        own = rows.load_logit(storage, row, label, cap) if label >= 0 else -np.inf
        if kept:
            peak, others = load_kept(call, 0, first + k), load_kept(call, 1, first + k)
            if call.is_soft != 0:
                st.store_one(state, st.MASS, k, load_kept(call, 2, first + k))
        elif dense:
            peak, others, mass, dot = _safe_sums_of_dense(call, storage, row, soft, label, max(own, top))
            st.store_one(state, st.MASS, k, mass)
            st.store_one(state, st.DOT, k, dot)
        else:
            kept_at = 0, 0
            if keeps:
                kept_at = _kept_of(call, state, k, _dx_of(call, place))
            peak, others = exponentials.sum_of_row(call, storage, row, label, top, kept_at, ahead)
        _store_row(call, state, k, keep, label, (own, peak, others))
    own_exponentials(call, state, n)
    return OK


@inline
def load_kept(call, which, r):
    """A number of row r from `stats`."""
    return np.float64(v.load_scalar(call.compute, call.stats, which * call.rows + r))


@inline
def _keep_sums(call, state, first, n):
    """Write to `stats` what backward needs."""
    compute, stats = call.compute, call.stats
    for j in range(0, n, v.lanes(call.storage)):
        within, r = v.first_n(call.storage, n - j), first + j
        v.store_masked(compute, stats, r, within, st.load(state, st.PEAK, j))
        v.store_masked(compute, stats, call.rows + r, within, st.load(state, st.OTHERS, j))
        if call.is_soft != 0:
            v.store_masked(compute, stats, 2 * call.rows + r, within, st.load(state, st.MASS, j))


# The kernels.


def rows_in_group(classes):
    """So few rows that exponentials kept in dx are still in the core's own cache when the sums are known."""
    return max(1, min(TILE, _GROUP // max(1, classes)))


group_of = inline(rows_in_group)


def scratch_bytes(classes, itemsize, keeps):
    """The scratch bytes of forward and of backward, and the offsets in these at which backward keeps maxima and
    exponentials: 0 where it keeps none there.
    """
    state = st.ARRAYS * TILE * max(4, itemsize)
    if not keeps:
        return (state, state), (0, 0)
    group = rows_in_group(classes)
    end = state + 8 * group * -(-classes // BLOCK)
    kept = 4 * group * classes if itemsize == 2 else 0  # in a dx of 16 bits they would be rounded twice
    return (state, end + kept), (state, end if kept else 0)


def forward(call, scratch, lo, hi, outcome):
    """Rows lo to hi: write losses and what backward needs."""
    state = st.State(call.storage, call.compute, scratch, call.tile)
    group, chunk = group_of(call.classes), rows.NO_SUMS
    for first in range(lo, hi, group):
        n = min(group, hi - first)
        bad = make_sums(call, state, first, n, group, False, False)
        if bad != OK:
            return rows.refuse(outcome, bad)
        losses, weights = losses_of(call, state, n, first)
        chunk = rows.added(chunk, losses, weights)
        if call.stats != 0:
            _keep_sums(call, state, first, n)
    return rows.finish(outcome, chunk)


@inline
def _write_plain(call, storage, row, drow, peak, factor):
    """Write the gradient of a row in which only the label has a target, for all classes but the label."""
    classes, zero, scale = call.classes, v.splat(storage, 0.0), v.splat(storage, factor)
    width, past_caches = v.lanes(storage), rows.passes_caches(call.large, drow) and drow != row
    full = classes // width * width
    for j in range(0, full, width):
        v.prefetch(storage, row, j)
        e = exp(storage, v.load(storage, row, j) - peak)
        rows.store_or_stream(storage, drow, j, rules.class_grad(e, zero, scale), past_caches)
    if full < classes:
        within = v.first_n(storage, classes - full)
        e = exp(storage, v.load_masked(storage, row, full, within, zero) - peak)
        v.store_masked(storage, drow, full, within, rules.class_grad(e, zero, scale))


@inline
def _write_dense(dense, gradient, row):
    """Write the gradient of a row for any options, and that of its probabilities if it is wanted."""
    storage, width, classes = dense.storage, v.lanes(dense.storage), dense.classes
    drow, dsoft, cost, factor, scaled = gradient
    for j in range(0, classes, width):
        v.prefetch(storage, row, j)
        within = v.first_n(storage, classes - j)
        logits = capped(storage, v.load_masked(storage, row, j, within, v.splat(storage, 0.0)), dense.cap)
        z, q = logits - dense.peak, v.splat(storage, 0.0)
        e = exp(storage, z)
        if dense.soft != 0 or dense.smoothing > 0.0:
            w = _load(dense.compute, dense.weight, j, within, False, 1.0)
            t = _load(storage, dense.soft, j, within, False, 0.0)
            q = rules.target_weight(t, w, scaled, dense.smoothing, np.float64(dense.all_classes))
            if dsoft != 0:
                dt = rules.target_grad(cost, z, w, scaled, dense.smoothing)
                v.store_masked(storage, dsoft, j, within, dt)
        d = through_cap(rules.class_grad(e, q, factor), logits, dense.cap)
        v.store_masked(storage, drow, j, within, d)


@inline
def write_gradient(call, state, r, k, plain, keeps):
    """Write the gradient of row r, which is row k of `state`."""
    storage, classes, cap, place = state.storage, call.classes, call.cap, rows.place_of(call, r)
    row, drow = rows.logits_of(call, place), _dx_of(call, place)
    keep, _, label, soft = read_row(call, r, place)
    dsoft = 0
    if call.dtarget != 0:
        dsoft = v.at(storage, call.dtarget, rows.offset(place, call.new_outer, call.new_inner))
    if keep == 0.0:
        rows.fill_zero(storage, drow, classes)
        if dsoft != 0:
            rows.fill_zero(storage, dsoft, classes)
        return
    own = rows.load_logit(storage, row, label, cap) if label >= 0 else 0.0
    peak, factor = st.load_one(state, st.PEAK, k), st.load_one(state, st.FACTOR, k)
    if keeps:
        kept, tops = _kept_of(call, state, k, drow)
        exponentials.scale_kept(call, kept, tops, drow, peak, factor)
    elif plain:
        _write_plain(call, storage, row, drow, peak, factor)
    else:
        cost, scaled = st.load_one(state, st.COST, k), st.load_one(state, st.SCALED, k)
        _write_dense(_dense(call, storage, soft, label, peak), _Gradient(drow, dsoft, cost, factor, scaled), row)
    if label >= 0:
        v.store_scalar(storage, drow, label, through_cap(st.load_one(state, st.LABEL_GRAD, k), own, cap))


def backward(call, scratch, lo, hi, outcome):
    """Rows lo to hi: write the gradient of scale * dloss * loss; dx may be x.

    Without `stats` the sums are made again, and the losses too if `with_loss` is set. If there is room for the blocks'
    maxima, the exponentials are then kept, in dx or in the scratch memory, and the gradient is made from them.
    """
    state = st.State(call.storage, call.compute, scratch, call.tile)
    group, chunk = group_of(call.classes), rows.NO_SUMS
    plain = call.is_soft == 0 and call.smoothing == 0.0 and call.cap == 0.0
    keeps = call.tops_at != 0 and call.stats == 0
    for first in range(lo, hi, group):
        n = min(group, hi - first)
        bad = make_sums(call, state, first, n, group, keeps, call.stats != 0)
        if bad != OK:
            return rows.refuse(outcome, bad)
        if call.with_loss != 0:
            losses, weights = losses_of(call, state, n, first)
            chunk = rows.added(chunk, losses, weights)
        prepare_gradients(call, state, n, first, plain)
        for k in range(n):
            write_gradient(call, state, first + k, k, plain, keeps)
    return rows.finish(outcome, chunk)
