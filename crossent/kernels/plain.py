"""Losses and softmax in plain array operations, for devices without kernels and for derivatives of every order.

`xp` is the namespace of an array library that follows the array API standard, such as NumPy. `freeze(array)` is the
array as a constant, which is not differentiated. A value that a `where` will not select is replaced by a harmless one
before it is used: its derivative could be nan, and nan times 0 is nan.
"""

from typing import Any, NamedTuple

from crossent import _rules
from crossent.kernels import Sums, TokenSums


def row_losses(xp, logits, target, soft, weight, keep, options, axis, freeze):
    """The loss of each row. `keep` has the rows' shape; where it is 0 the label may be any number."""
    classes = logits.shape[axis]
    z = xp.where(xp.expand_dims(keep != 0, axis=axis), logits, 0.0)
    if isinstance(classes, int) and not classes:  # a traced size is not an int
        return xp.sum(z, axis=axis)
    z, peak = _from_peak(xp, capped(xp, z, options), axis, freeze)
    shape = _by_class(logits, axis)
    w = 1.0 if weight is None else xp.reshape(weight, shape)
    parts = _soft_parts if soft else _label_parts
    nll, label_mass, log_total, t = parts(xp, z, target, w, keep, options, axis, shape)
    rest_mass, rest_dot = 0.0, 0.0
    if soft or options.label_smoothing:
        classes = xp.zeros_like(peak) + classes  # as an array: division by a traced size is in float32
        q = _rules.target_weight(t, w, xp.expand_dims(keep, axis=axis), options.label_smoothing, classes)
        q = q + xp.zeros_like(z)
        nothing = (q == 0) & (z == -float("inf"))
        costs = q * xp.where(nothing, 0.0, z)
        if soft:
            share = _rules.label_weight(w, xp.expand_dims(keep, axis=axis), options.label_smoothing) + xp.zeros_like(z)
            costs = costs - _limitless(xp, xp.where(nothing, t, 0.0) * freeze(share))
        rest_mass, rest_dot = xp.sum(q, axis=axis), xp.sum(costs, axis=axis)
    lse = xp.squeeze(peak, axis) + log_total
    loss = _rules.row_loss(nll, label_mass, log_total, rest_mass, rest_dot, lse, options.z_loss)
    return xp.where(keep != 0, loss, 0.0)


def _limitless(xp, nothing):
    """The cost of probabilities that are 0 at logits of -inf. It is 0 too, but any more probability costs infinity: its
    derivative is infinite, as the kernels have it.
    """
    most = xp.finfo(nothing.dtype).max
    return nothing * most * most


def capped(xp, z, options):
    return options.softcap * xp.tanh(z / options.softcap) if options.softcap else z


def _from_peak(xp, z, axis, freeze):
    """The logits less the largest one of their row, and that one; 0 in its place where all are -inf."""
    peak = freeze(xp.max(z, axis=axis, keepdims=True))
    peak = xp.where(peak == -float("inf"), 0.0, peak)
    return z - peak, peak


def _by_class(logits, axis):
    """The shape of numbers that every class has one of."""
    return tuple(size if a == axis % logits.ndim else 1 for a, size in enumerate(logits.shape))


def _at_label(xp, target, keep, axis, shape):
    """A mask: where the class is the label of a row that counts. `shape` is 1 everywhere but along the classes."""
    classes = xp.reshape(xp.arange(shape[axis], device=target.device), shape)
    return (xp.expand_dims(target, axis=axis) == classes) & xp.expand_dims(keep != 0, axis=axis)


def label_nll(xp, own, others):
    """The label's negative log-probability, and the log of the sum of all exponentials.

    `others` is the sum of the exponentials of all classes but the label, `own` the label's logit.
    """
    own_exp = xp.exp(own)
    log_total = xp.log(others + own_exp)
    confident = others <= own_exp
    share = xp.where(confident, others, 0.0) / xp.where(confident, own_exp, 1.0)
    return xp.where(confident, xp.log1p(share), log_total - own), log_total


def _soft_parts(xp, z, target, w, keep, options, axis, shape):
    target = xp.where(xp.expand_dims(keep != 0, axis=axis), target, 0.0)
    return 0.0, 0.0, xp.log(xp.sum(xp.exp(z), axis=axis)), target


def _label_parts(xp, z, target, w, keep, options, axis, shape):
    at_label = _at_label(xp, target, keep, axis, shape)
    own = xp.sum(xp.where(at_label, z, 0.0), axis=axis)
    others = xp.sum(xp.where(at_label, 0.0, xp.exp(z)), axis=axis)
    nll, log_total = label_nll(xp, own, others)
    own_weight = xp.sum(xp.where(at_label, w + xp.zeros_like(z), 0.0), axis=axis)
    label_mass = _rules.label_weight(own_weight, keep, options.label_smoothing)
    return without_weight(xp, label_mass, nll), label_mass, log_total, 0.0


