"""Rows of files and shards, in blocks of bounded size, with one kind of error for whatever is wrong with a file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape, glob, has_magic
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from crossent.tools.arrays import as_numpy, is_numpy
from crossent.tools.language import say
from crossent.tools.score import roles
from crossent.tools.score.formats import ARRAYS, BFLOAT16, Stored, check, plain
from crossent.tools.score.roles import KNOWN
from crossent.tools.score.tables import Table, listed, parquet
from crossent.tools.score.text import text
from crossent.tools.score.worst import natural

_AT_ONCE = 2**23  # numbers in a block; twice as many where it takes no memory
_IN_MEMORY = 2**24  # numbers; an array of more is put together in a file
_NARROW = 16  # what a row counts as at least, for what is kept of it
_LONGEST_ROW = 2**28  # numbers; a longer one is taken for a mistake in the file's head

TEXTS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
TABLES = {".parquet": parquet} | dict.fromkeys(TEXTS, text)
SUFFIXES = (*ARRAYS, *TABLES)
# What a format needs beyond NumPy: the module and the extra that has it.
_NEEDS = dict.fromkeys(TABLES, ("pyarrow", "score"))
_NEEDS |= {".pt": ("torch", "torch"), ".safetensors": ("safetensors", "score")}
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".7z")


class BadFile(ValueError):
    """A file that cannot be scored; the message names it."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Files may hold anything, and libraries raise anything for them: every error becomes one that names the file."""
    try:
        yield
    except BadFile:
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        # What a library quotes of a file may be anything, to a terminal as well.
        raise BadFile(f"{path}: {printable(said)}") from error


def printable(said: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in said)


@dataclass(frozen=True)
class Reading:
    """What the options say of the files where they do not say it themselves; None leaves it to them.

    `key` and `labels_key` name entries or columns, `header` whether the first line of text has names, `columns` those
    of the classes, and `dim` is the class axis. With `skip_bad` numbers that cannot be read are nan, and labels that
    are none are `NO_LABEL`.
    """

    key: str | None = None
    labels_key: str | None = None
    header: bool | None = None
    columns: str | None = None
    dim: int | None = None
    skip_bad: bool = False


