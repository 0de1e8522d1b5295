"""The kernel of prediction_stats: `crossent.kernels.plain.prediction_stats` in one pass over the logits.

Arguments are as in `losses`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from crossent.kernels.triton.language import INFINITY, brier, finite, kept_exp
from crossent.kernels.triton.losses import add_up, first_bad_row
from crossent.kernels.triton.rows import (
    COUNTS,
    EDGES,
    WHOLE,
    at_label,
    at_rows,
    begin_of,
    label_of,
    load_tile,
    nll_of,
    own_of,
    place_of,
    rows_of_block,
    shape_of,
    span_of,
    terms_of,
    tile_of,
    tiles_of,
    turns,
)

NO_CLASS = tl.constexpr(2**31 - 1)


class Results(NamedTuple):
    """Where they go."""

    logprob: Any
    rank: Any
    prediction: Any
    confidence: Any
    brier: Any


class Sums(NamedTuple):
    """The sums of lines (T, R) over all classes but the label, or of rows, (R,).

    top         the largest logit
    first       of a line the place where the tile starts in which it has that logit first; of a row the place of the
                first line that has it
    others      the sum of exp(z - top) or, for a row, of exp(z - peak)
    squares     the sum of the squares of these
    ahead       how many classes are ahead of the label
    """

    top: Any
    first: Any
    others: Any
    squares: Any
    ahead: Any


@triton.jit
def others_of(tile, own, program, later, KIND: tl.constexpr):
    """The logits of a tile without the label's, and how many of each line are ahead of it. A WHOLE tile has no label,
    and comes before that of the label or not: see `later`, (R,).
    """
    z, own = tile.z, own[None, None, :]
    if KIND == WHOLE:
        earlier = later[None, None, :]
    else:
        earlier = (tile.c < program.label[None, None, :]) & tile.ok
        z = at_label(z, -INFINITY, tile, program)
    return z, tl.sum(((z > own) | ((z == own) & earlier)).to(tl.int32), 1)


@triton.jit
def _added(sums, tile, own, program, start, later, how: tl.constexpr, KIND: tl.constexpr, NARROW: tl.constexpr):
    """The sums of lines with those of a tile. WHOLE tiles come in order."""
    z, ahead = others_of(tile, own, program, later, KIND)
    of_tile = tl.max(z, 1)
    top = tl.maximum(sums.top, of_tile)
    peak = finite(top)
    e, factor = kept_exp(z - peak[:, None, :], NARROW), kept_exp(sums.top - peak, NARROW)
    first, better = start, top > sums.top
    if KIND == EDGES:
        first = tl.sum(tile.place, 1) - tl.arange(0, how.T)[:, None] * how.W
    if KIND != WHOLE:
        better = better | ((of_tile == sums.top) & (first < sums.first))
    return Sums(
        top,
        tl.where(better, first, sums.first),
        sums.others * factor + tl.sum(e, 1),
        sums.squares * (factor * factor) + tl.sum(e * e, 1),
        sums.ahead + ahead,
    )


@triton.jit
def _joined(sums, peak, how: tl.constexpr, NARROW: tl.constexpr):
    """The sums of rows, given their peaks, from those of their lines."""
    top = tl.max(sums.top, 0)
    line = tl.where(sums.top == top[None, :], sums.first + tl.arange(0, how.T)[:, None] * how.W, NO_CLASS)
    factor = kept_exp(sums.top - peak[None, :], NARROW)
    others, squares = tl.sum(sums.others * factor, 0), tl.sum(sums.squares * factor * factor, 0)
    return Sums(top, tl.min(line, 0), others, squares, tl.sum(sums.ahead, 0))


@triton.jit
def _prediction(x, sums, own, program, shape, how: tl.constexpr):
    """The first class with the largest logit: the label, or one of a line that is read again. Any class beside nan."""
    c = (sums.first - begin_of(x, program, how))[None, :] + tl.arange(0, how.W)[:, None]
    ok, label = (program.here & (sums.first != NO_CLASS))[None, :] & (c >= 0) & (c < shape.classes), program.label
    z = tl.load(at_rows(x, program)[None, :] + place_of(c, x.of_class, how.X_SIDE), mask=ok, other=0.0).to(how.A)
    found = tl.min(tl.where(ok & (z == sums.top[None, :]) & (c != label[None, :]), c, NO_CLASS), 0)
    found = tl.where(own > sums.top, label, tl.where(own == sums.top, tl.minimum(found, label), found))
    return tl.minimum(found, shape.classes - 1)


@triton.jit
def _store(into, values, of_bad, ignored, program):
    values = tl.where(program.bad, of_bad, tl.where(program.counts, values, ignored))
    tl.store(into + program.row, values.to(into.dtype.element_ty), mask=program.here)


@triton.jit(do_not_specialize=COUNTS)
def statistics_of_rows(x, target, results, totals, programs, classes, inner, blocks, rows, settings,
                       how: tl.constexpr):  # fmt: skip
    shape = shape_of(classes, inner, blocks, rows, how)
    terms, program = terms_of(settings, how), rows_of_block(tl.program_id(0), target, None, shape, settings, how)
    NARROW: tl.constexpr = x.at.dtype.element_ty.primitive_bitwidth == 16
    own, _ = own_of(x, None, program, shape, terms, how)
    nothing, span = tl.full((how.T, how.R), 0.0, how.A), span_of(x, program, shape.classes, how)
    none, label = nothing.to(tl.int32), label_of(x, program, how)
    tiles = tiles_of(span, label, how)
    sums = Sums(nothing - INFINITY, none, nothing, nothing, none)
    for KIND in tl.static_range(2 + how.PEELED):
        first, last = turns(tiles, KIND)
        for start in range(first, last, how.T * how.W):
            here = tile_of(start, tiles, how, KIND)
            tile = load_tile(x, target, None, program, here, span, terms, how, KIND, "evict_first")
            sums = _added(sums, tile, own, program, here, label > here, how, KIND, NARROW)
    peak = finite(tl.maximum(tl.max(sums.top, 0), own))
    sums = _joined(sums, peak, how, NARROW)
    own_exp = kept_exp(own - peak, NARROW)
    total = sums.others + own_exp
    confidence = kept_exp(tl.maximum(sums.top, own) - peak, NARROW) / total
    _store(results.logprob, -nll_of(own - peak, own_exp, sums.others), float("nan"), 0.0, program)
    _store(results.rank, sums.ahead, -1, -1, program)
    _store(results.prediction, _prediction(x, sums, own, program, shape, how), -1, -1, program)
    _store(results.confidence, confidence, float("nan"), 0.0, program)
    _store(results.brier, brier(sums.others, sums.squares, total), float("nan"), 0.0, program)
    add_up(totals, programs, 0.0, 0.0, first_bad_row(program), target, how)
