"""Sums over a matrix whose classes lie side by side: of the squares of each class, of each row, and of few
combinations of rows. Every number is read once, several rows at a time.
"""

from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.row import OK, finish, load_within
from crossent.kernels.cpu.vector import (
    VECTOR_BYTES,
    at,
    first_lanes,
    fma,
    get,
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

BLOCK = 1024  # classes summed together
BLOCKS = 4  # at most, of a unit: long runs of memory, and sums that stay in the core's own cache
ROOM = VECTOR_BYTES // 4  # numbers that are written at once
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
def _clear(like, address, n):
    for j in range(0, n, lanes(like)):
        store(like, address, j, lift(like, 0.0))


@inline
def _four_rows(call, r, stop, first, no_row):
    """Where row r and the three after it hold the class `first`; rows from `stop` on are no row."""
    like, step = call.like, call.x_outer
    a = at(like, call.x, r * step + first)
    return (
        a,
        at(like, a, step) if r + 1 < stop else no_row,
        at(like, a, 2 * step) if r + 2 < stop else no_row,
        at(like, a, 3 * step) if r + 3 < stop else no_row,
    )


@inline
def _add_part(like, weight_like, sums, part, n):
    for j in range(0, n, lanes(like)):
        within = first_lanes(like, n - j)
        total = load_some(weight_like, sums, j, within, lift(like, 0.0)) + load(weight_like, part, j)
        store_some(weight_like, sums, j, within, total)


def forward(call, scratch, lo, hi, sums):
    """Units lo to hi of the classes, added to what is in squares; by_row gets the rows' sums in each block."""
    like, weight_like, width = call.like, call.weight_like, call.blocks * BLOCK
    part, no_row = scratch, at(weight_like, scratch, width)
    _clear(weight_like, no_row, width)
    for unit in range(lo, hi):
        first = unit * width
        n = min(width, call.classes - first)
        for start in range(0, call.rows, _ROWS):
            _clear(weight_like, part, width)
            stop = min(start + _ROWS, call.rows)
            for r in range(start, stop, 4):
                for block in range(0, n, BLOCK):
                    a, b, c, d = _four_rows(call, r, stop, first + block, no_row)
                    squares = at(weight_like, part, block)
                    whole = _add_rows(like, weight_like, a, b, c, d, squares, min(BLOCK, n - block))
                    by_row = at(weight_like, call.by_row, (first + block) // BLOCK * call.rows + r)
                    for i in range(min(4, stop - r)):
                        put(weight_like, by_row, i, whole[i])
            _add_part(like, weight_like, at(weight_like, call.squares, first), part, n)
    return finish(sums, OK, 0.0, 0.0)


@inline
def _add_combinations(call, rows, factors, combined, n):
    """Add four rows, read once, to what every combination has in n classes."""
    like, weight_like = call.like, call.weight_like
    a, b, c, d = rows
    for j in range(0, n, lanes(like)):
        x, y = load_within(like, a, j, n), load_within(like, b, j, n)
        z, w = load_within(like, c, j, n), load_within(like, d, j, n)
        for i in range(call.count):
            result, f = at(weight_like, combined, i * call.combined_row), at(weight_like, factors, i * call.factors_row)
            total = fma(x, lift(like, get(weight_like, f, 0)), load(weight_like, result, j))
            total = fma(y, lift(like, get(weight_like, f, 1)), total)
            total = fma(z, lift(like, get(weight_like, f, 2)), total)
            store(weight_like, result, j, fma(w, lift(like, get(weight_like, f, 3)), total))


def combine(call, scratch, lo, hi, sums):
    """Units lo to hi of the classes of `count` combinations of the rows, of whose sums nobody needs the last digits.

    `factors` has a row for each combination, and both it and `combined` have ROOM numbers behind a row.
    """
    weight_like, width = call.weight_like, call.blocks * BLOCK
    _clear(weight_like, scratch, width)
    for unit in range(lo, hi):
        first = unit * width
        n, combined = min(width, call.classes - first), at(weight_like, call.combined, first)
        for i in range(call.count):
            _clear(weight_like, at(weight_like, combined, i * call.combined_row), n)
        for r in range(0, call.rows, 4):
            rows = _four_rows(call, r, call.rows, first, scratch)
            _add_combinations(call, rows, at(weight_like, call.factors, r), combined, n)
    return finish(sums, OK, 0.0, 0.0)
