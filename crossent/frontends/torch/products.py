"""The fused head's matrix products for PyTorch: what `_head` needs of an array library, in three ways."""

import torch

from crossent.frontends._problem import HeadKernels, multiply, round_in_place
from crossent.frontends.torch import arrays
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.dtypes import COMPUTE
from crossent.kernels.cpu.processor import LIBRARY, PAIRS, PRODUCTS_OF_BFLOAT16, WIDENED

_BLOCK = 2**21  # bytes of a part of a product, made before it is added to 32 bits: PyTorch cannot do both at once
_LINE = 64  # bytes that a matrix unit reads at once


class TorchHead(HeadKernels, TORCH):
    """For kernels on the CPU, in float32 or float64; weights of 16 bits are read as they are."""

    @staticmethod
    def empty_like(array, unscaled):
        return arrays.new_tensor(array.shape, COMPUTE[array.dtype] if unscaled else array.dtype)

    @classmethod
    def zeros_like(cls, array, unscaled):
        return cls.empty_like(array, unscaled).zero_()

    @classmethod
    def logits_bytes(cls, x):
        return cls._logits_dtype(x).itemsize

    @staticmethod
    def rows_at_once(x):
        return 1

    @staticmethod
    def _logits_dtype(x):
        return COMPUTE[x.dtype]

    @classmethod
    def buffer(cls, shape, x):
        return arrays.new_tensor(shape, cls._logits_dtype(x))

    @staticmethod
    def zeros(shape, x):
        return torch.zeros(shape, dtype=COMPUTE[x.dtype])

    @staticmethod
    def accumulator(array):
        return arrays.new_tensor(array.shape, COMPUTE[array.dtype]).zero_()

    @staticmethod
    def _factor(x, out):
        return x.to(out.dtype)

    @classmethod
    def logits(cls, x, weight, bias, out):
        if bias is not None:
            out.copy_(bias)
        multiply(cls, cls._factor(x, out), weight.t(), out, adds=bias is not None)

    @staticmethod
    def rounded(dlogits):
        return dlogits

    @classmethod
    def to_input(cls, dlogits, weight, numbers=None):
        total = torch.empty(len(dlogits), weight.shape[1], dtype=COMPUTE[dlogits.dtype])
        multiply(cls, dlogits, weight, total, b_rows=numbers, padded=True)
        return total

    @classmethod
    def to_weight(cls, dweight, dlogits, x, numbers=None):
        multiply(cls, dlogits.t(), x, dweight, adds=True, c_rows=numbers)

    @staticmethod
    def to_bias(dbias, dlogits):
        dbias += dlogits.sum(0, dtype=dbias.dtype)

    @staticmethod
    def wide(vectors):
        return torch.stack(vectors).double().numpy()

    @classmethod
    def narrow(cls, array, storage):
        return cls.cast(torch.from_numpy(array), storage)

    @staticmethod
    def numbers(chosen):
        return chosen.nonzero()[:, 0]

    @staticmethod
    def columns(matrix, numbers):
        return matrix.gather(1, numbers.expand(len(matrix), -1))  # several times faster than an index

    @staticmethod
    def dense(classes, probs, out):
        return out.zero_().scatter_add_(1, classes, probs.to(out.dtype))

    @staticmethod
    def picked(dense, classes):
        return dense.gather(1, classes)

    @staticmethod
    def token_results(rows, x):
        numbers = torch.zeros(3, rows, dtype=COMPUTE[x.dtype])
        return *numbers, torch.full((rows,), -1, dtype=torch.int64)


class PairsHead(TorchHead):
    """For bfloat16 that the processor multiplies in pairs. Logits have 32 bits. Their gradient is rounded once, and
    both of its products use that.
    """

    precision = "logits are float32; their gradient is rounded to bfloat16 for its products"

    @staticmethod
    def _factor(x, out):
        return x

    @staticmethod
    def rounded(dlogits):
        round_in_place(TORCH, dlogits)
        return dlogits.view(torch.bfloat16)[:, : dlogits.shape[1]]


class CopiedPairsHead(PairsHead):
    """As PairsHead, for a weight that cannot be read in pairs along its features: a copy has an even number of them."""

    def __init__(self, weight):
        rows, columns = weight.shape
        self.copied_weight = weight.itemsize * rows * (columns + columns % 2)
        self._even = None

    def logits(self, x, weight, bias, out):
        if self._even is None:
            self._even = _with_zeros(weight, 2)
        super().logits(_with_zeros(x, 2), self._even, bias, out)


class LibraryHead(TorchHead):
    """For bfloat16 that PyTorch itself multiplies best: logits have 16 bits."""

    precision = "logits and their gradient are rounded to bfloat16, which PyTorch multiplies"

    @staticmethod
    def rows_at_once(x):
        return 256

    @staticmethod
    def _logits_dtype(x):
        return x.dtype

    @classmethod
    def logits(cls, x, weight, bias, out):
        torch.mm(_whole_lines(x), _dense(weight).t(), out=out)
        if bias is not None:
            out += bias

    @classmethod
    def to_input(cls, dlogits, weight, numbers=None):
        if dlogits.dtype is not torch.bfloat16:
            return super().to_input(dlogits, weight, numbers)
        if numbers is None:
            return torch.mm(dlogits, _dense(weight)).float()
        return torch.mm(_whole_lines(dlogits), weight[numbers]).float()

    @classmethod
    def to_weight(cls, dweight, dlogits, x, numbers=None):
        if dlogits.dtype is not torch.bfloat16:
            super().to_weight(dweight, dlogits, x, numbers)
        elif numbers is not None:
            dweight.index_add_(0, numbers, torch.mm(dlogits.t(), _dense(x)).to(dweight.dtype))
        else:
            x = _dense(x)
            for block in _blocks(dweight):
                dweight[block] += torch.mm(dlogits[:, block].t(), x).float()  # far quicker than adding another dtype


def _blocks(matrix):
    """Slices of the rows of a matrix."""
    step = max(1, _BLOCK // max(1, 4 * matrix.shape[1]))
    return [slice(lo, lo + step) for lo in range(0, len(matrix), step)]


def _dense(matrix):
    """The matrix without gaps between its rows or its columns: nobody knows what numbers are in a gap."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _whole_lines(matrix):
    """The matrix with zeros behind each row: a product that reads whole lines must not read a nan of the next row."""
    line = _LINE // matrix.itemsize
    if matrix.shape[1] % line == 0:
        return _dense(matrix)
    return _with_zeros(matrix, line)[:, : matrix.shape[1]]


def _with_zeros(matrix, multiple):
    """A copy whose rows are filled up with zeros to a multiple of so many numbers."""
    rows, columns = matrix.shape
    copy = matrix.new_zeros(rows, -(-columns // multiple) * multiple)
    copy[:, :columns] = matrix
    return copy


_WAYS = {PAIRS: PairsHead, LIBRARY: LibraryHead, WIDENED: TorchHead}


def products_for(x, weight, exact):
    """How the products of a head are made; `exact` says that the logits have to keep 32 bits."""
    if x.dtype is not torch.bfloat16:
        return TorchHead
    usual, if_exact = PRODUCTS_OF_BFLOAT16
    way = if_exact if exact else usual
    return CopiedPairsHead(weight) if way == PAIRS and not _of_pairs(weight) else _WAYS[way]


def _of_pairs(weight):
    """Whether a weight can be read in pairs along its features."""
    row, number = weight.stride()
    return weight.shape[1] % 2 == 0 and ((number == 1 and row % 2 == 0) or row == 1)
