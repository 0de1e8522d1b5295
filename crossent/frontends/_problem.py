"""From a call to the kernels, in the same way for every array library.

`lib` is what an array library provides:

    storages, dtypes                            dtype -> storage type, int64 -> "labels"; and back, for the arithmetic's
    storage(array)                              its storage type or None
    is_integer(array), is_mask(array)
    address(array), strides(array)              the strides in elements
    raw_strides(array)                          the strides as the library has them, by which calls are kept
    in_elements(raw_strides, dtype)             these in elements
    contiguous(array), converted(array, dtype), cast(array, storage), broadcast(array, shape)
    new(shape, storage)
    empty(layout, like), copied(layout, array)  new arrays in the layout's order
    maker(layout, dtype)                        `empty` for arrays of this layout and dtype, in as few calls as can be
    labels(array)                               int64 labels, and the row of one that does not fit or None
    total(array), item(array, row), threads()
    refuse_to_keep()                            raises if nothing may be kept of this call
"""

from typing import Any

from crossent import _rows
from crossent._kept import kept
from crossent._options import integer
from crossent.kernels.cpu import kernels
from crossent.kernels.cpu.call import BadLabel


def compute_storage(storage):
    """The storage type of results of the arithmetic on numbers of this storage type."""
    return "float64" if storage == "float64" else "float32"


UNASKED_AT_MOST = 8  # gradients made in a row but not used; several losses may wait for one backward pass


class Arrays:
    """What is the same for every array library."""

    xp: Any
    converted: Any
    address: Any
    reads = True  # whether it reads what arrays hold: no device has to be waited for

    @classmethod
    def labels(cls, array):
        wide = cls.converted(array, cls.xp.int64)
        if array.dtype == cls.xp.uint64 and (wide < 0).any():
            return wide, int(cls.xp.argwhere(wide.reshape(-1) < 0)[0, 0])
        return wide, None

    @classmethod
    def total(cls, array):
        return float(array.sum(dtype=cls.xp.float64))

    @staticmethod
    def item(array, row):
        return array.reshape(-1)[row].item()

    @classmethod
    def is_same_memory(cls, array, other):
        return cls.address(array) == cls.address(other)


def numpy_address(array):
    return array.__array_interface__["data"][0]


class ReadyCall:
    """A call of a loss with all that does not depend on what its arrays hold: its kernels, their layout, and how the
    arithmetic stores its results. Arrays of the same shapes, strides and dtypes share it.

    `new` makes an array like the logits. Only `unasked` changes: how many gradients were made in the forward pass since
    a backward pass asked for one.
    """

    __slots__ = ("compute", "dim", "is_quick", "layout", "new", "options", "plan", "unasked")

    def __init__(self, lib, layout, dtype, plan, dim, options):
        storage = lib.storages.get(dtype)
        self.layout, self.plan, self.dim, self.options = layout, plan, dim, options
        self.compute, self.new = compute_storage(storage), lib.maker(layout, dtype)
        self.is_quick = plan.quick_forward is not None and self.compute == storage
        self.is_quick = self.is_quick and options.loss_dtype in (None, storage)
        self.unasked = 0

    def expects_backward(self):
        """Whether the forward pass is to make the gradient; if so, it is counted.

        Not if the last gradients were not used, as in an evaluation with gradients on, until a backward pass comes.
        """
        if self.unasked >= UNASKED_AT_MOST:
            return False
        self.unasked += 1
        return True


@kept
def ready_call(lib, shape, strides, dtype, target_shape, target_strides, target_dtype, dim, options, picks):
    """The `ReadyCall` for these arrays, None if one of them needs a copy."""
    lib.refuse_to_keep()
    strides, target_strides = lib.in_elements(strides, dtype), lib.in_elements(target_strides, target_dtype)
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
    plan = kernels.LossPlan(layout, storage, soft, target_strides, options, picks)
    return ReadyCall(lib, layout, dtype, plan, dim, options)


