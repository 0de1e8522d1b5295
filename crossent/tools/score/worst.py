"""The rows with the largest loss, the same ones in whatever order rows come."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from crossent import PredictionStats

Index: TypeAlias = tuple[int, ...]  # a number for each axis of the labels


@dataclass(frozen=True)
class WorstRow:
    """What is known of it. `file` is None where it came from none."""

    file: str | None
    index: Index
    label: int
    prediction: int
    rank: int
    logprob: float
    confidence: float

    @property
    def row(self) -> int | Index:
        return shown(self.index)

    @property
    def order(self) -> tuple[Any, ...]:
        """Rows of equal order are alike in all that is shown of them."""
        place = ([], "") if self.file is None else (natural(self.file), self.file)
        return (self.logprob, *place, self.index, self.label, self.prediction, self.rank, self.confidence)


def shown(index: Index) -> int | Index:
    """A number where one is enough."""
    return index if len(index) > 1 else sum(index)


@lru_cache(1024)
def natural(name: str) -> list[tuple[int, str]]:
    """What sorts shard 10 after shard 9."""
    return [(int(digits or -1), text) for text, digits in re.findall(r"(\D*)(\d*)", name)]


@dataclass
class Worst:
    """At most `top` rows, the worst first; of equal ones the first in their files."""

    top: int
    rows: tuple[WorstRow, ...] = ()

    def add(
        self, labels: np.ndarray, stats: PredictionStats, kept: np.ndarray, numbers: np.ndarray,
        find: Callable[[int], tuple[str | None, Index]],
    ) -> None:  # fmt: skip
        """A block, the first axis of whose labels has these numbers; `find` says where a row is, by its place in it."""
        logprob = stats.logprob
        if len(self.rows) == self.top:
            kept = kept & (logprob <= self.rows[-1].logprob) if self.top else kept & False
        elif kept.sum() > self.top:
            kept = kept & (logprob <= np.partition(logprob[kept], self.top - 1)[self.top - 1])
        at = np.flatnonzero(kept)
        inner = max(1, len(labels) // max(1, len(numbers)))
        keys = [column[at] for column in (stats.confidence, stats.rank, stats.prediction, labels)]
        at = at[np.lexsort([*keys, at % inner, numbers[at // inner], logprob[at]])[: self.top]]
        columns = (labels, stats.prediction, stats.rank, logprob, stats.confidence)
        self._keep(WorstRow(*find(i), *(column[i].item() for column in columns)) for i in at.tolist())

    def merge(self, other: "Worst") -> None:
        self._keep(other.rows)

    def _keep(self, rows) -> None:
        self.rows = tuple(sorted((*self.rows, *rows), key=lambda row: row.order)[: self.top])
