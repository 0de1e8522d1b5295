"""Tables as text: cells between commas, tabs, semicolons or blanks, a row a line, plain or packed by gzip."""

import csv
import gzip
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crossent.tools.score.tables import SAMPLED, Column, Table, column_of, is_number

_LONGEST_LINE = 2**26  # bytes; a file with a longer one is no text
_MISSING = "#N/A - ? missing N/A n/a NA na NaN nan None none NULL null".split()  # stand where there is no number


def text(path: Path, header: bool | None, skip_bad: bool) -> Table:
    """The table of a file; `header` says whether its first line has the names, None lets the file say.

    Where it does not say either, it is taken for a row.
    """
    first, second = _first_lines(path)
    commented = first.startswith("#") and header is not False
    between = _between(path, second if commented and second else first, second)
    names = _cells(first.removeprefix("#" * commented), between)
    width = len(_cells(second, between)) if commented and second else len(names)
    few = names if len(names) <= 6 else [*names[:3], "...", names[-1]]
    shown = ",".join(name if len(name) <= 20 else f"{name[:17]}..." for name in few)
    size = len(first + second)
    # A batch takes its time for each column, however few rows it has: of many columns it is to have some more.
    file = _Text(path, between, width, not second, max(2**20, 8 * size, min(2**27, 256 * size)), skip_bad)
    below = file.columns(1, names if len(names) == width else [""] * width)
    if header is None:
        header = commented or _is_header(names, below)
    batches = partial(file.batches, int(bool(header)))
    rows, lines = sum(batch.num_rows for batch in batches([0])), _lines(path) - bool(header)
    if 0 < rows < lines:
        raise ValueError(
            f"has {lines} lines and {rows} rows: a cell in quotes goes over several lines, or is not closed"
        )
    note = f"the first line ({shown}) {'is taken for its header' if header else 'may be a header or a row'}"
    return Table(rows, below if header else file.columns(0, [""] * width), batches, header, skip_bad, note=note)


def _lines(path: Path) -> int:
    with (gzip.open if _is_packed(path) else open)(path, "rt", encoding="latin-1") as file:
        return sum(1 for _ in file)


def _first_lines(path: Path) -> tuple[str, str]:
    try:
        with (gzip.open if _is_packed(path) else open)(path, "rt", encoding="utf-8-sig") as file:
            first, second = file.readline(_LONGEST_LINE).rstrip("\n"), file.readline(_LONGEST_LINE)
    except UnicodeDecodeError:
        raise ValueError("is no text in UTF-8: save it so") from None
    if not first.strip():
        raise ValueError("the file is empty, or its first line")
    return first, second


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _between(path: Path, line: str, second: str) -> str:
    """What stands between the cells."""
    if any(suffix.lower() == ".tsv" for suffix in path.suffixes):
        return "\t"
    marks = [mark for mark in "\t;," if mark in line]  # names may hold some of them, and numbers a decimal comma
    if marks:
        return next((mark for mark in marks if mark in second), marks[0])
    row = (second or line).rstrip("\n")
    if len(row.split()) == 1 or not all(map(is_number, row.split())):
        return ","
    if row.split() != row.split(" "):
        raise ValueError("has numbers between which are several blanks: write a single one, a tab or a comma")
    return " "


def _cells(line: str, between: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line.rstrip("\n")], delimiter=between, skipinitialspace=True))]


@dataclass(frozen=True)
class _Text:
    """Lines of a file, or a single one, with so many cells `between` which something stands.

    They are read so many bytes `at_once`, into which each of them has to fit.
    """

    path: Path
    between: str
    width: int
    single: bool
    at_once: int
    skip_bad: bool

    def columns(self, head: int, names: Sequence[str]) -> tuple[Column, ...]:
        """What they are like below `head` lines."""
        some = next(self.batches(head), None)
        if some is None:
            return tuple(Column(name, "empty") for name in names)
        return tuple(column_of(name, one.slice(0, SAMPLED)) for name, one in zip(names, some.columns))

    def batches(self, head: int, wanted: Sequence[int] | None = None, step: int = 0) -> Iterator[Any]:
        """The cells of the `wanted` columns as they are written, or those of all in types that fit."""
        import pyarrow as pa
        from pyarrow import csv

        if head and self.single:
            return
        names, gaps = [str(i) for i in range(self.width)], []

        def skip(row: Any) -> str:
            gaps.append(row.number - 1 - head)
            return "skip"

        read = csv.ReadOptions(use_threads=False, block_size=self.at_once, skip_rows=head, column_names=names)
        parse = csv.ParseOptions(
            delimiter=self.between, ignore_empty_lines=False, invalid_row_handler=skip if self.skip_bad else None
        )
        convert = csv.ConvertOptions(null_values=["", *_MISSING])
        if wanted is not None:
            convert.include_columns = [names[i] for i in wanted]
            convert.column_types = dict.fromkeys(convert.include_columns, pa.string())
        with pa.input_stream(self.path, "gzip" if _is_packed(self.path) else None) as file:
            yield from _with_gaps(csv.open_csv(file, read, parse, convert), gaps)


def _with_gaps(batches: Iterable[Any], gaps: list[int]) -> Iterator[Any]:
    """Batches with nulls in the rows of these numbers, which they lack, and of which more come to be known."""
    import pyarrow as pa

    done = 0
    for batch in batches:
        rows = np.setdiff1d(np.arange(done, done + batch.num_rows + len(gaps)), gaps)[: batch.num_rows] - done
        places = np.full(rows[-1] + 1 if len(rows) else 0, -1)
        places[rows] = np.arange(len(rows))
        yield batch.take(pa.array(places, mask=places < 0)) if gaps else batch
        done += len(places)
    if gaps and gaps[-1] >= done > 0:
        yield batch.take(pa.nulls(gaps[-1] + 1 - done, pa.int64()))


def _is_header(first: Sequence[str], below: Sequence[Column]) -> bool | None:
    """Whether names stand above the columns. Where they may as well be a row, or cannot be either, it is None.

    Names are words that do not come again below them, numbers in order, or both; the first may be empty. A row has
    words above words, and whole numbers where no floats are.
    """
    words = [not is_number(cell.replace(",", ".")) for cell in first]  # a decimal comma makes no name either
    whole = [int(cell) for cell in first if cell.isdecimal()]
    if words.count(False) > len(whole):
        return False  # one with a fraction: words among them are errors, and no names
    in_order = whole == [*range(len(whole))] or (len(whole) > 1 and whole == [*range(1, len(whole) + 1)])
    names = in_order and "" not in first[1:] and not any(cell in column.values for cell, column in zip(first, below))
    row = all(
        column.kind == "empty" or (column.kind in ("words", "mixed") if word else not column.floats) and cell != ""
        for cell, word, column in zip(first, words, below)
    )
    return None if names == row else names
