"""Sums over the rows of a matrix whose classes lie side by side: of the numbers of each class, and of their squares."""

from crossent.kernels._compile import inline
from crossent.kernels._leaves import OK, finish
from crossent.kernels._simd import at, first_lanes, lanes, lift, load, load_some, store, store_some

BLOCK = 1024  # classes summed together: long runs of memory, and sums that stay in the cache


@inline
def _add_row(like, weight_like, row, totals, squares, n):
    width, zero = lanes(like), lift(like, 0.0)
    full = n // width * width
    for j in range(0, full, width):
        x = load(like, row, j)
        store(weight_like, totals, j, load(weight_like, totals, j) + x)
        store(weight_like, squares, j, load(weight_like, squares, j) + x * x)
    if full < n:
        within = first_lanes(like, n - full)
        x = load_some(like, row, full, within, zero)
        store_some(weight_like, totals, full, within, load_some(weight_like, totals, full, within, zero) + x)
        store_some(weight_like, squares, full, within, load_some(weight_like, squares, full, within, zero) + x * x)


def forward(call, scratch, lo, hi, sums):
    """Blocks lo to hi of the classes, added to what is in totals and squares."""
    like, weight_like = call.like, call.weight_like
    for block in range(lo, hi):
        first = block * BLOCK
        n = min(BLOCK, call.classes - first)
        totals, squares = at(weight_like, call.totals, first), at(weight_like, call.squares, first)
        for r in range(call.rows):
            _add_row(like, weight_like, at(like, call.x, r * call.x_outer + first), totals, squares, n)
    return finish(sums, OK, 0.0, 0.0)
