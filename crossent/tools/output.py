"""The standard output of a command: where it is full, closed or read by nobody any more, the command ends."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

FAILED = 2
READER_GONE = 141  # what a shell says of a program that SIGPIPE has ended, as it ends cat


def end(message: str) -> NoReturn:
    """Ends the command with a line about what is wrong."""
    print(f"crossent: {message}", file=sys.stderr)
    raise SystemExit(FAILED)


class _Guard:
    """A file for text until writing to it fails. What is written then is dropped, or ends the command if `needed`."""

    def __init__(self, file: Any, needed: bool) -> None:
        self.file, self.needed = file, needed
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, text: str) -> int:
        self._try(self.file.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.file.flush)

    def _try(self, do: Callable[..., Any], *text: str) -> None:
        try:
            if self.failure is None:
                do(*text)
        except OSError as error:
            self.failure = error
            with open(os.devnull, "w") as nowhere:  # for what waits in buffers
                os.dup2(nowhere.fileno(), self.file.fileno())
        if self.failure is not None and self.needed:
            raise SystemExit(FAILED)


@contextmanager
def guarded() -> Iterator[None]:
    """Ends the command at the first failure to write to standard output, whoever else would have caught the error.

    Ends it without a word where the reader has gone, as `head` goes when it has seen enough. Standard error may be
    full or closed: what is written there is then dropped.
    """
    outer = sys.stdout, sys.stderr
    sys.stderr = errors = _Guard(sys.stderr or open(os.devnull, "w"), needed=False)
    try:
        if sys.stdout is None:
            end("standard output: it is closed")
        sys.stdout = guard = _Guard(sys.stdout, needed=True)
        try:
            yield
        finally:
            with suppress(SystemExit):  # for which `failure` is
                guard.flush()
            if isinstance(guard.failure, BrokenPipeError):
                raise SystemExit(READER_GONE)
            if guard.failure is not None:
                end(f"standard output: {guard.failure.strerror}")
    finally:
        errors.flush()
        sys.stdout, sys.stderr = outer
