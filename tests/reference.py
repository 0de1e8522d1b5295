"""The losses in extended precision, written from the formula and sharing no code with the library.

For one row with capped logits z, target weights q and lse = log sum exp z:

    loss = sum_c q_c (lse - z_c + z_loss lse^2)
    d loss / d z_c = sum_k q_k (1 + 2 z_loss lse) p_c - q_c

Every difference lse - z_c is kept as (lse - max z) + (max z - z_c), two terms that are not negative, so that nothing
cancels and a row in which one class has all the probability is still right to the last digit.
"""

import math

import numpy as np

LONG = np.longdouble


def _rows(array, dim):
    """The class axis last, everything else folded into rows."""
    moved = np.moveaxis(array, dim, -1)
    return moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1]), moved.shape


def _unrows(rows, moved_shape, dim):
    return np.moveaxis(rows.reshape(moved_shape), -1, dim)


def _distances(z):
    """lse and lse - z for every row. A row whose maximum is not finite has no value: nan, as in PyTorch."""
    z = z.copy()
    n = len(z)
    if z.size == 0:
        return np.zeros(n, LONG), z
    with np.errstate(all="ignore"):
        peak = z.argmax(1)
        top = z[np.arange(n), peak]
        top = np.where(np.isfinite(top) & ~np.isnan(z).any(1), top, np.nan)
        others = np.exp(z - top[:, None])
        others[np.arange(n), peak] = 0
        rest = np.log1p(others.sum(1))
        return top + rest, rest[:, None] + (top[:, None] - z)


def _times(q, values):
    """q * values, where a weight of 0 removes the value whatever it is."""
    with np.errstate(all="ignore"):
        return np.where(q == 0, LONG(0), q * np.where(q == 0, LONG(0), values))


def softmax(logits, dim, upstream=1):
    """The softmax, and the gradient of sum(upstream * result)."""
    logits = np.asarray(logits, LONG)
    x, shape = _rows(np.atleast_1d(logits), dim)
    with np.errstate(all="ignore"):
        out = _unrows(np.exp(-_distances(x)[1]), shape, dim).reshape(logits.shape)
    return out, softmax_gradient(out, dim, upstream)


def log_softmax(logits, dim, upstream=1):
    logits = np.asarray(logits, LONG)
    x, shape = _rows(np.atleast_1d(logits), dim)
    out = _unrows(-_distances(x)[1], shape, dim).reshape(logits.shape)
    return out, log_softmax_gradient(out, dim, upstream)


def softmax_gradient(out, dim, upstream):
    p = np.asarray(out, LONG)
    with np.errstate(all="ignore"):
        return p * (upstream - (p * upstream).sum(dim if p.ndim else (), keepdims=True))


def log_softmax_gradient(out, dim, upstream):
    out = np.asarray(out, LONG)
    upstream = np.broadcast_to(upstream, out.shape)
    with np.errstate(all="ignore"):
        return upstream - np.exp(out) * upstream.sum(dim if out.ndim else (), keepdims=True)


def _target(target, logits, dim, ignore_index, weight, is_label):
    """t of every class, what remains of each row (0 or 1), and what a row counts for in the mean."""
    x, _ = _rows(logits, dim)
    n, classes = x.shape
    if not is_label:
        return _rows(np.asarray(target, LONG), dim)[0], np.ones(n, LONG), np.ones(n, LONG)
    labels = np.asarray(target).reshape(-1)
    keep = labels != ignore_index
    t = np.zeros((n, classes), LONG)
    for row in range(n):
        if keep[row]:
            t[row, labels[row]] = 1
    counts = np.array([weight[labels[row]] if keep[row] else 0 for row in range(n)], LONG)
    return t, keep.astype(LONG), counts


def _reduce(loss, counts, sample_weight, reduction, denominator, shape):
    """The result, and what each row's loss is multiplied by on its way there."""
    with np.errstate(all="ignore"):
        if reduction == "none":
            return _times(sample_weight, loss).reshape(shape), sample_weight
        total = _times(sample_weight, loss).sum()
        if reduction == "sum":
            return total, sample_weight
        by = (counts * sample_weight).sum() if denominator is None else LONG(denominator)
        return total / by, sample_weight / by


