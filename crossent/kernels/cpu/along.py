"""Rows whose classes lie side by side: vectors run along a row, one row after the other.

The logits are read from memory once. Without soft targets and smoothing the sums go block by block (`blocks`). Where
these give every class a weight, the sums are taken relative to a `peak` known before the pass (the larger of the
label's logit and the maximum of the first few), so maximum and sums need one pass; where a later logit turns out more
than `_HEADROOM` above the peak, which would endanger the sums, the row is passed again with the true maximum.

What is found of up to `TILE` rows goes to arrays at `state`, the scratch memory, from which their losses and the
factors of their gradients follow for all at once (`epilogue`).
"""

import numpy as np

from crossent.kernels.cpu import blocks, rules, vector as v
from crossent.kernels.cpu.blocks import BLOCK, masked_logits
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.epilogue import (
    ARRAYS,
    COST,
    DOT,
    FACTOR,
    KEEP,
    LABEL_GRAD,
    MASS,
    OTHERS,
    OWN,
    OWN_EXP,
    PEAK,
    WEIGHT,
    array,
    losses_of,
    prepare_gradients,
)
from crossent.kernels.cpu.math import capped, exp
from crossent.kernels.cpu.row import (
    DOUBLES,
    LABELS,
    OK,
    finish,
    finite_peak,
    load_logit,
    neumaier_add,
    neumaier_total,
    passes_caches,
    sample_weight_of,
    store_or_stream,
    strides_of_dx,
)

TILE = 16  # rows whose losses are found together
_AT_ONCE = 4096  # numbers
LOOKED_AT = 64  # numbers that a first guess of the maximum is made of; what follows is guarded by the headroom
_HEADROOM = 60.0  # exp(60) times 2**31 classes is still finite in float32


@inline
def out_of_headroom(top, peak):
    """Whether sums relative to `peak` are in danger, and the row is to be passed again relative to `top`."""
    return top > peak + _HEADROOM


@inline
def _read(storage, address, j, within, whole, absent):
    """Target probabilities or class weights: `absent` where there are none, 0 in the lanes that are not read."""
    if address == 0:
        return v.splat(storage, absent)
    return v.load(storage, address, j) if whole else v.load_masked(storage, address, j, within, v.splat(storage, 0.0))


@inline
def _scan_dense(storage, compute, row, soft, weight, lo, hi, whole, label, peak, cap, smoothing, classes, total, mass,
                dot, top):  # fmt: skip
    """Add the classes lo to hi to what `_walk_dense` sums; `whole` if they fill their vectors."""
    zero = v.splat(storage, 0.0)
    part, part_mass, part_dot = zero, zero, zero
    for j in range(lo, hi, v.lanes(storage)):
        v.prefetch(storage, row, j)
        within = v.first_n(storage, hi - j)
        z = capped(storage, v.load(storage, row, j), cap) if whole else masked_logits(storage, row, j, within, cap)
        top = v.max(z, top)
        z = z - peak
        part = part + v.select(v.all_but(storage, label - j), exp(storage, z), zero)
        w = _read(compute, weight, j, within, whole, 1.0)
        q = rules.target_weight(_read(storage, soft, j, within, whole, 0.0), w, 1.0, smoothing, np.float64(classes))
        if not whole:
            q = v.select(within, q, zero)
        part_mass = part_mass + q
        part_dot = part_dot + v.select(v.eq(q, zero), zero, q * z)
    return total + part, mass + part_mass, dot + part_dot, top


@inline
def _walk_dense(storage, compute, row, soft, weight, classes, label, peak, cap, smoothing):
    """The sum of exp(z - peak) over the classes other than the label, -1 for none, those over all classes of q and of
    q * (z - peak) for keep = 1, and the largest z.
    """
    zero = v.splat(storage, 0.0)
    total, mass, dot, top = zero, zero, zero, v.splat(storage, -np.inf)
    full = classes // v.lanes(storage) * v.lanes(storage)
    for block in range(0, full, BLOCK):
        total, mass, dot, top = _scan_dense(
            storage, compute, row, soft, weight, block, min(block + BLOCK, full), True, label, peak, cap, smoothing,
            classes, total, mass, dot, top,
        )  # fmt: skip
    if full < classes:
        total, mass, dot, top = _scan_dense(
            storage, compute, row, soft, weight, full, classes, False, label, peak, cap, smoothing, classes, total,
            mass, dot, top,
        )  # fmt: skip
    sums = v.reduce_sum(total), v.reduce_sum(mass), v.reduce_sum(dot), v.reduce_max(top)
    return np.float64(sums[0]), np.float64(sums[1]), np.float64(sums[2]), np.float64(sums[3])


