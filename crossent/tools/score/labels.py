"""Labels as they are stored, made numbers of classes: whole floats, booleans, names, one-hot rows, an axis too many."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from crossent.tools.score.readers import BadFile, Rows, printable
from crossent.tools.score.tables import listed

Place: TypeAlias = Callable[[int], str]
NO_LABEL = -(2**63)
_TRUTH = {"False": 0, "True": 1, "false": 0, "true": 1}
_WHOLE = "whole numbers", "whole numbers or words"  # what labels and lengths must be, and groups
_AS_CLASSES = "false is read as class 0, true as class 1"


@dataclass(frozen=True)
class Labels:
    """`of(block, place)` makes integers of a block of labels; `place(i)` names the place of its row `i`.

    Without `place` what is no label becomes `NO_LABEL`, which is no class; with it that is refused. `soft` says that
    they may be probabilities if they are not one-hot.
    """

    of: Callable[[Any, Place | None], np.ndarray]
    notes: tuple[str, ...] = ()
    soft: bool = False


def labels_for(logits: Rows, labels: Rows, axis: int) -> Labels:
    """How labels are read for logits whose classes lie along `axis`."""
    shape, classes = labels.shape, logits.shape[axis]
    wanted = (*logits.shape[:axis], *logits.shape[axis + 1 :])
    where = labels.path
    if shape[1:] == logits.shape[1:] and labels.kind not in "US" and classes > 1:
        said = (f"{where}: the labels are one-hot",)
        return Labels(lambda block, place: one_hot(block, axis, place), said, labels.kind == "f")
    squeezed = shape[1:] == (*wanted[1:], 1)
    if shape[1:] != wanted[1:] and not squeezed:
        raise BadFile(
            f"{where}: labels must have the shape {_shape(wanted)} for logits of shape {logits.shape} with the classes "
            f"along axis {axis}, or be one-hot; got {shape}: correct them, or the axis with --dim"
        )
    number, note = _numbers(logits, labels, classes)
    said = f"{where}: labels of shape {shape} are read as {_shape(wanted)}" if squeezed else ""

    def of(block: Any, place: Place | None) -> np.ndarray:
        block = np.asarray(block)
        return number(block[..., 0] if squeezed else block, place)

    return Labels(of, tuple(filter(None, (said, note))))


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['rows', *map(str, shape[1:])])}{',' if len(shape) == 1 else ''})"


def _numbers(logits: Rows, labels: Rows, classes: int) -> tuple[Callable, str]:
    """What makes integers of labels, and what to say of it."""
    where, names = labels.path, logits.names
    if labels.kind in "US":
        if classes == 2 and not _TRUTH.keys() & names and _first(labels) in _TRUTH:
            return _Named(_TRUTH, "").of, f"{where}: {_AS_CLASSES}"
        if names and len(set(names)) == len(names):
            header = f"the header of {logits.path}"
            return _Named(dict(zip(names, range(classes))), header).of, f"{where}: class names are found in {header}"
        return _Named({}, "").of, ""
    if labels.kind == "b":
        if classes != 2:
            raise BadFile(f"{where}: labels that are true or false need two classes, and there are {classes}")
        return lambda block, place: block.astype(np.int64), f"{where}: {_AS_CLASSES}"
    by_name = _by_number(logits, labels)
    if by_name is not None:
        said = f"{where}: labels are the numbers in the header of {logits.path}, not the places of its columns"
        return by_name, said
    if labels.kind == "f":
        columns = isinstance(labels.parts[0], int)  # whose numbers are always read as floats
        return whole, "" if columns else f"{where}: whole numbers with a fraction of 0 are read as labels"
    return lambda block, place: block, ""


def _first(labels: Rows) -> str:
    for block in labels.blocks(1):
        if block.size:
            return str(block.reshape(-1)[0])
    return ""


def others_for(name: str, values: Rows, logits: Rows, axis: int) -> Labels:
    """How what is beside the labels is read: groups, which may be words, or numbers of bytes or words."""
    shape, (_, *wanted) = values.shape[1:], (*logits.shape[:axis], *logits.shape[axis + 1 :])
    if shape not in ((), (1,), tuple(wanted)):
        fit = " or ".join(dict.fromkeys(map(_shape, ((0,), (0, *wanted)))))
        raise BadFile(f"{values.path}: {name} must have the shape {fit}, got {values.shape}")
    if values.kind not in ("iubfSU" if name == "group" else "iuf"):
        raise BadFile(f"{values.path}: {name} must be {_WHOLE[name == 'group']}")

    def of(block: Any, place: Place | None) -> np.ndarray:
        block = np.asarray(block)
        block = block[:, 0] if shape == (1,) and wanted != [1] else block
        if values.kind in "SU":
            return _words(block)
        numbers = whole(block, place, name) if block.dtype.kind == "f" else block
        if name != "group" and (numbers < 0).any():
            row = int(np.argwhere(numbers < 0)[0, 0])
            raise BadFile(f"{place(row)}: {name} must not be negative, got {numbers[numbers < 0][0]}")
        return numbers

    return Labels(of)


def _words(block: np.ndarray) -> np.ndarray:
    return np.char.decode(block, "utf-8", "replace") if block.dtype.kind == "S" else block.astype(str)


def whole(block: np.ndarray, place: Place | None, name: str = "labels") -> np.ndarray:
    """Floats without a fraction as integers."""
    block = block.astype(np.float64)
    good = np.isfinite(block) & (block == np.floor(block)) & (np.abs(block) < 2.0**62)
    if place is not None and not good.all():
        row = int(np.argwhere(~good)[0, 0])
        raise BadFile(f"{place(row)}: {name} must be {_WHOLE[name == 'group']}, got {block[~good][0]}")
    return np.where(good, block, NO_LABEL).astype(np.int64)


def one_hot(block: Any, axis: int, place: Place | None) -> np.ndarray:
    block = np.asarray(block)
    good = _single(block, axis)
    if place is not None and not good.all():
        row = int(np.argwhere(~good)[0, 0])
        raise BadFile(f"{place(row)}: labels of the shape of the logits must be one-hot, a single 1 among zeros")
    return np.where(good, block.argmax(axis), NO_LABEL)


def is_one_hot(block: np.ndarray, axis: int) -> bool:
    return bool(_single(block, axis).all())


def _single(block: np.ndarray, axis: int) -> np.ndarray:
    return ((block == 0) | (block == 1)).all(axis) & (block.sum(axis) == 1)


@dataclass(frozen=True)
class _Named:
    """Names of classes as their numbers."""

    numbers: dict[str, int]
    header: str

    def of(self, block: np.ndarray, place: Place | None) -> np.ndarray:
        block = _words(block)
        words, back = np.unique(block, return_inverse=True)
        found = np.array([self.numbers.get(word, NO_LABEL) for word in words.tolist()], np.int64)
        if place is not None and (found < 0).any():
            word = words[found.argmin()]
            row = int(np.argwhere(block == word)[0, 0])
            word = printable(str(word)[:40])
            if not self.header:
                raise BadFile(
                    f"{place(row)}: labels are names, such as {word!r}: store their numbers, or give the logits a "
                    "header of them"
                )
            known = printable(listed(map(repr, self.numbers), 5))
            raise BadFile(f"{place(row)}: the label {word!r} is none of the classes in {self.header}: {known}")
        return found[back.reshape(block.shape)]


def _by_number(logits: Rows, labels: Rows) -> Callable | None:
    """Where the header of the logits has numbers that are not the places of its columns, labels may be either."""
    try:
        header = np.array([int(name) for name in logits.names], np.int64)
    except ValueError:
        return None
    places = np.arange(len(header))
    if not len(header) or (header == places).all() or len(set(header.tolist())) < len(header):
        return None
    named, placed = set(header.tolist()), set(places.tolist())
    if named != placed:
        found: set[float] = set()
        for block in labels.blocks():
            found |= set(np.unique(np.asarray(block)).tolist())
        if bool(found & (named - placed)) == bool(found & (placed - named)):
            raise BadFile(
                f"{logits.path}: its header has the numbers {header[0]} to {header[-1]}, and labels may be "
                "these or the places of the columns: give it the numbers from 0 on, or take it away"
            )
        if found & (placed - named):
            return None
    order = np.argsort(header)

    def of(block: np.ndarray, place: Place | None) -> np.ndarray:
        numbers = whole(block, place) if block.dtype.kind == "f" else block
        at = np.searchsorted(header[order], numbers).clip(max=len(header) - 1)
        return np.where(header[order][at] == numbers, order[at], numbers)

    return of
