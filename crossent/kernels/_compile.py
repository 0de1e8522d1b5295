"""How kernels are compiled: to plain C functions, cached on disk until any of their sources changes."""

import hashlib
from pathlib import Path

from numba import types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.registry import CPUDispatcher

from crossent import _rules as rules_source

_FOLDER = Path(__file__).parent
_SOURCES = [Path(rules_source.__file__), *sorted(_FOLDER.glob("_*.py"))]


def _fingerprint():
    digest = hashlib.sha256()
    for source in _SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()


_FINGERPRINT = _fingerprint()


class _SourceCache(FunctionCache):
    """Numba's own cache looks at one file, and would keep kernels that inlined an older rule from another."""

    def _index_key(self, sig, codegen):
        return str(sig), codegen.magic_tuple(), _FINGERPRINT


def compiled(function, arguments, result=types.void):
    """A C function of these numba types, as an object with an `address`."""
    kernel = CFunc(function, (arguments, result), {}, {"nopython": True, "error_model": "numpy"})
    try:
        kernel._cache = _SourceCache(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        pass
    kernel.compile()
    return kernel


class _Inline(CPUDispatcher):
    """Where a function is inlined constants are folded all the same; numba would compile it anew for each."""

    def get_call_template(self, args, kws):
        return super().get_call_template([types.unliteral(a) for a in args], kws)


def inline(function):
    options = {"nopython": True, "error_model": "numpy", "forceinline": True}
    return _Inline(function, targetoptions=options | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True})
