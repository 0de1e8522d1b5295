"""Array type -> frontend, without importing an array library that the caller has not imported."""

from functools import lru_cache
from importlib import import_module

_FRONTENDS = {
    "torch": "crossent.frontends.torch",
    "numpy": "crossent.frontends.numpy",
}


@lru_cache(maxsize=256)
def _frontend_of(kind):
    for base in kind.__mro__:
        library = base.__module__.partition(".")[0]
        if library in _FRONTENDS:
            return import_module(_FRONTENDS[library])
    if hasattr(kind, "__torch_function__"):
        return import_module(_FRONTENDS["torch"])
    return None


def frontend(input):
    """The module that serves arrays like `input`."""
    found = _frontend_of(type(input))
    if found is None:
        raise TypeError(f"input must be a PyTorch tensor or a NumPy array, got {type(input).__name__}")
    return found


def public(name):
    """A public function, for the protocols by which array subclasses take calls over."""
    return getattr(import_module("crossent.functional"), name)
