"""Files of arrays: which entries they have, of what shape and kind, and their rows in blocks.

A format is a function of a path that looks at the file's head and returns its entries by name, "" where a file holds
one array that has none. An entry's `blocks` open the file again, so that no number of shards keeps files open. No
format loads a pickle. What a library raises for a file it cannot read is its own affair; `readers` makes one kind of
error of it. Files of columns are those of `tables`.
"""

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from crossent.tools.score.tables import listed

_LONGEST_HEAD = 2**27  # bytes, of .safetensors
BFLOAT16 = np.dtype("V2")  # what NumPy, which has no such type, writes of ml_dtypes' bfloat16


@dataclass(frozen=True)
class Stored:
    """An array in a file: its shape, the kind of its numbers as NumPy's letter, and `blocks(n)`, n rows at a time.

    Blocks are NumPy arrays or tensors; of no rows there is one empty block. `note` says what was made of it, if that
    does not go without saying. Blocks of what is `mapped` into memory take none.
    """

    shape: tuple[int, ...]
    kind: str
    blocks: Callable[[int], Iterator[Any]]
    note: str = ""
    mapped: bool = False


def _sliced(opened: Callable[[], Any], shape: Iterable[int], kind: str, note: str = "") -> Stored:
    """Of something that gives its rows by slices."""
    shape = tuple(shape)

    def blocks(step: int) -> Iterator[Any]:
        array = opened()
        for lo in range(0, shape[0], step) or [0]:
            yield _widened(array[lo : min(lo + step, shape[0])])

    return Stored(shape, kind, blocks, note)


def chosen(entries: dict[str, Stored], key: str | None) -> str | None:
    """The name of the entry that is named, or of the only one; None where there are several and none is named."""
    if key is not None and key not in entries:
        if "" in entries:
            raise ValueError(f"a file of one array has no entries, got the key {key!r}")
        raise ValueError(f"has no entry {key!r}, only {listed(sorted(entries))}")
    if not entries:
        raise ValueError("holds no entries")
    return next(iter(entries)) if key is None and len(entries) == 1 else key


def _refused(error: Exception) -> Stored:
    """An entry that cannot be read, which does no harm as long as nobody asks for it."""

    def blocks(step: int) -> Iterator[Any]:
        raise error

    return Stored((), "", blocks)


def _known(dtype: np.dtype) -> tuple[str, str]:
    """The kind of a type that can be read, numbers, booleans and words, and what to say of it."""
    if dtype == BFLOAT16:
        return "f", "its numbers of two bytes are taken for bfloat16, as ml_dtypes writes it"
    if dtype.kind in "fiubcSU":
        return dtype.kind, ""
    if dtype.kind == "V":
        raise ValueError(f"holds {dtype.str}, of which nothing says what it is: save it as float32")
    raise ValueError(f"holds {dtype}, not numbers")


def _widened(array: Any) -> Any:
    """bfloat16 as float32, which has all of its numbers."""
    if not isinstance(array, np.ndarray) or array.dtype != BFLOAT16:
        return array
    return (np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def npy(path: Path) -> dict[str, Stored]:
    """Mapped into memory, which refuses arrays of objects."""

    def mapped() -> np.ndarray:
        return np.lib.format.open_memmap(path, mode="r")

    array = mapped()
    return {"": replace(_sliced(mapped, array.shape, *_known(array.dtype)), mapped=array.dtype != BFLOAT16)}


_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def npz(path: Path) -> dict[str, Stored]:
    """Read from the archive as it is unpacked, a block at a time."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        return {name.removesuffix(".npy"): _entry(path, archive, name) for name in names}


def _entry(path: Path, archive: zipfile.ZipFile, name: str) -> Stored:
    try:
        with archive.open(name) as member:
            shape, dtype = _npy_header(member)
        kind, note = _known(dtype)
    except Exception as error:
        return _refused(error)
    size = dtype.itemsize * int(np.prod(shape[1:], dtype=object))

    def blocks(step: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            _npy_header(member)
            for lo in range(0, shape[0], step) or [0]:
                n = min(step, shape[0] - lo)
                data = member.read(n * size)
                if len(data) != n * size:
                    raise ValueError(f"the entry ends before row {shape[0]}")
                yield _widened(np.frombuffer(data, dtype).reshape(n, *shape[1:]))

    return Stored(shape, kind, blocks, note)


def _npy_header(member) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(member)
    if version not in _NPY_HEADERS:
        raise ValueError(f"the entry has version {version} of the .npy format")
    shape, fortran, dtype = _NPY_HEADERS[version](member)
    if fortran and len(shape) > 1:
        raise ValueError("the entry lies in Fortran order, of which no row can be read without all others")
    return shape, dtype


_SAFETENSORS = {"BOOL": "b", "F16": "f", "F32": "f", "F64": "f"} | {
    f"{sign}{bits}": kind for sign, kind in (("I", "i"), ("U", "u")) for bits in (8, 16, 32, 64)
}


def safetensors(path: Path) -> dict[str, Stored]:
    from safetensors import safe_open

    def one(file, name: str) -> Stored:
        entry = file.get_slice(name)
        shape, dtype = entry.get_shape(), entry.get_dtype()
        if dtype == "BF16":  # which NumPy has not
            return _sliced(lambda: _raw(path, name), shape, "f")
        if dtype not in _SAFETENSORS:
            return _refused(ValueError(f"the entry {name!r} holds {dtype}: save it as float32"))
        whole = 0 in shape  # of which there are no slices

        def opened() -> Any:
            file = safe_open(path, framework="numpy")
            return file.get_tensor(name) if whole else file.get_slice(name)

        return _sliced(opened, shape, _SAFETENSORS[dtype])

    with safe_open(path, framework="numpy") as file:
        return {name: one(file, name) for name in file.keys()}


def _raw(path: Path, name: str) -> np.ndarray:
    """An entry as two bytes each, in a file whose head safe_open has checked."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(min(size, _LONGEST_HEAD)))[name]
    shape = tuple(head["shape"])
    if 0 in shape:  # which cannot be mapped
        return np.empty(shape, BFLOAT16)
    return np.memmap(path, BFLOAT16, "r", 8 + size + head["data_offsets"][0], shape)


def pt(path: Path) -> dict[str, Stored]:
    """What torch.save wrote, tensors alone, mapped into memory."""
    import torch

    def loaded() -> dict[str, torch.Tensor]:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:  # whose message tells how to load what is not safe
            raise ValueError("holds something other than tensors, which is never loaded") from error
        if not isinstance(found, dict):
            found = {"": found}
        return {str(name): value.detach() for name, value in found.items() if isinstance(value, torch.Tensor)}

    def one(name: str, tensor: torch.Tensor) -> Stored:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return _refused(ValueError("holds no dense tensor, and no dictionary of them"))
        kind = "f" if tensor.is_floating_point() else "b" if tensor.dtype is torch.bool else "i"
        return _sliced(lambda: loaded()[name], tensor.shape, "c" if tensor.is_complex() else kind)

    found = {name: one(name, tensor) for name, tensor in loaded().items()}
    if not found:
        raise ValueError("holds no dense tensor, and no dictionary of them")
    return found


ARRAYS = {".npy": npy, ".npz": npz, ".pt": pt, ".safetensors": safetensors}