def without_weight(xp, mass, nll):
    """0 where an infinite loss counts for nothing. All else is left as it is: nan, and what weights are differentiated
    by, at a weight of 0 too.
    """
    return xp.where((mass == 0) & (nll == float("inf")), 0.0, nll)


def picked_losses(xp, logits, target, weight, keep, axis):
    """The loss of each row, where the logits are log-probabilities."""
    shape = _by_class(logits, axis)
    at_label = _at_label(xp, target, keep, axis, shape)
    w = 1.0 if weight is None else xp.reshape(weight, shape)
    mass = _rules.label_weight(w, xp.expand_dims(keep, axis=axis), 0.0) + xp.zeros_like(at_label, dtype=keep.dtype)
    nll = without_weight(xp, mass, -xp.where(at_label, logits, 0.0))
    return xp.sum(xp.where(at_label, mass * nll, 0.0), axis=axis)


class SliceSums(NamedTuple):
    """What softmax needs of a slice: its largest entry, how many entries equal it, and the sum of exp(x - peak) over
    all others. The axis of the slices is kept, with length 1.
    """

    peak: Any
    count: Any
    others: Any


def slice_sums(xp, x, axis, freeze):
    """The `SliceSums` of each slice, and x less its peak."""
    peak = xp.max(x, axis=axis, keepdims=True)
    at_peak, z = x == peak, x - peak
    zero = freeze(z)  # 0 at the largest entry, where it is used
    count = xp.sum(xp.where(at_peak, xp.ones_like(zero), 0.0), axis=axis, keepdims=True)
    others = xp.sum(xp.where(at_peak, zero, xp.exp(z)), axis=axis, keepdims=True)
    return SliceSums(peak, count, others), z


def merged_slices(xp, parts):
    """The `SliceSums` of slices of which each shard has a part; one without entries has peak -inf and count 0."""
    peak = _largest(xp, [part.peak for part in parts])
    count, others = 0.0, 0.0
    for part in parts:
        at_peak = part.peak == peak
        count = count + xp.where(at_peak, part.count, 0.0)
        below = xp.where(at_peak, 0.0, part.count) + part.others
        below = xp.where(part.peak == -float("inf"), 0.0, below)  # of entries that are all -inf the others are nan
        others = others + below * xp.where(at_peak, 1.0, xp.exp(part.peak - peak))
    return SliceSums(peak, count, others)


def softmax_of(xp, x, sums):
    return xp.exp(x - sums.peak) / (sums.others + sums.count)


def log_softmax_of(xp, x, z, sums, freeze):
    """`z` is x less the peak of `sums`."""
    certain = (x == sums.peak) & (sums.count == 1)
    return xp.where(certain, freeze(z), z) - xp.log1p(sums.others + (sums.count - 1.0))


def log_softmax(xp, x, axis, freeze):
    """log-softmax that keeps its digits where one class outweighs all others, in the result and in the derivative.

    Everything is relative to the largest logit, which is left out of the sum: its log-probability is -log(1 + others),
    and its derivative is that of the others with the opposite sign. Where several logits are the largest, they share
    the derivative of the maximum, so they add only their count to the sum.
    """
    classes = x.shape[axis]
    if isinstance(classes, int) and not classes:  # as in `row_losses`
        return xp.exp(x)
    sums, z = slice_sums(xp, x, axis, freeze)
    return log_softmax_of(xp, x, z, sums, freeze)


def log_softmax_grad(xp, out, dout, axis):
    """The derivative, in operations that can be differentiated again; `out` must be a function of the input.

    For a class that is nearly certain 1 - p is computed by itself, so that it keeps its digits.
    """
    return log_softmax_grad_of(xp, out, dout, xp.sum(dout, axis=axis, keepdims=True))


def log_softmax_grad_of(xp, out, dout, total):
    """`total` is the sum of `dout` over each slice."""
    nearly_certain = -0.34  # not a global: PyTorch 2.10's compiler would make a number of any size of it, and fail
    return xp.where(out > nearly_certain, dout - total - xp.expm1(out) * total, dout - xp.exp(out) * total)


def row_weights(xp, target, soft, weight, keep):
    """What each row adds to the mean's divisor."""
    if soft or weight is None:
        return keep
    labels = xp.where(keep != 0, target, 0)
    of_label = xp.reshape(xp.take(weight, xp.reshape(labels, (-1,)), axis=0), labels.shape)
    return keep * xp.where(keep != 0, of_label, 0.0)


def _rank(xp, z, own, label, axis):
    """The number of classes ahead of the label when sorted by logit; of equal logits the earlier class comes first."""
    earlier = xp.reshape(xp.arange(z.shape[axis], device=z.device), _by_class(z, axis)) < label
    return xp.sum(xp.astype((z > own) | ((z == own) & earlier), xp.int64), axis=axis)


