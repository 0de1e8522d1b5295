"""The matrix products of the fused head: the logits, the input's gradient and the weight's gradient.

The order of the loops is that of Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008): a
block of the first factor stays in a core's own cache, while packed panels of the second pass by. Two of the three
products read the first factor in place, without packing it. If only some rows of b or of the product take part, their
numbers are given. Packed memory holds elements: numbers, or pairs of numbers that are neighbours in a sum. Every sum is
cut at the same places, whatever the blocks, the threads and the size of a tile: a row has the same bits in every chunk.
"""

from collections import namedtuple

from crossent.kernels.cpu import rows, vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.rows import LABELS, load_n
from crossent.kernels.cpu.tile import HEIGHT, VECTORS, Left, multiply_tile

DEPTH = 256  # elements summed in registers before they are added to what is in memory: short sums keep their digits
ROWS, COLUMNS = 96, 1024  # of a block: rows for the core's own cache, columns for the one that cores share

# `rows` rows of the first factor from row `top` on: the first tile, and how many elements lie from tile to tile.
_Block = namedtuple("_Block", "tile stride top rows")
# Packed `columns` of the second factor from column `first` on.
_Right = namedtuple("_Right", "panels depth first columns")


def panel_width(itemsize):
    return VECTORS * v.VECTOR_BYTES // itemsize


