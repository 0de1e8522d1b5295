"""What is kept of calls for the next ones like them: bounded, and given back by `empty_cache`."""

from functools import lru_cache

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
