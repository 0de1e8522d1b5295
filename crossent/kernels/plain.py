"""Losses and softmax in plain array operations, for devices without kernels and for derivatives of every order.

`xp` is the array library. `freeze(array)` is the array as a constant, which is not differentiated. A value that a
`where` will not select is replaced by a harmless one before it is used: its derivative could be nan, and nan times 0 is
nan.
"""

from crossent import _rules


def row_losses(xp, logits, target, soft, weight, keep, options, axis, freeze):
    """The loss of each row. `keep` has the rows' shape; where it is 0 the label may be any number."""
    classes = logits.shape[axis]
    kept = xp.unsqueeze(keep != 0, axis)
    z = xp.where(kept, logits, 0.0)
    if isinstance(classes, int) and not classes:  # a traced size is not an int
        return xp.sum(z, axis=axis)
    if options.softcap:
        z = options.softcap * xp.tanh(z / options.softcap)
    peak = freeze(xp.amax(z, axis=axis, keepdims=True))
    peak = xp.where(peak == -float("inf"), 0.0, peak)
    z = z - peak
    shape = [1] * logits.ndim
    shape[axis] = classes
    w = 1.0 if weight is None else xp.reshape(weight, shape)
    parts = _soft_parts if soft else _label_parts
    nll, label_mass, log_total, t = parts(xp, z, target, w, keep, options, axis, shape)
    rest_mass, rest_dot = 0.0, 0.0
    if soft or options.label_smoothing:
        classes = xp.zeros_like(peak) + classes  # as an array: division by a traced size is in float32
        q = _rules.target_weight(t, w, xp.unsqueeze(keep, axis), options.label_smoothing, classes)
        q = q + xp.zeros_like(z)
        counted = xp.where((q == 0) & (z == -float("inf")), 0.0, z)
        rest_mass, rest_dot = xp.sum(q, axis=axis), xp.sum(q * counted, axis=axis)
    lse = xp.squeeze(peak, axis) + log_total
    loss = _rules.row_loss(nll, label_mass, log_total, rest_mass, rest_dot, lse, options.z_loss)
    return xp.where(keep != 0, loss, 0.0)


def _at_label(xp, target, keep, axis, shape):
    """A mask: where the class is the row's label. `shape` is 1 everywhere but along the classes."""
    classes = xp.reshape(xp.arange(shape[axis], device=target.device), shape)
    return (xp.unsqueeze(target, axis) == classes) & xp.unsqueeze(keep != 0, axis)


def _nll(xp, own, others):
    """The label's negative log-probability, and the log of the sum of all exponentials.

    `others` is the sum of the exponentials of all classes but the label, `own` the label's logit.
    """
    own_exp = xp.exp(own)
    log_total = xp.log(others + own_exp)
    confident = others <= own_exp
    share = xp.where(confident, others, 0.0) / xp.where(confident, own_exp, 1.0)
    return xp.where(confident, xp.log1p(share), log_total - own), log_total


def _soft_parts(xp, z, target, w, keep, options, axis, shape):
    target = xp.where(xp.unsqueeze(keep != 0, axis), target, 0.0)
    return 0.0, 0.0, xp.log(xp.sum(xp.exp(z), axis=axis)), target


def _label_parts(xp, z, target, w, keep, options, axis, shape):
    at_label = _at_label(xp, target, keep, axis, shape)
    own = xp.sum(xp.where(at_label, z, 0.0), axis=axis)
    others = xp.sum(xp.where(at_label, 0.0, xp.exp(z)), axis=axis)
    nll, log_total = _nll(xp, own, others)
    own_weight = xp.sum(xp.where(at_label, w + xp.zeros_like(z), 0.0), axis=axis)
    label_mass = _rules.label_weight(own_weight, keep, options.label_smoothing)
    return xp.where(label_mass == 0, 0.0, nll), label_mass, log_total, 0.0


def picked_losses(xp, logits, target, weight, keep, axis):
    """The loss of each row, where the logits are log-probabilities."""
    shape = [1] * logits.ndim
    shape[axis] = logits.shape[axis]
    at_label = _at_label(xp, target, keep, axis, shape)
    w = 1.0 if weight is None else xp.reshape(weight, shape)
    mass = _rules.label_weight(w, xp.unsqueeze(keep, axis), 0.0) + xp.zeros_like(at_label, dtype=keep.dtype)
    counted = at_label & (mass != 0)
    return xp.sum(xp.where(counted, -mass * xp.where(counted, logits, 0.0), 0.0), axis=axis)


