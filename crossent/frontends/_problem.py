"""A checked call on its way to the kernels, the same for every array library.

`lib` is the library's side: a namespace with `storages` (dtype -> storage name, int64 -> "labels"), `storage(array)`
(a storage name or None), `strides(array)` in elements, `is_integer(array)`, `is_mask(array)`, `address(array)`,
`contiguous(array)`, `new(shape, storage)`, `empty(layout, like)` and `copied(layout, array)` in the layout's order,
`labels(array)` as int64 with the row of one that does not fit or None, `cast(array, storage)`, `total(array)`,
`broadcast(array, shape)`, `item(array, row)` and `threads()`.
"""

from functools import lru_cache

from crossent import _rows
from crossent._options import integer
from crossent.kernels import BadLabel
from crossent.kernels.cpu import kernels


def compute_storage(storage):
    """How the results of the arithmetic on what is stored so are stored."""
    return "float64" if storage == "float64" else "float32"


@lru_cache(maxsize=4096)
def ready_plan(lib, shape, strides, dtype, target_shape, target_strides, target_dtype, dim, options, picks):
    """The plan for arrays that need no copy, or None."""
    storage, target_storage = lib.storages.get(dtype), lib.storages.get(target_dtype)
    axis, soft = _rows.target_kind(shape, target_shape, dim, not picks)
    layout = _rows.layout_of(shape, strides, axis)
    if layout is None or storage in (None, "labels") or target_storage != (storage if soft else "labels"):
        return None
    if soft:
        _rows.check_soft_options(options)
        target_strides = layout.strides_of(target_shape, target_strides)
    else:
        target_strides = layout.label_strides_of(target_strides)
    if target_strides is None:
        return None
    return kernels.loss_plan(layout, storage, soft, target_strides, options, picks)


def problem_of(lib, input, target, weight, sample_weight, dim, options, picks=False):
    """The problem that a call of a loss poses, its arrays copied where the kernels cannot take them as they are."""
    strides = lib.strides
    if dim is not None:
        dim = integer("dim", dim)  # before it is looked up: True equals 1, but is no axis
    plan = ready_plan(
        lib, input.shape, strides(input), input.dtype, target.shape, strides(target), target.dtype, dim, options, picks
    )
    if plan is None:
        copies = _copied(lib, input, target, dim, options, picks)
        return problem_of(lib, *copies, weight, sample_weight, dim, options, picks)
    problem = Problem(lib, plan, options, input, target)
    if weight is not None or sample_weight is not None:
        problem.weigh(weight, sample_weight)
    return problem


