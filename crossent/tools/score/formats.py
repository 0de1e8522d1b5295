"""Files of arrays: which entries they have, of what shape and type, and their rows in blocks.

A format is a function of a path that looks at the file's head and returns its entries by name, "" where a file holds
one array that has none. An entry's `blocks` open the file again, so that no number of shards keeps files open. No
format loads a pickle. What a library raises for a file it cannot read is its own affair; `readers` makes one kind of
error of it. Files of columns are those of `tables`.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

BFLOAT16 = np.dtype("V2")  # what NumPy, which has no such type, writes of ml_dtypes' bfloat16


@dataclass(frozen=True)
class Stored:
    """An array in a file: its shape, NumPy's type for its numbers, and `blocks(n)`, n rows at a time.

    Blocks are NumPy arrays, for bfloat16 of two bytes each, or tensors; of no rows there is one empty block. Blocks of
    what is `mapped` into memory take none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[int], Iterator[Any]]
    mapped: bool = False

    @property
    def kind(self) -> str:
        """Of its numbers, as NumPy's letter."""
        return "f" if self.dtype == BFLOAT16 else self.dtype.kind


def check(dtype: np.dtype) -> None:
    """Numbers, booleans and words can be read."""
    if dtype.kind == "V" and dtype != BFLOAT16:
        raise ValueError(f"holds {dtype.str}, of which nothing says what it is: save it as float32")
    if dtype.kind not in "fiubcSUV":
        raise ValueError(f"holds {dtype}, not numbers")


def plain(array: Any) -> Any:
    """Whole numbers of memory, and bfloat16 as float32, which has all of its numbers."""
    if not isinstance(array, np.ndarray):
        return array
    if array.dtype != BFLOAT16:
        return array if array.flags.aligned else array.copy()
    return (np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _mapped(opened: Callable[[], Any], shape: Sequence[int], dtype: np.dtype) -> Stored:
    """Of something that gives its rows by slices."""

    def blocks(step: int) -> Iterator[Any]:
        array = opened()
        for lo in range(0, shape[0], step) or [0]:
            yield array[lo : min(lo + step, shape[0])]

    return Stored(tuple(shape), dtype, blocks, dtype != BFLOAT16)


def npy(path: Path) -> dict[str, Stored]:
    """Mapped into memory, which refuses arrays of objects."""

    def opened() -> np.ndarray:
        return np.lib.format.open_memmap(path, mode="r")

    array = opened()
    return {"": _mapped(opened, array.shape, array.dtype)}


_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def npz(path: Path) -> dict[str, Stored]:
    """Read from the archive as it is unpacked, a block at a time."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        return {name.removesuffix(".npy"): _entry(path, archive, name) for name in names}


def _entry(path: Path, archive: zipfile.ZipFile, name: str) -> Stored:
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version not in _NPY_HEADERS:
            raise ValueError(f"the entry has version {version} of the .npy format")
        shape, fortran, dtype = _NPY_HEADERS[version](member)
        start = member.tell()
    rows = shape[0] if shape else 0
    size = dtype.itemsize * int(np.prod(shape[1:], dtype=object))

    def blocks(step: int) -> Iterator[np.ndarray]:
        if fortran and len(shape) > 1:
            raise ValueError("the entry lies in Fortran order, of which no row can be read without all others")
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            member.read(start)
            for lo in range(0, rows, step) or [0]:
                n = min(step, rows - lo)
                data = member.read(n * size)
                if len(data) != n * size:
                    raise ValueError(f"the entry ends before row {rows}")
                yield np.frombuffer(data, dtype).reshape(n, *shape[1:])

    return Stored(shape, dtype, blocks)


_SAFETENSORS = {"BOOL": "?", "F16": "<f2", "F32": "<f4", "F64": "<f8"} | {
    f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)
}


def safetensors(path: Path) -> dict[str, Stored]:
    """Mapped into memory."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy"), path.open("rb") as file:  # which checks the head
        size = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(size))

    def one(said: dict[str, Any]) -> Stored:
        dtype = BFLOAT16 if said["dtype"] == "BF16" else np.dtype(_SAFETENSORS.get(said["dtype"], "V1"))
        shape, start = tuple(said["shape"]), 8 + size + said["data_offsets"][0]
        empty = 0 in shape  # which cannot be mapped
        return _mapped(
            lambda: np.empty(shape, dtype) if empty else np.memmap(path, dtype, "r", start, shape), shape, dtype
        )

    return {name: one(said) for name, said in head.items() if name != "__metadata__"}


def pt(path: Path) -> dict[str, Stored]:
    """What torch.save wrote, dense tensors alone, mapped into memory."""
    import torch

    def loaded() -> dict[str, torch.Tensor]:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:  # whose message tells how to load what is not safe
            raise ValueError("holds something other than tensors, which is never loaded") from error
        found = found if isinstance(found, dict) else {"": found}
        tensors = {str(name): value.detach() for name, value in found.items() if isinstance(value, torch.Tensor)}
        return {name: one for name, one in tensors.items() if one.layout is torch.strided and not one.is_quantized}

    def one(name: str, tensor: torch.Tensor) -> Stored:
        kind = "c" if tensor.is_complex() else "f" if tensor.is_floating_point() else "i"
        dtype = np.dtype("?" if tensor.dtype is torch.bool else f"{kind}8")
        return _mapped(lambda: loaded()[name], tensor.shape, dtype)

    found = {name: one(name, tensor) for name, tensor in loaded().items()}
    if not found:
        raise ValueError("holds no dense tensor, and no dictionary of them")
    return found


ARRAYS = {".npy": npy, ".npz": npz, ".pt": pt, ".safetensors": safetensors}
