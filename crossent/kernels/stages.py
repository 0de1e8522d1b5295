"""The two stages in plain array operations, for devices that have no kernels. Nothing is read from the arrays.

`crossent.kernels` describes what they take and return.
"""

from crossent import _rules
from crossent.kernels import LossKernels, Outcome, Sums, has_mass, has_own_weight, plain as formulas

_INFINITY = float("inf")


class PlainKernels(LossKernels):
    """`xp` is the namespace of an array library, `wide` the dtypes of its arithmetic by those of logits. A library that
    differentiates can differentiate the sums and the losses, given `freeze`.
    """

    def __init__(self, xp, wide, freeze=formulas.as_it_is):
        self.xp, self.wide, self.freeze = xp, wide, freeze

    def sums(self, rows):
        of_labels = has_own_weight(rows)
        if not rows.logits.shape[1]:
            rows = self._with_a_class(rows)
        xp, (z, at_label, keep) = self.xp, self._read(rows)
        peak = self.freeze(xp.max(z, axis=1))
        peak = xp.where(peak == -_INFINITY, 0.0, peak)
        relative = z - xp.expand_dims(peak, axis=1)
        others = xp.sum(xp.where(at_label, 0.0, xp.exp(relative)), axis=1)
        own = xp.max(xp.where(at_label, z, -_INFINITY), axis=1)
        own_weight = xp.sum(xp.where(at_label, self._weights(rows, z), 0.0), axis=1)
        q = self._targets(rows, z, xp.ones_like(keep))
        dot = xp.sum(q * xp.where((q == 0) & (relative == -_INFINITY), 0.0, relative), axis=1)
        sums = Sums(peak, others, own, own_weight, xp.sum(q, axis=1), dot)
        if not of_labels:
            sums = sums._replace(own_weight=None)
        return sums if has_mass(rows) else sums._replace(mass=None, dot=None)

    def losses(self, rows, sums, dtype=None):
        xp, keep = self.xp, self._read(rows)[2]
        label_mass, mass, own_weight = self._masses(rows, sums, keep)
        if rows.soft:
            nll, log_total = 0.0, xp.log(sums.others)
        else:
            nll, log_total = formulas.label_nll(xp, sums.own - sums.peak, sums.others)
            nll = formulas.without_weight(xp, label_mass, nll)
        dot = 0.0 if sums.dot is None else keep * sums.dot
        lse = sums.peak + log_total
        losses = _rules.row_loss(nll, label_mass, log_total, keep * mass, dot, lse, rows.options.z_loss)
        losses, weights = xp.where(keep != 0, losses, 0.0), xp.where(keep != 0, keep * own_weight, 0.0)
        return Outcome(losses, (xp.sum(losses), xp.sum(weights)), self._first_bad(rows, keep))

    def gradients(self, rows, sums, upstream, scale, want_target, over_logits):
        upstream = scale * self.xp.astype(upstream, self.wide.get(rows.logits.dtype, rows.logits.dtype))
        xp, (z, at_label, keep), own_exp = self.xp, self._read(rows), self._own_exp(rows, sums)
        label_mass, mass, own_weight = self._masses(rows, sums, keep)
        smoothing, classes, z_loss = rows.options.label_smoothing, _divisor(rows), rows.options.z_loss
        share, log_total = 1.0 / (sums.others + own_exp), xp.log(sums.others + own_exp)
        lse = sums.peak + log_total
        slope = _rules.lse_slope(label_mass + keep * mass, lse, z_loss)
        rest = 0.0 if rows.soft else _rules.target_weight(0.0, own_weight, keep, smoothing, classes)
        by_class = [xp.expand_dims(one, axis=1) for one in (share, slope, keep, upstream, sums.peak)]
        share_of_row, slope_of_row, keep_of_row, upstream_of_row, peak_of_row = by_class
        relative = z - peak_of_row
        q = self._targets(rows, z, keep)
        d = _rules.class_grad(xp.exp(relative) * share_of_row, q, slope_of_row)
        at = _rules.label_grad(own_exp * share, sums.others * share, label_mass, rest, slope)
        d = xp.where(at_label, xp.expand_dims(at, axis=1), d)
        if rows.options.softcap:
            d = d * _rules.softcap_slope(z, rows.options.softcap)
        ignored = keep_of_row == 0
        d, dtarget = xp.where(ignored, 0.0, upstream_of_row * d), None
        if want_target:
            cost = xp.expand_dims(log_total + z_loss * lse * lse, axis=1)
            dtarget = _rules.target_grad(cost, relative, self._weights(rows, z), keep_of_row, smoothing)
            dtarget = xp.astype(xp.where(ignored, 0.0, upstream_of_row * dtarget), rows.target.dtype)
        return xp.astype(d, rows.logits.dtype), dtarget

    def _with_a_class(self, rows):
        """A shard without classes, with one that counts for nothing.

        What it is made of is differentiated by the same steps as in other shards, which wait for what this one sends.
        """
        xp = self.xp
        none = xp.sum(self._widened(rows.logits), axis=1, keepdims=True)
        weight = xp.sum(none) if rows.weight is None else xp.sum(rows.weight)
        return rows._replace(
            logits=none - _INFINITY,
            target=xp.sum(rows.target, axis=1, keepdims=True) if rows.soft else rows.target,
            weight=xp.reshape(weight, (1,)),
            first_class=rows.all_classes,
            options=rows.options.changed(softcap=None),
        )

    # What all stages read.

    def _read(self, rows):
        """The capped logits, 0 in ignored rows; where a class is the row's label; how much each row counts."""
        xp, logits = self.xp, self._widened(rows.logits)
        keep = xp.ones_like(xp.sum(logits, axis=1))
        if rows.sample_weight is not None:
            keep = rows.sample_weight
        if not rows.soft:
            keep = xp.where(rows.target == rows.options.ignore_index, 0.0, keep)
        z = formulas.capped(xp, xp.where(xp.expand_dims(keep != 0, axis=1), logits, 0.0), rows.options)
        if rows.soft:
            return z, xp.zeros_like(z) != 0, keep
        numbers = xp.reshape(rows.first_class + xp.arange(z.shape[1], device=z.device), (1, z.shape[1], 1))
        return z, (xp.expand_dims(rows.target, axis=1) == numbers) & xp.expand_dims(keep != 0, axis=1), keep

    def _widened(self, array):
        return self.xp.astype(array, self.wide.get(array.dtype, array.dtype))

    def _weights(self, rows, z):
        w = self.xp.zeros_like(z) + 1.0
        return w if rows.weight is None else w * self.xp.reshape(rows.weight, (1, z.shape[1], 1))

    def _targets(self, rows, z, keep):
        """q of every class but for the label's own part."""
        xp = self.xp
        t = self._widened(rows.target) if rows.soft else xp.zeros_like(z)
        t = xp.where(xp.expand_dims(keep != 0, axis=1), t, 0.0)
        keep = xp.expand_dims(keep, axis=1)
        smoothing, classes = rows.options.label_smoothing, _divisor(rows)
        return _rules.target_weight(t, self._weights(rows, z), keep, smoothing, classes)

    def _own_exp(self, rows, sums):
        return self.xp.zeros_like(sums.peak) if rows.soft else self.xp.exp(sums.own - sums.peak)

    def _masses(self, rows, sums, keep):
        """The label's own part of the mass of q, the rest for a row that counts 1, and the label's class weight."""
        own_weight = self.xp.zeros_like(keep) + 1.0
        if sums.own_weight is not None and not rows.soft:
            own_weight = sums.own_weight
        label_mass = _rules.label_weight(own_weight, keep, rows.options.label_smoothing)
        return label_mass * (0.0 if rows.soft else 1.0), 0.0 if sums.mass is None else sums.mass, own_weight

    def _first_bad(self, rows, keep):
        xp = self.xp
        if rows.soft:
            return -1
        bad = (keep != 0) & ((rows.target < 0) | (rows.target >= rows.all_classes))
        count = keep.shape[0] * keep.shape[1]
        if not count:
            return -1
        from_last = xp.reshape(xp.arange(count, 0, -1, device=keep.device), (count,))
        largest = xp.max(xp.where(xp.reshape(bad, (count,)), from_last, 0), axis=0)
        return xp.where(largest == 0, -1, count - largest)


def _divisor(rows):
    """The number of classes over which smoothing spreads; 1 where there are none, since Python divides nothing by 0."""
    return float(max(1, rows.all_classes))
