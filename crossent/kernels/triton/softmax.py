"""The kernels of softmax and log_softmax. A program has a tile of R slices, as those of a loss have tiles of rows.

What they compute is in `crossent.kernels.plain`: `slice_sums`, `softmax_of`, `log_softmax_of`, `log_softmax_grad_of`.
Everything is relative to the largest entry of a slice, whose exponential 1 is not in the sum of the others: so the
log-probability of a nearly certain class keeps its digits. A slice with nan or +inf, or of -inf alone, becomes nan.

Arguments are as in `losses`. MASKED: whether a slice that is one tile does not fill it.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from crossent.kernels.plain import SliceSums
from crossent.kernels.triton.language import INFINITY, NEARLY_CERTAIN, exp, expm1, finite, kept_exp, log1p
from crossent.kernels.triton.rows import (
    BESIDE,
    COUNTS,
    LINES,
    WHOLE,
    at_classes,
    class_step,
    place_of,
    places_from,
    shape_of,
    span_of,
    store,
    sum_of,
    tiles_of,
    top_of,
    turns,
)


class Slices(NamedTuple):
    """Those of a program, arrays (R,): outer and inner place, and whether there is such a slice."""

    outer: Any
    inner: Any
    here: Any


@triton.jit
def store_tile(array, values, rows, place, ok, SIDE: tl.constexpr, how: tl.constexpr, KIND: tl.constexpr):
    at = at_classes(array, rows, how)[None, None, :] + place_of(place, class_step(array, how), SIDE)
    store(at, values.to(array.at.dtype.element_ty), ok, KIND != WHOLE)


@triton.jit
def _slices_of(shape, how: tl.constexpr):
    outer, block = (tl.program_id(0) // shape.blocks).to(tl.int64), tl.program_id(0) % shape.blocks
    inner = block.to(tl.int64) * how.R + tl.arange(0, how.R)
    return Slices(outer, inner, inner < shape.inner)


@triton.jit
def _places(start, span, slices, how: tl.constexpr, KIND: tl.constexpr):
    """Those of a tile's entries, and which of them there are."""
    place, there = places_from(start, span, how, KIND)
    return place, there & slices.here[None, None, :]


@triton.jit
def _load(array, slices, place, ok, SIDE: tl.constexpr, how: tl.constexpr, KIND: tl.constexpr, POLICY: tl.constexpr,
          NOTHING: tl.constexpr = 0.0):  # fmt: skip
    """A tile's entries, and what stands for them where there are none."""
    at = at_classes(array, slices, how)[None, None, :] + place_of(place, class_step(array, how), SIDE)
    if KIND != WHOLE:
        return tl.load(at, mask=ok, other=NOTHING, eviction_policy=POLICY).to(how.A)
    return tl.load(at, eviction_policy=POLICY).to(how.A)


@triton.jit
def _load_logits(x, slices, place, ok, how: tl.constexpr, KIND: tl.constexpr, POLICY: tl.constexpr):
    return _load(x, slices, place, ok, how.X_SIDE, how, KIND, POLICY, -INFINITY)


# Forward


@triton.jit
def _added(sums, z, NARROW: tl.constexpr):
    """The sums of each line of a tile's slices, (T, R), with a tile's entries added."""
    top = tl.maximum(sums.peak, tl.max(z, 1))
    peak, higher = finite(top), top > sums.peak
    z -= peak[:, None, :]
    largest = z == 0.0
    e = tl.where(largest, 0.0, kept_exp(z, NARROW))
    others = tl.where(higher, (sums.others + sums.count) * kept_exp(sums.peak - peak, NARROW), sums.others)
    count = tl.where(higher, 0.0, sums.count) + tl.sum(tl.where(largest, 1.0, 0.0), 1)
    return SliceSums(top, count, others + tl.sum(e, 1))


@triton.jit
def _joined(sums, NARROW: tl.constexpr):
    """The sums of whole slices, (R,), from those of their lines."""
    peak = tl.max(sums.peak, 0)
    largest, distance = sums.peak == peak[None, :], sums.peak - finite(peak)[None, :]
    others = tl.where(largest, sums.others, (sums.others + sums.count) * kept_exp(distance, NARROW))
    return SliceSums(peak, tl.sum(tl.where(largest, sums.count, 0.0), 0), tl.sum(others, 0))


@triton.jit
def _sums_in_a_loop(x, slices, span, how: tl.constexpr, NARROW: tl.constexpr):
    """No thread waits for another before the end."""
    nothing, tiles = tl.full((how.T, how.R), 0.0, how.A), tiles_of(span, None, how)
    sums = SliceSums(nothing - INFINITY, nothing, nothing)
    for KIND in tl.static_range(2 + how.PEELED):
        first, last = turns(tiles, KIND)
        for start in range(first, last, how.T * how.W):
            place, ok = _places(start, span, slices, how, KIND)
            sums = _added(sums, _load_logits(x, slices, place, ok, how, KIND, "evict_last"), NARROW)
    return _joined(sums, NARROW)


@triton.jit
def _less_peak(z, peak, NARROW: tl.constexpr):
    """Entries less the peak, their exponentials, those of entries below the peak, and which are the peak."""
    z -= peak[None, None, :]
    e, largest = kept_exp(z, NARROW), z == 0.0
    return z, e, tl.where(largest, 0.0, e), largest.to(tl.int32)


