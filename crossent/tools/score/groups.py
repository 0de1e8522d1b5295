"""Rows by groups that have names: the metrics of each, and how sure they are."""

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass

import numpy as np

from crossent.tools.arrays import told_apart
from crossent.tools.score.intervals import FEW, Interval, means, shares
from crossent.tools.score.sums import Cells
from crossent.tools.score.worst import natural

MOST = 10_000


@dataclass(frozen=True)
class Group:
    """The number of its rows, means over them, and both ends of intervals of 95 %, nan where too few rows tell them."""

    name: str
    rows: int
    accuracy: float
    accuracy_interval: Interval
    nll: float
    nll_interval: Interval
    confidence: float


class GroupCells:
    """Sums over the rows of groups, which are numbered as they come. Each has some cells of the sample: the `c`th of
    the group with number i is that with number c * n + i, of n groups."""

    def __init__(self, names: Iterable[str] = ()):
        self.numbers: dict[str, int] = {}
        n = FEW * len(self.numbered(names))
        self.table = Cells(n, ("rows", "right", "impossible"), ("nll", "confidence"))

    def numbered(self, names: Iterable[str]) -> np.ndarray:
        """The numbers of these groups, which are made where they are new."""
        names = list(names)
        numbers = self.numbers | dict.fromkeys(names, -1) | self.numbers
        if len(numbers) > MOST:
            raise ValueError(
                f"there may be {MOST:,} groups, and these are {len(numbers):,} or more: they are meant to be values "
                f"that many rows share, got {names[-1][:40]!r}"
            )
        self.numbers = dict(zip(numbers, range(len(numbers))))
        return np.array([self.numbers[name] for name in names], np.intp)

    def places(self, names: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The number of the group of each row, of which those `kept` count."""
        given = names.astype(str) if names.dtype.kind == "O" else names  # in which words may stand beside numbers
        known, back = told_apart(given[kept])
        found = np.zeros(len(names), np.intp)
        found[kept] = self.numbered(known.astype(str).tolist())[back]
        return found

    def add(self, numbers: np.ndarray, cells: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        """Rows of these groups and cells of the sample."""
        self._grow()
        self.table.add(cells % FEW * len(self.numbers) + numbers, rows)

    def merge(self, other: "GroupCells") -> None:
        numbers, other = self.numbered(other.numbers), other.copy()
        self._grow()
        other._arrange(numbers, len(self.numbers))
        self.table.merge(other.table)

    def copy(self) -> "GroupCells":
        found = copy(self)
        found.table = self.table.copy()
        return found

    def sort(self) -> None:
        """By name, so that these are the same in whatever order they came."""
        names = sorted(self.numbers)
        place = dict(zip(names, range(len(names))))
        self._arrange(np.array([place[name] for name in self.numbers], np.intp), len(names))
        self.numbers = place

    def _grow(self) -> None:
        """To as many groups as are known."""
        known = self.table.n // FEW
        if known < len(self.numbers):
            self._arrange(np.arange(known), len(self.numbers))

    def _arrange(self, places: np.ndarray, n: int) -> None:
        """Give the groups these numbers, of `n`."""
        self.table = self.table.moved((np.arange(FEW)[:, None] * n + places).reshape(-1), FEW * n)

    def found(self, labels: float) -> list[Group]:
        """`labels` is how many of them a row of the data has.

        First come those that are worse than all rows together beyond what chance explains, by the upper end of their
        accuracy, since a low accuracy of few rows may be chance; then the others, by their accuracy.
        """
        sums = self.table.folded(len(self.numbers))
        of_all = sums["right"].sum() / max(1, sums["rows"].sum())
        columns = (self.table[name].reshape(FEW, -1).T for name in ("rows", "right", "nll", "impossible"))
        rows, right, nll, impossible = columns
        losses = means(np.where(impossible.any(1), np.nan, nll.T).T, rows)
        intervals = (list(zip(*(end.tolist() for end in ends))) for ends in (shares(right, rows, labels), losses))
        of_right, of_nll = intervals
        means_of = (sums.mean(name).tolist() for name in ("right", "nll", "confidence"))
        accuracy, mean, confidence = means_of
        found = map(Group, self.numbers, sums["rows"].tolist(), accuracy, of_right, mean, of_nll, confidence)
        return sorted(found, key=lambda g: (min(g.accuracy_interval[1], of_all), g.accuracy, natural(g.name), g.name))
