"""Softmax and log-softmax of rows of either layout, and their derivatives from what they returned.

Where one class outweighs all others together, its log-probability is -log(1 + rest). `rest` is the sum of the others'
exponentials, relative to the row's largest logit. The sum of all, 1 + rest, loses the digits of rest, so both sums are
made.
"""

import math

import numpy as np

from crossent.kernels.cpu import rows, state as st, vector as v
from crossent.kernels.cpu.across import tile_place
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.exponentials import Block, rescaled, sum_of_block
from crossent.kernels.cpu.math import exp, exp_or_expm1, log_of_sum
from crossent.kernels.cpu.rows import BLOCK

_PEAK, _SCALE = _TOTAL, _PART = 0, 1  # arrays of a tile's `State`: two in the forward pass, two in the backward pass
_TINY = 1.2e-38  # the smallest normal number of float32, nearly
_BLOCK = 64  # vectors summed before they are added to the total: short sums keep their digits


@inline
def _quotient(storage, x, y, reciprocal):
    """x / y from 1 / y with one step of refinement; but for rare cases it has the same bits.

    For processors that divide vectors of 512 bits slowly. On one that does not (AMD Zen 4) a softmax over 1024 x 1000
    takes 5 % longer for it (`python -m benchmarks.softmax`); its results keep their bits on all.
    """
    quotient = x * reciprocal
    return v.fma(v.fma(v.splat(storage, 0.0) - quotient, y, x), reciprocal, quotient)


@inline
def _result(storage, z, total, reciprocal, log_total, is_log):
    """The result for a logit z, which is relative to the peak."""
    if is_log:
        return z - log_total
    return _quotient(storage, exp(storage, z), total, reciprocal)


@inline
def _factor(storage, out, is_log):
    """What the sum over dout is multiplied by: the probability p. For log-softmax, where p is nearly 1, it is p - 1
    instead, which keeps its digits; being negative, it can be told from p.
    """
    if is_log:
        near, value = exp_or_expm1(storage, out)
        least = v.splat(storage, -_TINY)
        return v.select(near, v.select(value < least, value, least), value)
    return out


@inline
def _derivative(storage, factor, dout, total, is_log):
    """The derivative. `total` is the sum of dout * out over the classes, for log-softmax the sum of dout."""
    if is_log:
        return v.select(factor < v.splat(storage, 0.0), dout - total, dout) - factor * total
    return factor * (dout - total)


@inline
def _first_in(storage, row, j, step, value):
    """The first class with this logit in the vectors at j, j + step, j + 2 * step and so on, one of which has it."""
    wanted = v.splat(storage, value)
    lane = v.find_first(v.eq(v.load(storage, row, j), wanted))
    while lane == v.lanes(storage):
        j += step
        lane = v.find_first(v.eq(v.load(storage, row, j), wanted))
    return j + lane


@inline
def _top_of_block(storage, row, n, least):
    """The largest logit and, if it is more than `least`, a class that has it, else -1.

    Four vectors are compared at once, each with the earlier ones at its place; then one of the four places is searched.
    One at a time takes 4 % longer for a softmax over 1024 x 1000 (`python -m benchmarks.softmax`).
    """
    width, nothing = v.lanes(storage), v.splat(storage, -np.inf)
    step = 4 * width
    a, b, c, d, rest = nothing, nothing, nothing, nothing, nothing
    full, whole = n // step * step, n // width * width
    for j in range(0, full, step):
        a, b = v.max(v.load(storage, row, j), a), v.max(v.load(storage, row, j + width), b)
        c, d = v.max(v.load(storage, row, j + 2 * width), c), v.max(v.load(storage, row, j + 3 * width), d)
    for j in range(full, whole, width):
        rest = v.max(v.load(storage, row, j), rest)
    if whole < n:
        rest = v.max(rows.masked_logits(storage, row, whole, v.first_n(storage, n - whole), 0.0), rest)
    top = np.float64(v.reduce_max(v.max(v.max(v.max(a, b), v.max(c, d)), rest)))
    value = v.splat(storage, top)
    if not top > least:
        return top, -1
    for place in range(4):
        if v.any_true(v.eq(a, value)):
            return top, _first_in(storage, row, place * width, step, top)
        a, b, c, d = b, c, d, a
    for j in range(full, whole, width):
        if v.any_true(v.eq(v.load(storage, row, j), value)):
            return top, j + v.find_first(v.eq(v.load(storage, row, j), value))
    return top, whole + v.find_first(
        v.eq(rows.masked_logits(storage, row, whole, v.first_n(storage, n - whole), 0.0), value)
    )


