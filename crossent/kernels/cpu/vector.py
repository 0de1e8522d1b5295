"""Vectors of 512 bits for numba: one type, its operators, and loads and stores that widen what they read.

Numba leaves vectorising to LLVM, which gives up inside long kernels and falls back to one element at a time where two
arrays might overlap. With the vector spelled out the machine code is the same everywhere it is inlined, and the order
of every sum is fixed, so that a row has the same bits on every machine that has fused multiply-add.

Memory is an address (an integer) and an element index. The storage type comes with `like`, a number handed through for
its type: float32, float64, int16 for the bits of a float16 and uint16 for those of a bfloat16. The arithmetic is in
float64 for float64, else in float32. uint32 stands for pairs of bfloat16 in the place of numbers of float32.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

VECTOR_BYTES = 64
_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
PAIRS = types.uint32
_LOAD_AHEAD = 1024  # bytes; far enough to hide the memory's latency behind the exponentials


class Vector(types.Type):
    """`lanes` numbers of one type, or as many booleans."""

    def __init__(self, dtype, lanes):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        element = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.lanes))


def compute_type(like):
    """The type of the arithmetic on what is stored like `like`."""
    return types.float64 if like == types.float64 else types.float32


def vector_of(dtype):
    return Vector(dtype, VECTOR_BYTES * 8 // dtype.bitwidth)


def mask_of(vector):
    return Vector(types.boolean, vector.lanes)


def _constant(kind, values):
    return ir.Constant(kind, list(values))


def _broadcast(builder, value, lanes):
    kind = ir.VectorType(value.type, lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, _constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _call(builder, name, result, arguments):
    function = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def _float_name(kind):
    element = getattr(kind, "element", kind)
    return f"v{kind.count}f{32 if isinstance(element, ir.FloatType) else 64}"


# Operators between vectors of one type.


def _operator(op, emit, result=lambda vector: vector, accepts=types.Float):
    """Between two vectors, or a vector and a number that is broadcast."""

    @infer_global(op)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            vectors = [a for a in args if isinstance(a, Vector)]
            if len(args) != 2 or not vectors or not isinstance(vectors[0].dtype, accepts):
                return None
            if all(a == vectors[0] or isinstance(a, types.Number) for a in args):
                return signature(result(vectors[0]), *args)
            return None

    def lower(context, builder, sig, args):
        vector = next(a for a in sig.args if isinstance(a, Vector))
        return emit(builder, *(_as_vector(context, builder, *pair, vector) for pair in zip(args, sig.args)))

    for operands in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(op, *operands)(lower)


def _as_vector(context, builder, value, kind, vector):
    if kind == vector:
        return value
    return _broadcast(builder, context.cast(builder, value, kind, vector.dtype), vector.lanes)


_operator(operator.add, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, lambda b, x, y: b.fmul(x, y))
_operator(operator.truediv, lambda b, x, y: b.fdiv(x, y))
_operator(operator.lt, lambda b, x, y: b.fcmp_ordered("<", x, y), mask_of)
_operator(operator.le, lambda b, x, y: b.fcmp_ordered("<=", x, y), mask_of)
_operator(operator.gt, lambda b, x, y: b.fcmp_ordered(">", x, y), mask_of)
_operator(operator.ne, lambda b, x, y: b.fcmp_unordered("!=", x, y), mask_of)
_operator(operator.and_, lambda b, x, y: b.and_(x, y), accepts=types.Boolean)


@intrinsic
def eq(typing, x, y):
    """Lanes where two vectors are equal."""

    def generate(context, builder, sig, args):
        return builder.fcmp_ordered("==", *args)

    return mask_of(x)(x, y), generate


@intrinsic
def and_not(typing, x, y):
    """Lanes of mask x that are not in mask y."""

    def generate(context, builder, sig, args):
        return builder.and_(args[0], builder.not_(args[1]))

    return x(x, y), generate


@intrinsic
def fma(typing, x, y, z):
    """x * y + z, rounded once."""

    def generate(context, builder, sig, args):
        kind = args[0].type
        return _call(builder, f"llvm.fma.{_float_name(kind)}", kind, args)

    return x(x, y, z), generate


@intrinsic
def max(typing, x, y):
    """The larger of two vectors; y where one of them is nan."""

    def generate(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return x(x, y), generate


@intrinsic
def select(typing, mask, x, y):
    def generate(context, builder, sig, args):
        return builder.select(*args)

    return x(mask, x, y), generate


@intrinsic
def splat(typing, like, value):
    """A number in every lane, as the type in which `like` is computed."""
    dtype = compute_type(like)
    vector = vector_of(dtype)

    def generate(context, builder, sig, args):
        return _broadcast(builder, context.cast(builder, args[1], value, dtype), vector.lanes)

    return vector(like, value), generate


@intrinsic
def round_to(typing, like, value):
    """A float64 rounded to the type in which `like` is computed."""
    dtype = compute_type(like)

    def generate(context, builder, sig, args):
        return context.cast(builder, context.cast(builder, args[1], types.float64, dtype), dtype, types.float64)

    return types.float64(like, types.float64), generate


@intrinsic
def lanes(typing, like):
    """How many numbers a vector holds, as a constant."""
    count = vector_of(compute_type(like)).lanes
    return types.intp(like), lambda context, builder, sig, args: ir.Constant(_I64, count)


def _lane_mask(comparison):
    @intrinsic
    def lane_mask(typing, like, n):
        vector = vector_of(compute_type(like))

        def generate(context, builder, sig, args):
            index = _constant(ir.VectorType(_I64, vector.lanes), range(vector.lanes))
            return builder.icmp_signed(comparison, index, _broadcast(builder, args[1], vector.lanes))

        return mask_of(vector)(like, types.intp), generate

    return lane_mask


first_n = _lane_mask("<")  # the first n lanes
all_but = _lane_mask("!=")  # every lane but number n


def _across(emit, in_double=False):
    @intrinsic
    def reduce(typing, x):
        result = types.float64 if in_double else x.dtype

        def generate(context, builder, sig, args):
            vector, width = args[0], x.lanes
            if result != x.dtype:
                vector = builder.fpext(vector, ir.VectorType(ir.DoubleType(), width))
            while width > 1:
                width //= 2
                halves = [
                    builder.shuffle_vector(
                        vector, vector, _constant(ir.VectorType(_I32, width), range(start, start + width))
                    )
                    for start in (0, width)
                ]
                vector = emit(builder, *halves)
            return builder.extract_element(vector, ir.Constant(_I32, 0))

        return result(x), generate

    return reduce


reduce_sum = _across(lambda b, x, y: b.fadd(x, y))
reduce_sum_in_double = _across(lambda b, x, y: b.fadd(x, y), in_double=True)
reduce_max = _across(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


@intrinsic
def find_first(typing, mask):
    """The number of the first lane in the mask, that of lanes if there is none."""

    def generate(context, builder, sig, args):
        bits = ir.IntType(mask.lanes)
        zeros = builder.cttz(builder.bitcast(args[0], bits), ir.Constant(_I1, 0))
        return builder.zext(zeros, _I64)

    return types.intp(mask), generate


# Pairs of bfloat16, of which one instruction adds both products to a sum. Memory holds them as if they were float32.


@intrinsic
def numbers_per_element(typing, like):
    """How many numbers one element holds, as a constant."""
    count = 2 if like == PAIRS else 1
    return types.intp(like), lambda context, builder, sig, args: ir.Constant(_I64, count)


@intrinsic
def if_pairs(typing, like, if_pairs, if_numbers):
    """One of two arguments, by what `like` stands for."""
    which = 1 if like == PAIRS else 2
    kind = (like, if_pairs, if_numbers)[which]
    return kind(like, if_pairs, if_numbers), lambda context, builder, sig, args: args[which]


@intrinsic
def pack_pairs(typing, x, y):
    """The numbers of two vectors, which bfloat16 can hold, beside each other in pairs."""

    def generate(context, builder, sig, args):
        kind = args[0].type
        integers, _, _ = _layout(kind)
        low, high = (builder.bitcast(a, integers) for a in args)
        low = builder.lshr(low, _constant(integers, [16] * kind.count))
        return builder.bitcast(builder.or_(low, high), kind)

    return x(x, y), generate


# The bits of floats, for exponentials and logarithms.


def _layout(kind):
    """Integer type, mantissa bits and the bits of sqrt(1/2) of a vector of floats."""
    double = isinstance(kind.element, ir.DoubleType)
    integers = ir.VectorType(_I64 if double else _I32, kind.count)
    return (integers, 52, 0x3FE6A09E667F3BCD) if double else (integers, 23, 0x3F3504F3)


@intrinsic
def scale_by_power(typing, x, power):
    """x * 2**n where the lowest bits of `power` hold the integer n."""

    def generate(context, builder, sig, args):
        kind = args[0].type
        integers, mantissa, _ = _layout(kind)
        bits, shift = (builder.bitcast(a, integers) for a in args)
        shift = builder.shl(shift, _constant(integers, [mantissa] * kind.count))
        return builder.bitcast(builder.add(bits, shift), kind)

    return x(x, power), generate


def _split(which):
    @intrinsic
    def part(typing, x):
        def generate(context, builder, sig, args):
            kind = args[0].type
            integers, mantissa, half_root = _layout(kind)
            offset = _constant(integers, [half_root] * kind.count)
            bits = builder.sub(builder.bitcast(args[0], integers), offset)
            if which == "exponent":
                return builder.sitofp(builder.ashr(bits, _constant(integers, [mantissa] * kind.count)), kind)
            bits = builder.and_(bits, _constant(integers, [(1 << mantissa) - 1] * kind.count))
            return builder.bitcast(builder.add(bits, offset), kind)

        return x(x), generate

    return part


# A positive normal x is fraction * 2**exponent with sqrt(1/2) <= fraction < sqrt(2).
exponent = _split("exponent")
fraction = _split("fraction")


# Memory.


def _storage(like):
    """LLVM type of one stored element."""
    return {
        types.float32: ir.FloatType(),
        types.float64: ir.DoubleType(),
        types.int16: ir.IntType(16),
        types.uint16: ir.IntType(16),
        PAIRS: ir.FloatType(),
        types.int64: _I64,
    }[like]


def _size(stored):
    return {ir.FloatType: 4, ir.DoubleType: 8}.get(type(stored)) or stored.width // 8


def _pointer(builder, address, index, stored, kind):
    base = builder.inttoptr(address, _I8.as_pointer())
    offset = builder.mul(index, ir.Constant(_I64, _size(stored)))
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def _like(kind, element):
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _widen(builder, like, value):
    """Stored to computed: exact."""
    kind = value.type
    if like == types.int16:
        return builder.fpext(builder.bitcast(value, _like(kind, ir.HalfType())), _like(kind, ir.FloatType()))
    if like == types.uint16:
        wide = builder.zext(value, _like(kind, _I32))
        return builder.bitcast(builder.shl(wide, _filled(wide.type, 16)), _like(kind, ir.FloatType()))
    return value


def _narrow(builder, like, value):
    """Computed to stored: rounded to nearest, ties to even."""
    kind = value.type
    if like == types.int16:
        return builder.bitcast(builder.fptrunc(value, _like(kind, ir.HalfType())), _like(kind, ir.IntType(16)))
    if like == types.uint16:
        integers = _like(kind, _I32)
        bits = builder.bitcast(value, integers)
        odd = builder.and_(builder.lshr(bits, _filled(integers, 16)), _filled(integers, 1))
        rounded = builder.add(bits, builder.add(odd, _filled(integers, 0x7FFF)))
        quiet = builder.or_(bits, _filled(integers, 0x400000))
        rounded = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
        return builder.trunc(builder.lshr(rounded, _filled(integers, 16)), _like(kind, ir.IntType(16)))
    return value


def _filled(kind, value):
    return _constant(kind, [value] * kind.count) if isinstance(kind, ir.VectorType) else ir.Constant(kind, value)


def _vector_memory(like):
    """Numba vector type and LLVM type of a vector as stored."""
    vector = vector_of(compute_type(like))
    return vector, ir.VectorType(_storage(like), vector.lanes)


def _masked_load(builder, like, pointer, kind, mask):
    """Zeros outside the mask, where nothing is read."""
    name = f"llvm.masked.load.v{kind.count}{_short(kind.element)}.p0"
    align = ir.Constant(_I32, _size(kind.element))
    return _widen(builder, like, _call(builder, name, kind, [pointer, align, mask, _filled_zero(kind)]))


def _masked_store(builder, like, pointer, kind, mask, value):
    name = f"llvm.masked.store.v{kind.count}{_short(kind.element)}.p0"
    align = ir.Constant(_I32, _size(kind.element))
    _call(builder, name, ir.VoidType(), [_narrow(builder, like, value), pointer, align, mask])


@intrinsic
def load(typing, like, address, index):
    """A vector from address[index : index + lanes]."""
    vector, kind = _vector_memory(like)

    def generate(context, builder, sig, args):
        pointer = _pointer(builder, args[1], args[2], kind.element, kind)
        return _widen(builder, like, builder.load(pointer, align=_size(kind.element)))

    return vector(like, types.intp, types.intp), generate


@intrinsic
def load_masked(typing, like, address, index, mask, fill):
    """A vector whose lanes outside the mask are not read and hold `fill`."""
    vector, kind = _vector_memory(like)

    def generate(context, builder, sig, args):
        pointer = _pointer(builder, args[1], args[2], kind.element, kind)
        return builder.select(args[3], _masked_load(builder, like, pointer, kind, args[3]), args[4])

    return vector(like, types.intp, types.intp, mask, fill), generate


@intrinsic
def store(typing, like, address, index, value):
    kind = _vector_memory(like)[1]

    def generate(context, builder, sig, args):
        pointer = _pointer(builder, args[1], args[2], kind.element, kind)
        builder.store(_narrow(builder, like, args[3]), pointer, align=_size(kind.element))
        return context.get_dummy_value()

    return types.void(like, types.intp, types.intp, value), generate


@intrinsic
def stream(typing, like, address, index, value):
    """As `store`, past the caches, to an address that is a multiple of the vector's size."""
    kind = _vector_memory(like)[1]

    def generate(context, builder, sig, args):
        pointer = _pointer(builder, args[1], args[2], kind.element, kind)
        stored = builder.store(_narrow(builder, like, args[3]), pointer, align=_size(kind.element) * kind.count)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))
        return context.get_dummy_value()

    return types.void(like, types.intp, types.intp, value), generate


