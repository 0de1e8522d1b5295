"""The rows that are shown: which, and each by hand, from the formula, in float64, without the kernels."""

from dataclasses import dataclass

import numpy as np

from crossent.tools.explain.explanation import Row

CLASSES = 6  # of a row; one fewer where there are others, whose sum is shown
ROWS = 4


@dataclass
class Worked:
    """A row with all its classes: x are the logits, z the capped ones, q the target's weights, `cost` what each class
    adds to the loss, `size` the magnitude of the numbers whose rounding the loss inherits."""

    row: int
    x: np.ndarray
    z: np.ndarray
    lse: float
    p: np.ndarray
    log_p: np.ndarray
    q: np.ndarray
    cost: np.ndarray
    mass: float
    z_term: float
    sample: float
    loss: float
    size: float


def work(case, row):
    """loss = s sum_c q_c (lse - z_c + z_loss lse^2) by the formula; of log-probabilities -s sum_c q_c x_c."""
    options, sample, x = case.options, case.sample(row), case.row_logits(row)
    with np.errstate(all="ignore"):
        z = x if options.softcap is None else options.softcap * np.tanh(x / options.softcap)
        lse, distance = _distances(z)
        q = _target_weights(case, row)
        cost = _times(q, -z if case.picks else distance)
        z_term = q.sum() * options.z_loss * lse * lse if options.z_loss else 0.0
        loss = sample * (cost.sum() + z_term) if sample else 0.0
        if sample and case.spread and np.isnan(lse):
            loss = np.nan  # a target over several classes needs the normaliser, even where it holds nothing of them
        finite = z[np.isfinite(z)]
        mass = np.abs(q).sum() * (1.0 + 2.0 * options.z_loss * abs(lse))
        size = abs(sample) * max(1.0, mass) * max(1.0, abs(finite).max(initial=0.0), case.row_size(row))
    if case.bad[row]:
        loss = np.nan
    return Worked(
        row, x, z, float(lse), np.exp(-distance), -distance, q, cost, float(q.sum()), float(z_term), sample,
        float(loss), size,
    )  # fmt: skip


def _distances(z):
    """lse, and lse - z as two terms that are not negative, so that no digit cancels: see `crossent.cross_entropy`."""
    top = int(z.argmax())
    peak = z[top] if np.isfinite(z[top]) else np.nan
    others = np.exp(z - peak)
    others[top] = 0.0
    rest = np.log1p(others.sum())
    return peak + rest, rest + (peak - z)


def _target_weights(case, row):
    """q_c = w_c ((1 - smoothing) t_c + smoothing / C)."""
    t, smoothing = case.row_target(row), case.options.label_smoothing
    weight = np.ones(case.classes) if case.weight is None else case.weight
    if not case.spread:
        return np.where(t == 0.0, 0.0, weight)  # other classes take no part, whatever their weights are
    if not case.keep[row]:
        return np.zeros(case.classes)
    return weight * ((1.0 - smoothing) * t + smoothing / case.classes)


def _times(q, values):
    """q * values, 0 where q is, even at an infinity."""
    return np.where(q == 0.0, 0.0, q * values)


def choose(case, losses, wanted):
    """The numbers of the rows to show, each with the reason: the caller's, or the few that matter."""
    if wanted is not None:
        return {case.number(position): "chosen" for position in wanted}
    if case.rows <= ROWS:
        return dict.fromkeys(range(case.rows), "")
    chosen = {int(row): "" for row in np.flatnonzero(case.bad)[:1]}
    chosen |= {int(row): "not finite" for row in np.flatnonzero(case.keep & ~np.isfinite(losses))[:2]}
    counted = np.flatnonzero(case.keep & np.isfinite(losses))
    if len(counted):
        chosen.setdefault(int(counted[losses[counted].argmin()]), "smallest loss")
        large = counted[np.argpartition(losses[counted], -min(ROWS, len(counted)))[-ROWS:]]
        for row in sorted(large, key=lambda row: -losses[row]):
            if len(chosen) < ROWS:
                chosen.setdefault(int(row), "large loss")
    return dict(sorted(chosen.items())) or {0: "ignored like all others"}


def row_of(case, worked, reason):
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
