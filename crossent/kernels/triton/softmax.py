"""The kernels of softmax and log_softmax. A program has a tile of R slices, as those of a loss have tiles of rows.

What they compute is in `crossent.kernels.plain`: `slice_sums`, `softmax_of`, `log_softmax_of`, `log_softmax_grad_of`.
Everything is relative to the largest entry of a slice, whose exponential 1 is not in the sum of the others: so the
log-probability of a nearly certain class keeps its digits. A slice with nan or +inf, or of -inf alone, becomes nan.

Arguments are as in `losses`. Where slices take several tiles, of one slice only the last tile is masked (LAST), and the
first as well if it begins in the middle of a line.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from crossent.kernels.plain import SliceSums
from crossent.kernels.triton.language import INFINITY, NEARLY_CERTAIN, exp, expm1, finite, kept_exp, log1p
from crossent.kernels.triton.rows import (
    COUNTS,
    at_classes,
    begin_of,
    class_step,
    classes_from,
    place_of,
    shape_of,
    store,
)


class Slices(NamedTuple):
    """Those of a program, arrays (R,): outer and inner place, and whether there is such a slice."""

    outer: Any
    inner: Any
    here: Any


class Tiles(NamedTuple):
    """Those of slices whose entries are numbered from lo to hi: from `first` to `whole` they are not masked, and in
    steps of `step` from `rest` on they are.
    """

    lo: Any
    hi: Any
    first: Any
    whole: Any
    rest: Any
    step: Any


@triton.jit
def store_tile(array, values, rows, c, ok, SIDE: tl.constexpr, how: tl.constexpr, MASKED: tl.constexpr):
    place = at_classes(array, rows, how)[None, None, :] + place_of(c, class_step(array, how), SIDE)
    store(place, values.to(array.at.dtype.element_ty), ok, MASKED)


@triton.jit
def _slices_of(shape, how: tl.constexpr):
    outer, block = (tl.program_id(0) // shape.blocks).to(tl.int64), tl.program_id(0) % shape.blocks
    inner = block.to(tl.int64) * how.R + tl.arange(0, how.R)
    return Slices(outer, inner, inner < shape.inner)


@triton.jit
def _tiles_of(x, slices, shape, how: tl.constexpr):
    BLOCK: tl.constexpr = how.T * how.W
    if how.PEELED:
        lo = begin_of(x, slices, how)
        whole = (lo + shape.classes) // BLOCK * BLOCK
        tiles = Tiles(lo, lo + shape.classes, BLOCK, whole, 0, whole)  # of which the first and the last are masked
    else:
        whole = shape.classes // BLOCK * BLOCK if how.R == 1 else 0
        tiles = Tiles(0, shape.classes, 0, whole, whole, BLOCK)
    return tiles


@triton.jit
def _there(c, tiles, slices, how: tl.constexpr):
    ok = (c < tiles.hi) & slices.here[None, None, :]
    return ok & (c >= tiles.lo) if how.PEELED else ok


@triton.jit
def _load(array, slices, c, ok, SIDE: tl.constexpr, how: tl.constexpr, MASKED: tl.constexpr, POLICY: tl.constexpr):
    """A tile's entries; 0 where there are none."""
    place = at_classes(array, slices, how)[None, None, :] + place_of(c, class_step(array, how), SIDE)
    if MASKED:
        return tl.load(place, mask=ok, other=0.0, eviction_policy=POLICY).to(how.A)
    return tl.load(place, eviction_policy=POLICY).to(how.A)


