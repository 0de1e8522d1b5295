"""Array type -> frontend, without importing an array library that the caller has not imported."""

from typing import Any

from crossent import _options


def _numpy():
    from crossent.frontends.numpy import router

    return router


def _torch():
    from crossent.frontends.torch import router

    return router


_FRONTENDS = {"numpy": _numpy, "torch": _torch}  # import statements, since torch.compile cannot trace import_module


def _find(kind):
    for base in kind.__mro__:
        load = _FRONTENDS.get(base.__module__.partition(".")[0])
        if load is not None:
            return load()
    if hasattr(kind, "__torch_function__"):
        return _torch()
    raise TypeError(f"input must be a PyTorch tensor or a NumPy array, got {kind.__name__}")


_frontends = {}  # as found before; a plain dictionary, since PyTorch 2.6 compiles no code with a subclass of it


def frontend_of(kind) -> Any:
    """The module that serves arrays of this type."""
    found = _frontends.get(kind)
    if found is None:
        found = _find(kind)
        if not _options.is_traced():  # what is compiled would have to be compiled again
            _frontends[kind] = found
    return found


def define_operators():
    """Those that compiled code and exported programs call, for programs that are loaded from a file."""
    from crossent.frontends.torch import compiled  # noqa: F401


def empty_cache():
    """Give back the memory kept for the next large result."""
    from crossent.frontends import _memory

    _memory.empty_cache()
