"""Array type -> frontend, without importing an array library that the caller has not imported."""

from typing import Any

from crossent import _kept, _options
from crossent._call import Spread


def _numpy():
    from crossent.frontends.numpy import router

    return router


def _torch():
    from crossent.frontends.torch import router

    return router


def _numpy_plans():
    from crossent.frontends.numpy import plans

    return plans


def _torch_plans():
    from crossent.frontends.torch import plans

    return plans


# Import statements, since torch.compile cannot trace import_module.
_ROUTERS = {"numpy": _numpy, "torch": _torch}
_PLANS = {"numpy": _numpy_plans, "torch": _torch_plans}


def _library_of(kind):
    for base in kind.__mro__:
        library = base.__module__.partition(".")[0]
        if library in _ROUTERS:
            return library
    if hasattr(kind, "__torch_function__"):
        return "torch"
    raise TypeError(f"input must be a PyTorch tensor or a NumPy array, got {kind.__name__}")


_frontends = {}  # as found before; a plain dictionary, since PyTorch 2.6 compiles no code with a subclass of it


def frontend_of(kind) -> Any:
    """The router for arrays of this type."""
    found = _frontends.get(kind)
    if found is None:
        found = _ROUTERS[_library_of(kind)]()
        if not _options.is_traced():  # what is compiled would have to be compiled again
            _frontends[kind] = found
    return found


def plans_of(kind) -> Any:
    """What says how calls with arrays of this type are computed."""
    return _PLANS[_library_of(kind)]()


def spread(kind, group, first_class):
    """How the classes of arrays of this type are spread over processes, as its router takes it."""
    if _library_of(kind) != "torch":
        raise TypeError(f"group must not be given for arrays that are no tensors of PyTorch, got {kind.__name__}")
    if group is None:
        raise ValueError(f"first_class must not be given without group, got {first_class!r}")
    return Spread(group, first_class)


def define_operators():
    """Those that compiled code and exported programs call, for programs that are loaded from a file."""
    from crossent.frontends.torch import compiled  # noqa: F401


def empty_cache():
    """Give back the memory kept for the next large result, and what is kept of calls."""
    from crossent.frontends import _memory

    _memory.empty_cache()
    _kept.forget()
