"""Softmax and log-softmax of rows of either layout, and their derivatives from what they returned."""

import math

import numpy as np

from crossent.kernels._blocks import BLOCK, largest, walk
from crossent.kernels._compile import inline
from crossent.kernels._leaves import OK, finish, load_within, passes_caches, write_within
from crossent.kernels._math import exp, log
from crossent.kernels._simd import (
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


def forward_last(call, scratch, lo, hi, sums):
    like, classes, inner, is_log = call.like, call.classes, call.inner, call.is_log != 0
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        row, result = (
            at(like, call.x, o * call.x_outer + i * call.x_inner),
            at(like, call.out, o * call.out_outer + i * call.out_inner),
        )
        top = largest(like, row, min(BLOCK, classes), 0.0)
        peak, total = walk(like, call.weight_like, row, 0, 0, classes, -1, 0.0, top, BLOCK)
        log_total = math.log(total) if total > 0.0 else total - np.inf
        past_caches = passes_caches(call.large != 0, result)
        for j in range(0, classes, lanes(like)):
            z = load_within(like, row, j, classes) - peak
            write_within(like, result, j, classes, _result(like, z, total, log_total, is_log), past_caches)
    finish(sums, OK, 0.0, 0.0)


def backward_last(call, scratch, lo, hi, sums):
    like, classes, inner, is_log = call.like, call.classes, call.inner, call.is_log != 0
    width = lanes(like)
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        row = at(like, call.out, o * call.out_outer + i * call.out_inner)
        drow = at(like, call.dout, o * call.dout_outer + i * call.dout_inner)
        result = at(like, call.dx, o * call.dx_outer + i * call.dx_inner)
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
        past_caches = passes_caches(call.large != 0, result)
        for j in range(0, classes, width):
            d = load_within(like, drow, j, classes)
            p = load_within(like, row, j, classes)
            p = exp(like, p) if is_log else p
            write_within(like, result, j, classes, _derivative(p, d, summed, is_log), past_caches)
    finish(sums, OK, 0.0, 0.0)


def forward_inner(call, scratch, lo, hi, sums):
    """`scratch` holds a tile of logits, its peaks, and what they are scaled or shifted by."""
    like, weight_like, is_log = call.like, call.weight_like, call.is_log != 0
    classes, inner, tile = call.classes, call.inner, call.tile
    x_class, out_class = call.x_class, call.out_class
    width = lanes(like)
    tiles = (inner + tile - 1) // tile
    peaks, scales = at(weight_like, scratch, classes * tile), at(weight_like, scratch, (classes + 1) * tile)
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n = min(tile, inner - i)
        row, result = at(like, call.x, o * call.x_outer + i), at(like, call.out, o * call.out_outer + i)
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
            plane = at(like, result, c * out_class)
            past_caches = passes_caches(call.large != 0, plane)
            for j in range(0, n, width):
                z, scale = load(weight_like, scratch, c * tile + j), load(weight_like, scales, j)
                value = z - scale if is_log else _quotient(like, z, scale, 1.0 / scale)
                write_within(like, plane, j, n, value, past_caches)
    finish(sums, OK, 0.0, 0.0)


def backward_inner(call, scratch, lo, hi, sums):
    """`scratch` holds a tile of both inputs and the sums of its rows."""
    like, weight_like, is_log = call.like, call.weight_like, call.is_log != 0
    classes, inner, tile = call.classes, call.inner, call.tile
    out_class, dout_class, dx_class = call.out_class, call.dout_class, call.dx_class
    width, ps = lanes(like), scratch
    ds, totals = at(weight_like, ps, classes * tile), at(weight_like, ps, 2 * classes * tile)
    parts = at(weight_like, totals, tile)
    tiles = (inner + tile - 1) // tile
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n = min(tile, inner - i)
        row, drow = at(like, call.out, o * call.out_outer + i), at(like, call.dout, o * call.dout_outer + i)
        result = at(like, call.dx, o * call.dx_outer + i)
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
            plane = at(like, result, c * dx_class)
            past_caches = passes_caches(call.large != 0, plane)
            for j in range(0, n, width):
                p, d = load(weight_like, ps, c * tile + j), load(weight_like, ds, c * tile + j)
                total = load(weight_like, totals, j)
                value = _derivative(p, d, total, is_log)
                write_within(like, plane, j, n, value, past_caches)
    finish(sums, OK, 0.0, 0.0)
