"""Tables in Parquet: columns of numbers, of words, or of lists of numbers of one length."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from crossent.tools.score.tables import SAMPLED, Column, Table, number_kind


def parquet(path: Path, header: bool | None = None, skip_bad: bool = False) -> Table:
    """With `skip_bad` missing numbers are nan, and missing words are none."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        batch = next(file.iter_batches(SAMPLED), None)
        columns = tuple(_column(field, None if batch is None else batch.column(i)) for i, field in enumerate(schema))
        index = _index(schema)

    def read(wanted: Sequence[int], words: bool, step: int) -> Iterator[np.ndarray]:
        with ParquetFile(path) as file:
            names, some = [schema.names[i] for i in wanted], None
            if len(set(names)) < len(names) or any(schema.names.count(name) > 1 for name in names):
                raise ValueError("has several columns of one name")
            for some in file.iter_batches(step, columns=names):
                found = [(_words if words else _numbers)(name, some[name], skip_bad) for name in names]
                yield found[0] if len(found) == 1 else np.column_stack(found)
            if some is None:
                yield np.empty((0, len(names)) if len(names) > 1 else 0)

    return Table(rows, columns, read, True, index)


def _index(schema) -> frozenset[int]:
    """The columns that pandas keeps the names of the rows in."""
    try:
        said = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    except (ValueError, AttributeError):
        said = []
    named = {name for name in said if isinstance(name, str)} if isinstance(said, list) else set()
    return frozenset(i for i, name in enumerate(schema.names) if name in named or name.startswith("__index_level_"))


def _is_list(type) -> bool:
    from pyarrow import types

    return types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type)


def _column(field, values) -> Column:
    from pyarrow import types

    if _is_list(field.type):
        return Column(field.name, "lists", np.empty((0, 0)) if values is None else _numbers(field.name, values))
    if not (types.is_integer(field.type) or types.is_floating(field.type)):
        words = [] if values is None else [str(word) for word in values.drop_null().to_pylist()]
        return Column(field.name, "words", np.array(words, str))
    if values is None:
        return Column(field.name, "empty")
    numbers = values.drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
    return Column(field.name, number_kind(numbers), numbers, len(numbers) if types.is_floating(field.type) else 0)


def _words(name: str, column, skip_bad: bool = False) -> np.ndarray:
    if column.null_count and not skip_bad:
        raise ValueError(f"column {name!r} has missing values")
    return np.array(["" if word is None else str(word) for word in column.to_pylist()], str)


def _numbers(name: str, column, skip_bad: bool = False) -> np.ndarray:
    from pyarrow import types

    lists = _is_list(column.type)
    numbers = column.flatten() if lists else column
    if (column.null_count and (lists or not skip_bad)) or (numbers.null_count and not skip_bad):
        raise ValueError(f"column {name!r} has missing values")
    if not (types.is_floating(numbers.type) or types.is_integer(numbers.type)):
        raise ValueError(f"column {name!r} holds {column.type}, not numbers")
    array = numbers.to_numpy(zero_copy_only=False)
    if not lists:
        return array
    lengths = np.diff(column.value_lengths().to_numpy(zero_copy_only=False))
    if lengths.any() or len(array) % len(column):
        raise ValueError(f"the lists in column {name!r} differ in length")
    return array.reshape(len(column), -1)
