"""The sum of a row's exponentials, block by block: each relative to the block's own maximum, so none is ever in danger.

A block stays in the core's nearest cache between its maximum and its exponentials, while the next is on its way. Where
the gradient is wanted in the same pass, the exponentials are kept, in its place or, since numbers of 16 bits would be
rounded twice, beside it, and each block's maximum in `tops`; once the sum over the row is known, they need only be
multiplied, and each number has passed through exp once.
"""

import math

import numpy as np

from crossent.kernels.cpu import rules, vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import capped, exp
from crossent.kernels.cpu.row import DOUBLES, finite_peak

BLOCK = 1024  # numbers


@inline
def masked_logits(storage, row, j, within, cap):
    """Logits in the lanes `within`, -inf in the others."""
    nothing = v.splat(storage, -np.inf)
    return v.select(within, capped(storage, v.load_masked(storage, row, j, within, nothing), cap), nothing)


@inline
def row_max(storage, row, n, cap):
    full = n // v.lanes(storage) * v.lanes(storage)
    top = v.splat(storage, -np.inf)
    for j in range(0, full, v.lanes(storage)):
        top = v.max(capped(storage, v.load(storage, row, j), cap), top)
    if full < n:
        top = v.max(masked_logits(storage, row, full, v.first_n(storage, n - full), cap), top)
    return np.float64(v.reduce_max(top))


@inline
def _sum_exp_of_vectors(storage, compute, row, kept, lo, hi, peak, cap, ahead, total):
    if kept == 0:
        for j in range(lo, hi, v.lanes(storage)):
            v.prefetch(storage, row, j + ahead)
            total = total + exp(storage, capped(storage, v.load(storage, row, j), cap) - peak)
    else:
        for j in range(lo, hi, v.lanes(storage)):
            v.prefetch(storage, row, j + ahead)
            e = exp(storage, capped(storage, v.load(storage, row, j), cap) - peak)
            v.store(compute, kept, j, e)
            total = total + e
    return total


@inline
def sum_exp_of_block(storage, compute, row, kept, n, label, peak, cap, ahead):
    """Of a block's exp(z - peak), but for the label's; they are written to `kept`, if that is not 0."""
    width = v.lanes(storage)
    full = n // width * width
    special = label // width * width if 0 <= label < full else full
    total = _sum_exp_of_vectors(storage, compute, row, kept, 0, special, peak, cap, ahead, v.splat(storage, 0.0))
    j = special
    for _ in range(2):
        if j < n:
            within = v.first_n(storage, n - j)
            e = exp(storage, masked_logits(storage, row, j, within, cap) - peak)
            if kept != 0:
                v.store_masked(compute, kept, j, within, e)
            total = total + v.select(v.all_but(storage, label - j), e, v.splat(storage, 0.0))
        if j == full:
            break
        total = _sum_exp_of_vectors(storage, compute, row, kept, special + width, full, peak, cap, ahead, total)
        j = full
    return np.float64(v.reduce_sum(total))


@inline
def rescaled(top, peak):
    """What an exponential relative to `top` is relative to `peak`."""
    return 1.0 if top == peak or top == -np.inf else math.exp(top - peak)


@inline
def sum_exp(storage, compute, row, kept, tops, classes, label, cap, top, ahead):
    """The largest logit, and relative to it the sum of exp(z) over the classes other than the label; label -1 for none.

    `top` is the first block's maximum; what lies `ahead` numbers on is fetched. The exponentials are written to `kept`
    and the blocks' maxima to `tops`, if these are not 0.
    """
    peak, others = -np.inf, 0.0
    for lo in range(0, classes, BLOCK):
        n, block = min(BLOCK, classes - lo), v.at(storage, row, lo)
        kept_block = v.at(compute, kept, lo) if kept != 0 else 0
        if lo:
            top = row_max(storage, block, n, cap)
        total = sum_exp_of_block(storage, compute, block, kept_block, n, label - lo, finite_peak(top), cap, ahead)
        if tops != 0:
            v.store_scalar(DOUBLES, tops, lo // BLOCK, top)
        if lo == 0:
            others, peak = total, top
        elif top > peak:
            others, peak = others * math.exp(peak - top) + total, top
        else:
            others += total * rescaled(top, peak)
    return finite_peak(peak), others


@inline
def scale_kept(storage, compute, kept, drow, tops, classes, peak, factor):
    """Make the gradient of the exponentials that are kept."""
    width, zero = v.lanes(storage), v.splat(storage, 0.0)
    for lo in range(0, classes, BLOCK):
        n, block, dblock = min(BLOCK, classes - lo), v.at(compute, kept, lo), v.at(storage, drow, lo)
        full, scale = (
            n // width * width,
            v.splat(storage, factor * rescaled(v.load_scalar(DOUBLES, tops, lo // BLOCK), peak)),
        )
        for j in range(0, full, width):
            v.store(storage, dblock, j, rules.class_grad(v.load(compute, block, j), zero, scale))
        if full < n:
            within = v.first_n(storage, n - full)
            e = v.load_masked(compute, block, full, within, zero)
            v.store_masked(storage, dblock, full, within, rules.class_grad(e, zero, scale))
