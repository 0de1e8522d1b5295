"""NumPy's arrays: how their numbers are stored, new ones, and what `_problem` asks of an array library."""

import math
from contextvars import ContextVar

import numpy as np

from crossent import _rows
from crossent._options import number
from crossent.frontends._memory import block
from crossent.kernels.cpu import kernels


class _Storages(dict):
    """dtype -> how its numbers are stored, or None; bfloat16 is that of ml_dtypes, which need not be there."""

    def get(self, dtype):  # pyright: ignore[reportIncompatibleMethodOverride]
        found = super().get(dtype)
        return "bfloat16" if found is None and dtype.name == "bfloat16" else found


_FLOATS = _Storages((np.dtype(name), name) for name in ("float16", "float32", "float64"))


def new_array(shape, dtype):
    """An uninitialised array, a large one in memory that is used again."""
    buffer = block(math.prod(shape) * dtype.itemsize)
    return np.empty(shape, dtype) if buffer is None else buffer.view(dtype).reshape(shape)


class NUMPY:
    """What `_problem` asks of an array library."""

    storages = _Storages({**_FLOATS, np.dtype(np.int64): "labels"})
    threads = staticmethod(kernels.available_threads)

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
    def strides(array):
        size = array.itemsize
        return tuple(stride // size for stride in array.strides)

    @staticmethod
    def address(array):
        return array.__array_interface__["data"][0]

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
    def copied(cls, layout, array):
        new = cls.empty(layout, array)
        new[...] = array
        return new

    @staticmethod
    def labels(array):
        wide = array.astype(np.int64, copy=False)
        if array.dtype == np.uint64 and wide.size and wide.min() < 0:
            return wide, int(np.argmax(wide.reshape(-1) < 0))
        return wide, None

    @staticmethod
    def cast(array, storage):
        return array.astype(storage, copy=False)

    @staticmethod
    def total(array):
        return float(array.sum(dtype=np.float64))

    @staticmethod
    def broadcast(array, shape):
        return np.broadcast_to(array, shape)

    @staticmethod
    def item(array, row):
        return array.reshape(-1)[row].item()


def readable(name, array):
    """The array in native byte order, aligned, and a whole number of elements from one to the next."""
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError(f"{name} must be a NumPy array like input, got {type(array).__name__}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: give what is masked a sample_weight of 0")
    array = np.asarray(array)
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    if not array.flags.aligned or any(stride % array.itemsize for stride in array.strides):
        return array.copy()
    return array


def divisor_of(options, denominator):
    if denominator is None:
        return None
    _rows.check_denominator(options, np.ndim(denominator))
    return number("denominator", denominator)


def result(value, dtype, options):
    if options.loss_dtype is not None:
        dtype = np.dtype(options.loss_dtype)
    return value.astype(dtype, copy=False) if isinstance(value, np.ndarray) else dtype.type(value)


class Tape:
    """The loss computed of one input, and how to get its gradient."""

    def __init__(self, input):
        self.input, self.loss, self.gradient = input, None, None

    def record(self, loss, gradient):
        self.loss, self.gradient = loss, gradient


tape_of_call: ContextVar[Tape | None] = ContextVar("tape", default=None)
