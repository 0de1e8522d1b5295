"""The standard output of a command: where it is full, closed or read by nobody any more, the command ends."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

FAILED = 2
READER_GONE = 141  # what a shell says of a program that SIGPIPE has ended, as it ends cat


def end(message: str) -> NoReturn:
    """Ends the command with a line about what is wrong."""
    print(f"crossent: {message}", file=sys.stderr)
    raise SystemExit(FAILED)


@contextmanager
def guarded() -> Iterator[None]:
    """Ends the command at the first failure to write to standard output, whoever else would have caught the error.

    Ends it without a word where the reader has gone, as `head` goes when it has seen enough. Standard error may be
    full or closed: what is written there is then dropped.
    """
    outer = sys.stdout, sys.stderr
    errors = sys.stderr or open(os.devnull, "w")
    sys.stderr, _ = _guard(errors, needed=False)
    try:
        if sys.stdout is None:
            end("standard output: it is closed")
        sys.stdout, guard = _guard(sys.stdout, needed=True)
        try:
            yield
        finally:
            _finish(sys.stdout, guard)
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = outer


class _Guard(io.RawIOBase):
    """Writes to a file until that fails. What is written then is dropped, or ends the command if it is needed."""

    def __init__(self, raw: Any, needed: bool) -> None:
        super().__init__()
        self._raw, self.needed = raw, needed
        self._terminal = raw is not None and raw.isatty()
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._terminal

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                return self._raw.write(data)
            except OSError as error:
                self.failure = error
        if self.needed:
            raise SystemExit(FAILED)
        return len(data)


def _guard(file: Any, needed: bool) -> tuple[Any, _Guard]:
    """The same file with a guard below it; one that lies in memory needs none."""
    buffer = getattr(file, "buffer", None)
    guard = _Guard(getattr(buffer, "raw", buffer), needed)
    if buffer is None:
        return file, guard
    lines = file.line_buffering or file.write_through
    return io.TextIOWrapper(io.BufferedWriter(guard), file.encoding, file.errors, line_buffering=lines), guard


def _finish(file: Any, guard: _Guard) -> None:
    try:
        file.flush()
    except SystemExit:
        pass  # for which `failure` is
    guard.needed = False
    if isinstance(guard.failure, BrokenPipeError):
        raise SystemExit(READER_GONE)
    if guard.failure is not None:
        end(f"standard output: {guard.failure.strerror}")
