"""The kernels of a cross entropy.

Arguments are tuples with names, see `rows`: a kernel gets arrays with their strides, the shape, the settings, and `how`
it is compiled. Weights are of the arithmetic's type and dense, and so are the sums: six arrays of all rows, in the
order of `Sums`. What is not given is None.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from crossent.kernels import Sums
from crossent.kernels.triton.language import INFINITY, exp, finite, number, relative_to, target_grad
from crossent.kernels.triton.rows import (
    BESIDE,
    COUNTS,
    LINES,
    WHOLE,
    added,
    at_classes,
    at_rows,
    by_exponentials,
    class_step,
    counting,
    exponentials,
    gradient_of,
    joined,
    label_of,
    load_tile,
    losses_of,
    no_sums,
    own_of,
    part_of,
    place_of,
    places_from,
    rows_beside,
    rows_of_block,
    shape_of,
    slopes_of,
    span_of,
    store,
    sums_of_tile,
    terms_of,
    tile_of,
    tiles_of,
    turns,
    without_ignored,
)

NO_ROW = tl.constexpr(2.0**62)
GROUP = tl.constexpr(64)  # programs


class Totals(NamedTuple):
    """Where the totals of all rows go: `numbers` of float64 are the sum of the losses and that of the weights, `scale`
    is the inverse of the second, `total` and `mean` have the dtype of the loss; None where nobody wants them. `flag`
    and `found` are those of a `Note`, or None. Of several programs, `partial` has room for three numbers of each and of
    each group, and `through` counts groups and the programs of each, and is 0 again after the last; else both are None.
    """

    flag: Any
    found: Any
    partial: Any = None
    through: Any = None
    numbers: Any = None
    scale: Any = None
    total: Any = None
    mean: Any = None


# Sums


@triton.jit
def _sums_by_line(x, target, w, program, span, terms, how: tl.constexpr):
    """The sums of lines over the places of a span."""
    sums, tiles = no_sums(how), tiles_of(span, label_of(x, program, how), how)
    for KIND in tl.static_range(2 + how.PEELED):
        first, last = turns(tiles, KIND)
        for start in range(first, last, how.T * how.W):
            here = tile_of(start, tiles, how, KIND)
            tile = load_tile(x, target, w, program, here, span, terms, how, KIND, "evict_last")
            sums = added(sums, tile, program, terms, how, KIND)
    return sums


@triton.jit
def _sums_at_once(x, target, w, program, span, own, own_weight, terms, how: tl.constexpr, POLICY: tl.constexpr):
    """The tile that a row is, and the edges BESIDE it if it is PEELED; what `sums_of_tile` says of them."""
    tile = load_tile(x, target, w, program, span.lo, span, terms, how, LINES, POLICY)
    edges = tile
    if how.PEELED:
        edges = load_tile(x, target, w, program, 0, span, terms, how, BESIDE, POLICY)
    return tile, edges, sums_of_tile(tile, edges, program, own, own_weight, terms, how)


@triton.jit
def _store_sums(sums, into, program, rows):
    at, rows = into + program.row, tl.cast(rows, tl.int64)
    tl.store(at, sums.peak, mask=program.here)
    tl.store(at + rows, sums.others, mask=program.here)
    tl.store(at + 2 * rows, sums.own, mask=program.here)
    tl.store(at + 3 * rows, sums.own_weight, mask=program.here)
    tl.store(at + 4 * rows, sums.mass, mask=program.here)
    tl.store(at + 5 * rows, sums.dot, mask=program.here)


@triton.jit
def _load_sums(sums, program, rows):
    at, here, rows = sums + program.row, program.here, tl.cast(rows, tl.int64)
    return Sums(
        tl.load(at, mask=here, other=0.0),
        tl.load(at + rows, mask=here, other=1.0),
        tl.load(at + 2 * rows, mask=here, other=0.0),
        tl.load(at + 3 * rows, mask=here, other=0.0),
        tl.load(at + 4 * rows, mask=here, other=0.0),
        tl.load(at + 5 * rows, mask=here, other=0.0),
    )


@triton.jit(do_not_specialize=COUNTS)
def sums_of_rows(x, target, w, samples, sums, losses, totals, parts, tiles, programs, classes, inner, blocks, rows,
                 settings, how: tl.constexpr):  # fmt: skip
    """The first stage, for each of the parts of the classes, so many tiles: sums[part] are its `Sums`. If all classes
    are one part, `totals` may be given, and both stages are made.
    """
    shape = shape_of(classes, inner, blocks, rows, how)
    part, block = tl.program_id(0) % parts, tl.program_id(0) // parts
    terms, program = terms_of(settings, how), rows_of_block(block, target, samples, shape, settings, how)
    own, own_weight = own_of(x, w, program, shape, terms, how)
    span = counting(span_of(x, program, shape.classes, how), program, True, how)
    if how.LOOP:
        span = part_of(span, part, parts, tiles, how)
        found = joined(_sums_by_line(x, target, w, program, span, terms, how), own, own_weight, terms, how)
    else:
        _, _, of_tile = _sums_at_once(x, target, w, program, span, own, own_weight, terms, how, "evict_last")
        found = of_tile[0]
    found = without_ignored(found, program)
    _store_sums(found, sums + part.to(tl.int64) * 6 * tl.cast(shape.rows, tl.int64), program, shape.rows)
    if totals is not None:
        finish(losses, totals, programs, program, losses_of(found, program.keep, terms, how), own_weight, target, how)


@triton.jit
def _merged(sums, parts, program, rows):
    """The sums of rows from those of their parts, in order; what `crossent.kernels.plain.merged` is for shards.

    The label's logit and class weight are the same in all parts.
    """
    first, of_part = _load_sums(sums, program, rows), tl.cast(rows, tl.int64) * 6
    top = first.own
    for part in range(parts):
        found = _load_sums(sums + part * of_part, program, rows)
        top = tl.maximum(top, tl.where(found.others == 0.0, -INFINITY, found.peak))
    top = finite(top)
    others, mass, dot = tl.zeros_like(top), tl.zeros_like(top), tl.zeros_like(top)
    for part in range(parts):
        found = _load_sums(sums + part * of_part, program, rows)
        others += tl.where(found.others == 0.0, 0.0, found.others * exp(found.peak - top))
        dot += found.dot + found.mass * (found.peak - top)
        mass += found.mass
    return Sums(top, others, first.own, first.own_weight, mass, dot)


# Totals


@triton.jit
def _store_rounded(at, value):
    HALF: tl.constexpr = at.dtype.element_ty.primitive_bitwidth == 16
    if HALF:  # no kernel turns float64 into 16 bits
        value = value.to(tl.float32)
    tl.store(at, value.to(at.dtype.element_ty))


@triton.jit
def leave(row, label, flag, found):
    """Leave a bad label in a `Note`. What is there is read from memory anew: the host may have taken it."""
    if tl.load(found, volatile=True) < 0:
        tl.store(found + 1, label)
        tl.store(found + 2, row ^ label)
        tl.store(found, row)
    tl.store(flag, 1)


@triton.jit
def _store_totals(totals, loss, weight, bad_row, target, how: tl.constexpr):
    if totals.numbers is not None:
        tl.store(totals.numbers, loss)
        tl.store(totals.numbers + 1, weight)
    if totals.scale is not None:
        tl.store(totals.scale, 1.0 / weight)
    if totals.total is not None:
        _store_rounded(totals.total, loss)
    if totals.mean is not None:
        _store_rounded(totals.mean, loss / weight)
    if totals.found is not None and not how.SOFT:
        if bad_row != NO_ROW:
            row = bad_row.to(tl.int64)
            leave(row, tl.load(target.at + row), totals.flag, totals.found)


@triton.jit
def _store_part(totals, at, stride, loss, weight, bad_row):
    """What a program's rows add, or a group's, in the place `at` of the partial numbers."""
    at = totals.partial + at
    tl.store(at, bad_row)
    if totals.numbers is not None:
        tl.store(at + stride, loss)
        tl.store(at + 2 * stride, weight)


@triton.jit
def _sum_of_parts(totals, lo, hi, stride, BLOCK: tl.constexpr):
    """The sums of those from lo to hi, in their order, and the first bad row."""
    losses, weights = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    first_bad = tl.full((BLOCK,), NO_ROW, tl.float64)
    for start in range(lo, hi, BLOCK):
        i = start + tl.arange(0, BLOCK)
        at, there = totals.partial + i, i < hi
        first_bad = tl.minimum(first_bad, tl.load(at, mask=there, other=NO_ROW, cache_modifier=".cg"))
        if totals.numbers is not None:
            losses += tl.load(at + stride, mask=there, other=0.0, cache_modifier=".cg")
            weights += tl.load(at + 2 * stride, mask=there, other=0.0, cache_modifier=".cg")
    return tl.sum(losses, 0), tl.sum(weights, 0), tl.min(first_bad, 0)


@triton.jit
def add_up(totals, programs, loss, weight, bad_row, target, how: tl.constexpr):
    """Store the totals of what a program's rows add. Of several the last of each group adds up the group, and the last
    of these all groups, in the order of their numbers.
    """
    if totals.through is None:
        _store_totals(totals, loss, weight, bad_row, target, how)
    else:
        groups = tl.cdiv(programs, GROUP)
        group, stride = tl.program_id(0) // GROUP, programs + groups
        lo, hi = group * GROUP, tl.minimum(group * GROUP + GROUP, programs)
        _store_part(totals, tl.program_id(0), stride, loss, weight, bad_row)
        if tl.atomic_add(totals.through + 1 + group, 1, sem="acq_rel") == hi - lo - 1:
            of_group = _sum_of_parts(totals, lo, hi, stride, GROUP)
            _store_part(totals, programs + group, stride, of_group[0], of_group[1], of_group[2])
            tl.store(totals.through + 1 + group, 0)
            if tl.atomic_add(totals.through, 1, sem="acq_rel") == groups - 1:
                of_all = _sum_of_parts(totals, programs, stride, stride, 4 * GROUP)
                _store_totals(totals, of_all[0], of_all[1], of_all[2], target, how)
                tl.store(totals.through, 0)


@triton.jit
def first_bad_row(program):
    """The number of a program's first row with a bad label, as `add_up` takes it."""
    return tl.min(tl.where(program.bad, program.row.to(tl.float64), NO_ROW), 0)


