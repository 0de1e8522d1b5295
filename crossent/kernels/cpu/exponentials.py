"""The sum of a row's exponentials, block by block: each is relative to its block's maximum, so no sum can overflow.

A block stays in the core's nearest cache between the pass for its maximum and the pass for its exponentials, while the
next block is being fetched: without that, an evaluation over 96 x 32000 takes 3 % longer (`crossent bench --shape
96x32000`). If the gradient is wanted in the same pass, the exponentials are kept: where the gradient
goes, or, in 16 bits, where they would be rounded twice, in memory beside it. The blocks' maxima are kept in `tops`.
Once the sum over the row is known, the exponentials need only be multiplied: exp is computed once for each logit.
"""

import math
from collections import namedtuple

import numpy as np

from crossent.kernels.cpu import rows, rules, vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import capped, exp
from crossent.kernels.cpu.rows import BLOCK

# Exponentials relative to `peak` are kept at address `kept`, unless it is 0. Memory is fetched `ahead` numbers early.
Block = namedtuple("Block", "storage compute kept peak cap ahead")


@inline
def _add_whole(block, row, lo, hi, earlier, total):
    storage = block.storage
    for j in range(lo, hi, v.lanes(storage)):
        v.prefetch(storage, row, j + block.ahead)
        e = exp(storage, capped(storage, v.load(storage, row, j), block.cap) - block.peak)
        if block.kept != 0:
            v.store(block.compute, block.kept, j, e)
        total = total + e
    return total


@inline
def _add_part(block, row, j, within, lane, total):
    storage = block.storage
    e = exp(storage, rows.masked_logits(storage, row, j, within, block.cap) - block.peak)
    if block.kept != 0:
        v.store_masked(block.compute, block.kept, j, within, e)
    return total + v.select(v.all_but(storage, lane), e, v.splat(storage, 0.0))


@inline
def sum_of_block(block, row, n, label):
    """The sum of exp(z - peak) over the first n logits (at most BLOCK) without the label's."""
    total = rows.walk(block, row, n, label, _add_whole, _add_part, v.splat(block.storage, 0.0))
    return np.float64(v.reduce_sum(total))


@inline
def rescaled(top, peak):
    """The factor that makes exponentials relative to `top` relative to `peak`."""
    return 1.0 if top == peak or top == -np.inf else math.exp(top - peak)


@inline
def sum_of_row(call, storage, row, label, top, kept_at, ahead):
    """The largest logit, and relative to it the sum of exp(z) over all classes but the label (-1 for none).

    `top` is the first block's maximum. `kept_at` are two addresses, at which the exponentials and the blocks' maxima
    are kept; they are not kept where it is 0.
    """
    compute, classes, cap, (kept, tops) = call.compute, call.classes, call.cap, kept_at
    peak, others = -np.inf, 0.0
    for lo in range(0, classes, BLOCK):
        n, part = min(BLOCK, classes - lo), v.at(storage, row, lo)
        kept_part = v.at(compute, kept, lo) if kept != 0 else 0
        if lo:
            top = rows.largest(storage, part, n, cap)
        block = Block(storage, compute, kept_part, rows.finite_peak(top), cap, ahead)
        total = sum_of_block(block, part, n, label - lo)
        if tops != 0:
            v.store_scalar(rows.DOUBLES, tops, lo // BLOCK, top)
        if lo == 0:
            others, peak = total, top
        elif top > peak:
            others, peak = others * math.exp(peak - top) + total, top
        else:
            others += total * rescaled(top, peak)
    return rows.finite_peak(peak), others


@inline
def scale_kept(call, kept, tops, drow, peak, factor):
    """Write the gradient, made from the exponentials that were kept."""
    storage, compute, classes, zero = call.storage, call.compute, call.classes, v.splat(call.storage, 0.0)
    for lo in range(0, classes, BLOCK):
        n, part, dpart = min(BLOCK, classes - lo), v.at(compute, kept, lo), v.at(storage, drow, lo)
        scale = v.splat(storage, factor * rescaled(v.load_scalar(rows.DOUBLES, tops, lo // BLOCK), peak))
        for j in range(0, n, v.lanes(storage)):
            e = rows.load_n(compute, part, j, n)
            rows.store_n(storage, dpart, j, n, rules.class_grad(e, zero, scale), False)
