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
    added,
    at_classes,
    at_rows,
    bound,
    by_exponentials,
    class_step,
    classes_from,
    exponentials,
    gradient_of,
    joined,
    load_tile,
    losses_of,
    no_sums,
    own_of,
    past,
    place_of,
    rows_beside,
    rows_of_block,
    slopes_of,
    store,
    sums_of_tile,
    terms_of,
    tiles_of,
    without_ignored,
)

NO_ROW = tl.constexpr(2.0**62)


class Totals(NamedTuple):
    """Where the totals of all rows go: `numbers` of float64 are the sum of the losses, that of the weights, and its
    inverse; `mean` has the dtype of the loss; `bad` are the first row with a bad label or -1, and that label.
    `partial` has room for three numbers of each program, `through` counts the programs and is 0 again after the last.
    """

    numbers: Any
    mean: Any
    bad: Any
    partial: Any
    through: Any


# Sums


@triton.jit
def _sums_by_line(x, target, w, program, lo, hi, shape, terms, how: tl.constexpr):
    """The sums of lines over the classes lo to hi."""
    sums = no_sums(how)
    plain, at = tiles_of(program, lo, hi, how)
    for start in range(lo, plain, how.T * how.W):
        tile = load_tile(x, target, w, program, past(start, at, how), hi, shape, terms, how, False, "evict_last")
        sums = added(sums, tile, program, terms, how, False)
    for start in range(plain, hi, how.T * how.W):
        where = tl.where(start == plain, at, start)
        tile = load_tile(x, target, w, program, where, hi, shape, terms, how, True, "evict_last")
        sums = added(sums, tile, program, terms, how, True)
    return sums


@triton.jit
def _read_to(hi, program, how: tl.constexpr):
    """Up to which class a program's rows are read: a row that does not count is not, if it is alone."""
    if how.R == 1:
        hi = tl.where(tl.sum(program.counts.to(tl.int32), 0) == 0, 0, hi)
    return hi


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


@triton.jit
def sums_of_rows(x, target, w, samples, sums, through, parts, span, shape, settings, how: tl.constexpr):
    """The first stage, for each of the parts of the classes, `span` of them: sums[part] are its `Sums`. `through` is
    made 0 for what follows.
    """
    if through is not None:
        tl.store(through, 0, mask=tl.program_id(0) == 0)
    part, block = tl.program_id(0) % parts, tl.program_id(0) // parts
    terms, program = terms_of(settings, how), rows_of_block(block, target, samples, shape, settings, how)
    own, own_weight = own_of(x, w, program, shape, terms, how)
    lo = part * span
    hi = _read_to(tl.minimum(lo + span, shape.classes), program, how)
    if how.LOOP:
        found = joined(_sums_by_line(x, target, w, program, lo, hi, shape, terms, how), own, own_weight, terms, how)
    else:
        tile = load_tile(x, target, w, program, 0, hi, shape, terms, how, True, "evict_last")
        found, _, _ = sums_of_tile(tile, program, own, own_weight, terms, how)
    _store_sums(
        without_ignored(found, program),
        sums + part.to(tl.int64) * 6 * tl.cast(shape.rows, tl.int64),
        program,
        shape.rows,
    )


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
def _total(totals, programs, loss, weight, bad_row, target, how: tl.constexpr):
    """Store what a program's rows add to the totals; the last program adds all up, in the order of their numbers."""
    BLOCK: tl.constexpr = 1024
    at = totals.partial + tl.program_id(0)
    tl.store(at, loss)
    tl.store(at + programs, weight)
    tl.store(at + 2 * programs, bad_row)
    if tl.atomic_add(totals.through, 1, sem="acq_rel") == programs - 1:
        losses, weights = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
        first_bad = tl.full((BLOCK,), NO_ROW, tl.float64)
        for start in range(0, programs, BLOCK):
            i = start + tl.arange(0, BLOCK)
            of_all, there = totals.partial + i, i < programs
            losses += tl.load(of_all, mask=there, other=0.0, cache_modifier=".cg")
            weights += tl.load(of_all + programs, mask=there, other=0.0, cache_modifier=".cg")
            bad_of_some = tl.load(of_all + 2 * programs, mask=there, other=NO_ROW, cache_modifier=".cg")
            first_bad = tl.minimum(first_bad, bad_of_some)
        sum_of_losses, sum_of_weights, bad_of_all = tl.sum(losses, 0), tl.sum(weights, 0), tl.min(first_bad, 0)
        mean = sum_of_losses / sum_of_weights
        HALF: tl.constexpr = totals.mean.dtype.element_ty.primitive_bitwidth == 16
        if HALF:  # no kernel turns float64 into 16 bits
            mean = mean.to(tl.float32)
        tl.store(totals.numbers, sum_of_losses)
        tl.store(totals.numbers + 1, sum_of_weights)
        tl.store(totals.numbers + 2, 1.0 / sum_of_weights)
        tl.store(totals.mean, mean.to(totals.mean.dtype.element_ty))
        row = tl.where(bad_of_all == NO_ROW, -1.0, bad_of_all).to(tl.int64)
        tl.store(totals.bad, row)
        if not how.SOFT:
            tl.store(totals.bad + 1, tl.load(target.at + row, mask=row >= 0, other=0))
        tl.store(totals.through, 0)