@triton.jit
def finish(losses, totals, programs, program, loss, own_weight, target, how: tl.constexpr):
    """Total the losses of a program's rows, and store them where they are wanted. A bad label makes its row's loss nan,
    and has no weight.
    """
    loss = tl.where(program.bad, float("nan"), tl.where(program.counts, loss, 0.0))
    weight = tl.where(program.counts, program.keep if how.SOFT else program.keep * own_weight, 0.0)
    if losses is not None:
        tl.store(losses + program.row, loss.to(losses.dtype.element_ty), mask=program.here)
    loss = tl.sum(tl.where(program.here, loss, 0.0).to(tl.float64), 0)
    add_up(totals, programs, loss, tl.sum(weight.to(tl.float64), 0), first_bad_row(program), target, how)


@triton.jit(do_not_specialize=COUNTS)
def losses_of_rows(target, samples, sums, parts, merged, losses, totals, programs, classes, inner, blocks, rows,
                   settings, how: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The second stage. The sums of parts are put together first, and left in `merged` if it is given."""
    shape = shape_of(classes, inner, blocks, rows, how)
    terms, program = terms_of(settings, how), rows_beside(target, samples, shape, settings, how, BLOCK)
    found = _merged(sums, parts, program, shape.rows)
    if merged is not None:
        _store_sums(found, merged, program, shape.rows)
    if totals is not None:
        loss = losses_of(found, program.keep, terms, how)
        finish(losses, totals, programs, program, loss, found.own_weight, target, how)


@triton.jit(do_not_specialize=COUNTS)
def weights_of_rows(target, w, samples, totals, programs, classes, inner, blocks, rows, settings, how: tl.constexpr,
                    BLOCK: tl.constexpr):  # fmt: skip
    """The total of the weights alone, before anything is read of the logits."""
    shape = shape_of(classes, inner, blocks, rows, how)
    program = rows_beside(target, samples, shape, settings, how, BLOCK)
    weight = tl.where(program.counts, program.keep, 0.0)
    if how.WEIGHTED and not how.SOFT:
        weight *= tl.load(w + program.label, mask=program.counts, other=0.0).to(how.A)
    add_up(totals, programs, 0.0, tl.sum(weight.to(tl.float64), 0), NO_ROW, target, how)


# Gradients


@triton.jit
def _put_zeros(dx, program, start, span, how: tl.constexpr, KIND: tl.constexpr):
    """A tile of the gradient of rows that do not count."""
    place, there = places_from(start, span, how, KIND)
    at = at_classes(dx, program, how)[None, None, :] + place_of(place, class_step(dx, how), how.DX_SIDE)
    tl.store(at, tl.zeros(place.shape, how.A).to(dx.at.dtype.element_ty), mask=there, cache_modifier=".cs")


@triton.jit
def _put_gradient(dx, tile, e, slopes, program, how: tl.constexpr, KIND: tl.constexpr):
    g = gradient_of(tile, e, slopes, program, how, KIND)
    if how.R > 1 or how.SOFT:
        g = tl.where(program.counts[None, None, :], g, 0.0)
    g = g.to(dx.at.dtype.element_ty)
    place = at_classes(dx, program, how)[None, None, :] + place_of(tile.place, class_step(dx, how), how.DX_SIDE)
    store(place, g, tile.ok, KIND != WHOLE)


@triton.jit
def _put_target_gradient(dtarget, w, tile, peak, slopes, program, terms, how: tl.constexpr):
    weight = tl.load(w + tile.c, mask=tile.ok, other=0.0).to(how.A) if how.WEIGHTED else 1.0
    z = tile.z * terms.cap if how.CAPPED else tile.z
    relative, by = z - peak[None, None, :], slopes.of_target[None, None, :]
    d = target_grad(slopes.cost[None, None, :], relative, weight, by, terms.smoothing)
    d = tl.where(program.counts[None, None, :], d, 0.0).to(dtarget.at.dtype.element_ty)
    of_class = class_step(dtarget, how)
    place = at_classes(dtarget, program, how)[None, None, :] + place_of(tile.place, of_class, how.DT_SIDE)
    tl.store(place, d, mask=tile.ok, cache_modifier=".cs")


@triton.jit
def _put_gradients(x, target, w, dx, dtarget, program, start, span, peak, relative, slopes, terms, how: tl.constexpr,
                   KIND: tl.constexpr):  # fmt: skip
    """Read a tile and store its gradients."""
    tile = load_tile(x, target, w, program, start, span, terms, how, KIND, "evict_first")
    _put_gradient(dx, tile, exponentials(tile.z, relative, terms, how), slopes, program, how, KIND)
    if dtarget is not None:
        _put_target_gradient(dtarget, w, tile, peak, slopes, program, terms, how)


@triton.jit(do_not_specialize=COUNTS)
def gradients_of_rows(x, target, w, samples, sums, upstream, by, scale, dx, dtarget, tiles, classes, inner, blocks,
                      rows, settings, how: tl.constexpr):  # fmt: skip
    """The second stage, for a tile: the gradients of by * scale * upstream * losses. dx may be x."""
    shape = shape_of(classes, inner, blocks, rows, how)
    part, block = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    terms, program = terms_of(settings, how), rows_of_block(block, target, samples, shape, settings, how)
    span = part_of(span_of(x, program, shape.classes, how), part, tiles, 1, how)
    if how.R == 1 and dtarget is None:
        if tl.sum(program.counts.to(tl.int32), 0) == 0:
            _put_zeros(dx, program, span.lo, span, how, LINES)
            if how.PEELED:
                _put_zeros(dx, program, 0, span, how, BESIDE)
            return
    above = tl.load(at_rows(upstream, program), mask=program.here, other=0.0).to(how.A) * number(by, how.A)
    if scale is not None:
        above *= tl.load(scale).to(how.A)
    found = _load_sums(sums, program, shape.rows)
    relative = relative_to(found.peak)
    slopes = by_exponentials(slopes_of(found, program, above, terms, how), relative[2])
    tiles_here = tiles_of(span, label_of(x, program, how), how)
    for KIND in tl.static_range(2 + how.PEELED):
        first, last = turns(tiles_here, KIND)
        if first < last:
            start = tile_of(first, tiles_here, how, KIND)
            _put_gradients(x, target, w, dx, dtarget, program, start, span, found.peak, relative, slopes, terms, how,
                           KIND)  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def at_once(x, target, w, samples, sums, scale, dx, losses, totals, programs, classes, inner, blocks, rows, settings,
            how: tl.constexpr):  # fmt: skip
    """Both stages of rows whose classes are all here, and the gradient of the sum of the losses, times `scale` if it is
    given: the logits are read from memory once. In a loop they are read twice, the second time from the cache for the
    most part.
    """
    shape = shape_of(classes, inner, blocks, rows, how)
    terms = terms_of(settings, how)
    program = rows_of_block(tl.program_id(0), target, samples, shape, settings, how)
    own, own_weight = own_of(x, w, program, shape, terms, how)
    upstream, all_here = tl.full((), 1.0, how.A), span_of(x, program, shape.classes, how)
    span, ignored = counting(all_here, program, True, how), counting(all_here, program, False, how)
    if scale is not None:
        upstream = tl.load(scale).to(how.A)
    if how.LOOP:
        found = joined(_sums_by_line(x, target, w, program, span, terms, how), own, own_weight, terms, how)
        found = without_ignored(found, program)
        relative = relative_to(found.peak)
        slopes = by_exponentials(slopes_of(found, program, upstream, terms, how), relative[2])
        tiles = tiles_of(span, label_of(x, program, how), how)
        for KIND in tl.static_range(2 + how.PEELED):
            first, last = turns(tiles, KIND)
            for start in range(first, last, how.T * how.W):
                _put_gradients(x, target, w, dx, None, program, tile_of(start, tiles, how, KIND), span, found.peak,
                               relative, slopes, terms, how, KIND)  # fmt: skip
    else:
        tile, edges, of_tile = _sums_at_once(x, target, w, program, span, own, own_weight, terms, how, "evict_first")
        found = without_ignored(of_tile[0], program)
        slopes = by_exponentials(slopes_of(found, program, upstream, terms, how), of_tile[3])
        _put_gradient(dx, tile, of_tile[1], slopes, program, how, LINES)
        if how.PEELED:
            _put_gradient(dx, edges, of_tile[2], slopes, program, how, BESIDE)
    if how.R == 1:
        for start in range(ignored.lo, ignored.hi, how.T * how.W):
            _put_zeros(dx, program, start, ignored, how, LINES)
        if how.PEELED:
            _put_zeros(dx, program, 0, ignored, how, BESIDE)
    _store_sums(found, sums, program, shape.rows)
    finish(losses, totals, programs, program, losses_of(found, program.keep, terms, how), own_weight, target, how)


@triton.jit
def multiplied(dx, by, count, how: tl.constexpr, BLOCK: tl.constexpr):
    """Multiply by a number in memory, unless it is 1: all that is left to do for a backward pass. What is 0 stays 0,
    as in ignored rows, even if the number is infinite.
    """
    factor = tl.load(by).to(how.A)
    if factor != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        d = tl.load(dx + i, mask=i < count, other=0.0).to(how.A)
        d = tl.where(d == 0.0, 0.0, d * factor)
        tl.store(dx + i, d.to(dx.dtype.element_ty), mask=i < count)
