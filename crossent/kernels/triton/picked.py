"""The kernels of nll_loss: of a row of log-probabilities only the label's is read. Arguments are as in `losses`."""

import triton
import triton.language as tl

from crossent.kernels.triton.language import label_weight, number
from crossent.kernels.triton.losses import finish, leave
from crossent.kernels.triton.rows import (
    COUNTS,
    at_rows,
    classes_from,
    place_of,
    rows_beside,
    rows_of_block,
    shape_of,
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


@triton.jit(do_not_specialize=COUNTS)
def gradients_of_labels(target, w, samples, upstream, by, scale, dx, tiles, classes, inner, blocks, rows, settings,
                        how: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """A program writes a tile: the labels' derivatives and zeros."""
    shape = shape_of(classes, inner, blocks, rows, how)
    start, block = tl.program_id(0) % tiles * (how.T * how.W), tl.program_id(0) // tiles
    program = rows_of_block(block, target, samples, shape, settings, how)
    _, mass = _mass_of(w, program, how)
    above = tl.load(at_rows(upstream, program), mask=program.here, other=0.0).to(how.A) * number(by, how.A)
    if scale is not None:
        above *= tl.load(scale).to(how.A)
    of_label = tl.where(mass == 0.0, 0.0, -mass * above)
    c = classes_from(start, how)
    ok = (c < shape.classes) & program.here[None, None, :]
    d = tl.where(c == program.label[None, None, :], of_label[None, None, :], 0.0)
    store_tile(dx, d, program, c, ok, how.DX_SIDE, how, MASKED)