def token_stats(xp, logits, target, keep, options, axis, freeze, shard=None):
    """Log-probability of the label, lse, entropy and rank of each row; 0 and rank -1 where `keep` is 0.

    Of a `shard` of the classes these are the logits. It has the number of its `first` class, the `total(array)` over
    all shards, and `parts_of(sums)`, the sums of each. The labels count over all classes.
    """
    z = capped(xp, xp.where(xp.expand_dims(keep != 0, axis=axis), logits, 0.0), options)
    label = xp.where(keep != 0, target, 0)
    if shard is not None:
        label = label - shard.first
    at_label = _at_label(xp, label, keep, axis, _by_class(z, axis))
    own = xp.sum(xp.where(at_label, z, 0.0), axis=axis)
    if shard is not None:
        own = shard.total(own)
    sums = _token_sums(xp, z, own, label, at_label, axis, freeze)
    if shard is not None:
        sums = merged_tokens(xp, own, shard.parts_of(sums), freeze)
    *floats, rank = token_results(xp, own, sums)
    # A bad label that could not be refused has keep = nan, which makes its results nan.
    return *(xp.where(keep != 0, keep * value, 0.0) for value in floats), xp.where(keep != 0, rank, -1)


def _token_sums(xp, z, own, label, at_label, axis, freeze):
    """The `TokenSums`; a label before or after these classes is a number below 0, or their count or more."""
    # Before the peak is taken off: less a peak of 1e8, logits that differ would be equal.
    ahead = _rank(xp, z, xp.expand_dims(own, axis=axis), xp.expand_dims(label, axis=axis), axis)
    if isinstance(z.shape[axis], int) and not z.shape[axis]:  # as in `row_losses`
        nothing = xp.sum(z, axis=axis)
        return TokenSums(nothing, nothing, nothing, ahead)
    z, peak = _from_peak(xp, z, axis, freeze)
    e = xp.where(at_label, 0.0, xp.exp(z))
    dot = xp.sum(e * xp.where(e == 0, 0.0, z), axis=axis)
    return TokenSums(xp.squeeze(peak, axis), xp.sum(e, axis=axis), dot, ahead)


def token_results(xp, own, sums):
    """Log-probability, lse, entropy and rank of labels with the logits `own`, of the sums over all classes."""
    relative, others = own - sums.peak, sums.others
    own_exp = xp.exp(relative)
    nll, log_total = label_nll(xp, relative, others)
    # Where the row is confident the entropy is made relative to the label: so it keeps its digits, as nll does.
    confident, relative = others <= own_exp, xp.where(own_exp == 0, 0.0, relative)
    dot = sums.dot + xp.where(confident, -others, own_exp) * relative
    entropy = _rules.entropy_of(xp.where(confident, nll, log_total), dot, others + own_exp)
    return -nll, sums.peak + log_total, entropy, sums.ahead


def token_gradient(xp, logits, label, results, upstream, options):
    """The derivatives by logits (rows, classes), given logprob, lse and entropy of the rows and the upstream gradients
    of these, None for those that have none. A label that is not among these classes is any other number.
    """
    logprob, lse, entropy = (xp.expand_dims(result, axis=1) for result in results[:3])
    dlogprob, dlse, dentropy = (0.0 if above is None else xp.expand_dims(above, axis=1) for above in upstream)
    z = capped(xp, logits, options)
    p = xp.exp(z - lse)
    log_p = xp.where(p == 0, 0.0, z - lse)
    gradient = _rules.token_grad(p, log_p, entropy, dlogprob, dlse, dentropy)
    # Of the label 1 - p is made by itself, so that it keeps its digits where the row is confident.
    own_p = xp.exp(logprob)
    own = _rules.token_grad(own_p, xp.where(own_p == 0, 0.0, logprob), entropy, 0.0, dlse, dentropy)
    own = own - dlogprob * xp.expm1(logprob)
    classes = xp.reshape(xp.arange(z.shape[1], device=z.device), (1, z.shape[1]))
    gradient = xp.where(xp.expand_dims(label, axis=1) == classes, own, gradient)
    return gradient * _rules.softcap_slope(z, options.softcap) if options.softcap else gradient


class PredictionSums(NamedTuple):
    """What the statistics of a row are made of: the largest logit and the number of its class; relative to that logit,
    or to 0 if it is -inf, the sums of the exponentials of all classes but the label and of their squares; and how many
    classes are ahead of the label.
    """

    top: Any
    prediction: Any
    others: Any
    squares: Any
    ahead: Any


