"""How kernels are compiled: to plain C functions, cached on disk until any of their sources changes."""

import hashlib
from pathlib import Path

from numba import types
from numba.core.ccallback import CFunc
from numba.core.registry import CPUDispatcher

from crossent import _rules as rules_source
from crossent.kernels.cpu.cache import Cache
from crossent.kernels.cpu.patience import patience

_FOLDER = Path(__file__).parent
_NOT_COMPILED = ("__init__.py", "kernels.py", "warmup.py")  # kernels get what these decide as numbers or as fields
_SOURCES = [
    Path(rules_source.__file__),
    *(path for path in sorted(_FOLDER.glob("*.py")) if path.name not in _NOT_COMPILED),
]


def _fingerprint():
    digest = hashlib.sha256()
    for source in _SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()


_FINGERPRINT = _fingerprint()


class _SourceCache(Cache):
    """A cache that looks at all sources. Numba's looks at one file, and would keep kernels with an old rule inlined."""

    on_miss = None

    def _index_key(self, sig, codegen):
        return str(sig), codegen.magic_tuple(), _FINGERPRINT

    def load_overload(self, sig, target_context):
        found = super().load_overload(sig, target_context)
        if found is None and self.on_miss is not None:
            self.on_miss()
        return found


def compiled(function, arguments, result=types.void):
    """Compile a C function with these numba types; an object with its `address`."""
    kernel = CFunc(function, (arguments, result), {}, {"nopython": True, "error_model": "numpy"})
    cache = None
    try:
        kernel._cache = cache = _SourceCache(function)
    except RuntimeError:  # no folder can be written
        pass
    with patience(cache):
        kernel.compile()
    return kernel


def folder():
    """The folder in which compiled kernels are kept, or None if none can be written."""
    try:
        return _SourceCache(_fingerprint).cache_path
    except RuntimeError:
        return None


class _Inline(CPUDispatcher):
    """A function that is inlined. Numba would compile it again for every constant argument, and take 6 % longer in all
    (`python -m benchmarks --case start`), but once it is inlined constants are folded anyway.
    """

    def get_call_template(self, args, kws):
        return super().get_call_template([types.unliteral(a) for a in args], kws)


def inline(function):
    options = {"nopython": True, "error_model": "numpy", "forceinline": True}
    return _Inline(function, targetoptions=options | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True})
