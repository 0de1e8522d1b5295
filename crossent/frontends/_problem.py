"""A checked call on its way to the kernels, the same for every array library.

`lib` is the library's side: a namespace with `storage(array)` (a storage name or None), `is_integer(array)`,
`holds_labels(array)` (int64), `strides(array)` in elements, `address(array)`, `contiguous(array)`, `new(shape,
storage)`, `empty(layout, like)` and `copied(layout, array)` in the layout's order, `labels(array)` as int64 with the
row of one that does not fit or None, `cast(array, storage)`, `total(array)`, `broadcast(array, shape)`, `item(array,
row)` and `threads()`.
"""

from functools import lru_cache
from typing import Any

from crossent import _rows
from crossent.kernels import BadLabel, numba as kernels


def compute_storage(storage):
    """How the results of the arithmetic on what is stored so are stored."""
    return "float64" if storage == "float64" else "float32"


@lru_cache(maxsize=4096)
def _ready_plan(shape, strides, storage, target_shape, target_strides, dim, options, picks, unchecked_labels):
    """The plan for arrays that need no copy, or None."""
    axis, soft = _rows.target_kind(shape, target_shape, dim, not picks)
    layout = _rows.layout_of(shape, strides, axis)
    if layout is None or storage is None or (soft and unchecked_labels):
        return None
    if soft:
        target_strides = layout.strides_of(target_shape, target_strides)
    else:
        target_strides = layout.label_strides_of(target_strides)
    if target_strides is None:
        return None
    return (kernels.pick_plan if picks else kernels.loss_plan)(layout, storage, soft, target_strides, options)


class Problem:
    """Rows, targets and weights as the kernels want them, and the calls of the kernels."""

    __slots__ = ("compute", "inputs", "layout", "lib", "options", "owners", "plan", "row_shape", "target", "x")

    plan: Any  # a LossPlan or a PickPlan, as the caller asked

    def __init__(self, lib, input, target, weight, sample_weight, dim, options, picks=False):
        storage, plan = lib.storage(input), None
        if lib.holds_labels(target):
            plan = _ready_plan(
                input.shape, lib.strides(input), storage, target.shape, lib.strides(target), dim, options, picks, True
            )
        if plan is None:
            input, target = _copied(lib, input, target, dim, options, picks)
            plan = _ready_plan(
                input.shape, lib.strides(input), storage, target.shape, lib.strides(target), dim, options, picks, False
            )
        layout = plan.layout
        self.lib, self.options, self.plan, self.layout = lib, options, plan, layout
        self.x, self.target, self.compute = input, target, compute_storage(storage)
        total, weight_address, samples_address = float(layout.classes), 0, 0
        if weight is not None:
            _rows.check_weight(weight.shape, layout.classes)
            if lib.storage(weight) is None:
                raise _rows.dtype_error("weight", weight.dtype)
            weight = lib.contiguous(lib.cast(weight, self.compute))
            total = lib.total(weight) if options.label_smoothing else 0.0
            weight_address = lib.address(weight)
        if sample_weight is not None:
            sample_weight = broadcast_samples(lib, sample_weight, layout.row_shape)
            sample_weight = lib.contiguous(lib.cast(sample_weight, self.compute))
            samples_address = lib.address(sample_weight)
        self.inputs = total, lib.address(input), lib.address(target), weight_address, samples_address
        self.owners = input, target, weight, sample_weight

    def _address(self, array):
        return 0 if array is None else self.lib.address(array)

    def _label_error(self, bad):
        layout = self.layout
        label = self.lib.item(self.target, bad.row)
        return _rows.label_error(label, bad.row, layout.row_shape, layout.classes, self.options.ignore_index)

    def _row_losses(self):
        return self.lib.new(self.layout.row_shape, self.compute) if self.options.reduction == "none" else None

    def _reduced(self, sums, loss, divisor):
        """The loss (rows, or a number), and what an upstream gradient is multiplied by."""
        if loss is not None:
            return loss, 1.0
        by = _rows.divisor(self.options, sums[1], divisor)
        return _rows.divide(sums[0], by), _rows.divide(1.0, by)

    def new_stats(self):
        """Room for what backward needs of forward, or None."""
        return self.lib.new((self.plan.stats, self.layout.rows), self.compute) if self.plan.stats else None

    def forward(self, divisor, stats):
        """The loss (rows, or a number), and what dloss is multiplied by; `stats` are written where there are any."""
        loss, plan = self._row_losses(), self.plan
        addresses = self._address(loss), self._address(stats)
        try:
            sums = plan.forward(self.inputs, *addresses, self.lib.threads(), self.owners)
        except BadLabel as bad:
            raise self._label_error(bad) from None
        return self._reduced(sums, loss, divisor)

    def backward(self, stats, dloss, scale, dx, want_target):
        """Write the gradient for the logits to dx; return the one for soft targets, if wanted. dloss None is 1."""
        lib, layout = self.lib, self.layout
        dtarget = lib.empty(layout, self.target) if want_target else None
        strides = layout.strides_of(dx.shape, lib.strides(dx))
        target_strides = strides if dtarget is None else layout.strides_of(dtarget.shape, lib.strides(dtarget))
        try:
            self.plan.backward(
                self.inputs, self._address(stats), self._address(dloss), scale, lib.address(dx), strides,
                self._address(dtarget), target_strides, lib.threads(), (*self.owners, stats, dloss, dx, dtarget),
            )  # fmt: skip
        except BadLabel as bad:
            raise self._label_error(bad) from None
        return dtarget

    def pick_forward(self, divisor):
        loss = self._row_losses()
        try:
            sums = self.plan.forward(self.inputs, self._address(loss), self.lib.threads(), self.owners)
        except BadLabel as bad:
            raise self._label_error(bad) from None
        return self._reduced(sums, loss, divisor)

    def pick_backward(self, dloss, scale, dx):
        """Write the gradient into a dx of zeros."""
        lib = self.lib
        strides = self.layout.strides_of(dx.shape, lib.strides(dx))
        owners = *self.owners, dloss, dx
        try:
            self.plan.backward(
                self.inputs, self._address(dloss), scale, lib.address(dx), strides, lib.threads(), owners
            )
        except BadLabel as bad:
            raise self._label_error(bad) from None


