"""Where compiled kernels are kept: in numba's folders, or in a private folder of our own if none can be written."""

import os
import stat
import tempfile

from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserWideCacheLocator


def private_folder():
    """A folder in the temporary directory that only this user can read and write, or None.

    Code that is read from a cache is run. So a folder that somebody else made, or a link, is not used.
    """
    if not hasattr(os, "getuid"):  # Windows, where the user's own folders can be written
        return None
    try:
        path = os.path.join(tempfile.gettempdir(), f"crossent-{os.getuid()}")
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        found = os.lstat(path)
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return path if private else None


class _PrivateLocator(UserWideCacheLocator):
    def __init__(self, py_func, py_file):
        super().__init__(py_func, py_file)
        self._cache_path = os.path.join(private_folder(), self.get_suitable_cache_subpath(py_file))

    @classmethod
    def from_function(cls, py_func, py_file):
        return None if private_folder() is None else super().from_function(py_func, py_file)


class _Places(CompileResultCacheImpl):
    _locator_classes = [*CompileResultCacheImpl._locator_classes, _PrivateLocator]


class Cache(FunctionCache):
    """Compiled functions on disk. Making one raises RuntimeError if no folder can be written."""

    _impl_class = _Places
