"""Rows that lie side by side, their classes a stride apart (images: batch x classes x pixels): a lane for each row.

A tile of neighbouring rows is capped, compared and copied once into a buffer that stays in the cache, and the rest works
on the buffer: planes a power of two apart would push each other out of the cache. What a row needs between the passes
lies in arrays behind the buffer, one number for each row of the tile.
"""

import numpy as np

from crossent.kernels._compile import inline, kernel
from crossent.kernels._leaves import (
    DOUBLES,
    LABELS,
    OK,
    class_grad,
    class_weight_of,
    label_grad,
    label_weight,
    lse_slope,
    row_loss,
    sample_weight_of,
    softcap_slope,
    target_grad,
    target_weight,
)
from crossent.kernels._math import capped, exp, log, log1p
from crossent.kernels._simd import (
    address_of,
    at,
    first_lanes,
    get,
    labels_equal,
    lanes,
    larger,
    lift,
    load,
    load_some,
    prefetch,
    put,
    put_label,
    same,
    select,
    store,
    store_some,
    sum_of_lanes,
)

_BLOCK = 64  # classes summed before they are added to the total: short sums keep their digits
_PEAK, _LABEL, _KEEP, _LABEL_MASS, _REST, _SCALE, _FACTOR, _LABEL_GRAD, _LOG_TOTAL = range(9)


