"""Vectors of 512 bits for numba: a type, its operators, and a table of the operations on it.

    from crossent.kernels.cpu import vector as v

Numba leaves vectorising to LLVM, which gives up inside long kernels, and falls back to one element at a time where two
arrays might overlap. With vectors spelled out, the machine code is the same wherever it is inlined. The order of every
sum is fixed, so a row has the same bits on every machine that has fused multiply-add.

Memory is an address (an integer) and an element index. `like` says how numbers are stored there. It is a number that is
passed for its type alone, as the tag `d` of Google Highway, where most names of operations come from. The types are
float32, float64, int16 for the bits of a float16 and uint16 for the bits of a bfloat16. Vectors are of float64 for
float64, else of float32; loads and stores convert. uint32 stands for pairs of bfloat16, each in the place of a float32.
"""

import inspect
import operator
from collections import namedtuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from crossent.kernels.cpu import llvm
from crossent.kernels.cpu.llvm import I1, I32, I64, PAIRS

VECTOR_BYTES = 64
# A matrix in memory: how its numbers are stored, its address, and how many elements lie from one row to the next.
Matrix = namedtuple("Matrix", "like address stride")
# Bytes; far enough to hide the memory's latency behind the exponentials. Without, an evaluation takes 3 % longer
# (`python -m benchmarks --case '2048 x 32000'`), of images 10 % (`--case '4 x 19 x 512 x 512'`).
_LOAD_AHEAD = 1024


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


# Types of results and of arguments. Each function takes the types of the arguments that its parameters name.


def computed(like):
    """The type of the arithmetic on numbers that are stored like `like`."""
    return types.float64 if like == types.float64 else types.float32


def one_number(like):
    return like if like == types.int64 else computed(like)


