"""From rows to launches: how they are cut into programs, and what the kernels are told.

What is read or written lies where the caller says, by strides; what the kernels leave for each other is dense. Nothing
waits for the device.
"""

import struct
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
import triton.language as tl

from crossent.kernels import LossKernels, Outcome, Sums, has_mass, has_own_weight
from crossent.kernels.triton import losses as kernels
from crossent.kernels.triton.losses import Totals
from crossent.kernels.triton.rows import Array, How, Settings, Shape

ROWS = 1024  # in a program of the kernels that read a few numbers for each row
AT_ONCE = 32768  # classes at most that a program holds in its registers: 32 for each of 1,024 threads
THREADS = 1024  # of a program at most
WARP = 64 if torch.version.hip else 32  # threads
SHORT = 256  # classes at most, side by side, of rows that share a program
FEW = 64  # classes at most, across memory, that stay in the cache while they are read twice
TYPES = {torch.float64: (tl.float64, torch.float64)}  # of the arithmetic, as kernels and PyTorch name it
USUAL = tl.float32, torch.float32


def bits(value):
    """A float as kernels are told it."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


@dataclass(frozen=True)
class Cut:
    """How rows are cut into tiles, see `rows.How`, and how many warps a program has."""

    T: int
    W: int
    R: int
    LOOP: bool
    warps: int

    @property
    def classes(self):
        return self.T * self.W


def power(n):
    return triton.next_power_of_2(max(1, n))


@cache
def cut_of(classes, itemsize, side_by_side, at_most=AT_ONCE):
    """The cut of rows of so many classes, of which at most so many are in a tile.

    A thread has 32 numbers of a tile, or 64 across memory: what there is to do for each row is done by all its threads.
    """
    few = max(1, 128 // WARP)
    if side_by_side and classes <= SHORT:
        return Cut(1, power(classes), 4096 // power(classes), False, few)
    if side_by_side:
        loop = classes > at_most
        tile, line = min(8192, at_most) if loop else power(classes), 16 // itemsize
        return Cut(tile // line, line, 1, loop, max(1, min(THREADS, tile // 32) // WARP))
    if classes <= min(1024, at_most):
        rows = min(512, max(16, 4096 // power(classes)))
        return Cut(1, power(classes), rows, False, max(1, power(classes) * rows // (64 * WARP)))
    return Cut(1, 8, 128 * (16 // itemsize), True, few)


def side_by_side(array):
    return array.shape[1] <= 1 or array.stride(1) == 1


def run(device, kernel, programs, *arguments, **options):
    """Launch a kernel on the device that has its arguments, whichever is the current one."""
    with torch.cuda.device(device if device.type == "cuda" else -1):  # -1: none
        kernel[(programs,)](*arguments, **options)


class Launch:
    """Rows as the kernels are told of them. A row axis of length 1 is turned inside out, so that the rows of the other
    one share programs.
    """

    def __init__(self, rows):
        self.rows, self.logits = rows, rows.logits
        self.outer, self.classes, self.inner = rows.logits.shape
        self.turned = self.inner == 1
        if self.turned:
            self.outer, self.inner = 1, self.outer
        if self.classes >= 2**31:
            raise ValueError(f"input must have fewer than 2**31 classes on a GPU, got {self.classes}")
        self.count, self.device = self.outer * self.inner, rows.logits.device
        self.arithmetic, self.dtype = TYPES.get(rows.logits.dtype, USUAL)
        self.target = self.array(rows.target if rows.soft else rows.target.contiguous())
        self.samples = None if rows.sample_weight is None else rows.sample_weight.contiguous()
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
            WEIGHTED=rows.weight is not None,
            SAMPLED=rows.sample_weight is not None,
            CAPPED=options.softcap is not None,
            X_SIDE=side_by_side(rows.logits),
            T_SIDE=rows.soft and side_by_side(rows.target),
        )

    def array(self, array):
        """An array (outer, classes, inner) or (outer, inner)."""
        outer, *of_class, inner = array.stride()
        (of_class,) = of_class or (0,)
        return Array(array, 0, of_class, outer) if self.turned else Array(array, outer, of_class, inner)

    def new(self, *shape, dtype=None):
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def cut(self, at_most=AT_ONCE):
        """`cut_of`, with no more rows than there are beside each other. Few classes across memory are walked in a loop
        in which each thread has rows of its own, so that no class is padded and no thread waits.
        """
        itemsize, side = self.logits.element_size(), self.how.X_SIDE
        if self.how.MASS or itemsize == 8:  # which take twice the registers
            at_most = min(at_most, AT_ONCE // 2)
        cut = cut_of(self.classes, itemsize, side, at_most)
        if not side and self.classes <= FEW:
            cut = Cut(1, 4, 128 * (16 // itemsize), True, max(1, 128 // WARP))
        return replace(cut, R=min(cut.R, power(self.inner)))

    def cut_how(self, cut, *others, **more):
        """`others` are arrays beside the logits and probabilities, (outer, classes, inner)."""
        arrays = self.logits, *(one for one in others if one is not None)
        line = self.line(arrays if not self.how.SOFT else (*arrays, self.rows.target))
        return self.how._replace(T=cut.T, W=cut.W, R=cut.R, LOOP=cut.LOOP, LINE=line, **more)

    def line(self, arrays):
        """`How.LINE`: as many numbers as a thread loads at once, or 1."""
        line, side = 16 // self.logits.element_size(), self.how.X_SIDE
        steps = [self.classes if side else self.inner]
        for _, outer, of_class, inner in map(self.array, arrays):
            steps += (outer, inner) if side else (outer, of_class)
            if (of_class if side else inner) != 1:
                return 1
        return 1 if any(step % line for step in steps) else line

    def blocks(self, cut):
        return triton.cdiv(self.inner, cut.R)

    def shape(self, blocks=1):
        return Shape(self.classes, self.inner, blocks, self.count)

    def totals(self, programs, dtype, through=None):
        """`through` is a counter that an earlier kernel makes 0."""
        numbers, partial = self.new(3, dtype=torch.float64), self.new(3, programs, dtype=torch.float64)
        bad, through = self.new(2, dtype=torch.int64), counter_on(self.device) if through is None else through
        return Totals(numbers, self.new(dtype=dtype), bad, partial, through)

    def outcome(self, losses, totals):
        losses = losses.view(self.logits.shape[0], self.logits.shape[2])
        total, weight, scale = totals.numbers.unbind()
        bad, label = totals.bad.unbind()
        return Outcome(losses, (total, weight), bad, totals.mean, scale, None if self.rows.soft else label)


@cache
def processors_of(device):
    return torch.cuda.get_device_properties(device).multi_processor_count


class TritonKernels(LossKernels):
    """`processors(device)` is how many multiprocessors it has; logits of `once_from` bytes and more are worth reading
    once, since fewer stay in the cache.
    """

    def __init__(self, processors=processors_of, once_from=2**25):
        self.processors, self.once_from = processors, once_from

    def sums(self, rows):
        launch = Launch(rows)
        found, parts = self._sums(launch)
        if parts > 1:
            found = self._merged(launch, found, parts)
        return _views(rows, found.view(6, launch.count))

    def forward(self, rows, dtype=None):
        launch = Launch(rows)
        through = launch.new(1, dtype=torch.int32) if launch.count else None
        found, parts = self._sums(launch, through)
        merged = launch.new(6, launch.count) if parts > 1 else None
        outcome = self._losses(launch, found, parts, merged, dtype, through)
        return _views(rows, (found if merged is None else merged).view(6, launch.count)), outcome

    def losses(self, rows, sums, dtype=None):
        launch = Launch(rows)
        return self._losses(launch, _stacked(launch, sums), 1, None, dtype)

    def gradients(self, rows, sums, upstream, scale, want_target, over_logits):
        launch, x, target = Launch(rows), rows.logits, rows.target
        dx = x if over_logits else torch.empty_like(x)
        dtarget = torch.empty_like(target) if want_target else None
        if not (launch.count and launch.classes):
            return dx, dtarget
        cut = launch.cut(at_most=4096)
        tiles, blocks = triton.cdiv(launch.classes, cut.classes), launch.blocks(cut)
        by, scale = (1.0, scale) if isinstance(scale, torch.Tensor) else (scale, None)
        sides = {"DX_SIDE": side_by_side(dx), "DT_SIDE": want_target and side_by_side(dtarget)}
        how = launch.cut_how(cut, dx, dtarget, **sides)
        run(
            launch.device, kernels.gradients_of_rows, launch.outer * blocks * tiles,
            launch.array(x), launch.target, rows.weight, launch.samples, _stacked(launch, sums), launch.array(upstream),
            bits(by), scale, launch.array(dx), launch.array(dtarget) if want_target else None, tiles,
            launch.shape(blocks), launch.settings, how, num_warps=cut.warps,
        )  # fmt: skip
        return dx, dtarget

    def is_best_at_once(self, logits, over_logits=False):
        # float16: what its numbers cannot hold yet, an upstream gradient may scale up.
        may_wait = over_logits or logits.dtype is not torch.float16
        return may_wait and logits.numel() * logits.element_size() >= max(1, self.once_from)

    def at_once(self, rows, mean, divisor, dtype, over_logits=False):
        launch, x = Launch(rows), rows.logits
        dx, cut = x if over_logits else torch.empty_like(x), launch.cut()
        blocks = launch.blocks(cut)
        programs = launch.outer * blocks
        scale = self._scale(launch, divisor) if mean else torch.ones((), dtype=launch.dtype, device=x.device)
        totals = launch.totals(programs, dtype or launch.dtype)
        sums, losses = launch.new(6, launch.count), launch.new(launch.count, dtype=dtype)
        run(
            launch.device, kernels.at_once, programs,
            launch.array(x), launch.target, rows.weight, launch.samples, sums, scale, launch.array(dx), losses, totals,
            programs, launch.shape(blocks), launch.settings, launch.cut_how(cut, dx, DX_SIDE=side_by_side(dx)),
            num_warps=cut.warps,
        )  # fmt: skip
        return _views(rows, sums), launch.outcome(losses, totals), dx

    def multiply(self, gradient, by):
        arithmetic, _ = TYPES.get(gradient.dtype, USUAL)
        count, block = gradient.numel(), 4096
        programs = triton.cdiv(count, block)
        run(gradient.device, kernels.multiplied, programs, gradient, by, count, How(arithmetic), BLOCK=block)

    def packed(self, rows, sums):
        return sums.stacked

    def unpacked(self, rows, packed):
        return _views(rows, packed)

    def _scale(self, launch, divisor):
        """What the losses are multiplied by in their mean, before they are known; where kernels find it."""
        if divisor is not None:
            return 1.0 / (torch.zeros((), dtype=torch.float64, device=launch.device) + divisor)
        programs = triton.cdiv(launch.count, ROWS)
        totals = launch.totals(programs, launch.dtype)
        run(
            launch.device, kernels.weights_of_rows, programs,
            launch.target, launch.rows.weight, launch.samples, totals, programs, launch.shape(), launch.settings,
            launch.how, BLOCK=ROWS,
        )  # fmt: skip
        return totals.numbers[2]

    def _sums(self, launch, through=None):
        """The sums of each part of the rows' classes, and how many parts there are; `through` is made 0."""
        cut, processors = launch.cut(), self.processors(launch.device)
        programs, parts, span = launch.outer * launch.blocks(cut), 1, max(1, launch.classes)
        if programs < processors and launch.classes > 4096:  # few long rows would leave processors without work
            cut = launch.cut(at_most=2048)
            tiles, programs = triton.cdiv(launch.classes, cut.classes), launch.outer * launch.blocks(cut)
            span = triton.cdiv(tiles, triton.cdiv(2 * processors, max(1, programs))) or 1
            span *= cut.classes
            parts = triton.cdiv(launch.classes, span)
        found = launch.new(parts, 6, launch.count)
        if launch.count:
            run(
                launch.device, kernels.sums_of_rows, programs * parts,
                launch.array(launch.logits), launch.target, launch.rows.weight, launch.samples, found,
                through, parts, span,
                launch.shape(launch.blocks(cut)), launch.settings, launch.cut_how(cut), num_warps=cut.warps,
            )  # fmt: skip
        return found, parts

    def _merged(self, launch, sums, parts):
        merged = launch.new(6, launch.count)
        self._second_stage(launch, sums, parts, merged, None, None, max(1, triton.cdiv(launch.count, ROWS)))
        return merged

    def _losses(self, launch, sums, parts, merged, dtype, through=None):
        programs, dtype = max(1, triton.cdiv(launch.count, ROWS)), dtype or launch.dtype
        losses, totals = launch.new(launch.count, dtype=dtype), launch.totals(programs, dtype, through)
        self._second_stage(launch, sums, parts, merged, losses, totals, programs)
        return launch.outcome(losses, totals)

    def _second_stage(self, launch, sums, parts, merged, losses, totals, programs):
        run(
            launch.device, kernels.losses_of_rows, programs,
            launch.target, launch.samples, sums, parts, merged, losses, totals, programs, launch.shape(),
            launch.settings, launch.how, BLOCK=ROWS,
        )  # fmt: skip