@inline
def _dense_sums(call, row, soft, label, own, top):
    """The peak, and relative to it the others' sum, the mass and the dot of a row of which `top` is a first guess."""
    storage, compute, classes, cap, smoothing = call.storage, call.compute, call.classes, call.cap, call.smoothing
    peak = finite_peak(max(own, top))
    others, mass, dot = 0.0, 0.0, 0.0
    for _ in range(2):
        others, mass, dot, top = _walk_dense(
            storage, compute, row, soft, call.weight, classes, label, peak, cap, smoothing
        )
        if not out_of_headroom(top, peak):
            break
        peak = top
    return peak, others, mass, dot


@inline
def _read_row(call, r):
    """What a row counts, whether its label is bad, the label, -1 for none, and where logits and probabilities lie."""
    o = r // call.inner
    i = r - o * call.inner
    keep, label, soft, bad = sample_weight_of(call.compute, call.samples, r), -1, 0, False
    where = o * call.target_outer + i * call.target_inner
    if call.is_soft != 0:
        soft = v.at(call.storage, call.target, where)
    else:
        label = v.load_scalar(LABELS, call.target, where)
        keep = 0.0 if label == call.ignore_index else keep
        bad = keep != 0.0 and (label < 0 or label >= call.classes)
    return keep, bad, label, soft, v.at(call.storage, call.x, o * call.x_outer + i * call.x_inner)


@inline
def _put(call, state, which, k, value):
    v.store_scalar(call.compute, array(call.compute, state, call.tile, which), k, value)


@inline
def _get(call, state, which, k):
    return np.float64(v.load_scalar(call.compute, array(call.compute, state, call.tile, which), k))


@inline
def _clear(call, state):
    """Have no lane count."""
    storage, compute = call.storage, call.compute
    for j in range(0, call.tile, v.lanes(storage)):
        v.store(compute, array(compute, state, call.tile, KEEP), j, v.splat(storage, 0.0))
        if call.weight != 0:
            v.store(compute, array(compute, state, call.tile, WEIGHT), j, v.splat(storage, 0.0))


@inline
def _put_row(call, state, k, keep, label, own, peak, others):
    _put(call, state, KEEP, k, keep)
    _put(call, state, PEAK, k, peak)
    _put(call, state, OTHERS, k, others)
    if call.weight != 0:
        _put(call, state, WEIGHT, k, v.load_scalar(call.compute, call.weight, label) if label >= 0 else 1.0)
    _put(call, state, OWN, k, own - peak if label >= 0 else 0.0)


@inline
def _own_exponentials(call, state, n):
    storage, compute, tile = call.storage, call.compute, call.tile
    owns, own_exps = array(compute, state, tile, OWN), array(compute, state, tile, OWN_EXP)
    for j in range(0, n, v.lanes(storage)):
        e = v.splat(storage, 0.0) if call.is_soft != 0 else exp(storage, v.load(compute, owns, j))
        v.store(compute, own_exps, j, e)


@inline
def _row_of(call, address, strides, r):
    outer, _, inner = strides
    o = r // call.inner
    return v.at(call.storage, address, o * outer + (r - o * call.inner) * inner)


@inline
def _kept_of(call, state, k, drow):
    """Where the exponentials of row k are kept, and its blocks' maxima."""
    blocks = (call.classes + BLOCK - 1) // BLOCK
    tops = v.at(DOUBLES, state + call.tops_at, k * blocks)
    return drow if call.kept_at == 0 else v.at(call.compute, state + call.kept_at, k * call.classes), tops


