"""Softmax and log-softmax of rows of either layout, and their derivatives from what they returned.

Where one class outweighs all others together, its log-probability is -log(1 + rest), `rest` being the sum of the
others' exponentials relative to the row's largest logit. In the sum of all, 1 + rest, its digits would be lost: so both
sums are taken.
"""

import math

import numpy as np

from crossent.kernels.cpu.blocks import BLOCK, share, some_logits, sum_of_block
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import exp, exp_or_expm1, log_of_sum
from crossent.kernels.cpu.row import OK, finish, finite_peak, load_within, passes_caches, write_within
from crossent.kernels.cpu.vector import (
    any_lane,
    at,
    first_lanes,
    first_of,
    fma,
    lanes,
    larger,
    lift,
    load,
    max_of_lanes,
    prefetch,
    same,
    select,
    store,
    sum_of_lanes,
)

_TINY = 1.2e-38  # the smallest normal number of float32, nearly
_BLOCK = 64  # vectors summed before they are added to the total: short sums keep their digits


@inline
def _quotient(like, x, y, reciprocal):
    """x / y by way of 1 / y, with one step of refinement: to the last bit but for rare cases, and quicker."""
    quotient = x * reciprocal
    return fma(fma(lift(like, 0.0) - quotient, y, x), reciprocal, quotient)


@inline
def _result(like, z, total, reciprocal, log_total, is_log):
    """Of z relative to the peak."""
    if is_log:
        return z - log_total
    return _quotient(like, exp(like, z), total, reciprocal)


@inline
def _factor(like, out, is_log):
    """What the sum over dout is multiplied by: the probability p; for log-softmax, where p is nearly 1, p - 1, which
    keeps its digits and is negative.
    """
    if is_log:
        near, value = exp_or_expm1(like, out)
        least = lift(like, -_TINY)
        return select(near, select(value < least, value, least), value)
    return out


@inline
def _derivative(like, factor, dout, total, is_log):
    """`total` is the sum of dout * out over the classes, for log-softmax that of dout."""
    if is_log:
        return select(factor < lift(like, 0.0), dout - total, dout) - factor * total
    return factor * (dout - total)


@inline
def _first_in(like, row, j, step, value):
    """The class that has this logit in the first vector that has it of those from j on at this distance."""
    wanted = lift(like, value)
    lane = first_of(same(load(like, row, j), wanted))
    while lane == lanes(like):
        j += step
        lane = first_of(same(load(like, row, j), wanted))
    return j + lane


@inline
def _top_of_block(like, row, n, least):
    """The largest logit and, if it is more than `least`, a class that has it, else -1.

    Four vectors are compared at once, each with what came before at its place, and one of four places is searched.
    """
    width, nothing = lanes(like), lift(like, -np.inf)
    step = 4 * width
    a, b, c, d, rest = nothing, nothing, nothing, nothing, nothing
    full, whole = n // step * step, n // width * width
    for j in range(0, full, step):
        a, b = larger(load(like, row, j), a), larger(load(like, row, j + width), b)
        c, d = larger(load(like, row, j + 2 * width), c), larger(load(like, row, j + 3 * width), d)
    for j in range(full, whole, width):
        rest = larger(load(like, row, j), rest)
    if whole < n:
        rest = larger(some_logits(like, row, whole, first_lanes(like, n - whole), 0.0), rest)
    top = np.float64(max_of_lanes(larger(larger(larger(a, b), larger(c, d)), rest)))
    value = lift(like, top)
    if not top > least:
        return top, -1
    for place in range(4):
        if any_lane(same(a, value)):
            return top, _first_in(like, row, place * width, step, top)
        a, b, c, d = b, c, d, a
    for j in range(full, whole, width):
        if any_lane(same(load(like, row, j), value)):
            return top, j + first_of(same(load(like, row, j), value))
    return top, whole + first_of(same(some_logits(like, row, whole, first_lanes(like, n - whole), 0.0), value))


@inline
def _walk(like, row, classes):
    """The largest logit, and relative to it the sum of exp(x) over all classes but one that has it.

    The sum is nan where the logits have nan or inf, or only -inf.
    """
    peak, others = -np.inf, 0.0
    for lo in range(0, classes, BLOCK):
        n, block = min(BLOCK, classes - lo), at(like, row, lo)
        top, place = _top_of_block(like, block, n, peak)
        total = sum_of_block(like, like, block, 0, n, place, finite_peak(top), 0.0, BLOCK)
        if lo == 0:
            others, peak = total, top
        elif top > peak:
            others, peak = (others + 1.0) * math.exp(peak - top) + total, top
        else:
            others += total * share(top, peak)
    return finite_peak(peak), others + (peak - peak)


def forward_last(call, scratch, lo, hi, sums):
    like, classes, inner, is_log = call.like, call.classes, call.inner, call.is_log != 0
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        row, result = (
            at(like, call.x, o * call.x_outer + i * call.x_inner),
            at(like, call.result, o * call.new_outer + i * call.new_inner),
        )
        peak, others = _walk(like, row, classes)
        total = lift(like, others + 1.0)
        reciprocal, log_total = 1.0 / total, log_of_sum(like, total, lift(like, others))
        past_caches = passes_caches(call.large != 0, result)
        for j in range(0, classes, lanes(like)):
            z = load_within(like, row, j, classes) - peak
            write_within(like, result, j, classes, _result(like, z, total, reciprocal, log_total, is_log), past_caches)
    finish(sums, OK, 0.0, 0.0)