@triton.jit
def finish(losses, totals, programs, program, loss, own_weight, target, how: tl.constexpr):
    """Store the losses of a program's rows, and total them. A bad label makes its row's loss nan, and has no weight."""
    loss = tl.where(program.bad, float("nan"), tl.where(program.counts, loss, 0.0))
    weight = tl.where(program.counts, program.keep if how.SOFT else program.keep * own_weight, 0.0)
    tl.store(losses + program.row, loss.to(losses.dtype.element_ty), mask=program.here)
    bad_row = tl.min(tl.where(program.bad, program.row.to(tl.float64), NO_ROW), 0)
    loss = tl.sum(tl.where(program.here, loss, 0.0).to(tl.float64), 0)
    _total(totals, programs, loss, tl.sum(weight.to(tl.float64), 0), bad_row, target, how)


@triton.jit
def losses_of_rows(target, samples, sums, parts, merged, losses, totals, programs, shape, settings, how: tl.constexpr,
                   BLOCK: tl.constexpr):  # fmt: skip
    """The second stage. The sums of parts are put together first, and left in `merged` if it is given."""
    terms, program = terms_of(settings, how), rows_beside(target, samples, shape, settings, how, BLOCK)
    found = _merged(sums, parts, program, shape.rows)
    if merged is not None:
        _store_sums(found, merged, program, shape.rows)
    if losses is not None:
        loss = losses_of(found, program.keep, terms, how)
        finish(losses, totals, programs, program, loss, found.own_weight, target, how)


@triton.jit
def weights_of_rows(target, w, samples, totals, programs, shape, settings, how: tl.constexpr, BLOCK: tl.constexpr):
    """The total of the weights alone, before anything is read of the logits."""
    program = rows_beside(target, samples, shape, settings, how, BLOCK)
    weight = tl.where(program.counts, program.keep, 0.0)
    if how.WEIGHTED and not how.SOFT:
        weight *= tl.load(w + program.label, mask=program.counts, other=0.0).to(how.A)
    _total(totals, programs, 0.0, tl.sum(weight.to(tl.float64), 0), NO_ROW, target, how)


# Gradients


@triton.jit
def _put_zeros(dx, program, start, shape, how: tl.constexpr):
    """A tile of the gradient of rows that do not count."""
    c = classes_from(start, how)
    place = at_classes(dx, program, how)[None, None, :] + place_of(c, class_step(dx, how), how.DX_SIDE)
    zeros = tl.zeros(c.shape, how.A).to(dx.at.dtype.element_ty)
    tl.store(place, zeros, mask=c < bound(shape.classes, how), cache_modifier=".cs")


@triton.jit
def _put_gradient(dx, tile, e, slopes, program, how: tl.constexpr, MASKED: tl.constexpr):
    g = gradient_of(tile, e, slopes, program, how, MASKED)
    if how.R > 1 or how.SOFT:
        g = tl.where(program.counts[None, None, :], g, 0.0)
    g = g.to(dx.at.dtype.element_ty)
    place = at_classes(dx, program, how)[None, None, :] + place_of(tile.c, class_step(dx, how), how.DX_SIDE)
    store(place, g, tile.ok, MASKED)


@triton.jit
def _put_target_gradient(dtarget, w, tile, peak, slopes, program, shape, terms, how: tl.constexpr):
    there = tile.c < bound(shape.classes, how)
    weight = tl.load(w + tile.c, mask=there, other=0.0).to(how.A) if how.WEIGHTED else 1.0
    z = tile.z * terms.cap if how.CAPPED else tile.z
    relative, by = z - peak[None, None, :], slopes.of_target[None, None, :]
    d = target_grad(slopes.cost[None, None, :], relative, weight, by, terms.smoothing)
    d = tl.where(program.counts[None, None, :], d, 0.0).to(dtarget.at.dtype.element_ty)
    of_class = class_step(dtarget, how)
    place = at_classes(dtarget, program, how)[None, None, :] + place_of(tile.c, of_class, how.DT_SIDE)
    tl.store(place, d, mask=tile.ok, cache_modifier=".cs")


