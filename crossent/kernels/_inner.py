"""Rows that lie side by side, their classes a stride apart (images: batch x classes x pixels): a lane for each row.

A tile of neighbouring rows is capped, compared and copied once into a buffer that stays in the cache, and the rest works
on the buffer: planes a power of two apart would push each other out of the cache. What backward needs of a row between
its passes lies in arrays behind the buffer, one number for each row of the tile. A label is only ever compared with
class numbers, so that a bad one cannot reach memory.
"""

import numpy as np

from crossent.kernels._compile import inline, kernel
from crossent.kernels._leaves import (
    LABELS,
    OK,
    class_grad,
    label_grad,
    label_weight,
    lse_slope,
    row_loss,
    sample_weight_of,
    softcap_slope,
    target_grad,
    target_weight,
)
from crossent.kernels._math import capped, exp, log, log1p, negative_log
from crossent.kernels._simd import (
    address_of,
    and_not,
    any_lane,
    at,
    first_lanes,
    get,
    labels_are,
    labels_below,
    lanes,
    larger,
    lift,
    load,
    load_labels,
    load_some,
    narrow_labels,
    no_labels,
    prefetch,
    same,
    scratch_labels,
    select,
    store,
    store_labels,
    store_some,
    sum_of_lanes,
)

_BLOCK = 64  # classes summed before they are added to the total: short sums keep their digits
_ARRAYS = 6
_PEAK, _LABEL, _SCALED_KEEP, _FACTOR, _LABEL_GRAD, _LOG_TOTAL = range(_ARRAYS)


