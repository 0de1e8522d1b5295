"""Sums over a matrix whose classes lie side by side: the sum of squares of each class, the sum of each row, and a few
linear combinations of the rows. Every number is read once, several rows at a time.
"""

from crossent.kernels.cpu import rows, vector as v
from crossent.kernels.cpu.compile import inline

BLOCK = 1024  # classes summed together
BLOCKS = 4  # of a unit at most, so that its sums stay in the core's own cache
ROOM = v.VECTOR_BYTES // 4  # numbers that one vector writes
_ROWS = 256  # rows summed before they are added to the total: short sums keep their digits


@inline
def _add_rows(storage, compute, a, b, c, d, squares, n):
    """Add four rows to the sums of the classes, which are read and written once for all; the sum of each row."""
    zero = v.splat(storage, 0.0)
    sum_a, sum_b, sum_c, sum_d = zero, zero, zero, zero
    for j in range(0, n, v.lanes(storage)):
        v.prefetch(storage, a, j)
        v.prefetch(storage, b, j)
        v.prefetch(storage, c, j)
        v.prefetch(storage, d, j)
        x, y = rows.load_n(storage, a, j, n), rows.load_n(storage, b, j, n)
        z, w = rows.load_n(storage, c, j, n), rows.load_n(storage, d, j, n)
        v.store(compute, squares, j, v.load(compute, squares, j) + ((x * x + y * y) + (z * z + w * w)))
        sum_a, sum_b, sum_c, sum_d = sum_a + x, sum_b + y, sum_c + z, sum_d + w
    return v.reduce_sum(sum_a), v.reduce_sum(sum_b), v.reduce_sum(sum_c), v.reduce_sum(sum_d)


@inline
def _four_rows(call, r, stop, first, no_row):
    """The addresses of class `first` in row r and the three rows after it; `no_row` for rows from `stop` on."""
    storage, step = call.storage, call.x_outer
    a = v.at(storage, call.x, r * step + first)
    return (
        a,
        v.at(storage, a, step) if r + 1 < stop else no_row,
        v.at(storage, a, 2 * step) if r + 2 < stop else no_row,
        v.at(storage, a, 3 * step) if r + 3 < stop else no_row,
    )


@inline
def _add_part(storage, compute, sums, part, n):
    for j in range(0, n, v.lanes(storage)):
        within = v.first_n(storage, n - j)
        total = v.load_masked(compute, sums, j, within, v.splat(storage, 0.0)) + v.load(compute, part, j)
        v.store_masked(compute, sums, j, within, total)


def forward(call, scratch, lo, hi, outcome):
    """Units lo to hi of the classes: add to `squares`, and write each row's sum over each block to `by_row`."""
    storage, compute, width = call.storage, call.compute, call.blocks * BLOCK
    part, no_row = scratch, v.at(compute, scratch, width)
    rows.fill_zero(compute, no_row, width)
    for unit in range(lo, hi):
        first = unit * width
        n = min(width, call.classes - first)
        for start in range(0, call.rows, _ROWS):
            rows.fill_zero(compute, part, width)
            stop = min(start + _ROWS, call.rows)
            for r in range(start, stop, 4):
                for block in range(0, n, BLOCK):
                    a, b, c, d = _four_rows(call, r, stop, first + block, no_row)
                    squares = v.at(compute, part, block)
                    whole = _add_rows(storage, compute, a, b, c, d, squares, min(BLOCK, n - block))
                    by_row = v.at(compute, call.by_row, (first + block) // BLOCK * call.rows + r)
                    for i in range(min(4, stop - r)):
                        v.store_scalar(compute, by_row, i, whole[i])
            _add_part(storage, compute, v.at(compute, call.squares, first), part, n)
    return rows.finish(outcome, rows.NO_SUMS)


@inline
def _add_combinations(call, four, factors, combined, n):
    """Add four rows, which are read once, to n classes of every combination."""
    storage, compute = call.storage, call.compute
    a, b, c, d = four
    for j in range(0, n, v.lanes(storage)):
        x, y = rows.load_n(storage, a, j, n), rows.load_n(storage, b, j, n)
        z, w = rows.load_n(storage, c, j, n), rows.load_n(storage, d, j, n)
        for i in range(call.count):
            result, f = v.at(compute, combined, i * call.combined_row), v.at(compute, factors, i * call.factors_row)
            total = v.fma(x, v.splat(storage, v.load_scalar(compute, f, 0)), v.load(compute, result, j))
            total = v.fma(y, v.splat(storage, v.load_scalar(compute, f, 1)), total)
            total = v.fma(z, v.splat(storage, v.load_scalar(compute, f, 2)), total)
            v.store(compute, result, j, v.fma(w, v.splat(storage, v.load_scalar(compute, f, 3)), total))


def combine(call, scratch, lo, hi, outcome):
    """Units lo to hi of the classes: write `count` combinations of the rows.

    Nobody needs the last digits of these sums. `factors` has a row for each combination. Rows of `factors` and of
    `combined` have room for a multiple of ROOM numbers.
    """
    compute, width = call.compute, call.blocks * BLOCK
    rows.fill_zero(compute, scratch, width)
    for unit in range(lo, hi):
        first = unit * width
        n, combined = min(width, call.classes - first), v.at(compute, call.combined, first)
        for i in range(call.count):
            rows.fill_zero(compute, v.at(compute, combined, i * call.combined_row), n)
        for r in range(0, call.rows, 4):
            four = _four_rows(call, r, call.rows, first, scratch)
            _add_combinations(call, four, v.at(compute, call.factors, r), combined, n)
    return rows.finish(outcome, rows.NO_SUMS)
