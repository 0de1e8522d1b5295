"""Memory for large results that is used again: having new pages mapped and zeroed takes as long as filling them.

A block comes back here when the last array in it is gone. While it waits for its next use the system may take its
pages whenever it is short of memory (MADV_FREE).
"""

import ctypes
import mmap
import weakref
from threading import RLock

LARGE_FROM = 2**25  # bytes; what is smaller the C library keeps by itself
_KEPT_AT_MOST = 4  # blocks that wait: enough for the results and the gradients of two losses
_HUGE_PAGE = 2**21
_AVAILABLE = hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MADV_HUGEPAGE")

_waiting = []  # mappings, the longest unused first
_lock = RLock()  # reentrant, since collecting garbage may give a block back in the middle of the lines below


def block(size):
    """A writable buffer of at least `size` bytes that starts at a huge page, or None where there is none to be had."""
    mapping = _kept(size) or _mapped(size)
    if mapping is None:
        return None
    start = -ctypes.addressof(ctypes.c_char.from_buffer(mapping)) % _HUGE_PAGE
    buffer = memoryview(mapping)[start : start + size]
    weakref.finalize(buffer, _take_back, mapping).atexit = False
    return buffer


def _kept(size):
    """The smallest mapping that waits and holds so much, but not much more; of equals the one used last."""
    with _lock:
        fitting = [mapping for mapping in reversed(_waiting) if 0 <= len(mapping) - size - _HUGE_PAGE <= size // 8]
        found = min(fitting, key=len, default=None)
        if found is not None:
            _waiting.remove(found)
        return found


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
    mapping.madvise(mmap.MADV_FREE)
    with _lock:
        _waiting.append(mapping)
        del _waiting[:-_KEPT_AT_MOST]