@inline
def _make_sums(call, state, first, n, at_once, keeps):
    """Hand the sums of n rows to the epilogue; the number of a row whose label is bad, or OK."""
    storage, compute, classes, cap = call.storage, call.compute, call.classes, call.cap
    dense, ahead = call.is_soft != 0 or call.smoothing > 0.0, BLOCK if at_once == 1 else at_once * call.x_inner
    _clear(call, state)
    for k in range(n):  # all maxima before any exponential, which would have to wait for its own
        keep, bad, _, _, row = _read_row(call, first + k)
        if bad:
            return first + k
        if keep != 0.0:
            looked_at = LOOKED_AT if dense else BLOCK
            _put(call, state, PEAK, k, blocks.row_max(storage, row, min(classes, looked_at), cap))
    for k in range(n):
        keep, _, label, soft, row = _read_row(call, first + k)
        if keep == 0.0:
            continue
        own, top = load_logit(storage, row, label, cap) if label >= 0 else -np.inf, _get(call, state, PEAK, k)
        if dense:
            peak, others, mass, dot = _dense_sums(call, row, soft, label, own, top)
            _put(call, state, MASS, k, mass)
            _put(call, state, DOT, k, dot)
        else:
            kept, tops = 0, 0
            if keeps:
                kept, tops = _kept_of(call, state, k, _row_of(call, call.dx, strides_of_dx(call), first + k))
            peak, others = blocks.sum_exp(storage, compute, row, kept, tops, classes, label, cap, top, ahead)
        _put_row(call, state, k, keep, label, own, peak, others)
    _own_exponentials(call, state, n)
    return OK


@inline
def _keep_sums(call, state, first, n):
    """Write what backward needs."""
    storage, compute, stats, tile = call.storage, call.compute, call.stats, call.tile
    for j in range(0, n, v.lanes(storage)):
        within, r = v.first_n(storage, n - j), first + j
        v.store_masked(compute, stats, r, within, v.load(compute, array(compute, state, tile, PEAK), j))
        others = v.load(compute, array(compute, state, tile, OTHERS), j)
        v.store_masked(compute, stats, call.rows + r, within, others)
        if call.is_soft != 0:
            mass = v.load(compute, array(compute, state, tile, MASS), j)
            v.store_masked(compute, stats, 2 * call.rows + r, within, mass)


@inline
def _kept_sums(call, state, first, n):
    """As `_make_sums`, from what forward kept."""
    compute, stats = call.compute, call.stats
    _clear(call, state)
    for k in range(n):
        r = first + k
        keep, bad, label, _, row = _read_row(call, r)
        if bad:
            return r
        if keep == 0.0:
            continue
        own = load_logit(call.storage, row, label, call.cap) if label >= 0 else 0.0
        peak, others = (
            np.float64(v.load_scalar(compute, stats, r)),
            np.float64(v.load_scalar(compute, stats, call.rows + r)),
        )
        if call.is_soft != 0:
            _put(call, state, MASS, k, v.load_scalar(compute, stats, 2 * call.rows + r))
        _put_row(call, state, k, keep, label, own, peak, others)
    _own_exponentials(call, state, n)
    return OK


