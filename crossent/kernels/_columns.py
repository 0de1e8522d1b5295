"""Sums over the rows of a matrix whose classes lie side by side: of the numbers of each class, and of their squares."""

from crossent.kernels._compile import inline
from crossent.kernels._leaves import OK, finish, load_within
from crossent.kernels._simd import at, first_lanes, lanes, lift, load, load_some, store, store_some

BLOCK = 1024  # classes summed together: long runs of memory, and sums that stay in the cache
_ROWS = 256  # summed before they are added to the total: short sums keep their digits


@inline
def _add_row(like, weight_like, row, totals, squares, n):
    for j in range(0, n, lanes(like)):
        x = load_within(like, row, j, n)
        store(weight_like, totals, j, load(weight_like, totals, j) + x)
        store(weight_like, squares, j, load(weight_like, squares, j) + x * x)


@inline
def _add_part(like, weight_like, sums, part, n):
    for j in range(0, n, lanes(like)):
        within = first_lanes(like, n - j)
        total = load_some(weight_like, sums, j, within, lift(like, 0.0)) + load(weight_like, part, j)
        store_some(weight_like, sums, j, within, total)


def forward(call, scratch, lo, hi, sums):
    """Blocks lo to hi of the classes, added to what is in totals and squares."""
    like, weight_like, width = call.like, call.weight_like, lanes(call.like)
    part, part_squares = scratch, at(weight_like, scratch, BLOCK)
    for block in range(lo, hi):
        first = block * BLOCK
        n = min(BLOCK, call.classes - first)
        totals, squares = at(weight_like, call.totals, first), at(weight_like, call.squares, first)
        for start in range(0, call.rows, _ROWS):
            for j in range(0, BLOCK, width):
                store(weight_like, part, j, lift(like, 0.0))
                store(weight_like, part_squares, j, lift(like, 0.0))
            for r in range(start, min(start + _ROWS, call.rows)):
                _add_row(like, weight_like, at(like, call.x, r * call.x_outer + first), part, part_squares, n)
            _add_part(like, weight_like, totals, part, n)
            _add_part(like, weight_like, squares, part_squares, n)
    return finish(sums, OK, 0.0, 0.0)