def problem_of(lib, input, target, weight, sample_weight, dim, options, picks=False):
    """The `Problem` of a call of a loss; arrays that the kernels cannot take as they are get copied."""
    strides = lib.raw_strides
    if dim is not None and type(dim) is not int:
        dim = integer("dim", dim)  # before it is looked up: True equals 1, but is no axis
    ready = ready_call(
        lib, input.shape, strides(input), input.dtype, target.shape, strides(target), target.dtype, dim, options, picks
    )
    if ready is None:
        copies = _copied(lib, input, target, dim, options, picks)
        return problem_of(lib, *copies, weight, sample_weight, dim, options, picks)
    problem = Problem(lib, ready, input, target)
    if weight is sample_weight is None:
        return problem
    layout, dtype = ready.layout, lib.dtypes[ready.compute]
    total, of_weight, of_samples = problem.weights
    if weight is not None:
        weight = class_weights(lib, weight, layout.classes, dtype)
        total, of_weight = lib.total(weight) if options.label_smoothing else 0.0, lib.address(weight)
    if sample_weight is not None:
        sample_weight = sample_weights(lib, sample_weight, layout.row_shape, dtype)
        of_samples = lib.address(sample_weight)
    problem.weights, problem.owners = (total, of_weight, of_samples), (input, target, weight, sample_weight)
    return problem


class Problem:
    """Rows, targets and weights as the kernels want them, and the calls of the kernels."""

    __slots__ = ("arrays", "layout", "lib", "options", "owners", "plan", "ready", "target", "weights", "x")

    def __init__(self, lib, ready, input, target):
        self.lib, self.ready, self.x, self.target = lib, ready, input, target
        self.plan, self.layout, self.options = ready.plan, ready.layout, ready.options
        self.arrays, self.weights = (lib.address(input), lib.address(target)), (self.layout.classes, 0, 0)
        self.owners: tuple = input, target

    def new_stats(self):
        """Memory for what backward needs of forward, or None."""
        return self.lib.new((self.plan.stats, self.layout.rows), self.ready.compute) if self.plan.stats else None

    def forward(self, divisor, stats=None):
        """The loss (of each row, or a number), and what dloss is multiplied by; writes `stats` if there are any."""
        lib, reduction, loss = self.lib, self.options.reduction, None
        if reduction == "none":
            loss = lib.new(self.layout.row_shape, self.ready.compute)
        of_loss, of_stats = 0 if loss is None else lib.address(loss), 0 if stats is None else lib.address(stats)
        changing = *self.arrays, 0, *self.weights, of_loss, of_stats
        try:
            losses, weights = self.plan.forward(changing, lib.threads, self.owners)
        except BadLabel as bad:
            raise label_error(lib, self.target, bad.row, self.layout, self.options) from None
        return (loss, 1.0) if loss is not None else _rows.reduced(reduction, losses, weights, divisor)

    def unit(self, divisor):
        """What the gradient is multiplied by when it is made together with a loss of this divisor."""
        scale = _rows.reduced("mean", 1.0, 1.0, divisor)[1]
        return scale if _rows.workable(scale) else self.plan.unit

    def forward_and_backward(self, divisor, unit, dx):
        """As forward; the gradient, multiplied by `unit`, is written to dx."""
        losses, weights = self._differentiate(self.plan.at_once, None, None, unit, dx, None, True)
        return _rows.reduced(self.options.reduction, losses, weights, divisor)

    def backward(self, stats, dloss, scale, dx, want_target, with_loss=False):
        """Write the gradient of the logits to dx; return that of soft targets, if wanted. A dloss of None is 1.

        dx is a new array, or the logits. For log-probabilities only the labels' entries are written, so dx must hold
        zeros. `with_loss` makes it forward and backward in one pass: the sums of losses and weights are returned too.
        """
        dtarget = self.lib.empty(self.layout, self.target) if want_target else None
        return dtarget, *self._differentiate(self.plan.backward, stats, dloss, scale, dx, dtarget, with_loss)

    def _differentiate(self, call, stats, dloss, scale, dx, dtarget, with_loss):
        address = self.lib.address
        changing = (
            *self.arrays,
            0 if dx is None else address(dx),
            *self.weights,
            0,
            0 if stats is None else address(stats),
            0 if dloss is None else address(dloss),
            scale,
            with_loss,
            0 if dtarget is None else address(dtarget),
        )
        try:
            return call(changing, self.lib.threads, (self.owners, stats, dloss, dx, dtarget))
        except BadLabel as bad:
            raise label_error(self.lib, self.target, bad.row, self.layout, self.options) from None


