"""Files that are there as a whole or not at all."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from crossent.tools.language import say


def check_file(path: Path | None, option: str, inputs: Sequence[Path] = ()) -> None:
    """Before the work whose results are to go there, if to a file, which must not take the place of what is read."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        key = "wrong.folder" if path.is_dir() else "wrong.no_folder"
        raise ValueError(say(key, option=option, path=path, folder=path.parent))
    if path.exists() and any(one.exists() and one.samefile(path) for one in inputs):
        raise ValueError(f"{option} must be another file than those that are read, got {path}")


@contextmanager
def replacing(path: Path, errors: tuple[type[Exception], ...] = (OSError, ValueError)) -> Iterator[Path]:
    """A file beside it to write to, with the same ending, which takes its place when all went well.

    Raises ValueError, with the path and what is wrong, where it cannot be written, which `errors` of these kinds say.
    """
    part = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    except errors as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{path}: {reason}") from error
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def lines_of(path: Path, option: str) -> list[str]:
    """Of a text file, without empty ones at its end."""
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ValueError(say("wrong.no_text", option=option, path=path, reason=reason)) from error
