"""The rows that are shown: which, and each by hand, from the formula, in float64, without the kernels."""

from types import SimpleNamespace

import numpy as np

from crossent.tools.explain.explanation import Row
from crossent.tools.language import say

CLASSES = 6  # of a row; one fewer where there are others, whose sum is shown
ROWS = 4


class Worked(SimpleNamespace):
    """A row with all its classes.

    Down to the loss: x and the capped logits z, their exponentials e relative to the largest, `total` and lse, p and
    log_p, the target's weights q and their sum `mass`, `cost`, what each class adds to the loss, `z_term`, and
    `sample`, what the row counts for. Back up: d is the gradient of the loss of a row that counts once, at z; g that of
    the result, at x; `after` is the loss at x - rate * g. Of floats: `size` is the magnitude of the numbers whose
    rounding the loss inherits, `digits` are those that adding e to their sum keeps in the arithmetic of the call, and
    `unshifted` is there the sum of exp z. `shown` is what the answer says of the row.
    """


def work(case, row, reason, rate):
    x, cap = case.row_logits(row), case.options.softcap
    with np.errstate(all="ignore"):
        w = _forward(case, row, x)
        finite = w.z[np.isfinite(w.z)]
        mass = np.abs(w.q).sum() * (1.0 + 2.0 * case.options.z_loss * abs(w.lse))
        w.size = abs(w.sample) * max(1.0, mass) * max(1.0, abs(finite).max(initial=0.0), case.row_size(row))
        w.d = _gradient(case, w) if w.sample else np.zeros(case.classes)
        w.g = w.sample * w.d if cap is None else w.sample * w.d * (1.0 - (w.z / cap) ** 2)
        if case.options.reduction == "mean":
            w.g = w.g / np.float64(case.divisor)
        w.after = _forward(case, row, x - rate * w.g).loss
        half = 0.5 * np.spacing(case.arithmetic(w.total))  # what is below it changes no sum
        w.digits = np.maximum(np.log10(w.e / half), 0.0).round(1)
        w.unshifted = float(np.exp(w.z.astype(case.arithmetic)).sum(dtype=case.arithmetic))
    w.shown = _row(case, w, reason)
    return w


def _forward(case, row, x):
    """loss = s sum_c q_c (lse - z_c + z_loss lse^2) by the formula; of log-probabilities -s sum_c q_c x_c."""
    options, sample = case.options, float(case.s[row])
    z = x if options.softcap is None else options.softcap * np.tanh(x / options.softcap)
    e, total, lse, distance = _distances(z)
    q = _target_weights(case, row)
    of_class = -z if case.picks else distance
    held = case.keep[row] & (case.spread | (case.row_target(row) != 0.0))
    cost = np.where(held & ((q != 0.0) | (of_class != np.inf)), q * of_class, 0.0)
    z_term = float(q.sum() * options.z_loss * lse * lse) if options.z_loss else 0.0
    loss = float(sample * (cost.sum() + z_term)) if sample else 0.0
    if case.bad[row]:
        loss = np.nan
    return Worked(
        row=row, x=x, sample=sample, z=z, e=e, total=total, lse=float(lse), p=np.exp(-distance), log_p=-distance, q=q,
        mass=float(q.sum()), cost=cost, z_term=z_term, loss=loss,
    )  # fmt: skip


def _distances(z):
    """e, their sum, lse, and lse - z as two terms that are not negative, so that no digit cancels.

    See `crossent.cross_entropy`.
    """
    top = int(z.argmax())
    peak = z[top] if np.isfinite(z[top]) else np.nan
    e = np.exp(z - peak)
    others = float(np.delete(e, top).sum())
    rest = np.log1p(others)
    return e, 1.0 + others if np.isfinite(peak) else np.nan, peak + rest, rest + (peak - z)


def _gradient(case, f):
    """d_c = sum(q) (1 + 2 z_loss lse) p_c - q_c, in terms that keep the digits of 1 - p; of log-probabilities -q_c."""
    if case.picks:
        return -f.q
    return (f.mass - f.q) * f.p + f.q * np.expm1(f.log_p) + 2.0 * case.options.z_loss * f.mass * f.lse * f.p


def _target_weights(case, row):
    """q_c = w_c ((1 - smoothing) t_c + smoothing / C)."""
    t, smoothing = case.row_target(row), case.options.label_smoothing
    weight = np.ones(case.classes) if case.weight is None else case.weight
    if not case.spread:
        return np.where(t == 0.0, 0.0, weight)  # other classes take no part, whatever their weights are
    if not case.keep[row]:
        return np.zeros(case.classes)
    return weight * ((1.0 - smoothing) * t + smoothing / case.classes)


def choose(case, wanted):
    """The numbers of the rows to show, each with the reason: the caller's, or the few that matter."""
    if wanted is not None:
        return {case.number(position): say("chosen") for position in wanted}
    if case.rows <= ROWS:
        return dict.fromkeys(range(case.rows), "")
    losses = case.losses
    chosen = {int(row): "" for row in np.flatnonzero(case.bad)[:1]}
    chosen |= {int(row): say("not_finite") for row in np.flatnonzero(case.keep & ~np.isfinite(losses))[:2]}
    counted = np.flatnonzero(case.keep & np.isfinite(losses))
    if len(counted):
        chosen.setdefault(int(counted[losses[counted].argmin()]), say("smallest_loss"))
        large = counted[np.argpartition(losses[counted], -min(ROWS, len(counted)))[-ROWS:]]
        for row in sorted(large, key=lambda row: -losses[row]):
            if len(chosen) < ROWS:
                chosen.setdefault(int(row), say("large_loss"))
    return dict(sorted(chosen.items())) or {0: say("all_ignored")}


def _row(case, worked, reason):
    number = worked.row
    state = "bad label" if case.bad[number] else "counts" if case.keep[number] else "ignored"
    label = None if case.labels is None else int(case.labels[number])
    return Row(case.position(number), label, state, reason, _shown(case, worked), worked.loss)


def _shown(case, worked):
    """All classes if they are few; else the label, those that are not finite and matter, and the largest."""
    if case.classes <= CLASSES:
        return tuple(range(case.classes))
    order = [] if case.labels is None or not case.keep[worked.row] else [int(case.labels[worked.row])]
    order += np.flatnonzero(np.isnan(worked.x) | (worked.x == np.inf))[:2].tolist()
    order += np.flatnonzero(~np.isfinite(worked.cost))[:1].tolist()
    if case.soft:
        order += np.argsort(-worked.q, kind="stable")[:3].tolist()
    order += np.argsort(-worked.z, kind="stable")[:CLASSES].tolist()
    return tuple(sorted(list(dict.fromkeys(order))[: CLASSES - 1]))
