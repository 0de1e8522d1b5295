"""The LLVM instructions that vector operations are made of.

A `like` is a numba type that says how numbers are stored: float32, float64, int16 for the bits of a float16, uint16
for the bits of a bfloat16, int64 for labels. `PAIRS` stands for pairs of bfloat16, each pair in the place of a float32.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils

I1, I8, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
PAIRS = types.uint32
_STORED = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int16: ir.IntType(16),
    types.uint16: ir.IntType(16),
    PAIRS: ir.FloatType(),
    types.int64: I64,
}


def number(value):
    return ir.Constant(I64, value)


def constant(kind, values):
    return ir.Constant(kind, list(values))


def filled(kind, value):
    """A constant of this type; of a vector type, with the value in every lane."""
    return constant(kind, [value] * kind.count) if isinstance(kind, ir.VectorType) else ir.Constant(kind, value)


def broadcast(builder, value, lanes):
    kind = ir.VectorType(value.type, lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return shuffled(builder, first, undefined, [0] * lanes)


def shuffled(builder, x, y, order):
    """A vector of lanes of x and y in this order; the lanes of y are numbered after those of x."""
    return builder.shuffle_vector(x, y, constant(ir.VectorType(I32, len(order)), order))


def call(builder, name, result, arguments):
    """Call one of LLVM's own functions."""
    function = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def fma(builder, x, y, z):
    kind = x.type
    return call(builder, f"llvm.fma.v{kind.count}{_short(kind.element)}", kind, [x, y, z])


def larger(builder, x, y):
    """The larger of x and y; y where one of them is nan."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def like_vector(kind, element):
    """The element's type or, if `kind` is a vector type, that of a vector of elements with as many lanes."""
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def layout(kind):
    """For a vector type of floats: the type of integers as wide, the width of the mantissa, the bits of sqrt(1/2)."""
    if isinstance(kind.element, ir.DoubleType):
        return ir.VectorType(I64, kind.count), 52, 0x3FE6A09E667F3BCD
    return ir.VectorType(I32, kind.count), 23, 0x3F3504F3


def halved(builder, vector, combine):
    """All lanes combined into one number, one half with the other: the order of a sum is the same everywhere."""
    width = vector.type.count
    while width > 1:
        width //= 2
        low, high = (shuffled(builder, vector, vector, range(start, start + width)) for start in (0, width))
        vector = combine(builder, low, high)
    return builder.extract_element(vector, ir.Constant(I32, 0))


# Memory.


def stored(like):
    """The type of one element in memory."""
    return _STORED[like]


def size(kind):
    return {ir.FloatType: 4, ir.DoubleType: 8}.get(type(kind)) or kind.width // 8


def _short(element):
    return f"i{element.width}" if isinstance(element, ir.IntType) else {4: "f32", 8: "f64"}[size(element)]


def pointer(builder, address, index, kind):
    """A pointer to address[index], to read or write something of this type there: an element or a vector of them."""
    element = getattr(kind, "element", kind)
    base = builder.inttoptr(address, I8.as_pointer())
    offset = builder.mul(index, number(size(element)))
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def load(builder, like, address, index, kind):
    element = getattr(kind, "element", kind)
    return widen(builder, like, builder.load(pointer(builder, address, index, kind), align=size(element)))


def store(builder, like, address, index, kind, value, align=1):
    """Write the value, rounded to the stored type, to address[index], which is aligned to `align` elements."""
    element = getattr(kind, "element", kind)
    where = pointer(builder, address, index, kind)
    return builder.store(narrow(builder, like, value), where, align=align * size(element))


def masked_load(builder, where, kind, mask):
    """The lanes in the mask; the others are not read and hold 0."""
    name = f"llvm.masked.load.v{kind.count}{_short(kind.element)}.p0"
    return call(builder, name, kind, [where, ir.Constant(I32, size(kind.element)), mask, ir.Constant(kind, None)])


def masked_store(builder, where, kind, mask, value):
    name = f"llvm.masked.store.v{kind.count}{_short(kind.element)}.p0"
    call(builder, name, ir.VoidType(), [value, where, ir.Constant(I32, size(kind.element)), mask])


def widen(builder, like, value):
    """From the stored type to the type of the arithmetic, exactly."""
    kind = value.type
    if like == types.int16:
        half = builder.bitcast(value, like_vector(kind, ir.HalfType()))
        return builder.fpext(half, like_vector(kind, ir.FloatType()))
    if like == types.uint16:
        wide = builder.zext(value, like_vector(kind, I32))
        return builder.bitcast(builder.shl(wide, filled(wide.type, 16)), like_vector(kind, ir.FloatType()))
    return value


def narrow(builder, like, value):
    """From the type of the arithmetic to the stored type, rounded to nearest, ties to even."""
    kind = value.type
    if like == types.int16:
        half = builder.fptrunc(value, like_vector(kind, ir.HalfType()))
        return builder.bitcast(half, like_vector(kind, ir.IntType(16)))
    if like == types.uint16:
        integers = like_vector(kind, I32)
        bits = builder.bitcast(value, integers)
        odd = builder.and_(builder.lshr(bits, filled(integers, 16)), filled(integers, 1))
        rounded = builder.add(bits, builder.add(odd, filled(integers, 0x7FFF)))
        quiet = builder.or_(bits, filled(integers, 0x400000))
        rounded = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
        return builder.trunc(builder.lshr(rounded, filled(integers, 16)), like_vector(kind, ir.IntType(16)))
    return value


def transposed(builder, vectors):
    """As many vectors as each has lanes, transposed by shuffles that are instructions of processors.

    First inside the quarters of the vectors, by one perfect shuffle for every bit of the lane's number (Stone 1971,
    Parallel Processing with the Perfect Shuffle), then by moving whole quarters.
    """
    lanes = len(vectors)
    quarter = lanes // 4
    rows = [vectors[start : start + quarter] for start in range(0, lanes, quarter)]
    halves = [
        [q + i + other for q in range(0, lanes, quarter) for i in half for other in (0, lanes)]
        for half in (range(quarter // 2), range(quarter // 2, quarter))
    ]
    for _ in range(quarter.bit_length() - 1):
        rows = [
            [
                shuffled(builder, x, y, order)
                for x, y in zip(group[: quarter // 2], group[quarter // 2 :], strict=True)
                for order in halves
            ]
            for group in rows
        ]
    even, odd = ([q * quarter + i for q in chosen for i in range(quarter)] for chosen in ((0, 2, 4, 6), (1, 3, 5, 7)))
    columns = {}
    for i, (a, b, c, d) in enumerate(zip(*rows, strict=True)):
        for first, order in enumerate((even, odd)):
            ab, cd = shuffled(builder, a, b, order), shuffled(builder, c, d, order)
            columns[first * quarter + i] = shuffled(builder, ab, cd, even)
            columns[(first + 2) * quarter + i] = shuffled(builder, ab, cd, odd)
    return [columns[i] for i in range(lanes)]
