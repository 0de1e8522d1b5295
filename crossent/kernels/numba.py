"""The contract's kernels for CPUs, compiled by numba on first use."""

import os

import numpy as np
from numba import config

from crossent.kernels import BadLabel, _inner, _last, _pick, _softmax, _threads
from crossent.kernels._leaves import OK

_CHUNK = 2**18  # numbers that one thread works on before it takes more; below it threads cost more than they bring
_STATS_FROM = 64  # classes; what a shorter row's backward needs is made again rather than kept

_SINGLE, _DOUBLE = np.float32(0.0), np.float64(0.0)
# Numbers whose types stand for how logits are stored, and for how what is computed from them is.
_LIKES = {
    "float16": (np.int16(0), _SINGLE),
    "bfloat16": (np.uint16(0), _SINGLE),
    "float32": (_SINGLE, _SINGLE),
    "float64": (_DOUBLE, _DOUBLE),
}


def available_threads():
    """For array libraries without a setting of their own: numba's, at most the processors this process may use."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.NUMBA_NUM_THREADS, processors)


def stats_per_row(layout, soft):
    """How many numbers backward wants from forward for each row."""
    return (3 if soft else 2) if layout.last and layout.classes >= _STATS_FROM else 0


def _run(kernel, arguments, units, size, threads, owners, scratch=None):
    """Call the kernel for every chunk of units; `owners` keeps memory alive even if the caller is interrupted."""
    step = max(1, _CHUNK // size)
    chunks = -(-units // step)

    def work(chunk, owners=owners):
        lo = chunk * step
        hi = min(lo + step, units)
        if scratch is None:
            return kernel(*arguments, lo, hi, chunk)
        tile, numbers, dtype = scratch
        return kernel(*arguments, tile, np.empty(numbers, dtype), lo, hi, chunk)

    for bad in _threads.run(work, chunks, threads):
        if bad != OK:
            raise BadLabel(bad)


def _loss_arguments(layout, arrays, options):
    like, weight_like = _LIKES[arrays.storage]
    outer, axis, inner = layout.strides
    target_outer, target_class, target_inner = arrays.target_strides
    if layout.last:
        strides, target_strides = (outer, inner), (target_outer, target_inner)
    else:
        strides, target_strides = (outer, axis), (target_outer, target_class if arrays.soft else target_inner)
    return (
        like, weight_like, arrays.x, *strides, arrays.target, *target_strides, arrays.soft, arrays.weight,
        arrays.weight_total, arrays.samples, layout.inner, layout.classes, options.ignore_index,
        options.label_smoothing, options.softcap or 0.0, options.z_loss,
    )  # fmt: skip


def _strides_for(layout, strides):
    return (strides[0], strides[2]) if layout.last else (strides[0], strides[1])


def _units(layout, dtype):
    """How many units of work there are, how many numbers are in one, and the scratch memory that a chunk needs."""
    if layout.last:
        return layout.rows, layout.classes, None
    tile = _inner.tile_rows(layout.classes)
    scratch = tile, _inner.scratch_numbers(layout.classes), dtype
    return layout.outer * -(-layout.inner // tile), tile * layout.classes, scratch


def _sums(units, size):
    return np.empty((max(1, -(-units // max(1, _CHUNK // size))), 2))


def forward(layout, arrays, options, loss, stats, threads):
    arguments = _loss_arguments(layout, arrays, options)
    units, size, scratch = _units(layout, arguments[1].dtype)
    if not units:
        return 0.0, 0.0
    sums = _sums(units, size)
    if layout.last:
        _run(_last.forward, (*arguments, loss, sums, stats, units), units, size, threads, arrays.owners)
    else:
        _run(_inner.forward, (*arguments, loss, sums), units, size, threads, arrays.owners, scratch)
    return sums.sum(axis=0).tolist() if len(sums) > 1 else sums[0].tolist()


def backward(layout, arrays, options, stats, dloss, scale, dx, dx_strides, dtarget, dtarget_strides, threads):
    arguments = _loss_arguments(layout, arrays, options)
    units, size, scratch = _units(layout, arguments[1].dtype)
    if not units:
        return
    arguments = (
        *arguments, dloss, scale, dx, *_strides_for(layout, dx_strides), dtarget,
        *_strides_for(layout, dtarget_strides),
    )  # fmt: skip
    if layout.last:
        _run(_last.backward, (*arguments, stats, units), units, size, threads, arrays.owners)
    else:
        _run(_inner.backward, arguments, units, size, threads, arrays.owners, scratch)


def pick_forward(layout, arrays, options, loss, threads):
    like, weight_like = _LIKES[arrays.storage]
    if not layout.rows:
        return 0.0, 0.0
    sums = _sums(layout.rows, 1)
    arguments = (
        like, weight_like, arrays.x, *layout.strides, arrays.target, arrays.target_strides[0],
        arrays.target_strides[2], arrays.weight, arrays.samples, layout.inner, layout.classes, options.ignore_index,
        loss, sums,
    )  # fmt: skip
    _run(_pick.forward, arguments, layout.rows, 1, threads, arrays.owners)
    return sums.sum(axis=0).tolist()


def pick_backward(layout, arrays, options, dloss, scale, dx, dx_strides, threads):
    like, weight_like = _LIKES[arrays.storage]
    if layout.rows:
        arguments = (
            like, weight_like, arrays.target, arrays.target_strides[0], arrays.target_strides[2], arrays.weight,
            arrays.samples, layout.inner, layout.classes, options.ignore_index, dloss, scale, dx, *dx_strides,
        )  # fmt: skip
        _run(_pick.backward, arguments, layout.rows, 1, threads, arrays.owners)


def softmax_forward(layout, storage, x, out, out_strides, log, threads, owners):
    like, weight_like = _LIKES[storage]
    units, size, scratch = _units(layout, weight_like.dtype)
    if not units:
        return
    arguments = (
        x, *_strides_for(layout, layout.strides), layout.inner, layout.classes, log, out,
        *_strides_for(layout, out_strides),
    )  # fmt: skip
    if layout.last:
        _run(_softmax.forward_last, (like, *arguments), units, size, threads, owners)
    else:
        _run(_softmax.forward_inner, (like, weight_like, *arguments), units, size, threads, owners, scratch)


def softmax_backward(layout, storage, out, dout, dout_strides, dx, dx_strides, log, threads, owners):
    """`layout` is that of `out`."""
    like, weight_like = _LIKES[storage]
    units, size, scratch = _units(layout, weight_like.dtype)
    if not units:
        return
    arguments = (
        like, out, *_strides_for(layout, layout.strides), dout, *_strides_for(layout, dout_strides), layout.inner,
        layout.classes, log, dx, *_strides_for(layout, dx_strides),
    )  # fmt: skip
    if layout.last:
        _run(_softmax.backward_last, arguments, units, size, threads, owners)
    else:
        _run(_softmax.backward_inner, arguments, units, size, threads, owners, scratch)
