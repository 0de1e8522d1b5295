"""Where compiled kernels are kept: in numba's folders, and where none can be written in a private one of our own."""

import os
import stat
import tempfile

from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserWideCacheLocator


def private_folder():
    """A folder in the temporary directory that is this user's alone to read and write; None if there is none.

    What is read from a cache is run, so a folder that somebody else made, or a link, is not used.
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
    """Raises RuntimeError where nothing can be written."""

    _impl_class = _Places
