"""Rows whose classes lie side by side: vectors run along a row, one row after the other.

The logits are read from memory once. Without soft targets and smoothing the sums go block by block (`_blocks`). Where
these give every class a weight, the sums are taken relative to a `peak` known before the pass (the larger of the
label's logit and the maximum of the first few), so maximum and sums need one pass; where a later logit turns out more
than `_HEADROOM` above the peak, which would endanger the sums, the row is passed again with the true maximum.
"""

import math

import numpy as np

from crossent.kernels import _blocks
from crossent.kernels._blocks import BLOCK, some_logits
from crossent.kernels._compile import inline
from crossent.kernels._leaves import (
    LABELS,
    OK,
    add,
    added,
    class_grad,
    class_weight_of,
    excess_of,
    exponential,
    finish,
    finite_peak,
    label_grad,
    label_weight,
    lse_slope,
    negative_log,
    number,
    others_of,
    passes_caches,
    row_loss,
    sample_weight_of,
    softcap_slope,
    strides_of_dx,
    target_grad,
    target_weight,
    upstream_of,
    write,
)
from crossent.kernels._math import capped, exp
from crossent.kernels._simd import (
    all_lanes_but,
    at,
    first_lanes,
    get,
    lanes,
    larger,
    lift,
    load,
    load_some,
    max_of_lanes,
    prefetch,
    put,
    rounded,
    same,
    select,
    store_some,
    sum_of_lanes,
)

_LOOKED_AT = 64  # numbers that a first guess of the maximum is made of
_HEADROOM = 60.0  # exp(60) times 2**31 classes is still finite in float32