def rows_at_once(classes):
    """So few that what is written of a gradient is in the nearest cache when the sums are known."""
    return max(1, min(TILE, _AT_ONCE // max(1, classes)))


_rows_at_once = inline(rows_at_once)


def scratch_bytes(classes, itemsize, keeps):
    """What forward and backward need, and where in it maxima and exponentials are kept: 0 where they are not."""
    state = ARRAYS * TILE * max(4, itemsize)
    if not keeps:
        return (state, state), (0, 0)
    rows = rows_at_once(classes)
    end = state + 8 * rows * -(-classes // BLOCK)
    kept = 4 * rows * classes if itemsize == 2 else 0  # what is rounded to 16 bits would be rounded twice
    return (state, end + kept), (state, end if kept else 0)


def forward(call, state, lo, hi, sums):
    """Rows lo to hi: write losses and what backward needs."""
    loss_sum, loss_rest, weight_sum, weight_rest = 0.0, 0.0, 0.0, 0.0
    at_once = _rows_at_once(call.classes)
    for first in range(lo, hi, at_once):
        n = min(at_once, hi - first)
        bad = _make_sums(call, state, first, n, at_once, False)
        if bad != OK:
            return finish(sums, bad, 0.0, 0.0)
        losses, weights = losses_of(call, state, n, first)
        loss_sum, loss_rest = neumaier_add(loss_sum, loss_rest, losses)
        weight_sum, weight_rest = neumaier_add(weight_sum, weight_rest, weights)
        if call.stats != 0:
            _keep_sums(call, state, first, n)
    return finish(sums, OK, neumaier_total(loss_sum, loss_rest), neumaier_total(weight_sum, weight_rest))


@inline
def _fill_zero(storage, row, classes):
    width = v.lanes(storage)
    for j in range(0, classes, width):
        v.store_masked(storage, row, j, v.first_n(storage, classes - j), v.splat(storage, 0.0))


@inline
def _grad_lanes(storage, compute, row, soft, weight, drow, dsoft, j, within, peak, cost, factor, scaled, cap,
                smoothing, classes):  # fmt: skip
    z = capped(storage, v.load_masked(storage, row, j, within, v.splat(storage, 0.0)), cap)
    e = exp(storage, z - peak)
    q = v.splat(storage, 0.0)
    if soft != 0 or smoothing > 0.0:
        w = _read(compute, weight, j, within, False, 1.0)
        q = rules.target_weight(_read(storage, soft, j, within, False, 0.0), w, scaled, smoothing, np.float64(classes))
        if dsoft != 0:
            dt = rules.target_grad(cost, z - peak, w, scaled, smoothing)
            v.store_masked(storage, dsoft, j, within, dt)
    d = rules.class_grad(e, q, factor)
    if cap > 0.0:
        d = d * rules.softcap_slope(z, cap)
    v.store_masked(storage, drow, j, within, d)


def backward(call, state, lo, hi, sums):
    """Rows lo to hi of the gradient of scale * dloss * loss; dx may be x. Without `stats` sums are made anew, and the
    losses too if `with_loss` says so; with room for maxima, of exponentials that are kept, in dx or beside it.
    """
    storage, compute, classes, weight, cap = call.storage, call.compute, call.classes, call.weight, call.cap
    smoothing, width, new = call.smoothing, v.lanes(call.storage), (call.new_outer, call.new_class, call.new_inner)
    plain = call.is_soft == 0 and smoothing == 0.0 and cap == 0.0
    keeps = call.tops_at != 0 and call.stats == 0
    loss_sum, loss_rest, weight_sum, weight_rest = 0.0, 0.0, 0.0, 0.0
    at_once = _rows_at_once(classes)
    for first in range(lo, hi, at_once):
        n = min(at_once, hi - first)
        if call.stats != 0:
            bad = _kept_sums(call, state, first, n)
        else:
            bad = _make_sums(call, state, first, n, at_once, keeps)
        if bad != OK:
            return finish(sums, bad, 0.0, 0.0)
        if call.with_loss != 0:
            losses, weights = losses_of(call, state, n, first)
            loss_sum, loss_rest = neumaier_add(loss_sum, loss_rest, losses)
            weight_sum, weight_rest = neumaier_add(weight_sum, weight_rest, weights)
        prepare_gradients(call, state, n, first, plain)
        for k in range(n):
            r = first + k
            keep, _, label, soft, row = _read_row(call, r)
            drow = _row_of(call, call.dx, strides_of_dx(call), r)
            dsoft = _row_of(call, call.dtarget, new, r) if call.dtarget != 0 else 0
            if keep == 0.0:
                _fill_zero(storage, drow, classes)
                if dsoft != 0:
                    _fill_zero(storage, dsoft, classes)
                continue
            own = load_logit(storage, row, label, cap) if label >= 0 else 0.0
            peak, factor = _get(call, state, PEAK, k), _get(call, state, FACTOR, k)
            if keeps:
                kept, tops = _kept_of(call, state, k, drow)
                blocks.scale_kept(storage, compute, kept, drow, tops, classes, peak, factor)
            else:
                cost = scaled = 0.0
                if not plain:
                    cost, scaled = _get(call, state, COST, k), _get(call, state, KEEP, k)
                full = classes // width * width if plain else 0
                past_caches = passes_caches(call.large, drow) and drow != row
                for j in range(0, full, width):
                    v.prefetch(storage, row, j)
                    e = exp(storage, v.load(storage, row, j) - peak)
                    store_or_stream(
                        storage,
                        drow,
                        j,
                        rules.class_grad(e, v.splat(storage, 0.0), v.splat(storage, factor)),
                        past_caches,
                    )
                for j in range(full, classes, width):
                    v.prefetch(storage, row, j)
                    _grad_lanes(storage, compute, row, soft, weight, drow, dsoft, j, v.first_n(storage, classes - j),
                                peak, cost, factor, scaled, cap, smoothing, classes)  # fmt: skip
            if label >= 0:
                d = _get(call, state, LABEL_GRAD, k)
                v.store_scalar(storage, drow, label, d * rules.softcap_slope(own, cap) if cap > 0.0 else d)
    return finish(sums, OK, neumaier_total(loss_sum, loss_rest), neumaier_total(weight_sum, weight_rest))