def backward_last(call, scratch, lo, hi, sums):
    like, classes, inner, is_log = call.like, call.classes, call.inner, call.is_log != 0
    width = lanes(like)
    for r in range(lo, hi):
        o = r // inner
        i = r - o * inner
        row = at(like, call.x, o * call.x_outer + i * call.x_inner)
        drow = at(like, call.dout, o * call.dout_outer + i * call.dout_inner)
        result = at(like, call.result, o * call.new_outer + i * call.new_inner)
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
        summed = lift(like, sum_of_lanes(total))
        past_caches = passes_caches(call.large != 0, result)
        for j in range(0, classes, width):
            d, out = load_within(like, drow, j, classes), load_within(like, row, j, classes)
            if is_log:  # as below, with what tells the two factors apart still at hand
                near, factor = exp_or_expm1(like, out)
                value = select(near, d - summed, d) - factor * summed
            else:
                value = _derivative(like, out, d, summed, False)
            write_within(like, result, j, classes, value, past_caches)
    finish(sums, OK, 0.0, 0.0)


def forward_inner(call, scratch, lo, hi, sums):
    """`scratch` holds a tile of logits, its peaks, and what they are scaled or shifted by."""
    like, weight_like, is_log = call.like, call.weight_like, call.is_log != 0
    classes, inner, tile = call.classes, call.inner, call.tile
    x_class, new_class = call.x_class, call.new_class
    width, zero = lanes(like), lift(like, 0.0)
    tiles = (inner + tile - 1) // tile
    peaks, scales = at(weight_like, scratch, classes * tile), at(weight_like, scratch, (classes + 1) * tile)
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n = min(tile, inner - i)
        row, result = at(like, call.x, o * call.x_outer + i), at(like, call.result, o * call.new_outer + i)
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
            peak = select(same(peak, lift(like, -np.inf)), zero, peak)
            total, rest = zero, zero
            for block in range(0, classes, _BLOCK):
                part, part_rest = zero, zero
                for c in range(block, min(block + _BLOCK, classes)):
                    z = load(weight_like, scratch, c * tile + j) - peak
                    e = exp(like, z)
                    part = part + e
                    if is_log:
                        part_rest = part_rest + select(z < zero, e, zero)
                    else:
                        store(weight_like, scratch, c * tile + j, e)
                total, rest = total + part, rest + part_rest
            store(weight_like, peaks, j, peak)
            store(weight_like, scales, j, log_of_sum(like, total, rest) if is_log else total)
        for c in range(classes):
            plane = at(like, result, c * new_class)
            past_caches = passes_caches(call.large != 0, plane)
            for j in range(0, n, width):
                value, scale = load(weight_like, scratch, c * tile + j), load(weight_like, scales, j)
                if is_log:
                    value = (value - load(weight_like, peaks, j)) - scale
                else:
                    value = _quotient(like, value, scale, 1.0 / scale)
                write_within(like, plane, j, n, value, past_caches)
    finish(sums, OK, 0.0, 0.0)


def backward_inner(call, scratch, lo, hi, sums):
    """`scratch` holds a tile of both inputs and the sums of its rows."""
    like, weight_like, is_log = call.like, call.weight_like, call.is_log != 0
    classes, inner, tile = call.classes, call.inner, call.tile
    x_class, dout_class, new_class = call.x_class, call.dout_class, call.new_class
    width, factors = lanes(like), scratch
    ds, totals = at(weight_like, factors, classes * tile), at(weight_like, factors, 2 * classes * tile)
    parts = at(weight_like, totals, tile)
    tiles = (inner + tile - 1) // tile
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n = min(tile, inner - i)
        row, drow = at(like, call.x, o * call.x_outer + i), at(like, call.dout, o * call.dout_outer + i)
        result = at(like, call.result, o * call.new_outer + i)
        for j in range(0, n, width):
            store(weight_like, totals, j, lift(like, 0.0))
        for block in range(0, classes, _BLOCK):
            for j in range(0, n, width):
                store(weight_like, parts, j, lift(like, 0.0))
            for c in range(block, min(block + _BLOCK, classes)):
                for j in range(0, n, width):
                    prefetch(like, row, c * x_class + j)
                    prefetch(like, drow, c * dout_class + j)
                    out = load_within(like, row, c * x_class + j, c * x_class + n)
                    d = load_within(like, drow, c * dout_class + j, c * dout_class + n)
                    store(weight_like, factors, c * tile + j, _factor(like, out, is_log))
                    store(weight_like, ds, c * tile + j, d)
                    part = load(weight_like, parts, j)
                    store(weight_like, parts, j, part + d if is_log else fma(d, out, part))
            for j in range(0, n, width):
                store(weight_like, totals, j, load(weight_like, totals, j) + load(weight_like, parts, j))
        for c in range(classes):
            plane = at(like, result, c * new_class)
            past_caches = passes_caches(call.large != 0, plane)
            for j in range(0, n, width):
                factor, d = load(weight_like, factors, c * tile + j), load(weight_like, ds, c * tile + j)
                value = _derivative(like, factor, d, load(weight_like, totals, j), is_log)
                write_within(like, plane, j, n, value, past_caches)
    finish(sums, OK, 0.0, 0.0)
