"""From rows to launches: how they are cut into programs, and what the kernels are told.

What is read or written lies where the caller says, by strides; what the kernels leave for each other is dense. Nothing
waits for the device.
"""

import math
import struct
from copy import copy
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.compiler import CompiledKernel

from crossent._kept import kept, may_keep_memory
from crossent.kernels import LossKernels, Note, Outcome, Rows, Sums, has_mass, has_own_weight
from crossent.kernels.triton import losses as kernels
from crossent.kernels.triton.losses import GROUP, Totals
from crossent.kernels.triton.rows import Array, How, Settings, Shape

ROWS = 1024  # in a program of the kernels that read a few numbers for each row
AT_ONCE = 32768  # classes at most that a program holds in its registers: 32 for each of 1,024 threads
THREADS = 1024  # of a program at most
WARP = 64 if torch.version.hip else 32  # threads
SHORT = 256  # classes at most, side by side, of rows that share a program
PART = 2048  # classes of a tile at most, where rows are cut into parts
FEW_ROWS = 32  # which one program has, if they are short
FEW = 64  # classes at most, across memory, that stay in the cache while they are read twice
TYPES = {torch.float64: (tl.float64, torch.float64)}  # of the arithmetic, as kernels and PyTorch name it
USUAL = tl.float32, torch.float32


def bits(value):
    """A float as kernels are told it."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


class Cut(NamedTuple):
    """How rows are cut into tiles, see `rows.How`, and how many warps a program has."""

    T: int
    W: int
    R: int
    LOOP: bool
    warps: int


def power(n):
    """The next power of 2."""
    return 1 << (max(1, n) - 1).bit_length()


def cdiv(n, by):
    return -(n // -by)


def cut_of(classes, itemsize, side_by_side, at_most=AT_ONCE):
    """The cut of rows of so many classes, of which at most so many are in a tile.

    A thread has 32 numbers of a tile, 16 of float64 in a loop, whose registers are twice as many, or 64 across memory:
    what there is to do for each row is done by all its threads.
    """
    few = max(1, 128 // WARP)
    if side_by_side and classes <= SHORT:
        return Cut(1, power(classes), 4096 // power(classes), False, few)
    if side_by_side:
        loop = classes > at_most
        of_thread, line = 16 if loop and itemsize == 8 else 32, 16 // itemsize
        tile = min(256 * of_thread, at_most) if loop else power(classes)
        return Cut(tile // line, line, 1, loop, max(1, min(THREADS, tile // of_thread) // WARP))
    if classes <= min(1024, at_most):
        rows = min(512, max(16, 4096 // power(classes)))
        return Cut(1, power(classes), rows, False, max(1, power(classes) * rows // (64 * WARP)))
    return Cut(1, 8, 128 * (16 // itemsize), True, few)


def line_of(itemsize, side_by_side, classes, inner, steps):
    """`rows.How.LINE`: as many numbers as a thread loads at once, or fewer. `steps` are the strides (outer, class,
    inner) of each array.
    """
    line = math.gcd(16 // itemsize, classes if side_by_side else inner)
    for outer, of_class, row in steps:
        beside, apart = (of_class, row) if side_by_side else (row, of_class)
        line = math.gcd(line, outer, apart) if beside == 1 else 1
    return line


def begins_anywhere(cut, rows, line, steps):
    """`rows.How.PEELED`, for arrays whose classes lie side by side, of so many rows in a program."""
    return rows == 1 and cut.T >= 2 * cut.W and line < cut.W and all(step == steps[0] for step in steps)


def run(device, kernel, programs, *arguments, **options):
    """Launch a kernel on the device that has its arguments, whichever is the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        kernel[(programs,)](*arguments, **options)
    else:
        with torch.cuda.device(device):
            kernel[(programs,)](*arguments, **options)


class Walk(NamedTuple):
    """How programs walk over rows: so many programs, each with so many tiles of so many classes; what the kernels are
    told of that. `alone`: any such rows are one program's.
    """

    programs: int
    tiles: int
    classes: int
    shape: Shape
    how: How
    warps: int
    alone: bool