def tile_rows(classes):
    """Rows of a tile: long runs of memory for few classes, a buffer of at most 256 KB for many."""
    return max(16, min(256, 65536 // max(classes, 1) // 16 * 16))


def scratch_numbers(classes):
    """How many numbers of the arithmetic's type a call needs as scratch memory."""
    return tile_rows(classes) * (classes + 9)


@inline
def _row_array(like, scratch, tile, classes, which):
    return at(like, scratch, tile * (classes + which))


@inline
def _prepare(weight_like, scratch, tile, target, first, step, is_soft, weight, samples, row, n, classes, ignore_index,
             smoothing, dloss, scale):  # fmt: skip
    """Write label, keep, label mass and upstream gradient of each row; their weights' sum, and a bad row or OK."""
    labels = _row_array(weight_like, scratch, tile, classes, _LABEL)
    keeps = _row_array(weight_like, scratch, tile, classes, _KEEP)
    masses = _row_array(weight_like, scratch, tile, classes, _LABEL_MASS)
    rests = _row_array(weight_like, scratch, tile, classes, _REST)
    scales = _row_array(weight_like, scratch, tile, classes, _SCALE)
    weight_sum = 0.0
    for j in range(tile):
        keep, label, mass, rest, g = 0.0, -1, 0.0, 0.0, 0.0
        if j < n:
            g = scale * get(DOUBLES, dloss, row + j) if dloss != 0 else scale
            keep = sample_weight_of(samples, row + j)
            counted = 1.0
            if not is_soft:
                label = get(LABELS, target, first + j * step)
                if label == ignore_index:
                    keep = 0.0
                if keep == 0.0:
                    label = -1
                elif label < 0 or label >= classes:
                    return weight_sum, row + j
                else:
                    counted = class_weight_of(weight_like, weight, label)
                    mass = label_weight(counted, keep, smoothing)
                    rest = target_weight(0.0, counted, keep, smoothing, np.float64(classes))
            weight_sum += keep * counted
        put_label(weight_like, labels, j, label)
        put(weight_like, keeps, j, keep)
        put(weight_like, masses, j, mass)
        put(weight_like, rests, j, rest)
        put(weight_like, scales, j, g)
    return weight_sum, OK


@inline
def _fill_buffer(like, weight_like, x, x_class, scratch, tile, n, classes, cap):
    """Copy the capped logits of a tile, and find each row's largest."""
    width = lanes(like)
    peaks = _row_array(weight_like, scratch, tile, classes, _PEAK)
    for j in range(0, n, width):
        store(weight_like, peaks, j, lift(like, -np.inf))
    for c in range(classes):
        plane, row = at(like, x, c * x_class), at(weight_like, scratch, c * tile)
        for j in range(0, n, width):
            prefetch(like, plane, j)
            if j + width <= n:
                z = load(like, plane, j)
            else:
                z = load_some(like, plane, j, first_lanes(like, n - j), lift(like, 0.0))
            z = capped(like, z, cap)
            store(weight_like, row, j, z)
            store(weight_like, peaks, j, larger(z, load(weight_like, peaks, j)))
    for j in range(0, n, width):
        peak = load(weight_like, peaks, j)
        store(weight_like, peaks, j, select(same(peak, lift(like, -np.inf)), lift(like, 0.0), peak))


@inline
def _column(
    like, weight_like, scratch, tile, j, n, soft, soft_class, weight, weight_total, is_soft, classes, smoothing
):
    """Of the rows in one vector: the other classes' sum, the label's logit and its exponential, mass and dot of q."""
    zero = lift(like, 0.0)
    labels = _row_array(weight_like, scratch, tile, classes, _LABEL)
    peak = load(weight_like, _row_array(weight_like, scratch, tile, classes, _PEAK), j)
    within = first_lanes(like, n - j)
    others, own, mass, dot = zero, lift(like, -np.inf), zero, zero
    for block in range(0, classes, _BLOCK):
        part, part_mass, part_dot = zero, zero, zero
        for c in range(block, min(block + _BLOCK, classes)):
            z = load(weight_like, scratch, c * tile + j) - peak
            hit = labels_equal(weight_like, labels, j, c)
            part = part + select(hit, zero, exp(like, z))
            own = select(hit, z, own)
            if is_soft or smoothing > 0.0:
                w = np.float64(get(weight_like, weight, c)) if weight != 0 else 1.0
                t = load_some(like, soft, c * soft_class + j, within, zero) if is_soft else zero
                q = target_weight(t, w, 1.0, smoothing, np.float64(classes))
                part_mass = part_mass + q
                part_dot = part_dot + select(same(q, zero), zero, q * z)
        others, mass, dot = others + part, mass + part_mass, dot + part_dot
    if not is_soft:
        mass = lift(like, target_weight(0.0, weight_total, 1.0, smoothing, np.float64(classes)))
    return others, own, exp(like, own), mass, dot


@inline
def _log_total(like, others, own, own_exp):
    """log of the sum of all exponentials; the largest one is 1."""
    excess = select(same(own, lift(like, 0.0)), others, others + own_exp - 1.0)
    small = (lift(like, 0.0) <= excess) & (excess <= 1.0)
    return select(small, log1p(like, excess), log(like, others + own_exp))


@kernel
def forward(
    like, weight_like, x, x_outer, x_class, target, target_outer, target_inner, is_soft, weight, weight_total, samples,
    inner, classes, ignore_index, smoothing, cap, z_loss, loss, sums, tile, buffer, lo, hi, chunk,
):  # fmt: skip
    """Tiles lo to hi: the losses of their rows, and the sums of losses and of weights."""
    width, scratch = lanes(like), address_of(buffer)
    tiles = (inner + tile - 1) // tile
    loss_sum, weight_sum = 0.0, 0.0
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n, row = min(tile, inner - i), o * inner + i
        first = o * target_outer + (i if is_soft else i * target_inner)
        counted, bad = _prepare(weight_like, scratch, tile, target, first, target_inner, is_soft, weight, samples, row,
                                n, classes, ignore_index, smoothing, 0, 1.0)  # fmt: skip
        if bad != OK:
            return bad
        weight_sum += counted
        _fill_buffer(like, weight_like, at(like, x, o * x_outer + i), x_class, scratch, tile, n, classes, cap)
        soft = at(like, target, first) if is_soft else 0
        for j in range(0, n, width):
            others, own, own_exp, mass, dot = _column(like, weight_like, scratch, tile, j, n, soft, target_inner,
                                                      weight, weight_total, is_soft, classes, smoothing)  # fmt: skip
            log_total = _log_total(like, others, own, own_exp)
            nll = select(others <= own_exp, log1p(like, others / own_exp), log(like, others + own_exp) - own)
            label_mass = load(weight_like, _row_array(weight_like, scratch, tile, classes, _LABEL_MASS), j)
            keep = load(weight_like, _row_array(weight_like, scratch, tile, classes, _KEEP), j)
            peak = load(weight_like, _row_array(weight_like, scratch, tile, classes, _PEAK), j)
            zero = lift(like, 0.0)
            nll = select(same(label_mass, zero), zero, nll)
            value = row_loss(nll, label_mass, log_total, keep * mass, keep * dot, peak + log_total, keep, z_loss)
            value = select(same(keep, zero), zero, value)
            loss_sum += np.float64(sum_of_lanes(value))
            if loss != 0:
                store_some(weight_like, loss, row + j, first_lanes(like, n - j), value)
    sums[chunk, 0], sums[chunk, 1] = loss_sum, weight_sum
    return OK


@inline
def _write_grads(like, weight_like, scratch, tile, n, soft, soft_class, weight, is_soft, classes, smoothing, cap,
                 dx, dx_class, dsoft, dsoft_class):  # fmt: skip
    width = lanes(like)
    zero = lift(like, 0.0)
    labels = _row_array(weight_like, scratch, tile, classes, _LABEL)
    keeps = _row_array(weight_like, scratch, tile, classes, _KEEP)
    peaks = _row_array(weight_like, scratch, tile, classes, _PEAK)
    scales = _row_array(weight_like, scratch, tile, classes, _SCALE)
    factors = _row_array(weight_like, scratch, tile, classes, _FACTOR)
    label_grads = _row_array(weight_like, scratch, tile, classes, _LABEL_GRAD)
    log_totals = _row_array(weight_like, scratch, tile, classes, _LOG_TOTAL)
    for c in range(classes):
        w = np.float64(get(weight_like, weight, c)) if weight != 0 else 1.0
        for j in range(0, n, width):
            within = first_lanes(like, n - j)
            logits = load(weight_like, scratch, c * tile + j)
            keep, z = load(weight_like, keeps, j), logits - load(weight_like, peaks, j)
            q = zero
            if is_soft or smoothing > 0.0:
                t = load_some(like, soft, c * soft_class + j, within, zero) if is_soft else zero
                scaled = keep * load(weight_like, scales, j)
                q = target_weight(t, w, scaled, smoothing, np.float64(classes))
                if dsoft != 0:
                    log_total = load(weight_like, log_totals, j)
                    dt = target_grad(log_total, z, w, scaled, smoothing)
                    store_some(like, dsoft, c * dsoft_class + j, within, select(same(keep, zero), zero, dt))
            d = class_grad(exp(like, z), q, load(weight_like, factors, j))
            d = select(labels_equal(weight_like, labels, j, c), load(weight_like, label_grads, j), d)
            if cap > 0.0:
                d = d * softcap_slope(logits, cap)
            store_some(like, dx, c * dx_class + j, within, select(same(keep, zero), zero, d))


@kernel
def backward(
    like, weight_like, x, x_outer, x_class, target, target_outer, target_inner, is_soft, weight, weight_total, samples,
    inner, classes, ignore_index, smoothing, cap, z_loss, dloss, scale,
    dx, dx_outer, dx_class, dtarget, dtarget_outer, dtarget_class, tile, buffer, lo, hi, chunk,
):  # fmt: skip
    """Tiles lo to hi of the gradient of scale * dloss * loss; dx may be x."""
    width, scratch = lanes(like), address_of(buffer)
    tiles = (inner + tile - 1) // tile
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n, row = min(tile, inner - i), o * inner + i
        first = o * target_outer + (i if is_soft else i * target_inner)
        _, bad = _prepare(weight_like, scratch, tile, target, first, target_inner, is_soft, weight, samples, row,
                          n, classes, ignore_index, smoothing, dloss, scale)  # fmt: skip
        if bad != OK:
            return bad
        _fill_buffer(like, weight_like, at(like, x, o * x_outer + i), x_class, scratch, tile, n, classes, cap)
        soft = at(like, target, first) if is_soft else 0
        for j in range(0, n, width):
            others, own, own_exp, mass, dot = _column(like, weight_like, scratch, tile, j, n, soft, target_inner,
                                                      weight, weight_total, is_soft, classes, smoothing)  # fmt: skip
            log_total = _log_total(like, others, own, own_exp)
            label_mass = load(weight_like, _row_array(weight_like, scratch, tile, classes, _LABEL_MASS), j)
            keep = load(weight_like, _row_array(weight_like, scratch, tile, classes, _KEEP), j)
            peak = load(weight_like, _row_array(weight_like, scratch, tile, classes, _PEAK), j)
            g = load(weight_like, _row_array(weight_like, scratch, tile, classes, _SCALE), j)
            total = others + own_exp
            slope = lse_slope(label_mass + keep * mass, peak + log_total, keep, z_loss)
            store(weight_like, _row_array(weight_like, scratch, tile, classes, _FACTOR), j, g * slope / total)
            store(weight_like, _row_array(weight_like, scratch, tile, classes, _LOG_TOTAL), j, log_total)
            if not is_soft:
                rest = load(weight_like, _row_array(weight_like, scratch, tile, classes, _REST), j)
                d = g * label_grad(own_exp / total, others / total, label_mass, rest, slope)
                store(weight_like, _row_array(weight_like, scratch, tile, classes, _LABEL_GRAD), j, d)
        dsoft = at(like, dtarget, o * dtarget_outer + i) if dtarget != 0 else 0
        _write_grads(like, weight_like, scratch, tile, n, soft, target_inner, weight, is_soft, classes, smoothing, cap,
                     at(like, dx, o * dx_outer + i), dx_class, dsoft, dtarget_class)  # fmt: skip
    return OK
