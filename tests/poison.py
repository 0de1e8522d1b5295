"""Memory that nobody has written yet is nan, or as large as integers get: what reads it gives itself away.

New tensors and NumPy arrays, memory that is used again, and scratch memory of the kernels, before each of their calls.
"""

import ctypes
import functools

import numpy as np
import torch

from crossent.frontends import _memory
from crossent.frontends.numpy import losses as numpy_arrays
from crossent.frontends.torch import arrays as torch_arrays
from crossent.kernels.cpu import call as kernel_call

_ALL_ONES = 0xFF  # in every byte: nan in each of the floats, and -1 in integers


def poison(monkeypatch):
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(np, name, _poisoned(getattr(np, name)))
    block = _poisoned(_memory.block)
    for module in (_memory, numpy_arrays, torch_arrays):
        monkeypatch.setattr(module, "block", block)
    monkeypatch.setattr(kernel_call, "_scratch", _scratch)
    monkeypatch.setattr(kernel_call.Launcher, "run", _run)


def _poisoned(function):
    @functools.wraps(function)
    def poisoned(*args, **kwargs):
        array = function(*args, **kwargs)
        if array is not None and array.dtype.kind == "f":
            array[...] = np.nan
        elif array is not None and array.dtype.kind in "iu":
            array[...] = np.iinfo(array.dtype).max
        return array

    return poisoned


def _scratch(size, threads, original=kernel_call._scratch):
    address, owner = original(size, threads)
    ctypes.memset(address, _ALL_ONES, size * threads)
    return address, owner


def _run(self, changing, threads, owners, original=kernel_call.Launcher.run):
    if not self._blocks:
        self._blocks.append(self._new_block())
    block = self._blocks[-1]
    if block.scratch:
        ctypes.memset(block.scratch, _ALL_ONES, self._scratch_size)
    return original(self, changing, threads, owners)
