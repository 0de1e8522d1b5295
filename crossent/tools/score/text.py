"""Tables as text: cells between commas, tabs, semicolons or blanks, a row a line, plain or packed by gzip."""

import csv
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from crossent.tools.score.tables import LABELS, SAMPLED, Column, Table, UnclearError, column_of, kind_of, name_of

_LONGEST_LINE = 2**26  # bytes; a file with a longer one is no text
_AT_ONCE = 2**20  # cells, which take ten times their memory as text
_SAMPLED_CELLS = 2**14
_MARK = b"\xef\xbb\xbf"  # that some programs begin UTF-8 with


def text(path: Path, header: bool | None = None, skip_bad: bool = False) -> Table:
    """The table of a file; `header` says whether its first line has the names, None lets the file say.

    With `skip_bad` cells that are no numbers are nan, and so is all of a line that has not as many as the first.
    """
    with _opened(path) as file:
        lines = _lines(file)
        first, second = next(lines, ""), next(lines, "")
        if not first.strip():
            raise ValueError("the file is empty, or its first line")
        commented = first.startswith("#") and header is not False
        first = first.removeprefix("#") if commented else first
        between = _between(path, first, second)
        names = _cells(first, between)
        width = len(_cells(second, between)) if commented and second else len(names)
        sample = [_cells(line, between) for line in [second, *islice(lines, _sampled(width))] if line]
    sample = [cells for cells in sample if len(cells) == width]  # others are found when they are read
    below = [column_of("", cells) for cells in zip(*sample)] or [Column("", "empty")] * width
    if header is None:
        header = commented or _is_header(names, below)
    if header and len(names) == width:
        columns = tuple(Column(name, column.kind, column.values) for name, column in zip(names, below))
    elif header:
        columns = tuple(below)
    else:
        columns = tuple(column_of("", cells) for cells in zip(names, *sample))
    note = f"the first line ({_shortened(names)}) is taken for its header" if header else ""
    lines = _Lines(path, between, header, tuple(column.name for column in columns), skip_bad)
    return Table(_count(path) - header, columns, lines.read, header, note=note)


def _shortened(names: Sequence[str]) -> str:
    names = [name if len(name) <= 20 else f"{name[:17]}..." for name in names]
    return ",".join(names if len(names) <= 6 else [*names[:3], "...", names[-1]])


def _sampled(width: int) -> int:
    return max(20, min(SAMPLED, _SAMPLED_CELLS // width))


def _is_header(first: Sequence[str], below: Sequence[Column]) -> bool:
    """Whether names stand above the columns, or the first of their numbers. Raises `UnclearError`."""
    # A number with a decimal comma is no name either.
    kinds = [kind_of(cell.replace(",", ".")) if cell else "empty" for cell in first]
    if "fraction" in kinds:
        return False  # numbers, among which may be a cell that is none: that is an error, and not a name
    whole = [int(cell) for cell, kind in zip(first, kinds) if kind == "whole"]
    in_order = whole == list(range(len(whole))) or (len(whole) > 1 and whole == list(range(1, len(whole) + 1)))
    if "words" in kinds:
        if not in_order:
            raise _unclear(first)
        return _names(first, kinds, below)
    if kinds.count("empty") > (kinds[0] == "empty") or not whole:
        return False
    numbers = [column for column, kind in zip(below, kinds) if kind == "whole" and column.kind != "empty"]
    if in_order:
        if numbers and all(column.points for column in numbers):
            return True
        if kinds[0] == "empty" and below[0].counts:
            return True
        raise _unclear(first)
    if len(whole) > 1 and len(set(whole)) == len(whole) and all(column.points for column in numbers):
        raise _unclear(first)
    return False


def _names(first: Sequence[str], kinds: Sequence[str], below: Sequence[Column]) -> bool:
    """Whether words in the first line are names. Above numbers they are; above words they may be words themselves."""
    if any(column.numbers for column, kind in zip(below, kinds) if kind == "words"):
        return True
    if any(cell in column.values for cell, column in zip(first, below) if column.kind == "words"):
        return False
    if any(cell.lower() in LABELS for cell in first) or all(column.kind == "empty" for column in below):
        return True
    raise _unclear(first)


def _unclear(first: Sequence[str]) -> UnclearError:
    return UnclearError(
        f"its first line ({_shortened(first)}) may be a header or a row: say --header or --no-header, which hold for "
        "both files"
    )


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(file: BinaryIO) -> Iterator[str]:
    """Without their ends, and without the mark."""
    number = 0
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ValueError(f"a line of more than {_LONGEST_LINE} bytes")
        if not number:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ValueError("is text in UTF-16: save it as UTF-8")
            line = line.removeprefix(_MARK)
        number += 1
        yield line.decode().rstrip("\r\n")


def _count(path: Path) -> int:
    """How many lines there are, the last of which need not end."""
    count, last = 0, b"\n"
    with _opened(path) as file:
        while piece := file.read(2**20):
            count, last = count + piece.count(b"\n"), piece[-1:]
    return count + (last != b"\n")


def _between(path: Path, *lines: str) -> str | None:
    """What stands between the cells, None for blanks."""
    if any(suffix.lower() == ".tsv" for suffix in path.suffixes):
        return "\t"
    for mark in "\t;,":
        if mark in lines[0]:
            return mark
    several = [cells for line in lines if len(cells := line.split()) > 1]
    return None if any(kind_of(cell) != "words" for cells in several for cell in cells) else ","


def _cells(line: str, between: str | None) -> list[str]:
    if between is None:
        return line.split()
    if '"' in line:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=between, skipinitialspace=True))]
    return [cell.strip() for cell in line.split(between)]


