"""Labels as they are stored, made numbers of classes: whole floats, booleans, names, one-hot rows, an axis too many."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from crossent.tools.arrays import numbered
from crossent.tools.score.readers import BadFile, Rows, naming, printable
from crossent.tools.score.tables import listed

NO_LABEL = -(2**63)
_TRUTH = {"False": 0, "True": 1, "false": 0, "true": 1}
_WHOLE = {"labels": "whole numbers", "group": "whole numbers or words"}
_LENGTHS = "whole numbers, none negative"
# Of a block the numbers, where they are right (True: everywhere), and the error for where they are not.
Read: TypeAlias = tuple[np.ndarray, Any, Callable[[np.ndarray], ValueError]]


@dataclass(frozen=True)
class Values:
    """What rows have beside their logits. `of` reads a block; what cannot be read is refused, or `marked` `NO_LABEL`.

    `soft` says that labels may be probabilities if they are not one-hot.
    """

    rows: Rows
    of: Callable[[np.ndarray], Read]
    notes: tuple[str, ...] = ()
    soft: bool = False
    marked: bool = False

    def blocks(self) -> Iterator[np.ndarray]:
        start = 0
        for block in self.rows.blocks():
            with naming(self.rows.path):
                found, good, why = self.of(np.asarray(block))
                if not np.all(good):
                    if not self.marked:
                        row = int(np.argwhere(~good)[0, 0])
                        raise BadFile(f"{self.rows.place(start + row)}: {why(~good)}")
                    found = np.where(good, found, NO_LABEL)
            yield found
            start += len(block)


def labels_for(logits: Rows, labels: Rows, axis: int, marked: bool) -> Values:
    """How labels are read for logits whose classes lie along `axis`."""
    shape, where = labels.shape, labels.path
    wanted = (*logits.shape[:axis], *logits.shape[axis + 1 :])
    if axis and shape[1:] == logits.shape[1:] and labels.kind not in "US" and logits.shape[axis] > 1:
        said = (f"{where}: the labels are one-hot",)
        return Values(labels, lambda block: one_hot(block, axis), said, labels.kind == "f", marked)
    squeezed = shape[1:] == (*wanted[1:], 1)
    if shape[1:] != wanted[1:] and not squeezed:
        raise BadFile(
            f"{where}: labels must have the shape {_shape(wanted)} for logits of shape {logits.shape} with the classes "
            f"along axis {axis}, or be one-hot; got {shape}: correct them, or the axis with --dim"
        )
    of, note = _reader(logits, labels, logits.shape[axis])
    said = f"labels of shape {shape} are read as {_shape(wanted)}" if squeezed else ""
    notes = tuple(f"{where}: {one}" for one in (said, note) if one)
    return Values(labels, lambda block: of(block[..., 0] if squeezed else block), notes, marked=marked)


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['rows', *map(str, shape[1:])])}{',' if len(shape) == 1 else ''})"


def _reader(logits: Rows, labels: Rows, classes: int) -> tuple[Callable[[np.ndarray], Read], str]:
    """What makes integers of labels, and what to say of it."""
    names, header = logits.names, f"the header of {logits.path}"
    truth = classes == 2 and labels.kind in "US" and not _TRUTH.keys() & names and _first(labels) in _TRUTH
    if labels.kind == "b" and classes != 2:
        raise BadFile(f"{labels.path}: labels that are true or false need two classes, and there are {classes}")
    if labels.kind == "b" or truth:
        return lambda block: _named(block, _TRUTH, ""), "false is read as class 0, true as class 1"
    if labels.kind in "US":
        named = {} if len(set(names)) < len(names) else {name: c for c, name in enumerate(names)}
        said = f"class names are found in {header}" if named else ""
        return lambda block: _named(block, named, header if named else ""), said
    if known := _numbers_of(logits, labels):

        def of(block: np.ndarray) -> Read:
            numbers, good, why = whole(block)
            return numbered(numbers, known), good, why

        return of, f"labels are the numbers in {header}, not the places of its columns"
    columns = isinstance(labels.parts[0], int)  # whose numbers are always read as floats
    return whole, "" if columns or labels.kind != "f" else "whole numbers with a fraction of 0 are read as labels"


def _first(labels: Rows) -> str:
    return next((str(block.reshape(-1)[0]) for block in labels.blocks(1) if block.size), "")


def others_for(name: str, values: Rows, logits: Rows, axis: int) -> Values:
    """How what is beside the labels is read: groups, which may be words, or numbers of bytes or words."""
    shape, (_, *wanted) = values.shape[1:], (*logits.shape[:axis], *logits.shape[axis + 1 :])
    if shape not in ((), (1,), tuple(wanted)):
        fit = " or ".join(dict.fromkeys(map(_shape, ((0,), (0, *wanted)))))
        raise BadFile(f"{values.path}: {name} must have the shape {fit}, got {values.shape}")
    if values.kind not in ("iubfSU" if name == "group" else "iuf"):
        raise BadFile(f"{values.path}: {name} must be {_WHOLE.get(name, _LENGTHS)}")

    def of(block: np.ndarray) -> Read:
        block = block[:, 0] if shape == (1,) and wanted != [1] else block
        return (_words(block), True, ValueError) if values.kind in "SU" else whole(block, name)

    return Values(values, of)


def _words(block: np.ndarray) -> np.ndarray:
    return np.char.decode(block, "utf-8", "replace") if block.dtype.kind == "S" else block.astype(str)


def whole(block: np.ndarray, name: str = "labels") -> Read:
    """Floats without a fraction as integers."""
    numbers, good = block, True
    if block.dtype.kind == "f":
        block = block.astype(np.float64)
        good = np.isfinite(block) & (block == np.floor(block)) & (np.abs(block) < 2.0**53)  # exact below it alone
        numbers = np.where(good, block, NO_LABEL).astype(np.int64)
    if name not in _WHOLE:
        good = numbers >= 0
    return numbers, good, lambda bad: ValueError(f"{name} must be {_WHOLE.get(name, _LENGTHS)}, got {block[bad][0]}")


def one_hot(block: np.ndarray, axis: int) -> Read:
    good = ((block == 0) | (block == 1)).all(axis) & (block.sum(axis) == 1)
    why = ValueError("labels of the shape of the logits must be one-hot, a single 1 among zeros")
    return block.argmax(axis), good, lambda bad: why


def _named(block: np.ndarray, known: Mapping[str, int], header: str) -> Read:
    """Names of classes, of which a header may tell, as their numbers."""
    words = _words(block)
    found = numbered(words, known, NO_LABEL)

    def why(bad: np.ndarray) -> ValueError:
        word = printable(words[bad][0][:40])
        if header:
            shown = printable(listed(map(repr, known), 5))
            return ValueError(f"the label {word!r} is none of the classes in {header}: {shown}")
        return ValueError(
            f"labels are names, such as {word!r}: store their numbers, or give the logits a header of them"
        )

    return found, found >= 0, why


def _numbers_of(logits: Rows, labels: Rows) -> dict[int, int] | None:
    """Where the header of the logits has numbers that are not the places of its columns, labels may be either."""
    try:
        header = [int(name) for name in logits.names]
    except ValueError:
        return None
    if header == [*range(len(header))] or len(set(header)) < len(header):
        return None
    named, placed = set(header) - {*range(len(header))}, {*range(len(header))} - set(header)
    if named:
        found = {number for block in labels.blocks() for number in np.unique(np.asarray(block)).tolist()}
        if bool(found & named) == bool(found & placed):
            raise BadFile(
                f"{logits.path}: its header has the numbers {header[0]} to {header[-1]}, and labels may be "
                "these or the places of the columns: give it the numbers from 0 on, or take it away"
            )
        if found & placed:
            return None
    return {number: c for c, number in enumerate(header)}
