"""Files of logits and labels: what shape they have, and their rows in blocks.

A format is a function of a path, the name of an entry or None, and whether integers are wanted (which only text has to
be told). It looks at the file's head, and returns a `Stored` whose `blocks` open the file again, so that no number of
shards keeps files open. No format loads a pickle. What a library raises for a file it cannot read is its own affair;
`readers` makes one kind of error of it.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

_LONGEST_LINE = 2**26  # bytes; a file with a longer one is no text
_TEXT_AT_ONCE = 2**20  # numbers, which take ten times their memory as text


@dataclass(frozen=True)
class Stored:
    """The shape of an array in a file, and `blocks(n)`: the array, n rows at a time, as NumPy arrays or tensors."""

    shape: tuple[int, ...]
    blocks: Callable[[int], Iterator[Any]]


def _sliced(shape: Iterable[int], opened: Callable[[], Any]) -> Stored:
    """Of something that gives its rows by slices."""
    shape = tuple(shape)

    def blocks(step: int) -> Iterator[Any]:
        array = opened()
        for lo in range(0, shape[0], step):
            yield array[lo : min(lo + step, shape[0])]

    return Stored(shape, blocks)


def chosen(key: str | None, names: Iterable[str]) -> str:
    """The entry that is meant: the only one where none is named."""
    names = sorted(names)
    known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    if key is None and len(names) != 1:
        raise ValueError(f"holds {len(names)} entries, name one of them as its key: {known}")
    if key is not None and key not in names:
        raise ValueError(f"has no entry {key!r}, only {known}")
    return names[0] if key is None else key


def npy(path: Path, key: str | None, integers: bool) -> Stored:
    """Mapped into memory, which refuses arrays of objects."""
    if key is not None:
        raise ValueError(f"a .npy file has no entries, got the key {key!r}")

    def mapped() -> np.ndarray:
        return np.lib.format.open_memmap(path, mode="r")

    return _sliced(mapped().shape, mapped)


_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def npz(path: Path, key: str | None, integers: bool) -> Stored:
    """Read from the archive as it is unpacked, a block at a time."""

    def header(member) -> tuple[tuple[int, ...], bool, np.dtype]:
        version = np.lib.format.read_magic(member)
        if version not in _NPY_HEADERS:
            raise ValueError(f"the entry has version {version} of the .npy format")
        shape, fortran, dtype = _NPY_HEADERS[version](member)
        if dtype.kind not in "fiu":
            raise ValueError(f"the entry holds {dtype}, not numbers")
        if fortran and len(shape) > 1:
            raise ValueError("the entry lies in Fortran order, of which no row can be read without all others")
        return shape, fortran, dtype

    with zipfile.ZipFile(path) as archive:
        name = chosen(key, (name.removesuffix(".npy") for name in archive.namelist())) + ".npy"
        with archive.open(name) as member:
            shape, _, dtype = header(member)
    size = dtype.itemsize * int(np.prod(shape[1:], dtype=object))

    def blocks(step: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            header(member)
            for lo in range(0, shape[0], step):
                n = min(step, shape[0] - lo)
                data = member.read(n * size)
                if len(data) != n * size:
                    raise ValueError(f"the entry ends before row {shape[0]}")
                yield np.frombuffer(data, dtype).reshape(n, *shape[1:])

    return Stored(shape, blocks)


def safetensors(path: Path, key: str | None, integers: bool) -> Stored:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        name = chosen(key, file.keys())
        entry = file.get_slice(name)
        # NumPy has no bfloat16.
        shape, framework = entry.get_shape(), "pt" if entry.get_dtype() == "BF16" else "numpy"
    return _sliced(shape, lambda: safe_open(path, framework=framework).get_slice(name))


def pt(path: Path, key: str | None, integers: bool) -> Stored:
    """What torch.save wrote, tensors alone, mapped into memory."""
    import torch

    def tensor() -> torch.Tensor:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:  # whose message tells how to load what is not safe
            raise ValueError("holds something other than tensors, which is never loaded") from error
        if isinstance(found, dict):
            tensors = {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
            found = tensors[chosen(key, tensors)]
        elif key is not None:
            raise ValueError(f"holds no dictionary, got the key {key!r}")
        if not isinstance(found, torch.Tensor) or found.layout is not torch.strided or found.is_quantized:
            raise ValueError("holds no dense tensor, and no dictionary of them")
        return found.detach()

    return _sliced(tensor().shape, tensor)


def csv(path: Path, key: str | None, integers: bool) -> Stored:
    """Numbers between commas, a row a line, with or without a line of names; `key` is one of these."""
    with path.open("rb") as file:
        first = _line(file).decode().strip()
    if not first:
        raise ValueError("the file is empty, or its first line")
    cells = [cell.strip().strip('"') for cell in first.split(",")]
    named = not all(_is_number(cell) for cell in cells)
    column, rows = None, _lines(path) - named
    if key is not None:
        if not named:
            raise ValueError(f"its first line has no names, got the key {key!r}")
        column = cells.index(chosen(key, cells))
    vector = column is not None or len(cells) == 1

    def blocks(step: int) -> Iterator[np.ndarray]:
        step = max(1, min(step, _TEXT_AT_ONCE // len(cells)))
        with path.open("rb") as file:
            lines = iter(lambda: _line(file), b"")
            if named:
                next(lines)
            for lo in range(0, rows, step):
                some = [line.decode() for line in islice(lines, step)]
                if any(not line.strip() for line in some):
                    raise ValueError(f"an empty line among rows {lo} to {lo + len(some)}")
                yield np.loadtxt(
                    some, np.int64 if integers else np.float64, delimiter=",", comments=None, usecols=column,
                    ndmin=1 if vector else 2,
                )  # fmt: skip

    return Stored((rows,) if vector else (rows, len(cells)), blocks)


def _line(file) -> bytes:
    line = file.readline(_LONGEST_LINE)
    if len(line) == _LONGEST_LINE:
        raise ValueError(f"a line of more than {_LONGEST_LINE} bytes")
    return line


def _lines(path: Path) -> int:
    """How many lines there are, the last of which need not end."""
    count, last = 0, b"\n"
    with path.open("rb") as file:
        while piece := file.read(2**20):
            count, last = count + piece.count(b"\n"), piece[-1:]
    return count + (last != b"\n")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def parquet(path: Path, key: str | None, integers: bool) -> Stored:
    """All columns, each a class, or the one named `key`, of numbers or of lists of one length."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        names, rows = file.schema_arrow.names, file.metadata.num_rows
        if key is not None:
            names = [chosen(key, names)]
        head = next(file.iter_batches(1, columns=names), None)
        shape = (rows, *_of_batch(head).shape[1:]) if head is not None else (0, len(names))

    def blocks(step: int) -> Iterator[np.ndarray]:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(step, columns=names):
                yield _of_batch(batch)

    return Stored(shape, blocks)