@inline
def first_maximum(like, row, classes, cap):
    """Over the first few; what follows them is guarded by the headroom."""
    width = lanes(like)
    n = min(classes, _LOOKED_AT)
    top = lift(like, -np.inf)
    for j in range(0, n // width * width, width):
        top = larger(capped(like, load(like, row, j), cap), top)
    if n % width:
        top = larger(some_logits(like, row, n // width * width, first_lanes(like, n % width), cap), top)
    return np.float64(max_of_lanes(top))


@inline
def out_of_headroom(top, peak):
    """Whether sums relative to `peak` are in danger, and the row is to be passed again relative to `top`."""
    return top > peak + _HEADROOM


@inline
def _read(like, address, j, within, whole, absent):
    """Target probabilities or class weights: `absent` where there are none, 0 in the lanes that are not read."""
    if address == 0:
        return lift(like, absent)
    return load(like, address, j) if whole else load_some(like, address, j, within, lift(like, 0.0))


@inline
def _scan_dense(like, weight_like, row, soft, weight, lo, hi, whole, label, peak, cap, smoothing, classes, total, mass,
                dot, top):  # fmt: skip
    """Add the classes lo to hi to what `_walk_dense` sums; `whole` if they fill their vectors."""
    zero = lift(like, 0.0)
    part, part_mass, part_dot = zero, zero, zero
    for j in range(lo, hi, lanes(like)):
        prefetch(like, row, j)
        within = first_lanes(like, hi - j)
        z = capped(like, load(like, row, j), cap) if whole else some_logits(like, row, j, within, cap)
        top = larger(z, top)
        z = z - peak
        part = part + select(all_lanes_but(like, label - j), exp(like, z), zero)
        w = _read(weight_like, weight, j, within, whole, 1.0)
        q = target_weight(_read(like, soft, j, within, whole, 0.0), w, 1.0, smoothing, np.float64(classes))
        if not whole:
            q = select(within, q, zero)
        part_mass = part_mass + q
        part_dot = part_dot + select(same(q, zero), zero, q * z)
    return total + part, mass + part_mass, dot + part_dot, top


@inline
def _walk_dense(like, weight_like, row, soft, weight, classes, label, peak, cap, smoothing):
    """The sum of exp(z - peak) over the classes other than the label, -1 for none, those over all classes of q and of
    q * (z - peak) for keep = 1, and the largest z.
    """
    zero = lift(like, 0.0)
    total, mass, dot, top = zero, zero, zero, lift(like, -np.inf)
    full = classes // lanes(like) * lanes(like)
    for block in range(0, full, BLOCK):
        total, mass, dot, top = _scan_dense(
            like, weight_like, row, soft, weight, block, min(block + BLOCK, full), True, label, peak, cap, smoothing,
            classes, total, mass, dot, top,
        )  # fmt: skip
    if full < classes:
        total, mass, dot, top = _scan_dense(
            like, weight_like, row, soft, weight, full, classes, False, label, peak, cap, smoothing, classes, total,
            mass, dot, top,
        )  # fmt: skip
    sums = sum_of_lanes(total), sum_of_lanes(mass), sum_of_lanes(dot), max_of_lanes(top)
    return np.float64(sums[0]), np.float64(sums[1]), np.float64(sums[2]), np.float64(sums[3])


@inline
def _short_row_sums(like, row, classes, label, cap):
    """A row that fits one vector, read once."""
    z = some_logits(like, row, 0, first_lanes(like, classes), cap)
    peak = finite_peak(np.float64(max_of_lanes(z)))
    e = select(all_lanes_but(like, label), exp(like, z - peak), lift(like, 0.0))
    return peak, np.float64(sum_of_lanes(e)), 0.0, 0.0


@inline
def _row_sums(like, weight_like, row, soft, weight, classes, label, own, cap, smoothing):
    """The peak, and relative to it the others' sum, the mass and the dot of a row."""
    if soft == 0 and smoothing == 0.0:
        if classes <= lanes(like):
            return _short_row_sums(like, row, classes, label, cap)
        peak, others = _blocks.walk(like, weight_like, row, 0, 0, classes, label, cap)
        return peak, others, 0.0, 0.0
    peak = finite_peak(max(own, first_maximum(like, row, classes, cap)))
    others, mass, dot = 0.0, 0.0, 0.0
    for _ in range(2):
        others, mass, dot, top = _walk_dense(like, weight_like, row, soft, weight, classes, label, peak, cap, smoothing)
        if not out_of_headroom(top, peak):
            break
        peak = top
    return peak, others, mass, dot


@inline
def _row_value(call, keep, label, own, peak, others, mass, dot):
    """A row's loss, what it counts in a mean, and how far the sum of all exponentials exceeds 1."""
    weight_like, smoothing, z_loss = call.weight_like, call.smoothing, call.z_loss
    excess, log_total, nll, label_mass, counted = others - 1.0, 0.0, 0.0, 0.0, 1.0
    if label >= 0:
        own_exp = exponential(own, peak)
        excess = excess_of(others, own, peak, own_exp)
        counted = class_weight_of(weight_like, call.weight, label)
        label_mass = label_weight(counted, keep, smoothing)
        if label_mass != 0.0:
            nll = negative_log(others, own_exp, peak - own)
        mass = target_weight(0.0, call.weight_total, 1.0, smoothing, np.float64(call.classes))
    if label < 0 or smoothing > 0.0 or z_loss > 0.0:
        log_total = math.log1p(excess)
    value = row_loss(nll, label_mass, log_total, keep * mass, keep * dot, peak + log_total, keep, z_loss)
    return value, keep * counted, excess


def forward(call, scratch, lo, hi, sums):
    """Rows lo to hi: write losses and what backward needs."""
    like, weight_like, classes, inner = call.like, call.weight_like, call.classes, call.inner
    is_soft, smoothing, cap = call.is_soft != 0, call.smoothing, call.cap
    target, weight, loss, stats = call.target, call.weight, call.loss, call.stats
    loss_sum, loss_rest, weight_sum, weight_rest = 0.0, 0.0, 0.0, 0.0
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        keep, label, soft = sample_weight_of(weight_like, call.samples, r), -1, 0
        where = o * call.target_outer + i * call.target_inner
        if is_soft:
            soft = at(like, target, where)
        else:
            label = get(LABELS, target, where)
            if label == call.ignore_index:
                keep = 0.0
            elif keep != 0.0 and (label < 0 or label >= classes):
                return finish(sums, r, 0.0, 0.0)
        if keep == 0.0:
            if loss != 0:
                put(weight_like, loss, r, 0.0)
            continue
        row = at(like, call.x, o * call.x_outer + i * call.x_inner)
        own = number(like, row, label, cap) if label >= 0 else -np.inf
        peak, others, mass, dot = _row_sums(like, weight_like, row, soft, weight, classes, label, own, cap, smoothing)
        value, counted, excess = _row_value(call, keep, label, own, peak, others, mass, dot)
        loss_sum, loss_rest = add(loss_sum, loss_rest, value)
        weight_sum, weight_rest = add(weight_sum, weight_rest, counted)
        if loss != 0:
            put(weight_like, loss, r, value)
        if stats != 0:
            put(weight_like, stats, r, peak)
            put(weight_like, stats, call.rows + r, excess)
            if is_soft:
                put(weight_like, stats, 2 * call.rows + r, mass)
    return finish(sums, OK, added(loss_sum, loss_rest), added(weight_sum, weight_rest))


@inline
def _fill_zero(like, row, classes):
    width = lanes(like)
    for j in range(0, classes, width):
        store_some(like, row, j, first_lanes(like, classes - j), lift(like, 0.0))


@inline
def _grad_lanes(like, weight_like, row, soft, weight, drow, dsoft, j, within, peak, log_total, factor, g, keep,
                cap, smoothing, classes):  # fmt: skip
    z = capped(like, load_some(like, row, j, within, lift(like, 0.0)), cap)
    e = exp(like, z - peak)
    q = lift(like, 0.0)
    if soft != 0 or smoothing > 0.0:
        w = _read(weight_like, weight, j, within, False, 1.0)
        q = target_weight(_read(like, soft, j, within, False, 0.0), w, g * keep, smoothing, np.float64(classes))
        if dsoft != 0:
            dt = target_grad(log_total, z - peak, w, g * keep, smoothing)
            store_some(like, dsoft, j, within, dt)
    d = class_grad(e, q, factor)
    if cap > 0.0:
        d = d * softcap_slope(z, cap)
    store_some(like, drow, j, within, d)


def backward(call, scratch, lo, hi, sums):
    """Rows lo to hi of the gradient of scale * dloss * loss; dx may be x. Without `stats` sums are made anew, and the
    losses too if `with_loss` says so; given scratch, of exponentials that are kept: at `kept_at` in it, or in dx.
    """
    like, weight_like, classes, inner = call.like, call.weight_like, call.classes, call.inner
    is_soft, smoothing, cap, z_loss = call.is_soft != 0, call.smoothing, call.cap, call.z_loss
    target, weight, stats, dtarget = call.target, call.weight, call.stats, call.dtarget
    loss_sum, loss_rest, weight_sum, weight_rest = 0.0, 0.0, 0.0, 0.0
    dx_outer, _, dx_inner = strides_of_dx(call)
    width = lanes(like)
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        keep, label, soft = sample_weight_of(weight_like, call.samples, r), -1, 0
        where = o * call.target_outer + i * call.target_inner
        if is_soft:
            soft = at(like, target, where)
        else:
            label = get(LABELS, target, where)
            if label == call.ignore_index:
                keep = 0.0
            elif keep != 0.0 and (label < 0 or label >= classes):
                return finish(sums, r, 0.0, 0.0)
        drow = at(like, call.dx, o * dx_outer + i * dx_inner)
        dsoft = at(like, dtarget, o * call.new_outer + i * call.new_inner) if dtarget != 0 else 0
        if keep == 0.0:
            _fill_zero(like, drow, classes)
            if dsoft != 0:
                _fill_zero(like, dsoft, classes)
            continue
        g = upstream_of(weight_like, call.dloss, r, call.scale)
        row = at(like, call.x, o * call.x_outer + i * call.x_inner)
        own = number(like, row, label, cap) if label >= 0 else -np.inf
        kept = 0
        if scratch != 0 and stats == 0:
            kept = drow if call.kept_at == 0 else scratch + call.kept_at
        if stats != 0:
            peak, excess = np.float64(get(weight_like, stats, r)), np.float64(get(weight_like, stats, call.rows + r))
            mass = np.float64(get(weight_like, stats, 2 * call.rows + r)) if is_soft else 0.0
        else:
            if kept != 0:
                peak, others = _blocks.walk(like, weight_like, row, kept, scratch, classes, label, 0.0)
                mass, dot = 0.0, 0.0
            else:
                peak, others, mass, dot = _row_sums(
                    like, weight_like, row, soft, weight, classes, label, own, cap, smoothing
                )
            excess = excess_of(others, own, peak, exponential(own, peak)) if label >= 0 else others - 1.0
            if call.with_loss != 0:
                value, counted, _ = _row_value(call, keep, label, own, peak, others, mass, dot)
                loss_sum, loss_rest = add(loss_sum, loss_rest, value)
                weight_sum, weight_rest = add(weight_sum, weight_rest, counted)
            # As what is kept in memory has them: the same bits either way.
            excess, mass = rounded(weight_like, excess), rounded(weight_like, mass)
        total, log_total = excess + 1.0, 0.0
        if z_loss > 0.0 or dsoft != 0:
            log_total = math.log1p(excess)
        label_mass, rest = 0.0, 0.0
        if label >= 0:
            w = class_weight_of(weight_like, weight, label)
            label_mass = label_weight(w, keep, smoothing)
            rest = target_weight(0.0, w, keep, smoothing, np.float64(classes))
            mass = target_weight(0.0, call.weight_total, 1.0, smoothing, np.float64(classes))
        slope = lse_slope(label_mass + keep * mass, peak + log_total, keep, z_loss)
        factor = g * slope / total
        if kept != 0:
            _blocks.multiply(like, weight_like, kept, drow, scratch, classes, peak, factor)
        else:
            plain = not is_soft and smoothing == 0.0 and cap == 0.0
            full = classes // width * width if plain else 0
            past_caches = passes_caches(call.large, drow) and drow != row
            for j in range(0, full, width):
                prefetch(like, row, j)
                e = exp(like, load(like, row, j) - peak)
                write(like, drow, j, class_grad(e, lift(like, 0.0), lift(like, factor)), past_caches)
            for j in range(full, classes, width):
                prefetch(like, row, j)
                _grad_lanes(like, weight_like, row, soft, weight, drow, dsoft, j, first_lanes(like, classes - j), peak,
                            log_total, factor, g, keep, cap, smoothing, classes)  # fmt: skip
        if label >= 0:
            own_exp = exponential(own, peak)
            p, share = own_exp / total, others_of(excess, own, peak, own_exp) / total
            d = g * label_grad(p, share, label_mass, rest, slope)
            put(like, drow, label, d * softcap_slope(own, cap) if cap > 0.0 else d)
    return finish(sums, OK, added(loss_sum, loss_rest), added(weight_sum, weight_rest))