@dataclass(frozen=True)
class Rows:
    """The rows of one or several files, in order. `names` are those of the columns, where they have some.

    `parts` are the entries or columns that they were taken from, and `notes` what was taken for what in each file.
    `ids` is what the rows are called, if there is one file that says it. Where it is `unclear` the first line of each
    file may be a header.
    """

    files: list[tuple[Path, Stored]]
    names: tuple[str, ...] = ()
    parts: tuple = ()
    notes: tuple[str, ...] = ()
    ids: Stored | None = None
    unclear: bool = False

    def __len__(self) -> int:
        return sum(stored.shape[0] for _, stored in self.files)

    @property
    def path(self) -> Path:
        """The first file."""
        return self.files[0][0]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.files[0][1].shape[1:])

    @property
    def kind(self) -> str:
        return self.files[0][1].kind

    def blocks(self, at_once: int | None = None) -> Iterator[Any]:
        """All rows, in blocks that hold about as many numbers whatever the width."""
        width = max(int(np.prod(self.shape[1:])), _NARROW)
        for path, stored in self.files:
            step = max(1, (at_once or _AT_ONCE * (1 + stored.mapped)) // width)
            with naming(path):
                rows = 0
                for block in stored.blocks(step):
                    rows += len(block)
                    if tuple(block.shape[1:]) != stored.shape[1:] or rows > stored.shape[0]:
                        raise BadFile(f"{path}: its rows do not have the shape {stored.shape} that its head tells of")
                    yield plain(block)
                if rows != stored.shape[0]:
                    raise BadFile(f"{path}: holds {rows} rows, not the {stored.shape[0]} that its head tells of")

    def whole(self) -> Any:
        """All rows in one array: a file mapped into memory where that can be, else a copy; a long one is mapped too."""
        (path, stored), *others = self.files
        if stored.mapped and not others:
            with naming(path):
                return plain(next(stored.blocks(max(1, stored.shape[0]))))
        blocks = self.blocks()
        if np.prod(self.shape, dtype=object) <= _IN_MEMORY:
            parts = list(blocks)
            if is_numpy(parts[0]):
                return np.concatenate(parts)
            import torch

            return torch.cat(parts)
        kind = np.result_type(*(as_numpy(next(replace(self, files=[one]).blocks(1))).dtype for one in self.files))
        return (
            _in_file(path, (np.ascontiguousarray(as_numpy(block), kind) for block in blocks))
            .view(kind)
            .reshape(self.shape)
        )

    def find(self, row: int) -> tuple[Path, int]:
        """The file of a row, and its number there."""
        for path, stored in self.files:
            if row < stored.shape[0]:
                return path, row
            row -= stored.shape[0]
        raise IndexError(row)

    def place(self, row: int) -> str:
        return "{}: row {}".format(*self.find(row))


def _in_file(path: Path, blocks: Iterator[np.ndarray]) -> np.ndarray:
    """The bytes of all blocks, mapped into memory from a file that nobody sees and that goes with the array."""
    try:
        with TemporaryFile() as file:
            for block in blocks:
                file.write(block.data)
            return np.memmap(file, np.uint8, "c")
    except OSError as error:
        why = f"{error.strerror}: TMPDIR names another folder for it"
        raise BadFile(f"{path}: its rows have to lie in a temporary file, which cannot be written: {why}") from error


def two_files(files: Sequence[str]) -> tuple[str, str | None]:
    """The logits and the labels as they stand on the command line; one file may have both."""
    if len(files) in (1, 2):
        return files[0], files[1] if len(files) == 2 else None
    few = "" if not files else ": put patterns in quotes, as in 'logits-*.npy', so that the shell leaves them alone"
    raise ValueError(f"expected LOGITS and LABELS, or one file that has both, got {len(files)} files{few}")


def paths_of(pattern: str) -> list[Path]:
    """The file of this name, or those that a pattern matches; shard 10 comes after shard 9."""
    if Path(pattern).exists() or not has_magic(pattern):
        return [Path(pattern)]
    found = sorted(glob(pattern, recursive=True), key=natural)
    if not found:
        raise BadFile(f"{pattern}: no file matches")
    return [Path(name) for name in found]


def rows_of(pattern: str, role: str, reading: Reading, labels_here: bool = False) -> Rows:
    """The logits, the labels or something beside them (the `role`) in a file or in shards, which are read alike."""
    one, *others = (_opened(path, role, reading, labels_here) for path in paths_of(pattern))
    for other in others:
        if other.shape[1:] != one.shape[1:]:
            width, first_width = (rows.shape[1] if len(rows.shape) == 2 else rows.shape[1:] for rows in (other, one))
            raise BadFile(f"{other.path}: has {width} classes, and {one.path} has {first_width}")
        differ = one.kind != other.kind and len(one) and len(other)  # without rows they are of any kind
        if (other.parts, other.names) != (one.parts, one.names) or differ:
            said = "; ".join(other.notes) or "all of it is taken"
            raise BadFile(f"{other.path}: is read otherwise than {one.path}: {said}")
    return replace(one, files=[rows.files[0] for rows in (one, *others)], ids=None) if others else one


def suffix_of(path: Path) -> str:
    """In lower case, both of two where the last one says how the file is packed."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _opened(path: Path, role: str, reading: Reading, labels_here: bool) -> Rows:
    with naming(path):
        if path.is_dir():
            raise BadFile(f"{path}: is a folder: name the files in it, as in '{escape(str(path))}/*.npy'")
        if str(path) == "-" or (path.exists() and not path.is_file()):
            raise BadFile(f"{path}: files are read twice, and a stream cannot be: write it to a file first")
        if not path.exists():
            raise BadFile(say("wrong.no_such_file", path=path))
        suffix = suffix_of(path)
        if suffix not in SUFFIXES:
            if path.suffix.lower() in _PACKED:
                raise BadFile(f"{path}: is packed: unpack it first (text alone is read from .gz)")
            raise BadFile(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}")
        module, extra = _NEEDS.get(suffix, ("numpy", ""))
        if find_spec(module) is None:
            raise BadFile(f"{path}: reading {suffix} needs {module}: pip install crossent[{extra}]")
        if suffix in ARRAYS:
            rows = _entry(path, ARRAYS[suffix](path), role, reading)
        else:
            rows = _columns(path, TABLES[suffix](path, reading.header, reading.skip_bad), role, reading, labels_here)
        _, stored = rows.files[0]
        check(stored.dtype)
        if not stored.shape:
            raise BadFile(f"{path}: holds one number, not rows of them")
        if min(stored.shape) < 0:
            raise BadFile(f"{path}: has the shape {stored.shape}")
        if int(np.prod(stored.shape[1:], dtype=object)) > _LONGEST_ROW:
            raise BadFile(f"{path}: a row of {stored.shape[1:]} is longer than {_LONGEST_ROW} numbers")
        return rows


# What entries may hold that have the logits, the labels, or something beside them.
_KINDS = {"logits": "f", "labels": "iubUS", "group": "iubUS", "bytes": "iu", "words": "iu"}


def _entry(path: Path, entries: dict[str, Stored], role: str, reading: Reading) -> Rows:
    """The entry that is named, or the only one that can be meant."""
    name, said = reading.key if role == "logits" else reading.labels_key, ""
    if name is None and len(entries) == 1:
        (name,) = entries
    elif name is None:
        name = _meant(entries, role)
        said = f"its entry {name!r} has the {role}"
    elif "" in entries:
        raise ValueError(f"a file of one array has no entries, got the key {name!r}")
    elif name not in entries:
        raise ValueError(f"has no entry {name!r}, only {listed(sorted(entries))}")
    stored = entries[name]
    guess = "its numbers of two bytes are taken for bfloat16, as ml_dtypes writes it"
    guessed = stored.dtype == BFLOAT16 and path.suffix.lower() != ".safetensors"  # which has a name for it
    return Rows([(path, stored)], parts=(name,), notes=tuple(filter(None, (said, guess if guessed else ""))))


def _meant(entries: dict[str, Stored], role: str) -> str:
    if not entries:
        raise ValueError("holds no entries")
    if {"head", "rows by class", "confused"} <= entries.keys():
        raise ValueError("is a partial result: --merge takes it")
    fit = [name for name, stored in entries.items() if stored.kind in _KINDS[role] and stored.shape]
    fit = [name for name in fit if role != "logits" or len(entries[name].shape) > 1]
    if len(fit) > 1:
        fit = [name for name in fit if name.lower() in KNOWN.get(role, {role})]
    if len(fit) != 1:
        how = "as its key" if role in KNOWN else "behind a colon, as in FILE:ENTRY"
        raise ValueError(f"holds {len(entries)} entries, name one of them {how}: {listed(sorted(entries))}")
    return fit[0]


def _columns(path: Path, table: Table, role: str, reading: Reading, labels_here: bool) -> Rows:
    if role == "logits":
        found = roles.classes_of(table, reading.key, reading.columns, labels_here and reading.labels_key is None)
    else:
        found = roles.beside_of(table, reading.labels_key, role)

    def stored(columns: tuple[int, ...], words: bool) -> Stored:
        first, *others = columns
        width = (len(columns),) if others else table.columns[first].values.shape[1:]
        dtype = np.dtype("U" if words else np.float64)
        return Stored((table.rows, *width), dtype, lambda step: table.read(columns, words, step))

    names = tuple(table.columns[i].name for i in found.columns)
    ids = None if found.ids is None else stored((found.ids,), table.columns[found.ids].kind == "words")
    notes = (table.note, *found.notes) if table.header and table.note else found.notes
    files = [(path, stored(found.columns, found.words))]
    return Rows(files, names if any(names) else (), found.columns, notes, ids, table.header is None)
