"""What the findings ask of all rows: numbers of each, and numbers that blocks of rows add up to.

`explain` adds all of its rows at once, `crossent score` those of each block that it streams.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from crossent.tools.explain.checks import EPS

ENOUGH = 16  # rows, before a share of them says something
_NEARLY = 0.05  # by which the sum of rounded probabilities may miss 1


@dataclass
class Tally:
    """Of rows of so many `classes`, in `dtype`: what holds for all that count and whose logits are finite.

    `probable` says that no number is negative and their sum is 1, `nearly_probable` that they are at most 1 and their
    sum is not far from it, `certain` that all are 0 but a single 1, `log_probable` that the exponentials sum to 1, and
    `equal` that a row's logits are all the same. A Tally of a head, whose logits are not what was passed, has none of
    these but the last.
    """

    classes: int
    dtype: str
    head: bool = False
    finite: int = 0
    counted: int = 0
    _probable: bool = True
    _nearly: bool = True
    _certain: bool = True
    _log_probable: bool = True
    _equal: bool = True
    _above: float = -math.inf  # C * (mean - smallest), its largest, and how often it is close to 1
    _far_above: int = 0
    _bounded: int = 0
    hits: int = 0
    before: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def undecided(self) -> bool:
        """Whether more rows of logits could make a difference."""
        return self._probable or self._nearly or self._log_probable or self._equal

    def add(self, high: np.ndarray, low: np.ndarray, total: np.ndarray, lse: np.ndarray) -> None:
        """Rows that count: of each the largest and smallest logit, their sum, and lse."""
        there = np.isfinite(high) & ~np.isnan(low)
        high, low, total, lse = high[there], low[there], total[there], lse[there]
        self.finite += len(high)
        off = np.abs(total - 1.0)
        eps = EPS[self.dtype]
        self._probable &= bool(((low >= 0.0) & (off <= max(1e-3, 2 * eps))).all())
        self._nearly &= bool(((low >= 0.0) & (high <= 1.0 + _NEARLY) & (off <= _NEARLY)).all())
        self._certain &= bool(((low == 0.0) & (high == 1.0) & (total == 1.0)).all())
        # lse of log-probabilities is 0, but for the rounding of each.
        self._log_probable &= bool((np.abs(lse) <= max(1e-4, 2 * eps * (1.0 + math.log(self.classes)))).all())
        self._equal &= bool((high == low).all())
        bounded = np.isfinite(low)
        above = total[bounded] - self.classes * low[bounded]
        self._above = max(self._above, above.max(initial=-math.inf))
        self._far_above += int((above >= 0.9).sum())
        self._bounded += len(above)

    def add_labels(self, top: np.ndarray, labels: np.ndarray) -> None:
        """Of rows that count the class of the largest logit, and the label."""
        labels = labels.astype(np.int64)
        self.counted += len(labels)
        self.hits += int((top == labels).sum())
        kinds = np.bincount(labels[top == labels - 1], minlength=self.classes)
        self.before = kinds if not len(self.before) else self.before + kinds

    def _all(self, held: bool) -> bool:
        return held and not self.head and self.classes > 1 and self.finite > 0

    @property
    def probable(self) -> bool:
        return self._all(self._probable)

    @property
    def nearly_probable(self) -> bool:
        return self._all(self._nearly)

    @property
    def certain(self) -> bool:
        return self._all(self._certain)

    @property
    def log_probable(self) -> bool:
        return self._all(self._log_probable)

    @property
    def equal(self) -> bool:
        return self.classes > 1 and self.finite > 0 and self._equal

    @property
    def twice(self) -> bool:
        """Whether these look like log_softmax of probabilities p, which is p minus a number.

        Its mean is 1 / C - p_min above its smallest entry: at most 1 / C, and close to it where one class has next to
        nothing, in most rows of a classifier.
        """
        slack = 16 * EPS[self.dtype] * self.classes
        if not self.log_probable or self.counted < ENOUGH or not self._bounded or slack > 0.1:
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


ONE_BASED = "No label is 0 and the largest is the number of classes: if they are one-based, subtract 1."


def one_based(low: int, high: int, classes: int) -> bool:
    """Whether labels from `low` to `high`, of which some are no classes, look as if they were counted from 1."""
    return low >= 1 and high == classes


def fits_better(there: float, own: float, classes: int) -> bool:
    """Whether a mean loss along another axis is far below chance, and below half of that along the call's own."""
    return there < 0.5 * math.log(classes) and there < 0.5 * own


@dataclass
class Scan:
    """Of each row of logits the largest and smallest, their sum, lse, and the class of the largest.

    `masked` says that the target has a share of a class whose logit is -inf. `target_low` and `target_total` are the
    smallest and the sum of a soft target's probabilities, None for labels.
    """

    high: np.ndarray
    low: np.ndarray
    total: np.ndarray
    lse: np.ndarray
    top: np.ndarray
    masked: np.ndarray
    target_low: np.ndarray | None
    target_total: np.ndarray | None


def scan(case):
    shape = case.row_shape
    wide = np.float64 if case.dtype == "float64" else np.float32
    high, low, total, lse = (np.empty(shape, wide) for _ in range(4))
    top, masked = np.empty(shape, np.int32), np.empty(shape, bool)
    dense = case.soft and not case.sparse
    target_low, target_total = (np.empty(shape, wide) if dense else None for _ in range(2))
    with np.errstate(all="ignore"):
        for block in case.blocks():
            x = case.logits(block)
            high[block], low[block], total[block], lse[block] = sizes(x)
            top[block] = x.argmax(-1)
            masked[block] = _masked(case, block, x)
            if dense:
                t = case.probabilities(block)
                target_low[block], target_total[block] = t.min(-1), t.sum(-1)
    if case.sparse:
        target_low, target_total = case.sparse_probs.min(-1, initial=0.0), case.sparse_probs.sum(-1)
    if target_low is not None:
        target_low, target_total = target_low.reshape(-1), target_total.reshape(-1)
    high, low, total, lse = (array.reshape(-1) for array in (high, low, total, lse))
    return Scan(high, low, total, lse, top.reshape(-1), masked.reshape(-1), target_low, target_total)


def sizes(x):
    """Of each row the largest and the smallest logit, their sum, and lse."""
    peak = x.max(-1, keepdims=True)
    return peak[..., 0], x.min(-1), x.sum(-1), peak[..., 0] + np.log(np.exp(x - peak).sum(-1))


def _masked(case, block, x):
    if case.options.label_smoothing:
        return (x == -np.inf).any(-1)
    if case.soft and not case.sparse:
        return ((x == -np.inf) & (case.probabilities(block) != 0.0)).any(-1)
    if case.sparse:
        classes, probs = case.sparse_classes[block], case.sparse_probs[block]
    else:
        classes, probs = case.labels.reshape(case.row_shape)[block][..., None], 1.0
    valid = (classes >= 0) & (classes < case.classes)
    picked = np.take_along_axis(x, np.where(valid, classes, 0).astype(np.intp), -1)
    return (valid & (probs != 0.0) & (picked == -np.inf)).any(-1)
