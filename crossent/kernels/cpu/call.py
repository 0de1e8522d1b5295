"""A call of a kernel: one block of memory with everything that the kernel is told, shared by the threads that run it.

A block starts with 8-byte fields: first those by which `_take_part` shares out the work, then those that change from
call to call, then those of the plan. Three numbers for every chunk of rows follow, and then scratch memory, if there is
only one chunk and it needs little. A kernel is a C function

    kernel(call, scratch, lo, hi, sums)

that works on the units lo to hi (rows, or tiles of rows) and writes three numbers to `sums`: the first bad row or OK,
the sum of the losses and the sum of the weights. It reads the fields of the block by name. Two more fields, `storage`
and `compute`, are there for their types: how the logits are stored, and how results of the arithmetic are stored.
"""

import ctypes
import struct
from collections import namedtuple
from functools import cache
from threading import local

import numpy as np
from numba import from_dtype, types

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
_Sharing = namedtuple(
    "_Sharing", "chunks step units scratch_size sums bad losses weights next finished entered threads scratch kernel"
)
_AT = _Sharing(*range(len(_Sharing._fields)))  # the numbers of the fields
_FLOATS = {"losses", "weights", "weight_total", "scale", "smoothing", "cap", "z_loss"}
_SUMS_OF_A_CHUNK = 3
_outcome = struct.Struct("=qdd").unpack_from
_OUTCOME_AT, _CHANGING_AT = 8 * _AT.bad, 8 * _AT.next
_CACHE_LINE = 64
_KEPT_AT_MOST = 2**20  # bytes of scratch memory
_SCRATCH_IN_A_BLOCK = 2**12  # bytes; this saves 0.3 of 5 us of an evaluation of 32 x 10 (`python -m benchmarks.floor`)
_own = local()


def strides(name):
    return f"{name}_outer", f"{name}_class", f"{name}_inner"


def strided(name):
    """The names of the fields for an array's address and strides."""
    return name, *strides(name)


def strides_of(**arrays):
    """The strides of arrays as values of fields, by the fields' names."""
    return {field: stride for name, given in arrays.items() for field, stride in zip(strides(name), given, strict=True)}


class BadLabel(Exception):
    """A row's label is neither a class nor ignored."""

    def __init__(self, row):
        super().__init__(row)
        self.row = row


class Fields:
    """The fields of a family of kernels, and how they are packed into a block.

    The fields `first` and `then` change from call to call; `then` are read by backward kernels only. `fixed` fields
    belong to the plan.
    """

    def __init__(self, first, then, fixed):
        self.names, self.fixed = (*_Sharing._fields, *first, *then, *fixed), fixed
        codes = ["d" if name in _FLOATS else "q" for name in self.names]
        end = len(_Sharing._fields) + len(first)
        self.pack_first, self.pack_changing, self.pack_fixed = (
            struct.Struct("=" + "".join(part)).pack_into
            for part in (codes[_AT.next : end], codes[_AT.next : end + len(then)], codes[end + len(then) :])
        )
        self.fixed_at, self.size = 8 * (end + len(then)), 8 * (len(self.names) + 2)


@cache
def kernel_of(function, storage, names):
    """The compiled kernel for logits of this storage type, which reads fields of these names."""
    formats = [np.float64 if name in _FLOATS else np.int64 for name in names]
    names, formats = (*names, "storage", "compute"), (*formats, *_TYPES[storage])
    offsets = [8 * i for i in range(len(names))]
    fields = np.dtype({"names": names, "formats": formats, "offsets": offsets})
    return compiled(function, (from_dtype(fields), *[types.intp] * 4))


@inline
def _field(call, which):
    return v.load_scalar(LABELS, call, which)