def _copied(lib, input, target, dim, options, picks):
    """Logits and targets in a form for which there is a plan; everything about their types is checked here."""
    axis, soft = _rows.target_kind(input.shape, target.shape, dim, not picks)
    if lib.storage(input) is None:
        raise _rows.dtype_error("input", input.dtype)
    layout = _rows.layout_of(input.shape, lib.strides(input), axis)
    if layout is None:
        input = lib.contiguous(input)
        layout = _rows.layout_of(input.shape, lib.strides(input), axis)
    _rows.check_target_dtype(soft, lib.storage(target) is not None, lib.is_integer(target), target.dtype)
    if soft:
        _rows.check_soft_options(options)
        target = lib.cast(target, lib.storage(input))
        if layout.strides_of(target.shape, lib.strides(target)) is None:
            target = lib.copied(layout, target)
        return input, target
    labels, bad_row = lib.labels(target)
    if bad_row is not None:
        label = lib.item(target, bad_row)
        raise _rows.label_error(label, bad_row, layout.row_shape, layout.classes, options.ignore_index)
    return input, labels if layout.label_strides_of(lib.strides(labels)) else lib.contiguous(labels)


def broadcast_samples(lib, sample_weight, row_shape):
    _rows.check_sample_weight(sample_weight.shape, row_shape)
    if lib.storage(sample_weight) is None and not lib.is_integer(sample_weight):
        raise _rows.dtype_error("sample_weight", sample_weight.dtype)
    return lib.broadcast(sample_weight, row_shape)


def softmax_forward(lib, x, axis, log):
    layout = _rows.layout_of(x.shape, lib.strides(x), axis)
    if layout is None:
        x = lib.contiguous(x)
        layout = _rows.layout_of(x.shape, lib.strides(x), axis)
    out = lib.empty(layout, x)
    strides = layout.strides_of(out.shape, lib.strides(out))
    plan = kernels.softmax_plan(layout, lib.storage(x), log)
    plan.forward(lib.address(x), lib.address(out), strides, lib.threads(), (x, out))
    return out


def softmax_backward(lib, out, dout, axis, log):
    layout = _rows.layout_of(out.shape, lib.strides(out), axis)
    strides = layout.strides_of(dout.shape, lib.strides(dout))
    if strides is None:
        dout = lib.copied(layout, dout)
        strides = layout.strides_of(dout.shape, lib.strides(dout))
    dx = lib.empty(layout, out)
    dx_strides = layout.strides_of(dx.shape, lib.strides(dx))
    plan = kernels.softmax_plan(layout, lib.storage(out), log)
    plan.backward(
        lib.address(out), lib.address(dout), strides, lib.address(dx), dx_strides, lib.threads(), (out, dout, dx)
    )
    return dx