class Layout:
    """Rows as the kernels are told of them, but for the memory that they lie in. A row axis of length 1 is turned
    inside out, so that the rows of the other one share programs.
    """

    def __init__(self, shape, strides, dtype, of_target, weighted, sampled, *others):
        rows = Rows(None, None, None, None, *others)
        self.outer, self.classes, self.inner = shape
        self.turned = self.inner == 1
        if self.turned:
            self.outer, self.inner = 1, self.outer
        if self.classes >= 2**31:
            raise ValueError(f"input must have fewer than 2**31 classes on a GPU, got {self.classes}")
        self.count, self.itemsize = self.outer * self.inner, dtype.itemsize
        self.arithmetic, self.dtype = TYPES.get(dtype, USUAL)
        self.given = strides, *((of_target,) if rows.soft else ())
        options = rows.options
        self.settings = Settings(
            options.ignore_index,
            rows.first_class,
            rows.all_classes,
            bits(options.label_smoothing),
            bits(options.softcap or 1.0),
            bits(options.z_loss),
        )
        self.how = How(
            self.arithmetic,
            SOFT=rows.soft,
            MASS=has_mass(rows),
            WEIGHTED=weighted,
            SAMPLED=sampled,
            CAPPED=options.softcap is not None,
            X_SIDE=self.side_by_side(strides),
            T_SIDE=rows.soft and self.side_by_side(of_target),
        )
        self.walk, self.reduction = cache(self._walk), options.reduction
        self.shape = Shape(self.classes, self.inner, 1, self.count)

    def side_by_side(self, strides):
        return self.classes <= 1 or strides[1] == 1

    def steps(self, strides):
        """The strides (outer, class, inner) of an array (outer, classes, inner) or (outer, inner)."""
        outer, *of_class, inner = strides
        (of_class,) = of_class or (0,)
        return (0, of_class, outer) if self.turned else (outer, of_class, inner)

    def _cut(self, at_most):
        """`cut_of`, with no more rows than there are beside each other; of rows along memory either a few or many, so
        that not every number of rows is compiled for. Few classes across memory are walked in a loop in which each
        thread has rows of its own, so that no class is padded and no thread waits.
        """
        side = self.how.X_SIDE
        if self.how.MASS or self.itemsize == 8:  # which take twice the registers
            at_most = min(at_most, AT_ONCE // 2)
        cut = cut_of(self.classes, self.itemsize, side, at_most)
        if not side and self.classes <= FEW:
            cut = Cut(1, 4, 128 * (16 // self.itemsize), True, max(1, 128 // WARP))
        if not (side and self.turned):
            return cut._replace(R=min(cut.R, power(self.inner)))
        return cut._replace(R=min(cut.R, FEW_ROWS)) if self.inner <= FEW_ROWS else cut

    def _walk(self, at_most=AT_ONCE, dx=None, dtarget=None):
        """The `Walk`; `dx` and `dtarget` are the strides of gradients that are written."""
        cut, arrays = self._cut(at_most), [one for one in (*self.given, dx, dtarget) if one is not None]
        line = line_of(self.itemsize, self.how.X_SIDE, self.classes, self.inner, map(self.steps, arrays))
        side_by_side = all(map(self.side_by_side, arrays))
        how = self.how._replace(
            T=cut.T, W=cut.W, R=cut.R, LOOP=cut.LOOP,
            DX_SIDE=dx is not None and self.side_by_side(dx),
            DT_SIDE=dtarget is not None and self.side_by_side(dtarget),
            LINE=line, PEELED=side_by_side and begins_anywhere(cut, cut.R, line, arrays),
        )  # fmt: skip
        tiles = cdiv(self.classes, cut.T * cut.W)
        blocks, alone = cdiv(self.inner, cut.R), cut.R > 1 and self.turned and self.inner <= min(cut.R, FEW_ROWS)
        shape = self.shape._replace(blocks=blocks)
        return Walk(self.outer * blocks, tiles, cut.T * cut.W, shape, how, cut.warps, alone)


layout_of = kept(Layout)


class Memory:
    """What launches over the rows of a layout write to."""

    def __init__(self, layout, device):
        self.layout, self.device = layout, device

    def array(self, array):
        return Array(array, *self.layout.steps(array.stride()))

    def new(self, *shape, dtype=None):
        return torch.empty(shape, dtype=dtype or self.layout.dtype, device=self.device)

    def losses(self, dtype):
        """Where the losses of rows go; they are kept where nobody adds them up."""
        return self.new(self.layout.count, dtype=dtype) if self.layout.reduction == "none" else None

    def totals(self, programs, note, alone=False, **wanted):
        """Where the totals of so many programs go."""
        if alone:
            return Totals(note.flag, note.found, **wanted)
        groups = cdiv(programs, GROUP.value)
        partial = self.new(3 if wanted else 1, programs + groups, dtype=torch.float64)
        return Totals(note.flag, note.found, partial, counters_on(self.device, 1 + groups), **wanted)

    def wanted(self, dtype):
        """The totals that a loss of this dtype needs."""
        if self.layout.reduction == "none":
            return {}
        numbers, result = self.new(2, dtype=torch.float64), self.new(dtype=dtype)
        if self.layout.reduction == "sum":
            return {"numbers": numbers, "total": result}
        return {"numbers": numbers, "scale": self.new(dtype=torch.float64), "mean": result}


class Launch(Memory):
    """Rows as the kernels are told of them."""

    def __init__(self, rows):
        x, target, weight, samples, *others = rows
        layout = layout_of(
            x.shape, x.stride(), x.dtype, target.stride() if rows.soft else None, weight is not None,
            samples is not None, *others,
        )  # fmt: skip
        super().__init__(layout, x.device)
        self.rows, self.logits, self.count, self.classes = rows, x, layout.count, layout.classes
        self.target = self.array(target) if rows.soft else Array(target.contiguous())
        self.samples = None if samples is None else samples.contiguous()

    def outcome(self, losses, totals, note):
        if losses is not None:
            losses = losses.view(self.logits.shape[0], self.logits.shape[2])
        return Outcome(losses, totals.numbers, note, totals.total, totals.mean, totals.scale)


_ONE = bits(1.0)
_SETTINGS = vars(triton.knobs.runtime), vars(triton.knobs.compilation)  # as they are at any time


@cache
def processors_of(device):
    return torch.cuda.get_device_properties(device).multi_processor_count


def new_note(device):
    """A `Note` in the device's memory."""
    return Note(torch.zeros(1, dtype=torch.int64, device=device), torch.full((3,), -1, device=device))


def no_note(device):
    """Where no label can be bad."""
    return Note(None, None)


class TritonKernels(LossKernels):
    """`processors(device)` is how many multiprocessors it has; logits of `once_from` bytes and more are worth reading
    once, since fewer stay in the cache. `note(device)` makes the `Note` of a call, in any memory that the device may
    write to.
    """

    def __init__(self, processors=processors_of, once_from=2**25, note=new_note):
        self.processors, self.once_from, self.note = processors, once_from, note

    @cached_property
    def of_good_labels(self):
        kernels = copy(self)
        kernels.note = no_note
        return kernels

    def sums(self, rows):
        launch = Launch(rows)
        parts, tiles = self._parts(launch)
        found = self._sums(launch, parts, tiles)
        if parts > 1:
            found, of_parts = launch.new(6, launch.count), found
            self._second_stage(launch, of_parts, parts, found, None, None)
        return _views(rows, found)

    def forward(self, rows, dtype=None):
        launch = Launch(rows)
        parts, tiles = self._parts(launch)
        walk = launch.layout.walk()
        if parts == 1 and walk.programs:
            losses, note = launch.losses(dtype), self.note(launch.device)
            totals = launch.totals(walk.programs, note, walk.alone, **launch.wanted(dtype))
            sums = self._sums(launch, parts, tiles, losses, totals)
            return StackedSums(sums), launch.outcome(losses, totals, note)
        sums = self._sums(launch, parts, tiles)
        merged = launch.new(6, launch.count) if parts > 1 else None
        outcome = self._losses(launch, sums, parts, merged, dtype)
        return StackedSums(sums if merged is None else merged), outcome

    def losses(self, rows, sums, dtype=None):
        launch = Launch(rows)
        return self._losses(launch, _stacked(launch, sums), 1, None, dtype)

    def gradients(self, rows, sums, upstream, scale, want_target, over_logits):
        launch, x, target = Launch(rows), rows.logits, rows.target
        dx = x if over_logits else torch.empty_like(x)
        dtarget = torch.empty_like(target) if want_target else None
        if not (launch.count and launch.classes):
            return dx, dtarget
        walk = launch.layout.walk(4096, dx.stride(), dtarget.stride() if want_target else None)
        by, scale = (1.0, scale) if isinstance(scale, torch.Tensor) else (scale, None)
        run(
            launch.device, kernels.gradients_of_rows, walk.programs * walk.tiles,
            launch.array(x), launch.target, rows.weight, launch.samples, _stacked(launch, sums), launch.array(upstream),
            bits(by), scale, launch.array(dx), launch.array(dtarget) if want_target else None, walk.tiles,
            *walk.shape, launch.layout.settings, walk.how, num_warps=walk.warps,
        )  # fmt: skip
        return dx, dtarget

    def ready_step(self, shape, row_shape, dtype, options, loss_dtype, device):
        _, classes, inner = shape
        once = options.reduction != "none" and self._is_best_at_once(math.prod(shape), dtype)
        strides = classes * inner, inner, 1
        layout = layout_of(shape, strides, dtype, None, False, False, options, False, 0, classes)
        if once or not math.prod(shape):
            return None
        parts, _ = self._parts(Memory(layout, device))
        return ReadyStep(layout, strides, row_shape, loss_dtype, device, self.note) if parts == 1 else None

    def is_best_at_once(self, logits, over_logits=False):
        return self._is_best_at_once(logits.numel(), logits.dtype, over_logits)

    def _is_best_at_once(self, numbers, dtype, over_logits=False):
        # float16: what its numbers cannot hold yet, an upstream gradient may scale up.
        may_wait = over_logits or dtype is not torch.float16
        return may_wait and numbers * dtype.itemsize >= max(1, self.once_from)

    def at_once(self, rows, mean, divisor, dtype, over_logits=False):
        launch, x, note = Launch(rows), rows.logits, self.note(rows.logits.device)
        dx = x if over_logits else torch.empty_like(x)
        walk = launch.layout.walk(AT_ONCE, dx.stride())
        scale = self._scale(launch, divisor, note) if mean else None
        totals = launch.totals(walk.programs, note, walk.alone, **launch.wanted(dtype))
        sums, losses = launch.new(6, launch.count), launch.losses(dtype)
        run(
            launch.device, kernels.at_once, walk.programs,
            launch.array(x), launch.target, rows.weight, launch.samples, sums, scale, launch.array(dx), losses, totals,
            walk.programs, *walk.shape, launch.layout.settings, walk.how, num_warps=walk.warps,
        )  # fmt: skip
        return StackedSums(sums), launch.outcome(losses, totals, note), dx

    def multiply(self, gradient, by):
        arithmetic, _ = TYPES.get(gradient.dtype, USUAL)
        count, block = gradient.numel(), 4096
        programs = cdiv(count, block)
        run(gradient.device, kernels.multiplied, programs, gradient, by, count, How(arithmetic), BLOCK=block)

    def packed(self, rows, sums):
        return sums.stacked

    def unpacked(self, rows, packed):
        return StackedSums(packed)

    def _scale(self, launch, divisor, note):
        """What the losses are multiplied by in their mean, before they are known; where kernels find it."""
        if divisor is not None:
            return 1.0 / (torch.zeros((), dtype=torch.float64, device=launch.device) + divisor)
        programs = cdiv(launch.count, ROWS)
        scale = launch.new(dtype=torch.float64)
        totals = launch.totals(programs, note, numbers=launch.new(2, dtype=torch.float64), scale=scale)
        run(
            launch.device, kernels.weights_of_rows, programs,
            launch.target, launch.rows.weight, launch.samples, totals, programs, *launch.layout.shape,
            launch.layout.settings, launch.layout.how, BLOCK=ROWS,
        )  # fmt: skip
        return scale

    def _parts(self, launch):
        """In how many parts the classes of each row are read, and how many tiles each has."""
        layout, processors = launch.layout, self.processors(launch.device)
        walk = layout.walk()
        if walk.programs >= processors or layout.classes <= 4096:
            return 1, walk.tiles
        walk = layout.walk(PART)  # few long rows would leave processors without work
        of_part = max(1, cdiv(walk.tiles, cdiv(2 * processors, max(1, walk.programs))))
        return cdiv(walk.tiles, of_part), of_part

    def _sums(self, launch, parts, tiles, losses=None, totals=None):
        """The sums of each part of the rows' classes; with `losses` and `totals` these as well."""
        walk, found = launch.layout.walk(AT_ONCE if parts == 1 else PART), launch.new(6 * parts, launch.count)
        if launch.count:
            run(
                launch.device, kernels.sums_of_rows, walk.programs * parts,
                launch.array(launch.logits), launch.target, launch.rows.weight, launch.samples, found, losses, totals,
                parts, tiles, walk.programs, *walk.shape, launch.layout.settings, walk.how, num_warps=walk.warps,
            )  # fmt: skip
        return found

    def _losses(self, launch, sums, parts, merged, dtype):
        losses, note = launch.losses(dtype), self.note(launch.device)
        totals = launch.totals(max(1, cdiv(launch.count, ROWS)), note, **launch.wanted(dtype))
        self._second_stage(launch, sums, parts, merged, losses, totals)
        return launch.outcome(losses, totals, note)

    def _second_stage(self, launch, sums, parts, merged, losses, totals):
        programs = max(1, cdiv(launch.count, ROWS))
        run(
            launch.device, kernels.losses_of_rows, programs,
            launch.target, launch.samples, sums, parts, merged, losses, totals, programs, *launch.layout.shape,
            launch.layout.settings, launch.layout.how, BLOCK=ROWS,
        )  # fmt: skip


class _ReadyLaunch:
    """A launch of which all but the addresses is known. The kernel is looked for once for addresses that are multiples
    of 16 alike, until Triton's settings change: of itself Triton does that at every launch, which takes longer than the
    launch.
    """

    def __init__(self, device, kernel, programs, numbers, warps):
        self.device, self.kernel, self.grid, self.numbers = device, kernel, (programs, 1, 1), numbers
        self.options, self.found, self.settings = {"num_warps": warps}, {}, ()

    def __call__(self, aligned, *arrays):
        if self.device.type == "cuda" and self.device.index != torch.cuda.current_device():
            with torch.cuda.device(self.device):
                return self(aligned, *arrays)
        launch = self.found.get(aligned) if self.settings == _SETTINGS else None
        if launch is None:
            launch = self._find(aligned, *arrays)
        launch(*arrays, *self.numbers)

    def _find(self, aligned, *arrays):
        usual, runtime = partial(self.kernel[self.grid], **self.options), triton.knobs.runtime
        if runtime.interpret or runtime.add_stages_inspection_hook is not None:  # what the hook does may change
            return usual
        if self.settings != _SETTINGS:
            self.found, self.settings = {}, tuple(map(dict, _SETTINGS))
        found = self.found
        compiled = self.kernel.warmup(*arrays, *self.numbers, grid=self.grid, **self.options)
        if not isinstance(compiled, CompiledKernel):  # others compile it, or it will be there later
            return usual
        found[aligned] = compiled[self.grid]
        return found[aligned]


class ReadyStep(Memory):
    """What `LossKernels.ready_step` gives out: nothing is looked up but what depends on the addresses of tensors."""

    def __init__(self, layout, strides, row_shape, loss_dtype, device, note):
        super().__init__(layout, device)
        self.row_shape, self.loss_dtype, self.note, self.steps = row_shape, loss_dtype, note, layout.steps(strides)
        self.above = layout.steps((strides[1], 1) if layout.reduction == "none" else (0, 0))
        walk = layout.walk()
        self.programs, self.alone = walk.programs, walk.alone
        numbers = 1, walk.tiles, walk.programs, *walk.shape, layout.settings, walk.how
        self.sums = _ReadyLaunch(device, kernels.sums_of_rows, walk.programs, numbers, walk.warps)
        walk = layout.walk(4096, strides)
        numbers, programs = (None, walk.tiles, *walk.shape, layout.settings, walk.how), walk.programs * walk.tiles
        self.gradients = _ReadyLaunch(device, kernels.gradients_of_rows, programs, numbers, walk.warps)

    def forward(self, x, target):
        """The losses, or their sum or mean; the sums, what a mean is multiplied by, and the `Note`."""
        note, sums, losses = self.note(self.device), self.new(6, self.layout.count), None
        if self.layout.reduction == "none":
            losses = self.new(*self.row_shape, dtype=self.loss_dtype)
        totals = self.totals(self.programs, note, self.alone, **self.wanted(self.loss_dtype))
        aligned = x.data_ptr() % 16 == 0, target.data_ptr() % 16 == 0
        self.sums(aligned, Array(x, *self.steps), Array(target), None, None, sums, losses, totals)
        loss = losses if losses is not None else totals.total if totals.mean is None else totals.mean
        return loss, StackedSums(sums), totals.scale, note

    def backward(self, x, target, sums, scale, upstream):
        """The gradient of the logits. The upstream gradient is one number, or lies dense in memory."""
        dx = torch.empty_like(x)
        aligned = x.data_ptr() % 16 == 0, target.data_ptr() % 16 == 0, upstream.data_ptr() % 16 == 0
        self.gradients(
            aligned, Array(x, *self.steps), Array(target), None, None, sums.stacked, Array(upstream, *self.above),
            _ONE, scale if isinstance(scale, torch.Tensor) else None, Array(dx, *self.steps),
        )  # fmt: skip
        return dx


class StackedSums(NamedTuple):
    """The `Sums` of rows as one array (6, rows), for the second stage alone."""

    stacked: Any


def _views(rows, found):
    shape = rows.logits.shape[0], rows.logits.shape[2]
    views = dict(zip(Sums._fields, (one.view(shape) for one in found.view(6, -1))))
    if not has_own_weight(rows):
        views["own_weight"] = None
    if not has_mass(rows):
        views["mass"] = views["dot"] = None
    return Sums(**views)


def _stacked(launch, sums):
    if isinstance(sums, StackedSums):
        return sums.stacked
    found = launch.new(6, launch.count)
    for name, into in zip(Sums._fields, found):
        one = getattr(sums, name)
        into.copy_(one.reshape(-1)) if one is not None else into.fill_(1.0 if name == "own_weight" else 0.0)
    return found


_counters = {}


def counters_on(device, count):
    """So many counts of a stream's programs, 0 between launches."""
    key = device, _stream_on(device)
    if key not in _counters or len(_counters[key]) < count:
        if key[1] is None or not may_keep_memory():
            return torch.zeros(count, dtype=torch.int32, device=device)
        _counters[key] = torch.zeros(max(1024, power(count)), dtype=torch.int32, device=device)
    return _counters[key]


def _stream_on(device):
    """The current stream's number. None if others may use at the same time what its launches use: a captured graph may
    run beside others.
    """
    if device.type != "cuda":
        return None
    with torch.cuda.device(device):
        return None if torch.cuda.is_current_stream_capturing() else torch.cuda.current_stream().stream_id
