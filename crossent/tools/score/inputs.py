"""What `explain` finds of the input of a call, found in a stream of rows."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from crossent import cross_entropy
from crossent.tools.arrays import as_numpy, dtype_of, like, moved_axis
from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.findings import OF_INPUTS, findings_of
from crossent.tools.explain.tally import ENOUGH, Tally, fits_better
from crossent.tools.score.scales import LOGITS, add


@dataclass
class Inputs:
    """Blocks of rows whose numbers are of this scale; has what the findings about an input ask.

    `case` is the call that this is like: one of nll_loss where the numbers are meant to be log-probabilities. `shape`
    is that of all logits, as far as blocks differ in their rows alone.
    """

    scale: str
    ignore_index: int
    tally: Tally | None = None
    axis: int = 0
    shape: tuple[int, ...] = ()
    along: dict[int, Any] = field(default_factory=dict)

    stored = True

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
            for i in range(1, len(shape)):
                if i != axis and shape[:i] + shape[i + 1 :] == labels.shape:
                    self.along.setdefault(i, Along())
        for i, other in self.along.items():
            other.add(block, axis, i, labels, self.ignore_index)

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
        picks = self.scale != LOGITS
        self.case = SimpleNamespace(
            picks=picks, soft=False, classes=self.tally.classes, axis=self.axis, shape=self.shape
        )  # fmt: skip
        return findings_of(self, OF_INPUTS)


@dataclass
class Along:
    """The loss along an axis that each block has whole."""

    total: float = 0.0
    rows: int = 0

    def add(self, block: Any, own: int, axis: int, labels: np.ndarray, ignore_index: int) -> None:
        stored, target = moved_axis(block, -1, own), like(block, labels)
        if stored.shape[:axis] + stored.shape[axis + 1 :] != labels.shape:
            return
        self.total += float(cross_entropy(stored, target, dim=axis, ignore_index=ignore_index, reduction="sum"))
        self.rows += int((labels != ignore_index).sum())

    def __add__(self, other: "Along") -> "Along":
        return Along(self.total + other.total, self.rows + other.rows)

    def mean(self, counted: int) -> float:
        """Infinite where not all rows that count have a loss along it."""
        return self.total / counted if self.rows == counted else np.inf


class AlongRows:
    """The loss along the rows of logits that have as many of them as classes: for each other position lse of what came
    so far, and the logit that its label picks."""

    def __init__(self, rows: int, labels: np.ndarray):
        self.rows, self.labels, self.done = rows, labels, 0
        self.peak, self.summed = np.full(labels.shape, -np.inf), np.zeros(labels.shape)
        self.picked = np.full(labels.shape, np.nan)

    def add(self, block: Any, own: int, axis: int, labels: np.ndarray, ignore_index: int) -> None:
        self.ignore_index = ignore_index
        x = np.moveaxis(as_numpy(block), -1, own)
        with np.errstate(all="ignore"):
            peak = np.maximum(self.peak, x.max(0))
            self.summed = self.summed * np.exp(self.peak - peak) + np.exp(x - peak).sum(0)
        here = (self.labels >= self.done) & (self.labels < self.done + len(x))
        place = np.where(here, self.labels - self.done, 0)[None]
        self.picked[here] = np.take_along_axis(x, place, 0)[0][here]
        self.peak, self.done = peak, self.done + len(x)

    def mean(self, counted: int) -> float:
        if self.done < self.rows:
            return np.inf
        losses = (self.peak + np.log(self.summed) - self.picked)[self.labels != self.ignore_index]
        return float(losses.mean()) if np.isfinite(losses).all() else np.inf