def scratch_elements(itemsize, columns, depth):
    """The scratch memory of a thread: a tile, panels with so many columns, and a block of rows."""
    beside = (ROWS // HEIGHT + 1) * v.VECTOR_BYTES // itemsize
    return HEIGHT * panel_width(itemsize) + (columns + ROWS) * depth + beside


@inline
def _row_at(like, matrix, numbers, i, row_stride):
    """The address of row i of a matrix or, if `numbers` are given, of row numbers[i]."""
    return v.at(like, matrix, (v.load_scalar(LABELS, numbers, i) if numbers != 0 else i) * row_stride)


@inline
def _tile_numbers(like, depth):
    """The distance from one packed tile to the next, with room for a vector between them."""
    return depth * HEIGHT + v.lanes(like)


@inline
def _elements(source_like, like, row, row_stride, j, columns, rows_left):
    """A vector of elements from column j on. The second number of a pair is the next row's, or 0 after the last row."""
    numbers = load_n(source_like, row, j, columns)
    if v.numbers_per_element(like) == 1:
        return numbers
    if rows_left == 1:
        return v.pack_pairs(numbers, v.splat(like, 0.0))
    return v.pack_pairs(numbers, load_n(source_like, v.at(source_like, row, row_stride), j, columns))


@inline
def _pack_columns(call, left_like, packed, left, columns, depth):
    """Pack tiles of HEIGHT columns. What a vector writes past the end of a tile's row, the next row overwrites."""
    like, stride, each = call.compute, call.a_row, v.numbers_per_element(call.compute)
    room = _tile_numbers(like, -(-depth // each))
    for k in range(0, depth, each):
        row, tile = v.at(left_like, left, k * stride), v.at(like, packed, k // each * HEIGHT)
        for i in range(0, columns, HEIGHT):
            v.store(like, tile, i // HEIGHT * room, _elements(left_like, like, row, stride, i, columns, depth - k))


@inline
def _pack_across(call, panels, top, depth, first, columns):
    """Pack panels of columns from column `first` on. Each row, from row `top` on, holds one number of every column."""
    storage, like, stride, numbers = call.storage, call.compute, call.b_row, call.b_rows
    each, width, right = v.numbers_per_element(like), VECTORS * v.lanes(like), call.b
    for j in range(0, columns, width):
        panel = v.at(like, panels, j * -(-depth // each))
        for k in range(0, depth, each):
            row = v.at(storage, _row_at(storage, right, numbers, top + k, stride), first)
            for column in range(0, width, v.lanes(like)):
                elements = _elements(storage, like, row, stride, j + column, columns, depth - k)
                v.store(like, panel, k // each * width + column, elements)


@inline
def _pack_along(right_like, like, panels, right, stride, columns, depth):
    """Pack panels of columns, where each row of memory holds one column."""
    n = v.lanes(like)
    width = VECTORS * n
    for j in range(0, columns, n):
        source, panel = v.at(right_like, right, j * stride), v.at(like, panels, j // width * width * depth + j % width)
        for k in range(0, depth, n):
            block = v.Matrix(right_like, v.at(right_like, source, k), stride)
            target = v.Matrix(like, v.at(like, panel, k * width), width)
            if j + n <= columns and k + n <= depth:
                v.transpose(block, target, n, n)
            else:
                v.transpose(block, target, min(n, columns - j), min(n, depth - k))


@inline
def _write_row(like, source, c, columns, adds):
    """Write, or add, the part of a tile's row that lies within the product."""
    for j in range(0, columns, v.lanes(like)):
        value, within = v.load(like, source, j), v.first_n(like, columns - j)
        if adds != 0:
            value = value + v.load_masked(like, c, j, within, v.splat(like, 0.0))
        v.store_masked(like, c, j, within, value)


@inline
def _multiply(call, c_like, left, right, adds, spare):
    """Make a block of the product. Tiles that lie only partly within it are made at `spare` and copied."""
    like, c, c_rows, c_row = call.compute, call.c, call.c_rows, call.c_row
    width, first, depth = VECTORS * v.lanes(like), left.tile, right.depth
    for j in range(0, right.columns, width):
        panel, column = v.at(like, right.panels, j * depth), right.first + j
        for i in range(0, left.rows, HEIGHT):
            within, top = min(HEIGHT, left.rows - i), left.top + i
            tile = Left(like, v.at(like, first.address, i // HEIGHT * left.stride), first.row, first.step)
            # In the cache when the sums are ready: this saves 2 % of a step (`python -m benchmarks --case head`).
            for r in range(within):
                v.prefetch_here(c_like, _row_at(c_like, c, c_rows, top + r, c_row), column)
            if within == HEIGHT and j + width <= right.columns and c_rows == 0:
                result = v.Matrix(c_like, v.at(c_like, c, top * c_row + column), c_row)
                multiply_tile(tile, panel, depth, HEIGHT, result, adds)
            else:
                multiply_tile(tile, panel, depth, within, v.Matrix(c_like, spare, width), 0)
                for r in range(within):
                    result = v.at(c_like, _row_at(c_like, c, c_rows, top + r, c_row), column)
                    _write_row(c_like, v.at(c_like, spare, r * width), result, min(width, right.columns - j), adds)


@inline
def _left_of(call, left_like, packed, top, count, k, depth):
    """`count` rows of the first factor from row `top` on, for `depth` steps of the sums from k on."""
    like = call.compute
    each = v.numbers_per_element(like)
    if call.a_along != 0:
        row = call.a_row // each
        tile = Left(like, v.at(left_like, call.a, top * call.a_row + k), row, 1)
        return _Block(tile, HEIGHT * row, top, count)
    _pack_columns(call, left_like, packed, v.at(left_like, call.a, k * call.a_row + top), count, depth)
    return _Block(Left(like, packed, 1, HEIGHT), _tile_numbers(like, -(-depth // each)), top, count)


@inline
def _product(call, c_like, scratch, lo, hi):
    storage, like, depth_at_once = call.storage, call.compute, call.depth_at_once
    each = v.numbers_per_element(like)
    left_like, right_like = v.if_pairs(like, storage, like), v.if_pairs(like, like, storage)
    panels = v.at(like, scratch, HEIGHT * VECTORS * v.lanes(like))
    packed = v.at(like, panels, call.block_columns * -(-depth_at_once // each))
    for unit in range(lo, hi):
        first_row, first = unit // call.blocks * call.block_rows, unit % call.blocks * call.block_columns
        last_row, columns = min(first_row + call.block_rows, call.rows), min(call.block_columns, call.columns - first)
        for k in range(0, call.depth, depth_at_once):
            depth, adds = min(depth_at_once, call.depth - k), 1 if k > 0 else call.adds
            elements = -(-depth // each)
            if call.b_along != 0:
                right = v.at(storage, call.b, first * call.b_row + k)
                _pack_along(right_like, like, panels, right, call.b_row // each, columns, elements)
            else:
                _pack_across(call, panels, k, depth, first, columns)
            for top in range(first_row, last_row, ROWS):
                left = _left_of(call, left_like, packed, top, min(ROWS, last_row - top), k, depth)
                _multiply(call, c_like, left, _Right(panels, elements, first, columns), adds, scratch)


def product(call, scratch, lo, hi, outcome):
    """Units lo to hi of the product: blocks of its rows by blocks of its columns."""
    _product(call, call.compute, scratch, lo, hi)
    return rows.finish(outcome, rows.NO_SUMS)


def rounded_product(call, scratch, lo, hi, outcome):
    """As `product`, with the result rounded to the storage type of b; the sums must not be cut."""
    _product(call, call.storage, scratch, lo, hi)
    return rows.finish(outcome, rows.NO_SUMS)
