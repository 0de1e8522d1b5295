"""Softmax and log-softmax of rows of either layout, and their derivatives from what they returned."""

import math

import numpy as np

from crossent.kernels._compile import inline, kernel
from crossent.kernels._last import first_maximum, out_of_headroom, walk
from crossent.kernels._leaves import OK, finite_peak, load_within, store_within
from crossent.kernels._math import exp, log
from crossent.kernels._simd import (
    address_of,
    at,
    fma,
    lanes,
    larger,
    lift,
    load,
    prefetch,
    same,
    select,
    store,
    sum_of_lanes,
)

_BLOCK = 64  # vectors summed before they are added to the total: short sums keep their digits


@inline
def _quotient(like, x, y, reciprocal):
    """x / y by way of 1 / y, with one step of refinement: to the last bit but for rare cases, and quicker."""
    quotient = x * reciprocal
    return fma(fma(lift(like, 0.0) - quotient, y, x), reciprocal, quotient)


@inline
def _result(like, z, total, log_total, is_log):
    """Of z relative to the peak."""
    if is_log:
        return z - log_total
    return _quotient(like, exp(like, z), lift(like, total), lift(like, 1.0 / total))


@inline
def _derivative(probability, dout, total, is_log):
    """`total` is the sum of dout * probability over the classes, for log-softmax that of dout."""
    return dout - probability * total if is_log else probability * (dout - total)


@kernel
def forward_last(like, weight_like, x_outer, x_inner, inner, classes, tile, is_log, x, out, out_outer, out_inner,
                 buffer, lo, hi):  # fmt: skip
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        row, result = at(like, x, o * x_outer + i * x_inner), at(like, out, o * out_outer + i * out_inner)
        peak = finite_peak(first_maximum(like, row, classes, 0.0))
        total, top = walk(like, row, classes, -1, peak, 0.0)
        if out_of_headroom(top, peak):
            peak = top
            total, top = walk(like, row, classes, -1, peak, 0.0)
        log_total = math.log(total) if total > 0.0 else total - np.inf
        for j in range(0, classes, lanes(like)):
            z = load_within(like, row, j, classes) - peak
            store_within(like, result, j, classes, _result(like, z, total, log_total, is_log))
    return OK, 0.0, 0.0


@kernel
def backward_last(like, weight_like, out_outer, out_inner, inner, classes, tile, is_log, out, dout, dout_outer,
                  dout_inner, dx, dx_outer, dx_inner, buffer, lo, hi):  # fmt: skip
    width = lanes(like)
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        row, drow = at(like, out, o * out_outer + i * out_inner), at(like, dout, o * dout_outer + i * dout_inner)
        result = at(like, dx, o * dx_outer + i * dx_inner)
        total = lift(like, 0.0)
        for block in range(0, classes, _BLOCK * width):
            part = lift(like, 0.0)
            for j in range(block, min(block + _BLOCK * width, classes), width):
                prefetch(like, drow, j)
                d = load_within(like, drow, j, classes)
                if is_log:
                    part = part + d
                else:
                    prefetch(like, row, j)
                    part = fma(d, load_within(like, row, j, classes), part)
            total = total + part
        summed = np.float64(sum_of_lanes(total))
        for j in range(0, classes, width):
            d = load_within(like, drow, j, classes)
            p = load_within(like, row, j, classes)
            p = exp(like, p) if is_log else p
            store_within(like, result, j, classes, _derivative(p, d, summed, is_log))
    return OK, 0.0, 0.0


@kernel
def forward_inner(like, weight_like, x_outer, x_class, inner, classes, tile, is_log, x, out, out_outer, out_class,
                  buffer, lo, hi):  # fmt: skip
    """`buffer` holds a tile of logits, its peaks, and what they are scaled or shifted by."""
    width, scratch = lanes(like), address_of(buffer)
    tiles = (inner + tile - 1) // tile
    peaks, scales = at(weight_like, scratch, classes * tile), at(weight_like, scratch, (classes + 1) * tile)
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n = min(tile, inner - i)
        row, result = at(like, x, o * x_outer + i), at(like, out, o * out_outer + i)
        for j in range(0, n, width):
            store(weight_like, peaks, j, lift(like, -np.inf))
        for c in range(classes):
            for j in range(0, n, width):
                prefetch(like, row, c * x_class + j)
                z = load_within(like, row, c * x_class + j, c * x_class + n)
                store(weight_like, scratch, c * tile + j, z)
                store(weight_like, peaks, j, larger(z, load(weight_like, peaks, j)))
        for j in range(0, n, width):
            peak = load(weight_like, peaks, j)
            peak = select(same(peak, lift(like, -np.inf)), lift(like, 0.0), peak)
            total = lift(like, 0.0)
            for block in range(0, classes, _BLOCK):
                part = lift(like, 0.0)
                for c in range(block, min(block + _BLOCK, classes)):
                    z = load(weight_like, scratch, c * tile + j) - peak
                    e = exp(like, z)
                    part = part + e
                    store(weight_like, scratch, c * tile + j, z if is_log else e)
                total = total + part
            store(weight_like, scales, j, log(like, total) if is_log else total)
        for c in range(classes):
            for j in range(0, n, width):
                z, scale = load(weight_like, scratch, c * tile + j), load(weight_like, scales, j)
                value = z - scale if is_log else _quotient(like, z, scale, 1.0 / scale)
                store_within(like, result, c * out_class + j, c * out_class + n, value)
    return OK, 0.0, 0.0


@kernel
def backward_inner(like, weight_like, out_outer, out_class, inner, classes, tile, is_log, out, dout, dout_outer,
                   dout_class, dx, dx_outer, dx_class, buffer, lo, hi):  # fmt: skip
    """`buffer` holds a tile of both inputs and the sums of its rows."""
    width, ps = lanes(like), address_of(buffer)
    ds, totals = at(weight_like, ps, classes * tile), at(weight_like, ps, 2 * classes * tile)
    parts = at(weight_like, totals, tile)
    tiles = (inner + tile - 1) // tile
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n = min(tile, inner - i)
        row, drow = at(like, out, o * out_outer + i), at(like, dout, o * dout_outer + i)
        result = at(like, dx, o * dx_outer + i)
        for j in range(0, n, width):
            store(weight_like, totals, j, lift(like, 0.0))
        for block in range(0, classes, _BLOCK):
            for j in range(0, n, width):
                store(weight_like, parts, j, lift(like, 0.0))
            for c in range(block, min(block + _BLOCK, classes)):
                for j in range(0, n, width):
                    prefetch(like, row, c * out_class + j)
                    prefetch(like, drow, c * dout_class + j)
                    p = load_within(like, row, c * out_class + j, c * out_class + n)
                    d = load_within(like, drow, c * dout_class + j, c * dout_class + n)
                    store(weight_like, ps, c * tile + j, exp(like, p) if is_log else p)
                    store(weight_like, ds, c * tile + j, d)
                    part = load(weight_like, parts, j)
                    store(weight_like, parts, j, part + d if is_log else fma(d, p, part))
            for j in range(0, n, width):
                store(weight_like, totals, j, load(weight_like, totals, j) + load(weight_like, parts, j))
        for c in range(classes):
            for j in range(0, n, width):
                p, d = load(weight_like, ps, c * tile + j), load(weight_like, ds, c * tile + j)
                total = load(weight_like, totals, j)
                value = _derivative(p, d, total, is_log)
                store_within(like, result, c * dx_class + j, c * dx_class + n, value)
    return OK, 0.0, 0.0
