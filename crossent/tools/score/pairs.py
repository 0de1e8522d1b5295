"""Logits, their labels and what else rows have: all opened by one rule, and side by side in blocks."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crossent.tools.arrays import as_numpy, is_numpy, like, moved_axis
from crossent.tools.language import say
from crossent.tools.score.formats import Stored
from crossent.tools.score.labels import Values, labels_for, one_hot, others_for
from crossent.tools.score.readers import BadFile, Reading, Rows, naming, printable, rows_of

_CLASSES = 2**25  # at most; more are taken for a mistake in the file's head


@dataclass(frozen=True)
class Block:
    """Logits, the classes last but not reshaped, the number of their first label, their labels, and what else there is
    by its name."""

    start: int
    logits: Any
    labels: np.ndarray
    beside: dict[str, np.ndarray]


@dataclass(frozen=True)
class Pair:
    """Logits with the classes along `axis`, and labels. `notes` say, a line for each, what was taken for what.

    `beside` has what else there is for each row or each label: values of the shape of the labels, or of their first
    axis.
    """

    logits: Rows
    labels: Values
    axis: int
    notes: tuple[str, ...]
    beside: dict[str, Values]

    @property
    def classes(self) -> int:
        return self.logits.shape[self.axis]

    @property
    def names(self) -> tuple[str, ...] | None:
        """Of the classes."""
        return self.logits.names if len(self.logits.names) == self.classes else None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the labels."""
        return (*self.logits.shape[: self.axis], *self.logits.shape[self.axis + 1 :])

    @property
    def rows(self) -> int:
        """How many labels there are."""
        return int(np.prod(self.shape, dtype=object))

    def blocks(self, at_once: int | None = None) -> Iterator[Block]:
        labels, start = _following(self.labels.blocks()), 0
        beside = {name: _following(values.blocks()) for name, values in self.beside.items()}
        for logits in self._logits(at_once):
            found = labels(len(logits))
            yield Block(start, logits, found, {name: values(len(logits)) for name, values in beside.items()})
            start += found.size

    def _logits(self, at_once: int | None) -> Iterator[Any]:
        if self.axis:
            for block in self.logits.blocks(at_once):
                yield moved_axis(block, self.axis, -1)
            return
        whole = moved_axis(self.logits.whole(), 0, -1)
        step = max(1, (at_once or 2**23) // max(1, int(np.prod(whole.shape[1:]))))
        for lo in range(0, len(whole), step) or [0]:
            yield whole[lo : lo + step]

    def targets(self) -> np.ndarray:
        """All labels."""
        return np.concatenate(list(self.labels.blocks()))

    def whole(self) -> tuple[Any, Any, tuple[str, ...]]:
        """Logits and labels in one array each, and the notes. Labels may be probabilities, as they cannot be in blocks.

        Labels are of the library of the logits.
        """
        logits = self.logits.whole()
        if self.labels.soft:
            given = self.labels.rows.whole()
            if not np.all(one_hot(as_numpy(given), self.axis)[1]):
                labels = as_numpy(given) if is_numpy(logits) else like(logits, given) if is_numpy(given) else given
                return logits, labels, tuple(note for note in self.notes if note not in self.labels.notes)
        return logits, like(logits, self.targets()), self.notes

    def find(self, row: int, rows: Rows | None = None) -> tuple[Path, int | tuple[int, ...]]:
        """Where a label's logits are, or what it has in other `rows`: the file, and a number or one for each axis."""
        first, *others = (int(i) for i in np.unravel_index(row, self.shape))
        shards = self.logits if rows is None else rows
        path, first = shards.find(first) if self.axis or rows is not None else (self.logits.path, first)
        return path, (first, *others) if others else first

    def place(self, row: int, rows: Rows | None = None) -> str:
        return "{}: row {}".format(*self.find(row, rows))


def _following(blocks: Iterator[np.ndarray]) -> Callable[[int], np.ndarray]:
    """What gives as many rows as are asked for, however blocks are cut."""
    waiting = [next(blocks)]

    def following(rows: int) -> np.ndarray:
        while sum(map(len, waiting)) < rows:
            waiting.append(next(blocks))
        whole = np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
        waiting[:] = [whole[rows:]]
        return whole[:rows]

    return following


def pair_of(logits: str, labels: str | None, reading: Reading, beside: Mapping[str, str] | None = None) -> Pair:
    """Both of these files or patterns; without the second the first has the labels as well.

    `beside` names what else rows have, and where: FILE or FILE:COLUMN.
    """
    named = logits if labels is None else labels
    rows = rows_of(logits, "logits", reading, labels_here=named == logits)
    first = rows.path
    if len(rows.shape) < 2:
        raise BadFile(say("wrong.logits_shape", path=first, shape=rows.shape))
    axis = _axis(rows, reading.dim)
    if not 0 < rows.shape[axis] <= _CLASSES:
        raise BadFile(f"{first}: logits must have from 1 to {_CLASSES} classes, got {rows.shape}")
    targets = _beside(rows, axis, "labels", named, reading)
    others = {}
    for name, said in (beside or {}).items():
        file, column = file_and_column(said)
        others[name] = _beside(rows, axis, name, file, replace(reading, labels_key=column))
    told = {first: replace(rows, notes=(*rows.notes, *targets.notes) if targets.path == first else rows.notes)}
    for one in (targets, *others.values()):
        if one.path not in told:
            _check_order(rows, one)
            told[one.path] = one
    values = labels_for(rows, targets, axis, reading.skip_bad)
    notes = (*(_note(one) for one in told.values() if one.notes), *values.notes)
    return Pair(rows, values, axis, notes, {name: others_for(name, one, rows, axis) for name, one in others.items()})


def file_and_column(said: str) -> tuple[str, str | None]:
    """Of FILE or FILE:COLUMN."""
    file, _, column = said.rpartition(":")
    return (file, column) if file and not Path(said).exists() else (said, None)


def _beside(rows: Rows, axis: int, role: str, file: str, reading: Reading) -> Rows:
    """As many rows as there are of logits."""
    wanted = len(rows) if axis else rows.shape[1]
    found = rows_of(file, role, reading)
    if found.unclear and len(found) == wanted + len(found.files):
        found = rows_of(file, role, replace(reading, header=True))
    if role == "labels" and found.path == rows.path and set(found.parts) & set(rows.parts):
        raise BadFile(say("wrong.no_labels", path=rows.path))
    if len(found) == wanted:
        return found
    key = "wrong.do_not_fit" if role == "labels" else "wrong.values_do_not_fit"
    told = {"path": rows.path, "rows": wanted, "count": len(found), "other": found.path, "blamed": ""}
    if reading.dim is None and rows.shape[1] == len(found):
        told["blamed"] = say("blamed.axis_0")
    elif axis and reading.header is None and abs(wanted - len(found)) == 1:
        told["blamed"] = say("blamed.header")
    raise BadFile(say(key, **told))


def _note(rows: Rows) -> str:
    """A line for a file, or for as many as are read alike."""
    (first, _), *others = rows.files
    more = f" and {len(others)} more" if others else ""
    return printable(f"{first}{more}: {', '.join(dict.fromkeys(rows.notes))}")


def _check_order(rows: Rows, targets: Rows) -> None:
    """Where both files say what their rows are called, it must not be the same in another order."""
    if rows.ids is None or targets.ids is None or rows.ids.kind != targets.ids.kind:
        return
    one, other = (_fingerprint(side.path, side.ids) for side in (rows, targets) if side.ids is not None)
    if one[0] == other[0] and one[1] != other[1]:
        raise BadFile(
            f"{rows.path}: names the same rows as {targets.path} in another order, and rows are paired "
            "by their order: sort them alike, or name the columns of the classes with --columns if all is right"
        )


def _fingerprint(path: Path, ids: Stored) -> tuple[int, int]:
    """Numbers that are the same for the same names: whatever their order, and in the same order."""
    names = order = 0
    with naming(path):
        for block in ids.blocks(2**16):
            for name in map(hash, zip(block.tolist())):  # since numbers alone are their own hashes
                names, order = names + name, hash((order, name))
    return names, order


def _axis(rows: Rows, dim: int | None) -> int:
    axes = len(rows.shape)
    axis = 1 if dim is None else dim
    if not -axes <= axis < axes:
        raise BadFile(f"--dim must be between {-axes} and {axes - 1} for logits of shape {rows.shape}, got {dim}")
    if not axis % axes and len(rows.files) > 1:
        raise BadFile(f"--dim must not be the axis along which shards are cut, got {dim}")
    return axis % axes
