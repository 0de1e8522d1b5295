"""How kernels are compiled: outside the GIL, and cached on disk until any of their sources changes."""

import hashlib
from pathlib import Path

from numba import njit
from numba.core.caching import FunctionCache

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
        return (*super()._index_key(sig, codegen), _FINGERPRINT)


def kernel(function):
    dispatcher = njit(nogil=True, error_model="numpy", fastmath=False)(function)
    try:
        dispatcher._cache = _SourceCache(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        pass
    return dispatcher


def inline(function):
    return njit(forceinline=True, error_model="numpy", fastmath=False)(function)
