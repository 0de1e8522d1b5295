"""The matrix products of the fused head: logits, the input's gradient and the weight's.

The order of the loops is that of Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008): a
block of the one factor stays in a core's own cache, and panels of the other, packed side by side, pass by it. Two of
the three products read the one factor where it is. Every sum is cut at the same places whatever the blocks, the
threads and the size of a tile: a row has the same bits in every chunk.
"""

from crossent.kernels._compile import inline
from crossent.kernels._leaves import OK, finish, load_within
from crossent.kernels._simd import VECTOR_BYTES, at, get, lanes, put, store, turn
from crossent.kernels._tile import HEIGHT, VECTORS, multiply

DEPTH = 256  # numbers summed in registers before they are added to what is in memory: short sums keep their digits
ROWS, COLUMNS = 96, 1024  # of a block: rows for the core's own cache, columns for the one that cores share
# Whether the factors' sums run along the memory of a row.
_ALONG = True
_ACROSS = False


def panel_width(itemsize):
    return VECTORS * VECTOR_BYTES // itemsize


def scratch_numbers(itemsize):
    """Room for a block, its panels and one tile."""
    return (ROWS + 2 * HEIGHT + COLUMNS + HEIGHT) * DEPTH + HEIGHT * panel_width(itemsize)


@inline
def _tile_numbers(like, depth):
    """From one packed tile to the next: a vector's room between them."""
    return depth * HEIGHT + lanes(like)


@inline
def _pack_columns(like, packed, a, a_row, columns, depth):
    """Tiles of HEIGHT columns. What a vector writes beside a tile's row, the next row writes over."""
    room = _tile_numbers(like, depth)
    for k in range(depth):
        row = at(like, a, k * a_row)
        for i in range(0, columns, HEIGHT):
            store(like, packed, i // HEIGHT * room + k * HEIGHT, load_within(like, row, i, columns))


@inline
def _pack_across(source_like, like, packed, b, b_row, columns, depth):
    """Panels of columns, from rows that hold one number of each."""
    width = VECTORS * lanes(like)
    for j in range(0, columns, width):
        panel = at(like, packed, j * depth)
        for k in range(depth):
            row = at(source_like, b, k * b_row)
            for v in range(0, width, lanes(like)):
                store(like, panel, k * width + v, load_within(source_like, row, j + v, columns))


@inline
def _pack_along(source_like, like, packed, b, b_row, columns, depth):
    """Panels of columns, from rows that hold one column each."""
    n = lanes(like)
    width = VECTORS * n
    for j in range(0, columns, n):
        source, panel = at(source_like, b, j * b_row), at(like, packed, j // width * width * depth + j % width)
        for k in range(0, depth, n):
            if j + n <= columns and k + n <= depth:
                turn(source_like, at(source_like, source, k), b_row, like, at(like, panel, k * width), width, n, n)
            else:
                turn(source_like, at(source_like, source, k), b_row, like, at(like, panel, k * width), width,
                     min(n, columns - j), min(n, depth - k))  # fmt: skip


@inline
def _product(call, scratch, lo, hi, sums, a_along, b_along):
    """Units lo to hi of the product: blocks of its rows by blocks of its columns."""
    storage, like, depth = call.like, call.weight_like, call.depth
    width = VECTORS * lanes(like)
    panels, tile = (
        at(like, scratch, (ROWS + 2 * HEIGHT) * DEPTH),
        at(like, scratch, (ROWS + COLUMNS + 3 * HEIGHT) * DEPTH),
    )
    cuts = max(1, -(-depth // DEPTH))
    step = max(1, -(-depth // cuts))
    for unit in range(lo, hi):
        first_row = unit // call.blocks * call.block_rows
        first_column = unit % call.blocks * call.block_columns
        last_row = min(first_row + call.block_rows, call.rows)
        columns = min(call.block_columns, call.columns - first_column)
        for k in range(0, depth, step):
            some = min(step, depth - k)
            if b_along:
                b = at(storage, call.b, first_column * call.b_row + k)
                _pack_along(storage, like, panels, b, call.b_row, columns, some)
            else:
                b = at(storage, call.b, k * call.b_row + first_column)
                _pack_across(storage, like, panels, b, call.b_row, columns, some)
            adds = 1 if k > 0 else call.adds
            for top in range(first_row, last_row, ROWS):
                bottom = min(top + ROWS, last_row)
                if a_along:
                    block, a_row, a_step = at(like, call.a, top * call.a_row + k), call.a_row, 1
                else:
                    block, a_row, a_step = scratch, 1, HEIGHT
                    _pack_columns(like, block, at(like, call.a, k * call.a_row + top), call.a_row, bottom - top, some)
                for j in range(0, columns, width):
                    panel = at(like, panels, j * some)
                    for i in range(top, bottom, HEIGHT):
                        rows = min(HEIGHT, bottom - i)
                        if a_along:
                            a = at(like, block, (i - top) * a_row)
                        else:
                            a = at(like, block, (i - top) // HEIGHT * _tile_numbers(like, some))
                        c = at(like, call.c, i * call.c_row + first_column + j)
                        if j + width <= columns and rows == HEIGHT:
                            multiply(like, a, a_row, a_step, panel, some, c, call.c_row, HEIGHT, adds)
                        else:
                            multiply(like, a, a_row, a_step, panel, some, tile, width, rows, 0)
                            _add_part(like, tile, width, c, call.c_row, rows, columns - j, adds)
    return finish(sums, OK, 0.0, 0.0)


@inline
def _add_part(like, tile, width, c, c_row, rows, columns, adds):
    """What of a tile lies within the product."""
    for i in range(rows):
        for j in range(columns):
            before = get(like, c, i * c_row + j) if adds else like
            put(like, c, i * c_row + j, before + get(like, tile, i * width + j))


def product(call, scratch, lo, hi, sums):
    """a @ b"""
    return _product(call, scratch, lo, hi, sums, _ALONG, _ACROSS)


def product_of_columns(call, scratch, lo, hi, sums):
    """a.T @ b"""
    return _product(call, scratch, lo, hi, sums, _ACROSS, _ACROSS)


def product_by_rows(call, scratch, lo, hi, sums):
    """a @ b.T"""
    return _product(call, scratch, lo, hi, sums, _ALONG, _ALONG)
