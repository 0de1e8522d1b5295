"""Memory for large results that is used again: having new pages mapped and zeroed takes as long as filling them.

A block comes back here when the last array in it is gone. While a large one waits for its next use the system may take
its pages whenever it is short of memory (MADV_FREE).
"""

import mmap
from threading import RLock

import numpy as np

LENT_FROM = 2**22  # bytes; what is smaller the C library keeps by itself
_LARGE_FROM = 2**25  # bytes; of what is smaller, to write to pages that may be taken takes twice as long
_KEPT_AT_MOST = 4  # blocks that wait, large ones and others: enough for results and gradients of two losses
_HUGE_PAGE = 2**21
_AVAILABLE = hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MADV_HUGEPAGE")

_waiting = []  # mappings, the longest unused first
_lock = RLock()  # reentrant, since collecting garbage may give a block back in the middle of the lines below


class _Lent:
    """Owns a mapping while it is lent. Arrays keep what has their memory, so they keep this."""

    def __init__(self, mapping, size):
        start = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
        aligned = -(-start // _HUGE_PAGE) * _HUGE_PAGE
        self.mapping = mapping
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (aligned, False)}

    def __del__(self):
        if _lock is not None:  # the interpreter may be shutting down
            _take_back(self.mapping)


def block(size):
    """An array of `size` bytes that starts at a huge page and holds anything, or None if small or not to be had."""
    if size < LENT_FROM:
        return None
    mapping = _kept(size) or _mapped(size)
    return None if mapping is None else np.asarray(_Lent(mapping, size))


def _kept(size):
    """The smallest mapping that waits and holds so much, but not much more; of equals the one used last."""
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
    """Whether it still waited: garbage that is collected meanwhile may have pushed it out."""
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
