"""What `explain` finds of the input of a call, found in a stream of rows."""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from crossent import cross_entropy
from crossent.tools.arrays import dtype_of, like, moved_axis
from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.findings import OF_INPUTS, findings_of
from crossent.tools.explain.tally import ENOUGH, Tally, fits_better
from crossent.tools.score.pairs import Pair
from crossent.tools.score.scales import LOGITS, add


@dataclass
class Inputs:
    """Blocks of rows whose numbers are of this scale; has what the findings about an input ask of a call.

    `picks` says that it is one of nll_loss, where the numbers are meant to be log-probabilities. `shape` is that of all
    logits, as far as blocks differ in their rows alone.
    """

    scale: str
    ignore_index: int
    tally: Tally | None = None
    axis: int = 0
    shape: tuple[int, ...] = ()
    along: "dict[int, Along]" = field(default_factory=dict)

    stored, soft = True, False

    def add(
        self, block: Any, axis: int, rows: Any, labels: np.ndarray, kept: np.ndarray, top: np.ndarray
    ) -> None:  # fmt: skip
        """A block with its classes last, which belong at `axis`; its rows as logits; those that count, and the class of
        the largest."""
        classes, flat = block.shape[-1], labels.reshape(-1)
        if self.tally is None:
            self.tally = Tally(classes, dtype_of(rows))
        add(self.tally, rows, kept)
        self.tally.add_labels(top[kept], flat[kept])
        shape = (*block.shape[:axis], classes, *block.shape[axis:-1])
        self._add_shape(axis, shape)
        if axis and classes >= 3 and self.scale == LOGITS:
            logits = moved_axis(block, -1, axis)
            for i in {*range(1, len(shape))} - {axis}:
                if shape[:i] + shape[i + 1 :] == labels.shape:
                    self.along[i] = self.along.get(i, Along()) + along(logits, labels, i, self.ignore_index)

    def _add_shape(self, axis: int, shape: tuple[int, ...]) -> None:
        if not self.shape:
            self.axis, self.shape = axis, shape
        elif axis and self.axis == axis and self.shape[1:] == shape[1:]:
            self.shape = (self.shape[0] + shape[0], *shape[1:])

    def merge(self, other: "Inputs") -> None:
        """All but the loss along the rows, which is not made of that of their parts."""
        if other.tally is None:
            return
        if self.tally is None:
            self.tally = Tally(other.tally.classes, other.tally.dtype)
        self.tally.merge(other.tally)
        self._add_shape(other.axis, other.shape)
        self.along.pop(0, None)
        for i in {*self.along, *other.along} - {0}:
            self.along[i] = self.along.get(i, Along()) + other.along.get(i, Along())

    def other_axis(self) -> int | None:
        """As `explain` finds it in a call."""
        counted = self.tally.counted
        for i, along in sorted(self.along.items()):
            if counted >= ENOUGH and fits_better(along.mean(counted), self.nll, self.tally.classes):
                return i
        return None

    def found(self, nll: float) -> tuple[Finding, ...]:
        """Of all blocks, whose mean loss along the pair's own axis is `nll`."""
        self.nll = nll
        if self.tally is None:
            return ()
        self.picks, self.classes = self.scale != LOGITS, self.tally.classes
        return findings_of(self, OF_INPUTS)


@dataclass(frozen=True)
class Along:
    """The loss along an axis that each block has whole."""

    total: float = 0.0
    rows: int = 0

    def __add__(self, other: "Along") -> "Along":
        return Along(self.total + other.total, self.rows + other.rows)

    def mean(self, counted: int) -> float:
        """Infinite where not all rows that count have a loss along it."""
        return self.total / counted if self.rows == counted else np.inf


def along(logits: Any, labels: np.ndarray, axis: int, ignore_index: int) -> Along:
    total = cross_entropy(logits, like(logits, labels), dim=axis, ignore_index=ignore_index, reduction="sum")
    return Along(float(total), int((labels != ignore_index).sum()))


def along_rows(pair: Pair, ignore_index: int) -> Along:
    """Along the rows of files, which no block has whole; not of all where one has what is refused later."""
    found = Along()
    with suppress(IndexError, TypeError, ValueError):
        for block in replace(pair, axis=0, beside={}).blocks():
            found += along(block.logits, block.labels, -1, ignore_index)
    return found
