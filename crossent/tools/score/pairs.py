"""Logits, their labels and what else rows have: all opened by one rule, and side by side in blocks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crossent.tools.arrays import as_numpy, is_numpy, like, moved_axis
from crossent.tools.score.formats import Stored
from crossent.tools.score.labels import Labels, is_one_hot, labels_for, others_for
from crossent.tools.score.readers import BadFile, Reading, Rows, UnclearFile, naming, printable, rows_of

_CLASSES = 2**25  # at most; more are taken for a mistake in the file's head


@dataclass(frozen=True)
class Values:
    """What each row has, and how it is read; what cannot be is refused, or `marked`."""

    rows: Rows
    reading: Labels
    marked: bool = False

    def blocks(self) -> Iterator[np.ndarray]:
        start = 0
        for block in self.rows.blocks():
            with naming(self.rows.path):
                place = None if self.marked else lambda row, start=start: self.rows.place(start + row)
                found = self.reading.of(block, place)
            yield found
            start += len(block)


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
        labels, start = _Following(self.labels), 0
        beside = {name: _Following(values) for name, values in self.beside.items()}
        for block in self._logits(at_once):
            found = labels.next(len(block))
            yield Block(start, block, found, {name: values.next(len(block)) for name, values in beside.items()})
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
        rows, reading = self.labels.rows, self.labels.reading
        logits, labels, notes = self.logits.whole(), rows.whole(), self.notes
        if reading.soft and not is_one_hot(as_numpy(labels), self.axis):
            notes = tuple(note for note in notes if note not in reading.notes)
        else:
            with naming(rows.path):
                labels = reading.of(labels, rows.place)
        if is_numpy(logits):
            return logits, labels if is_numpy(labels) else as_numpy(labels), notes
        if is_numpy(labels):
            labels = like(logits, labels.copy())  # since a mapped file cannot be written to, as a tensor can
        return logits, labels, notes

    def find(self, row: int) -> tuple[Path, int | tuple[int, ...]]:
        """The file of the logits that belong to a label, and where they are in it: a number, or one for each axis."""
        return self._find(row, self.logits if self.axis else None)

    def place(self, row: int) -> str:
        return "{}: row {}".format(*self.find(row))

    def label_place(self, row: int) -> str:
        return "{}: row {}".format(*self._find(row, self.labels.rows))

    def _find(self, row: int, shards: Rows | None) -> tuple[Path, int | tuple[int, ...]]:
        """Where a label is among these, or in the one file of the logits."""
        first, *others = (int(i) for i in np.unravel_index(row, self.shape))
        path, first = (self.logits.path, first) if shards is None else shards.find(first)
        return path, (first, *others) if others else first


class _Following:
    """As many rows as are asked for, however the file's blocks are cut."""

    def __init__(self, values: Values):
        self._blocks = values.blocks()
        self._waiting = next(self._blocks)

    def next(self, rows: int) -> np.ndarray:
        parts = [self._waiting]
        while sum(map(len, parts)) < rows:
            parts.append(next(self._blocks))
        whole = np.concatenate(parts) if len(parts) > 1 else self._waiting
        self._waiting = whole[rows:]
        return whole[:rows]


def pair_of(logits: str, labels: str | None, reading: Reading, beside: Mapping[str, str] | None = None) -> Pair:
    """Both of these files or patterns; without the second the first has the labels as well.

    `beside` names what else rows have, and where: FILE or FILE:COLUMN.
    """
    here = labels is None or labels == logits
    rows, targets = _both(logits, logits if labels is None else labels, reading, here)
    if here and set(rows.parts) & set(targets.parts):
        raise BadFile(f"{logits}: holds no labels beside the logits: name the file of the labels as well")
    first = rows.path
    if len(rows.shape) < 2:
        raise BadFile(f"{first}: logits must have the shape (rows, classes), or more axes, got {rows.shape}")
    axis = _axis(rows, reading.dim)
    if not 0 < rows.shape[axis] <= _CLASSES:
        raise BadFile(f"{first}: logits must have from 1 to {_CLASSES} classes, got {rows.shape}")
    _check_length(rows, axis, targets, "labels", reading)
    if not here:
        _check_order(rows, targets)
    read = Values(targets, labels_for(rows, targets, axis), reading.skip_bad)
    notes, others = [*_notes(rows, targets, here), *read.reading.notes], {}
    for name, said in (beside or {}).items():
        other = _other(name, said, reading, rows, axis)
        others[name] = Values(other, others_for(name, other, rows, axis))
        if other.path not in (first, targets.path):
            _check_order(rows, other)
            notes += _notes(other, other, True)
    return Pair(rows, read, axis, tuple(notes), others)


