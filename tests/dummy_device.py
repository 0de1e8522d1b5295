"""A device as CONTRIBUTING says that one is added: a class with the three functions of the contract.

It stands in for a processor that the library does not know, and computes in float64 what the formulas say.
"""

import numpy as np
import torch

from crossent.kernels import LossKernels, Outcome, Sums


def there(tensor):
    return None if tensor is None else tensor.detach().double().numpy()


def back(array, like):
    return torch.as_tensor(np.asarray(array)).to(like.dtype)


class Row:
    """The formulas' terms, for all rows: z, q for a row that counts 1 without the label's own part, and keep."""

    def __init__(self, rows):
        options, logits = rows.options, there(rows.logits)
        outer, classes, inner = logits.shape
        labels = None if rows.soft else rows.target.numpy()
        self.keep = np.ones((outer, inner)) if rows.sample_weight is None else there(rows.sample_weight)
        if labels is not None:
            self.keep = np.where(labels == options.ignore_index, 0.0, self.keep)
        self.kept = self.keep[:, None] != 0
        self.x = np.where(self.kept, logits, 0.0)
        self.z = options.softcap * np.tanh(self.x / options.softcap) if options.softcap else self.x
        self.w = np.ones((1, classes, 1)) if rows.weight is None else there(rows.weight)[None, :, None]
        numbers = rows.first_class + np.arange(classes)[None, :, None]
        self.hit = np.zeros(logits.shape, bool) if labels is None else (labels[:, None] == numbers) & self.kept
        t = np.where(self.kept, there(rows.target), 0.0) if rows.soft else 0.0
        smoothing = options.label_smoothing
        self.q = self.w * ((1 - smoothing) * t + smoothing / rows.all_classes) + np.zeros(logits.shape)
        self.own_part = 0.0 if rows.soft else 1 - smoothing
        self.bad = -1
        if labels is not None:
            bad = self.kept[:, 0] & ((labels < 0) | (labels >= rows.all_classes))
            self.bad = int(bad.argmax()) if bad.any() else -1


class DummyKernels(LossKernels):
    def sums(self, rows):
        row, nothing = Row(rows), -np.inf
        peak = row.z.max(1, initial=nothing)
        peak = np.where(np.isfinite(peak), peak, 0.0)
        relative = row.z - peak[:, None]
        with np.errstate(invalid="ignore"):
            others = np.where(row.hit, 0.0, np.exp(relative)).sum(1)
            dot = np.where(row.q == 0, 0.0, row.q * relative).sum(1)
        own = np.where(row.hit, row.z, nothing).max(1, initial=nothing)
        found = [peak, others, own, np.where(row.hit, row.w, 0.0).sum(1), row.q.sum(1), dot]
        dense = rows.soft or rows.options.label_smoothing > 0
        wanted = [True, True, True, rows.weight is not None, dense, dense]
        return Sums(*(torch.as_tensor(one) if want else None for one, want in zip(found, wanted)))

    def _finished(self, rows, sums):
        row = Row(rows)
        peak, others, own, own_weight, mass, dot = (0.0 if one is None else there(one) for one in sums)
        if sums.own_weight is None or rows.soft:
            own_weight = 1.0
        own = own - peak
        own_exp = 0.0 if rows.soft else np.exp(own)
        log_total = np.log(others + own_exp)
        label_mass = row.keep * own_weight * row.own_part
        nll = 0.0 if rows.soft else np.where(label_mass == 0, 0.0, np.log1p(others / own_exp))
        return row, peak + log_total, log_total, nll, label_mass, row.keep * mass, row.keep * dot, own_weight, own_exp

    def losses(self, rows, sums, dtype=None):
        with np.errstate(all="ignore"):
            row, lse, log_total, nll, label_mass, mass, dot, own_weight, _ = self._finished(rows, sums)
            losses = label_mass * nll + mass * log_total - dot + (label_mass + mass) * rows.options.z_loss * lse**2
        losses, weights = (np.where(row.keep != 0, one, 0.0) for one in (losses, row.keep * own_weight))
        return Outcome(torch.as_tensor(losses), torch.tensor([losses.sum(), weights.sum()]), torch.tensor(row.bad))

    def gradients(self, rows, sums, upstream, scale, want_target, over_logits):
        with np.errstate(all="ignore"):
            row, lse, log_total, _, label_mass, mass, _, own_weight, own_exp = self._finished(rows, sums)
            total = (there(sums.others) + own_exp)[:, None]
            relative = row.z - there(sums.peak)[:, None]
            slope = ((label_mass + mass) * (1 + 2 * rows.options.z_loss * lse))[:, None]
            d = slope * np.exp(relative) / total - row.keep[:, None] * row.q
            d = d - np.where(row.hit, label_mass[:, None], 0.0)
            if rows.options.softcap:
                d = d * (1 - (row.z / rows.options.softcap) ** 2)
            above = (there(upstream) * float(scale))[:, None]
            dx = back(np.where(row.kept, above * d, 0.0), rows.logits)
            if not want_target:
                return dx, None
            cost = (log_total + rows.options.z_loss * lse**2)[:, None] - relative
            dt = above * row.keep[:, None] * row.w * (1 - rows.options.label_smoothing) * cost
        return dx, back(np.where(row.kept, dt, 0.0), rows.target)