def vector(like):
    dtype = computed(like)
    return Vector(dtype, VECTOR_BYTES * 8 // dtype.bitwidth)


def _same(x):
    return x


def _element(x):
    return x.dtype


def _mask(x):
    return Vector(types.boolean, x.lanes)


def _mask_like(like):
    return _mask(vector(like))


def _labels(like):
    """Labels as they lie in the caller's memory."""
    return Vector(types.int64, vector(like).lanes)


def _narrow_labels(like):
    """Labels as wide as the floats, so that masks fit both."""
    return Vector(types.int64 if computed(like) == types.float64 else types.int32, vector(like).lanes)


def _of(function, given):
    return function(*(given[name] for name in inspect.signature(function).parameters))


def _by_name(builder, kind, value):
    """The values of a named tuple as one of its kind, `like` as a type; any other value as it is."""
    if not isinstance(kind, types.BaseNamedTuple):
        return value
    values = zip(kind.fields, kind.types, cgutils.unpack_tuple(builder, value), strict=True)
    return kind.instance_class(*(like if name == "like" else value for name, like, value in values))


def operation(result=None):
    """A decorator: makes a numba intrinsic of a function that takes LLVM's builder and values and makes instructions.

    `result` is the type of the result, or a function that gives it from the types of the arguments. An argument
    annotated with `type` is handed on as its type. One annotated with `int` is an integer as wide as an address. One
    annotated with a function is converted to the type that this function gives. Any other is taken as it is; of a named
    tuple, `like` is handed on as its type.
    """

    def made(emit):
        _, *parameters = inspect.signature(emit).parameters.values()

        def kind_of(parameter, given):
            if parameter.annotation is int:
                return types.intp
            if parameter.annotation in (type, parameter.empty):
                return given[parameter.name]
            return _of(parameter.annotation, given)

        def typed(typing, *arguments):
            given = dict(zip((parameter.name for parameter in parameters), arguments, strict=True))
            kind = result or types.void
            kind = kind if isinstance(kind, types.Type) else _of(kind, given)

            def generate(context, builder, sig, args):
                values = (
                    given[parameter.name]
                    if parameter.annotation is type
                    else _by_name(builder, given[parameter.name], value)
                    for parameter, value in zip(parameters, args, strict=True)
                )
                value = emit(builder, *values)
                return context.get_dummy_value() if result is None else value

            return kind(*(kind_of(parameter, given) for parameter in parameters)), generate

        typed.__name__, typed.__doc__ = emit.__name__, emit.__doc__
        first = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        typed.__signature__ = inspect.Signature([first, *(p.replace(annotation=p.empty) for p in parameters)])
        return intrinsic(typed)

    return made


# Operators between vectors of one type, or between a vector and a number, which is broadcast.


def _operator(op, emit, result=_same, accepts=types.Float):
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
        kind = next(a for a in sig.args if isinstance(a, Vector))
        return emit(builder, *(_as_vector(context, builder, *pair, kind) for pair in zip(args, sig.args)))

    for operands in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(op, *operands)(lower)


def _as_vector(context, builder, value, given, kind):
    if given == kind:
        return value
    return llvm.broadcast(builder, context.cast(builder, value, given, kind.dtype), kind.lanes)


_operator(operator.add, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, lambda b, x, y: b.fmul(x, y))
_operator(operator.truediv, lambda b, x, y: b.fdiv(x, y))
_operator(operator.lt, lambda b, x, y: b.fcmp_ordered("<", x, y), _mask)
_operator(operator.le, lambda b, x, y: b.fcmp_ordered("<=", x, y), _mask)
_operator(operator.gt, lambda b, x, y: b.fcmp_ordered(">", x, y), _mask)
_operator(operator.ne, lambda b, x, y: b.fcmp_unordered("!=", x, y), _mask)
_operator(operator.and_, lambda b, x, y: b.and_(x, y), accepts=types.Boolean)


# Lane by lane.


@operation(types.intp)
def lanes(b, like: type):
    """How many numbers a vector holds, as a constant."""
    return llvm.number(vector(like).lanes)


@operation(vector)
def splat(b, like: type, value: computed):
    """A vector with the number in every lane, in the type of the arithmetic."""
    return llvm.broadcast(b, value, vector(like).lanes)


eq = operation(_mask)(lambda b, x, y: b.fcmp_ordered("==", x, y))
select = operation(_same)(lambda b, mask, x, y: b.select(mask, x, y))
and_not = operation(_same)(lambda b, x, y: b.and_(x, b.not_(y)))  # lanes of the mask x that are not in y
fma = operation(_same)(llvm.fma)  # x * y + z, rounded once
max = operation(_same)(llvm.larger)  # the larger; y where one of them is nan


@operation(types.float64)
def round_to(b, like: type, value: lambda: types.float64):
    """A float64 rounded to the type of the arithmetic."""
    if computed(like) == types.float64:
        return value
    return b.fpext(b.fptrunc(value, ir.FloatType()), ir.DoubleType())


# Masks.


def _lane_numbers(b, like):
    count = vector(like).lanes
    return llvm.constant(ir.VectorType(I64, count), range(count))


def _compared_lanes(b, comparison, like, n):
    return b.icmp_signed(comparison, _lane_numbers(b, like), llvm.broadcast(b, n, vector(like).lanes))


@operation(_mask_like)
def first_n(b, like: type, n: int):
    """The first n lanes."""
    return _compared_lanes(b, "<", like, n)


@operation(_mask_like)
def all_but(b, like: type, lane: int):
    return _compared_lanes(b, "!=", like, lane)


@operation(types.boolean)
def any_true(b, mask):
    bits = b.bitcast(mask, ir.IntType(mask.type.count))
    return b.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))


@operation(types.intp)
def find_first(b, mask):
    """The number of the first lane in the mask; the number of lanes if there is none."""
    bits = b.bitcast(mask, ir.IntType(mask.type.count))
    return b.zext(b.cttz(bits, ir.Constant(I1, 0)), I64)


# Reductions over the lanes.


reduce_sum = operation(_element)(lambda b, x: llvm.halved(b, x, ir.IRBuilder.fadd))
reduce_max = operation(_element)(lambda b, x: llvm.halved(b, x, llvm.larger))


@operation(types.float64)
def reduce_sum_in_double(b, x):
    return llvm.halved(b, b.fpext(x, ir.VectorType(ir.DoubleType(), x.type.count)), ir.IRBuilder.fadd)


# The bits of floats, for exponentials and logarithms.


@operation(_same)
def power_of_two(b, x):
    """2**n where the lowest bits of x hold n and the exponent's bias."""
    integers, mantissa, _ = llvm.layout(x.type)
    return b.bitcast(b.shl(b.bitcast(x, integers), llvm.filled(integers, mantissa)), x.type)


def _bits_above_half_root(b, x):
    """The bits of x less those of sqrt(1/2); `exponent` and `fraction` are made from their exponent and mantissa."""
    integers, _, half_root = llvm.layout(x.type)
    return b.sub(b.bitcast(x, integers), llvm.filled(integers, half_root))


