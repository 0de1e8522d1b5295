"""What is kept of calls for the next ones like them: bounded, and given back by `empty_cache`."""

from contextlib import contextmanager
from functools import lru_cache
from threading import local

_AT_MOST = 4096  # of each kind
_tables = []


def kept(function):
    """A decorator that keeps what the function returned for the arguments used last."""
    table = lru_cache(maxsize=_AT_MOST)(function)
    _tables.append(table)
    return table


def forget():
    for table in _tables:
        table.cache_clear()


class _Memory(local):
    is_kept = True


_memory = _Memory()


def may_keep_memory():
    """Whether memory of a device that this thread allocates now may be kept for later calls."""
    return _memory.is_kept


@contextmanager
def no_memory_kept():
    """Keep no memory of a device: whoever calls may own all that is allocated, as CUDA graphs of compiled programs do,
    and refuse a call that leaves some behind.
    """
    before, _memory.is_kept = _memory.is_kept, False
    try:
        yield
    finally:
        _memory.is_kept = before
