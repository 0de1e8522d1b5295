"""Tensors and NumPy arrays alike: what the tools ask of either."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def is_numpy(array: Any) -> bool:
    return isinstance(array, np.ndarray | np.generic)


def dtype_of(array: Any) -> str:
    """Its name, whatever the byte order."""
    return getattr(array.dtype, "name", str(array.dtype).removeprefix("torch."))


def as_numpy(array: Any) -> Any:
    """The values of a tensor or array, 16 bits widened to 32."""
    if not is_numpy(array):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() and array.itemsize == 2 else array
        array = (array.clone() if _is_copied_on_write(array) else array).numpy()
    narrow = array.dtype.itemsize == 2 and dtype_of(array) in ("float16", "bfloat16")  # a name takes long to make
    return array.astype(np.float32) if narrow else np.asarray(array)


def _is_copied_on_write(tensor: Any) -> bool:
    """Whether `numpy()`, which gives memory that can be written to, would copy all that the tensor is a part of."""
    import torch

    return torch._C._is_cow_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]


def like(original: Any, values: Any) -> Any:
    """The values as an array of the original's library, on its device."""
    if is_numpy(original):
        return values
    import torch

    return torch.from_numpy(np.asarray(values)).to(original.device)


def told_apart(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ones of an array of words or numbers, in any order, and the number of each among them.

    Words are sorted only where two of them fall on one of 65,536 places. That takes a tenth off the time of a score
    with groups and a file of all rows (`python -m benchmarks.score 5`).
    """
    if words.strides == (0,):  # a single one, for all of them
        return words[:1], np.zeros(len(words), np.intp)
    if words.dtype.kind == "U" and words.itemsize and len(words):
        letters = np.ascontiguousarray(words).view(np.uint32).reshape(len(words), -1)
        factors = np.random.default_rng(0).integers(2**32, size=letters.shape[1], dtype=np.uint32)
        place = (letters @ factors) >> 16
        last = np.full(2**16, -1)
        last[place] = np.arange(len(words))
        taken = np.flatnonzero(last >= 0)
        if (words[last[place]] == words).all():
            number = np.empty(2**16, np.intp)
            number[taken] = np.arange(len(taken))
            return words[last[taken]], number[place]
    return np.unique(words, return_inverse=True)


def numbered(values: np.ndarray, known: Mapping[Any, int], missing: int | None = None) -> np.ndarray:
    """What each word or number is in `known`; those that are not there are `missing`, or None: stay what they are."""
    different, place = told_apart(values.reshape(-1))
    found = [known.get(one, one if missing is None else missing) for one in different.tolist()]
    return np.array(found, np.int64)[place].reshape(values.shape)


def moved_axis(array: Any, source: int, destination: int) -> Any:
    return np.moveaxis(array, source, destination) if is_numpy(array) else array.movedim(source, destination)
