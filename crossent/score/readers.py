"""Rows of files and shards, in blocks of bounded size, with one kind of error for whatever is wrong with a file."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob, has_magic
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from crossent.score.formats import FORMATS, NEEDS, Stored

_AT_ONCE = 2**23  # numbers in a block
_NARROW = 16  # what a row counts as at least, for what is kept of it
_LONGEST_ROW = 2**25  # numbers; a longer one is taken for a mistake in the file's head


class BadFile(ValueError):
    """A file that cannot be scored; the message names it."""


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Files may hold anything, and libraries raise anything for them: every error becomes one that names the file."""
    try:
        yield
    except BadFile:
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        # What a library quotes of a file may be anything, to a terminal as well.
        raise BadFile(f"{path}: {''.join(c if c.isprintable() else '?' for c in said)}") from error


@dataclass(frozen=True)
class Rows:
    """The rows of one or several files, in order; `width` is the number of classes, 1 for labels."""

    files: list[tuple[Path, Stored]]
    width: int

    def __len__(self) -> int:
        return sum(stored.shape[0] for _, stored in self.files)

    def blocks(self) -> Iterator[Any]:
        """All rows, in blocks that are about as large whatever the width."""
        step = max(1, _AT_ONCE // max(self.width, _NARROW))
        for path, stored in self.files:
            with _naming(path):
                rows = 0
                for block in stored.blocks(step):
                    rows += len(block)
                    if tuple(block.shape[1:]) != stored.shape[1:] or rows > stored.shape[0]:
                        raise BadFile(f"{path}: its rows do not have the shape {stored.shape} that its head tells of")
                    yield block
                if rows != stored.shape[0]:
                    raise BadFile(f"{path}: holds {rows} rows, not the {stored.shape[0]} that its head tells of")

    def find(self, row: int) -> tuple[Path, int]:
        """The file of a row, and its number there."""
        for path, stored in self.files:
            if row < stored.shape[0]:
                return path, row
            row -= stored.shape[0]
        raise IndexError(row)

    def place(self, row: int) -> str:
        return "{}: row {}".format(*self.find(row))


def paths_of(pattern: str) -> list[Path]:
    """The file of this name, or those that a pattern matches; shard 10 comes after shard 9."""
    if Path(pattern).exists() or not has_magic(pattern):
        return [Path(pattern)]
    found = sorted(glob(pattern, recursive=True), key=_natural)
    if not found:
        raise BadFile(f"{pattern}: no file matches")
    return [Path(name) for name in found]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(digits or -1), text) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _stored(path: Path, key: str | None, integers: bool) -> Stored:
    if path.suffix not in FORMATS:
        raise BadFile(f"{path}: the suffix must be one of {', '.join(FORMATS)}")
    module, extra = NEEDS.get(path.suffix, ("numpy", ""))
    if find_spec(module) is None:
        raise BadFile(f"{path}: reading {path.suffix} needs {module}: pip install crossent[{extra}]")
    with _naming(path):
        if not path.is_file():
            raise BadFile(f"{path}: is a folder" if path.is_dir() else f"{path}: there is no such file")
        stored = FORMATS[path.suffix](path, key, integers)
        if min(stored.shape, default=0) < 0:
            raise BadFile(f"{path}: has the shape {stored.shape}")
        return stored


def whole(path: Path, key: str | None = None, integers: bool = False) -> Any:
    """The array of one file, of any shape: mapped into memory where the format can be."""
    stored = _stored(path, key, integers)
    with _naming(path):
        if not stored.shape:
            raise BadFile(f"{path}: holds one number, not rows of them")
        blocks = list(stored.blocks(max(1, stored.shape[0])))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks or [np.empty(stored.shape)])


def logits_of(pattern: str, key: str | None = None) -> Rows:
    """Files of shape (rows, classes), of one number of classes."""
    files = [(path, _stored(path, key, False)) for path in paths_of(pattern)]
    for path, stored in files:
        if len(stored.shape) != 2:
            raise BadFile(f"{path}: logits must have the shape (rows, classes), got {stored.shape}")
        if stored.shape[1] != files[0][1].shape[1]:
            raise BadFile(f"{path}: has {stored.shape[1]} classes, and {files[0][0]} has {files[0][1].shape[1]}")
        if not 0 < stored.shape[1] <= _LONGEST_ROW:
            raise BadFile(f"{path}: logits must have from 1 to {_LONGEST_ROW} classes, got {stored.shape}")
    return Rows(files, files[0][1].shape[1])


def labels_of(pattern: str, key: str | None = None) -> Rows:
    """Files of shape (rows,)."""
    files = [(path, _stored(path, key, True)) for path in paths_of(pattern)]
    for path, stored in files:
        if len(stored.shape) != 1:
            raise BadFile(f"{path}: labels must have the shape (rows,), got {stored.shape}")
    return Rows(files, 1)


def paired(logits: Rows, labels: Rows, ignore_index: int) -> Iterator[tuple[int, Any, np.ndarray]]:
    """Blocks of logits, each with the number of its first row and its labels, which are classes or ignored."""
    if len(logits) != len(labels):
        raise BadFile(
            f"{logits.files[0][0]}: {len(logits)} rows of logits do not fit the {len(labels)} labels of "
            f"{labels.files[0][0]}"
        )
    following, waiting, start = _checked(labels, logits.width, ignore_index), np.empty(0, np.int64), 0
    for block in logits.blocks():
        while len(waiting) < len(block):
            waiting = np.concatenate([waiting, next(following)])
        yield start, block, waiting[: len(block)]
        waiting, start = waiting[len(block) :], start + len(block)


def _checked(labels: Rows, classes: int, ignore_index: int) -> Iterator[np.ndarray]:
    start = 0
    for block in labels.blocks():
        some = np.asarray(block)
        if some.dtype.kind not in "iu":
            raise BadFile(f"{labels.place(start)}: labels must be integers, got {some.dtype}")
        bad = ((some < 0) | (some >= classes)) & (some != ignore_index)
        if bad.any():
            row = int(bad.argmax())
            raise BadFile(
                f"{labels.place(start + row)}: label {some[row]} is out of bounds: labels must be between 0 and "
                f"{classes - 1}, or {ignore_index} to be ignored"
            )
        start += len(some)
        yield some.astype(np.int64)