def _laid_out(lib, array, axis):
    """The array, or a copy if a kernel cannot walk it, and its layout."""
    layout = _rows.layout_of(array.shape, lib.strides(array), axis)
    if layout is not None:
        return array, layout
    array = lib.contiguous(array)
    return array, _rows.layout_of(array.shape, lib.strides(array), axis)


def _copied(lib, input, target, dim, options, picks):
    """Logits and targets, copied to a form for which there is a plan. All checks of their types are made here."""
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
    """Labels as int64, with strides that the layout can walk."""
    labels, bad_row = lib.labels(target)
    if bad_row is not None:
        raise label_error(lib, target, bad_row, layout, options)
    return labels if layout.label_strides_of(lib.strides(labels)) else lib.contiguous(labels)


def label_error(lib, target, row, layout, options):
    return _rows.label_error(lib.item(target, row), row, layout.row_shape, layout.classes, options.ignore_index)


def class_weights(lib, weight, classes, dtype):
    """The class weights in the dtype of the arithmetic, side by side, after a check."""
    if weight.shape != (classes,):
        raise _rows.weight_error(weight.shape, classes)
    if lib.storages.get(weight.dtype) in (None, "labels"):
        raise _rows.dtype_error("weight", weight.dtype)
    return lib.contiguous(lib.converted(weight, dtype))


def sample_weights(lib, sample_weight, row_shape, dtype):
    return lib.contiguous(lib.converted(broadcast_samples(lib, sample_weight, row_shape), dtype))


def broadcast_samples(lib, sample_weight, row_shape):
    _rows.check_sample_weight(sample_weight.shape, row_shape)
    if lib.storage(sample_weight) is None and not lib.is_integer(sample_weight) and not lib.is_mask(sample_weight):
        raise TypeError(f"sample_weight must hold floats, integers or booleans, got {sample_weight.dtype}")
    return lib.broadcast(sample_weight, row_shape)


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


class ReadySoftmax:
    """As `ReadyCall`; `plan` is None where the array has to be copied first."""

    __slots__ = ("dim", "log", "new", "plan")

    def __init__(self, lib, layout, dtype, dim, log):
        self.dim, self.log, self.plan, self.new = dim, log, None, None
        if layout is not None:
            self.plan = kernels.SoftmaxPlan(layout, lib.storages.get(dtype), log)
            self.new = lib.maker(layout, dtype)


@kept
def ready_softmax(lib, shape, strides, dtype, dim, log):
    lib.refuse_to_keep()
    strides = lib.in_elements(strides, dtype)
    if lib.storages.get(dtype) in (None, "labels"):
        raise _rows.dtype_error("input", dtype)
    layout = _rows.layout_of(shape, strides, _rows.class_axis(len(shape), dim))
    return ReadySoftmax(lib, layout, dtype, dim, log)


def softmax_forward(lib, x, dim, log):
    ready = ready_softmax(lib, x.shape, lib.raw_strides(x), x.dtype, dim, log)
    if ready.plan is None:
        return softmax_forward(lib, lib.contiguous(x), dim, log)
    out = ready.new(x)
    ready.plan.forward((lib.address(x), lib.address(out)), lib.threads, (x, out))
    return out


@kept
def _ready_softmax_backward(lib, shape, strides, dout_strides, dtype, dim, log):
    """The `ReadySoftmax`, and the strides of dout in its layout, None if dout needs a copy."""
    ready = ready_softmax(lib, shape, strides, dtype, dim, log)
    return ready, ready.plan.layout.strides_of(shape, lib.in_elements(dout_strides, dtype))


def softmax_backward(lib, out, dout, dim, log):
    """`out` is what `softmax_forward` returned."""
    strides = lib.raw_strides(out), lib.raw_strides(dout)
    ready, strides = _ready_softmax_backward(lib, out.shape, *strides, out.dtype, dim, log)
    plan = ready.plan
    if strides is None:
        dout, strides = lib.copied(plan.layout, dout), plan.layout.new_strides
    dx = ready.new(out)
    plan.backward((lib.address(out), lib.address(dx), lib.address(dout), *strides), lib.threads, (out, dout, dx))
    return dx