@inline
def _sums(storage, row, classes):
    """The largest logit, and relative to it the sum of exp(x) over all classes but one with that logit.

    The sum is nan if a logit is nan or inf, or if all are -inf.
    """
    peak, others = -np.inf, 0.0
    for lo in range(0, classes, BLOCK):
        n, block = min(BLOCK, classes - lo), v.at(storage, row, lo)
        top, place = _top_of_block(storage, block, n, peak)
        view = Block(storage, storage, 0, rows.finite_peak(top), 0.0, BLOCK)
        total = sum_of_block(view, block, n, place)
        if lo == 0:
            others, peak = total, top
        elif top > peak:
            others, peak = (others + 1.0) * math.exp(peak - top) + total, top
        else:
            others += total * rescaled(top, peak)
    return rows.finite_peak(peak), others + (peak - peak)


@inline
def _result_of(call, place):
    return v.at(call.storage, call.result, rows.offset(place, call.new_outer, call.new_inner))


def forward_along(call, scratch, lo, hi, outcome):
    """Rows lo to hi."""
    storage, classes, is_log, width = call.storage, call.classes, call.is_log != 0, v.lanes(call.storage)
    for r in range(lo, hi):
        place = rows.place_of(call, r)
        row, result = rows.logits_of(call, place), _result_of(call, place)
        peak, others = _sums(storage, row, classes)
        total = v.splat(storage, others + 1.0)
        reciprocal, log_total = 1.0 / total, log_of_sum(storage, total, v.splat(storage, others))
        past_caches, full = rows.passes_caches(call.large != 0, result), classes // width * width
        for j in range(0, full, width):
            value = _result(storage, v.load(storage, row, j) - peak, total, reciprocal, log_total, is_log)
            rows.store_or_stream(storage, result, j, value, past_caches)
        if full < classes:
            z = rows.load_n(storage, row, full, classes) - peak
            value = _result(storage, z, total, reciprocal, log_total, is_log)
            rows.store_n(storage, result, full, classes, value, past_caches)
    rows.finish(outcome, rows.NO_SUMS)


@inline
def _upstream_sum(storage, row, drow, classes, is_log):
    """The sum of dout * out over the classes, for log-softmax the sum of dout."""
    total, width = v.splat(storage, 0.0), v.lanes(storage)
    for block in range(0, classes, _BLOCK * width):
        part = v.splat(storage, 0.0)
        for j in range(block, min(block + _BLOCK * width, classes), width):
            v.prefetch(storage, drow, j)
            d = rows.load_n(storage, drow, j, classes)
            if is_log:
                part = part + d
            else:
                v.prefetch(storage, row, j)
                part = v.fma(d, rows.load_n(storage, row, j, classes), part)
        total = total + part
    return v.reduce_sum(total)


def backward_along(call, scratch, lo, hi, outcome):
    """Rows lo to hi; `x` is what forward returned."""
    storage, classes, is_log = call.storage, call.classes, call.is_log != 0
    for r in range(lo, hi):
        place = rows.place_of(call, r)
        row, result = rows.logits_of(call, place), _result_of(call, place)
        drow = v.at(storage, call.dout, rows.offset(place, call.dout_outer, call.dout_inner))
        summed = v.splat(storage, _upstream_sum(storage, row, drow, classes, is_log))
        past_caches = rows.passes_caches(call.large != 0, result)
        for j in range(0, classes, v.lanes(storage)):
            d, out = rows.load_n(storage, drow, j, classes), rows.load_n(storage, row, j, classes)
            if is_log:  # as `_derivative`, with the mask `near` at hand
                near, factor = exp_or_expm1(storage, out)
                value = v.select(near, d - summed, d) - factor * summed
            else:
                value = _derivative(storage, out, d, summed, False)
            rows.store_n(storage, result, j, classes, value, past_caches)
    rows.finish(outcome, rows.NO_SUMS)


@inline
def _copy_tile(call, row, n, buffer, state):
    """Copy the logits of n rows to the buffer, and write the largest of each row."""
    storage, compute, classes, x_class, tile = call.storage, call.compute, call.classes, call.x_class, call.tile
    width, peaks = v.lanes(storage), st.array(state, _PEAK)
    for j in range(0, n, width):
        v.store(compute, peaks, j, v.splat(storage, -np.inf))
    for c in range(classes):
        for j in range(0, n, width):
            v.prefetch(storage, row, c * x_class + j)
            z = rows.load_n(storage, row, c * x_class + j, c * x_class + n)
            v.store(compute, buffer, c * tile + j, z)
            v.store(compute, peaks, j, v.max(z, v.load(compute, peaks, j)))