@triton.jit
def _results(z, e, sums, LOG: tl.constexpr):
    """Of entries less the peak and their exponentials."""
    rest = (sums.others + (sums.count - 1.0))[None, None, :]
    if LOG:
        few = rest <= 1.0
        return z - tl.where(few, log1p(tl.where(few, rest, 1.0)), tl.log(1.0 + rest))
    return e * (1.0 / (1.0 + rest))


@triton.jit(do_not_specialize=COUNTS)
def forward(x, out, classes, inner, blocks, rows, how: tl.constexpr, LOG: tl.constexpr, MASKED: tl.constexpr):
    """The logits are read once, in a loop twice, the second time from the cache for the most part. DX_SIDE is out's."""
    shape = shape_of(classes, inner, blocks, rows, how)
    NARROW: tl.constexpr = out.at.dtype.element_ty.primitive_bitwidth == 16
    slices = _slices_of(shape, how)
    span = span_of(x, slices, shape.classes, how)
    if how.LOOP:
        sums, tiles = _sums_in_a_loop(x, slices, span, how, NARROW), tiles_of(span, None, how)
        for KIND in tl.static_range(2 + how.PEELED):
            first, last = turns(tiles, KIND)
            for start in range(first, last, how.T * how.W):
                place, ok = _places(start, span, slices, how, KIND)
                z = _load_logits(x, slices, place, ok, how, KIND, "evict_first") - sums.peak[None, None, :]
                results = _results(z, z if LOG else kept_exp(z, NARROW), sums, LOG)
                store_tile(out, results, slices, place, ok, how.DX_SIDE, how, KIND)
    else:
        KIND: tl.constexpr = LINES if MASKED else WHOLE
        place, ok = _places(span.lo, span, slices, how, KIND)
        z = _load_logits(x, slices, place, ok, how, KIND, "evict_first")
        edges = z
        if how.PEELED:
            place_beside, ok_beside = _places(0, span, slices, how, BESIDE)
            edges = _load_logits(x, slices, place_beside, ok_beside, how, BESIDE, "evict_first")
        peak = top_of(z, edges, how)
        z, e, others, count = _less_peak(z, peak, NARROW)
        edges, e_beside, others_beside, count_beside = _less_peak(edges, peak, NARROW)
        sums = SliceSums(peak, sum_of(count, count_beside, how).to(how.A), sum_of(others, others_beside, how))
        if how.PEELED:
            results = _results(edges, e_beside, sums, LOG)
            store_tile(out, results, slices, place_beside, ok_beside, how.DX_SIDE, how, BESIDE)
        store_tile(out, _results(z, e, sums, LOG), slices, place, ok, how.DX_SIDE, how, KIND)


# Backward


@triton.jit
def _load_both(out, dout, slices, start, span, how: tl.constexpr, KIND: tl.constexpr, POLICY: tl.constexpr):
    """Results and upstream gradients of a tile, their places, and which there are."""
    place, ok = _places(start, span, slices, how, KIND)
    y = _load(out, slices, place, ok, how.X_SIDE, how, KIND, POLICY)
    return y, _load(dout, slices, place, ok, how.T_SIDE, how, KIND, POLICY), place, ok


@triton.jit
def _derivatives(y, g, total, LOG: tl.constexpr):
    """Of results y, upstream gradients g, and the slices' sums of g or, without LOG, of y * g."""
    total = total[None, None, :]
    if LOG:
        return tl.where(y > NEARLY_CERTAIN, (g - total) - expm1(y) * total, g - exp(y) * total)
    return y * (g - total)


@triton.jit(do_not_specialize=COUNTS)
def backward(out, dout, dx, classes, inner, blocks, rows, how: tl.constexpr, LOG: tl.constexpr, MASKED: tl.constexpr):
    """X_SIDE is out's, T_SIDE dout's."""
    shape = shape_of(classes, inner, blocks, rows, how)
    slices = _slices_of(shape, how)
    span = span_of(out, slices, shape.classes, how)
    if how.LOOP:
        totals, tiles = tl.full((how.T, how.R), 0.0, how.A), tiles_of(span, None, how)
        for KIND in tl.static_range(2 + how.PEELED):
            first, last = turns(tiles, KIND)
            for start in range(first, last, how.T * how.W):
                y, g, _, _ = _load_both(out, dout, slices, start, span, how, KIND, "evict_last")
                totals += tl.sum(g if LOG else y * g, 1)
        total = tl.sum(totals, 0)
        for KIND in tl.static_range(2 + how.PEELED):
            first, last = turns(tiles, KIND)
            for start in range(first, last, how.T * how.W):
                y, g, place, ok = _load_both(out, dout, slices, start, span, how, KIND, "evict_first")
                store_tile(dx, _derivatives(y, g, total, LOG), slices, place, ok, how.DX_SIDE, how, KIND)
    else:
        KIND: tl.constexpr = LINES if MASKED else WHOLE
        y, g, place, ok = _load_both(out, dout, slices, span.lo, span, how, KIND, "evict_first")
        edges = y, g, place, ok
        if how.PEELED:
            edges = _load_both(out, dout, slices, 0, span, how, BESIDE, "evict_first")
        total = sum_of(g if LOG else y * g, edges[1] if LOG else edges[0] * edges[1], how)
        store_tile(dx, _derivatives(y, g, total, LOG), slices, place, ok, how.DX_SIDE, how, KIND)
        if how.PEELED:
            d = _derivatives(edges[0], edges[1], total, LOG)
            store_tile(dx, d, slices, edges[2], edges[3], how.DX_SIDE, how, BESIDE)