@intrinsic
def store_masked(typing, like, address, index, mask, value):
    """Write the lanes in the mask and leave the others alone."""
    kind = _vector_memory(like)[1]

    def generate(context, builder, sig, args):
        pointer = _pointer(builder, args[1], args[2], kind.element, kind)
        _masked_store(builder, like, pointer, kind, args[3], args[4])
        return context.get_dummy_value()

    return types.void(like, types.intp, types.intp, mask, value), generate


def _short(element):
    return {4: "f32", 8: "f64"}[_size(element)] if not isinstance(element, ir.IntType) else f"i{element.width}"


def _filled_zero(kind):
    return ir.Constant(kind, None)


@intrinsic
def load_scalar(typing, like, address, index):
    """One number from address[index]."""
    dtype = like if like == types.int64 else compute_type(like)

    def generate(context, builder, sig, args):
        stored = _storage(like)
        pointer = _pointer(builder, args[1], args[2], stored, stored)
        return _widen(builder, like, builder.load(pointer, align=_size(stored)))

    return dtype(like, types.intp, types.intp), generate


@intrinsic
def store_scalar(typing, like, address, index, value):
    """One number, rounded to the stored type, to address[index]."""
    dtype = like if like == types.int64 else compute_type(like)

    def generate(context, builder, sig, args):
        stored = _storage(like)
        pointer = _pointer(builder, args[1], args[2], stored, stored)
        number = context.cast(builder, args[3], value, dtype)
        builder.store(_narrow(builder, like, number), pointer, align=_size(stored))
        return context.get_dummy_value()

    return types.void(like, types.intp, types.intp, value), generate


