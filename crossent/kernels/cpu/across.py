"""Rows that lie side by side, with a stride between classes (images: batch x classes x pixels): one lane for each row.
Short rows whose classes lie side by side are first transposed into the buffer, so that a lane holds a row here too.

A tile of neighbouring rows is passed class by class, in long runs of memory. The sums and weights of its rows lie in a
`State`, which follows a buffer of tile x classes numbers. As in `along`, exponentials are relative to a peak that is
known beforehand: here the logit of the first class. A tile whose sums come out too large is passed again, relative to
its maxima. A label is only compared with class numbers, never used as an index, so a bad label cannot reach memory.
"""

from collections import namedtuple

import numpy as np

from crossent.kernels.cpu import rows, rules, state as st, vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.epilogue import losses_of, prepare_gradients
from crossent.kernels.cpu.math import capped, exp, through_cap
from crossent.kernels.cpu.rows import LABELS, OK

# Classes in one pass over the rows: the rows' state is read and written once for all of them. One by one they take 13 %
# longer (`python -m benchmarks --case '4 x 19 x 512 x 512'`).
_GROUP = 8
_BLOCK = 64  # classes summed before they are added to the total: short sums keep their digits
_LARGEST = 80.0  # above it exp comes close to overflow; sums of numbers up to e**60 are safe for 2**31 classes
_SAFE_SUM, _SAFE_OWN = 1e26, 60.0
# n rows from row number `row` on: the addresses of their first logits and targets, and that of the buffer.
_Tile = namedtuple("_Tile", "n row logits target buffer")


