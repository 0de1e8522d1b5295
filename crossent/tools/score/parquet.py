"""Tables in Parquet: columns of numbers, of words, or of lists of numbers of one length."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from crossent.tools.score.tables import SAMPLED, Column, Table, of_numbers


def parquet(path: Path, header: bool | None = None, skip_bad: bool = False) -> Table:
    """With `skip_bad` missing numbers are nan, and missing words are none."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        some = next(file.iter_batches(SAMPLED), schema.empty_table())
        columns = tuple(replace(_column(name, some.column(i)), name=name) for i, name in enumerate(schema.names))

    def read(wanted: Sequence[int], words: bool, step: int) -> Iterator[np.ndarray]:
        names, block = [schema.names[i] for i in wanted], None
        if any(schema.names.count(name) > 1 for name in names):
            raise ValueError("has several columns of one name")
        with ParquetFile(path) as file:
            for block in file.iter_batches(step, columns=names):
                found = [(_words if words else _numbers)(name, block[name], skip_bad) for name in names]
                yield found[0] if len(found) == 1 else np.column_stack(found)
        if block is None:
            yield np.empty((0, len(names)) if len(names) > 1 else 0)

    said = (schema.pandas_metadata or {}).get("index_columns", [])  # in which pandas keeps the names of the rows
    index = {i for i, name in enumerate(schema.names) if name in said or name.startswith("__index_level_")}
    return Table(rows, columns, read, True, frozenset(index))


def _is_list(type) -> bool:
    from pyarrow import types

    return types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type)


def _is_number(type) -> bool:
    from pyarrow import types

    return types.is_floating(type) or types.is_integer(type)


def _column(name: str, column) -> Column:
    if _is_list(column.type):
        return Column("lists", _numbers(name, column) if len(column) else np.empty((0, 0)))
    there = column.drop_null()
    if not _is_number(column.type):
        return Column("words", _words(name, there))
    if not len(column):
        return Column("empty")
    values = there.to_numpy(zero_copy_only=False)
    return of_numbers(values.astype(np.float64), len(values) if values.dtype.kind == "f" else 0)


def _words(name: str, column, skip_bad: bool = False) -> np.ndarray:
    if column.null_count and not skip_bad:
        raise ValueError(f"column {name!r} has missing values")
    return np.array(["" if word is None else str(word) for word in column.to_pylist()], str)


def _numbers(name: str, column, skip_bad: bool = False) -> np.ndarray:
    lists = _is_list(column.type)
    values = column.flatten() if lists else column
    if (column.null_count and (lists or not skip_bad)) or (values.null_count and not skip_bad):
        raise ValueError(f"column {name!r} has missing values")
    if not _is_number(values.type):
        raise ValueError(f"column {name!r} holds {column.type}, not numbers")
    array = values.to_numpy(zero_copy_only=False)
    if not lists:
        return array
    lengths = np.diff(column.value_lengths().to_numpy(zero_copy_only=False))
    if lengths.any() or len(array) % len(column):
        raise ValueError(f"the lists in column {name!r} differ in length")
    return array.reshape(len(column), -1)