class _StackedSums(Sums):
    """Sums that are views of one array, `stacked`."""

    stacked = None


def _views(rows, found):
    shape = rows.logits.shape[0], rows.logits.shape[2]
    views = dict(zip(Sums._fields, (one.view(shape) for one in found)))
    if not has_own_weight(rows):
        views["own_weight"] = None
    if not has_mass(rows):
        views["mass"] = views["dot"] = None
    sums = _StackedSums(**views)
    sums.stacked = found
    return sums


def _stacked(launch, sums):
    """The sums as one array (6, rows)."""
    if isinstance(sums, _StackedSums):
        return sums.stacked
    found = launch.new(6, launch.count)
    for name, into in zip(Sums._fields, found):
        one = getattr(sums, name)
        into.copy_(one.reshape(-1)) if one is not None else into.fill_(1.0 if name == "own_weight" else 0.0)
    return found


_counters = {}


def counter_on(device):
    """The count of a stream's programs, 0 between launches; a captured graph, which may run beside others, has one of
    its own.
    """
    if device.type != "cuda":
        return torch.zeros(1, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return torch.zeros(1, dtype=torch.int32, device=device)
        key = device, torch.cuda.current_stream().stream_id
    if key not in _counters:
        _counters[key] = torch.zeros(1, dtype=torch.int32, device=device)
    return _counters[key]
