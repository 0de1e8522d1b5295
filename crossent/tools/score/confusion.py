"""What classes were taken for: how often each pair of a label and another prediction came."""

from copy import copy
from dataclasses import dataclass

import numpy as np

_PAIRS_AT_ONCE, _PAIRS_KEPT = 2**20, 2**22


@dataclass(frozen=True)
class Confusion:
    """How many rows of a class were taken for which other, in order of their labels. No count is too large; one may be
    up to `short` too small."""

    label: np.ndarray
    prediction: np.ndarray
    rows: np.ndarray
    short: int

    def of(self, labels: np.ndarray, n: int) -> list[list[tuple[int, int]]]:
        """What rows of each of these labels were most often taken for, and how many."""
        lo, hi = np.searchsorted(self.label, labels), np.searchsorted(self.label, labels, "right")
        which, within = np.repeat(np.arange(len(labels)), hi - lo), _counted_up(hi - lo)
        at = lo[which] + within
        prediction, rows = self.prediction[at], self.rows[at]
        # Predictions stand in their order already, which a stable sort keeps.
        chosen = np.argsort(which * (rows.max(initial=0) + 1) - rows, kind="stable")[within < n]
        found: list[list[tuple[int, int]]] = [[] for _ in labels]
        for i, *pair in zip(which[chosen].tolist(), prediction[chosen].tolist(), rows[chosen].tolist()):
            found[i].append((pair[0], pair[1]))
        return found


def _counted_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... anew for each length."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


class Pairs:
    """How often each pair of classes came, as a number below classes**2: exactly until too many different ones came.

    Then only the most frequent are kept, and all counts lowered by that of the largest left out: the summary of Misra
    & Gries, "Finding repeated elements" (1982), in the form that Agarwal et al., "Mergeable summaries" (2012) show to
    keep its bound when summaries are added.
    """

    def __init__(self, classes: int):
        self.classes = classes
        self.codes, self.counts, self.short = np.empty(0, np.int64), np.empty(0, np.int64), 0
        self._waiting = []

    def add(self, codes: np.ndarray) -> None:
        self._waiting.append(codes)
        if sum(map(len, self._waiting)) >= _PAIRS_AT_ONCE:
            self.settle()

    def merge(self, other: "Pairs") -> None:
        """Settled ones."""
        self.settle()
        self._merge(other.codes, other.counts)
        self.short += other.short

    def copy(self) -> "Pairs":
        found = copy(self)
        found._waiting = list(self._waiting)
        return found

    def settle(self) -> None:
        """Count what waits."""
        if self._waiting:
            codes, self._waiting = np.concatenate(self._waiting), []
            self._merge(*self._counted(codes))

    def _merge(self, new: np.ndarray, counts: np.ndarray) -> None:
        if len(self.codes):
            new, place = np.unique(np.concatenate([self.codes, new]), return_inverse=True)
            counts = np.bincount(place, np.concatenate([self.counts, counts])).astype(np.int64)
        if len(new) > _PAIRS_KEPT:
            least = np.partition(counts, -_PAIRS_KEPT - 1)[-_PAIRS_KEPT - 1]
            new, counts = new[counts > least], counts[counts > least] - least
            self.short += int(least)
        self.codes, self.counts = new, counts

    def _counted(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.classes**2 > _PAIRS_AT_ONCE:
            return np.unique(codes, return_counts=True)
        counts = np.bincount(codes)  # the same without sorting
        found = np.flatnonzero(counts)
        return found, counts[found]

    def confusion(self) -> Confusion:
        self.settle()
        return Confusion(self.codes // self.classes, self.codes % self.classes, self.counts, self.short)
