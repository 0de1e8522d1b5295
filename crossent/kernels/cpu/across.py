"""Rows that lie side by side, their classes a stride apart (images: batch x classes x pixels): a lane for each row.
Short rows whose classes lie side by side are turned in the buffer, so that a vector holds numbers of as many rows.

A tile of neighbouring rows is passed class by class, in long runs of memory. What belongs to a row lies in arrays
behind a buffer of tile x classes numbers, and every pass is short, so that the processor overlaps several vectors. As
in `along` the exponentials are taken relative to a peak known beforehand, here the first class's logit, and a tile
whose sums come out too large is passed again relative to its maxima. A label is only ever compared with class numbers,
so that a bad one cannot reach memory.
"""

import numpy as np

from crossent.kernels.cpu import rules, vector as v
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
    finish,
    load_n,
    neumaier_add,
    neumaier_total,
    passes_caches,
    sample_weight_of,
    store_n,
    store_or_stream,
    strides_of_dx,
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
def _array(storage, scratch, tile, classes, which):
    return array(storage, v.at(storage, scratch, tile * classes), tile, which)


@inline
def _copy_logits(storage, compute, x, x_class, x_inner, scratch, tile, n, classes, cap):
    """The capped logits of a tile into the buffer, zeros in the lanes beyond the last row."""
    width, zero = v.lanes(storage), v.splat(storage, 0.0)
    if x_inner == 1:
        for c in range(classes):
            plane, row = v.at(storage, x, c * x_class), v.at(compute, scratch, c * tile)
            for j in range(0, n, width):
                v.prefetch(storage, plane, j)
                v.store(compute, row, j, capped(storage, load_n(storage, plane, j, n), cap))
        return
    for c in range(classes):
        v.store(compute, scratch, c * tile + (n - 1) // width * width, zero)
    for j in range(0, n, width):
        for c in range(0, classes, width):
            source, buffer = v.at(storage, x, j * x_inner + c), v.at(compute, scratch, c * tile + j)
            v.transpose(storage, source, x_inner, compute, buffer, tile, min(width, n - j), min(width, classes - c))
    if cap > 0.0:
        for c in range(classes):
            for j in range(0, n, width):
                v.store(compute, scratch, c * tile + j, capped(storage, v.load(compute, scratch, c * tile + j), cap))


@inline
def _write_back(storage, compute, scratch, tile, n, classes, dx, dx_class, dx_inner, large):
    """A tile from the buffer to memory."""
    if dx_inner == 1:
        for c in range(classes):
            plane, row = v.at(storage, dx, c * dx_class), v.at(compute, scratch, c * tile)
            past_caches = passes_caches(large, plane)
            for j in range(0, n, v.lanes(storage)):
                store_n(storage, plane, j, n, v.load(compute, row, j), past_caches)
        return
    width = v.lanes(storage)
    for j in range(0, n, width):
        for c in range(0, classes, width):
            buffer, result = v.at(compute, scratch, c * tile + j), v.at(storage, dx, j * dx_inner + c)
            v.transpose(compute, buffer, tile, storage, result, dx_inner, min(width, classes - c), min(width, n - j))


@inline
def _own_weights(storage, compute, weight, classes, labels):
    """The class weight of each row's label, 1 for rows without."""
    own = v.splat(storage, 1.0)
    for c in range(classes):
        own = v.select(v.labels_eq(labels, c), v.splat(storage, v.load_scalar(compute, weight, c)), own)
    return own


@inline
def _prepare(storage, compute, scratch, tile, target, first, is_soft, weight, samples, row, n, classes, ignore_index):
    """Write what each row counts and its label, -1 where there is none; whether a label is bad."""
    zero = v.splat(storage, 0.0)
    labels_of = _array(compute, scratch, tile, classes, _LABEL)
    keeps = _array(compute, scratch, tile, classes, KEEP)
    bad = False
    for j in range(0, n, v.lanes(storage)):
        within = v.first_n(storage, n - j)
        keep = v.select(within, v.splat(storage, 1.0), zero)
        if samples != 0:
            keep = v.load_masked(compute, samples, row + j, within, zero)
        if is_soft:
            v.store_narrow_labels(storage, labels_of, j, v.no_labels(storage))
        else:
            v.prefetch(LABELS, target, first + j)
            labels = v.load_labels(storage, target, first + j, within)
            keep = v.select(v.labels_eq(labels, ignore_index), zero, keep)
            kept, valid = keep != zero, v.labels_below(labels, classes)
            v.store_narrow_labels(storage, labels_of, j, v.narrow_labels(storage, labels, kept & valid))
            bad = bad or v.any_true(v.and_not(kept, valid))
        v.store(compute, keeps, j, keep)
        if weight != 0:
            own = _own_weights(storage, compute, weight, classes, v.load_narrow_labels(storage, labels_of, j))
            v.store(compute, _array(compute, scratch, tile, classes, WEIGHT), j, own)
    return bad


@inline
def _first_bad(compute, target, first, samples, row, n, classes, ignore_index):
    for j in range(n):
        label = v.load_scalar(LABELS, target, first + j)
        if label != ignore_index and sample_weight_of(compute, samples, row + j) != 0.0:
            if label < 0 or label >= classes:
                return row + j
    return OK


@inline
def _add_classes(storage, compute, x, x_class, scratch, tile, lo, hi, j, within, whole, labels, peak, part, own,
                 own_exp, keep_exponentials):  # fmt: skip
    """Add the classes lo to hi of the rows at j to the sum of the others' exponentials, or to what is the label's."""
    zero = v.splat(storage, 0.0)
    for c in range(lo, hi):
        plane = v.at(storage, x, c * x_class)
        v.prefetch(storage, plane, j)
        z = (v.load(storage, plane, j) if whole else v.load_masked(storage, plane, j, within, zero)) - peak
        e = exp(storage, v.select(z > _LARGEST, v.splat(storage, _LARGEST), z))
        if keep_exponentials:
            v.store(compute, scratch, c * tile + j, e)
        hit = v.labels_eq(labels, c)
        part = part + v.select(hit, zero, e)
        own = own + v.select(hit, z, zero)
        own_exp = own_exp + v.select(hit, e, zero)
    return part, own, own_exp


@inline
def _accumulate(storage, compute, x, x_class, scratch, tile, n, classes, keep_exponentials):
    """Write the sum of exp(z - peak) over the classes but the label, and the label's z - peak and exponential."""
    zero, width = v.splat(storage, 0.0), v.lanes(storage)
    labels_of = _array(compute, scratch, tile, classes, _LABEL)
    peaks = _array(compute, scratch, tile, classes, PEAK)
    parts = _array(compute, scratch, tile, classes, _PART)
    others = _array(compute, scratch, tile, classes, OTHERS)
    owns = _array(compute, scratch, tile, classes, OWN)
    own_exps = _array(compute, scratch, tile, classes, OWN_EXP)
    for lo in range(0, classes, _GROUP):
        hi = min(lo + _GROUP, classes)
        for j in range(0, n, width):
            labels, peak = v.load_narrow_labels(storage, labels_of, j), v.load(compute, peaks, j)
            part = v.load(compute, parts, j) if lo % _BLOCK else zero
            own = v.load(compute, owns, j) if lo else zero
            own_exp = v.load(compute, own_exps, j) if lo else zero
            within = v.first_n(storage, n - j)
            if j + width <= n:
                part, own, own_exp = _add_classes(
                    storage, compute, x, x_class, scratch, tile, lo, hi, j, within, True, labels, peak, part, own,
                    own_exp, keep_exponentials,
                )  # fmt: skip
            else:
                part, own, own_exp = _add_classes(
                    storage, compute, x, x_class, scratch, tile, lo, hi, j, within, False, labels, peak, part, own,
                    own_exp, keep_exponentials,
                )  # fmt: skip
            v.store(compute, owns, j, own)
            v.store(compute, own_exps, j, own_exp)
            if hi % _BLOCK and hi < classes:
                v.store(compute, parts, j, part)
            else:
                v.store(compute, others, j, part + v.load(compute, others, j) if hi > _BLOCK else part)


@inline
def _sums(storage, compute, x, x_class, x_inner, scratch, tile, n, classes, cap, buffered, keep_exponentials):
    """As `_accumulate`, relative to peaks that keep every sum in range; `buffered` if the logits are to be copied."""
    width, nothing, zero = v.lanes(storage), v.splat(storage, -np.inf), v.splat(storage, 0.0)
    peaks = _array(compute, scratch, tile, classes, PEAK)
    others = _array(compute, scratch, tile, classes, OTHERS)
    owns = _array(compute, scratch, tile, classes, OWN)
    for attempt in range(2):
        if buffered and (keep_exponentials or not attempt):
            _copy_logits(storage, compute, x, x_class, x_inner, scratch, tile, n, classes, cap)
        for j in range(0, n, width):
            if buffered:
                peak = v.load(compute, scratch, j)
            elif classes == 0:
                peak = zero
            else:
                peak = load_n(storage, x, j, n)
            peak = v.select(v.eq(peak, nothing), zero, peak)
            if attempt:
                top = peak
                for c in range(classes):
                    if buffered:
                        top = v.max(v.load(compute, scratch, c * tile + j), top)
                    else:
                        top = v.max(load_n(storage, v.at(storage, x, c * x_class), j, n), top)
                # Only in rows that need it: those beside them keep their bits.
                own, other = v.load(compute, owns, j), v.load(compute, others, j)
                peak = v.select(own > _SAFE_OWN, top, v.select(other > _SAFE_SUM, top, peak))
            v.store(compute, peaks, j, peak)
        if buffered:
            _accumulate(compute, compute, scratch, tile, scratch, tile, n, classes, keep_exponentials)
        else:
            _accumulate(storage, compute, x, x_class, scratch, tile, n, classes, keep_exponentials)
        large = False
        for j in range(0, n, width):
            own, other = v.load(compute, owns, j), v.load(compute, others, j)
            large = large or v.any_true(other > _SAFE_SUM) or v.any_true(own > _SAFE_OWN)
        if not large:
            break


@inline
def _target_sums(storage, compute, scratch, tile, n, classes, soft, soft_class, weight, is_soft, smoothing):
    """Write the sums over all classes of q and of q * (z - peak), for keep = 1."""
    zero = v.splat(storage, 0.0)
    masses = _array(compute, scratch, tile, classes, MASS)
    dots = _array(compute, scratch, tile, classes, DOT)
    for j in range(0, n, v.lanes(storage)):
        within = v.first_n(storage, n - j)
        peak = v.load(compute, _array(compute, scratch, tile, classes, PEAK), j)
        mass, dot = zero, zero
        for block in range(0, classes, _BLOCK):
            part_mass, part_dot = zero, zero
            for c in range(block, min(block + _BLOCK, classes)):
                z = v.load(compute, scratch, c * tile + j) - peak
                w = np.float64(v.load_scalar(compute, weight, c)) if weight != 0 else 1.0
                t = v.load_masked(storage, soft, c * soft_class + j, within, zero) if is_soft else zero
                q = rules.target_weight(t, w, 1.0, smoothing, np.float64(classes))
                part_mass = part_mass + q
                part_dot = part_dot + v.select(v.eq(q, zero), zero, q * z)
            mass, dot = mass + part_mass, dot + part_dot
        v.store(compute, masses, j, mass)
        v.store(compute, dots, j, dot)


def forward(call, scratch, lo, hi, sums):
    """Tiles lo to hi: write losses."""
    storage, compute, classes, inner, tile = call.storage, call.compute, call.classes, call.inner, call.tile
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
        soft = v.at(storage, target, first) if is_soft else 0
        logits = v.at(storage, call.x, o * call.x_outer + i * call.x_inner)
        if _prepare(storage, compute, scratch, tile, target, first, is_soft, weight, samples, row, n, classes,
                    ignore_index):  # fmt: skip
            bad = _first_bad(compute, target, first, samples, row, n, classes, ignore_index)
            return finish(sums, bad, 0.0, 0.0)
        _sums(storage, compute, logits, x_class, x_inner, scratch, tile, n, classes, cap, buffered, False)
        if dense:
            _target_sums(storage, compute, scratch, tile, n, classes, soft, target_class, weight, is_soft, smoothing)
        tile_loss, tile_weight = losses_of(call, v.at(compute, scratch, tile * classes), n, row)
        loss_sum, loss_rest = neumaier_add(loss_sum, loss_rest, tile_loss)
        weight_sum, weight_rest = neumaier_add(weight_sum, weight_rest, tile_weight)
    return finish(sums, OK, neumaier_total(loss_sum, loss_rest), neumaier_total(weight_sum, weight_rest))


@inline
def _plain_grad(storage, compute, row, j, c, labels, keeps, factors, label_grads):
    zero = v.splat(storage, 0.0)
    d = rules.class_grad(v.load(compute, row, j), zero, v.load(compute, factors, j))
    d = v.select(v.labels_eq(v.load_narrow_labels(storage, labels, j), c), v.load(compute, label_grads, j), d)
    return v.select(v.load(compute, keeps, j) != zero, d, zero)


@inline
def _write_plain(storage, compute, scratch, tile, n, classes, dx, dx_class, large):
    """From exponentials in the buffer: scaled, the labels' entries put in."""
    labels = _array(compute, scratch, tile, classes, _LABEL)
    keeps = _array(compute, scratch, tile, classes, KEEP)
    factors = _array(compute, scratch, tile, classes, FACTOR)
    label_grads = _array(compute, scratch, tile, classes, LABEL_GRAD)
    width = v.lanes(storage)
    full = n // width * width
    for c in range(classes):
        plane, row = v.at(storage, dx, c * dx_class), v.at(compute, scratch, c * tile)
        past_caches = passes_caches(large, plane)
        for j in range(0, full, width):
            d = _plain_grad(storage, compute, row, j, c, labels, keeps, factors, label_grads)
            store_or_stream(storage, plane, j, d, past_caches)
        if full < n:
            d = _plain_grad(storage, compute, row, full, c, labels, keeps, factors, label_grads)
            v.store_masked(storage, plane, full, v.first_n(storage, n - full), d)


@inline
def _differentiate(storage, compute, scratch, tile, n, classes, soft, soft_class, weight, is_soft, smoothing, cap,
                   dsoft, dsoft_class):  # fmt: skip
    """From logits in the buffer to the gradient, with everything that a loss may have."""
    zero = v.splat(storage, 0.0)
    peaks = _array(compute, scratch, tile, classes, PEAK)
    labels = _array(compute, scratch, tile, classes, _LABEL)
    keeps = _array(compute, scratch, tile, classes, KEEP)
    factors = _array(compute, scratch, tile, classes, FACTOR)
    label_grads = _array(compute, scratch, tile, classes, LABEL_GRAD)
    costs = _array(compute, scratch, tile, classes, COST)
    for c in range(classes):
        w = np.float64(v.load_scalar(compute, weight, c)) if weight != 0 else 1.0
        for j in range(0, n, v.lanes(storage)):
            within = v.first_n(storage, n - j)
            logits, keep = v.load(compute, scratch, c * tile + j), v.load(compute, keeps, j)
            z, kept = logits - v.load(compute, peaks, j), keep != zero
            t = v.load_masked(storage, soft, c * soft_class + j, within, zero) if is_soft else zero
            q = rules.target_weight(t, w, keep, smoothing, np.float64(classes))
            d = rules.class_grad(exp(storage, z), q, v.load(compute, factors, j))
            d = v.select(v.labels_eq(v.load_narrow_labels(storage, labels, j), c), v.load(compute, label_grads, j), d)
            if cap > 0.0:
                d = d * rules.softcap_slope(logits, cap)
            v.store(compute, scratch, c * tile + j, v.select(kept, d, zero))
            if dsoft != 0:
                dt = rules.target_grad(v.load(compute, costs, j), z, w, keep, smoothing)
                v.store_masked(storage, dsoft, c * dsoft_class + j, within, v.select(kept, dt, zero))


def backward(call, scratch, lo, hi, sums):
    """Tiles lo to hi of the gradient of scale * dloss * loss; dx may be x. `with_loss` asks for the losses as well."""
    storage, compute, classes, inner, tile = call.storage, call.compute, call.classes, call.inner, call.tile
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
        soft = v.at(storage, target, first) if is_soft else 0
        logits = v.at(storage, call.x, o * call.x_outer + i * call.x_inner)
        if _prepare(storage, compute, scratch, tile, target, first, is_soft, weight, samples, row, n, classes,
                    ignore_index):  # fmt: skip
            bad = _first_bad(compute, target, first, samples, row, n, classes, ignore_index)
            return finish(sums, bad, 0.0, 0.0)
        _sums(storage, compute, logits, x_class, x_inner, scratch, tile, n, classes, cap, buffered, plain)
        if is_soft or (dense and call.with_loss != 0):
            _target_sums(storage, compute, scratch, tile, n, classes, soft, target_class, weight, is_soft, smoothing)
        state = v.at(compute, scratch, tile * classes)
        if call.with_loss != 0:
            tile_loss, tile_weight = losses_of(call, state, n, row)
            loss_sum, loss_rest = neumaier_add(loss_sum, loss_rest, tile_loss)
            weight_sum, weight_rest = neumaier_add(weight_sum, weight_rest, tile_weight)
        prepare_gradients(call, state, n, row, plain)
        drow = v.at(storage, call.dx, o * dx_outer + i * dx_inner)
        if plain:
            if buffered:
                _write_plain(compute, compute, scratch, tile, n, classes, scratch, tile, False)
            else:
                _write_plain(storage, compute, scratch, tile, n, classes, drow, dx_class, large)
        else:
            dsoft = v.at(storage, dtarget, o * call.new_outer + i) if dtarget != 0 else 0
            _differentiate(storage, compute, scratch, tile, n, classes, soft, target_class, weight, is_soft, smoothing,
                           cap, dsoft, call.new_class)  # fmt: skip
        if buffered:
            _write_back(storage, compute, scratch, tile, n, classes, drow, dx_class, dx_inner, large)
    return finish(sums, OK, neumaier_total(loss_sum, loss_rest), neumaier_total(weight_sum, weight_rest))
