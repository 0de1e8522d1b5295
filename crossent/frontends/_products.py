"""The fused head's matrix products and the memory for them, in the same way for every array library.

Beside what `_problem` needs of an array library, `lib` has

    pooled(shape, dtype)                an uninitialised array; a large one lies in memory that is used again
    columns(matrix, numbers)            a copy of these columns
    add_at(out, classes, probs)         add the probabilities of each row at their classes
    xp                                  the library under NumPy's names: argwhere, empty, full, take_along_axis, where
"""

import numpy as np

from crossent import _rows
from crossent._head_filter import FilteredProducts
from crossent._options import CHUNK_BYTES
from crossent.frontends import _tokens
from crossent.frontends._chunks import StagedChunk
from crossent.frontends._cpu import CpuKernels
from crossent.frontends._problem import compute_storage, problem_of
from crossent.kernels.cpu import kernels


class Products:
    """The products of a head in float32 or float64; weights of 16 bits are read as they are.

    A product of the gradient of the logits that is told `numbers` takes those rows of the weight alone.
    """

    precision = "logits and their gradient are float32"  # for arrays of 16 bits, as told by `plan`
    copied_weight = 0  # bytes of a copy of the weight, made if it suits the products better
    one_chunk_up_to = chunk_bytes = CHUNK_BYTES  # where the caller says nothing
    rows_at_once = 1  # chunks of a multiple of so many rows take less time for each row
    evenly = False  # whether the rows are cut into chunks of nearly the same size
    filters = True  # whether classes may be left out of products, by `filtered`
    filtered = FilteredProducts
    beside_filter = 0  # bytes a logit beside the chunk, while they are
    line = 64  # bytes, with which rows of logits begin
    # Whether the number of lines between rows is odd: rows that are a multiple of a page apart would share few places
    # in the cache. With an even number, logits of 8,192 classes take a third longer (`crossent bench --head
    # 96x256x8192`).
    odd = True
    beside_tokens = 0  # bytes a logit beside the chunk, while statistics of tokens are made

    def __init__(self, lib, x):
        self.lib, self.storage = lib, compute_storage(lib.storages.get(x.dtype))
        self.dtype = self.logits_dtype = self.input_dtype = lib.dtypes[self.storage]

    def zeros(self, shape, chunks=None):
        """For sums, and for results of which some rows are not written."""
        new = self.lib.pooled(shape, self.dtype)
        new[...] = 0
        return new

    new_sum = zeros  # for the gradient of the weight, to which so many chunks add

    def workable(self, scale):
        """A scale with which gradients can be made and squared, and what they are to be multiplied by later."""
        unit = scale if _rows.workable(scale) else 1.0
        return unit, scale / unit

    def logits(self, x, weight, bias, out):
        """Write x @ weight.T + bias."""
        if bias is not None:
            out[...] = bias
        multiply(self.lib, self._factor(x), weight.T, out, adds=bias is not None)

    def _factor(self, x):
        return self.lib.converted(x, self.dtype)

    def rounded(self, dlogits):
        """The gradient as its products take it, in the same memory."""
        return dlogits

    def to_input(self, dlogits, weight, numbers=None):
        """dlogits @ weight."""
        total = self.lib.xp.empty((len(dlogits), weight.shape[1]), dtype=self.dtype)
        multiply(self.lib, dlogits, weight, total, b_rows=numbers, padded=True)
        return total

    def to_weight(self, dweight, dlogits, x, numbers=None, begins=False):
        """Add dlogits.T @ x to dweight, of `new_sum`; `begins` says that nothing was added yet."""
        multiply(self.lib, dlogits.T, x, dweight, adds=True, c_rows=numbers)

    def to_bias(self, dbias, dlogits):
        """Add the sum of dlogits over rows."""
        dbias += dlogits.sum(0, dtype=dbias.dtype)

    def sums(self, dlogits, parts):
        return sums(self.lib, dlogits, parts)

    def combinations(self, factors, dlogits):
        """factors @ dlogits, for few rows of factors."""
        return combinations(self.lib, factors, dlogits)

    def wide(self, array):
        """A NumPy array of float64."""
        return np.asarray(array).astype(np.float64)

    def narrow(self, array):
        """The inverse: an array of the library."""
        new = self.lib.xp.empty(array.shape, dtype=self.dtype)
        np.asarray(new)[...] = array
        return new

    def dense(self, classes, probs, out):
        """Write the probabilities at their classes, and zeros elsewhere."""
        out[...] = 0
        self.lib.add_at(out, classes, probs)
        return out

    def problem(self, logits, target, weight, sample_weight, options, shard):
        """The kernels' problem, for classes along axis 1."""
        if shard is not None:
            tensors = logits, target, weight, sample_weight
            return StagedChunk(self.lib, CpuKernels(self.lib), tensors, options, shard)
        return problem_of(self.lib, logits, target, weight, sample_weight, 1, options)

    def token_results(self, rows):
        """Arrays for the logprob, lse, entropy and rank of each row."""
        return *self.zeros((3, rows)), self.lib.xp.full((rows,), -1)

    def tokens(self, logits, target, options, results, shard):
        _tokens.forward(self.lib, logits, target, options, results, shard)

    def token_gradient(self, logits, target, options, results, upstream, shard):
        _tokens.backward(self.lib, logits, target, options, results, upstream, shard)


