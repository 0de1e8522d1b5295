"""Metrics of rows, the same bits however the rows were cut into blocks and parts, and in whatever order these came.

Rows are counted, and the sums of floats are exact. Only what a class was taken for is not, where too many different
pairs of classes occur: rows are counted in groups that begin anew every `_GROUP` rows, and not where a block or a file
begins, so that a stream of rows says the same however it was cut.
"""

import math
from copy import copy
from dataclasses import dataclass, field

import numpy as np

from crossent import PredictionStats
from crossent.tools.score.sums import ExactSums

_GROUP = 2**15  # rows, at most 2**20
BINS = 15  # of the calibration error, as in Guo et al. (2017)
LOSS_STEP, _LOSS_BINS = 1 / 32, 2**12  # of the histogram, in nats; the last bin has all that is larger
_PAIRS_AT_ONCE, _PAIRS_KEPT = 2**20, 2**22
_COLUMNS = ("label", *PredictionStats._fields)


@dataclass(frozen=True)
class Calibration:
    """Rows by confidence, in bins of equal width: their number, the share that is right, their mean confidence.

    `error` is the ECE: the mean distance between accuracy and confidence, bins weighted by their rows.
    """

    rows: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray
    error: float


@dataclass(frozen=True)
class ByClass:
    """For each class: rows with this label, their mean NLL, how many of them and of all rows were predicted so."""

    rows: np.ndarray
    nll: np.ndarray
    correct: np.ndarray
    predicted: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        return _ratio(self.correct, self.rows)

    @property
    def precision(self) -> np.ndarray:
        return _ratio(self.correct, self.predicted)

    def worst(self, n: int) -> np.ndarray:
        """The classes with the most rows that were taken for others."""
        wrong = self.rows - self.correct
        return np.lexsort((np.arange(len(wrong)), -wrong))[: min(n, int((wrong > 0).sum()))]


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
        chosen = np.lexsort((prediction, -rows, which))[within < n]
        found: list[list[tuple[int, int]]] = [[] for _ in labels]
        for i, *pair in zip(which[chosen].tolist(), prediction[chosen].tolist(), rows[chosen].tolist()):
            found[i].append((pair[0], pair[1]))
        return found


def _counted_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... anew for each length."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


