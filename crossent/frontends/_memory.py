"""Memory for large results that is used again: to fill new pages takes three to five times as long as to fill old ones.

A block comes back here when the last array in it is gone. While a large block waits for its next use, the system may
take its pages if it is short of memory (MADV_FREE).
"""

import mmap
from threading import RLock

import numpy as np

LENT_FROM = 2**22  # bytes; the C library itself keeps smaller blocks
# Bytes; smaller blocks keep their pages: to offer 16 MB takes 12 us, nearly 1 % of a step over as many logits
# (`python -m benchmarks --case '4096 x 1000'`).
_LARGE_FROM = 2**25
_KEPT_AT_MOST = 4  # large blocks that wait, and as many others: enough for results and gradients of two losses
_HUGE_PAGE = 2**21
_AVAILABLE = hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MADV_HUGEPAGE")

_waiting = []  # mappings, the longest unused first
_lock = RLock()  # reentrant: a garbage collection may give a block back in the middle of the lines below


class _Lent:
    """Owns a mapping while arrays use it. An array keeps the object alive that has its memory, which is this one."""

    def __init__(self, mapping, size):
        start = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
        aligned = -(-start // _HUGE_PAGE) * _HUGE_PAGE
        self.mapping = mapping
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (aligned, False)}

    def __del__(self):
        if _lock is not None:  # the interpreter may be shutting down
            _take_back(self.mapping)


def is_small(layout, itemsize):
    """Whether an array like this needs neither an order of axes of its own nor memory that is used again."""
    return layout.contiguous and layout.rows * layout.classes * itemsize < LENT_FROM


def block(size):
    """An uninitialised array of `size` bytes that starts at a huge page; None if it is small or there is no memory."""
    if size < LENT_FROM:
        return None
    mapping = _kept(size) or _mapped(size)
    return None if mapping is None else np.asarray(_Lent(mapping, size))


def _kept(size):
    """The smallest waiting mapping that is large enough, but not much larger; of equals the one used last."""
    with _lock:
        fitting = [mapping for mapping in reversed(_waiting) if 0 <= len(mapping) - size - _HUGE_PAGE <= size // 8]
        found = min(fitting, key=len, default=None)
        return found if found is not None and _remove(found) else None


def _mapped(size):
    if not _AVAILABLE:
        return None
    try:
        mapping = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # no memory, or a system without huge pages
        return None
    return mapping


def _take_back(mapping):
    if _is_large(mapping):
        mapping.madvise(mmap.MADV_FREE)
    with _lock:
        _waiting.append(mapping)
        alike = [other for other in _waiting if _is_large(other) == _is_large(mapping)]
        if len(alike) > _KEPT_AT_MOST:
            _remove(alike[0])


def _remove(mapping):
    """Remove a waiting mapping. False if it no longer waits: a garbage collection may have pushed it out."""
    try:
        _waiting.remove(mapping)
    except ValueError:
        return False
    return True


def _is_large(mapping):
    return len(mapping) - _HUGE_PAGE >= _LARGE_FROM


def empty_cache():
    with _lock:
        _waiting.clear()
