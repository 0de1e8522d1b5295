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
    Tile,
    at_label,
    at_rows,
    load_tile,
    nll_of,
    own_of,
    rows_of_block,
    shape_of,
    store,
    terms_of,
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
def _capped_tile(x, program, start, shape, terms, how: tl.constexpr, MASKED: tl.constexpr):
    tile = load_tile(x, None, None, program, start, shape.classes, shape, terms, how, MASKED, "evict_first")
    return Tile(tile.c, tile.place, tile.ok, tile.z * terms.cap, tile.q) if how.CAPPED else tile


@triton.jit
def _added(sums, tile, own, program, start, how: tl.constexpr, NARROW: tl.constexpr):
    """The sums of lines with those of a tile."""
    z, ahead = others_of(tile, own, program, start, how)
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
    BLOCK: tl.constexpr = how.T * how.W
    own, _ = own_of(x, None, program, shape, terms, how)
    nothing = tl.full((how.T, how.R), 0.0, how.A)
    sums, hi, whole = LineSums(nothing - INFINITY, nothing, nothing, nothing.to(tl.int32)), shape.classes, 0
    if how.R == 1:  # a row that does not count is not read, and only the last tile is masked
        hi = tl.where(tl.sum(program.counts.to(tl.int32), 0) == 0, 0, hi)
        whole = hi // BLOCK * BLOCK
    for LAST in tl.static_range(2):
        for start in range(whole if LAST else 0, hi if LAST else whole, BLOCK):
            tile = _capped_tile(x, program, start, shape, terms, how, LAST == 1)
            sums = _added(sums, tile, own, program, start, how, NARROW)
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
def _put_gradients(x, program, start, found, above, of_label, shape, terms, how: tl.constexpr, MASKED: tl.constexpr):
    """A tile over the logits; `found` and `above` are the logprob, lse and entropy of rows and their gradients."""
    NARROW: tl.constexpr = x.at.dtype.element_ty.primitive_bitwidth == 16
    tile = _capped_tile(x, program, start, shape, terms, how, MASKED)
    log_p = tile.z - found[1][None, None, :]
    p = kept_exp(log_p, NARROW)
    log_p = tl.where(p == 0.0, 0.0, log_p)
    dlogprob, dlse, dentropy = above[0][None, None, :], above[1][None, None, :], above[2][None, None, :]
    g = token_grad(p, log_p, found[2][None, None, :], dlogprob, dlse, dentropy)
    g = at_label(g, of_label[None, None, :], tile, program)
    if how.CAPPED:
        g *= softcap_slope(tile.z * (1.0 / terms.cap), 1.0)
    g = tl.where(program.counts[None, None, :], g, 0.0).to(x.at.dtype.element_ty)
    place = at_rows(x, program)[None, None, :] + tile.c
    store(place, g, tile.ok, MASKED)


@triton.jit(do_not_specialize=COUNTS)
def token_gradients_of_rows(x, target, results, dlogprob, dlse, dentropy, tiles, classes, inner, blocks, rows, settings,
                            how: tl.constexpr):  # fmt: skip
    """Of a tile. Of one row only the last tile is masked."""
    shape = shape_of(classes, inner, blocks, rows, how)
    BLOCK: tl.constexpr = how.T * how.W
    NARROW: tl.constexpr = x.at.dtype.element_ty.primitive_bitwidth == 16
    start, block = tl.program_id(0) % tiles * BLOCK, tl.program_id(0) // tiles
    terms, program = terms_of(settings, how), rows_of_block(block, target, None, shape, settings, how)
    logprob, entropy = _of_rows(results.logprob, program, how), _of_rows(results.entropy, program, how)
    found = logprob, _of_rows(results.lse, program, how), entropy
    above = _of_rows(dlogprob, program, how), _of_rows(dlse, program, how), _of_rows(dentropy, program, how)
    # Of the label 1 - p is made by itself, so that it keeps its digits where the row is confident.
    own_p = kept_exp(logprob, NARROW)
    of_label = token_grad(own_p, tl.where(own_p == 0.0, 0.0, logprob), entropy, 0.0, above[1], above[2])
    rest = -expm1(tl.maximum(logprob, NEARLY_CERTAIN))
    of_label += above[0] * tl.where(logprob > NEARLY_CERTAIN, rest, 1.0 - own_p)
    masked = True
    if how.R == 1:
        masked = start + BLOCK > shape.classes
    if masked:
        _put_gradients(x, program, start, found, above, of_label, shape, terms, how, True)
    else:
        _put_gradients(x, program, start, found, above, of_label, shape, terms, how, False)