class Problem:
    """Rows, targets and weights as the kernels want them, and the calls of the kernels."""

    __slots__ = ("arrays", "lib", "options", "owners", "plan", "target", "weights", "x")

    def __init__(self, lib, plan, options, input, target):
        self.lib, self.plan, self.options, self.x, self.target = lib, plan, options, input, target
        self.arrays, self.weights = (lib.address(input), lib.address(target)), (plan.layout.classes, 0, 0)
        self.owners = input, target

    @property
    def layout(self):
        return self.plan.layout

    @property
    def compute(self):
        """How the results of the arithmetic are stored."""
        return "float64" if self.lib.storage(self.x) == "float64" else "float32"

    def weigh(self, weight, sample_weight):
        """Have classes and rows count as the caller says."""
        lib, layout, (total, *_) = self.lib, self.plan.layout, self.weights
        if weight is not None:
            _rows.check_weight(weight.shape, layout.classes)
            if lib.storage(weight) is None:
                raise _rows.dtype_error("weight", weight.dtype)
            weight = lib.contiguous(lib.cast(weight, self.compute))
            total = lib.total(weight) if self.options.label_smoothing else 0.0
        if sample_weight is not None:
            sample_weight = broadcast_samples(lib, sample_weight, layout.row_shape)
            sample_weight = lib.contiguous(lib.cast(sample_weight, self.compute))
        self.weights = total, *_addresses(lib, weight, sample_weight)
        self.owners = *self.owners, weight, sample_weight

    def new_stats(self):
        """Room for what backward needs of forward, or None."""
        return self.lib.new((self.plan.stats, self.layout.rows), self.compute) if self.plan.stats else None

    def forward(self, divisor, stats=None):
        """The loss (rows, or a number), and what dloss is multiplied by; `stats` are written where there are any."""
        lib, reduction, loss = self.lib, self.options.reduction, None
        if reduction == "none":
            loss = lib.new(self.plan.layout.row_shape, self.compute)
        changing = *self.arrays, 0, *self.weights, *_addresses(lib, loss, stats)
        try:
            losses, weights = self.plan.forward(changing, lib.threads, self.owners)
        except BadLabel as bad:
            raise label_error(lib, self.target, bad.row, self.layout, self.options) from None
        return (loss, 1.0) if loss is not None else _rows.reduced(reduction, losses, weights, divisor)

    def unit(self, divisor):
        """What a gradient made at once is made in, where the plan has such."""
        scale = self.plan.unit if divisor is None else _rows.reduced("mean", 1.0, 1.0, divisor)[1]
        return scale if _rows.workable(scale) else self.plan.unit

    def forward_and_backward(self, divisor, unit, dx):
        """As forward, with the gradient in this unit written to dx."""
        losses, weights = self._differentiate(self.plan.at_once, None, None, unit, dx, None, True)
        return _rows.reduced(self.options.reduction, losses, weights, divisor)

    def backward(self, stats, dloss, scale, dx, want_target, with_loss=False):
        """Write the gradient for the logits to dx; return the one for soft targets, if wanted. dloss None is 1.

        dx is new, or the logits. Of log-probabilities only the labels' entries are written: dx holds zeros. Beside it
        the sums of the losses and their weights, if they are asked for: then it is forward and backward in one pass.
        """
        dtarget = self.lib.empty(self.plan.layout, self.target) if want_target else None
        return dtarget, *self._differentiate(self.plan.backward, stats, dloss, scale, dx, dtarget, with_loss)

    def _differentiate(self, call, stats, dloss, scale, dx, dtarget, with_loss):
        of_dx, of_stats, of_dloss, of_dtarget = _addresses(self.lib, dx, stats, dloss, dtarget)
        changing = *self.arrays, of_dx, *self.weights, 0, of_stats, of_dloss, scale, with_loss, of_dtarget
        try:
            return call(changing, self.lib.threads, (self.owners, stats, dloss, dx, dtarget))
        except BadLabel as bad:
            raise label_error(self.lib, self.target, bad.row, self.plan.layout, self.options) from None


def _addresses(lib, *arrays):
    """Of arrays, 0 for None."""
    address = lib.address
    return [0 if array is None else address(array) for array in arrays]


def _laid_out(lib, array, axis):
    """The array, or a copy that a kernel can walk, and its layout."""
    layout = _rows.layout_of(array.shape, lib.strides(array), axis)
    if layout is not None:
        return array, layout
    array = lib.contiguous(array)
    return array, _rows.layout_of(array.shape, lib.strides(array), axis)


def _copied(lib, input, target, dim, options, picks):
    """Logits and targets in a form for which there is a plan; everything about their types is checked here."""
    axis, soft = _rows.target_kind(input.shape, target.shape, dim, not picks)
    if lib.storage(input) is None:
        raise _rows.dtype_error("input", input.dtype)
    input, layout = _laid_out(lib, input, axis)
    _rows.check_target_dtype(soft, lib.storage(target) is not None, lib.is_integer(target), target.dtype)
    if soft:
        _rows.check_soft_options(options)
        target = lib.cast(target, lib.storage(input))
        if layout.strides_of(target.shape, lib.strides(target)) is None:
            target = lib.copied(layout, target)
        return input, target
    return input, _labels(lib, target, layout, options)


