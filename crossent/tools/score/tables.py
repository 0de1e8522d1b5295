"""Files of columns, which pyarrow reads: what their columns are like, and their rows in blocks.

Which columns are meant is for `roles`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

SAMPLED = 1000  # rows at most, from which it is decided what the columns are


@dataclass(frozen=True)
class Column:
    """What the first rows of a column are like, and its `name`, "" where it has none.

    `kind` is "whole" for numbers without a fraction, however they are written, "fraction" for others, "words", "lists"
    (of numbers), "empty", or "mixed" for words among numbers. `values` are the numbers, a row each of lists, or the
    words. `floats` says that the numbers are of a type of floats, or that a point or an exponent is written in some.
    """

    name: str
    kind: str
    values: np.ndarray = field(default_factory=lambda: np.empty(0))
    floats: bool = False

    @property
    def counts(self) -> bool:
        """Whether these are whole numbers that go up by one from row to row."""
        return self.kind == "whole" and len(self.values) > 1 and bool((np.diff(self.values) == 1).all())

    @property
    def differs(self) -> bool:
        """From row to row, as what names the rows does."""
        return len(np.unique(self.values)) == len(self.values)


@dataclass(frozen=True)
class Table:
    """Columns of as many rows, which come as batches of pyarrow: `batches(columns, step)` gives the columns of these
    numbers, in this order.

    `header` says whether the columns have names, None that nobody knows, `index` which of them the file itself calls an
    index of the rows, and `note` what its first line is. With `skip_bad` numbers that cannot be read are nan.
    """

    rows: int
    columns: tuple[Column, ...]
    batches: Callable[[Sequence[int], int], Iterator[Any]]
    header: bool | None
    skip_bad: bool
    index: frozenset[int] = frozenset()
    note: str = ""

    def name(self, i: int) -> str:
        """Of a column, for messages."""
        return repr(name) if (name := self.columns[i].name) else str(i)

    def names(self, columns: Iterable[int]) -> str:
        return listed(map(self.name, columns))

    def read(self, columns: Sequence[int], words: bool, step: int) -> Iterator[np.ndarray]:
        """All rows of these columns, as numbers or as `words`: an axis more where there are several."""
        start = 0
        for batch in self.batches(columns, step):
            found = [
                _words(cells) if words else self._numbers(cells, self.name(i), start)
                for i, cells in zip(columns, batch.columns)
            ]
            yield found[0] if len(found) == 1 else np.column_stack(found)
            start += batch.num_rows
        if not start:
            yield np.empty((0, len(columns)) if len(columns) > 1 else 0)

    def _numbers(self, cells: Any, name: str, start: int) -> np.ndarray:
        import pyarrow as pa
        from pyarrow import compute

        if _is_list(cells.type):
            return _matrix(cells, name)
        if _is_number(cells.type) and (self.skip_bad or not cells.null_count):
            return cells.to_numpy(zero_copy_only=False)
        try:
            if not cells.null_count:
                return compute.call_function("utf8_trim_whitespace", [cells]).cast(pa.float64()).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # words among them, or a type that has no blanks
            pass
        return np.array([self._number(cell, name, row) for row, cell in enumerate(cells.to_pylist(), start)])

    def _number(self, cell: Any, name: str, row: int) -> float:
        try:
            return _float(str(cell))
        except (TypeError, ValueError):
            if self.skip_bad:
                return np.nan
        if cell in (None, ""):
            raise ValueError(f"row {row}: column {name} is empty: fill it, or drop the row")
        raise ValueError(f"row {row}: {str(cell)[:40]!r} in column {name} is not a number")


def parquet(path: Path, header: bool | None, skip_bad: bool) -> Table:
    """Columns of numbers, of words, or of lists of numbers of one length."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        some = next(file.iter_batches(SAMPLED), schema.empty_table())
        columns = tuple(column_of(name, some.column(i)) for i, name in enumerate(schema.names))

    def batches(wanted: Sequence[int], step: int) -> Iterator[Any]:
        names = [schema.names[i] for i in wanted]
        if any(schema.names.count(name) > 1 for name in names):
            raise ValueError("has several columns of one name")
        with ParquetFile(path) as file:
            for batch in file.iter_batches(step, columns=names):
                yield batch.select(names)

    said = (schema.pandas_metadata or {}).get("index_columns", [])  # in which pandas keeps the names of the rows
    index = {i for i, name in enumerate(schema.names) if name in said or name.startswith("__index_level_")}
    return Table(rows, columns, batches, True, skip_bad, frozenset(index))


def column_of(name: str, cells: Any) -> Column:
    """A column by some of its cells."""
    import pyarrow as pa
    from pyarrow import types

    there = cells.drop_null()
    if _is_list(cells.type):
        return Column(name, "lists", _matrix(cells, repr(name)))
    if not len(there):
        return Column(name, "empty")
    if _is_number(cells.type):
        values = there.to_numpy(zero_copy_only=False).astype(np.float64)
        whole = np.isfinite(values).all() and (values == np.floor(values)).all()
        return Column(name, "whole" if whole else "fraction", values, types.is_floating(cells.type))
    words = _words(there)
    numbers = [is_number(word) for word in words.tolist()]
    if all(numbers):
        floats = not all(word.lstrip("+-").isdecimal() for word in words.tolist())
        return replace(column_of(name, pa.array(words.astype(np.float64))), floats=floats)
    return Column(name, "mixed" if any(numbers) else "words", words)


def is_number(cell: str) -> bool:
    try:
        _float(cell)
    except ValueError:
        return False
    return True


def _float(cell: str) -> float:
    return float(cell.replace("_", "?"))  # which Python alone takes for a part of a number


def _is_list(type: Any) -> bool:
    from pyarrow import types

    return types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type)


def _is_number(type: Any) -> bool:
    from pyarrow import types

    return types.is_floating(type) or types.is_integer(type)


def _matrix(lists: Any, name: str) -> np.ndarray:
    values = lists.flatten()
    if lists.null_count or values.null_count:
        raise ValueError(f"column {name} has missing values")
    if not _is_number(values.type):
        raise ValueError(f"column {name} holds {lists.type}, not numbers")
    numbers = values.to_numpy(zero_copy_only=False)
    lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ValueError(f"the lists in column {name} differ in length")
    return numbers.reshape(len(lists), *lengths) if len(lengths) else np.empty((0, 0))


def _words(cells: Any) -> np.ndarray:
    return np.array(["" if word is None else str(word).strip() for word in cells.to_pylist()], str)


def listed(names: Iterable[str], most: int = 10) -> str:
    names = list(names)
    return ", ".join([*names[:most], *["..."] * (len(names) > most)])
