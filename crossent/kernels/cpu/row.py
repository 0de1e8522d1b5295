"""The rules and the few lines of row arithmetic that every kernel shares, as code that is inlined."""

import math

import numpy as np

from crossent import _rules
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.vector import (
    VECTOR_BYTES,
    first_lanes,
    get,
    lanes,
    larger,
    lift,
    load,
    load_some,
    put,
    rounded,
    select,
    store,
    store_some,
    stream,
)

brier = inline(_rules.brier)
class_grad = inline(_rules.class_grad)
entropy_of = inline(_rules.entropy_of)
label_grad = inline(_rules.label_grad)
label_weight = inline(_rules.label_weight)
lse_slope = inline(_rules.lse_slope)
row_loss = inline(_rules.row_loss)
softcap_slope = inline(_rules.softcap_slope)
target_grad = inline(_rules.target_grad)
target_weight = inline(_rules.target_weight)
token_grad = inline(_rules.token_grad)

# How arrays are stored whose type does not depend on that of the logits.
LABELS = np.int64(0)
DOUBLES = np.float64(0.0)

OK = -1


@inline
def sample_weight_of(like, samples, row):
    """A row's sample weight, 1 where there are none."""
    return np.float64(get(like, samples, row)) if samples != 0 else 1.0


@inline
def upstream_of(like, dloss, row, scale):
    """What a row's gradient is multiplied by."""
    return scale * get(like, dloss, row) if dloss != 0 else scale


@inline
def strides_of_dx(call):
    """Those of a new array, or of the logits where these are written over."""
    if call.dx == call.x:
        return call.x_outer, call.x_class, call.x_inner
    return call.new_outer, call.new_class, call.new_inner


@inline
def add(total, rest, value):
    """Neumaier's sum: `rest` collects what the additions to `total` rounded off."""
    new = total + value
    rest += (total - new) + value if abs(total) >= abs(value) else (value - new) + total
    return new, rest


@inline
def added(total, rest):
    return total + rest if abs(total) < np.inf else total


@inline
def class_weight_of(like, weight, label):
    return np.float64(get(like, weight, label)) if weight != 0 else 1.0


@inline
def negative_log(others, own_exp, gap):
    """log((others + own_exp) / own_exp) with own_exp = exp(-gap), exact when the others vanish beside it."""
    return math.log1p(others / own_exp) if others <= own_exp else math.log(others + own_exp) + gap


@inline
def number(like, address, index, cap):
    """One capped logit, rounded as the vectors round it."""
    x = np.float64(get(like, address, index))
    return rounded(like, cap * math.tanh(x / cap)) if cap > 0.0 else x


@inline
def finite_peak(peak):
    """Where every logit is -inf any finite number serves as their peak."""
    return 0.0 if peak == -np.inf else peak


@inline
def exponential(own, peak):
    return 1.0 if own == peak else math.exp(own - peak)


@inline
def passes_caches(large, address):
    """Whether to write a row past the caches: it would not stay there, and the old contents need not be read."""
    return large and address % VECTOR_BYTES == 0


@inline
def ahead(like, z, own, earlier):
    """1 where a class with logit z comes before the label in the order by logit, 0 elsewhere; of equals the `earlier`
    class comes first.
    """
    if earlier:
        return select(own <= z, lift(like, 1.0), lift(like, 0.0))
    return select(own < z, lift(like, 1.0), lift(like, 0.0))


@inline
def ahead_in_label_vector(like, z, own, lane):
    """As `ahead`, for the vector that holds the label in this lane."""
    ties = select(first_lanes(like, lane), ahead(like, z, own, True), lift(like, 0.0))
    return larger(ties, ahead(like, z, own, False))


@inline
def write(like, address, j, value, past_caches):
    if past_caches:
        stream(like, address, j, value)
    else:
        store(like, address, j, value)


@inline
def load_within(like, address, j, n):
    """The vector that starts at number j of n; what follows the last one is not read."""
    if j + lanes(like) <= n:
        return load(like, address, j)
    return load_some(like, address, j, first_lanes(like, n - j), lift(like, 0.0))


@inline
def write_within(like, address, j, n, value, past_caches):
    if j + lanes(like) <= n:
        write(like, address, j, value, past_caches)
    else:
        store_some(like, address, j, first_lanes(like, n - j), value)


@inline
def finish(sums, bad, losses, weights):
    """What a kernel says of its chunk."""
    put(LABELS, sums, 0, bad)
    put(DOUBLES, sums, 1, losses)
    put(DOUBLES, sums, 2, weights)