def _prepare(logits, target, weight, dim, sample_weight):
    logits = np.asarray(logits, LONG)
    dim = (1 if logits.ndim > 1 else 0) if dim is None else dim % logits.ndim
    classes = logits.shape[dim]
    shape = logits.shape[:dim] + logits.shape[dim + 1 :]
    weight = np.ones(classes, LONG) if weight is None else np.asarray(weight, LONG)
    sample_weight = np.broadcast_to(np.asarray(1 if sample_weight is None else sample_weight, LONG), shape).reshape(-1)
    return logits, dim, shape, weight, sample_weight


def _gradient(rows, scale, upstream, reduction, keep, moved_shape, dim):
    up = np.asarray(upstream, LONG)
    up = up.reshape(-1, 1) if reduction == "none" else up
    removed = (keep == 0)[:, None] | (scale == 0)[:, None]
    with np.errstate(all="ignore"):
        gradient = np.where(removed, LONG(0), rows * scale[:, None] * up)
    return _unrows(gradient, moved_shape, dim)


def nll_loss(
    logits, target, weight=None, ignore_index=-100, reduction="mean", dim=None, sample_weight=None, denominator=None,
    upstream=1,
):  # fmt: skip
    logits, dim, shape, weight, sample_weight = _prepare(logits, target, weight, dim, sample_weight)
    x, moved_shape = _rows(logits, dim)
    t, keep, counts = _target(target, logits, dim, ignore_index, weight, True)
    q = keep[:, None] * weight * t
    sample_weight = sample_weight * keep
    value, scale = _reduce(-_times(q, x).sum(1), counts, sample_weight, reduction, denominator, shape)
    return value, _gradient(-q, scale, upstream, reduction, sample_weight, moved_shape, dim)


def cross_entropy(
    logits, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, dim=None,
    sample_weight=None, denominator=None, softcap=None, z_loss=0.0, upstream=1, is_label=None,
):  # fmt: skip
    """The loss, and the gradient of sum(upstream * loss) in the logits. Floating-point targets are probabilities."""
    logits, dim, shape, weight, sample_weight = _prepare(logits, target, weight, dim, sample_weight)
    if is_label is None:
        is_label = np.asarray(target).dtype.kind in "iu"
    x, moved_shape = _rows(logits, dim)
    t, keep, counts = _target(target, logits, dim, ignore_index, weight, is_label)
    smoothing, z_loss = LONG(label_smoothing), LONG(z_loss)
    q = keep[:, None] * weight * ((1 - smoothing) * t + smoothing / max(x.shape[1], 1))
    with np.errstate(all="ignore"):
        z, slope = x, np.ones_like(x)
        if softcap is not None:
            z = softcap * np.tanh(x / LONG(softcap))
            slope = 1 / np.cosh(x / LONG(softcap)) ** 2
        lse, distance = _distances(z)
        mass = q.sum(1)
        loss = _times(q, distance).sum(1) + np.where((keep == 0) | (z_loss == 0), 0, mass * z_loss * lse * lse)
        # mass * p - q = (mass - q) * p - q * (1 - p), and 1 - p = -expm1(-distance) does not cancel
        rest = q.sum(1, keepdims=True) - q
        p = np.exp(-distance)
        rows = _times(rest, p) + _times(q, np.expm1(-distance))
        rows = rows + np.where(keep * z_loss == 0, 0, 2 * mass * z_loss * lse)[:, None] * p
        rows = rows * slope
    sample_weight = sample_weight * keep
    value, scale = _reduce(loss, counts, sample_weight, reduction, denominator, shape)
    return value, _gradient(rows, scale, upstream, reduction, sample_weight, moved_shape, dim)


def soft_target_gradient(
    logits, target, weight=None, reduction="mean", label_smoothing=0.0, dim=None, sample_weight=None,
    denominator=None, softcap=None, z_loss=0.0, upstream=1,
):  # fmt: skip
    """The gradient of sum(upstream * cross_entropy) in the probabilities: d loss / d q_c = lse - z_c + z_loss lse^2."""
    logits, dim, _, weight, sample_weight = _prepare(logits, target, weight, dim, sample_weight)
    x, moved_shape = _rows(logits, dim)
    z = x if softcap is None else softcap * np.tanh(x / LONG(softcap))
    lse, distance = _distances(z)
    rows = weight * (1 - LONG(label_smoothing)) * (distance + LONG(z_loss) * lse[:, None] ** 2)
    _, scale = _reduce(np.zeros(len(x), LONG), np.ones(len(x), LONG), sample_weight, reduction, denominator, (len(x),))
    return _gradient(rows, scale, upstream, reduction, sample_weight, moved_shape, dim)
