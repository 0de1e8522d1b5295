"""The rows that are shown: which, and each by hand, from the formula, in float64, without the kernels."""

from dataclasses import dataclass

import numpy as np

from crossent.tools.explain.explanation import Row
from crossent.tools.explain.language import say

CLASSES = 6  # of a row; one fewer where there are others, whose sum is shown
ROWS = 4


@dataclass
class Forward:
    """A row with all its classes: z are the capped logits, e their exponentials relative to the largest, q the target's
    weights, `cost` what each class adds to the loss, `mass` the sum of q.
    """

    z: np.ndarray
    e: np.ndarray
    total: float
    lse: float
    p: np.ndarray
    log_p: np.ndarray
    q: np.ndarray
    cost: np.ndarray
    mass: float
    z_term: float
    loss: float


@dataclass
class Worked(Forward):
    """And its way down: d is the gradient of the loss of a row that counts once, at z; g that of the result, at x.

    `after` is the loss at x - rate * g. `size` is the magnitude of the numbers whose rounding the loss inherits.
    `digits` are those that adding e to their sum keeps in the arithmetic of the call, and `unshifted` is there the sum
    of exp z.
    """

    row: int
    x: np.ndarray
    sample: float
    size: float
    d: np.ndarray
    g: np.ndarray
    after: float
    digits: np.ndarray
    unshifted: float


def work(case, row, rate=1.0):
    sample, x, cap = case.sample(row), case.row_logits(row), case.options.softcap
    with np.errstate(all="ignore"):
        f = _forward(case, row, x, sample)
        finite = f.z[np.isfinite(f.z)]
        mass = np.abs(f.q).sum() * (1.0 + 2.0 * case.options.z_loss * abs(f.lse))
        size = abs(sample) * max(1.0, mass) * max(1.0, abs(finite).max(initial=0.0), case.row_size(row))
        d = _gradient(case, f) if sample else np.zeros(case.classes)
        g = sample * d if cap is None else sample * d * (1.0 - (f.z / cap) ** 2)
        if case.options.reduction == "mean":
            g = g / np.float64(case.divisor)
        after = _forward(case, row, x - rate * g, sample).loss
        digits, unshifted = _in_floats(f, case.arithmetic)
    return Worked(
        **vars(f), row=row, x=x, sample=sample, size=size, d=d, g=g, after=after, digits=digits, unshifted=unshifted
    )


def _in_floats(f, dtype):
    half = 0.5 * np.spacing(dtype(f.total))  # what is below it changes no sum
    digits = np.maximum(np.log10(f.e / half), 0.0).round(1)
    return digits, float(np.exp(f.z.astype(dtype)).sum(dtype=dtype))


def _forward(case, row, x, sample):
    """loss = s sum_c q_c (lse - z_c + z_loss lse^2) by the formula; of log-probabilities -s sum_c q_c x_c."""
    options = case.options
    z = x if options.softcap is None else options.softcap * np.tanh(x / options.softcap)
    e, total, lse, distance = _distances(z)
    q = _target_weights(case, row)
    cost = _times(q, -z if case.picks else distance)
    z_term = q.sum() * options.z_loss * lse * lse if options.z_loss else 0.0
    loss = sample * (cost.sum() + z_term) if sample else 0.0
    if case.bad[row] or (sample and case.spread and np.isnan(lse)):
        loss = np.nan  # a target over several classes needs the normaliser, even where it holds nothing of them
    return Forward(
        z, e, total, float(lse), np.exp(-distance), -distance, q, cost, float(q.sum()), float(z_term), float(loss)
    )


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


def _times(q, values):
    """q * values, 0 where q is, even at an infinity."""
    return np.where(q == 0.0, 0.0, q * values)


def choose(case, losses, wanted):
    """The numbers of the rows to show, each with the reason: the caller's, or the few that matter."""
    if wanted is not None:
        return {case.number(position): say("chosen") for position in wanted}
    if case.rows <= ROWS:
        return dict.fromkeys(range(case.rows), "")
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
