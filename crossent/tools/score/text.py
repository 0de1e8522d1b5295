"""Tables as text: cells between commas, tabs, semicolons or blanks, a row a line, plain or packed by gzip."""

import csv
import gzip
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
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
    lines = _lines(path)
    first, second = next(lines, ""), next(lines, "")
    if not first.strip():
        raise ValueError("the file is empty, or its first line")
    commented = first.startswith("#") and header is not False
    first = first.removeprefix("#") if commented else first
    between = _between(path, first, second)
    names = _cells(first, between)
    width = len(_cells(second, between)) if commented and second else len(names)
    sampled = max(20, min(SAMPLED, _SAMPLED_CELLS // width))
    sample = [_cells(line, between) for line in [second, *islice(lines, sampled)] if line]
    sample = [cells for cells in sample if len(cells) == width]  # others are found when they are read
    below = [column_of(cells) for cells in zip(*sample)] or [Column("empty")] * width
    few = names if len(names) <= 6 else [*names[:3], "...", names[-1]]
    shown = ",".join(name if len(name) <= 20 else f"{name[:17]}..." for name in few)
    if header is None:
        header = commented or _is_header(names, below)
    if header is None:
        raise UnclearError(
            f"its first line ({shown}) may be a header or a row: say --header or --no-header, which hold for both files"
        )
    if header and len(names) == width:
        # People who give columns names may write 2 for 2.0 below them.
        below = [replace(column, name=name, points=0) for name, column in zip(names, below)]
    elif not header:
        below = [column_of(cells) for cells in zip(names, *sample)]
    note = f"the first line ({shown}) is taken for its header" if header else ""
    rows = _Rows(path, between, int(header), [column.name for column in below], skip_bad)
    return Table(_count(path) - header, tuple(below), rows.read, header, note=note)


def _is_header(first: Sequence[str], below: Sequence[Column]) -> bool | None:
    """Whether names stand above the columns, or the first of their numbers; None where it may be either.

    Words above numbers are names; above words they may be words themselves. Numbers in order may be names above others
    that are written as floats are.
    """
    # A number with a decimal comma is no name either.
    kinds = [kind_of(cell.replace(",", ".")) if cell else "empty" for cell in first]
    if "fraction" in kinds:
        return False  # numbers, among which may be a cell that is none: that is an error, and not a name
    whole = [int(cell) for cell, kind in zip(first, kinds) if kind == "whole"]
    in_order = whole == list(range(len(whole))) or (len(whole) > 1 and whole == list(range(1, len(whole) + 1)))
    if "words" in kinds:
        if in_order and any(column.numbers for column, kind in zip(below, kinds) if kind == "words"):
            return True
        if in_order and any(cell in column.values for cell, column in zip(first, below) if column.kind == "words"):
            return False
        known = any(cell.lower() in LABELS for cell in first) or all(column.kind == "empty" for column in below)
        return True if in_order and known else None
    if kinds.count("empty") > (kinds[0] == "empty") or not whole:
        return False
    numbers = [column for column, kind in zip(below, kinds) if kind == "whole" and column.kind != "empty"]
    floats = all(column.points for column in numbers)
    if in_order:
        return True if (numbers and floats) or (kinds[0] == "empty" and below[0].counts) else None
    return None if floats and 1 < len(whole) == len(set(whole)) else False


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[str]:
    """Without their ends, and without the mark."""
    with _opened(path) as file:
        mark = _MARK
        while line := file.readline(_LONGEST_LINE):
            if len(line) == _LONGEST_LINE:
                raise ValueError(f"a line of more than {_LONGEST_LINE} bytes")
            if mark and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ValueError("is text in UTF-16: save it as UTF-8")
            yield line.removeprefix(mark).decode().rstrip("\r\n")
            mark = b""


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
class _Rows:
    """The rows of a file, a line each but for the first `head` ones, of cells with these names."""

    path: Path
    between: str | None
    head: int
    names: list[str]
    skip_bad: bool

    def read(self, columns: Sequence[int], words: bool, step: int) -> Iterator[np.ndarray]:
        """All rows, of some columns: an axis more where there are several."""
        step, start = max(1, min(step, _AT_ONCE // len(self.names))), 0
        lines = islice(_lines(self.path), self.head, None)
        while (some := list(islice(lines, step))) or not start:
            block = None if words or not some else self._numbers(some, columns)
            if block is None:
                cells = np.array([*self._one_by_one(some, start, columns, words)], str if words else np.float64)
                block = cells.reshape(len(some), len(columns))
            yield block[:, 0] if len(columns) == 1 else block
            if not some:
                return
            start += len(some)

    def _numbers(self, lines: list[str], columns: Sequence[int]) -> np.ndarray | None:
        """None where a line has not as many cells as it should, or what is no number."""
        width, quote = len(self.names), '"' if any('"' in line for line in lines) else None
        if self.between is None or quote:
            whole = all(len(_cells(line, self.between)) == width for line in lines)
        else:
            whole = all(line.count(self.between) == width - 1 and line.strip() for line in lines)
        some = None if [*columns] == [*range(width)] else columns
        with suppress(ValueError):
            if whole:
                return np.loadtxt(
                    lines, np.float64, delimiter=self.between, comments=None, quotechar=quote, usecols=some, ndmin=2
                )
        return None

    def _one_by_one(self, lines: list[str], start: int, columns: Sequence[int], words: bool) -> Iterator[str]:
        """The cells; those that are no numbers, though no `words` are wanted, are refused, or nan."""
        width = len(self.names)
        for row, line in enumerate(lines, start):
            cells = _cells(line, self.between) if line.strip() else []
            if not cells and not self.skip_bad:
                raise ValueError(f"row {row}: an empty line")
            if len(cells) != width and not self.skip_bad:
                raise ValueError(f"row {row}: has {len(cells)} columns, and the first line has {width}")
            for c in columns:
                cell = cells[c] if len(cells) == width else ""
                if words or kind_of(cell) != "words":
                    yield cell
                elif self.skip_bad:
                    yield "nan"
                else:
                    name = name_of(self.names[c], c)
                    if not cell:
                        raise ValueError(f"row {row}: column {name} is empty: fill it, or drop the row")
                    raise ValueError(f"row {row}: {cell[:40]!r} in column {name} is not a number")