def prediction_stats(xp, logits, target, keep, axis, shard=None):
    """Log-probability and rank of the label, most likely class, its probability and the Brier score of each row.

    `shard` is as in `token_stats`.
    """
    z = xp.where(xp.expand_dims(keep != 0, axis=axis), logits, 0.0)
    first = 0 if shard is None else shard.first
    at_label = _at_label(xp, target - first, keep, axis, _by_class(z, axis))
    own = xp.sum(xp.where(at_label, z, 0.0), axis=axis, keepdims=True)
    if shard is not None:
        own = shard.total(own)
    sums = _prediction_sums(xp, z, own, target - first, at_label, axis)
    if shard is not None:
        sums = sums._replace(prediction=sums.prediction + first)
        sums = _merged_predictions(xp, shard.parts_of(sums))
    return _prediction_results(xp, xp.squeeze(own, axis), sums, keep)


def _prediction_sums(xp, z, own, label, at_label, axis):
    """The `PredictionSums`; a label before or after these classes is as in `_token_sums`."""
    ahead = _rank(xp, z, own, xp.expand_dims(label, axis=axis), axis)
    if isinstance(z.shape[axis], int) and not z.shape[axis]:  # as in `row_losses`
        nothing = xp.sum(z, axis=axis)
        return PredictionSums(nothing - float("inf"), ahead, nothing, nothing, ahead)
    top = xp.max(z, axis=axis, keepdims=True)
    e = xp.exp(z - xp.where(top == -float("inf"), 0.0, top))
    rest, prediction = xp.where(at_label, 0.0, e), xp.argmax(z, axis=axis)
    squares = xp.sum(rest * rest, axis=axis)
    return PredictionSums(xp.squeeze(top, axis), prediction, xp.sum(rest, axis=axis), squares, ahead)


def _merged_predictions(xp, parts):
    """The `PredictionSums` of rows of which each shard has a part, in the shards' order."""
    top = _largest(xp, [part.top for part in parts])
    prediction, others, squares = parts[-1].prediction, 0.0, 0.0
    for part in reversed(parts):
        prediction = xp.where(part.top == top, part.prediction, prediction)
        factor = xp.where(part.top == top, 1.0, xp.exp(part.top - top))
        others, squares = others + part.others * factor, squares + part.squares * factor * factor
    return PredictionSums(top, prediction, others, squares, sum(part.ahead for part in parts))


def _prediction_results(xp, own, sums, keep):
    peak = xp.where(sums.top == -float("inf"), 0.0, sums.top)
    total = sums.others + xp.exp(own - peak)
    logprob = -label_nll(xp, own - peak, sums.others)[0]
    confidence = xp.exp(sums.top - peak) / total
    brier = _rules.brier(sums.others, sums.squares, total)
    # As in `token_stats`.
    logprob, confidence, brier = (xp.where(keep != 0, keep * value, 0.0) for value in (logprob, confidence, brier))
    rank, prediction = (xp.where(keep != 0, value, -1) for value in (sums.ahead, sums.prediction))
    return logprob, rank, prediction, confidence, brier


def as_it_is(array):
    """The `freeze` of libraries that differentiate nothing."""
    return array


def merged(xp, parts, freeze=as_it_is):
    """The sums of rows over the classes of all shards, of the `Sums` of each in the shards' order."""
    own = _largest(xp, [part.own for part in parts])
    peak, factors = _common_peak(xp, own, parts, freeze)
    others = sum(part.others * factor for part, factor in zip(parts, factors))
    own_weight = None if parts[0].own_weight is None else sum(part.own_weight for part in parts)
    if parts[0].mass is None:
        return Sums(peak, others, own, own_weight, None, None)
    dot = sum(part.dot + part.mass * (part.peak - peak) for part in parts)
    return Sums(peak, others, own, own_weight, sum(part.mass for part in parts), dot)


def merged_tokens(xp, own, parts, freeze=as_it_is):
    """As `merged`, of the arrays of `TokenSums`; `own` are the labels' logits among all classes."""
    parts = [TokenSums(*part) for part in parts]
    peak, factors = _common_peak(xp, own, parts, freeze)
    others = sum(part.others * factor for part, factor in zip(parts, factors))
    dot = sum((part.dot + part.others * (part.peak - peak)) * factor for part, factor in zip(parts, factors))
    return TokenSums(peak, others, dot, xp.astype(sum(part.ahead for part in parts), xp.int64))


def _common_peak(xp, own, parts, freeze):
    """A peak for the sums of all shards, and what each one's exponentials are multiplied by."""
    nothing = -float("inf")
    # A shard without classes, or with none but the label, has any peak and no others: its peak must not count.
    tops = [xp.where(part.others == 0, nothing, part.peak) for part in parts]
    peak = freeze(_largest(xp, [own, *tops]))
    peak = xp.where(peak == nothing, 0.0, peak)
    return peak, [xp.exp(top - peak) for top in tops]


def _largest(xp, arrays):
    found = arrays[0]
    for array in arrays[1:]:
        found = xp.maximum(found, array)
    return found