def _labels(lib, target, layout, options):
    """As int64, with strides that the layout has."""
    labels, bad_row = lib.labels(target)
    if bad_row is not None:
        raise label_error(lib, target, bad_row, layout, options)
    return labels if layout.label_strides_of(lib.strides(labels)) else lib.contiguous(labels)


def label_error(lib, target, row, layout, options):
    return _rows.label_error(lib.item(target, row), row, layout.row_shape, layout.classes, options.ignore_index)


def broadcast_samples(lib, sample_weight, row_shape):
    _rows.check_sample_weight(sample_weight.shape, row_shape)
    if lib.storage(sample_weight) is None and not lib.is_integer(sample_weight) and not lib.is_mask(sample_weight):
        raise TypeError(f"sample_weight must hold floats, integers or booleans, got {sample_weight.dtype}")
    return lib.broadcast(sample_weight, row_shape)


def token_forward(lib, logits, target, options, results):
    """Write what rows say of their labels to `results`: logprob, lse, entropy, rank."""
    plan, changing = _token_call(lib, logits, target, options, results)
    plan.forward(changing, lib.threads, (logits, target, results))


def token_backward(lib, logits, target, options, results, upstream):
    """Write the gradient over the logits; `upstream` are those of logprob, lse and entropy, or None."""
    plan, changing = _token_call(lib, logits, target, options, results)
    addresses = (0 if array is None else lib.address(array) for array in upstream)
    plan.backward((*changing, *addresses, lib.address(logits)), lib.threads, (logits, target, results, upstream))


def _token_call(lib, logits, target, options, results):
    layout = _rows.layout_of(tuple(logits.shape), tuple(lib.strides(logits)), 1)
    strides = layout.label_strides_of(lib.strides(target))
    plan = kernels.token_plan(layout, lib.storage(logits), strides, options)
    return plan, tuple(lib.address(array) for array in (logits, target, *results))