def sums(lib, matrix, parts):
    """The sum of squares of each column; for each part of the columns, its slice and the sums of the rows over it."""
    rows, columns = matrix.shape
    storage, step = lib.storage(matrix), kernels.BLOCK_OF_SUMS
    blocks = -(-columns // step)
    squares, by_block = (lib.new(shape, compute_storage(storage)) for shape in (columns, (blocks, rows)))
    squares[...] = 0
    changing = lib.address(matrix), lib.strides(matrix)[0], rows, lib.address(squares), lib.address(by_block)
    kernels.sums(columns, storage, lib.threads())(changing, lib.threads, (matrix, squares, by_block))
    parts = max(1, min(parts, blocks))
    edges = [part * blocks // parts for part in range(parts + 1)]
    return squares, [(slice(lo * step, hi * step), by_block[lo:hi].sum(0)) for lo, hi in zip(edges, edges[1:])]


def combinations(lib, factors, matrix):
    """factors @ matrix, for few rows of factors."""
    (count, rows), columns = factors.shape, matrix.shape[1]
    storage = lib.storage(factors)
    room = kernels.ROOM_OF_COMBINATIONS
    padded, result = (lib.new((count, -(-size // room) * room), storage) for size in (rows, columns))
    padded[:, :rows], padded[:, rows:] = factors, 0
    changing = (
        lib.address(matrix), lib.strides(matrix)[0], rows, lib.address(padded), lib.strides(padded)[0], count,
        lib.address(result), lib.strides(result)[0],
    )  # fmt: skip
    kernels.combinations(columns, lib.storage(matrix), lib.threads())(changing, lib.threads, (matrix, padded, result))
    return result[:, :columns]


def multiply(lib, a, b, c, adds=False, b_rows=None, c_rows=None, padded=False):
    """Write a @ b to c, whose rows lie along memory, or add it. All are matrices; only b may be stored in 16 bits.

    `b_rows` or `c_rows` are the numbers of the rows that take part, if not all do. Where the processor multiplies
    pairs, a and b may both be stored as bfloat16, and c too if nothing is added to it. `padded` then says that a 0
    follows each row of a that does not consist of whole pairs.
    """
    storages = lib.storages
    pairs, rounded = storages.get(a.dtype) == "bfloat16", storages.get(c.dtype) == "bfloat16"
    if b_rows is not None and (pairs or not _along(lib, b)):
        b, b_rows = b[b_rows], None
    rows, columns, depth = a.shape[0], b.shape[1], a.shape[1]
    if not (rows and columns and depth):
        if not adds:
            c[...] = 0
        return
    a_along = _along(lib, a, pairs, padded)
    if not a_along:
        a = _rows_along(lib, a.T)
    b_along = not _along(lib, b)
    if b_along:
        b_along = _along(lib, b.T, pairs)
        b = b.T if b_along else lib.contiguous(b)
    strides = lib.strides(a)[0], lib.strides(b)[0], lib.strides(c)[0]
    storage = "bfloat16 pairs" if pairs else storages.get(b.dtype)
    run = kernels.product(storage, rounded, (a_along, b_along), strides, rows, columns, depth, lib.threads())
    of_b_rows, of_c_rows = 0 if b_rows is None else lib.address(b_rows), 0 if c_rows is None else lib.address(c_rows)
    changing = lib.address(a), lib.address(b), lib.address(c), adds, of_b_rows, of_c_rows
    run(changing, lib.threads, (a, b, c, b_rows, c_rows))


def _along(lib, matrix, pairs=False, padded=False):
    """Whether the rows of a matrix lie along memory and, with `pairs`, consist of whole pairs."""
    (row, number), columns = lib.strides(matrix), matrix.shape[1]
    return (number == 1 or columns == 1) and not (pairs and (row % 2 or (columns % 2 and not padded)))


def round_in_place(lib, matrix):
    """Round float32 numbers to bfloat16 in the same memory. Rows begin where they began, and a 0 follows each."""
    rows, columns = matrix.shape
    if rows and columns:
        run = kernels.rounding(rows, columns, lib.strides(matrix)[0])
        run((lib.address(matrix),), lib.threads, (matrix,))


def _rows_along(lib, matrix):
    return matrix if _along(lib, matrix) else lib.contiguous(matrix)