def _of_batch(batch) -> np.ndarray:
    columns = [_of_column(*pair) for pair in zip(batch.schema.names, batch.columns)]
    return columns[0] if len(columns) == 1 else np.column_stack(columns)


def _of_column(name: str, column) -> np.ndarray:
    from pyarrow import types

    lists = types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)
    numbers = column.flatten() if lists else column
    if column.null_count or numbers.null_count:
        raise ValueError(f"its column {name!r} has missing values")
    if not (types.is_floating(numbers.type) or types.is_integer(numbers.type)):
        raise ValueError(f"its column {name!r} holds {column.type}, not numbers")
    array = numbers.to_numpy(zero_copy_only=False)
    if not lists:
        return array
    lengths = np.diff(column.value_lengths().to_numpy(zero_copy_only=False))
    if lengths.any() or len(array) % len(column):
        raise ValueError(f"the lists in its column {name!r} differ in length")
    return array.reshape(len(column), -1)


FORMATS = {".csv": csv, ".npy": npy, ".npz": npz, ".parquet": parquet, ".pt": pt, ".safetensors": safetensors}
# What a format needs beyond NumPy: the module and the extra that has it.
NEEDS = {".parquet": ("pyarrow", "parquet"), ".pt": ("torch", "torch"), ".safetensors": ("safetensors", "score")}
