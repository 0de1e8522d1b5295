"""A loss in two stages: the sums of rows, and what follows from them. In between the sums of other shards can be added.

`stats` holds SUMS, arrays of one number for each row, as `crossent.kernels` describes them. The rows' classes lie side
by side. A row's label counts over the classes of all shards, of which these are those from `first_class` on.
"""

from crossent.kernels.cpu import along, rows, state as st, vector as v
from crossent.kernels.cpu.along import load_kept
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.epilogue import losses_of, prepare_gradients
from crossent.kernels.cpu.rows import OK

SUMS = "peak", "others", "own", "own_weight", "mass", "dot"
PEAK, OTHERS, OWN, OWN_WEIGHT, MASS, DOT = range(len(SUMS))


@inline
def _store(call, which, r, value):
    v.store_scalar(call.compute, call.stats, which * call.rows + r, value)


@inline
def _store_sums(call, state, r, k):
    """Write the sums of row r, which is row k of `state`; those of an ignored row stay as they are."""
    place = rows.place_of(call, r)
    keep, _, label, _ = along.read_row(call, r, place)
    if keep == 0.0:
        return
    _store(call, PEAK, r, st.load_one(state, st.PEAK, k))
    _store(call, OTHERS, r, st.load_one(state, st.OTHERS, k))
    if label >= 0:
        _store(call, OWN, r, rows.load_logit(call.storage, rows.logits_of(call, place), label, call.cap))
        _store(call, OWN_WEIGHT, r, rows.class_weight_of(call, label))
    if call.has_mass != 0:
        _store(call, MASS, r, st.load_one(state, st.MASS, k))
        _store(call, DOT, r, st.load_one(state, st.DOT, k))


def sums(call, scratch, lo, hi, outcome):
    """The first stage, for rows lo to hi."""
    state, group = st.State(call.storage, call.compute, scratch, call.tile), along.group_of(call.classes)
    for first in range(lo, hi, group):
        n = min(group, hi - first)
        bad = along.make_sums(call, state, first, n, group, False, False)
        if bad != OK:
            return rows.refuse(outcome, bad)
        for k in range(n):
            _store_sums(call, state, first + k, k)
    return rows.finish(outcome, rows.NO_SUMS)


@inline
def _load_sums(call, state, first, n):
    """The inverse: the sums of n rows as `along.make_sums` writes them to the state."""
    along.clear(call, state)
    for k in range(n):
        r = first + k
        keep, bad, _, _ = along.read_row(call, r, rows.place_of(call, r))
        if bad:
            return r
        if keep == 0.0:
            continue
        peak = load_kept(call, PEAK, r)
        st.store_one(state, st.KEEP, k, keep)
        st.store_one(state, st.PEAK, k, peak)
        st.store_one(state, st.OTHERS, k, load_kept(call, OTHERS, r))
        st.store_one(state, st.OWN, k, 0.0 if call.is_soft != 0 else load_kept(call, OWN, r) - peak)
        if call.weight != 0:
            st.store_one(state, st.WEIGHT, k, 1.0 if call.is_soft != 0 else load_kept(call, OWN_WEIGHT, r))
        if call.has_mass != 0:
            st.store_one(state, st.MASS, k, load_kept(call, MASS, r))
            st.store_one(state, st.DOT, k, load_kept(call, DOT, r))
    along.own_exponentials(call, state, n)
    return OK


def losses(call, scratch, lo, hi, outcome):
    """The second stage for rows lo to hi: write losses."""
    state, chunk = st.State(call.storage, call.compute, scratch, call.tile), rows.NO_SUMS
    for first in range(lo, hi, along.TILE):
        n = min(along.TILE, hi - first)
        bad = _load_sums(call, state, first, n)
        if bad != OK:
            return rows.refuse(outcome, bad)
        total, weights = losses_of(call, state, n, first)
        chunk = rows.added(chunk, total, weights)
    return rows.finish(outcome, chunk)


def gradients(call, scratch, lo, hi, outcome):
    """The second stage for rows lo to hi: write the gradients of dloss * loss; dx may be x."""
    state = st.State(call.storage, call.compute, scratch, call.tile)
    plain = call.is_soft == 0 and call.smoothing == 0.0 and call.cap == 0.0
    for first in range(lo, hi, along.TILE):
        n = min(along.TILE, hi - first)
        bad = _load_sums(call, state, first, n)
        if bad != OK:
            return rows.refuse(outcome, bad)
        prepare_gradients(call, state, n, first, plain)
        for k in range(n):
            along.write_gradient(call, state, first + k, k, plain, False)
    return rows.finish(outcome, rows.NO_SUMS)
