"""The contract of `crossent.kernels` on a CPU: what the rest of the library calls."""

import os

from numba import config

from crossent._kept import kept
from crossent.kernels.cpu import across, along, matmul, pick, scores, softmax, stages, sums as column_sums, tokens
from crossent.kernels.cpu.call import Fields, Launcher, Work, strided, strides, strides_of
from crossent.kernels.cpu.rounding import forward as round_rows
from crossent.kernels.cpu.rows import BLOCK

# Numbers from which on several threads share a call: two take 10 % longer than one for 30 x 1000, and 11 % less for
# 64 x 1000 (`crossent bench --shape 30x1000 --shape 64x1000`).
_SHARED_FROM = 2**15
_CHUNK, _CHUNKS = 2**13, 128  # numbers in a chunk at least, and chunks at most: enough to share out evenly
_STATS_FROM = 64  # classes; sums of shorter rows take 3 % of the logits' memory or more: backward makes them again

_GEOMETRY = "inner", "classes", "large", "tile"
_ARRAYS, _WEIGHTS = ("x", "target", "dx"), ("weight_total", "weight", "samples")
_KEPT, _UPSTREAM = ("loss", "stats"), ("dloss", "scale", "with_loss", "dtarget")
_OF_A_LOSS = (
    *_GEOMETRY, *strides("x"), *strides("target"), *strides("new"), "rows", "ignore_index", "is_soft", "smoothing",
    "cap", "z_loss", "tops_at", "kept_at", "has_mass", "first_class", "all_classes",
)  # fmt: skip
LOSS = Fields((*_ARRAYS, *_WEIGHTS, *_KEPT), _UPSTREAM, _OF_A_LOSS)
# For calls without class and sample weights: with 3 changing fields, not 12, a call takes 0.2 us less
# (`python -m benchmarks.floor`).
QUICK_LOSS = Fields(_ARRAYS, (), (*_WEIGHTS, *_KEPT, *_UPSTREAM, *_OF_A_LOSS))
TOKENS = Fields(
    ("x", "target", "logprob", "lse", "entropy", "rank"),
    ("dlogprob", "dlse", "dentropy", "dx"),
    (*_GEOMETRY, *strides("x"), *strides("target"), *strides("dx"), "ignore_index", "cap"),
)
TOKEN_SUMS = Fields(("x", "target", "own", "stats"), (), (*_GEOMETRY, *strides("x"), *strides("target"), "rows", "cap"))
SCORES = Fields(
    ("x", "target", "logprob", "rank", "prediction", "confidence", "brier"),
    (),
    (*_GEOMETRY, *strides("x"), *strides("target"), "ignore_index"),
)
# In backward `x` is what forward returned.
SOFTMAX = Fields(("x", "result"), strided("dout"), (*_GEOMETRY, *strides("x"), *strides("new"), "is_log"))
SUMS = Fields(("x", "x_outer", "rows", "squares", "by_row"), (), ("classes", "blocks"))
COMBINATIONS = Fields(
    ("x", "x_outer", "rows", "factors", "factors_row", "count", "combined", "combined_row"), (), ("classes", "blocks")
)
PRODUCTS = Fields(
    ("a", "b", "c", "adds", "b_rows", "c_rows"),
    (),
    (
        "a_along", "b_along", "a_row", "b_row", "c_row", "rows", "columns", "depth", "depth_at_once", "block_rows",
        "block_columns", "blocks",
    ),
)  # fmt: skip
ROUNDING = Fields(("x",), (), ("x_outer", "columns"))
_BYTES = {"float16": 2, "bfloat16": 2, "bfloat16 pairs": 2, "float32": 4, "float64": 8}
_LARGE_FROM = 2**25  # bytes; larger arrays do not stay in the caches
# Bytes of logits in long rows; with fewer, one call instead of two saves 9 % of a step (`crossent bench --shape
# 30x32000`).
_MUCH_FROM = 2**22


