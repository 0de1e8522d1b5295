"""A file with a line for each row that counts, written as rows come: of Parquet, of text, or an archive of arrays."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from crossent.tools.arrays import told_apart
from crossent.tools.files import replacing

Columns: TypeAlias = dict[str, np.ndarray]  # of equal length, words or numbers
_AT_ONCE = 2**16  # rows


def spread(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A value for each label of this shape, in their order, of values for each or for each of their first axis."""
    values = values.reshape(values.shape + (1,) * (len(shape) - values.ndim))
    return np.broadcast_to(values, shape or (1,)).reshape(-1)


@contextmanager
def rows_file(path: Path | None) -> Iterator[Callable[[Columns], None] | None]:
    """What to give columns to, always the same ones; where something raises there is no file, nor a part of one."""
    if path is None:
        yield None
        return
    with replacing(path, (OSError,)) as part, WRITERS[path.suffix.lower()](part) as put:
        yield put


def check_rows_file(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"--rows must end in one of {', '.join(WRITERS)}, got {path}")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError(f"{path}: writing .parquet needs pyarrow: pip install crossent[score]")


@contextmanager
def _parquet(path: Path) -> Iterator[Callable[[Columns], None]]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    def array_of(column: np.ndarray) -> pa.Array:
        if column.dtype.kind != "U":
            return pa.array(column)
        words, back = told_apart(column)
        return pa.DictionaryArray.from_arrays(back, words)

    writer = None

    def put(columns: Columns) -> None:
        nonlocal writer
        table = pa.table({name: array_of(column) for name, column in columns.items()})
        # Among floats hardly two are equal: a dictionary of them takes time and saves nothing.
        words: Any = [name for name, column in columns.items() if column.dtype.kind == "U"]
        writer = writer or ParquetWriter(path, table.schema, use_dictionary=words)
        writer.write_table(table)

    try:
        yield put
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _text(path: Path) -> Iterator[Callable[[Columns], None]]:
    with path.open("w", newline="", encoding="utf-8") as file:
        lines, named = csv.writer(file, lineterminator="\n"), False

        def put(columns: Columns) -> None:
            nonlocal named
            if not named:
                lines.writerow(columns)
                named = True
            # As words floats have the digits that tell them apart, and no more.
            lines.writerows(zip(*(column.astype(str).tolist() for column in columns.values())))

        yield put


@contextmanager
def _archive(path: Path) -> Iterator[Callable[[Columns], None]]:
    """Each column waits in a file of its own, since how long it will be stands in front of it; of words the numbers."""
    with TemporaryDirectory(dir=path.parent, prefix=path.name) as folder:
        kinds: dict[str, np.dtype] = {}
        known: dict[str, dict[str, int]] = {}

        def put(columns: Columns) -> None:
            for name, column in columns.items():
                if column.dtype.kind == "U":
                    numbers = known.setdefault(name, {})
                    words, back = told_apart(column)
                    column = np.array([numbers.setdefault(word, len(numbers)) for word in words.tolist()], int)[back]
                kinds[name] = column.dtype
                with (Path(folder) / name).open("ab") as file:
                    file.write(column.tobytes())

        yield put
        with ZipFile(path, "w") as archive:
            for name, kind in kinds.items():
                file = Path(folder) / name
                column = np.memmap(file, kind, "r") if file.stat().st_size else np.empty(0, kind)
                words = np.array(list(known[name]), str) if name in known else None
                dtype = kind if words is None else words.dtype
                head = {"descr": dtype.str, "fortran_order": False, "shape": column.shape}
                entry = ZipInfo(f"{name}.npy")
                entry.compress_type = ZIP_STORED if words is None else ZIP_DEFLATED
                with archive.open(entry, "w", force_zip64=True) as out:
                    np.lib.format.write_array_header_2_0(out, head)
                    for lo in range(0, len(column), _AT_ONCE):
                        some = column[lo : lo + _AT_ONCE]
                        out.write((some if words is None else words[some]).tobytes())


WRITERS = {".parquet": _parquet, ".csv": _text, ".npz": _archive}