@intrinsic
def transpose(typing, source_like, source, source_stride, like, target, target_stride, rows, columns):
    """Write a block of numbers transposed: up to as many rows and columns as a vector has lanes."""
    vector, read = _vector_memory(source_like)
    written = _vector_memory(like)[1]

    def generate(context, builder, sig, args):
        _, source, source_stride, _, target, target_stride, rows, columns = args
        lane = _constant(ir.VectorType(_I64, vector.lanes), range(vector.lanes))

        def address(start, stride, i, kind):
            return _pointer(builder, start, builder.mul(stride, ir.Constant(_I64, i)), kind.element, kind)

        def within(i, outer, inner):
            """The lanes below `inner`, or none if i is not below `outer`."""
            below = builder.icmp_signed("<", ir.Constant(_I64, i), outer)
            count = builder.select(below, inner, ir.Constant(_I64, 0))
            return builder.icmp_signed("<", lane, _broadcast(builder, count, vector.lanes))

        vectors = [
            _masked_load(builder, source_like, address(source, source_stride, i, read), read, within(i, rows, columns))
            for i in range(vector.lanes)
        ]
        for i, value in enumerate(_transposed(builder, vectors)):
            pointer = address(target, target_stride, i, written)
            _masked_store(builder, like, pointer, written, within(i, columns, rows), value)
        return context.get_dummy_value()

    kinds = source_like, types.intp, types.intp, like, types.intp, types.intp, types.intp, types.intp
    return types.void(*kinds), generate


