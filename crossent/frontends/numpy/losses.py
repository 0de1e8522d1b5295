"""The kernels on NumPy's arrays of any strides and byte order, and gradients by `value_and_grad`."""

import math
from contextvars import ContextVar
from functools import partial
from itertools import repeat
from operator import attrgetter, mod

import numpy as np

from crossent import _rows
from crossent._options import number
from crossent.frontends import _problem
from crossent.frontends._memory import block, is_small
from crossent.frontends._problem import Arrays, numpy_address, problem_of, softmax_forward
from crossent.kernels.cpu import kernels


class _Storages(dict):
    """dtype -> storage type, or None. bfloat16 is the dtype of ml_dtypes, which need not be installed."""

    def get(self, dtype):  # pyright: ignore[reportIncompatibleMethodOverride]
        found = super().get(dtype)
        return "bfloat16" if found is None and dtype.name == "bfloat16" else found


_FLOATS = _Storages((np.dtype(name), name) for name in ("float16", "float32", "float64"))


def new_array(shape, dtype):
    """An uninitialised array; a large one lies in memory that is used again."""
    buffer = block(math.prod(shape) * dtype.itemsize)
    return np.empty(shape, dtype) if buffer is None else buffer.view(dtype).reshape(shape)


class NUMPY(Arrays):
    """What `_problem` and `_stages` need of an array library."""

    xp = np
    storages = _Storages({**_FLOATS, np.dtype(np.int64): "labels"})
    dtypes = {name: np.dtype(name) for name in ("float32", "float64")}
    threads = staticmethod(kernels.available_threads)
    converted = staticmethod(partial(np.ndarray.astype, copy=False))
    address = staticmethod(numpy_address)
    raw_strides = attrgetter("strides")
    pooled = staticmethod(new_array)
    columns = staticmethod(lambda matrix, numbers: matrix[:, numbers])  # in half the time of `np.take`

    @staticmethod
    def storage(array):
        return _FLOATS.get(array.dtype)

    @staticmethod
    def is_integer(array):
        return array.dtype.kind in "iu"

    @staticmethod
    def is_mask(array):
        return array.dtype.kind == "b"

    @staticmethod
    def in_elements(raw_strides, dtype):
        return tuple(stride // dtype.itemsize for stride in raw_strides)

    @classmethod
    def strides(cls, array):
        return cls.in_elements(array.strides, array.dtype)

    @staticmethod
    def contiguous(array):
        return np.ascontiguousarray(array).reshape(array.shape)

    @staticmethod
    def new(shape, storage):
        return np.empty(shape, storage)

    @staticmethod
    def empty(layout, like):
        if layout.inverse is None:
            return new_array(like.shape, like.dtype)
        return new_array([like.shape[axis] for axis in layout.order], like.dtype).transpose(layout.inverse)

    @classmethod
    def maker(cls, layout, dtype):
        """What makes arrays like the logits, in one call of NumPy where they are small."""
        return np.empty_like if is_small(layout, dtype.itemsize) else partial(cls.empty, layout)

    @staticmethod
    def refuse_to_keep():
        """Nothing is in the way."""

    @classmethod
    def copied(cls, layout, array):
        new = cls.empty(layout, array)
        new[...] = array
        return new

    @staticmethod
    def cast(array, storage):
        return array.astype(storage, copy=False)

    @staticmethod
    def broadcast(array, shape):
        return np.broadcast_to(array, shape)

    @staticmethod
    def add_at(out, classes, probs):
        np.add.at(out, (np.arange(len(classes))[:, None], classes), probs)


def readable(name, array):
    """The array in native byte order and aligned, with strides that are whole numbers of elements."""
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError(f"{name} must be a NumPy array like input, got {type(array).__name__}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: give what is masked a sample_weight of 0")
    array = np.asarray(array)
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    if not array.flags.aligned or any(map(mod, array.strides, repeat(array.itemsize))):
        return array.copy()
    return array


def divisor_of(options, denominator):
    if denominator is None:
        return None
    dtype = getattr(denominator, "dtype", None)
    narrow = dtype if dtype is not None and dtype.itemsize == 2 and dtype.kind not in "iu" else None
    _rows.check_denominator(options, np.ndim(denominator), narrow)
    return number("denominator", denominator)


def result(value, dtype, options):
    if options.loss_dtype is not None:
        dtype = np.dtype(options.loss_dtype)
    return value.astype(dtype, copy=False) if isinstance(value, np.ndarray) else dtype.type(value)


class Tape:
    """The loss that was computed from one input, and a function that returns its gradient."""

    def __init__(self, input):
        self.input, self.loss, self.gradient = input, None, None

    def record(self, loss, gradient):
        self.loss, self.gradient = loss, gradient


tape_of_call: ContextVar[Tape | None] = ContextVar("tape", default=None)


def _inputs(input, target, weight, sample_weight):
    return (
        readable("input", input),
        readable("target", target),
        None if weight is None else readable("weight", weight),
        None if sample_weight is None else readable("sample_weight", sample_weight),
    )


def _promoted(input, target):
    """Logits and probabilities of different float types become the wider of the two."""
    if not (target.shape == input.shape and NUMPY.storage(target) and NUMPY.storage(input)):
        return input, target
    try:
        common = np.promote_types(input.dtype, target.dtype)
    except TypeError:  # float16 and bfloat16: neither has all the other's numbers
        common = np.dtype(np.float32)
    return input.astype(common, copy=False), target.astype(common, copy=False)


def cross_entropy(input, target, weight, sample_weight, denominator, dim, options, inplace_backward):
    if inplace_backward:
        raise ValueError("inplace_backward needs PyTorch's autograd; NumPy has value_and_grad")
    logits, target, weight, sample_weight = _inputs(input, target, weight, sample_weight)
    logits, target = _promoted(logits, target)
    divisor, tape = None if denominator is None else divisor_of(options, denominator), tape_of_call.get()
    problem = problem_of(NUMPY, logits, target, weight, sample_weight, dim, options)
    wanted = tape is not None and tape.input is input
    if wanted and problem.plan.unit is not None:
        loss, gradient = _made_at_once(problem, divisor)
    else:
        stats = problem.new_stats() if wanted else None
        loss, scale = problem.forward(divisor, stats)

        def gradient():
            return _new_gradient(problem, stats, scale)

    loss = result(loss, logits.dtype, options)
    if wanted:
        tape.record(loss, gradient)
    return loss


def _new_gradient(problem, stats, scale):
    dx = problem.ready.new(problem.x)
    problem.backward(stats, None, scale, dx, False)
    return dx


def _made_at_once(problem, divisor):
    """The loss, and a function that returns the gradient, which is made together with it."""
    ready = problem.ready
    dx, unit = ready.new(problem.x), ready.plan.unit if divisor is None else problem.unit(divisor)
    loss, scale = problem.forward_and_backward(divisor, unit, dx)
    factor = scale / unit
    workable = _rows.workable(factor)

    def gradient():
        if not workable:
            return _new_gradient(problem, None, scale)
        return dx if factor == 1.0 else np.multiply(dx, factor, out=dx)

    return loss, gradient


def nll_loss(input, target, weight, sample_weight, denominator, dim, options):
    logits, target, weight, sample_weight = _inputs(input, target, weight, sample_weight)
    divisor, tape = None if denominator is None else divisor_of(options, denominator), tape_of_call.get()
    problem = problem_of(NUMPY, logits, target, weight, sample_weight, dim, options, picks=True)
    loss, scale = problem.forward(divisor)
    loss = result(loss, logits.dtype, options)
    if tape is not None and tape.input is input:

        def gradient():
            dx = problem.ready.new(problem.x)
            dx[...] = 0
            problem.backward(None, None, scale, dx, False)
            return dx

        tape.record(loss, gradient)
    return loss


def softmax(input, dim, dtype, log, stacklevel):
    x = readable("input", input)
    if dtype is not None:
        if x.dtype.kind not in "fiub" and NUMPY.storage(x) is None:
            raise _rows.dtype_error("input", x.dtype)
        x = x.astype(np.dtype(dtype), copy=False)
    if NUMPY.storage(x) is None:
        raise _rows.dtype_error("input", x.dtype)
    axis = _rows.softmax_axis(x.ndim, dim, "log_softmax" if log else "softmax", stacklevel)
    if not x.ndim:
        return softmax(x[None], 0, None, log, stacklevel)[0]
    return softmax_forward(NUMPY, x, axis, log)


def prediction_stats(input, target, dim, options):
    return _problem.prediction_stats(NUMPY, readable("input", input), readable("target", target), dim, options)


def value_and_grad(function, input, args, kwargs):
    tape = Tape(input)
    token = tape_of_call.set(tape)
    try:
        loss = function(input, *args, **kwargs)
    finally:
        tape_of_call.reset(token)
    if tape.gradient is None or loss is not tape.loss:
        raise TypeError(
            "value_and_grad of NumPy arrays takes cross_entropy, nll_loss or linear_cross_entropy, or a call that "
            "returns its loss"
        )
    if np.ndim(loss):
        raise ValueError(f"value_and_grad needs a loss that is one number, got shape {np.shape(loss)}")
    return loss, tape.gradient()
