"""Sums over a matrix whose classes lie side by side: of the squares of each class, and of each row."""

from crossent.kernels._compile import inline
from crossent.kernels._leaves import OK, finish, load_within
from crossent.kernels._simd import (
    at,
    first_lanes,
    lanes,
    lift,
    load,
    load_some,
    prefetch,
    put,
    store,
    store_some,
    sum_of_lanes,
)

BLOCK = 1024  # classes summed together: long runs of memory, and sums that stay in the cache
_ROWS = 256  # summed before they are added to the total: short sums keep their digits


@inline
def _add_rows(like, weight_like, a, b, c, d, squares, n):
    """Add four rows to the sums of the classes, which are then read and written once; the rows' own sums."""
    zero = lift(like, 0.0)
    sum_a, sum_b, sum_c, sum_d = zero, zero, zero, zero
    for j in range(0, n, lanes(like)):
        prefetch(like, a, j)
        prefetch(like, b, j)
        prefetch(like, c, j)
        prefetch(like, d, j)
        x, y = load_within(like, a, j, n), load_within(like, b, j, n)
        z, w = load_within(like, c, j, n), load_within(like, d, j, n)
        store(weight_like, squares, j, load(weight_like, squares, j) + ((x * x + y * y) + (z * z + w * w)))
        sum_a, sum_b, sum_c, sum_d = sum_a + x, sum_b + y, sum_c + z, sum_d + w
    return sum_of_lanes(sum_a), sum_of_lanes(sum_b), sum_of_lanes(sum_c), sum_of_lanes(sum_d)


@inline
def _add_part(like, weight_like, sums, part, n):
    for j in range(0, n, lanes(like)):
        within = first_lanes(like, n - j)
        total = load_some(weight_like, sums, j, within, lift(like, 0.0)) + load(weight_like, part, j)
        store_some(weight_like, sums, j, within, total)


def forward(call, scratch, lo, hi, sums):
    """Blocks lo to hi of the classes, added to what is in squares; by_row gets the rows' sums in each."""
    like, weight_like, width = call.like, call.weight_like, lanes(call.like)
    part, no_row = scratch, at(weight_like, scratch, BLOCK)
    for j in range(0, BLOCK, width):
        store(weight_like, no_row, j, lift(like, 0.0))
    for block in range(lo, hi):
        first = block * BLOCK
        n = min(BLOCK, call.classes - first)
        for start in range(0, call.rows, _ROWS):
            for j in range(0, BLOCK, width):
                store(weight_like, part, j, lift(like, 0.0))
            stop = min(start + _ROWS, call.rows)
            for r in range(start, stop, 4):
                a = at(like, call.x, r * call.x_outer + first)
                b = at(like, a, call.x_outer) if r + 1 < stop else no_row
                c = at(like, a, 2 * call.x_outer) if r + 2 < stop else no_row
                d = at(like, a, 3 * call.x_outer) if r + 3 < stop else no_row
                whole = _add_rows(like, weight_like, a, b, c, d, part, n)
                for i in range(min(4, stop - r)):
                    put(weight_like, call.by_row, block * call.rows + r + i, whole[i])
            _add_part(like, weight_like, at(weight_like, call.squares, first), part, n)
    return finish(sums, OK, 0.0, 0.0)