@inline
def _exponentiate_tile(call, n, buffer, state):
    """Write the sums of n rows; for softmax, replace the logits in the buffer by exponentials."""
    storage, compute, classes, tile, is_log = call.storage, call.compute, call.classes, call.tile, call.is_log != 0
    zero = v.splat(storage, 0.0)
    for j in range(0, n, v.lanes(storage)):
        peak = st.load(state, _PEAK, j)
        peak = v.select(v.eq(peak, v.splat(storage, -np.inf)), zero, peak)
        total, rest = zero, zero
        for block in range(0, classes, _BLOCK):
            part, part_rest = zero, zero
            for c in range(block, min(block + _BLOCK, classes)):
                z = v.load(compute, buffer, c * tile + j) - peak
                e = exp(storage, z)
                part = part + e
                if is_log:
                    part_rest = part_rest + v.select(z < zero, e, zero)
                else:
                    v.store(compute, buffer, c * tile + j, e)
            total, rest = total + part, rest + part_rest
        st.store(state, _PEAK, j, peak)
        st.store(state, _SCALE, j, log_of_sum(storage, total, rest) if is_log else total)


@inline
def _write_tile(call, n, buffer, state, result):
    storage, compute, tile, is_log, large = call.storage, call.compute, call.tile, call.is_log != 0, call.large != 0
    new_class = call.new_class
    for c in range(call.classes):
        plane = v.at(storage, result, c * new_class)
        past_caches = rows.passes_caches(large, plane)
        for j in range(0, n, v.lanes(storage)):
            value, scale = v.load(compute, buffer, c * tile + j), st.load(state, _SCALE, j)
            if is_log:
                value = (value - st.load(state, _PEAK, j)) - scale
            else:
                value = _quotient(storage, value, scale, 1.0 / scale)
            rows.store_n(storage, plane, j, n, value, past_caches)


def forward_across(call, scratch, lo, hi, outcome):
    """Tiles lo to hi. `scratch` holds the logits of one tile, the peaks of its rows, and their scales or shifts."""
    state = st.State(call.storage, call.compute, v.at(call.compute, scratch, call.classes * call.tile), call.tile)
    for unit in range(lo, hi):
        o, i, n = tile_place(call, unit)
        _copy_tile(call, v.at(call.storage, call.x, o * call.x_outer + i), n, scratch, state)
        _exponentiate_tile(call, n, scratch, state)
        _write_tile(call, n, scratch, state, v.at(call.storage, call.result, o * call.new_outer + i))
    rows.finish(outcome, rows.NO_SUMS)


@inline
def _sum_tile(call, row, drow, n, buffers, state):
    """Copy the factors and the upstream gradients of n rows to the buffers; write the sums, as in `_upstream_sum`."""
    storage, compute, classes, tile, is_log = call.storage, call.compute, call.classes, call.tile, call.is_log != 0
    x_class, dout_class, width, (factors, ds) = call.x_class, call.dout_class, v.lanes(call.storage), buffers
    for j in range(0, n, width):
        st.store(state, _TOTAL, j, v.splat(storage, 0.0))
    for block in range(0, classes, _BLOCK):
        for j in range(0, n, width):
            st.store(state, _PART, j, v.splat(storage, 0.0))
        for c in range(block, min(block + _BLOCK, classes)):
            for j in range(0, n, width):
                v.prefetch(storage, row, c * x_class + j)
                v.prefetch(storage, drow, c * dout_class + j)
                out = rows.load_n(storage, row, c * x_class + j, c * x_class + n)
                d = rows.load_n(storage, drow, c * dout_class + j, c * dout_class + n)
                v.store(compute, factors, c * tile + j, _factor(storage, out, is_log))
                v.store(compute, ds, c * tile + j, d)
                part = st.load(state, _PART, j)
                st.store(state, _PART, j, part + d if is_log else v.fma(d, out, part))
        for j in range(0, n, width):
            st.store(state, _TOTAL, j, st.load(state, _TOTAL, j) + st.load(state, _PART, j))


def backward_across(call, scratch, lo, hi, outcome):
    """Tiles lo to hi. `scratch` holds both inputs of one tile and the sums of its rows."""
    storage, compute, classes, tile, is_log = call.storage, call.compute, call.classes, call.tile, call.is_log != 0
    factors, ds = scratch, v.at(compute, scratch, classes * tile)
    state, new_class, large = (
        st.State(storage, compute, v.at(compute, ds, classes * tile), tile),
        call.new_class,
        call.large,
    )
    for unit in range(lo, hi):
        o, i, n = tile_place(call, unit)
        row, drow = v.at(storage, call.x, o * call.x_outer + i), v.at(storage, call.dout, o * call.dout_outer + i)
        _sum_tile(call, row, drow, n, (factors, ds), state)
        result = v.at(storage, call.result, o * call.new_outer + i)
        for c in range(classes):
            plane = v.at(storage, result, c * new_class)
            past_caches = rows.passes_caches(large, plane)
            for j in range(0, n, v.lanes(storage)):
                factor, d = v.load(compute, factors, c * tile + j), v.load(compute, ds, c * tile + j)
                value = _derivative(storage, factor, d, st.load(state, _TOTAL, j), is_log)
                rows.store_n(storage, plane, j, n, value, past_caches)
    rows.finish(outcome, rows.NO_SUMS)
