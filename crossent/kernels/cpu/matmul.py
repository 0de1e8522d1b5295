"""The matrix products of the fused head: logits, the input's gradient and the weight's.

The order of the loops is that of Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008): a
block of the one factor stays in a core's own cache, and panels of the other, packed side by side, pass by it. Two of
the three products read the one factor where it is. Rows of b, or of the product, may be some whose numbers are given.
What is packed, and read from packed, are elements: numbers, or pairs of them that lie beside each other in the sum.
Every sum is cut at the same places whatever the blocks, the threads and the size of a tile: a row has the same bits in
every chunk.
"""

from crossent.kernels.cpu import vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.row import LABELS, OK, finish, load_n
from crossent.kernels.cpu.tile import HEIGHT, VECTORS, multiply_tile

DEPTH = 256  # elements summed in registers before they are added to what is in memory: short sums keep their digits
ROWS, COLUMNS = 96, 1024  # of a block: rows for the core's own cache, columns for the one that cores share


def panel_width(itemsize):
    return VECTORS * v.VECTOR_BYTES // itemsize


def scratch_elements(itemsize, columns, depth):
    """Of a thread's memory, which holds a tile, panels with so many columns and a block of rows."""
    beside = (ROWS // HEIGHT + 1) * v.VECTOR_BYTES // itemsize
    return HEIGHT * panel_width(itemsize) + (columns + ROWS) * depth + beside


@inline
def _row_at(like, matrix, rows, i, row_stride):
    """Row i of a matrix, or of those that are named in `rows`."""
    return v.at(like, matrix, (v.load_scalar(LABELS, rows, i) if rows != 0 else i) * row_stride)


@inline
def _tile_numbers(like, depth):
    """From one packed tile to the next: a vector's room between them."""
    return depth * HEIGHT + v.lanes(like)


@inline
def _elements(source_like, like, row, row_stride, j, columns, rows):
    """From column j on; of pairs, whose other numbers stand in the next row, or are 0 where that is none of `rows`."""
    numbers = load_n(source_like, row, j, columns)
    if v.numbers_per_element(like) == 1:
        return numbers
    if rows == 1:
        return v.pack_pairs(numbers, v.splat(like, 0.0))
    return v.pack_pairs(numbers, load_n(source_like, v.at(source_like, row, row_stride), j, columns))


@inline
def _pack_columns(source_like, like, packed, a, a_row, columns, rows):
    """Tiles of HEIGHT columns. What a vector writes beside a tile's row, the next row writes over."""
    each = v.numbers_per_element(like)
    room = _tile_numbers(like, -(-rows // each))
    for k in range(0, rows, each):
        row, tile = v.at(source_like, a, k * a_row), v.at(like, packed, k // each * HEIGHT)
        for i in range(0, columns, HEIGHT):
            v.store(like, tile, i // HEIGHT * room, _elements(source_like, like, row, a_row, i, columns, rows - k))


@inline
def _pack_across(source_like, like, packed, b, numbers, b_row, top, first, columns, rows):
    """Panels of columns from the `first` on, from rows from the `top` on that hold one number of each."""
    each, width = v.numbers_per_element(like), VECTORS * v.lanes(like)
    for j in range(0, columns, width):
        panel = v.at(like, packed, j * -(-rows // each))
        for k in range(0, rows, each):
            row = v.at(source_like, _row_at(source_like, b, numbers, top + k, b_row), first)
            for column in range(0, width, v.lanes(like)):
                elements = _elements(source_like, like, row, b_row, j + column, columns, rows - k)
                v.store(like, panel, k // each * width + column, elements)


@inline
def _pack_along(source_like, like, packed, b, b_row, columns, depth):
    """Panels of columns, from rows that hold one column each."""
    n = v.lanes(like)
    width = VECTORS * n
    for j in range(0, columns, n):
        source, panel = v.at(source_like, b, j * b_row), v.at(like, packed, j // width * width * depth + j % width)
        for k in range(0, depth, n):
            if j + n <= columns and k + n <= depth:
                v.transpose(
                    source_like, v.at(source_like, source, k), b_row, like, v.at(like, panel, k * width), width, n, n
                )
            else:
                v.transpose(source_like, v.at(source_like, source, k), b_row, like, v.at(like, panel, k * width), width,
                     min(n, columns - j), min(n, depth - k))  # fmt: skip


@inline
def _tiles(
    like, c_like, block, a_row, a_step, tiles_at, panels, depth, c, c_rows, c_row, top, rows, first, columns, adds,
    spare,
):  # fmt: skip
    """A block of the product: `rows` of a from the `top` on, which lie in `block`, by columns that lie in panels."""
    width = VECTORS * v.lanes(like)
    for j in range(0, columns, width):
        panel = v.at(like, panels, j * depth)
        for i in range(0, rows, HEIGHT):
            a, within = v.at(like, block, i // HEIGHT * tiles_at), min(HEIGHT, rows - i)
            for r in range(within):  # there by the time that the sums are
                v.prefetch_here(c_like, _row_at(c_like, c, c_rows, top + i + r, c_row), first + j)
            if within == HEIGHT and j + width <= columns and c_rows == 0:
                tile = v.at(c_like, c, (top + i) * c_row + first + j)
                multiply_tile(like, c_like, a, a_row, a_step, panel, depth, tile, c_row, HEIGHT, adds)
            else:
                multiply_tile(like, c_like, a, a_row, a_step, panel, depth, spare, width, within, 0)
                for r in range(within):
                    row = v.at(c_like, _row_at(c_like, c, c_rows, top + i + r, c_row), first + j)
                    _write_row(c_like, v.at(c_like, spare, r * width), row, min(width, columns - j), adds)


@inline
def _write_row(like, source, c, columns, adds):
    """What of a tile's row lies within the product."""
    for j in range(0, columns, v.lanes(like)):
        value, within = v.load(like, source, j), v.first_n(like, columns - j)
        if adds != 0:
            value = value + v.load_masked(like, c, j, within, v.splat(like, 0.0))
        v.store_masked(like, c, j, within, value)


def product(call, scratch, lo, hi, sums):
    """Units lo to hi of the product: blocks of its rows by blocks of its columns."""
    return _product(call, call.compute, scratch, lo, hi, sums)


def rounded_product(call, scratch, lo, hi, sums):
    """As `product`, rounded to what b is stored in; the sums must not be cut."""
    return _product(call, call.storage, scratch, lo, hi, sums)


@inline
def _product(call, c_like, scratch, lo, hi, sums):
    storage, like, depth = call.storage, call.compute, call.depth
    each = v.numbers_per_element(like)
    a_like, along_like = v.if_pairs(like, storage, like), v.if_pairs(like, like, storage)
    a_row, b_row = call.a_row, call.b_row
    panels = v.at(like, scratch, HEIGHT * VECTORS * v.lanes(like))
    packed = v.at(like, panels, call.block_columns * -(-call.at_once // each))
    for unit in range(lo, hi):
        first_row = unit // call.blocks * call.block_rows
        first_column = unit % call.blocks * call.block_columns
        last_row = min(first_row + call.block_rows, call.rows)
        columns = min(call.block_columns, call.columns - first_column)
        for k in range(0, depth, call.at_once):
            some, adds = min(call.at_once, depth - k), 1 if k > 0 else call.adds
            elements = -(-some // each)
            if call.b_along != 0:
                _pack_along(along_like, like, panels, v.at(storage, call.b, first_column * b_row + k), b_row // each,
                            columns, elements)  # fmt: skip
            else:
                _pack_across(storage, like, panels, call.b, call.b_rows, b_row, k, first_column, columns, some)
            for top in range(first_row, last_row, ROWS):
                rows = min(ROWS, last_row - top)
                if call.a_along != 0:
                    block, row, column = v.at(a_like, call.a, top * a_row + k), a_row // each, 1
                    tile = HEIGHT * row
                else:
                    block, row, column, tile = packed, 1, HEIGHT, _tile_numbers(like, elements)
                    _pack_columns(a_like, like, block, v.at(a_like, call.a, k * a_row + top), a_row, rows, some)
                _tiles(like, c_like, block, row, column, tile, panels, elements, call.c, call.c_rows, call.c_row, top,
                       rows, first_column, columns, adds, scratch)  # fmt: skip
    return finish(sums, OK, 0.0, 0.0)