def _transposed(builder, vectors):
    """By shuffles that processors have: inside quarters of vectors, then of whole quarters."""
    lanes = len(vectors)
    quarter = lanes // 4
    low, high = range(quarter // 2), range(quarter // 2, quarter)
    rows = [vectors[start : start + quarter] for start in range(0, lanes, quarter)]
    for _ in range(quarter.bit_length() - 1):  # a perfect shuffle for every bit of the lane's number: Stone (1971)
        rows = [
            [
                _shuffled(
                    builder, x, y, [q + i + z for q in range(0, lanes, quarter) for i in half for z in (0, lanes)]
                )
                for x, y in zip(group[: quarter // 2], group[quarter // 2 :], strict=True)
                for half in (low, high)
            ]
            for group in rows
        ]
    even, odd = ([q * quarter + i for q in chosen for i in range(quarter)] for chosen in ((0, 2, 4, 6), (1, 3, 5, 7)))
    columns = {}
    for i, (a, b, c, d) in enumerate(zip(*rows, strict=True)):
        for first, order in enumerate((even, odd)):
            ab, cd = _shuffled(builder, a, b, order), _shuffled(builder, c, d, order)
            columns[first * quarter + i] = _shuffled(builder, ab, cd, even)
            columns[(first + 2) * quarter + i] = _shuffled(builder, ab, cd, odd)
    return [columns[i] for i in range(lanes)]


def _shuffled(builder, x, y, order):
    return builder.shuffle_vector(x, y, _constant(ir.VectorType(_I32, len(order)), order))


# Labels: int64 in the caller's memory; compared as integers as wide as the floats, so that the masks fit.


def _label_vector(like, dtype=types.int64):
    return Vector(dtype, vector_of(compute_type(like)).lanes)


def _narrow_labels(like):
    return _label_vector(like, types.int64 if compute_type(like) == types.float64 else types.int32)


def _integers(vector):
    return ir.VectorType(ir.IntType(vector.dtype.bitwidth), vector.lanes)


@intrinsic
def load_labels(typing, like, address, index, mask):
    """Labels in the lanes of the mask, 0 in the others."""
    vector = _label_vector(like)

    def generate(context, builder, sig, args):
        kind = _integers(vector)
        pointer = _pointer(builder, args[1], args[2], _I64, kind)
        name = f"llvm.masked.load.v{vector.lanes}i64.p0"
        return _call(builder, name, kind, [pointer, ir.Constant(_I32, 8), args[3], _filled_zero(kind)])

    return vector(like, types.intp, types.intp, mask), generate


@intrinsic
def labels_below(typing, labels, classes):
    """Lanes with 0 <= label < classes."""

    def generate(context, builder, sig, args):
        return builder.icmp_unsigned("<", args[0], _broadcast(builder, args[1], labels.lanes))

    return mask_of(labels)(labels, types.intp), generate


@intrinsic
def labels_eq(typing, labels, label):
    """Lanes that hold `label`."""

    def generate(context, builder, sig, args):
        wanted = args[1] if labels.dtype == types.int64 else builder.trunc(args[1], _I32)
        return builder.icmp_signed("==", args[0], _broadcast(builder, wanted, labels.lanes))

    return mask_of(labels)(labels, types.intp), generate


@intrinsic
def narrow_labels(typing, like, labels, mask):
    """Labels that are classes as narrow as they are compared, -1 outside the mask."""
    narrow = _narrow_labels(like)

    def generate(context, builder, sig, args):
        kind = _integers(narrow)
        value = args[1] if narrow == labels else builder.trunc(args[1], kind)
        return builder.select(args[2], value, _filled(kind, -1))

    return narrow(like, labels, mask), generate


@intrinsic
def no_labels(typing, like):
    narrow = _narrow_labels(like)
    return narrow(like), lambda context, builder, sig, args: _filled(_integers(narrow), -1)


@intrinsic
def store_narrow_labels(typing, like, address, index, labels):
    """Narrow labels to a scratch array."""

    def generate(context, builder, sig, args):
        stored = args[3].type.element
        builder.store(args[3], _pointer(builder, args[1], args[2], stored, args[3].type), align=_size(stored))
        return context.get_dummy_value()

    return types.void(like, types.intp, types.intp, labels), generate


@intrinsic
def load_narrow_labels(typing, like, address, index):
    narrow = _narrow_labels(like)

    def generate(context, builder, sig, args):
        kind = _integers(narrow)
        return builder.load(_pointer(builder, args[1], args[2], kind.element, kind), align=_size(kind.element))

    return narrow(like, types.intp, types.intp), generate


@intrinsic
def any_true(typing, mask):
    def generate(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(mask.lanes))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), generate


def _asking(beyond):
    @intrinsic
    def ask(typing, like, address, index):
        """Ask for the memory so many bytes beyond address[index]; may lie outside the array."""

        def generate(context, builder, sig, args):
            pointer = _pointer(builder, args[1], args[2], _storage(like), _I8)
            pointer = builder.gep(pointer, [ir.Constant(_I64, beyond)])
            read, keep, data = (ir.Constant(_I32, n) for n in (0, 3, 1))
            _call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, read, keep, data])
            return context.get_dummy_value()

        return types.void(like, types.intp, types.intp), generate

    return ask


