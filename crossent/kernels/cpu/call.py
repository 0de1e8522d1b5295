"""A call of a kernel: one block of memory that holds all it is told, shared by the threads that work on it.

A block is a row of 8-byte fields: what `_take_part` shares the work out by, then what changes from call to call, then
what belongs to the plan; three numbers for every chunk of rows follow, and scratch memory if one chunk needs little.
A kernel is a C function

    kernel(call, scratch, lo, hi, sums)

that works on the units lo to hi (rows, or tiles of rows) and leaves three numbers at `sums`: the first bad row or OK,
the sum of the losses and that of the weights. It sees the fields of the block by name, and beside them two numbers,
`storage` and `compute`, whose types say how the logits are stored and how what is computed from them is.
"""

import ctypes
import struct
from collections import namedtuple
from functools import cache
from threading import local

import numpy as np
from numba import from_dtype, types

from crossent.kernels import BadLabel
from crossent.kernels.cpu import threads as helpers, vector as v
from crossent.kernels.cpu.compile import compiled, inline
from crossent.kernels.cpu.rows import DOUBLES, LABELS, OK

_TYPES = {
    "float16": (np.int16, np.float32),
    "bfloat16": (np.uint16, np.float32),
    "bfloat16 pairs": (np.uint16, np.uint32),
    "float32": (np.float32, np.float32),
    "float64": (np.float64, np.float64),
}
_SHARING = (
    "chunks", "step", "units", "scratch_size", "sums", "bad", "losses", "weights",
    "next", "finished", "entered", "threads", "scratch", "kernel",
)  # fmt: skip
(
    _CHUNKS, _STEP, _UNITS, _SCRATCH_SIZE, _SUMS, _BAD, _LOSSES, _WEIGHTS,
    _NEXT, _FINISHED, _ENTERED, _THREADS, _SCRATCH, _KERNEL,
) = range(len(_SHARING))  # fmt: skip
_FLOATS = {"losses", "weights", "weight_total", "scale", "smoothing", "cap", "z_loss"}
_SUMS_OF_A_CHUNK = 3
_outcome = struct.Struct("=qdd").unpack_from
_OUTCOME_AT, _CHANGING_AT = 8 * _BAD, 8 * _NEXT
_CACHE_LINE = 64
_KEPT_AT_MOST = 2**20  # bytes
_SCRATCH_IN_A_BLOCK = 2**12
_own = local()


def strides(name):
    return f"{name}_outer", f"{name}_class", f"{name}_inner"


def strided(name):
    """An array's address and strides."""
    return name, *strides(name)


def strides_of(**arrays):
    """The strides of arrays as fields, by name."""
    return {field: stride for name, given in arrays.items() for field, stride in zip(strides(name), given, strict=True)}


class Fields:
    """The fields of a family of calls, and the kernels that take them.

    `first` change from call to call, and `then` too, which only a backward kernel looks at; `fixed` do not.
    """

    def __init__(self, first, then, fixed):
        self.names, self.fixed = (*_SHARING, *first, *then, *fixed), fixed
        codes = ["d" if name in _FLOATS else "q" for name in self.names]
        end = len(_SHARING) + len(first)
        self.pack_first, self.pack_changing, self.pack_fixed = (
            struct.Struct("=" + "".join(part)).pack_into
            for part in (codes[_NEXT:end], codes[_NEXT : end + len(then)], codes[end + len(then) :])
        )
        self.fixed_at, self.size = 8 * (end + len(then)), 8 * (len(self.names) + 2)


@cache
def kernel_of(function, storage, names):
    """The compiled kernel for logits stored so, told of these fields."""
    formats = [np.float64 if name in _FLOATS else np.int64 for name in names]
    names, formats = (*names, "storage", "compute"), (*formats, *_TYPES[storage])
    offsets = [8 * i for i in range(len(names))]
    fields = np.dtype({"names": names, "formats": formats, "offsets": offsets})
    return compiled(function, (from_dtype(fields), *[types.intp] * 4))


@inline
def _field(call, which):
    return v.load_scalar(LABELS, call, which)