@operation(_same)
def exponent(b, x):
    """n for a positive normal x = f * 2**n with sqrt(1/2) <= f < sqrt(2)."""
    integers, mantissa, _ = llvm.layout(x.type)
    return b.sitofp(b.ashr(_bits_above_half_root(b, x), llvm.filled(integers, mantissa)), x.type)


@operation(_same)
def fraction(b, x):
    """f for a positive normal x = f * 2**n with sqrt(1/2) <= f < sqrt(2)."""
    integers, mantissa, half_root = llvm.layout(x.type)
    bits = b.and_(_bits_above_half_root(b, x), llvm.filled(integers, (1 << mantissa) - 1))
    return b.bitcast(b.add(bits, llvm.filled(integers, half_root)), x.type)


# Constants. Each is added to the value of `like`, which is 0, but the compiler does not know that. A constant that it
# knew it would read from memory again in every round of a loop, rather than keep it in a register: then log_softmax
# (`python -m benchmarks.softmax`) and an evaluation of images (`--case '4 x 19 x 512 x 512'`) take 4 % longer.


def _kept(b, like, single, double):
    value = double if isinstance(like.type, ir.DoubleType) else single
    return llvm.broadcast(b, b.fadd(ir.Constant(like.type, value), like), VECTOR_BYTES // llvm.size(like.type))


def constant(single, double):
    """A function of `like`: a vector with the number for its type in every lane."""

    @operation(vector)
    def in_every_lane(b, like: computed):
        return _kept(b, like, single, double)

    return in_every_lane


def polynomial(single, double):
    """A function of `like` and a vector: Horner's scheme with the coefficients for its type, highest power first."""

    @operation(vector)
    def horner(b, like: computed, x):
        result, *rest = (
            _kept(b, like, number, number) for number in (double if isinstance(like.type, ir.DoubleType) else single)
        )
        for coefficient in rest:
            result = llvm.fma(b, result, x, coefficient)
        return result

    return horner


# Memory.


def in_memory(like):
    """LLVM's type of a vector as it is stored."""
    return ir.VectorType(llvm.stored(like), vector(like).lanes)


@operation(types.intp)
def at(b, like: type, address: int, index: int):
    """The address of element number `index`."""
    return b.add(address, b.mul(index, llvm.number(llvm.size(llvm.stored(like)))))


@operation(one_number)
def load_scalar(b, like: type, address: int, index: int):
    """One number from address[index]."""
    return llvm.load(b, like, address, index, llvm.stored(like))


@operation()
def store_scalar(b, like: type, address: int, index: int, value: one_number):
    """One number, rounded to the stored type, to address[index]."""
    llvm.store(b, like, address, index, llvm.stored(like), value)


@operation(vector)
def load(b, like: type, address: int, index: int):
    """A vector from address[index : index + lanes]."""
    return llvm.load(b, like, address, index, in_memory(like))


@operation(vector)
def load_masked(b, like: type, address: int, index: int, mask, fill):
    """A vector from address[index : index + lanes]; lanes outside the mask are not read and hold `fill`."""
    kind = in_memory(like)
    found = llvm.masked_load(b, llvm.pointer(b, address, index, kind), kind, mask)
    return b.select(mask, llvm.widen(b, like, found), fill)


@operation()
def store(b, like: type, address: int, index: int, value):
    llvm.store(b, like, address, index, in_memory(like), value)


@operation()
def store_masked(b, like: type, address: int, index: int, mask, value):
    """Write the lanes in the mask and leave the others alone."""
    kind = in_memory(like)
    llvm.masked_store(b, llvm.pointer(b, address, index, kind), kind, mask, llvm.narrow(b, like, value))


@operation()
def stream(b, like: type, address: int, index: int, value):
    """As `store`, but past the caches; the address is a multiple of the vector's size."""
    stored = llvm.store(b, like, address, index, in_memory(like), value, align=vector(like).lanes)
    stored.set_metadata("nontemporal", b.module.add_metadata([ir.Constant(I32, 1)]))


def _prefetch(b, like, address, index, beyond):
    where = b.bitcast(llvm.pointer(b, address, index, llvm.stored(like)), llvm.I8.as_pointer())
    where = b.gep(where, [llvm.number(beyond)])
    read, keep, data = (ir.Constant(I32, n) for n in (0, 3, 1))
    llvm.call(b, "llvm.prefetch.p0", ir.VoidType(), [where, read, keep, data])


@operation()
def prefetch(b, like: type, address: int, index: int):
    """In a loop over memory: fetch what the loop will read soon. The address may lie outside the array."""
    _prefetch(b, like, address, index, _LOAD_AHEAD)


@operation()
def prefetch_here(b, like: type, address: int, index: int):
    _prefetch(b, like, address, index, 0)


@operation()
def transpose(b, source, target, rows: int, columns: int):
    """Write the first rows and columns of one `Matrix` transposed to another: at most as many as a vector has lanes."""

    def row(matrix, i):
        return llvm.pointer(b, matrix.address, b.mul(matrix.stride, llvm.number(i)), in_memory(matrix.like))

    def within(i, outer, inner):
        """The lanes below `inner`, or none if i is not below `outer`."""
        below = b.icmp_signed("<", llvm.number(i), outer)
        return _compared_lanes(b, "<", source.like, b.select(below, inner, llvm.number(0)))

    read, written = in_memory(source.like), in_memory(target.like)
    vectors = [
        llvm.widen(b, source.like, llvm.masked_load(b, row(source, i), read, within(i, rows, columns)))
        for i in range(vector(source.like).lanes)
    ]
    for i, value in enumerate(llvm.transposed(b, vectors)):
        number = llvm.narrow(b, target.like, value)
        llvm.masked_store(b, row(target, i), written, within(i, columns, rows), number)


# Labels.


def _integers(kind):
    return ir.VectorType(ir.IntType(kind.dtype.bitwidth), kind.lanes)


@operation(_labels)
def load_labels(b, like: type, address: int, index: int, mask):
    """Labels in the lanes of the mask, 0 in the others."""
    kind = _integers(_labels(like))
    return llvm.masked_load(b, llvm.pointer(b, address, index, kind), kind, mask)


@operation(_mask)
def labels_below(b, x, classes: int):
    """Lanes with 0 <= label < classes."""
    return b.icmp_unsigned("<", x, llvm.broadcast(b, classes, x.type.count))


@operation(_mask)
def labels_eq(b, x, label: int):
    wanted = label if x.type.element == I64 else b.trunc(label, I32)
    return b.icmp_signed("==", x, llvm.broadcast(b, wanted, x.type.count))


@operation(_narrow_labels)
def narrow_labels(b, like: type, labels, mask):
    """The labels in the mask, as narrow as they are compared; -1 in the other lanes."""
    kind = _integers(_narrow_labels(like))
    return b.select(mask, labels if labels.type == kind else b.trunc(labels, kind), llvm.filled(kind, -1))


@operation(_narrow_labels)
def no_labels(b, like: type):
    return llvm.filled(_integers(_narrow_labels(like)), -1)


@operation()
def store_narrow_labels(b, like: type, address: int, index: int, labels):
    where = llvm.pointer(b, address, index, labels.type)
    b.store(labels, where, align=llvm.size(labels.type.element))


@operation(_narrow_labels)
def load_narrow_labels(b, like: type, address: int, index: int):
    kind = _integers(_narrow_labels(like))
    return b.load(llvm.pointer(b, address, index, kind), align=llvm.size(kind.element))


# Pairs of bfloat16: one instruction multiplies two pairs and adds both products to a sum. In memory a pair takes the
# place of a float32.


@operation(types.intp)
def numbers_per_element(b, like: type):
    """2 for pairs, else 1, as a constant."""
    return llvm.number(2 if like == PAIRS else 1)


@operation(lambda like, yes, no: yes if like == PAIRS else no)
def if_pairs(b, like: type, yes, no):
    """`yes` if `like` stands for pairs, else `no`."""
    return yes if like == PAIRS else no


@operation(_same)
def pack_pairs(b, x, y):
    """Pairs of the numbers of x and y, all of which bfloat16 can hold."""
    integers, _, _ = llvm.layout(x.type)
    low, high = (b.bitcast(value, integers) for value in (x, y))
    return b.bitcast(b.or_(b.lshr(low, llvm.filled(integers, 16)), high), x.type)


# What threads share.


@operation(types.intp)
def fetch_add(b, address: int, index: int):
    """Add 1 to an int64 that threads share; its value before that."""
    return b.atomic_rmw("add", llvm.pointer(b, address, index, I64), llvm.number(1), "seq_cst")


@operation()
def invoke(b, function: int, call: int, scratch: int, lo: int, hi: int, sums: int):
    """Call the C function at an address."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * 5)
    b.call(b.inttoptr(function, kind.as_pointer()), [call, scratch, lo, hi, sums])
