"""A checked call on its way to the kernels, the same for every array library.

`lib` is the library's side: a namespace with `storage(array)` (a storage name or None), `is_integer(array)`,
`strides(array)` in elements, `address(array)`, `contiguous(array)`, `new(shape, storage)`, `empty(layout, like)` and
`copied(layout, array)` in the layout's order, `labels(array)` as int64 with the row of one that does not fit or None,
`cast(array, storage)`, `total(array)`, `broadcast(array, shape)`, `item(array, row)` and `threads()`.
"""

from crossent import _rows
from crossent.kernels import Arrays, BadLabel
from crossent.kernels import numba as kernels


def compute_storage(storage):
    """How the results of the arithmetic on what is stored so are stored."""
    return "float64" if storage == "float64" else "float32"


class Problem:
    """Rows, targets and weights as the kernels want them, and the calls of the kernels."""

    __slots__ = ("arrays", "compute", "layout", "lib", "soft", "target", "x")

    def __init__(self, lib, input, target, weight, sample_weight, dim, options, soft_allowed):
        axis, soft = _rows.target_kind(input.shape, target.shape, dim, soft_allowed)
        storage = lib.storage(input)
        if storage is None:
            raise _rows.dtype_error("input", input.dtype)
        layout = _rows.layout_of(input.shape, lib.strides(input), axis)
        if layout is None:
            input = lib.contiguous(input)
            layout = _rows.layout_of(input.shape, lib.strides(input), axis)
        self.lib, self.x, self.layout, self.soft, self.compute = lib, input, layout, soft, compute_storage(storage)
        target, target_strides = self._soft(target, options) if soft else self._labels(target, options)
        weight_total, samples = float(layout.classes), None
        if weight is not None:
            _rows.check_weight(weight.shape, layout.classes)
            if lib.storage(weight) is None:
                raise _rows.dtype_error("weight", weight.dtype)
            weight = lib.contiguous(lib.cast(weight, self.compute))
            weight_total = lib.total(weight) if options.label_smoothing else 0.0
        if sample_weight is not None:
            samples = lib.contiguous(lib.cast(broadcast_samples(lib, sample_weight, layout.row_shape), self.compute))
        self.target = target
        self.arrays = Arrays(
            storage,
            lib.address(input),
            lib.address(target),
            target_strides,
            soft,
            0 if weight is None else lib.address(weight),
            weight_total,
            0 if samples is None else lib.address(samples),
            (input, target, weight, samples),
        )

    def _soft(self, target, options):
        lib, layout = self.lib, self.layout
        _rows.check_target_dtype(True, lib.storage(target) is not None, False, target.dtype)
        _rows.check_soft_options(options)
        target = lib.cast(target, lib.storage(self.x))
        strides = layout.strides_of(target.shape, lib.strides(target))
        if strides is None:
            target = lib.copied(layout, target)
            strides = layout.strides_of(target.shape, lib.strides(target))
        return target, strides

    def _labels(self, target, options):
        lib, layout = self.lib, self.layout
        _rows.check_target_dtype(False, False, lib.is_integer(target), target.dtype)
        wide, bad_row = lib.labels(target)
        if bad_row is not None:
            raise self._label_error(target, bad_row, options)
        strides = layout.row_strides_of(lib.strides(wide))
        if strides is None or not (layout.last or strides[1] == 1):
            wide = lib.contiguous(wide)
            strides = layout.row_strides_of(lib.strides(wide))
        return wide, (strides[0], 0, strides[1])

    def _label_error(self, target, row, options):
        layout = self.layout
        label = self.lib.item(target, row)
        return _rows.label_error(label, row, layout.row_shape, layout.classes, options.ignore_index)

    def _address(self, array):
        return 0 if array is None else self.lib.address(array)

    def _row_losses(self, options):
        return self.lib.new(self.layout.row_shape, self.compute) if options.reduction == "none" else None

    def _reduced(self, sums, loss, options, divisor):
        """The loss, and what an upstream gradient is multiplied by."""
        if loss is not None:
            return loss, 1.0
        by = _rows.divisor(options, sums[1], divisor)
        return _rows.divide(sums[0], by), _rows.divide(1.0, by)

    def forward(self, options, divisor, keep_stats):
        """The loss (rows, or a number), what backward needs of it, and what dloss is multiplied by."""
        layout = self.layout
        loss, stats = self._row_losses(options), None
        count = kernels.stats_per_row(layout, self.soft) if keep_stats else 0
        if count:
            stats = self.lib.new((count, layout.rows), self.compute)
        addresses = self._address(loss), self._address(stats)
        try:
            sums = kernels.forward(layout, self.arrays, options, *addresses, self.lib.threads())
        except BadLabel as bad:
            raise self._label_error(self.target, bad.row, options) from None
        return (stats, *self._reduced(sums, loss, options, divisor))

    def backward(self, options, stats, dloss, scale, dx, want_target):
        """Write the gradient for the logits to dx; return the one for soft targets, if wanted. dloss None is 1."""
        lib, layout = self.lib, self.layout
        dtarget = lib.empty(layout, self.target) if want_target else None
        strides = layout.strides_of(dx.shape, lib.strides(dx))
        target_strides = strides if dtarget is None else layout.strides_of(dtarget.shape, lib.strides(dtarget))
        try:
            kernels.backward(
                layout, self.arrays, options, self._address(stats), self._address(dloss), scale, lib.address(dx), strides,
                self._address(dtarget), target_strides, lib.threads(),
            )  # fmt: skip
        except BadLabel as bad:
            raise self._label_error(self.target, bad.row, options) from None
        return dtarget

    def pick_forward(self, options, divisor):
        loss = self._row_losses(options)
        try:
            sums = kernels.pick_forward(self.layout, self.arrays, options, self._address(loss), self.lib.threads())
        except BadLabel as bad:
            raise self._label_error(self.target, bad.row, options) from None
        return self._reduced(sums, loss, options, divisor)

    def pick_backward(self, options, dloss, scale, dx):
        """Write the gradient into a dx of zeros."""
        lib, layout = self.lib, self.layout
        strides = layout.strides_of(dx.shape, lib.strides(dx))
        try:
            kernels.pick_backward(
                layout, self.arrays, options, self._address(dloss), scale, lib.address(dx), strides, lib.threads()
            )
        except BadLabel as bad:
            raise self._label_error(self.target, bad.row, options) from None


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
    kernels.softmax_forward(
        layout, lib.storage(x), lib.address(x), lib.address(out), strides, log, lib.threads(), (x, out)
    )
    return out


def softmax_backward(lib, out, dout, axis, log):
    layout = _rows.layout_of(out.shape, lib.strides(out), axis)
    strides = layout.strides_of(dout.shape, lib.strides(dout))
    if strides is None:
        dout = lib.copied(layout, dout)
        strides = layout.strides_of(dout.shape, lib.strides(dout))
    dx = lib.empty(layout, out)
    kernels.softmax_backward(
        layout, lib.storage(out), lib.address(out), lib.address(dout), strides, lib.address(dx),
        layout.strides_of(dx.shape, lib.strides(dx)), log, lib.threads(), (out, dout, dx),
    )  # fmt: skip
    return dx
