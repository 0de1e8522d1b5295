"""An array library as CONTRIBUTING says that one is added: array-api-strict, which has the standard's names alone."""

import array_api_strict as xp

from crossent import _rows
from crossent._call import Call
from crossent.frontends import _stages
from crossent.kernels import plain
from crossent.kernels.stages import PlainKernels


class Strict:
    """What `_stages` needs of an array library."""

    xp = xp
    dtypes = {"float32": xp.float32, "float64": xp.float64}
    _storages = {dtype: name for name, dtype in dtypes.items()}
    storages = _storages | {xp.int64: "labels"}
    converted = staticmethod(xp.astype)
    broadcast = staticmethod(xp.broadcast_to)

    @classmethod
    def storage(cls, array):
        return cls._storages.get(array.dtype)

    @staticmethod
    def is_integer(array):
        return xp.isdtype(array.dtype, "integral")

    @staticmethod
    def is_mask(array):
        return array.dtype == xp.bool

    @staticmethod
    def contiguous(array):
        return array

    @classmethod
    def cast(cls, array, storage):
        return xp.astype(array, cls.dtypes[storage])

    @staticmethod
    def labels(array):
        return xp.astype(array, xp.int64), None

    @staticmethod
    def item(array, row):
        return int(xp.reshape(array, (-1,))[row])


KERNELS = PlainKernels(xp, {})
_tape = None


def _same(array):
    return array


def cross_entropy(input, target, weight, sample_weight, denominator, dim, options, inplace_backward):
    tensors = input, target, weight, sample_weight
    call = Call(options, dim, divisor=denominator, out_dtype=input.dtype)
    rows = _stages.rows_of(Strict, tensors, call)
    finished = _stages.loss(Strict, KERNELS, rows, call, target)
    loss = xp.astype(finished.loss, call.out_dtype)
    if _tape is not None:
        dloss = xp.asarray(1.0, dtype=xp.float64)
        _tape.append(_stages.gradients(Strict, KERNELS, rows, finished, dloss, tensors)[0])
    return loss


def softmax(input, dim, dtype, log, stacklevel):
    found = plain.log_softmax(xp, input, _rows.class_axis(input.ndim, dim), _same)
    return found if log else xp.exp(found)


def value_and_grad(function, input, args, kwargs):
    global _tape
    _tape = []
    try:
        return function(input, *args, **kwargs), _tape[0]
    finally:
        _tape = None