def tile_rows(inner, classes, transposed):
    """Rows in a tile: long runs of memory for few classes; for many a buffer of at most 256 KB, 16 KB if transposed.

    A plane of the buffer has an odd number of cache lines: lines a power of two apart evict each other from the cache.
    With 16 lines softmax takes 3 % longer (`python -m benchmarks --case 'softmax, 4 x 19'`).
    """
    most = max(16, min(240, (4096 if transposed else 65536) // max(classes, 1) // 32 * 32 - 16))
    return min(most, -(-inner // 16) * 16)


def scratch_numbers(classes, tile):
    """How many numbers of the arithmetic's type a call needs as scratch memory."""
    return tile * (classes + st.ALL_ARRAYS)


# Tiles.


@inline
def tile_place(call, unit):
    """For tile number `unit`: its outer index, the inner index of its first row, and how many rows it has."""
    tiles = (call.inner + call.tile - 1) // call.tile
    o, i = unit // tiles, unit % tiles * call.tile
    return o, i, min(call.tile, call.inner - i)


@inline
def _tile_of(call, scratch, unit):
    o, i, n = tile_place(call, unit)
    logits = v.at(call.storage, call.x, o * call.x_outer + i * call.x_inner)
    if call.is_soft != 0:
        target = v.at(call.storage, call.target, o * call.target_outer + i)
    else:
        target = v.at(LABELS, call.target, o * call.target_outer + i)
    return _Tile(n, o * call.inner + i, logits, target, scratch)


@inline
def _buffer(call, tile):
    return v.Matrix(call.compute, tile.buffer, call.tile)


@inline
def _plane(planes, c):
    """The address of class c in a `Matrix` that has the numbers of neighbouring rows, a plane for each class."""
    return v.at(planes.like, planes.address, c * planes.stride)


# The buffer.


@inline
def _copy_logits(call, tile):
    """Copy the capped logits of a tile to the buffer; lanes after the last row get zeros."""
    storage, compute, classes, cap, n = call.storage, call.compute, call.classes, call.cap, tile.n
    buffer, x_class, x_inner, step = tile.buffer, call.x_class, call.x_inner, call.tile
    width, zero = v.lanes(storage), v.splat(storage, 0.0)
    if x_inner == 1:
        for c in range(classes):
            plane, row = v.at(storage, tile.logits, c * x_class), v.at(compute, buffer, c * step)
            for j in range(0, n, width):
                v.prefetch(storage, plane, j)
                v.store(compute, row, j, capped(storage, rows.load_n(storage, plane, j, n), cap))
        return
    for c in range(classes):
        v.store(compute, buffer, c * step + (n - 1) // width * width, zero)
    for j in range(0, n, width):
        for c in range(0, classes, width):
            source = v.Matrix(storage, v.at(storage, tile.logits, j * x_inner + c), x_inner)
            target = v.Matrix(compute, v.at(compute, buffer, c * step + j), step)
            v.transpose(source, target, min(width, n - j), min(width, classes - c))
    if cap > 0.0:
        for c in range(classes):
            for j in range(0, n, width):
                v.store(compute, buffer, c * step + j, capped(storage, v.load(compute, buffer, c * step + j), cap))


@inline
def _write_back(call, tile, result, result_inner, past_caches):
    """Copy a tile from the buffer to the result."""
    storage, compute, classes, n, step = call.storage, call.compute, call.classes, tile.n, call.tile
    width = v.lanes(storage)
    if result_inner == 1:
        for c in range(classes):
            plane, row = _plane(result, c), v.at(compute, tile.buffer, c * step)
            streams = rows.passes_caches(past_caches, plane)
            for j in range(0, n, width):
                rows.store_n(storage, plane, j, n, v.load(compute, row, j), streams)
        return
    for j in range(0, n, width):
        for c in range(0, classes, width):
            source = v.Matrix(compute, v.at(compute, tile.buffer, c * step + j), step)
            target = v.Matrix(storage, v.at(storage, result.address, j * result_inner + c), result_inner)
            v.transpose(source, target, min(width, classes - c), min(width, n - j))


# What is known of the rows.


@inline
def _own_weights(call, labels):
    """The class weight of each row's label, 1 for rows without a label."""
    own = v.splat(call.storage, 1.0)
    for c in range(call.classes):
        weight = v.splat(call.storage, v.load_scalar(call.compute, call.weight, c))
        own = v.select(v.labels_eq(labels, c), weight, own)
    return own


@inline
def _prepare(call, tile, state):
    """Write each row's weight and label (-1 for none) to the state. Returns whether some label is bad."""
    storage, compute, samples, classes = call.storage, call.compute, call.samples, call.classes
    zero, labels_of = v.splat(storage, 0.0), st.array(state, st.LABEL)
    bad = False
    for j in range(0, tile.n, v.lanes(storage)):
        within = v.first_n(storage, tile.n - j)
        keep = v.select(within, v.splat(storage, 1.0), zero)
        if samples != 0:
            keep = v.load_masked(compute, samples, tile.row + j, within, zero)
        if call.is_soft != 0:
            v.store_narrow_labels(storage, labels_of, j, v.no_labels(storage))
        else:
            v.prefetch(LABELS, tile.target, j)
            labels = v.load_labels(storage, tile.target, j, within)
            keep = v.select(v.labels_eq(labels, call.ignore_index), zero, keep)
            kept, valid = keep != zero, v.labels_below(labels, classes)
            v.store_narrow_labels(storage, labels_of, j, v.narrow_labels(storage, labels, kept & valid))
            bad = bad or v.any_true(v.and_not(kept, valid))
        st.store(state, st.KEEP, j, keep)
        if call.weight != 0:
            st.store(state, st.WEIGHT, j, _own_weights(call, st.load_labels(state, j)))
    return bad


@inline
def _first_bad(call, tile):
    for j in range(tile.n):
        label = v.load_scalar(LABELS, tile.target, j)
        if rows.keep_of(call, tile.row + j, label) != 0.0 and rows.is_no_class(call, label):
            return tile.row + j
    return OK


# Sums over the classes.


@inline
def _add_classes(planes, tile, state, lo, hi, j, whole, keeps):
    """Add classes lo to hi of the rows at j. A label's logit and exponential are written to the state; the sum of the
    other classes' exponentials is returned.
    """
    like, compute, n = planes.like, state.compute, tile.n
    zero, within = v.splat(like, 0.0), v.first_n(like, n - j)
    labels, peak = st.load_labels(state, j), st.load(state, st.PEAK, j)
    part = st.load(state, st.PART, j) if lo % _BLOCK else zero
    own = st.load(state, st.OWN, j) if lo else zero
    own_exp = st.load(state, st.OWN_EXP, j) if lo else zero
    for c in range(lo, hi):
        plane = _plane(planes, c)
        v.prefetch(like, plane, j)
        z = (v.load(like, plane, j) if whole else v.load_masked(like, plane, j, within, zero)) - peak
        e = exp(like, v.select(z > _LARGEST, v.splat(like, _LARGEST), z))
        if keeps:
            v.store(compute, tile.buffer, c * state.rows + j, e)
        hit = v.labels_eq(labels, c)
        part = part + v.select(hit, zero, e)
        own = own + v.select(hit, z, zero)
        own_exp = own_exp + v.select(hit, e, zero)
    st.store(state, st.OWN, j, own)
    st.store(state, st.OWN_EXP, j, own_exp)
    return part


@inline
def _accumulate(planes, tile, state, classes, keeps):
    """Write each row's sum of exp(z - peak) over all classes but the label, and the label's own z - peak and
    exponential. `keeps` leaves all exponentials in the buffer.
    """
    width = v.lanes(planes.like)
    for lo in range(0, classes, _GROUP):
        hi = min(lo + _GROUP, classes)
        for j in range(0, tile.n, width):
            if j + width <= tile.n:
                part = _add_classes(planes, tile, state, lo, hi, j, True, keeps)
            else:
                part = _add_classes(planes, tile, state, lo, hi, j, False, keeps)
            if hi % _BLOCK and hi < classes:
                st.store(state, st.PART, j, part)
            else:
                st.store(state, st.OTHERS, j, part + st.load(state, st.OTHERS, j) if hi > _BLOCK else part)


@inline
def _maximum(call, tile, buffered, j, top):
    """The maximum of `top` and of all classes, for the rows at j."""
    for c in range(call.classes):
        if buffered:
            top = v.max(v.load(call.compute, tile.buffer, c * call.tile + j), top)
        else:
            plane = v.at(call.storage, tile.logits, c * call.x_class)
            top = v.max(rows.load_n(call.storage, plane, j, tile.n), top)
    return top


@inline
def _write_peaks(call, tile, state, buffered, again):
    """Write the peaks: the first class's logits; if `again`, the maximum for rows whose sums came out too large."""
    storage, n = call.storage, tile.n
    zero, nothing = v.splat(storage, 0.0), v.splat(storage, -np.inf)
    for j in range(0, n, v.lanes(storage)):
        if buffered:
            peak = v.load(call.compute, tile.buffer, j)
        elif call.classes == 0:
            peak = zero
        else:
            peak = rows.load_n(storage, tile.logits, j, n)
        peak = v.select(v.eq(peak, nothing), zero, peak)
        if again:  # only for rows that need it: the rows beside them keep their bits
            top = _maximum(call, tile, buffered, j, peak)
            own, others = st.load(state, st.OWN, j), st.load(state, st.OTHERS, j)
            peak = v.select(own > _SAFE_OWN, top, v.select(others > _SAFE_SUM, top, peak))
        st.store(state, st.PEAK, j, peak)


@inline
def _sums(call, tile, state, buffered, keeps):
    """As `_accumulate`, relative to peaks that keep every sum in range. `buffered`: copy the logits to the buffer."""
    for attempt in range(2):
        if buffered and (keeps or not attempt):
            _copy_logits(call, tile)
        _write_peaks(call, tile, state, buffered, attempt > 0)
        if buffered:
            _accumulate(_buffer(call, tile), tile, state, call.classes, keeps)
        else:
            _accumulate(v.Matrix(state.storage, tile.logits, call.x_class), tile, state, call.classes, keeps)
        large = False
        for j in range(0, tile.n, v.lanes(call.storage)):
            own, others = st.load(state, st.OWN, j), st.load(state, st.OTHERS, j)
            large = large or v.any_true(others > _SAFE_SUM) or v.any_true(own > _SAFE_OWN)
        if not large:
            break


@inline
def _target_sums(call, tile, state):
    """Write the sums over all classes of q and of q * (z - peak), for keep = 1."""
    storage, classes, is_soft = call.storage, call.classes, call.is_soft != 0
    zero = v.splat(storage, 0.0)
    for j in range(0, tile.n, v.lanes(storage)):
        within = v.first_n(storage, tile.n - j)
        peak = st.load(state, st.PEAK, j)
        mass, dot = zero, zero
        for block in range(0, classes, _BLOCK):
            part_mass, part_dot = zero, zero
            for c in range(block, min(block + _BLOCK, classes)):
                z = v.load(call.compute, tile.buffer, c * state.rows + j) - peak
                t = v.load_masked(storage, tile.target, c * call.target_class + j, within, zero) if is_soft else zero
                q = rules.target_weight(t, rows.class_weight_of(call, c), 1.0, call.smoothing, np.float64(classes))
                part_mass = part_mass + q
                part_dot = part_dot + v.select(v.eq(q, zero), zero, q * z)
            mass, dot = mass + part_mass, dot + part_dot
        st.store(state, st.MASS, j, mass)
        st.store(state, st.DOT, j, dot)


@inline
def _is_plain(call):
    """Whether a class other than the label counts by its exponential alone: no soft targets, no smoothing, no cap."""
    return call.is_soft == 0 and call.smoothing == 0.0 and call.cap == 0.0


def forward(call, scratch, lo, hi, outcome):
    """Tiles lo to hi: write losses."""
    state = st.State(call.storage, call.compute, v.at(call.compute, scratch, call.tile * call.classes), call.tile)
    dense = call.is_soft != 0 or call.smoothing > 0.0
    buffered, chunk = not _is_plain(call) or call.x_inner != 1, rows.NO_SUMS
    for unit in range(lo, hi):
        tile = _tile_of(call, scratch, unit)
        if _prepare(call, tile, state):
            return rows.refuse(outcome, _first_bad(call, tile))
        _sums(call, tile, state, buffered, False)
        if dense:
            _target_sums(call, tile, state)
        losses, weights = losses_of(call, state, tile.n, tile.row)
        chunk = rows.added(chunk, losses, weights)
    return rows.finish(outcome, chunk)


# Gradients.


@inline
def _plain_grad(like, state, e, j, c):
    zero = v.splat(like, 0.0)
    d = rules.class_grad(e, zero, st.load(state, st.FACTOR, j))
    d = v.select(v.labels_eq(st.load_labels(state, j), c), st.load(state, st.LABEL_GRAD, j), d)
    return v.select(st.load(state, st.KEEP, j) != zero, d, zero)


@inline
def _write_plain(result, tile, state, classes, past_caches):
    """Write the gradient from exponentials in the buffer: scale them, and put in the labels' entries."""
    like, width, n = result.like, v.lanes(result.like), tile.n
    full = n // width * width
    for c in range(classes):
        plane, row = _plane(result, c), v.at(state.compute, tile.buffer, c * state.rows)
        streams = rows.passes_caches(past_caches, plane)
        for j in range(0, full, width):
            d = _plain_grad(like, state, v.load(state.compute, row, j), j, c)
            rows.store_or_stream(like, plane, j, d, streams)
        if full < n:
            d = _plain_grad(like, state, v.load(state.compute, row, full), full, c)
            v.store_masked(like, plane, full, v.first_n(like, n - full), d)


@inline
def _differentiate(call, tile, state, dsoft):
    """Turn the logits in the buffer into the gradient, for any options; `dsoft` gets the targets', if it is not 0."""
    storage, compute, classes, smoothing, cap = call.storage, call.compute, call.classes, call.smoothing, call.cap
    is_soft, target_class, new_class, zero = call.is_soft != 0, call.target_class, call.new_class, v.splat(storage, 0.0)
    for c in range(classes):
        w, row = rows.class_weight_of(call, c), v.at(compute, tile.buffer, c * state.rows)
        for j in range(0, tile.n, v.lanes(storage)):
            within = v.first_n(storage, tile.n - j)
            logits, kept = v.load(compute, row, j), st.load(state, st.KEEP, j) != zero
            z, scaled, q = logits - st.load(state, st.PEAK, j), st.load(state, st.SCALED, j), zero
            if is_soft or smoothing > 0.0:
                t = v.load_masked(storage, tile.target, c * target_class + j, within, zero) if is_soft else zero
                q = rules.target_weight(t, w, scaled, smoothing, np.float64(classes))
            d = rules.class_grad(exp(storage, z), q, st.load(state, st.FACTOR, j))
            d = v.select(v.labels_eq(st.load_labels(state, j), c), st.load(state, st.LABEL_GRAD, j), d)
            v.store(compute, row, j, v.select(kept, through_cap(d, logits, cap), zero))
            if dsoft != 0:
                dt = rules.target_grad(st.load(state, st.COST, j), z, w, scaled, smoothing)
                v.store_masked(storage, dsoft, c * new_class + j, within, v.select(kept, dt, zero))


def backward(call, scratch, lo, hi, outcome):
    """Tiles lo to hi: write the gradient of scale * dloss * loss; dx may be x. `with_loss` asks for the losses too."""
    state = st.State(call.storage, call.compute, v.at(call.compute, scratch, call.tile * call.classes), call.tile)
    dense, plain = call.is_soft != 0 or call.smoothing > 0.0, _is_plain(call)
    buffered, chunk = not plain or call.x_inner != 1, rows.NO_SUMS
    past_caches, (dx_outer, dx_class, dx_inner) = call.large != 0 and call.dx != call.x, rows.strides_of_dx(call)
    for unit in range(lo, hi):
        tile = _tile_of(call, scratch, unit)
        if _prepare(call, tile, state):
            return rows.refuse(outcome, _first_bad(call, tile))
        _sums(call, tile, state, buffered, plain)
        if call.is_soft != 0 or (dense and call.with_loss != 0):
            _target_sums(call, tile, state)
        if call.with_loss != 0:
            losses, weights = losses_of(call, state, tile.n, tile.row)
            chunk = rows.added(chunk, losses, weights)
        prepare_gradients(call, state, tile.n, tile.row, plain)
        o, i, _ = tile_place(call, unit)
        result = v.Matrix(call.storage, v.at(call.storage, call.dx, o * dx_outer + i * dx_inner), dx_class)
        if not plain:
            dsoft = v.at(call.storage, call.dtarget, o * call.new_outer + i) if call.dtarget != 0 else 0
            _differentiate(call, tile, state, dsoft)
        elif buffered:
            _write_plain(_buffer(call, tile), tile, state, call.classes, False)
        else:
            _write_plain(result, tile, state, call.classes, past_caches)
        if buffered:
            _write_back(call, tile, result, dx_inner, past_caches)
    return rows.finish(outcome, chunk)