def _take_part(call):
    """What every thread runs: take chunks until none is left. The thread that finishes the last chunk writes the
    outcome to the block and gets 1, others get 0.
    """
    chunks, step, units = _field(call, _AT.chunks), _field(call, _AT.step), _field(call, _AT.units)
    sums, threads = _field(call, _AT.sums), _field(call, _AT.threads)
    scratch = _field(call, _AT.scratch) + v.fetch_add(call, _AT.entered) * _field(call, _AT.scratch_size)
    # Threads work far apart in memory, so that they do not touch the same new page at the same time.
    span = (chunks + threads - 1) // threads
    finished_last = 0
    while True:
        turn = v.fetch_add(call, _AT.next)
        if turn >= threads * span:
            break
        chunk = turn % threads * span + turn // threads
        if chunk >= chunks:
            continue
        lo = chunk * step
        v.invoke(_field(call, _AT.kernel), call, scratch, lo, min(lo + step, units),
               v.at(DOUBLES, sums, chunk * _SUMS_OF_A_CHUNK))  # fmt: skip
        if v.fetch_add(call, _AT.finished) == chunks - 1:
            losses, weights, bad = 0.0, 0.0, OK
            for i in range(0, chunks * _SUMS_OF_A_CHUNK, _SUMS_OF_A_CHUNK):
                if bad == OK:
                    bad = v.load_scalar(LABELS, sums, i)
                losses += v.load_scalar(DOUBLES, sums, i + 1)
                weights += v.load_scalar(DOUBLES, sums, i + 2)
            v.store_scalar(LABELS, call, _AT.bad, bad)
            v.store_scalar(DOUBLES, call, _AT.losses, losses)
            v.store_scalar(DOUBLES, call, _AT.weights, weights)
            finished_last = 1
    return finished_last


@cache
def _entry():
    kernel = compiled(_take_part, (types.intp,), types.intp)
    function = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p)(kernel.address)
    function.owner = kernel
    return function


class _Block:
    """The memory of a block, its address, and the address of the scratch memory in it, 0 if there is none."""

    __slots__ = ("_export", "address", "memory", "scratch")

    def __init__(self, size, scratch_size):
        self.memory = bytearray(size + scratch_size + _CACHE_LINE)
        self._export = ctypes.c_char.from_buffer(self.memory)
        self.address = ctypes.addressof(self._export)
        self.scratch = -(-(self.address + size) // _CACHE_LINE) * _CACHE_LINE if scratch_size else 0


def _scratch(size, threads):
    """(address, owner) of scratch memory for so many threads.

    A thread that works alone keeps it, if it is small, which saves 1.8 us of a call (`python -m benchmarks.floor`).
    """
    kept = threads == 1 and size <= _KEPT_AT_MOST
    if kept and getattr(_own, "size", 0) >= size:
        return _own.scratch
    memory = np.empty(size * threads + _CACHE_LINE, np.uint8)
    scratch = -(-memory.__array_interface__["data"][0] // _CACHE_LINE) * _CACHE_LINE, memory
    if kept:
        _own.size, _own.scratch = size, scratch
    return scratch


# A kernel's work: the number of units (rows, or whatever it counts), units in a chunk, and scratch bytes per thread.
Work = namedtuple("Work", "units step scratch_size")


class Launcher:
    """Runs one kernel of a plan. How units are cut into chunks does not depend on the number of threads.

    `fixed` has the values of the fixed fields, by name. Only a `backward` kernel gets the fields `then`.
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
        if self._kernel is None:  # so that a kernel that is never called is never compiled, which takes seconds
            self._kernel = kernel_of(self._function, self._storage, fields.names).address
        size = fields.size + 8 * _SUMS_OF_A_CHUNK * self._chunks
        block = _Block(size, self._scratch_size if self._contained else 0)
        struct.pack_into("=5q", block.memory, 0, *self._sharing, block.address + fields.size)
        fields.pack_fixed(block.memory, fields.fixed_at, *self._fixed)
        return block

    def run(self, changing, threads, owners):
        """Run the kernel on up to `threads()` threads; the sums of losses and weights.

        `owners` keeps the arrays' memory alive even if the caller is interrupted.
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
