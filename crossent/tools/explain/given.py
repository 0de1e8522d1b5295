"""Arguments as people have them: lists, frames with names for their classes, labels that are names."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from crossent.tools.arrays import is_numpy, like, numbered
from crossent.tools.language import say

ARRAYS = ("target", "weight", "sample_weight", "linear_weight", "linear_bias")


def as_arrays(arguments: dict[str, Any], names: Any) -> tuple[dict[str, Any], Any]:
    """The arguments as the function takes them, and what classes are called, by `names` or by a frame's columns.

    Lists, frames and whatever has `__array__` become arrays of the input's library, whole numbers as input floats, and
    words as target the numbers of the classes so called.
    """
    given = arguments["input"]
    if names is None and hasattr(given, "columns"):
        names = list(given.columns)
    logits = _as_array("input", given)
    if not _is_array(logits):
        return arguments, names  # which the function refuses
    if logits is not given and logits.dtype.kind in "iub":
        logits = logits.astype(np.float64)
    found = arguments | {"input": logits}
    for name in arguments.keys() & ARRAYS:
        array = _as_array(name, arguments[name])
        if is_numpy(array) and array.dtype.kind in "OUS" and name == "target":
            array = _numbers(array, names)
        if array is not arguments[name]:
            found[name] = like(logits, array)
    return found, names


def naming(names: Any, classes: int) -> Callable[[int], str | None]:
    """What says the name of a class, None where it has none."""
    if hasattr(names, "decode"):
        return lambda c: repr(names.decode([c])) if 0 <= c < classes else None
    if not isinstance(names, Mapping | None):
        if isinstance(names, str) or not hasattr(names, "__len__"):
            raise TypeError(say("wrong.names_kind", got=type(names).__name__))
        if len(names) != classes:
            raise ValueError(say("wrong.names_count", classes=classes, got=len(names)))
        numbers_alone = all(str(name) == str(c) for c, name in enumerate(names))
        names = None if numbers_alone else dict(enumerate(names))
    named = names or {}
    return lambda c: str(named[c]) if c in named else None


def _is_array(value: Any) -> bool:
    return is_numpy(value) or hasattr(value, "__torch_function__")


def _as_array(name: str, value: Any) -> Any:
    """Itself where it is an array or a tensor, or nothing that could become one."""
    if _is_array(value) or not (isinstance(value, list | tuple) or hasattr(value, "__array__")):
        return value
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(say("wrong.uneven", name=name, error=error)) from error


def _numbers(words: np.ndarray, names: Any) -> np.ndarray:
    """Names of classes as their numbers."""
    if names is None or hasattr(names, "decode"):
        raise TypeError(say("wrong.target_words", got=words.reshape(-1)[:1]))
    words = words.astype(str)
    places = {str(name): c for c, name in (names.items() if isinstance(names, Mapping) else enumerate(names))}
    found = numbered(words, places, -1)
    if (found < 0).any():
        at, known = int(found.argmin()), ", ".join(map(repr, list(places)[:5]))
        raise ValueError(say("wrong.target_unknown", word=repr(str(words.flat[at])), row=at, known=known))
    return found
