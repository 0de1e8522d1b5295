"""What kernels that work on rows share: the addresses of rows, one walk along a row, and the sums of a chunk.

    from crossent.kernels.cpu import rows

All functions here are inlined.
"""

import math

import numpy as np

from crossent.kernels.cpu import vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import capped

# The storage of arrays whose type does not depend on that of the logits.
LABELS = np.int64(0)
DOUBLES = np.float64(0.0)

OK = -1
BLOCK = 1024  # numbers of a row that are summed before they are added to its sums: short sums keep their digits
LOOKED_AT = 64  # numbers that the first guess of a row's maximum is made from
_HEADROOM = 60.0  # exp(60) times 2**31 classes is still finite in float32


# Where rows lie.


@inline
def place_of(call, r):
    """The outer and the inner index of row r."""
    o = r // call.inner
    return o, r - o * call.inner


@inline
def offset(place, outer, inner):
    """Where a row begins in an array with these strides, in elements."""
    o, i = place
    return o * outer + i * inner


@inline
def logits_of(call, place):
    return v.at(call.storage, call.x, offset(place, call.x_outer, call.x_inner))


@inline
def label_of(call, place):
    return v.load_scalar(LABELS, call.target, offset(place, call.target_outer, call.target_inner))


@inline
def strides_of_dx(call):
    """The strides of dx: a new array's, or the logits' if dx is written over them."""
    if call.dx == call.x:
        return call.x_outer, call.x_class, call.x_inner
    return call.new_outer, call.new_class, call.new_inner


# One number of a row.


@inline
def sample_weight_of(call, r):
    """A row's sample weight, 1 if there are none."""
    return np.float64(v.load_scalar(call.compute, call.samples, r)) if call.samples != 0 else 1.0


@inline
def keep_of(call, r, label):
    """A row's sample weight, 0 if the row is ignored."""
    return 0.0 if label == call.ignore_index else sample_weight_of(call, r)


@inline
def is_no_class(call, label):
    return label < 0 or label >= call.classes


@inline
def class_weight_of(call, label):
    """A class's weight, 1 if there are none."""
    return np.float64(v.load_scalar(call.compute, call.weight, label)) if call.weight != 0 else 1.0


@inline
def load_logit(storage, address, index, cap):
    """One capped logit, rounded as the vectors round it."""
    x = np.float64(v.load_scalar(storage, address, index))
    return v.round_to(storage, cap * math.tanh(x / cap)) if cap > 0.0 else x


@inline
def in_every_lane(storage, address, index, cap):
    """One logit, capped as vectors are capped, so that equal logits stay equal."""
    return capped(storage, v.splat(storage, v.load_scalar(storage, address, index)), cap)


@inline
def finite_peak(peak):
    """The peak, or 0 if it is -inf: where every logit is -inf, any finite number serves as the peak."""
    return 0.0 if peak == -np.inf else peak


@inline
def out_of_headroom(top, peak):
    """Whether sums relative to `peak` could overflow, so that the row is passed again relative to its maximum `top`."""
    return top > peak + _HEADROOM


@inline
def scalar_nll(others, own_exp, gap):
    """log((others + own_exp) / own_exp) with own_exp = exp(-gap); keeps its digits when `others` is tiny beside it."""
    return math.log1p(others / own_exp) if others <= own_exp else math.log(others + own_exp) + gap


@inline
def first_peak(call, storage, row, label, cap):
    """A row's label's logit, as a number and in every lane; and what is at least that and the first logits' maximum."""
    own = load_logit(storage, row, label, cap)
    guess = largest(storage, row, min(call.classes, LOOKED_AT), cap)
    return own, in_every_lane(storage, row, label, cap), finite_peak(max(own, guess))


# Vectors of a row.


@inline
def passes_caches(large, address):
    """Whether to write past the caches: a large array would not stay there, and its old contents need not be read.

    This saves a third of the memory traffic: without, a step takes 18 % longer (`python -m benchmarks --case
    '2048 x 32000'`).
    """
    return large and address % v.VECTOR_BYTES == 0


@inline
def store_or_stream(storage, address, j, value, past_caches):
    if past_caches:
        v.stream(storage, address, j, value)
    else:
        v.store(storage, address, j, value)


@inline
def load_n(storage, address, j, n):
    """The vector at number j of n; what follows the last number is not read, and 0 stands for it."""
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
def fill_zero(storage, address, n):
    for j in range(0, n, v.lanes(storage)):
        v.store_masked(storage, address, j, v.first_n(storage, n - j), v.splat(storage, 0.0))