def file_and_column(said: str) -> tuple[str, str | None]:
    """Of FILE or FILE:COLUMN."""
    file, _, column = said.rpartition(":")
    return (file, column) if file and not Path(said).exists() else (said, None)


def _other(name: str, said: str, reading: Reading, rows: Rows, axis: int) -> Rows:
    file, column = file_and_column(said)
    reading = replace(reading, key=None, labels_key=column)
    found = _opened(file, name, reading, False)
    if isinstance(found, UnclearFile):
        found = _settled(file, name, reading, False, _count(rows, axis), found)
    _check_length(rows, axis, found, "values", reading)
    return found


def _count(rows: Rows, axis: int) -> int:
    """How many rows of labels belong to logits."""
    return len(rows) if axis else rows.shape[1]


def _check_length(rows: Rows, axis: int, others: Rows, what: str, reading: Reading) -> None:
    wanted = _count(rows, axis)
    if wanted != len(others):
        raise BadFile(
            f"{rows.path}: {wanted} rows of logits do not fit the {len(others)} {what} of {others.path}"
            f"{_to_blame(rows.shape, len(others), reading)}"
        )


def _notes(rows: Rows, targets: Rows, here: bool) -> list[str]:
    """A line for each file, or for as many as are read alike."""
    said = [(rows, (*rows.notes, *targets.notes))] if here else [(rows, rows.notes), (targets, targets.notes)]
    lines = []
    for one, notes in said:
        if notes:
            (first, _), *others = one.files
            more = f" and {len(others)} more" if others else ""
            lines.append(printable(f"{first}{more}: {', '.join(dict.fromkeys(notes))}"))
    return lines


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
    names = order = np.uint64(0)
    start = 0
    with naming(path), np.errstate(over="ignore"):
        for block in ids.blocks(2**16):
            values = block.astype(np.float64).view(np.uint64) if ids.kind == "f" else _hashes(block)
            mixed = (values ^ (values >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
            names += mixed.sum(dtype=np.uint64)
            order += (mixed * np.arange(start + 1, start + 1 + len(block), dtype=np.uint64)).sum(dtype=np.uint64)
            start += len(block)
    return int(names), int(order)


def _hashes(words: np.ndarray) -> np.ndarray:
    return np.array([hash(word) % 2**64 for word in words.tolist()], np.uint64)


def _to_blame(shape: tuple[int, ...], labels: int, reading: Reading) -> str:
    """What may have gone wrong, as a question."""
    if reading.dim is None and shape[1] == labels:
        return ": do the classes lie along axis 0? See --dim"
    if reading.header is None and abs(shape[0] - labels) == 1:
        return ": is the first line of one of them a header, or not? See --header and --no-header"
    return ""


def _axis(rows: Rows, dim: int | None) -> int:
    axes = len(rows.shape)
    axis = 1 if dim is None else dim
    if not -axes <= axis < axes:
        raise BadFile(f"--dim must be between {-axes} and {axes - 1} for logits of shape {rows.shape}, got {dim}")
    if not axis % axes and len(rows.files) > 1:
        raise BadFile(f"--dim must not be the axis along which shards are cut, got {dim}")
    return axis % axes


def _opened(pattern: str, role: str, reading: Reading, here: bool) -> Rows | UnclearFile:
    try:
        return rows_of(pattern, role, reading, here)
    except UnclearFile as error:
        return error


def _settled(pattern: str, role: str, reading: Reading, here: bool, rows: int, unclear: UnclearFile) -> Rows:
    """Where the first line may be a header or a row, it is what makes a file as long as the other."""
    for header in (False, True):
        try:
            found = rows_of(pattern, role, replace(reading, header=header), here)
        except BadFile:
            continue
        if len(found) == rows:
            return found
    raise unclear


def _both(logits: str, labels: str, reading: Reading, here: bool) -> tuple[Rows, Rows]:
    one, other = _opened(logits, "logits", reading, here), _opened(labels, "labels", reading, here)
    if isinstance(one, UnclearFile):
        if isinstance(other, UnclearFile):
            raise one
        return _settled(logits, "logits", reading, here, len(other), one), other
    if isinstance(other, UnclearFile):
        return one, _settled(labels, "labels", reading, here, len(one), other)
    return one, other