def log_softmax(xp, x, axis, freeze):
    """log-softmax that keeps its digits where one class outweighs all others, in the result and in the derivative.

    Everything is relative to the largest logit, which is left out of the sum: its log-probability is -log(1 + others),
    and its derivative is that of the others with the opposite sign. Where several logits are the largest, they share
    the derivative of the maximum, so they add only their count to the sum.
    """
    classes = x.shape[axis]
    if isinstance(classes, int) and not classes:  # as in `row_losses`
        return xp.exp(x)
    peak = xp.amax(x, axis=axis, keepdims=True)
    at_peak, z = x == peak, x - peak
    zero = freeze(z)  # 0 at the largest logit, where it is used
    count = xp.sum(xp.where(at_peak, xp.ones_like(zero), 0.0), axis=axis, keepdims=True)
    others = xp.sum(xp.where(at_peak, zero, xp.exp(z)), axis=axis, keepdims=True)
    return xp.where(at_peak & (count == 1), zero, z) - xp.log1p(others + (count - 1.0))


def log_softmax_grad(xp, out, dout, axis):
    """The derivative, in operations that can be differentiated again; `out` must be a function of the input.

    For a class that is nearly certain 1 - p is computed by itself, so that it keeps its digits.
    """
    total = xp.sum(dout, axis=axis, keepdims=True)
    nearly_certain = -0.34  # not a global: PyTorch 2.10's compiler would make a number of any size of it, and fail
    return xp.where(out > nearly_certain, dout - total - xp.expm1(out) * total, dout - xp.exp(out) * total)


def row_weights(xp, target, soft, weight, keep):
    """What each row adds to the mean's divisor."""
    if soft or weight is None:
        return keep
    return keep * xp.where(keep != 0, weight[xp.where(keep != 0, target, 0)], 0.0)


def _rank(xp, z, own, label, axis):
    """The number of classes ahead of the label when sorted by logit; of equal logits the earlier class comes first."""
    shape = [1] * z.ndim
    shape[axis] = z.shape[axis]
    earlier = xp.reshape(xp.arange(shape[axis], device=z.device), shape) < label
    return xp.sum((z > own) | ((z == own) & earlier), axis=axis)


def token_stats(xp, logits, target, keep, options, axis):
    """Log-probability of the label, lse, entropy and rank of each row; 0 and rank -1 where `keep` is 0."""
    kept = xp.unsqueeze(keep != 0, axis)
    z = xp.where(kept, logits, 0.0)
    if options.softcap:
        z = options.softcap * xp.tanh(z / options.softcap)
    lse = xp.logsumexp(z, axis)
    log_p = z - xp.unsqueeze(lse, axis)
    p = xp.exp(log_p)
    entropy = -xp.sum(p * xp.where(p == 0, 0.0, log_p), axis=axis)
    label = xp.unsqueeze(xp.where(keep != 0, target, 0), axis)
    logprob = xp.squeeze(xp.gather(log_p, axis, label), axis)
    rank = _rank(xp, z, xp.gather(z, axis, label), label, axis)
    # A bad label that could not be refused has keep = nan, which makes its results nan.
    logprob, lse, entropy = (xp.where(keep != 0, keep * value, 0.0) for value in (logprob, lse, entropy))
    return logprob, lse, entropy, xp.where(keep != 0, rank, -1)


def prediction_stats(xp, logits, target, keep, axis):
    """Log-probability and rank of the label, most likely class, its probability and the Brier score of each row."""
    shape = [1] * logits.ndim
    shape[axis] = logits.shape[axis]
    z = xp.where(xp.unsqueeze(keep != 0, axis), logits, 0.0)
    at_label = _at_label(xp, target, keep, axis, shape)
    label_logit = xp.sum(xp.where(at_label, z, 0.0), axis=axis, keepdims=True)
    rank, prediction = _rank(xp, z, label_logit, xp.unsqueeze(target, axis), axis), xp.argmax(z, axis=axis)
    peak = xp.amax(z, axis=axis, keepdims=True)
    z = z - xp.where(peak == -float("inf"), 0.0, peak)
    own, e = xp.sum(xp.where(at_label, z, 0.0), axis=axis), xp.exp(z)
    rest = xp.where(at_label, 0.0, e)
    others, total = xp.sum(rest, axis=axis), xp.sum(e, axis=axis)
    logprob = -_nll(xp, own, others)[0]
    confidence = xp.amax(e, axis=axis) / total
    brier = _rules.brier(others, xp.sum(rest * rest, axis=axis), total)
    # As in `token_stats`.
    logprob, confidence, brier = (xp.where(keep != 0, keep * value, 0.0) for value in (logprob, confidence, brier))
    rank, prediction = (xp.where(keep != 0, value, -1) for value in (rank, prediction))
    return logprob, rank, prediction, confidence, brier
