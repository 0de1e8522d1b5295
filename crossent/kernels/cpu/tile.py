"""A tile of a matrix product, summed in registers: HEIGHT rows of the one factor by VECTORS of columns of the other."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from crossent.kernels.cpu.processor import FEATURES
from crossent.kernels.cpu.vector import (
    _I32,
    _I64,
    PAIRS,
    _broadcast,
    _call,
    _float_name,
    _pointer,
    _size,
    _storage,
    _widen,
    compute_type,
    vector_of,
)

# Sums enough to keep two multiply-adds a cycle busy for the four or five that each takes, in 16 registers of 256 bits
# (a vector is two of them) or 32 of 512.
HEIGHT, VECTORS = (8, 2) if FEATURES.get("avx512f") else (6, 1)


@intrinsic
def multiply_tile(typing, like, c_like, a, a_row, a_step, b, depth, c, c_row, rows, adds):
    """Write a tile to c, stored like c_like, or add it. `a` has so many `rows`; what the others get has no meaning.

    For each of `depth` steps b has a row of the tile's width, and a moves on by a_step. The order of the sums does not
    depend on the shape of the tile.
    """
    vector = vector_of(compute_type(like))
    width = VECTORS * vector.lanes

    def generate(context, builder, sig, args):
        _, _, a, a_row, a_step, b, depth, c, c_row, rows, adds = args
        element = context.get_value_type(vector.dtype)
        kind = ir.VectorType(element, vector.lanes)
        zero, one, nothing = ir.Constant(_I64, 0), ir.Constant(_I64, 1), ir.Constant(kind, [0.0] * vector.lanes)
        # Rows that are not there are the last one again, so that nothing is read behind it.
        last = builder.sub(rows, one)
        starts = [_smaller(builder, ir.Constant(_I64, i), last) for i in range(HEIGHT)]
        starts = [builder.ptrtoint(_pointer(builder, a, builder.mul(i, a_row), element, element), _I64) for i in starts]

        before, loop, after = builder.block, builder.append_basic_block("sum"), builder.append_basic_block("write")
        builder.branch(loop)
        builder.position_at_end(loop)
        step, a_offset, b_offset = (builder.phi(_I64) for _ in range(3))
        sums = [[builder.phi(kind) for _ in range(VECTORS)] for _ in starts]
        columns = [
            builder.load(_pointer(builder, b, _plus(builder, b_offset, j * vector.lanes), element, kind), align=64)
            for j in range(VECTORS)
        ]
        new_sums = []
        for start, row in zip(starts, sums):
            factor = _broadcast(
                builder, builder.load(_pointer(builder, start, a_offset, element, element)), vector.lanes
            )
            new_sums.append([_add_product(builder, like, factor, *pair) for pair in zip(columns, row)])
        new_step, new_a = builder.add(step, one), builder.add(a_offset, a_step)
        new_b = _plus(builder, b_offset, width)
        for old, new in ((step, new_step), (a_offset, new_a), (b_offset, new_b)):
            old.add_incoming(zero, before)
            old.add_incoming(new, loop)
        for old, new in zip(sum(sums, []), sum(new_sums, [])):
            old.add_incoming(nothing, before)
            old.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", new_step, depth), loop, after)

        builder.position_at_end(after)
        stored = _storage(c_like)
        memory, align = ir.VectorType(stored, vector.lanes), _size(stored)

        def write(added):
            for i, row in enumerate(new_sums):
                start = builder.mul(c_row, ir.Constant(_I64, i))
                for j, value in enumerate(row):
                    pointer = _pointer(builder, c, _plus(builder, start, j * vector.lanes), stored, memory)
                    if added:
                        value = builder.fadd(_widen(builder, c_like, builder.load(pointer, align=align)), value)
                    builder.store(_rounded(builder, like, c_like, value), pointer, align=align)

        with builder.if_else(builder.icmp_signed("!=", adds, zero)) as (add, replace):
            with add:
                write(True)
            with replace:
                write(False)
        return context.get_dummy_value()

    return types.void(like, c_like, *[types.intp] * 9), generate


def _add_product(builder, like, x, y, total):
    kind = total.type
    if like != PAIRS:
        return _call(builder, f"llvm.fma.{_float_name(kind)}", kind, [x, y, total])
    x, y = (builder.bitcast(pairs, ir.VectorType(_I32, kind.count)) for pairs in (x, y))
    return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", kind, [total, x, y])


def _rounded(builder, like, c_like, value):
    if like != PAIRS or c_like == PAIRS:
        return value
    memory = ir.VectorType(_storage(c_like), value.type.count)
    return _call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", memory, [value])


def _smaller(builder, x, y):
    return builder.select(builder.icmp_signed("<", x, y), x, y)


def _plus(builder, value, number):
    return builder.add(value, ir.Constant(_I64, number))
