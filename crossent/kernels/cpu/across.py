"""Rows that lie side by side, their classes a stride apart (images: batch x classes x pixels): a lane for each row.
Short rows whose classes lie side by side are turned in the buffer, so that a vector holds numbers of as many rows.

A tile of neighbouring rows is passed class by class, in long runs of memory. What belongs to a row lies in arrays
behind a buffer of tile x classes numbers, and every pass is short, so that the processor overlaps several vectors. As
in `along` the exponentials are taken relative to a peak known beforehand, here the first class's logit, and a tile
whose sums come out too large is passed again relative to its maxima. A label is only ever compared with class numbers,
so that a bad one cannot reach memory.
"""

import numpy as np

from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.epilogue import (
    ARRAYS,
    COST,
    DOT,
    FACTOR,
    KEEP,
    LABEL_GRAD,
    MASS,
    OTHERS,
    OWN,
    OWN_EXP,
    PEAK,
    WEIGHT,
    array,
    losses_of,
    prepare_gradients,
)
from crossent.kernels.cpu.math import capped, exp
from crossent.kernels.cpu.row import (
    LABELS,
    OK,
    add,
    added,
    class_grad,
    finish,
    load_within,
    passes_caches,
    sample_weight_of,
    softcap_slope,
    strides_of_dx,
    target_grad,
    target_weight,
    write,
    write_within,
)
from crossent.kernels.cpu.vector import (
    and_not,
    any_lane,
    at,
    first_lanes,
    get,
    labels_are,
    labels_below,
    lanes,
    larger,
    lift,
    load,
    load_labels,
    load_some,
    narrow_labels,
    no_labels,
    prefetch,
    same,
    scratch_labels,
    select,
    store,
    store_labels,
    store_some,
    turn,
)

_GROUP = 8  # classes passed together, to read and write what belongs to a row less often
_BLOCK = 64  # classes summed before they are added to the total: short sums keep their digits
_LARGEST = 80.0  # beyond it exp comes close to overflowing; sums of what is below e**60 are safe for 2**31 classes
_SAFE_SUM, _SAFE_OWN = 1e26, 60.0
_LABEL, _PART = ARRAYS, ARRAYS + 1