@dataclass(frozen=True)
class _Lines:
    """The rows of a file, a line each."""

    path: Path
    between: str | None
    header: bool
    names: tuple[str, ...]
    skip_bad: bool

    def read(self, columns: Sequence[int], words: bool, step: int) -> Iterator[np.ndarray]:
        """All rows, of some columns: an axis more where there are several."""
        step, start = max(1, min(step, _AT_ONCE // len(self.names))), 0
        with _opened(self.path) as file:
            lines = _lines(file)
            if self.header:
                next(lines, None)
            while (some := list(islice(lines, step))) or not start:
                if wrong := self._wrong(some, start):
                    if not self.skip_bad:
                        raise wrong
                    block = self._as_they_are(some, columns, words)
                else:
                    block = self._words(some, columns) if words else self._numbers(some, columns, start)
                yield block[:, 0] if len(columns) == 1 else block
                if not some:
                    return
                start += len(some)

    def _wrong(self, lines: list[str], start: int) -> ValueError | None:
        """For the first line that has not as many cells as it should, if there is one."""
        width = len(self.names)
        for row, line in enumerate(lines, start):
            if not line.strip():
                return ValueError(f"row {row}: an empty line")
            plain = self.between is not None and '"' not in line
            found = line.count(self.between or "") + 1 if plain else len(_cells(line, self.between))
            if found != width:
                return ValueError(f"row {row}: has {found} columns, and the first line has {width}")
        return None

    def _words(self, lines: list[str], columns: Sequence[int]) -> np.ndarray:
        cells = [_cells(line, self.between) for line in lines]
        return np.array([[row[c] for c in columns] for row in cells], str).reshape(len(lines), len(columns))

    def _numbers(self, lines: list[str], columns: Sequence[int], start: int) -> np.ndarray:
        if not lines:
            return np.empty((0, len(columns)))
        some = None if [*columns] == [*range(len(self.names))] else columns
        quote = '"' if any('"' in line for line in lines) else None
        try:
            return np.loadtxt(
                lines, np.float64, delimiter=self.between, comments=None, quotechar=quote, usecols=some, ndmin=2
            )
        except ValueError:
            if self.skip_bad:
                return self._as_they_are(lines, columns, False)
            self._explain(lines, columns, start)
            raise

    def _as_they_are(self, lines: list[str], columns: Sequence[int], words: bool) -> np.ndarray:
        """Cell by cell, with nan for what is no number, and no words for what is not there."""
        whole = [cells if len(cells := _cells(line, self.between)) == len(self.names) else None for line in lines]
        found = np.array([cells[c] if cells else "" for cells in whole for c in columns], str)
        if not words:
            found = np.array([np.nan if kind_of(cell) == "words" else float(cell) for cell in found.tolist()])
        return found.reshape(len(lines), len(columns))

    def _explain(self, lines: list[str], columns: Sequence[int], start: int) -> None:
        """Raise for the first cell that is no number."""
        for row, line in enumerate(lines, start):
            cells = _cells(line, self.between)
            for c in columns:
                name = name_of(self.names[c], c)
                if not cells[c]:
                    raise ValueError(f"row {row}: column {name} is empty: fill it, or drop the row")
                if kind_of(cells[c]) == "words":
                    raise ValueError(f"row {row}: {cells[c][:40]!r} in column {name} is not a number")