@triton.jit
def _put_gradients(x, target, w, dx, dtarget, program, start, hi, peak, relative, slopes, shape, terms,
                   how: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Read a tile and store its gradients."""
    tile = load_tile(x, target, w, program, start, hi, shape, terms, how, MASKED, "evict_first")
    _put_gradient(dx, tile, exponentials(tile.z, relative, terms, how), slopes, program, how, MASKED)
    if dtarget is not None:
        _put_target_gradient(dtarget, w, tile, peak, slopes, program, shape, terms, how)


@triton.jit
def gradients_of_rows(x, target, w, samples, sums, upstream, by, scale, dx, dtarget, tiles, shape, settings,
                      how: tl.constexpr):  # fmt: skip
    """The second stage, for a tile: the gradients of by * scale * upstream * losses. dx may be x."""
    BLOCK: tl.constexpr = how.T * how.W
    start, block = tl.program_id(0) % tiles * BLOCK, tl.program_id(0) // tiles
    terms, program = terms_of(settings, how), rows_of_block(block, target, samples, shape, settings, how)
    if how.R == 1 and dtarget is None:
        if tl.sum(program.counts.to(tl.int32), 0) == 0:
            _put_zeros(dx, program, start, shape, how)
            return
    above = tl.load(at_rows(upstream, program), mask=program.here, other=0.0).to(how.A) * number(by, how.A)
    if scale is not None:
        above *= tl.load(scale).to(how.A)
    found = _load_sums(sums, program, shape.rows)
    relative = relative_to(found.peak)
    slopes = by_exponentials(slopes_of(found, program, above, terms, how), relative[2])
    plain = False
    if how.R == 1:
        label = tl.sum(program.label, 0)
        plain = ((label < start) | (label >= start + BLOCK)) & (start + BLOCK <= shape.classes)
    if plain:
        _put_gradients(x, target, w, dx, dtarget, program, start, shape.classes, found.peak, relative, slopes, shape,
                       terms, how, False)  # fmt: skip
    else:
        _put_gradients(x, target, w, dx, dtarget, program, start, shape.classes, found.peak, relative, slopes, shape,
                       terms, how, True)  # fmt: skip


@triton.jit
def at_once(x, target, w, samples, sums, scale, dx, losses, totals, programs, shape, settings, how: tl.constexpr):
    """Both stages of rows whose classes are all here, and the gradient of `scale` times the sum of the losses: the
    logits are read from memory once. In a loop they are read twice, the second time from the cache for the most part.
    """
    terms = terms_of(settings, how)
    program = rows_of_block(tl.program_id(0), target, samples, shape, settings, how)
    own, own_weight = own_of(x, w, program, shape, terms, how)
    upstream, hi = tl.load(scale).to(how.A), _read_to(shape.classes, program, how)
    if how.LOOP:
        found = joined(_sums_by_line(x, target, w, program, 0, hi, shape, terms, how), own, own_weight, terms, how)
        found = without_ignored(found, program)
        relative = relative_to(found.peak)
        slopes = by_exponentials(slopes_of(found, program, upstream, terms, how), relative[2])
        plain, at = tiles_of(program, 0, hi, how)
        for start in range(0, plain, how.T * how.W):
            _put_gradients(x, target, w, dx, None, program, past(start, at, how), hi, found.peak, relative, slopes,
                           shape, terms, how, False)  # fmt: skip
        for start in range(plain, hi, how.T * how.W):
            where = tl.where(start == plain, at, start)
            _put_gradients(x, target, w, dx, None, program, where, hi, found.peak, relative, slopes, shape, terms, how,
                           True)  # fmt: skip
        for start in range(hi, shape.classes, how.T * how.W):
            _put_zeros(dx, program, start, shape, how)
    else:
        tile = load_tile(x, target, w, program, 0, hi, shape, terms, how, True, "evict_first")
        found, e, by = sums_of_tile(tile, program, own, own_weight, terms, how)
        found = without_ignored(found, program)
        if how.R == 1:
            if hi == 0:
                _put_zeros(dx, program, 0, shape, how)
        slopes = by_exponentials(slopes_of(found, program, upstream, terms, how), by)
        _put_gradient(dx, tile, e, slopes, program, how, True)
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
