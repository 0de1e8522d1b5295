"""The fused head's matrix products of bfloat16, which of the array libraries only PyTorch has."""

import torch

from crossent.frontends._products import Products, round_in_place
from crossent.frontends.torch.arrays import TORCH
from crossent.kernels.cpu.processor import LIBRARY, PAIRS, PRODUCTS_OF_BFLOAT16, WIDENED

_BLOCK = 2**21  # bytes of a part of a product, made before it is added to 32 bits: PyTorch cannot do both at once
_LINE = 64  # bytes that a matrix unit reads at once


class PairsProducts(Products):
    """For bfloat16 that the processor multiplies in pairs. Logits have 32 bits. Their gradient is rounded once, and
    both of its products use that.
    """

    precision = "logits are float32; their gradient is rounded to bfloat16 for its products"

    def _factor(self, x):
        return x

    def rounded(self, dlogits):
        round_in_place(TORCH, dlogits)
        return dlogits.view(torch.bfloat16)[:, : dlogits.shape[1]]


class CopiedPairsProducts(PairsProducts):
    """For a weight that cannot be read in pairs along its features: a copy has an even number of them."""

    def __init__(self, lib, x, weight):
        super().__init__(lib, x)
        rows, columns = weight.shape
        self.copied_weight = weight.itemsize * rows * (columns + columns % 2)
        self._even = None

    def logits(self, x, weight, bias, out):
        if self._even is None:
            self._even = _with_zeros(weight, 2)
        super().logits(_with_zeros(x, 2), self._even, bias, out)


class LibraryProducts(Products):
    """For bfloat16 that PyTorch itself multiplies best: logits have 16 bits."""

    precision = "logits and their gradient are rounded to bfloat16, which PyTorch multiplies"
    rows_at_once = 256

    def __init__(self, lib, x):
        super().__init__(lib, x)
        self.logits_dtype = x.dtype

    def logits(self, x, weight, bias, out):
        torch.mm(_whole_lines(x), _dense(weight).t(), out=out)
        if bias is not None:
            out += bias

    def to_input(self, dlogits, weight, numbers=None):
        if dlogits.dtype is not torch.bfloat16:
            return super().to_input(dlogits, weight, numbers)
        if numbers is None:
            return torch.mm(dlogits, _dense(weight)).float()
        return torch.mm(_whole_lines(dlogits), weight[numbers]).float()

    def to_weight(self, dweight, dlogits, x, numbers=None, begins=False):
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


_WAYS = {PAIRS: PairsProducts, LIBRARY: LibraryProducts, WIDENED: Products}


def products_for(x, weight, exact):
    """How the products of a head are made; `exact` says that the logits have to keep 32 bits."""
    if x.dtype is not torch.bfloat16:
        return Products(TORCH, x)
    usual, if_exact = PRODUCTS_OF_BFLOAT16
    way = if_exact if exact else usual
    return CopiedPairsProducts(TORCH, x, weight) if way == PAIRS and not _of_pairs(weight) else _WAYS[way](TORCH, x)


def _of_pairs(weight):
    """Whether a weight can be read in pairs along its features."""
    row, number = weight.stride()
    return weight.shape[1] % 2 == 0 and ((number == 1 and row % 2 == 0) or row == 1)
