"""What the findings ask of all rows: numbers of each, and numbers that blocks of rows add up to.

`explain` adds all of its rows at once, `crossent score` those of each block that it streams.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from crossent.tools.language import say

EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
ENOUGH = 16  # rows, before a share of them says something
_NEARLY = 0.05  # by which the sum of rounded probabilities may miss 1
_OF_PASSED = ("probable", "nearly probable", "certain", "log-probable")


@dataclass
class Tally:
    """Of rows of so many `classes`, in `dtype`: what holds for all that count and whose logits are finite.

    "probable" says that no number is negative and their sum is 1, "nearly probable" that they are at most 1 and their
    sum is not far from it, "certain" that all are 0 but a single 1, "log-probable" that the exponentials sum to 1, and
    "equal" that a row's logits are all the same. Of a head, whose logits are not what was passed, only the last can
    hold.
    """

    classes: int
    dtype: str
    head: bool = False
    finite: int = 0
    counted: int = 0
    hits: int = 0
    before: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _possible: set[str] = field(default_factory=lambda: {*_OF_PASSED, "equal"})
    _above: float = -math.inf  # C * (mean - smallest), its largest, and how often it is close to 1
    _far_above: int = 0
    _bounded: int = 0

    @property
    def undecided(self) -> bool:
        """Whether more rows of logits could make a difference."""
        return bool(self._possible)

    def add(self, high: np.ndarray, low: np.ndarray, total: np.ndarray, lse: np.ndarray) -> None:
        """Rows that count: of each the largest and smallest logit, their sum, and lse."""
        there = np.isfinite(high) & ~np.isnan(low)
        high, low, total, lse = high[there], low[there], total[there], lse[there]
        self.finite += len(high)
        off, eps = np.abs(total - 1.0), EPS[self.dtype]
        holds = {
            "probable": (low >= 0.0) & (off <= max(1e-3, 2 * eps)),
            "nearly probable": (low >= 0.0) & (high <= 1.0 + _NEARLY) & (off <= _NEARLY),
            "certain": (low == 0.0) & (high == 1.0) & (total == 1.0),
            # lse of log-probabilities is 0, but for the rounding of each.
            "log-probable": np.abs(lse) <= max(1e-4, 2 * eps * (1.0 + math.log(self.classes))),
            "equal": high == low,
        }
        self._possible -= {name for name, of_rows in holds.items() if not of_rows.all()}
        bounded = np.isfinite(low)
        above = total[bounded] - self.classes * low[bounded]
        self._above = max(self._above, above.max(initial=-math.inf))
        self._far_above += int((above >= 0.9).sum())
        self._bounded += len(above)

    def holds(self, name: str) -> bool:
        """Whether one of these is so, for several classes and at least one row."""
        about_passed = name in _OF_PASSED and self.head
        return self.classes > 1 and self.finite > 0 and not about_passed and name in self._possible

    def add_labels(self, top: np.ndarray, labels: np.ndarray) -> None:
        """Of rows that count the class of the largest logit, and the label."""
        labels = labels.astype(np.int64)
        self.counted += len(labels)
        self.hits += int((top == labels).sum())
        kinds = np.bincount(labels[top == labels - 1], minlength=self.classes)
        self.before = kinds if not len(self.before) else self.before + kinds

    def merge(self, other: "Tally") -> None:
        """The rows of another of so many classes, in the coarser dtype."""
        self.dtype = max(self.dtype, other.dtype, key=lambda dtype: EPS[dtype])
        for name in ("finite", "counted", "hits", "_far_above", "_bounded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if len(other.before):
            self.before = other.before + (self.before if len(self.before) else 0)
        self._possible = self._possible & other._possible
        self._above = max(self._above, other._above)

    @property
    def twice(self) -> bool:
        """Whether these look like log_softmax of probabilities p, which is p minus a number.

        Its mean is 1 / C - p_min above its smallest entry: at most 1 / C, and close to it where one class has next to
        nothing, in most rows of a classifier.
        """
        slack = 16 * EPS[self.dtype] * self.classes
        if not self.holds("log-probable") or self.counted < ENOUGH or not self._bounded or slack > 0.1:
            return False
        return self._above <= 1.0 + slack and self._far_above >= 0.5 * self._bounded

    @property
    def off_by_one(self) -> bool:
        """Whether the largest logits stand one before the label, for labels of several kinds."""
        if self.counted < ENOUGH:
            return False
        before = self.before.sum()
        varied = (self.before > 0).sum() >= 3 and self.before.max() <= 0.6 * before
        return bool(varied and before >= 0.5 * self.counted and self.hits <= 0.1 * self.counted)


ONE_BASED = say("one_based")


def one_based(low: int, high: int, classes: int) -> bool:
    """Whether labels from `low` to `high`, of which some are no classes, look as if they were counted from 1."""
    return low >= 1 and high == classes


def fits_better(there: float, own: float, classes: int) -> bool:
    """Whether a mean loss along another axis is far below chance, and below half of that along the call's own."""
    return there < 0.5 * math.log(classes) and there < 0.5 * own


def sizes(x):
    """Of each row the largest and the smallest logit, their sum, and lse."""
    peak = x.max(-1, keepdims=True)
    return peak[..., 0], x.min(-1), x.sum(-1), peak[..., 0] + np.log(np.exp(x - peak).sum(-1))
