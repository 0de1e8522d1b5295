"""What `explain` finds of the input of a call, found in a stream of rows."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from crossent import cross_entropy
from crossent.tools.arrays import as_numpy, dtype_of, like, moved_axis
from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.findings import OF_INPUTS, findings_of
from crossent.tools.explain.tally import ENOUGH, Tally, fits_better
from crossent.tools.score.pairs import Pair
from crossent.tools.score.scales import LOGITS, add


@dataclass
class Inputs:
    """Blocks of a pair whose numbers are of this scale; has what the findings about an input ask.

    `case` is the call that this is like: one of nll_loss where the numbers are meant to be log-probabilities.
    """

    pair: Pair
    scale: str
    ignore_index: int
    tally: Any = None
    nll: float = 0.0
    stored: bool = True

    def __post_init__(self):
        pair, shape, axis = self.pair, self.pair.logits.shape, self.pair.axis
        picks = self.scale != LOGITS
        self.case = SimpleNamespace(picks=picks, soft=False, classes=pair.classes, axis=axis, shape=shape)
        others = [i for i in range(len(shape)) if i != axis and shape[:i] + shape[i + 1 :] == pair.shape]
        self._along = {}
        if pair.rows >= ENOUGH and pair.classes >= 3 and axis and not picks:
            self._along = {i: _Along(axis, i) if i else _AlongRows(axis, shape[0], pair.targets()) for i in others}

    def add(self, block: Any, rows: Any, labels: np.ndarray, kept: np.ndarray, top: np.ndarray) -> None:
        """A block as it comes from the pair, its rows as logits, those that count, and the class of the largest."""
        if self.tally is None:
            self.tally = Tally(self.pair.classes, dtype_of(rows))
        add(self.tally, rows, kept)
        flat = labels.reshape(-1)
        self.tally.add_labels(top[kept], flat[kept])
        for other in self._along.values():
            other.add(block, labels, self.ignore_index)

    def other_axis(self) -> int | None:
        """As `explain` finds it in a call."""
        for axis, along in self._along.items():
            if self.tally.counted >= ENOUGH and fits_better(along.mean(self.ignore_index), self.nll, self.pair.classes):
                return axis
        return None

    def found(self, nll: float) -> tuple[Finding, ...]:
        """Of all blocks, whose mean loss along the pair's own axis is `nll`."""
        self.nll = nll
        return findings_of(self, OF_INPUTS) if self.tally is not None else ()


class _Along:
    """The loss along an axis that each block has whole."""

    def __init__(self, own: int, axis: int):
        self.own, self.axis, self.total, self.rows = own, axis, 0.0, 0

    def add(self, block: Any, labels: np.ndarray, ignore_index: int) -> None:
        stored, target = moved_axis(block, -1, self.own), like(block, labels)
        self.total += float(cross_entropy(stored, target, dim=self.axis, ignore_index=ignore_index, reduction="sum"))
        self.rows += int((labels != ignore_index).sum())

    def mean(self, ignore_index: int) -> float:
        return self.total / max(1, self.rows)


class _AlongRows:
    """The loss along the rows: for each other position lse of what came so far, and the logit that its label picks."""

    def __init__(self, own: int, rows: int, labels: np.ndarray):
        self.own, self.rows, self.labels, self.done = own, rows, labels, 0
        self.peak, self.summed = np.full(labels.shape, -np.inf), np.zeros(labels.shape)
        self.picked = np.full(labels.shape, np.nan)

    def add(self, block: Any, labels: np.ndarray, ignore_index: int) -> None:
        x = np.moveaxis(as_numpy(block), -1, self.own)
        with np.errstate(all="ignore"):
            peak = np.maximum(self.peak, x.max(0))
            self.summed = self.summed * np.exp(self.peak - peak) + np.exp(x - peak).sum(0)
        here = (self.labels >= self.done) & (self.labels < self.done + len(x))
        place = np.where(here, self.labels - self.done, 0)[None]
        self.picked[here] = np.take_along_axis(x, place, 0)[0][here]
        self.peak, self.done = peak, self.done + len(x)

    def mean(self, ignore_index: int) -> float:
        if self.done < self.rows:
            return np.inf
        losses = (self.peak + np.log(self.summed) - self.picked)[self.labels != ignore_index]
        return float(losses.mean()) if np.isfinite(losses).all() else np.inf