prefetch = _asking(_LOAD_AHEAD)  # in a loop that goes through memory
prefetch_here = _asking(0)


@intrinsic
def at(typing, like, address, index):
    """The address of element number `index`."""

    def generate(context, builder, sig, args):
        return builder.add(args[1], builder.mul(args[2], ir.Constant(_I64, _size(_storage(like)))))

    return types.intp(like, types.intp, types.intp), generate


@intrinsic
def fetch_add(typing, address, index):
    """Add 1 to an int64 that threads share, and give what it was."""

    def generate(context, builder, sig, args):
        pointer = _pointer(builder, *args, _I64, _I64)
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "seq_cst")

    return types.intp(types.intp, types.intp), generate


@intrinsic
def invoke(typing, function, call, scratch, lo, hi, sums):
    """Call the C function at an address."""

    def generate(context, builder, sig, args):
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 5)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


# Constants. Each is added to the value of `like`, which is 0, though the compiler does not know it: what it knows to be
# constant it reads from memory again in every round of a loop rather than keep it in a register.


def _kept(context, builder, value, like, number):
    dtype = compute_type(like)
    zero = context.cast(builder, value, like, dtype)
    return _broadcast(builder, builder.fadd(ir.Constant(zero.type, number), zero), vector_of(dtype).lanes)


def polynomial(single, double):
    """A function of `like` and a vector: Horner's scheme with the coefficients of its type, highest power first."""

    @intrinsic
    def evaluate(typing, like, x):
        coefficients = double if x.dtype == types.float64 else single

        def generate(context, builder, sig, args):
            first, *rest = (_kept(context, builder, args[0], like, number) for number in coefficients)
            result = first
            for coefficient in rest:
                result = _call(
                    builder, f"llvm.fma.{_float_name(result.type)}", result.type, [result, args[1], coefficient]
                )
            return result

        return x(like, x), generate

    return evaluate


def constant(single, double):
    """A function of `like`: a vector of the number for its type."""

    @intrinsic
    def evaluate(typing, like):
        dtype = compute_type(like)
        number = double if dtype == types.float64 else single
        return vector_of(dtype)(like), lambda context, builder, sig, args: _kept(
            context, builder, args[0], like, number
        )

    return evaluate