def tile_rows(classes):
    """Rows of a tile: long runs of memory for few classes, a buffer of at most 256 KB for many."""
    return max(16, min(512, 65536 // max(classes, 1) // 16 * 16))


def scratch_numbers(classes):
    """How many numbers of the arithmetic's type a call needs as scratch memory."""
    return tile_rows(classes) * (classes + _ARRAYS)


@inline
def _fill_buffer(like, weight_like, x, x_class, scratch, peaks, tile, n, classes, cap):
    """Copy the capped logits of a tile, and find each row's largest."""
    width = lanes(like)
    full = n // width * width
    for j in range(0, n, width):
        store(weight_like, peaks, j, lift(like, -np.inf))
    for c in range(classes):
        plane, row = at(like, x, c * x_class), at(weight_like, scratch, c * tile)
        for j in range(0, full, width):
            prefetch(like, plane, j)
            z = load(like, plane, j)
            store(weight_like, row, j, z)
            store(weight_like, peaks, j, larger(z, load(weight_like, peaks, j)))
        if full < n:
            z = load_some(like, plane, full, first_lanes(like, n - full), lift(like, 0.0))
            store(weight_like, row, full, z)
            store(weight_like, peaks, full, larger(z, load(weight_like, peaks, full)))
    if cap > 0.0:
        for j in range(0, classes * tile, width):
            store(weight_like, scratch, j, capped(like, load(weight_like, scratch, j), cap))
    for j in range(0, n, width):
        peak = capped(like, load(weight_like, peaks, j), cap)
        store(weight_like, peaks, j, select(same(peak, lift(like, -np.inf)), lift(like, 0.0), peak))


@inline
def _labels_and_keep(like, weight_like, target, first, is_soft, samples, row, j, n, classes, ignore_index):
    """Of the rows in one vector: labels (-1 where there is none), what they count, and whether a label is bad."""
    zero = lift(like, 0.0)
    within = first_lanes(like, n - j)
    keep = select(within, lift(like, 1.0), zero)
    if samples != 0:
        keep = load_some(weight_like, samples, row + j, within, zero)
    if is_soft:
        return no_labels(like), keep, False
    labels = load_labels(like, target, first + j, within)
    keep = select(labels_are(labels, ignore_index), zero, keep)
    kept, valid = keep != zero, labels_below(labels, classes)
    return narrow_labels(like, labels, kept & valid), keep, any_lane(and_not(kept, valid))


@inline
def _first_bad(weight_like, target, first, samples, row, n, classes, ignore_index):
    for j in range(n):
        label = get(LABELS, target, first + j)
        if label != ignore_index and sample_weight_of(weight_like, samples, row + j) != 0.0:
            if label < 0 or label >= classes:
                return row + j
    return OK


@inline
def _sums(like, weight_like, scratch, tile, classes, j, peak, labels, keep_exponentials):
    """The sum of exp(z - peak) over the classes other than the label, and the label's z - peak."""
    zero = lift(like, 0.0)
    others, own = zero, lift(like, -np.inf)
    for block in range(0, classes, _BLOCK):
        part = zero
        for c in range(block, min(block + _BLOCK, classes)):
            z = load(weight_like, scratch, c * tile + j) - peak
            e = exp(like, z)
            if keep_exponentials:
                store(weight_like, scratch, c * tile + j, e)
            hit = labels_are(labels, c)
            part = part + select(hit, zero, e)
            own = select(hit, z, own)
        others = others + part
    return others, own


@inline
def _target_sums(like, weight_like, scratch, tile, classes, j, n, peak, soft, soft_class, weight, is_soft, smoothing):
    """The sums over all classes of q and of q * (z - peak), for keep = 1."""
    zero = lift(like, 0.0)
    within = first_lanes(like, n - j)
    mass, dot = zero, zero
    for block in range(0, classes, _BLOCK):
        part_mass, part_dot = zero, zero
        for c in range(block, min(block + _BLOCK, classes)):
            z = load(weight_like, scratch, c * tile + j) - peak
            w = np.float64(get(weight_like, weight, c)) if weight != 0 else 1.0
            t = load_some(like, soft, c * soft_class + j, within, zero) if is_soft else zero
            q = target_weight(t, w, 1.0, smoothing, np.float64(classes))
            part_mass = part_mass + q
            part_dot = part_dot + select(same(q, zero), zero, q * z)
        mass, dot = mass + part_mass, dot + part_dot
    return mass, dot


@inline
def _own_weights(like, weight_like, weight, classes, labels):
    """The class weight of each row's label, 1 for rows without."""
    own = lift(like, 1.0)
    if weight != 0:
        for c in range(classes):
            own = select(labels_are(labels, c), lift(like, get(weight_like, weight, c)), own)
    return own


@inline
def _log_total(like, others, own, own_exp):
    """log of the sum of all exponentials; the largest one is 1."""
    excess = select(same(own, lift(like, 0.0)), others, others + own_exp - 1.0)
    small = (lift(like, 0.0) <= excess) & (excess <= 1.0)
    return select(small, log1p(like, excess), log(like, others + own_exp))


@kernel
def forward(
    like, weight_like, x, x_outer, x_class, target, target_outer, target_class, is_soft, weight, weight_total, samples,
    inner, classes, ignore_index, smoothing, cap, z_loss, loss, sums, tile, buffer, lo, hi, chunk,
):  # fmt: skip
    """Tiles lo to hi: the losses of their rows, and the sums of losses and of weights."""
    width, scratch, zero = lanes(like), address_of(buffer), lift(like, 0.0)
    peaks = at(weight_like, scratch, tile * (classes + _PEAK))
    tiles = (inner + tile - 1) // tile
    dense = is_soft or smoothing > 0.0
    loss_sum, weight_sum = 0.0, 0.0
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n, row, first = min(tile, inner - i), o * inner + i, o * target_outer + i
        soft = at(like, target, first) if is_soft else 0
        _fill_buffer(like, weight_like, at(like, x, o * x_outer + i), x_class, scratch, peaks, tile, n, classes, cap)
        tile_loss, tile_weight = zero, zero
        for j in range(0, n, width):
            labels, keep, bad = _labels_and_keep(
                like, weight_like, target, first, is_soft, samples, row, j, n, classes, ignore_index
            )
            if bad:
                return _first_bad(weight_like, target, first, samples, row, n, classes, ignore_index)
            peak = load(weight_like, peaks, j)
            mass, dot, log_total, nll = zero, zero, zero, zero
            if dense:
                mass, dot = _target_sums(like, weight_like, scratch, tile, classes, j, n, peak, soft, target_class,
                                         weight, is_soft, smoothing)  # fmt: skip
            others, own = _sums(like, weight_like, scratch, tile, classes, j, peak, labels, False)
            own_exp, own_weight = exp(like, own), lift(like, 1.0)
            if not is_soft:
                own_weight = _own_weights(like, weight_like, weight, classes, labels)
                mass = lift(like, target_weight(0.0, weight_total, 1.0, smoothing, np.float64(classes)))
                nll = negative_log(like, others, own, own_exp)
            if dense or z_loss > 0.0:
                log_total = _log_total(like, others, own, own_exp)
            label_mass = lift(like, 0.0) if is_soft else label_weight(own_weight, keep, smoothing)
            value = row_loss(nll, label_mass, log_total, keep * mass, keep * dot, peak + log_total, keep, z_loss)
            value = select(keep != zero, value, zero)
            tile_loss, tile_weight = tile_loss + value, tile_weight + keep * own_weight
            if loss != 0:
                store_some(weight_like, loss, row + j, first_lanes(like, n - j), value)
        loss_sum += np.float64(sum_of_lanes(tile_loss))
        weight_sum += np.float64(sum_of_lanes(tile_weight))
    sums[chunk, 0], sums[chunk, 1] = loss_sum, weight_sum
    return OK


@inline
def _write_plain(like, weight_like, scratch, tile, n, classes, dx, dx_class):
    """From exponentials in the buffer: scaled, the labels' entries put in."""
    width = lanes(like)
    full = n // width * width
    labels, keeps = (
        at(weight_like, scratch, tile * (classes + _LABEL)),
        at(weight_like, scratch, tile * (classes + _SCALED_KEEP)),
    )
    factors = at(weight_like, scratch, tile * (classes + _FACTOR))
    label_grads = at(weight_like, scratch, tile * (classes + _LABEL_GRAD))
    zero = lift(like, 0.0)
    for c in range(classes):
        plane, row = at(like, dx, c * dx_class), at(weight_like, scratch, c * tile)
        for j in range(0, n, width):
            d = class_grad(load(weight_like, row, j), zero, load(weight_like, factors, j))
            d = select(labels_are(scratch_labels(like, labels, j), c), load(weight_like, label_grads, j), d)
            d = select(load(weight_like, keeps, j) != zero, d, zero)
            if j < full:
                store(like, plane, j, d)
            else:
                store_some(like, plane, j, first_lanes(like, n - j), d)


@inline
def _write_dense(like, weight_like, scratch, tile, n, classes, soft, soft_class, weight, is_soft, smoothing, cap,
                 dx, dx_class, dsoft, dsoft_class):  # fmt: skip
    """From logits in the buffer, with everything that a loss may have."""
    zero = lift(like, 0.0)
    peaks = at(weight_like, scratch, tile * (classes + _PEAK))
    labels = at(weight_like, scratch, tile * (classes + _LABEL))
    keeps = at(weight_like, scratch, tile * (classes + _SCALED_KEEP))
    factors = at(weight_like, scratch, tile * (classes + _FACTOR))
    label_grads = at(weight_like, scratch, tile * (classes + _LABEL_GRAD))
    log_totals = at(weight_like, scratch, tile * (classes + _LOG_TOTAL))
    for c in range(classes):
        w = np.float64(get(weight_like, weight, c)) if weight != 0 else 1.0
        for j in range(0, n, lanes(like)):
            within = first_lanes(like, n - j)
            logits, keep = load(weight_like, scratch, c * tile + j), load(weight_like, keeps, j)
            z, kept = logits - load(weight_like, peaks, j), keep != zero
            t = load_some(like, soft, c * soft_class + j, within, zero) if is_soft else zero
            q = target_weight(t, w, keep, smoothing, np.float64(classes))
            d = class_grad(exp(like, z), q, load(weight_like, factors, j))
            d = select(labels_are(scratch_labels(like, labels, j), c), load(weight_like, label_grads, j), d)
            if cap > 0.0:
                d = d * softcap_slope(logits, cap)
            store_some(like, dx, c * dx_class + j, within, select(kept, d, zero))
            if dsoft != 0:
                dt = target_grad(load(weight_like, log_totals, j), z, w, keep, smoothing)
                store_some(like, dsoft, c * dsoft_class + j, within, select(kept, dt, zero))


@kernel
def backward(
    like, weight_like, x, x_outer, x_class, target, target_outer, target_class, is_soft, weight, weight_total, samples,
    inner, classes, ignore_index, smoothing, cap, z_loss, dloss, scale,
    dx, dx_outer, dx_class, dtarget, dtarget_outer, dtarget_class, tile, buffer, lo, hi, chunk,
):  # fmt: skip
    """Tiles lo to hi of the gradient of scale * dloss * loss; dx may be x."""
    width, scratch, zero = lanes(like), address_of(buffer), lift(like, 0.0)
    peaks = at(weight_like, scratch, tile * (classes + _PEAK))
    tiles = (inner + tile - 1) // tile
    dense = is_soft or smoothing > 0.0
    plain = not dense and cap == 0.0
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n, row, first = min(tile, inner - i), o * inner + i, o * target_outer + i
        soft = at(like, target, first) if is_soft else 0
        _fill_buffer(like, weight_like, at(like, x, o * x_outer + i), x_class, scratch, peaks, tile, n, classes, cap)
        for j in range(0, n, width):
            labels, keep, bad = _labels_and_keep(
                like, weight_like, target, first, is_soft, samples, row, j, n, classes, ignore_index
            )
            if bad:
                return _first_bad(weight_like, target, first, samples, row, n, classes, ignore_index)
            peak = load(weight_like, peaks, j)
            mass, dot, log_total, label_mass, rest = zero, zero, zero, zero, zero
            if is_soft:
                mass, dot = _target_sums(like, weight_like, scratch, tile, classes, j, n, peak, soft, target_class,
                                         weight, is_soft, smoothing)  # fmt: skip
            else:
                own_weight = _own_weights(like, weight_like, weight, classes, labels)
                label_mass = label_weight(own_weight, keep, smoothing)
                mass = lift(like, target_weight(0.0, weight_total, 1.0, smoothing, np.float64(classes)))
                rest = target_weight(zero, own_weight, keep, smoothing, np.float64(classes))
            others, own = _sums(like, weight_like, scratch, tile, classes, j, peak, labels, plain)
            own_exp = exp(like, own)
            total = others + own_exp
            if is_soft or z_loss > 0.0:
                log_total = _log_total(like, others, own, own_exp)
            g = lift(like, scale)
            if dloss != 0:
                g = g * load_some(weight_like, dloss, row + j, first_lanes(like, n - j), zero)
            slope = lse_slope(label_mass + keep * mass, peak + log_total, keep, z_loss)
            d = g * label_grad(own_exp / total, others / total, label_mass, rest, slope)
            store_labels(like, at(weight_like, scratch, tile * (classes + _LABEL)), j, labels)
            store(weight_like, at(weight_like, scratch, tile * (classes + _FACTOR)), j, g * slope / total)
            store(weight_like, at(weight_like, scratch, tile * (classes + _LABEL_GRAD)), j, d)
            store(weight_like, at(weight_like, scratch, tile * (classes + _LOG_TOTAL)), j, log_total)
            scaled = keep if plain else g * keep
            store(weight_like, at(weight_like, scratch, tile * (classes + _SCALED_KEEP)), j, scaled)
        drow = at(like, dx, o * dx_outer + i)
        if plain:
            _write_plain(like, weight_like, scratch, tile, n, classes, drow, dx_class)
        else:
            dsoft = at(like, dtarget, o * dtarget_outer + i) if dtarget != 0 else 0
            _write_dense(like, weight_like, scratch, tile, n, classes, soft, target_class, weight, is_soft, smoothing,
                         cap, drow, dx_class, dsoft, dtarget_class)  # fmt: skip
    return OK
