"""The contract's kernels for CPUs, compiled by numba on first use."""

import os
from functools import lru_cache

from numba import config

from crossent.kernels import _inner, _last, _pick, _softmax
from crossent.kernels._call import Calls, Fields, strided, strides

_SHARED_FROM = 2**15  # numbers; for fewer it costs more to wake another thread than it brings
_CHUNK, _CHUNKS = 2**13, 128  # numbers in a chunk at least, and chunks at most: enough to share out evenly
_STATS_FROM = 64  # classes; what a shorter row's backward needs is made again rather than kept

_GEOMETRY = "inner", "classes", "large", "tile"
LOSS = Fields(
    ("weight_total", "x", "target", "weight", "samples", "loss", "stats", "dloss", "scale", *strided("dx"),
     *strided("dtarget")),
    (*_GEOMETRY, *strides("x"), *strides("target"), "rows", "ignore_index", "is_soft", "smoothing", "cap", "z_loss"),
)  # fmt: skip
SOFTMAX = Fields((*strided("x"), *strided("out"), *strided("dout"), *strided("dx")), (*_GEOMETRY, "is_log"))
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_LARGE_FROM = 2**25  # bytes; what is larger does not stay in the caches
_NO_ARRAY = 0, 0, 0, 0
_NO_GRADIENTS = 0, 0.0, *_NO_ARRAY, *_NO_ARRAY


def available_threads():
    """For array libraries without a setting of their own: numba's, at most the processors this process may use."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.NUMBA_NUM_THREADS, processors)


def _calls(fields, layout, storage, buffers, *fixed):
    """Calls whose units are rows, or with memory for `buffers` tiles of logits the tiles."""
    units, size, tile, scratch = layout.rows, layout.classes, 0, 0
    if buffers:
        tile = _inner.tile_rows(layout.inner, layout.classes, layout.last)
        units, size = layout.outer * -(-layout.inner // tile), tile * layout.classes
        scratch = _inner.scratch_numbers(buffers * layout.classes, tile) * max(4, _BYTES[storage])
    step = max(1, _CHUNK // max(size, 1), units // _CHUNKS)
    if units * size < _SHARED_FROM:
        step = max(1, units)
    large = layout.rows * layout.classes * _BYTES[storage] >= _LARGE_FROM
    return Calls(fields, storage, units, step, scratch, (layout.inner, layout.classes, large, tile, *fixed))


class LossPlan:
    """Everything about a loss that does not change between calls with the same shapes and options."""

    __slots__ = ("_calls", "_kernels", "layout", "stats")

    def __init__(self, layout, storage, soft, target_strides, options, picks):
        along_classes = layout.last and (soft or not layout.short)
        self.layout, self._kernels = layout, _pick if picks else _last if along_classes else _inner
        self.stats = (3 if soft else 2) if self._kernels is _last and layout.classes >= _STATS_FROM else 0
        self._calls = _calls(
            LOSS, layout, storage, self._kernels is _inner, *layout.strides, *target_strides, layout.rows,
            options.ignore_index, soft, options.label_smoothing, options.softcap or 0.0, options.z_loss,
        )  # fmt: skip

    def forward(self, inputs, loss, stats, threads, owners):
        return self._calls.run(self._kernels.forward, (*inputs, loss, stats, *_NO_GRADIENTS), threads, owners)

    def backward(self, inputs, stats, dloss, scale, dx, dx_strides, dtarget, dtarget_strides, threads, owners):
        changing = *inputs, 0, stats, dloss, scale, dx, *dx_strides, dtarget, *dtarget_strides
        self._calls.run(self._kernels.backward, changing, threads, owners)


class SoftmaxPlan:
    """As LossPlan, for softmax and log-softmax; the layout is that of what is read first."""

    __slots__ = ("_calls", "_kernels", "layout")

    def __init__(self, layout, storage, log):
        self.layout = layout
        self._kernels = (
            (_softmax.forward_last, _softmax.backward_last)
            if layout.last
            else (_softmax.forward_inner, _softmax.backward_inner)
        )
        self._calls = _calls(SOFTMAX, layout, storage, 0 if layout.last else 2, log)

    def forward(self, x, out, out_strides, threads, owners):
        changing = x, *self.layout.strides, out, *out_strides, *_NO_ARRAY, *_NO_ARRAY
        self._calls.run(self._kernels[0], changing, threads, owners)

    def backward(self, out, dout, dout_strides, dx, dx_strides, threads, owners):
        changing = *_NO_ARRAY, out, *self.layout.strides, dout, *dout_strides, dx, *dx_strides
        self._calls.run(self._kernels[1], changing, threads, owners)


loss_plan = lru_cache(maxsize=4096)(LossPlan)
softmax_plan = lru_cache(maxsize=4096)(SoftmaxPlan)
