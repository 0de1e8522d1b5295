"""The contract's kernels for CPUs, compiled by numba on first use."""

import os
from functools import lru_cache

import numpy as np
from numba import config, typeof

from crossent.kernels import BadLabel, _inner, _last, _pick, _softmax, _threads
from crossent.kernels._leaves import OK

_SHARED_FROM = 2**18  # numbers; for fewer it costs more to wake another thread than it brings
_CHUNK, _CHUNKS = 2**16, 128  # numbers in a chunk at least, and chunks at most: enough to share out evenly
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


class _Schedule:
    """How the rows of a layout are cut into chunks; the cuts do not depend on the number of threads."""

    __slots__ = ("chunks", "compiled", "dtype", "scratch", "step", "tile", "units")

    def __init__(self, layout, weight_like, buffers=1):
        self.units, size, self.tile, self.scratch = layout.rows, layout.classes, 0, 0
        if buffers and not layout.last:
            self.tile = _inner.tile_rows(layout.classes)
            self.scratch = _inner.scratch_numbers(buffers * layout.classes, self.tile)
            self.units, size = layout.outer * -(-layout.inner // self.tile), self.tile * layout.classes
        self.step = max(1, _CHUNK // max(size, 1), self.units // _CHUNKS)
        if self.units * size < _SHARED_FROM:
            self.step = max(1, self.units)
        self.chunks = -(-self.units // self.step)
        self.dtype = weight_like.dtype
        self.compiled = {}

    def run(self, kernel, arguments, tail, threads, owners):
        """The sums of what the chunks return; `owners` keeps memory alive even if the caller is interrupted.

        Kernels take `tail` after their arguments, or scratch memory where they need some.
        """
        if self.scratch:
            tail = np.empty(self.scratch, self.dtype)
        compiled = self.compiled.get(kernel)
        if compiled is None:
            # All calls of a plan have the same types; looking them up once saves a third of the cost of a call.
            compiled = self.compiled[kernel] = kernel.compile(tuple(map(typeof, (*arguments, tail, 0, 0))))
        if self.chunks == 1:
            bad, losses, weights = compiled(*arguments, tail, 0, self.units)
            if bad != OK:
                raise BadLabel(bad)
            return losses, weights

        def work(chunk, owners=owners):
            lo = chunk * self.step
            last = np.empty(self.scratch, self.dtype) if self.scratch else tail
            return compiled(*arguments, last, lo, min(lo + self.step, self.units))

        losses, weights = 0.0, 0.0
        for bad, loss, weight in _threads.run(work, self.chunks, threads):
            if bad != OK:
                raise BadLabel(bad)
            losses += loss
            weights += weight
        return losses, weights


def _pair(layout, strides):
    """(outer, inner) strides for the rows of `_last`, (outer, class) strides for those of `_inner`."""
    return (strides[0], strides[2]) if layout.last else (strides[0], strides[1])


class LossPlan:
    """Everything about a cross entropy that does not change between calls with the same shapes and options."""

    __slots__ = ("_kernels", "_schedule", "_static", "layout", "stats")

    def __init__(self, layout, storage, soft, target_strides, options):
        like, weight_like = _LIKES[storage]
        self.layout = layout
        self._kernels = _last if layout.last else _inner
        self._schedule = _Schedule(layout, weight_like)
        self.stats = (3 if soft else 2) if layout.last and layout.classes >= _STATS_FROM else 0
        target_strides = (target_strides[0], target_strides[2]) if layout.last else target_strides[:2]
        self._static = (
            like, weight_like, *_pair(layout, layout.strides), *target_strides, soft, layout.inner, layout.classes,
            options.ignore_index, options.label_smoothing, options.softcap or 0.0, options.z_loss,
            layout.rows if layout.last else self._schedule.tile,
        )  # fmt: skip

    def forward(self, inputs, loss, stats, threads, owners):
        return self._schedule.run(self._kernels.forward, (*self._static, *inputs, loss), stats, threads, owners)

    def backward(self, inputs, stats, dloss, scale, dx, dx_strides, dtarget, dtarget_strides, threads, owners):
        layout = self.layout
        outputs = (
            dloss, scale, dx, *_pair(layout, dx_strides), dtarget, *_pair(layout, dtarget_strides)
        )  # fmt: skip
        self._schedule.run(self._kernels.backward, (*self._static, *inputs, *outputs), stats, threads, owners)


class PickPlan:
    """As LossPlan, for log-probabilities of which each row needs one."""

    __slots__ = ("_schedule", "_static", "layout")

    def __init__(self, layout, storage, soft, target_strides, options):
        like, weight_like = _LIKES[storage]
        self.layout = layout
        self._schedule = _Schedule(layout, weight_like, buffers=0)
        self._static = (
            like, weight_like, *layout.strides, target_strides[0], target_strides[2], layout.inner, layout.classes,
            options.ignore_index,
        )  # fmt: skip

    def forward(self, inputs, loss, threads, owners):
        return self._schedule.run(_pick.forward, (*self._static, *inputs[1:]), loss, threads, owners)

    def backward(self, inputs, dloss, scale, dx, dx_strides, threads, owners):
        arguments = (*self._static, *inputs[1:], dloss, scale, dx, *dx_strides[:2])
        self._schedule.run(_pick.backward, arguments, dx_strides[2], threads, owners)


class SoftmaxPlan:
    """As LossPlan, for softmax and log-softmax; the layout is that of what is read first."""

    __slots__ = ("_kernels", "_schedule", "_static", "layout")

    def __init__(self, layout, storage, log):
        like, weight_like = _LIKES[storage]
        self.layout = layout
        self._kernels = (
            (_softmax.forward_last, _softmax.backward_last)
            if layout.last
            else (_softmax.forward_inner, _softmax.backward_inner)
        )
        self._schedule = _Schedule(layout, weight_like, buffers=2)
        strides = _pair(layout, layout.strides)
        self._static = like, weight_like, *strides, layout.inner, layout.classes, self._schedule.tile, log

    def forward(self, x, out, out_strides, threads, owners):
        arguments = (*self._static, x, out, *_pair(self.layout, out_strides))
        self._schedule.run(self._kernels[0], arguments, None, threads, owners)

    def backward(self, out, dout, dout_strides, dx, dx_strides, threads, owners):
        strides = _pair(self.layout, dout_strides), _pair(self.layout, dx_strides)
        arguments = (*self._static, out, dout, *strides[0], dx, *strides[1])
        self._schedule.run(self._kernels[1], arguments, None, threads, owners)


loss_plan = lru_cache(maxsize=4096)(LossPlan)
pick_plan = lru_cache(maxsize=4096)(PickPlan)
softmax_plan = lru_cache(maxsize=4096)(SoftmaxPlan)