def sums(lib, matrix, parts):
    """The sums of squares in each column; and for parts of the columns, these and what each row holds in them."""
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

    With the numbers of some rows of b or c these stand for it. Where the processor multiplies pairs, a and b may both
    be stored as bfloat16, and c too if nothing is added to it; `padded` then says that behind rows of a that are no
    whole pairs stands a 0.
    """
    pairs, rounded = (lib.storage(m) == "bfloat16" for m in (a, c))
    if b_rows is not None and (pairs or not _along(lib, b)):
        b, b_rows = b[b_rows], None
    rows, columns, depth = a.shape[0], b.shape[1], a.shape[1]
    if not (rows and columns and depth):
        if not adds:
            c[...] = 0
        return
    a_along, b_along = _along(lib, a, pairs, padded), not _along(lib, b) and _along(lib, b.T, pairs)
    a, b = _rows_along(lib, a if a_along else a.T), _rows_along(lib, b.T if b_along else b)
    strides, threads = tuple(lib.strides(m)[0] for m in (a, b, c)), lib.threads()
    storage = "bfloat16 pairs" if pairs else lib.storage(b)
    run = kernels.product(storage, rounded, (a_along, b_along), strides, rows, columns, depth, threads)
    numbers = (0 if some is None else lib.address(some) for some in (b_rows, c_rows))
    run((*map(lib.address, (a, b, c)), adds, *numbers), lib.threads, (a, b, c, b_rows, c_rows))


def _along(lib, matrix, pairs=False, padded=False):
    """Whether its rows lie along memory, as whole pairs."""
    (row, number), columns = lib.strides(matrix), matrix.shape[1]
    return (number == 1 or columns == 1) and not (pairs and (row % 2 or (columns % 2 and not padded)))


def round_in_place(lib, matrix):
    """Have float32 numbers become bfloat16, in rows as long as before; behind each stands a 0."""
    rows, columns = matrix.shape
    if rows and columns:
        run = kernels.rounding(rows, columns, lib.strides(matrix)[0])
        run((lib.address(matrix),), lib.threads, (matrix,))


def _rows_along(lib, matrix):
    return matrix if _along(lib, matrix) else lib.contiguous(matrix)


def prediction_stats(lib, input, target, dim, options):
    """What metrics need of every row: logprob, rank, prediction, confidence, brier."""
    axis, _ = _rows.target_kind(tuple(input.shape), tuple(target.shape), dim, False)
    storage, last = lib.storage(input), input.ndim - 1
    if storage is None:
        raise _rows.dtype_error("input", input.dtype)
    _rows.check_target_dtype(False, False, lib.is_integer(target), target.dtype)
    for a in range(axis, last):
        input = input.swapaxes(a, a + 1)
    input, layout = _laid_out(lib, input, last)
    if not layout.last:
        input, layout = _laid_out(lib, lib.contiguous(input), last)
    labels = _labels(lib, target, layout, options)
    plan = kernels.score_plan(layout, storage, layout.label_strides_of(lib.strides(labels)), options.ignore_index)
    compute = compute_storage(storage)
    kinds = (compute, 0.0), ("int64", -1), ("int64", -1), (compute, 0.0), (compute, 0.0)
    results = tuple(lib.new(layout.row_shape, kind) for kind, _ in kinds)
    for result, (_, ignored) in zip(results, kinds):
        result[...] = ignored
    changing = tuple(lib.address(array) for array in (input, labels, *results))
    try:
        plan.forward(changing, lib.threads, (input, labels, results))
    except BadLabel as bad:
        raise label_error(lib, labels, bad.row, layout, options) from None
    return results


@lru_cache(maxsize=4096)
def ready_softmax(lib, shape, strides, dtype, dim, log):
    """The plan for an array that needs no copy, or None."""
    storage = lib.storages.get(dtype)
    if storage in (None, "labels"):
        raise _rows.dtype_error("input", dtype)
    layout = _rows.layout_of(shape, strides, _rows.class_axis(len(shape), dim))
    return None if layout is None else kernels.softmax_plan(layout, storage, log)


def softmax_forward(lib, x, dim, log):
    plan = ready_softmax(lib, x.shape, lib.strides(x), x.dtype, dim, log)
    if plan is None:
        return softmax_forward(lib, lib.contiguous(x), dim, log)
    out = lib.empty(plan.layout, x)
    plan.forward((lib.address(x), lib.address(out)), lib.threads, (x, out))
    return out


@lru_cache(maxsize=4096)
def _ready_softmax_backward(lib, shape, strides, dout_strides, dtype, dim, log):
    """The plan, and the strides of dout in its layout, or None."""
    plan = ready_softmax(lib, shape, strides, dtype, dim, log)
    return plan, plan.layout.strides_of(shape, dout_strides)


def softmax_backward(lib, out, dout, dim, log):
    """`out` is what `softmax_forward` returned."""
    plan, strides = _ready_softmax_backward(lib, out.shape, lib.strides(out), lib.strides(dout), out.dtype, dim, log)
    if strides is None:
        dout, strides = lib.copied(plan.layout, dout), plan.layout.new_strides
    dx = lib.empty(plan.layout, out)
    plan.backward((lib.address(out), lib.address(dx), lib.address(dout), *strides), lib.threads, (out, dout, dx))
    return dx


class HeadKernels:
    """What the fused head asks of every array library that has kernels."""

    precision = "logits and their gradient are float32"  # of 16 bits, for `plan`
    copied_weight = 0  # bytes of the weight, of which a copy suits the products better
    sums = classmethod(sums)
    combinations = classmethod(combinations)
    tokens = classmethod(token_forward)
    token_gradient = classmethod(token_backward)

    @classmethod
    def problem(cls, logits, target, weight, sample_weight, options):
        return problem_of(cls, logits, target, weight, sample_weight, 1, options)
