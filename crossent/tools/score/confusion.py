"""What classes were taken for: how often each pair of a label and another prediction came."""

import numpy as np

_PAIRS_AT_ONCE, _PAIRS_KEPT = 2**20, 2**22


class Pairs:
    """How often each pair of classes came: `codes` are label * classes + prediction in their order, `rows` how often.

    No count is too large, and all are exact until too many different pairs came. Then only the most frequent are kept,
    and all counts lowered by that of the largest left out: the summary of Misra & Gries, "Finding repeated elements"
    (1982), in the form that Agarwal et al., "Mergeable summaries" (2012) show to keep its bound when summaries are
    added. One may be up to `short` too small.
    """

    def __init__(self, classes: int):
        self.classes = classes
        self.codes, self.rows, self.short = np.empty(0, np.int64), np.empty(0, np.int64), 0
        self._waiting: list[np.ndarray] = []

    @property
    def label(self) -> np.ndarray:
        return self.codes // self.classes

    @property
    def prediction(self) -> np.ndarray:
        return self.codes % self.classes

    def add(self, codes: np.ndarray) -> None:
        self._waiting.append(codes)
        if sum(map(len, self._waiting)) >= _PAIRS_AT_ONCE:
            self.settle()

    def merge(self, other: "Pairs") -> None:
        """Settled ones."""
        self.settle()
        self._add(other.codes, other.rows)
        self.short += other.short

    def settle(self) -> None:
        """Count what waits."""
        if not self._waiting:
            return
        codes, self._waiting = np.concatenate(self._waiting), []
        if self.classes**2 > _PAIRS_AT_ONCE:
            self._add(*np.unique(codes, return_counts=True))
        else:  # the same without sorting
            rows = np.bincount(codes)
            found = np.flatnonzero(rows)
            self._add(found, rows[found])

    def _add(self, codes: np.ndarray, rows: np.ndarray) -> None:
        if len(self.codes):
            codes, place = np.unique(np.concatenate([self.codes, codes]), return_inverse=True)
            rows = np.bincount(place, np.concatenate([self.rows, rows])).astype(np.int64)
        if len(codes) > _PAIRS_KEPT:
            least = np.partition(rows, -_PAIRS_KEPT - 1)[-_PAIRS_KEPT - 1]
            codes, rows = codes[rows > least], rows[rows > least] - least
            self.short += int(least)
        self.codes, self.rows = codes, rows

    def of(self, labels: np.ndarray, n: int) -> list[list[tuple[int, int]]]:
        """Of settled ones, what rows of each of these labels were most often taken for, and how many."""
        label = self.label
        at = np.flatnonzero(np.isin(label, labels))
        at = at[np.lexsort((-self.rows[at], label[at]))]  # stable: predictions stand in their order already
        first = np.flatnonzero(np.diff(label[at], prepend=-1))
        most = at[np.arange(len(at)) - np.repeat(first, np.diff(first, append=len(at))) < n]
        found: dict[int, list[tuple[int, int]]] = {one: [] for one in labels.tolist()}
        for one, *pair in zip(*(column[most].tolist() for column in (label, self.prediction, self.rows))):
            found[one].append((pair[0], pair[1]))
        return list(found.values())
