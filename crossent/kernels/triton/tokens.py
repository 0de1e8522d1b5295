"""The kernels of the statistics of labels: `crossent.kernels.plain.token_stats` in one pass over the logits, and the
gradient of these, which is written over them.

Arguments are as in `losses`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from crossent.kernels.triton.language import (
    INFINITY,
    NEARLY_CERTAIN,
    entropy_of,
    expm1,
    finite,
    kept_exp,
    softcap_slope,
    token_grad,
)
from crossent.kernels.triton.predictions import others_of
from crossent.kernels.triton.rows import (
    COUNTS,
    WHOLE,
    Tile,
    at_classes,
    at_label,
    counting,
    label_of,
    load_tile,
    nll_of,
    own_of,
    part_of,
    rows_of_block,
    shape_of,
    span_of,
    store,
    terms_of,
    tile_of,
    tiles_of,
    turns,
)


class Results(NamedTuple):
    """Where they go, or lie."""

    logprob: Any
    lse: Any
    entropy: Any
    rank: Any


class LineSums(NamedTuple):
    """The sums of lines (T, R) over all classes but the label: the largest logit, and `TokenSums` relative to it."""

    top: Any
    others: Any
    dot: Any
    ahead: Any


@triton.jit
def _capped_tile(x, program, start, span, terms, how: tl.constexpr, KIND: tl.constexpr):
    tile = load_tile(x, None, None, program, start, span, terms, how, KIND, "evict_first")
    return Tile(tile.c, tile.place, tile.ok, tile.z * terms.cap, tile.q) if how.CAPPED else tile


@triton.jit
def _added(sums, tile, own, program, later, how: tl.constexpr, KIND: tl.constexpr, NARROW: tl.constexpr):
    """The sums of lines with those of a tile."""
    z, ahead = others_of(tile, own, program, later, KIND)
    top = tl.maximum(sums.top, tl.max(z, 1))
    peak = finite(top)
    z -= peak[:, None, :]
    e, factor = kept_exp(z, NARROW), kept_exp(sums.top - peak, NARROW)
    dot = (sums.dot + sums.others * (finite(sums.top) - peak)) * factor + tl.sum(tl.where(e == 0.0, 0.0, e * z), 1)
    return LineSums(top, sums.others * factor + tl.sum(e, 1), dot, sums.ahead + ahead)


@triton.jit(do_not_specialize=COUNTS)
def tokens_of_rows(x, target, results, classes, inner, blocks, rows, settings, how: tl.constexpr):
    shape = shape_of(classes, inner, blocks, rows, how)
    terms, program = terms_of(settings, how), rows_of_block(tl.program_id(0), target, None, shape, settings, how)
    NARROW: tl.constexpr = x.at.dtype.element_ty.primitive_bitwidth == 16
    own, _ = own_of(x, None, program, shape, terms, how)
    nothing = tl.full((how.T, how.R), 0.0, how.A)
    sums = LineSums(nothing - INFINITY, nothing, nothing, nothing.to(tl.int32))
    span = counting(span_of(x, program, shape.classes, how), program, True, how)
    label = label_of(x, program, how)
    tiles = tiles_of(span, label, how)
    for KIND in tl.static_range(2 + how.PEELED):
        first, last = turns(tiles, KIND)
        for start in range(first, last, how.T * how.W):
            here = tile_of(start, tiles, how, KIND)
            tile = _capped_tile(x, program, here, span, terms, how, KIND)
            sums = _added(sums, tile, own, program, label > here, how, KIND, NARROW)
    peak = finite(tl.maximum(tl.max(sums.top, 0), own))
    factor = kept_exp(sums.top - peak[None, :], NARROW)
    dot = tl.sum((sums.dot + sums.others * (finite(sums.top) - peak[None, :])) * factor, 0)
    others, own = tl.sum(sums.others * factor, 0), own - peak
    own_exp = kept_exp(own, NARROW)
    total, nll = others + own_exp, nll_of(own, own_exp, others)
    log_total = tl.log(total)
    # As in `crossent.kernels.plain.token_results`.
    confident = others <= own_exp
    dot += tl.where(confident, -others, own_exp) * tl.where(own_exp == 0.0, 0.0, own)
    entropy = entropy_of(tl.where(confident, nll, log_total), dot, total)
    counts, here = program.counts, program.here
    tl.store(results.logprob + program.row, tl.where(counts, -nll, 0.0), mask=here)
    tl.store(results.lse + program.row, tl.where(counts, peak + log_total, 0.0), mask=here)
    tl.store(results.entropy + program.row, tl.where(counts, entropy, 0.0), mask=here)
    tl.store(results.rank + program.row, tl.where(counts, tl.sum(sums.ahead, 0), -1).to(tl.int64), mask=here)


@triton.jit
def _of_rows(numbers, program, how: tl.constexpr):
    """A number of each row; 0 if there are none."""
    if numbers is None:
        return tl.zeros(program.row.shape, how.A)
    return tl.load(numbers + program.row, mask=program.here, other=0.0).to(how.A)


@triton.jit
def _put_gradients(x, program, start, found, above, of_label, span, terms, how: tl.constexpr, KIND: tl.constexpr):
    """A tile over the logits; `found` and `above` are the logprob, lse and entropy of rows and their gradients."""
    NARROW: tl.constexpr = x.at.dtype.element_ty.primitive_bitwidth == 16
    tile = _capped_tile(x, program, start, span, terms, how, KIND)
    log_p = tile.z - found[1][None, None, :]
    p = kept_exp(log_p, NARROW)
    log_p = tl.where(p == 0.0, 0.0, log_p)
    dlogprob, dlse, dentropy = above[0][None, None, :], above[1][None, None, :], above[2][None, None, :]
    g = token_grad(p, log_p, found[2][None, None, :], dlogprob, dlse, dentropy)
    if KIND != WHOLE:
        g = at_label(g, of_label[None, None, :], tile, program)
    if how.CAPPED:
        g *= softcap_slope(tile.z * (1.0 / terms.cap), 1.0)
    g = tl.where(program.counts[None, None, :], g, 0.0).to(x.at.dtype.element_ty)
    store(at_classes(x, program, how)[None, None, :] + tile.place, g, tile.ok, KIND != WHOLE)


@triton.jit(do_not_specialize=COUNTS)
def token_gradients_of_rows(x, target, results, dlogprob, dlse, dentropy, tiles, classes, inner, blocks, rows, settings,
                            how: tl.constexpr):  # fmt: skip
    """Of a tile."""
    shape = shape_of(classes, inner, blocks, rows, how)
    NARROW: tl.constexpr = x.at.dtype.element_ty.primitive_bitwidth == 16
    part, block = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    terms, program = terms_of(settings, how), rows_of_block(block, target, None, shape, settings, how)
    logprob, entropy = _of_rows(results.logprob, program, how), _of_rows(results.entropy, program, how)
    found = logprob, _of_rows(results.lse, program, how), entropy
    above = _of_rows(dlogprob, program, how), _of_rows(dlse, program, how), _of_rows(dentropy, program, how)
    # Of the label 1 - p is made by itself, so that it keeps its digits where the row is confident.
    own_p = kept_exp(logprob, NARROW)
    of_label = token_grad(own_p, tl.where(own_p == 0.0, 0.0, logprob), entropy, 0.0, above[1], above[2])
    rest = -expm1(tl.maximum(logprob, NEARLY_CERTAIN))
    of_label += above[0] * tl.where(logprob > NEARLY_CERTAIN, rest, 1.0 - own_p)
    span = part_of(span_of(x, program, shape.classes, how), part, tiles, 1, how)
    tiles_here = tiles_of(span, label_of(x, program, how), how)
    for KIND in tl.static_range(2 + how.PEELED):
        first, last = turns(tiles_here, KIND)
        if first < last:
            start = tile_of(first, tiles_here, how, KIND)
            _put_gradients(x, program, start, found, above, of_label, span, terms, how, KIND)