def tile_rows(inner, classes, turned):
    """Rows of a tile: long runs of memory for few classes, a buffer of at most 256 KB for many, 16 KB if turned.

    An odd number of cache lines, since lines a power of two apart push each other out of the cache.
    """
    most = max(16, min(240, (4096 if turned else 65536) // max(classes, 1) // 32 * 32 - 16))
    return min(most, -(-inner // 16) * 16)


def scratch_numbers(classes, tile):
    """How many numbers of the arithmetic's type a call needs as scratch memory."""
    return tile * (classes + ARRAYS + 2)


@inline
def _array(like, scratch, tile, classes, which):
    return array(like, at(like, scratch, tile * classes), tile, which)


@inline
def _copy_logits(like, weight_like, x, x_class, x_inner, scratch, tile, n, classes, cap):
    """The capped logits of a tile into the buffer, zeros in the lanes beyond the last row."""
    width, zero = lanes(like), lift(like, 0.0)
    if x_inner == 1:
        for c in range(classes):
            plane, row = at(like, x, c * x_class), at(weight_like, scratch, c * tile)
            for j in range(0, n, width):
                prefetch(like, plane, j)
                store(weight_like, row, j, capped(like, load_within(like, plane, j, n), cap))
        return
    for c in range(classes):
        store(weight_like, scratch, c * tile + (n - 1) // width * width, zero)
    for j in range(0, n, width):
        for c in range(0, classes, width):
            turn(like, at(like, x, j * x_inner + c), x_inner, weight_like, at(weight_like, scratch, c * tile + j), tile,
                 min(width, n - j), min(width, classes - c))  # fmt: skip
    if cap > 0.0:
        for c in range(classes):
            for j in range(0, n, width):
                store(weight_like, scratch, c * tile + j, capped(like, load(weight_like, scratch, c * tile + j), cap))


@inline
def _write_back(like, weight_like, scratch, tile, n, classes, dx, dx_class, dx_inner, large):
    """A tile from the buffer to memory."""
    if dx_inner == 1:
        for c in range(classes):
            plane, row = at(like, dx, c * dx_class), at(weight_like, scratch, c * tile)
            past_caches = passes_caches(large, plane)
            for j in range(0, n, lanes(like)):
                write_within(like, plane, j, n, load(weight_like, row, j), past_caches)
        return
    width = lanes(like)
    for j in range(0, n, width):
        for c in range(0, classes, width):
            turn(weight_like, at(weight_like, scratch, c * tile + j), tile, like, at(like, dx, j * dx_inner + c),
                 dx_inner, min(width, classes - c), min(width, n - j))  # fmt: skip


@inline
def _own_weights(like, weight_like, weight, classes, labels):
    """The class weight of each row's label, 1 for rows without."""
    own = lift(like, 1.0)
    for c in range(classes):
        own = select(labels_are(labels, c), lift(like, get(weight_like, weight, c)), own)
    return own


@inline
def _prepare(like, weight_like, scratch, tile, target, first, is_soft, weight, samples, row, n, classes, ignore_index):
    """Write what each row counts and its label, -1 where there is none; whether a label is bad."""
    zero = lift(like, 0.0)
    labels_of = _array(weight_like, scratch, tile, classes, _LABEL)
    keeps = _array(weight_like, scratch, tile, classes, KEEP)
    bad = False
    for j in range(0, n, lanes(like)):
        within = first_lanes(like, n - j)
        keep = select(within, lift(like, 1.0), zero)
        if samples != 0:
            keep = load_some(weight_like, samples, row + j, within, zero)
        if is_soft:
            store_labels(like, labels_of, j, no_labels(like))
        else:
            prefetch(LABELS, target, first + j)
            labels = load_labels(like, target, first + j, within)
            keep = select(labels_are(labels, ignore_index), zero, keep)
            kept, valid = keep != zero, labels_below(labels, classes)
            store_labels(like, labels_of, j, narrow_labels(like, labels, kept & valid))
            bad = bad or any_lane(and_not(kept, valid))
        store(weight_like, keeps, j, keep)
        if weight != 0:
            own = _own_weights(like, weight_like, weight, classes, scratch_labels(like, labels_of, j))
            store(weight_like, _array(weight_like, scratch, tile, classes, WEIGHT), j, own)
    return bad


@inline
def _first_bad(weight_like, target, first, samples, row, n, classes, ignore_index):
    for j in range(n):
        label = get(LABELS, target, first + j)
        if label != ignore_index and sample_weight_of(weight_like, samples, row + j) != 0.0:
            if label < 0 or label >= classes:
                return row + j
    return OK


@inline
def _add_classes(like, weight_like, x, x_class, scratch, tile, lo, hi, j, within, whole, labels, peak, part, own,
                 own_exp, keep_exponentials):  # fmt: skip
    """Add the classes lo to hi of the rows at j to the sum of the others' exponentials, or to what is the label's."""
    zero = lift(like, 0.0)
    for c in range(lo, hi):
        plane = at(like, x, c * x_class)
        prefetch(like, plane, j)
        z = (load(like, plane, j) if whole else load_some(like, plane, j, within, zero)) - peak
        e = exp(like, select(z > _LARGEST, lift(like, _LARGEST), z))
        if keep_exponentials:
            store(weight_like, scratch, c * tile + j, e)
        hit = labels_are(labels, c)
        part = part + select(hit, zero, e)
        own = own + select(hit, z, zero)
        own_exp = own_exp + select(hit, e, zero)
    return part, own, own_exp


@inline
def _accumulate(like, weight_like, x, x_class, scratch, tile, n, classes, keep_exponentials):
    """Write the sum of exp(z - peak) over the classes but the label, and the label's z - peak and exponential."""
    zero, width = lift(like, 0.0), lanes(like)
    labels_of = _array(weight_like, scratch, tile, classes, _LABEL)
    peaks = _array(weight_like, scratch, tile, classes, PEAK)
    parts = _array(weight_like, scratch, tile, classes, _PART)
    others = _array(weight_like, scratch, tile, classes, OTHERS)
    owns = _array(weight_like, scratch, tile, classes, OWN)
    own_exps = _array(weight_like, scratch, tile, classes, OWN_EXP)
    for lo in range(0, classes, _GROUP):
        hi = min(lo + _GROUP, classes)
        for j in range(0, n, width):
            labels, peak = scratch_labels(like, labels_of, j), load(weight_like, peaks, j)
            part = load(weight_like, parts, j) if lo % _BLOCK else zero
            own = load(weight_like, owns, j) if lo else zero
            own_exp = load(weight_like, own_exps, j) if lo else zero
            within = first_lanes(like, n - j)
            if j + width <= n:
                part, own, own_exp = _add_classes(
                    like, weight_like, x, x_class, scratch, tile, lo, hi, j, within, True, labels, peak, part, own,
                    own_exp, keep_exponentials,
                )  # fmt: skip
            else:
                part, own, own_exp = _add_classes(
                    like, weight_like, x, x_class, scratch, tile, lo, hi, j, within, False, labels, peak, part, own,
                    own_exp, keep_exponentials,
                )  # fmt: skip
            store(weight_like, owns, j, own)
            store(weight_like, own_exps, j, own_exp)
            if hi % _BLOCK and hi < classes:
                store(weight_like, parts, j, part)
            else:
                store(weight_like, others, j, part + load(weight_like, others, j) if hi > _BLOCK else part)


@inline
def _sums(like, weight_like, x, x_class, x_inner, scratch, tile, n, classes, cap, buffered, keep_exponentials):
    """As `_accumulate`, relative to peaks that keep every sum in range; `buffered` if the logits are to be copied."""
    width, nothing, zero = lanes(like), lift(like, -np.inf), lift(like, 0.0)
    peaks = _array(weight_like, scratch, tile, classes, PEAK)
    others = _array(weight_like, scratch, tile, classes, OTHERS)
    owns = _array(weight_like, scratch, tile, classes, OWN)
    for attempt in range(2):
        if buffered and (keep_exponentials or not attempt):
            _copy_logits(like, weight_like, x, x_class, x_inner, scratch, tile, n, classes, cap)
        for j in range(0, n, width):
            if buffered:
                peak = load(weight_like, scratch, j)
            elif classes == 0:
                peak = zero
            else:
                peak = load_within(like, x, j, n)
            peak = select(same(peak, nothing), zero, peak)
            if attempt:
                top = peak
                for c in range(classes):
                    if buffered:
                        top = larger(load(weight_like, scratch, c * tile + j), top)
                    else:
                        top = larger(load_within(like, at(like, x, c * x_class), j, n), top)
                # Only in rows that need it: those beside them keep their bits.
                own, other = load(weight_like, owns, j), load(weight_like, others, j)
                peak = select(own > _SAFE_OWN, top, select(other > _SAFE_SUM, top, peak))
            store(weight_like, peaks, j, peak)
        if buffered:
            _accumulate(weight_like, weight_like, scratch, tile, scratch, tile, n, classes, keep_exponentials)
        else:
            _accumulate(like, weight_like, x, x_class, scratch, tile, n, classes, keep_exponentials)
        large = False
        for j in range(0, n, width):
            own, other = load(weight_like, owns, j), load(weight_like, others, j)
            large = large or any_lane(other > _SAFE_SUM) or any_lane(own > _SAFE_OWN)
        if not large:
            break


@inline
def _target_sums(like, weight_like, scratch, tile, n, classes, soft, soft_class, weight, is_soft, smoothing):
    """Write the sums over all classes of q and of q * (z - peak), for keep = 1."""
    zero = lift(like, 0.0)
    masses = _array(weight_like, scratch, tile, classes, MASS)
    dots = _array(weight_like, scratch, tile, classes, DOT)
    for j in range(0, n, lanes(like)):
        within = first_lanes(like, n - j)
        peak = load(weight_like, _array(weight_like, scratch, tile, classes, PEAK), j)
        mass, dot = zero, zero
        for block in range(0, classes, _BLOCK):
            part_mass, part_dot = zero, zero
            for c in range(block, min(block + _BLOCK, classes)):
                z = load(weight_like, scratch, c * tile + j) - peak
                w = np.float64(get(weight_like, weight, c)) if weight != 0 else 1.0
                t = load_some(like, soft, c * soft_class + j, within, zero) if is_soft else zero
                q = target_weight(t, w, 1.0, smoothing, np.float64(classes))
                part_mass = part_mass + q
                part_dot = part_dot + select(same(q, zero), zero, q * z)
            mass, dot = mass + part_mass, dot + part_dot
        store(weight_like, masses, j, mass)
        store(weight_like, dots, j, dot)


def forward(call, scratch, lo, hi, sums):
    """Tiles lo to hi: write losses."""
    like, weight_like, classes, inner, tile = call.like, call.weight_like, call.classes, call.inner, call.tile
    is_soft, smoothing, cap = call.is_soft != 0, call.smoothing, call.cap
    x_class, target, samples, ignore_index = call.x_class, call.target, call.samples, call.ignore_index
    weight, target_class = call.weight, call.target_class
    tiles = (inner + tile - 1) // tile
    dense = is_soft or smoothing > 0.0
    plain, x_inner = not dense and cap == 0.0, call.x_inner
    buffered = not plain or x_inner != 1
    loss_sum, loss_rest, weight_sum, weight_rest = 0.0, 0.0, 0.0, 0.0
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n, row, first = min(tile, inner - i), o * inner + i, o * call.target_outer + i
        soft = at(like, target, first) if is_soft else 0
        logits = at(like, call.x, o * call.x_outer + i * call.x_inner)
        if _prepare(like, weight_like, scratch, tile, target, first, is_soft, weight, samples, row, n, classes,
                    ignore_index):  # fmt: skip
            bad = _first_bad(weight_like, target, first, samples, row, n, classes, ignore_index)
            return finish(sums, bad, 0.0, 0.0)
        _sums(like, weight_like, logits, x_class, x_inner, scratch, tile, n, classes, cap, buffered, False)
        if dense:
            _target_sums(like, weight_like, scratch, tile, n, classes, soft, target_class, weight, is_soft, smoothing)
        tile_loss, tile_weight = losses_of(call, at(weight_like, scratch, tile * classes), n, row)
        loss_sum, loss_rest = add(loss_sum, loss_rest, tile_loss)
        weight_sum, weight_rest = add(weight_sum, weight_rest, tile_weight)
    return finish(sums, OK, added(loss_sum, loss_rest), added(weight_sum, weight_rest))


@inline
def _plain_grad(like, weight_like, row, j, c, labels, keeps, factors, label_grads):
    zero = lift(like, 0.0)
    d = class_grad(load(weight_like, row, j), zero, load(weight_like, factors, j))
    d = select(labels_are(scratch_labels(like, labels, j), c), load(weight_like, label_grads, j), d)
    return select(load(weight_like, keeps, j) != zero, d, zero)


@inline
def _write_plain(like, weight_like, scratch, tile, n, classes, dx, dx_class, large):
    """From exponentials in the buffer: scaled, the labels' entries put in."""
    labels = _array(weight_like, scratch, tile, classes, _LABEL)
    keeps = _array(weight_like, scratch, tile, classes, KEEP)
    factors = _array(weight_like, scratch, tile, classes, FACTOR)
    label_grads = _array(weight_like, scratch, tile, classes, LABEL_GRAD)
    width = lanes(like)
    full = n // width * width
    for c in range(classes):
        plane, row = at(like, dx, c * dx_class), at(weight_like, scratch, c * tile)
        past_caches = passes_caches(large, plane)
        for j in range(0, full, width):
            d = _plain_grad(like, weight_like, row, j, c, labels, keeps, factors, label_grads)
            write(like, plane, j, d, past_caches)
        if full < n:
            d = _plain_grad(like, weight_like, row, full, c, labels, keeps, factors, label_grads)
            store_some(like, plane, full, first_lanes(like, n - full), d)


@inline
def _differentiate(like, weight_like, scratch, tile, n, classes, soft, soft_class, weight, is_soft, smoothing, cap,
                   dsoft, dsoft_class):  # fmt: skip
    """From logits in the buffer to the gradient, with everything that a loss may have."""
    zero = lift(like, 0.0)
    peaks = _array(weight_like, scratch, tile, classes, PEAK)
    labels = _array(weight_like, scratch, tile, classes, _LABEL)
    keeps = _array(weight_like, scratch, tile, classes, KEEP)
    factors = _array(weight_like, scratch, tile, classes, FACTOR)
    label_grads = _array(weight_like, scratch, tile, classes, LABEL_GRAD)
    costs = _array(weight_like, scratch, tile, classes, COST)
    for c in range(classes):
        w = np.float64(get(weight_like, weight, c)) if weight != 0 else 1.0
        for j in range(0, n, lanes(like)):
            within = first_lanes(like, n - j)
            logits, keep = load(weight_like, scratch, c * tile + j), load(weight_like, keeps, j)
            z, kept = logits - load(weight_like, peaks, j), keep != zero
            t = load_some(like, soft, c * soft_class + j, within, zero) if is_soft else zero
            q = target_weight(t, w, keep, smoothing, np.float64(classes))
            d = class_grad(exp(like, z), q, load(weight_like, factors, j))
            d = select(labels_are(scratch_labels(like, labels, j), c), load(weight_like, label_grads, j), d)
            if cap > 0.0:
                d = d * softcap_slope(logits, cap)
            store(weight_like, scratch, c * tile + j, select(kept, d, zero))
            if dsoft != 0:
                dt = target_grad(load(weight_like, costs, j), z, w, keep, smoothing)
                store_some(like, dsoft, c * dsoft_class + j, within, select(kept, dt, zero))


def backward(call, scratch, lo, hi, sums):
    """Tiles lo to hi of the gradient of scale * dloss * loss; dx may be x. `with_loss` asks for the losses as well."""
    like, weight_like, classes, inner, tile = call.like, call.weight_like, call.classes, call.inner, call.tile
    is_soft, smoothing, cap = call.is_soft != 0, call.smoothing, call.cap
    x_class, target, target_class, ignore_index = call.x_class, call.target, call.target_class, call.ignore_index
    large = call.large != 0 and call.dx != call.x
    dx_outer, dx_class, dx_inner = strides_of_dx(call)
    weight, samples, dtarget = call.weight, call.samples, call.dtarget
    loss_sum, loss_rest, weight_sum, weight_rest = 0.0, 0.0, 0.0, 0.0
    tiles = (inner + tile - 1) // tile
    dense = is_soft or smoothing > 0.0
    plain, x_inner = not dense and cap == 0.0, call.x_inner
    buffered = not plain or x_inner != 1
    for unit in range(lo, hi):
        o, i = unit // tiles, unit % tiles * tile
        n, row, first = min(tile, inner - i), o * inner + i, o * call.target_outer + i
        soft = at(like, target, first) if is_soft else 0
        logits = at(like, call.x, o * call.x_outer + i * call.x_inner)
        if _prepare(like, weight_like, scratch, tile, target, first, is_soft, weight, samples, row, n, classes,
                    ignore_index):  # fmt: skip
            bad = _first_bad(weight_like, target, first, samples, row, n, classes, ignore_index)
            return finish(sums, bad, 0.0, 0.0)
        _sums(like, weight_like, logits, x_class, x_inner, scratch, tile, n, classes, cap, buffered, plain)
        if is_soft or (dense and call.with_loss != 0):
            _target_sums(like, weight_like, scratch, tile, n, classes, soft, target_class, weight, is_soft, smoothing)
        state = at(weight_like, scratch, tile * classes)
        if call.with_loss != 0:
            tile_loss, tile_weight = losses_of(call, state, n, row)
            loss_sum, loss_rest = add(loss_sum, loss_rest, tile_loss)
            weight_sum, weight_rest = add(weight_sum, weight_rest, tile_weight)
        prepare_gradients(call, state, n, row, plain)
        drow = at(like, call.dx, o * dx_outer + i * dx_inner)
        if plain:
            if buffered:
                _write_plain(weight_like, weight_like, scratch, tile, n, classes, scratch, tile, False)
            else:
                _write_plain(like, weight_like, scratch, tile, n, classes, drow, dx_class, large)
        else:
            dsoft = at(like, dtarget, o * call.new_outer + i) if dtarget != 0 else 0
            _differentiate(like, weight_like, scratch, tile, n, classes, soft, target_class, weight, is_soft, smoothing,
                           cap, dsoft, call.new_class)  # fmt: skip
        if buffered:
            _write_back(like, weight_like, scratch, tile, n, classes, drow, dx_class, dx_inner, large)
    return finish(sums, OK, added(loss_sum, loss_rest), added(weight_sum, weight_rest))