@inline
def masked_logits(storage, row, j, within, cap):
    """Capped logits in the lanes `within`, -inf in the others."""
    nothing = v.splat(storage, -np.inf)
    return v.select(within, capped(storage, v.load_masked(storage, row, j, within, nothing), cap), nothing)


@inline
def largest(storage, row, n, cap):
    """The largest of n capped logits."""
    full = n // v.lanes(storage) * v.lanes(storage)
    top = v.splat(storage, -np.inf)
    for j in range(0, full, v.lanes(storage)):
        top = v.max(capped(storage, v.load(storage, row, j), cap), top)
    if full < n:
        top = v.max(masked_logits(storage, row, full, v.first_n(storage, n - full), cap), top)
    return np.float64(v.reduce_max(top))


@inline
def walk(view, row, n, label, add_whole, add_part, sums):
    """Walk along n numbers of a row. Both functions take `sums`, add a part of the row, and return them.

        add_whole(view, row, lo, hi, earlier, sums)     adds whole vectors without the label, at most BLOCK numbers;
                                                        `earlier` says that the label comes after them
        add_part(view, row, j, within, lane, sums)      adds one vector: the one with the label, in lane `lane`, or the
                                                        last one if it is not full, where `lane` is not within

    A label outside the row, -1 if it comes before the row and n if it comes after it, is in no vector. `view` holds
    whatever else the functions need; `view.storage` says how the row is stored.
    """
    width = v.lanes(view.storage)
    full = n // width * width
    special = label // width * width if 0 <= label < full else full
    lo, hi = 0, special
    for _ in range(2):
        for block in range(lo, hi, BLOCK):
            sums = add_whole(view, row, block, min(block + BLOCK, hi), lo < label, sums)
        if hi < n:
            sums = add_part(view, row, hi, v.first_n(view.storage, n - hi), label - hi, sums)
        if hi == full:
            break
        lo, hi = special + width, full
    return sums


# Rows with labels, one after the other.


@inline
def visit(call, lo, hi, outcome, function):
    """Call function(call, storage, r, place, label) for rows lo to hi, with label -1 for ignored rows."""
    storage = call.storage
    for r in range(lo, hi):
        place = place_of(call, r)
        label = label_of(call, place)
        if label == call.ignore_index:
            label = -1
        elif is_no_class(call, label):
            return refuse(outcome, r)
        function(call, storage, r, place, label)
    return finish(outcome, NO_SUMS)


# The order of a row's classes by logit.


@inline
def ahead(storage, z, own, earlier):
    """1 where a class with logit z is ahead of the label, else 0; an equal logit is ahead if its class is `earlier`."""
    if earlier:
        return v.select(own <= z, v.splat(storage, 1.0), v.splat(storage, 0.0))
    return v.select(own < z, v.splat(storage, 1.0), v.splat(storage, 0.0))


@inline
def ahead_in_label_vector(storage, z, own, lane):
    """As `ahead`, for the vector that holds the label in this lane."""
    ties = v.select(v.first_n(storage, lane), ahead(storage, z, own, True), v.splat(storage, 0.0))
    return v.max(ties, ahead(storage, z, own, False))


# The sums of losses and of weights over a chunk of rows, each with what its additions rounded off (Neumaier 1974).

NO_SUMS = 0.0, 0.0, 0.0, 0.0


@inline
def _neumaier(total, rest, value):
    new = total + value
    rest += (total - new) + value if abs(total) >= abs(value) else (value - new) + total
    return new, rest


@inline
def added(chunk, loss, weight):
    loss_sum, loss_rest, weight_sum, weight_rest = chunk
    loss_sum, loss_rest = _neumaier(loss_sum, loss_rest, loss)
    weight_sum, weight_rest = _neumaier(weight_sum, weight_rest, weight)
    return loss_sum, loss_rest, weight_sum, weight_rest


@inline
def _total(total, rest):
    return total + rest if abs(total) < np.inf else total


@inline
def finish(outcome, chunk):
    """Write the outcome of a kernel: no row is bad, and the sums."""
    loss_sum, loss_rest, weight_sum, weight_rest = chunk
    v.store_scalar(LABELS, outcome, 0, OK)
    v.store_scalar(DOUBLES, outcome, 1, _total(loss_sum, loss_rest))
    v.store_scalar(DOUBLES, outcome, 2, _total(weight_sum, weight_rest))


@inline
def refuse(outcome, r):
    """Write the outcome of a kernel where row r is the first whose label is neither a class nor ignored."""
    v.store_scalar(LABELS, outcome, 0, r)
    v.store_scalar(DOUBLES, outcome, 1, 0.0)
    v.store_scalar(DOUBLES, outcome, 2, 0.0)