def _take_part(call):
    """What every thread does; 1 for the one that finishes the last chunk, when the outcome is in the block."""
    chunks, step, units, sums = _field(call, _CHUNKS), _field(call, _STEP), _field(call, _UNITS), _field(call, _SUMS)
    scratch = _field(call, _SCRATCH) + v.fetch_add(call, _ENTERED) * _field(call, _SCRATCH_SIZE)
    # Threads side by side work far from each other, so that they do not ask for the same new page of memory at once.
    threads = _field(call, _THREADS)
    span = (chunks + threads - 1) // threads
    finished_last = 0
    while True:
        turn = v.fetch_add(call, _NEXT)
        if turn >= threads * span:
            break
        chunk = turn % threads * span + turn // threads
        if chunk >= chunks:
            continue
        lo = chunk * step
        v.invoke(_field(call, _KERNEL), call, scratch, lo, min(lo + step, units),
               v.at(DOUBLES, sums, chunk * _SUMS_OF_A_CHUNK))  # fmt: skip
        if v.fetch_add(call, _FINISHED) == chunks - 1:
            losses, weights, bad = 0.0, 0.0, OK
            for i in range(0, chunks * _SUMS_OF_A_CHUNK, _SUMS_OF_A_CHUNK):
                if bad == OK:
                    bad = v.load_scalar(LABELS, sums, i)
                losses += v.load_scalar(DOUBLES, sums, i + 1)
                weights += v.load_scalar(DOUBLES, sums, i + 2)
            v.store_scalar(LABELS, call, _BAD, bad)
            v.store_scalar(DOUBLES, call, _LOSSES, losses)
            v.store_scalar(DOUBLES, call, _WEIGHTS, weights)
            finished_last = 1
    return finished_last


@cache
def _entry():
    kernel = compiled(_take_part, (types.intp,), types.intp)
    function = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p)(kernel.address)
    function.owner = kernel
    return function


class _Block:
    """Memory, its address and, for a call that needs little scratch memory, the address of that, else 0."""

    __slots__ = ("_export", "address", "memory", "scratch")

    def __init__(self, size, scratch_size):
        self.memory = bytearray(size + scratch_size + _CACHE_LINE)
        self._export = ctypes.c_char.from_buffer(self.memory)
        self.address = ctypes.addressof(self._export)
        self.scratch = -(-(self.address + size) // _CACHE_LINE) * _CACHE_LINE if scratch_size else 0


def _scratch(size, threads):
    """(address, owner) of scratch memory for so many threads; a thread keeps what it needs alone, if it is little."""
    kept = threads == 1 and size <= _KEPT_AT_MOST
    if kept and getattr(_own, "size", 0) >= size:
        return _own.scratch
    memory = np.empty(size * threads + _CACHE_LINE, np.uint8)
    scratch = -(-memory.__array_interface__["data"][0] // _CACHE_LINE) * _CACHE_LINE, memory
    if kept:
        _own.size, _own.scratch = size, scratch
    return scratch


# What a kernel works on: so many rows, or what else it counts, how many are a chunk, and bytes of scratch memory.
Work = namedtuple("Work", "units step scratch_size")


class Launcher:
    """The calls of one kernel in a plan. How units are cut into chunks does not depend on the number of threads.

    `fixed` has the fields that do not change from call to call, by name. Only a `backward` kernel is told all others.
    """

    __slots__ = (
        "_blocks", "_chunks", "_contained", "_entry", "_fields", "_fixed", "_function", "_kernel", "_pack",
        "_scratch_size", "_sharing", "_storage",
    )  # fmt: skip

    def __init__(self, fields, function, storage, work, fixed, backward=False):
        self._fields, self._function, self._storage = fields, function, storage
        self._pack = fields.pack_changing if backward else fields.pack_first
        self._fixed = [fixed[name] for name in fields.fixed]
        self._scratch_size = -(-work.scratch_size // _CACHE_LINE) * _CACHE_LINE
        self._chunks = max(1, -(-work.units // work.step))
        self._contained = self._chunks == 1 and self._scratch_size <= _SCRATCH_IN_A_BLOCK
        self._sharing = self._chunks, work.step, work.units, self._scratch_size
        self._entry, self._kernel, self._blocks = _entry(), None, []

    def _new_block(self):
        fields = self._fields
        if self._kernel is None:  # what is never called is never compiled
            self._kernel = kernel_of(self._function, self._storage, fields.names).address
        size = fields.size + 8 * _SUMS_OF_A_CHUNK * self._chunks
        block = _Block(size, self._scratch_size if self._contained else 0)
        struct.pack_into("=5q", block.memory, 0, *self._sharing, block.address + fields.size)
        fields.pack_fixed(block.memory, fields.fixed_at, *self._fixed)
        return block

    def run(self, changing, threads, owners):
        """The sums of losses and weights, on up to `threads()` threads.

        `owners` keeps memory alive even if the caller is interrupted.
        """
        try:
            block = self._blocks.pop()
        except IndexError:
            block = self._new_block()
        at_once, scratch, over = 1, block.scratch, True
        if not self._contained:
            if self._chunks > 1:
                at_once = min(threads(), self._chunks)
            if self._scratch_size:
                scratch, memory = _scratch(self._scratch_size, at_once)
                owners = owners, memory
        self._pack(block.memory, _CHANGING_AT, 0, 0, 0, at_once, scratch, self._kernel, *changing)
        if at_once == 1:
            self._entry(block.address)
        else:
            over = helpers.run(self._entry, block, at_once, owners)
        bad, losses, weights = _outcome(block.memory, _OUTCOME_AT)
        if over:
            self._blocks.append(block)
        if bad != OK:
            raise BadLabel(bad)
        return losses, weights
