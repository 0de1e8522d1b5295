"""Rows by groups that have names: the metrics of each, and how sure they are."""

from collections.abc import Iterable
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


class Groups(Cells):
    """Sums over the rows of groups, which have `names` and are numbered as they come. Each has some cells of the
    sample: the `c`th of the group with number i is that with number c * n + i, of n groups."""

    def __init__(self, names: Iterable[str] = ()):
        self.names: dict[str, int] = {}
        super().__init__(0, ("rows", "right", "impossible"), ("nll", "confidence"))
        self.numbered(names)

    def numbered(self, names: Iterable[str]) -> np.ndarray:
        """The numbers of these groups, which are made where they are new."""
        names = list(names)
        known = dict.fromkeys((*self.names, *names))
        if len(known) > MOST:
            raise ValueError(
                f"there may be {MOST:,} groups, and these are {len(known):,} or more: they are meant to be values "
                f"that many rows share, got {names[-1][:40]!r}"
            )
        if len(known) > len(self.names):
            self._arrange(known)
        return np.array([self.names[name] for name in names], np.intp)

    def _arrange(self, names: Iterable[str]) -> None:
        """Have groups of these names, of which those that are known are some, in this order."""
        place = {name: i for i, name in enumerate(names)}
        at = np.array([place[name] for name in self.names], np.intp)
        moved = self.moved((np.arange(FEW)[:, None] * len(place) + at).reshape(-1), FEW * len(place))
        self.names, self.n, self.digits = place, moved.n, moved.digits

    def of_rows(self, names: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The number of the group of each row, of which those `kept` count."""
        given = names.astype(str) if names.dtype.kind == "O" else names  # in which words may stand beside numbers
        known, back = told_apart(given[kept])
        found = np.zeros(len(names), np.intp)
        found[kept] = self.numbered(known.astype(str).tolist())[back]
        return found

    def merge(self, other: "Groups") -> None:
        """Another one, which has all of these groups then."""
        self.numbered(other.names)
        other._arrange(self.names)
        super().merge(other)

    def sort(self) -> None:
        """By name, so that these are the same in whatever order they came."""
        self._arrange(sorted(self.names))

    def found(self, labels: float) -> list[Group]:
        """`labels` is how many of them a row of the data has.

        First come those that are worse than all rows together beyond what chance explains, by the upper end of their
        accuracy, since a low accuracy of few rows may be chance; then the others, by their accuracy.
        """
        sums = self.folded(len(self.names))
        of_all = sums["right"].sum() / max(1, sums["rows"].sum())
        rows, right, nll, impossible = (
            self[name].reshape(FEW, -1).T for name in ("rows", "right", "nll", "impossible")
        )
        of_nll = means(np.where(impossible.any(1), np.nan, nll.T).T, rows)
        of_right, of_nll = (
            list(zip(*(end.tolist() for end in ends))) for ends in (shares(right, rows, labels), of_nll)
        )
        accuracy, mean, confidence = (sums.mean(name).tolist() for name in ("right", "nll", "confidence"))
        found = map(Group, self.names, sums["rows"].tolist(), accuracy, of_right, mean, of_nll, confidence)
        return sorted(found, key=lambda g: (min(g.accuracy_interval[1], of_all), g.accuracy, natural(g.name), g.name))