@dataclass(frozen=True)
class Metrics:
    """What was found in `rows` rows whose labels are not ignored. NLL is in nats; nan is what there is no row for."""

    rows: int
    ignored: int
    classes: int
    nll: float
    accuracy: float
    top5: float
    brier: float
    impossible: int
    calibration: Calibration
    losses: np.ndarray
    by_class: ByClass
    confusion: Confusion

    @property
    def perplexity(self) -> float:
        return math.inf if self.nll >= 700 else math.exp(self.nll)


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """The bins are open below and closed above."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int32) - 1, 0, BINS - 1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole != 0)


@dataclass
class Counts:
    """`add` blocks of rows, `merge` the counts of others, then ask for the `metrics` of all so far."""

    classes: int
    ignored: int = 0
    _waiting: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    _rows_waiting: int = 0

    def __post_init__(self):
        bins = ("rows by bin", "hits by bin")
        classes = ("rows by class", "correct", "predicted", "impossible by class")
        self.whole = {name: np.zeros(BINS, np.int64) for name in bins}
        self.whole |= {name: np.zeros(self.classes, np.int64) for name in classes}
        self.whole |= {"top5": np.zeros(1, np.int64), "losses": np.zeros(_LOSS_BINS, np.int64)}
        sums = {"nll by class": self.classes, "confidence by bin": BINS, "brier": 1}
        self.exact = {name: ExactSums(n) for name, n in sums.items()}
        self.pairs = Pairs(self.classes)

    def add(self, labels: np.ndarray, stats: PredictionStats, kept: np.ndarray) -> None:
        """A block of rows, of which those `kept` count."""
        columns = tuple(column[kept] for column in (labels, *stats))
        self.ignored += len(labels) - len(columns[0])
        self._waiting.append(columns)
        self._rows_waiting += len(columns[0])
        if self._rows_waiting >= _GROUP:
            self._count_groups(_GROUP)

    def settled(self) -> "Counts":
        """The same with what waits to become a whole group counted. Others may look at these at the same time."""
        found = copy(self)
        found.whole, found.pairs = dict(self.whole), self.pairs.copy()
        found.exact = {name: ExactSums(sums.n, sums.digits) for name, sums in self.exact.items()}
        found._count_groups(1)
        found.pairs.settle()
        return found

    def merge(self, other: "Counts") -> None:
        """Those of so many classes too."""
        other = other.settled()
        self.ignored += other.ignored
        for name, counts in other.whole.items():
            self.whole[name] = self.whole[name] + counts
        for name, sums in other.exact.items():
            self.exact[name].merge(sums)
        self.pairs.merge(other.pairs)

    def metrics(self) -> Metrics:
        settled = self.settled()
        whole, exact = settled.whole, {name: sums.rounded() for name, sums in settled.exact.items()}
        binned, hits, confidence = whole["rows by bin"], whole["hits by bin"], exact["confidence by bin"]
        labels, correct, impossible = whole["rows by class"], whole["correct"], whole["impossible by class"]
        rows, infinite = int(binned.sum()), int(impossible.sum())
        nll = math.inf if infinite else float(settled.exact["nll by class"].total().rounded()[0])
        return Metrics(
            rows=rows, ignored=self.ignored, classes=self.classes, nll=_mean(nll, rows),
            accuracy=_mean(int(correct.sum()), rows), top5=_mean(int(whole["top5"][0]), rows),
            brier=_mean(float(exact["brier"][0]), rows), impossible=infinite,
            calibration=Calibration(
                binned, _ratio(hits, binned), _ratio(confidence, binned),
                _mean(float(abs(hits - confidence).sum()), rows),
            ),
            losses=whole["losses"],
            by_class=ByClass(
                labels, _ratio(np.where(impossible, np.inf, exact["nll by class"]), labels), correct, whole["predicted"]
            ),
            confusion=settled.pairs.confusion(),
        )  # fmt: skip

    def _count_groups(self, least: int) -> None:
        """Count what waits, as long as there are `least` rows."""
        if not self._rows_waiting:
            return
        whole = {name: np.concatenate([part[i] for part in self._waiting]) for i, name in enumerate(_COLUMNS)}
        lo, n = 0, self._rows_waiting
        while n - lo >= least:
            self._count({name: column[lo : lo + _GROUP] for name, column in whole.items()})
            lo += _GROUP
        rest = tuple(column[lo:].copy() for column in whole.values())  # no views, which would keep all of it
        self._waiting, self._rows_waiting = [rest], max(0, n - lo)

    def _count(self, group: dict[str, np.ndarray]) -> None:
        label, prediction, rank = group["label"], group["prediction"], group["rank"]
        nll, confidence, brier = (group[name].astype(np.float64) for name in ("logprob", "confidence", "brier"))
        nll, hit = np.maximum(-nll, 0.0), prediction == label
        place = bin_of(confidence)
        loss = np.minimum(nll / LOSS_STEP, _LOSS_BINS - 1).astype(np.int32)
        infinite = nll == np.inf
        for name, value in {
            "rows by bin": np.bincount(place, minlength=BINS),
            "hits by bin": np.bincount(place[hit], minlength=BINS),
            "rows by class": np.bincount(label, minlength=self.classes),
            "correct": np.bincount(label[hit], minlength=self.classes),
            "predicted": np.bincount(prediction, minlength=self.classes),
            "impossible by class": np.bincount(label[infinite], minlength=self.classes),
            "top5": (rank < 5).sum(keepdims=True),
            "losses": np.bincount(loss, minlength=_LOSS_BINS),
        }.items():
            self.whole[name] = self.whole[name] + value
        self.exact["nll by class"].add(label, np.where(infinite, 0.0, nll))
        self.exact["confidence by bin"].add(place, confidence)
        self.exact["brier"].add(np.zeros(len(brier), np.intp), brier)
        self.pairs.add((label * self.classes + prediction)[~hit])


def _mean(total: float, rows: int) -> float:
    return total / rows if rows else math.nan


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
