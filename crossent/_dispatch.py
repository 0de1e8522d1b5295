"""Array type -> frontend, without importing an array library that the caller has not imported."""

from importlib import import_module


def _numpy():
    from crossent.frontends import numpy

    return numpy


def _torch():
    from crossent.frontends import torch

    return torch


_FRONTENDS = {"numpy": _numpy, "torch": _torch}  # import statements, since torch.compile cannot trace import_module


class _Frontends(dict):
    """Array type -> the module that serves its arrays, found on first use."""

    def __missing__(self, kind):
        found = self[kind] = _find(kind)
        return found


def _find(kind):
    for base in kind.__mro__:
        load = _FRONTENDS.get(base.__module__.partition(".")[0])
        if load is not None:
            return load()
    if hasattr(kind, "__torch_function__"):
        return _torch()
    raise TypeError(f"input must be a PyTorch tensor or a NumPy array, got {kind.__name__}")


frontends = _Frontends()


def public(name):
    """A public function, for the protocols by which array subclasses take calls over."""
    return getattr(import_module("crossent.functional"), name)


def empty_cache():
    """Give back the memory kept for the next large result."""
    from crossent.frontends import _memory

    _memory.empty_cache()
