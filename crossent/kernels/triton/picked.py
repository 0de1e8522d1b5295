"""The kernels of nll_loss: of a row of log-probabilities only the label's is read. Arguments are as in `losses`."""

import triton
import triton.language as tl

from crossent.kernels.triton.language import label_weight, number
from crossent.kernels.triton.losses import finish, leave
from crossent.kernels.triton.rows import (
    BESIDE,
    COUNTS,
    LINES,
    WHOLE,
    at_rows,
    begin_of,
    part_of,
    place_of,
    places_from,
    rows_beside,
    rows_of_block,
    shape_of,
    span_of,
)
from crossent.kernels.triton.softmax import store_tile


@triton.jit
def left(bad, flag, found):
    row = tl.load(bad)
    if row >= 0:
        leave(row, tl.load(bad + 1), flag, found)


@triton.jit
def _mass_of(w, program, how: tl.constexpr):
    """The labels' class weights, and what their negative log-probabilities are multiplied by, 0 where none counts."""
    own_weight = tl.full(program.label.shape, 1.0, how.A)
    if how.WEIGHTED:
        own_weight = tl.load(w + program.label, mask=program.counts, other=0.0).to(how.A)
    return own_weight, tl.where(program.counts, label_weight(own_weight, program.keep, 0.0), 0.0)


@triton.jit(do_not_specialize=COUNTS)
def losses_of_labels(x, target, w, samples, losses, totals, programs, classes, inner, blocks, rows, settings,
                     how: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    shape = shape_of(classes, inner, blocks, rows, how)
    program = rows_beside(target, samples, shape, settings, how, BLOCK)
    own_weight, mass = _mass_of(w, program, how)
    outer, inner = program.row // shape.inner, program.row % shape.inner
    place = x.at + outer * x.outer + inner * x.inner + place_of(program.label, x.of_class, False)
    log_p = tl.load(place, mask=program.counts, other=0.0).to(how.A)
    nothing = (mass == 0.0) & (log_p == float("-inf"))
    finish(losses, totals, programs, program, tl.where(nothing, 0.0, -mass * log_p), own_weight, target, how)


@triton.jit
def _put_gradients(dx, program, span, of_label, how: tl.constexpr, KIND: tl.constexpr):
    place, there = places_from(span.lo, span, how, KIND)
    own = (place - begin_of(dx, program, how)) == program.label[None, None, :]
    d, ok = tl.where(own, of_label[None, None, :], 0.0), there & program.here[None, None, :]
    store_tile(dx, d, program, place, ok, how.DX_SIDE, how, KIND)


@triton.jit(do_not_specialize=COUNTS)
def gradients_of_labels(target, w, samples, upstream, by, scale, dx, tiles, classes, inner, blocks, rows, settings,
                        how: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """A program writes a tile: the labels' derivatives and zeros."""
    shape = shape_of(classes, inner, blocks, rows, how)
    part, block = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    program = rows_of_block(block, target, samples, shape, settings, how)
    _, mass = _mass_of(w, program, how)
    above = tl.load(at_rows(upstream, program), mask=program.here, other=0.0).to(how.A) * number(by, how.A)
    if scale is not None:
        above *= tl.load(scale).to(how.A)
    of_label = tl.where(mass == 0.0, 0.0, -mass * above)
    span = part_of(span_of(dx, program, shape.classes, how), part, tiles, 1, how)
    _put_gradients(dx, program, span, of_label, how, LINES if MASKED else WHOLE)
    if how.PEELED:
        _put_gradients(dx, program, span, of_label, how, BESIDE)
