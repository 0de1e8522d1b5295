"""The sum of a row's exponentials, block by block: each relative to the block's own maximum, so none is ever in danger.

A block stays in the core's nearest cache between its maximum and its exponentials, while the next is on its way. Where
the gradient is wanted in the same pass, the exponentials are kept, in its place or, since numbers of 16 bits would be
rounded twice, beside it, and each block's maximum in `tops`; once the sum over the row is known, they need only be
multiplied, and each number has passed through exp once.
"""

import math

import numpy as np

from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import capped, exp
from crossent.kernels.cpu.row import DOUBLES, class_grad, finite_peak
from crossent.kernels.cpu.vector import (
    all_lanes_but,
    at,
    first_lanes,
    get,
    lanes,
    larger,
    lift,
    load,
    load_some,
    max_of_lanes,
    prefetch,
    put,
    select,
    store,
    store_some,
    sum_of_lanes,
)

BLOCK = 1024  # numbers


@inline
def some_logits(like, row, j, within, cap):
    """Logits in the lanes `within`, -inf in the others."""
    nothing = lift(like, -np.inf)
    return select(within, capped(like, load_some(like, row, j, within, nothing), cap), nothing)


@inline
def largest(like, row, n, cap):
    full = n // lanes(like) * lanes(like)
    top = lift(like, -np.inf)
    for j in range(0, full, lanes(like)):
        top = larger(capped(like, load(like, row, j), cap), top)
    if full < n:
        top = larger(some_logits(like, row, full, first_lanes(like, n - full), cap), top)
    return np.float64(max_of_lanes(top))


@inline
def _scan(like, weight_like, row, kept, lo, hi, peak, cap, ahead, total):
    if kept == 0:
        for j in range(lo, hi, lanes(like)):
            prefetch(like, row, j + ahead)
            total = total + exp(like, capped(like, load(like, row, j), cap) - peak)
    else:
        for j in range(lo, hi, lanes(like)):
            prefetch(like, row, j + ahead)
            e = exp(like, capped(like, load(like, row, j), cap) - peak)
            store(weight_like, kept, j, e)
            total = total + e
    return total


@inline
def sum_of_block(like, weight_like, row, kept, n, label, peak, cap, ahead):
    """Of a block's exp(z - peak), but for the label's; they are written to `kept`, if that is not 0."""
    width = lanes(like)
    full = n // width * width
    special = label // width * width if 0 <= label < full else full
    total = _scan(like, weight_like, row, kept, 0, special, peak, cap, ahead, lift(like, 0.0))
    j = special
    for _ in range(2):
        if j < n:
            within = first_lanes(like, n - j)
            e = exp(like, some_logits(like, row, j, within, cap) - peak)
            if kept != 0:
                store_some(weight_like, kept, j, within, e)
            total = total + select(all_lanes_but(like, label - j), e, lift(like, 0.0))
        if j == full:
            break
        total = _scan(like, weight_like, row, kept, special + width, full, peak, cap, ahead, total)
        j = full
    return np.float64(sum_of_lanes(total))


@inline
def share(top, peak):
    """What an exponential relative to `top` is relative to `peak`."""
    return 1.0 if top == peak or top == -np.inf else math.exp(top - peak)


@inline
def walk(like, weight_like, row, kept, tops, classes, label, cap, top, ahead):
    """The largest logit, and relative to it the sum of exp(z) over the classes other than the label; label -1 for none.

    `top` is the first block's maximum; what lies `ahead` numbers on is fetched. The exponentials are written to `kept`
    and the blocks' maxima to `tops`, if these are not 0.
    """
    peak, others = -np.inf, 0.0
    for lo in range(0, classes, BLOCK):
        n, block = min(BLOCK, classes - lo), at(like, row, lo)
        kept_block = at(weight_like, kept, lo) if kept != 0 else 0
        if lo:
            top = largest(like, block, n, cap)
        total = sum_of_block(like, weight_like, block, kept_block, n, label - lo, finite_peak(top), cap, ahead)
        if tops != 0:
            put(DOUBLES, tops, lo // BLOCK, top)
        if lo == 0:
            others, peak = total, top
        elif top > peak:
            others, peak = others * math.exp(peak - top) + total, top
        else:
            others += total * share(top, peak)
    return finite_peak(peak), others


@inline
def multiply(like, weight_like, kept, drow, tops, classes, peak, factor):
    """Make the gradient of the exponentials that are kept."""
    width, zero = lanes(like), lift(like, 0.0)
    for lo in range(0, classes, BLOCK):
        n, block, dblock = min(BLOCK, classes - lo), at(weight_like, kept, lo), at(like, drow, lo)
        full, scale = n // width * width, lift(like, factor * share(get(DOUBLES, tops, lo // BLOCK), peak))
        for j in range(0, full, width):
            store(like, dblock, j, class_grad(load(weight_like, block, j), zero, scale))
        if full < n:
            within = first_lanes(like, n - full)
            e = load_some(weight_like, block, full, within, zero)
            store_some(like, dblock, full, within, class_grad(e, zero, scale))