@triton.jit
def _load_logits(x, slices, c, ok, how: tl.constexpr, MASKED: tl.constexpr, POLICY: tl.constexpr):
    """-inf where there are none."""
    z = _load(x, slices, c, ok, how.X_SIDE, how, MASKED, POLICY)
    return tl.where(ok, z, -INFINITY) if MASKED else z


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
def _sums_in_a_loop(x, slices, tiles, how: tl.constexpr, NARROW: tl.constexpr):
    """No thread waits for another before the end."""
    BLOCK: tl.constexpr = how.T * how.W
    nothing = tl.full((how.T, how.R), 0.0, how.A)
    sums = SliceSums(nothing - INFINITY, nothing, nothing)
    for LAST in tl.static_range(2):
        for start in range(tiles.rest if LAST else tiles.first, tiles.hi if LAST else tiles.whole,
                           tiles.step if LAST else BLOCK):  # fmt: skip
            c = classes_from(start, how)
            ok = _there(c, tiles, slices, how)
            sums = _added(sums, _load_logits(x, slices, c, ok, how, LAST == 1, "evict_last"), NARROW)
    return _joined(sums, NARROW)


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
    BLOCK: tl.constexpr = how.T * how.W
    slices = _slices_of(shape, how)
    if how.LOOP:
        tiles = _tiles_of(x, slices, shape, how)
        sums = _sums_in_a_loop(x, slices, tiles, how, NARROW)
        for LAST in tl.static_range(2):
            for start in range(tiles.rest if LAST else tiles.first, tiles.hi if LAST else tiles.whole,
                               tiles.step if LAST else BLOCK):  # fmt: skip
                c = classes_from(start, how)
                ok = _there(c, tiles, slices, how)
                z = _load_logits(x, slices, c, ok, how, LAST == 1, "evict_first") - sums.peak[None, None, :]
                results = _results(z, z if LOG else kept_exp(z, NARROW), sums, LOG)
                store_tile(out, results, slices, c, ok, how.DX_SIDE, how, LAST == 1)
    else:
        c = classes_from(0, how)
        ok = (c < shape.classes) & slices.here[None, None, :]
        z = _load_logits(x, slices, c, ok, how, MASKED, "evict_first")
        peak = tl.max(tl.max(z, 1), 0)
        z -= peak[None, None, :]
        e, largest = kept_exp(z, NARROW), z == 0.0
        others = tl.sum(tl.sum(tl.where(largest, 0.0, e), 1), 0)
        sums = SliceSums(peak, tl.sum(tl.sum(tl.where(largest, 1.0, 0.0), 1), 0), others)
        store_tile(out, _results(z, e, sums, LOG), slices, c, ok, how.DX_SIDE, how, MASKED)


# Backward


@triton.jit
def _load_both(out, dout, slices, c, ok, how: tl.constexpr, MASKED: tl.constexpr, POLICY: tl.constexpr):
    y = _load(out, slices, c, ok, how.X_SIDE, how, MASKED, POLICY)
    return y, _load(dout, slices, c, ok, how.T_SIDE, how, MASKED, POLICY)


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
    BLOCK: tl.constexpr = how.T * how.W
    slices = _slices_of(shape, how)
    if how.LOOP:
        tiles = _tiles_of(out, slices, shape, how)
        totals = tl.full((how.T, how.R), 0.0, how.A)
        for LAST in tl.static_range(2):
            for start in range(tiles.rest if LAST else tiles.first, tiles.hi if LAST else tiles.whole,
                               tiles.step if LAST else BLOCK):  # fmt: skip
                c = classes_from(start, how)
                ok = _there(c, tiles, slices, how)
                y, g = _load_both(out, dout, slices, c, ok, how, LAST == 1, "evict_last")
                totals += tl.sum(g if LOG else y * g, 1)
        total = tl.sum(totals, 0)
        for LAST in tl.static_range(2):
            for start in range(tiles.rest if LAST else tiles.first, tiles.hi if LAST else tiles.whole,
                               tiles.step if LAST else BLOCK):  # fmt: skip
                c = classes_from(start, how)
                ok = _there(c, tiles, slices, how)
                y, g = _load_both(out, dout, slices, c, ok, how, LAST == 1, "evict_first")
                store_tile(dx, _derivatives(y, g, total, LOG), slices, c, ok, how.DX_SIDE, how, LAST == 1)
    else:
        c = classes_from(0, how)
        ok = (c < shape.classes) & slices.here[None, None, :]
        y, g = _load_both(out, dout, slices, c, ok, how, MASKED, "evict_first")
        total = tl.sum(tl.sum(g if LOG else y * g, 1), 0)
        store_tile(dx, _derivatives(y, g, total, LOG), slices, c, ok, how.DX_SIDE, how, MASKED)
