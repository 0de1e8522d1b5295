"""The two stages of `crossent.kernels` on a CPU, for arrays of any library that knows their addresses."""

from crossent import _rows
from crossent.frontends._problem import compute_storage
from crossent.kernels import LossKernels, Outcome, Sums, has_mass, has_own_weight
from crossent.kernels.cpu import kernels
from crossent.kernels.cpu.call import BadLabel

_NAMES = kernels.StagedPlan.SUMS


class CpuKernels(LossKernels):
    """`lib` is as in `_problem`."""

    def __init__(self, lib):
        self.lib = lib

    def sums(self, rows):
        lib, staged = self.lib, _Staged(self.lib, rows)
        stats = lib.new((len(_NAMES), staged.layout.rows), staged.compute)
        stats[...] = 0
        stats[_NAMES.index("own")] = -float("inf")
        if staged.layout.classes:
            try:
                staged.run(staged.plan.sums, 0, (0, lib.address(stats)), stats)
            except BadLabel:  # `losses` tells of it
                pass
        wanted = dict.fromkeys(_NAMES, True) | {"own_weight": has_own_weight(rows)}
        wanted |= dict.fromkeys(("mass", "dot"), has_mass(rows))
        return Sums(*(one.reshape(staged.row_shape) if wanted[name] else None for name, one in zip(_NAMES, stats)))

    def losses(self, rows, sums, dtype=None):
        lib, staged = self.lib, _Staged(self.lib, rows, of_sums_alone=True)
        stats, losses = staged.stats(sums), lib.new(staged.row_shape, staged.compute)
        bad, totals = -1, (0.0, 0.0)
        try:
            totals = staged.run(staged.plan.losses, 0, (lib.address(losses), lib.address(stats)), (stats, losses))
        except BadLabel as found:
            bad = found.row
        return Outcome(losses, lib.xp.asarray(totals, dtype=lib.dtypes["float64"]), bad)

    def gradients(self, rows, sums, upstream, scale, want_target, over_logits):
        lib, staged = self.lib, _Staged(self.lib, rows)
        stats = staged.stats(sums)
        dtype = lib.dtypes[staged.compute]
        upstream = lib.contiguous(lib.converted(lib.converted(upstream, dtype) * scale, dtype))
        over_logits = over_logits or lib.address(staged.logits) != lib.address(rows.logits)  # a copy
        dx = staged.logits if over_logits else lib.empty(staged.layout, staged.logits)
        dtarget = lib.empty(staged.layout, staged.target) if want_target else None
        of_dtarget = 0 if dtarget is None else lib.address(dtarget)
        addresses = 0, lib.address(stats), lib.address(upstream), 1.0, False, of_dtarget
        staged.run(staged.plan.gradients, lib.address(dx), addresses, (stats, upstream, dx, dtarget))
        return dx, dtarget


class _Staged:
    """Rows as the kernels read them, and the plan of their calls. `of_sums_alone` says that neither the logits nor the
    probabilities of a target are read, so that none are copied.
    """

    def __init__(self, lib, rows, of_sums_alone=False):
        self.lib, self.rows, storage = lib, rows, lib.storage(rows.logits)
        self.compute = compute_storage(storage)
        self.logits, self.layout = _side_by_side(lib, rows.logits, of_sums_alone)
        self.row_shape, self.weight = self.layout.row_shape, rows.weight
        if rows.weight is not None and not self.layout.classes:
            self.weight = lib.new((1,), self.compute)  # none has no address, as if there were no class weights
        if rows.soft:
            self.target, strides = rows.target, self.layout.strides_of(rows.target.shape, lib.strides(rows.target))
            if strides is None:
                strides = self.layout.new_strides
                self.target = rows.target if of_sums_alone else lib.copied(self.layout, rows.target)
        else:
            self.target = lib.contiguous(rows.target)
            strides = self.layout.label_strides_of(lib.strides(self.target))
        shard = rows.first_class, rows.all_classes
        self.plan = kernels.staged_plan(self.layout, storage, rows.soft, strides, rows.options, *shard)

    def stats(self, sums):
        stats = self.lib.new((len(_NAMES), self.layout.rows), self.compute)
        for row, one in zip(stats, sums):
            row[...] = 0 if one is None else one.reshape(-1)
        return stats

    def run(self, call, dx, then, owners):
        """Run a kernel; `dx` and `then` are addresses."""
        lib, rows, address = self.lib, self.rows, self.lib.address
        weights = 0.0, *(0 if one is None else address(one) for one in (self.weight, rows.sample_weight))
        changing = address(self.logits), address(self.target), dx, *weights, *then
        return call(changing, lib.threads, (self.logits, self.target, self.weight, rows, owners))


def _side_by_side(lib, logits, unread=False):
    """The logits, or a copy, with the classes of a row side by side, and their layout. Logits that are not read are
    taken to lie like the copy.
    """
    shape = tuple(logits.shape)
    layout = _rows.layout_of(shape, tuple(lib.strides(logits)), 1)
    if layout is not None and layout.last:
        return logits, layout
    if not unread:
        logits = lib.contiguous(logits.swapaxes(1, 2)).swapaxes(1, 2)
    outer_stride, inner_stride = max(1, shape[1]) * shape[2], max(1, shape[1])
    return logits, _rows.layout_of(shape, (outer_stride, 1, inner_stride), 1)