def available_threads():
    """The threads for array libraries without a setting of their own: numba's, up to the processors we may use."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.NUMBA_NUM_THREADS, processors)


def _step(units, size):
    """How many units, of `size` numbers each, make a chunk."""
    return max(1, units if units * size < _SHARED_FROM else max(_CHUNK // max(size, 1), units // _CHUNKS))


def _geometry(layout, storage, tile):
    large = layout.rows * layout.classes * _BYTES[storage] >= _LARGE_FROM
    return {"inner": layout.inner, "classes": layout.classes, "large": large, "tile": tile}


def _of_rows(fields, kernels, layout, storage, fixed, tile=0, scratches=(0, 0)):
    """The calls of a forward kernel and, if there is one, of a backward kernel, which take rows as their units.

    `scratches` says how many bytes of scratch memory each needs.
    """
    fixed, step = _geometry(layout, storage, tile) | fixed, _step(layout.rows, layout.classes)
    return [
        Launcher(fields, kernel, storage, Work(layout.rows, step, scratch), fixed, backward).run
        for backward, (kernel, scratch) in enumerate(zip(kernels, scratches))
    ]


def _of_tiles(fields, kernels, layout, storage, fixed, buffers):
    """As `_of_rows`, for kernels that take tiles, with scratch memory for `buffers` tiles of logits."""
    tile = across.tile_rows(layout.inner, layout.classes, layout.last)
    units = layout.outer * -(-layout.inner // tile)
    scratch = across.scratch_numbers(buffers * layout.classes, tile) * max(4, _BYTES[storage])
    work = Work(units, _step(units, tile * layout.classes), scratch)
    fixed = _geometry(layout, storage, tile) | fixed
    return [Launcher(fields, kernel, storage, work, fixed, backward).run for backward, kernel in enumerate(kernels)]


def best_at_once(layout, storage, reduction, picks):
    """Whether loss and gradient, if both are wanted, are best made in one call: when the logits stay in the caches.

    It saves a third of a step (`python -m benchmarks --case '128 x 1000'`). Not in 16 bits: the gradient would be
    rounded again when it is scaled. Nor for many logits in long rows along memory, which have too many exponentials to
    keep.
    """
    itemsize = _BYTES[storage]
    below = _MUCH_FROM if layout.last and layout.classes > BLOCK else _LARGE_FROM
    few = 0 < layout.rows * layout.classes * itemsize < below
    return few and itemsize > 2 and reduction != "none" and not picks


def _fixed_of_a_loss(layout, soft, target_strides, options):
    return strides_of(x=layout.strides, target=target_strides, new=layout.new_strides) | {
        "rows": layout.rows, "ignore_index": options.ignore_index, "is_soft": soft,
        "smoothing": options.label_smoothing, "cap": options.softcap or 0.0, "z_loss": options.z_loss,
        "has_mass": soft, "first_class": 0, "all_classes": layout.classes,
    }  # fmt: skip


class LossPlan:
    """Everything about a loss that does not change between calls with the same shapes and options.

    If `best_at_once` says so, `at_once` makes the gradient together with the loss, multiplied by a `unit` that is known
    before the call. Labels without weights then have quick calls too, which are told addresses alone.
    """

    __slots__ = (
        "at_once", "backward", "forward", "layout", "quick_backward", "quick_forward", "stats", "unit",
    )  # fmt: skip

    def __init__(self, layout, storage, soft, target_strides, options, picks):
        along_classes = layout.last and (soft or not layout.short)
        kernels = pick if picks else along if along_classes else across
        functions = kernels.forward, kernels.backward
        self.layout = layout
        self.stats = (3 if soft else 2) if kernels is along and layout.classes >= _STATS_FROM else 0
        fixed = _fixed_of_a_loss(layout, soft, target_strides, options)
        keeps = kernels is along and not (soft or options.label_smoothing or options.softcap) and self.stats
        scratches, places = along.scratch_bytes(layout.classes, _BYTES[storage], keeps)

        def calls(fields, tops_at, kept_at, **others):
            given = fixed | others | {"tops_at": tops_at, "kept_at": kept_at}
            if kernels is across:
                return _of_tiles(fields, functions, layout, storage, given, 1)
            if kernels is pick:
                return _of_rows(fields, functions, layout, storage, given)
            return _of_rows(fields, functions, layout, storage, given, along.TILE, scratches)

        self.forward, self.backward = calls(LOSS, *places)
        self.quick_forward = self.quick_backward = self.at_once = self.unit = None
        if not best_at_once(layout, storage, options.reduction, picks):
            return
        self.at_once = self.backward
        if layout.classes > BLOCK:  # as in a larger batch, so that the gradient has the same bits
            places = 0, 0
            _, self.at_once = calls(LOSS, *places)
        self.unit = 1.0 / layout.rows if options.reduction == "mean" else 1.0
        if not soft:
            absent = dict.fromkeys(("weight", "samples", "loss", "stats", "dloss", "dtarget"), 0)
            unweighted = absent | {"weight_total": layout.classes, "scale": self.unit, "with_loss": True}
            self.quick_forward, self.quick_backward = calls(QUICK_LOSS, *places, **unweighted)


class StagedPlan:
    """A loss in two stages, as `crossent.kernels` describes them, of rows whose classes lie side by side."""

    __slots__ = ("gradients", "layout", "losses", "sums")
    SUMS = stages.SUMS

    def __init__(self, layout, storage, soft, target_strides, options, first_class, all_classes):
        self.layout = layout
        fixed = _fixed_of_a_loss(layout, soft, target_strides, options) | {
            "has_mass": soft or options.label_smoothing > 0.0, "first_class": first_class, "all_classes": all_classes,
            "tops_at": 0, "kept_at": 0,
        }  # fmt: skip
        (scratch, _), _ = along.scratch_bytes(layout.classes, _BYTES[storage], False)

        def call(kernel, backward=False):
            kernels, scratches = (kernel,) * (1 + backward), (scratch,) * 2
            return _of_rows(LOSS, kernels, layout, storage, fixed, along.TILE, scratches)[-1]

        self.sums, self.losses, self.gradients = call(stages.sums), call(stages.losses), call(stages.gradients, True)


class SoftmaxPlan:
    """As LossPlan, for softmax and log-softmax. The layout is that of the array read first: x, or out in backward."""

    __slots__ = ("backward", "forward", "layout")

    def __init__(self, layout, storage, log):
        kernels = (
            (softmax.forward_along, softmax.backward_along)
            if layout.last
            else (softmax.forward_across, softmax.backward_across)
        )
        self.layout = layout
        fixed = strides_of(x=layout.strides, new=layout.new_strides) | {"is_log": log}
        if layout.last:
            self.forward, self.backward = _of_rows(SOFTMAX, kernels, layout, storage, fixed)
        else:
            self.forward, self.backward = _of_tiles(SOFTMAX, kernels, layout, storage, fixed, 2)


class TokenPlan:
    """As LossPlan, for the token statistics of rows whose classes lie side by side; dx has the logits' strides.

    `label_logits` and `sums` are for one shard of the classes.
    """

    __slots__ = ("backward", "forward", "label_logits", "layout", "sums")
    SUMS = tokens.SUMS

    def __init__(self, layout, storage, target_strides, options):
        self.layout = layout
        fixed = strides_of(x=layout.strides, target=target_strides, dx=layout.strides) | {
            "ignore_index": options.ignore_index, "cap": options.softcap or 0.0, "rows": layout.rows,
        }  # fmt: skip
        self.forward, self.backward = _of_rows(TOKENS, (tokens.forward, tokens.backward), layout, storage, fixed)
        (self.label_logits,) = _of_rows(TOKEN_SUMS, (tokens.label_logits,), layout, storage, fixed)
        (self.sums,) = _of_rows(TOKEN_SUMS, (tokens.sums,), layout, storage, fixed)


BLOCK_OF_SUMS, ROOM_OF_COMBINATIONS = column_sums.BLOCK, column_sums.ROOM


@kept
def sums(classes, storage, threads):
    """The call that sums matrices with so many columns; with more threads its units may be smaller."""
    return _by_columns(SUMS, column_sums.forward, classes, storage, threads)


@kept
def combinations(classes, storage, threads):
    """The call that multiplies few rows by matrices with so many columns; with more threads units may be smaller."""
    return _by_columns(COMBINATIONS, column_sums.combine, classes, storage, threads)


def _by_columns(fields, kernel, classes, storage, threads):
    blocks = -(-classes // BLOCK_OF_SUMS)
    together = max(1, min(column_sums.BLOCKS, blocks // threads))
    scratch = 2 * together * BLOCK_OF_SUMS * max(4, _BYTES[storage])
    units = -(-blocks // together)
    return Launcher(fields, kernel, storage, Work(units, 1, scratch), {"classes": classes, "blocks": together}).run


def _even(count, at_most, multiple):
    """The size of parts of `count` that are as even as multiples of `multiple` can be."""
    return max(multiple, -(-count // (-(-count // at_most) * multiple)) * multiple)


_ROWS_AT_ONCE = 512  # rows of a block, which share one packing of the other factor


@kept
def product(storage, rounded, runs_along, row_strides, rows, columns, depth, threads):
    """The call that multiplies matrices of these row strides and sizes; with more threads its blocks may be smaller.

    `runs_along` says for either factor whether the sums run along its rows in memory.
    """
    itemsize, each = max(4, _BYTES[storage]), 2 if storage == "bfloat16 pairs" else 1
    width, columns_at_most, rows_at_most = matmul.panel_width(itemsize), matmul.COLUMNS, _ROWS_AT_ONCE
    depth_at_once = _even(depth, each * matmul.DEPTH, each)
    if rounded and depth_at_once < depth:  # a rounded result cannot be added to
        fitting = columns_at_most * each * matmul.DEPTH // depth // width * width
        depth_at_once, columns_at_most = depth, max(width, fitting)
    if rows <= matmul.HEIGHT:  # too few rows to share out
        columns_at_most = min(columns_at_most, -(-columns // threads))
    block_columns = _even(columns, columns_at_most, width)
    blocks = -(-columns // block_columns)
    if blocks < 4 * threads:
        rows_at_most = min(rows_at_most, -(-rows // threads))
    block_rows = _even(rows, rows_at_most, matmul.HEIGHT)
    units = blocks * -(-rows // block_rows)
    fixed = {
        "a_along": runs_along[0], "b_along": runs_along[1], "a_row": row_strides[0], "b_row": row_strides[1],
        "c_row": row_strides[2], "rows": rows, "columns": columns, "depth": depth, "depth_at_once": depth_at_once,
        "block_rows": block_rows, "block_columns": block_columns, "blocks": blocks,
    }  # fmt: skip
    scratch = matmul.scratch_elements(itemsize, block_columns, -(-depth_at_once // each)) * itemsize
    kernel = matmul.rounded_product if rounded else matmul.product
    return Launcher(PRODUCTS, kernel, storage, Work(units, 1, scratch), fixed).run


@kept
def rounding(rows, columns, row_stride):
    """The call that rounds a matrix of float32 to bfloat16 in place and writes a 0 after each row."""
    step = max(1, _CHUNK // max(1, columns), rows // _CHUNKS)
    fixed = {"x_outer": row_stride, "columns": columns}
    return Launcher(ROUNDING, round_rows, "float32", Work(rows, step, 0), fixed).run


class ScorePlan:
    """As LossPlan, for the prediction statistics of rows whose classes lie side by side; there is no backward."""

    __slots__ = ("forward", "layout")

    def __init__(self, layout, storage, target_strides, ignore_index):
        self.layout = layout
        fixed = strides_of(x=layout.strides, target=target_strides) | {"ignore_index": ignore_index}
        (self.forward,) = _of_rows(SCORES, (scores.forward,), layout, storage, fixed)


score_plan = kept(ScorePlan)
staged_plan = kept(StagedPlan)
token_plan = kept(TokenPlan)
