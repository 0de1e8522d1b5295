"""A tile of a matrix product, summed in registers: HEIGHT rows of one factor by VECTORS vectors of the other."""

from collections import namedtuple

from llvmlite import ir

from crossent.kernels.cpu import llvm, vector as v
from crossent.kernels.cpu.llvm import I32, I64, PAIRS
from crossent.kernels.cpu.processor import FEATURES

# Two multiply-adds can start in each cycle, and each takes four or five cycles: so many sums keep both units busy. They
# fit in 32 registers of 512 bits, or in 16 of 256 bits, where a vector takes two. With half as many, logits of a head
# take 3 % longer (`python -m benchmarks --case head`).
HEIGHT, VECTORS = (8, 2) if FEATURES.get("avx512f") else (6, 1)


# Rows of the first factor: the first one's address, and how many elements lie from row to row and from one step of the
# sums to the next.
Left = namedtuple("Left", "like address row step")


@v.operation()
def multiply_tile(b, left, right: int, depth: int, rows: int, c, adds: int):
    """Write a tile of left @ right to the `Matrix` c, or add it. Rows from `rows` on get meaningless numbers.

    For each of `depth` steps `right` has a row as wide as the tile, stored like `left`. The order of the sums does not
    depend on the shape of the tile.
    """
    sums = _sums_over_depth(b, left, _row_starts(b, left, rows), right, depth)
    with b.if_else(b.icmp_signed("!=", adds, llvm.number(0))) as (add, replace):
        with add:
            _write(b, left.like, c, sums, True)
        with replace:
            _write(b, left.like, c, sums, False)


def _row_starts(b, left, rows):
    """The rows' addresses. A row that is not there is replaced by the last one, so that nothing is read behind that."""
    last, element = b.sub(rows, llvm.number(1)), v.in_memory(left.like).element
    numbers = [_smaller(b, llvm.number(i), last) for i in range(HEIGHT)]
    return [b.ptrtoint(llvm.pointer(b, left.address, b.mul(i, left.row), element), I64) for i in numbers]


def _sums_over_depth(b, left, starts, right, depth):
    """The sums of a loop over the depth, a list of vectors for each row.

    A value of LLVM is set only once, so what changes from round to round is a phi.
    """
    kind = v.in_memory(left.like)
    before, loop, after = b.block, b.append_basic_block("sum"), b.append_basic_block("write")
    b.branch(loop)
    b.position_at_end(loop)
    step, left_at, right_at = (b.phi(I64) for _ in range(3))
    sums = [[b.phi(kind) for _ in range(VECTORS)] for _ in starts]
    columns = [
        b.load(llvm.pointer(b, right, _plus(b, right_at, j * kind.count), kind), align=v.VECTOR_BYTES)
        for j in range(VECTORS)
    ]
    new_sums = []
    for start, row in zip(starts, sums):
        factor = llvm.broadcast(b, b.load(llvm.pointer(b, start, left_at, kind.element)), kind.count)
        new_sums.append([_add_product(b, left.like, factor, *pair) for pair in zip(columns, row)])
    next_step = _plus(b, step, 1)
    next_left, next_right = b.add(left_at, left.step), _plus(b, right_at, VECTORS * kind.count)
    for old, new in ((step, next_step), (left_at, next_left), (right_at, next_right)):
        old.add_incoming(llvm.number(0), before)
        old.add_incoming(new, loop)
    for old, new in zip(sum(sums, []), sum(new_sums, [])):
        old.add_incoming(llvm.filled(kind, 0.0), before)
        old.add_incoming(new, loop)
    b.cbranch(b.icmp_signed("<", next_step, depth), loop, after)
    b.position_at_end(after)
    return new_sums


def _write(b, like, c, sums, added):
    lanes = sums[0][0].type.count
    memory = ir.VectorType(llvm.stored(c.like), lanes)
    for i, row in enumerate(sums):
        start = b.mul(c.stride, llvm.number(i))
        for j, value in enumerate(row):
            where = llvm.pointer(b, c.address, _plus(b, start, j * lanes), memory)
            if added:
                value = b.fadd(llvm.widen(b, c.like, b.load(where, align=llvm.size(memory.element))), value)
            b.store(_rounded(b, like, c.like, value), where, align=llvm.size(memory.element))


def _add_product(b, like, x, y, total):
    if like != PAIRS:
        return llvm.fma(b, x, y, total)
    kind = total.type
    x, y = (b.bitcast(pairs, ir.VectorType(I32, kind.count)) for pairs in (x, y))
    return llvm.call(b, "llvm.x86.avx512bf16.dpbf16ps.512", kind, [total, x, y])


def _rounded(b, like, c_like, value):
    if like != PAIRS or c_like == PAIRS:
        return value
    memory = ir.VectorType(llvm.stored(c_like), value.type.count)
    return llvm.call(b, "llvm.x86.avx512bf16.cvtneps2bf16.512", memory, [value])


def _smaller(b, x, y):
    return b.select(b.icmp_signed("<", x, y), x, y)


def _plus(b, value, number):
    return b.add(value, llvm.number(number))
