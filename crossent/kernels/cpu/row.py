"""The rules and the few lines of row arithmetic that every kernel shares, as code that is inlined."""

import math

import numpy as np

from crossent.kernels.cpu import vector as v
from crossent.kernels.cpu.compile import inline

# How arrays are stored whose type does not depend on that of the logits.
LABELS = np.int64(0)
DOUBLES = np.float64(0.0)

OK = -1


@inline
def sample_weight_of(compute, samples, row):
    """A row's sample weight, 1 where there are none."""
    return np.float64(v.load_scalar(compute, samples, row)) if samples != 0 else 1.0


@inline
def upstream_of(compute, dloss, row, scale):
    """What a row's gradient is multiplied by."""
    return scale * v.load_scalar(compute, dloss, row) if dloss != 0 else scale


@inline
def strides_of_dx(call):
    """Those of a new array, or of the logits where these are written over."""
    if call.dx == call.x:
        return call.x_outer, call.x_class, call.x_inner
    return call.new_outer, call.new_class, call.new_inner


@inline
def neumaier_add(total, rest, value):
    """Neumaier's sum: `rest` collects what the additions to `total` rounded off."""
    new = total + value
    rest += (total - new) + value if abs(total) >= abs(value) else (value - new) + total
    return new, rest


@inline
def neumaier_total(total, rest):
    return total + rest if abs(total) < np.inf else total


@inline
def class_weight_of(compute, weight, label):
    return np.float64(v.load_scalar(compute, weight, label)) if weight != 0 else 1.0


@inline
def scalar_nll(others, own_exp, gap):
    """log((others + own_exp) / own_exp) with own_exp = exp(-gap), exact when the others vanish beside it."""
    return math.log1p(others / own_exp) if others <= own_exp else math.log(others + own_exp) + gap


@inline
def load_logit(storage, address, index, cap):
    """One capped logit, rounded as the vectors round it."""
    x = np.float64(v.load_scalar(storage, address, index))
    return v.round_to(storage, cap * math.tanh(x / cap)) if cap > 0.0 else x


@inline
def finite_peak(peak):
    """Where every logit is -inf any finite number serves as their peak."""
    return 0.0 if peak == -np.inf else peak


@inline
def exp_relative(own, peak):
    return 1.0 if own == peak else math.exp(own - peak)


@inline
def passes_caches(large, address):
    """Whether to write a row past the caches: it would not stay there, and the old contents need not be read."""
    return large and address % v.VECTOR_BYTES == 0


@inline
def ahead(storage, z, own, earlier):
    """1 where a class with logit z comes before the label in the order by logit, 0 elsewhere; of equals the `earlier`
    class comes first.
    """
    if earlier:
        return v.select(own <= z, v.splat(storage, 1.0), v.splat(storage, 0.0))
    return v.select(own < z, v.splat(storage, 1.0), v.splat(storage, 0.0))


@inline
def ahead_in_label_vector(storage, z, own, lane):
    """As `ahead`, for the vector that holds the label in this lane."""
    ties = v.select(v.first_n(storage, lane), ahead(storage, z, own, True), v.splat(storage, 0.0))
    return v.max(ties, ahead(storage, z, own, False))


@inline
def store_or_stream(storage, address, j, value, past_caches):
    if past_caches:
        v.stream(storage, address, j, value)
    else:
        v.store(storage, address, j, value)


@inline
def load_n(storage, address, j, n):
    """The vector that starts at number j of n; what follows the last one is not read."""
    if j + v.lanes(storage) <= n:
        return v.load(storage, address, j)
    return v.load_masked(storage, address, j, v.first_n(storage, n - j), v.splat(storage, 0.0))


@inline
def store_n(storage, address, j, n, value, past_caches):
    if j + v.lanes(storage) <= n:
        store_or_stream(storage, address, j, value, past_caches)
    else:
        v.store_masked(storage, address, j, v.first_n(storage, n - j), value)


@inline
def finish(sums, bad, losses, weights):
    """What a kernel says of its chunk."""
    v.store_scalar(LABELS, sums, 0, bad)
    v.store_scalar(DOUBLES, sums, 1, losses)
    v.store_scalar(DOUBLES, sums, 2, weights)
