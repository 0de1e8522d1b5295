"""Metrics of a stream of rows, the same bits however the rows were cut into blocks.

Every sum is made in float64 over groups of a fixed number of rows, which begin anew every `_GROUP` rows counted from
the first one, and not where a block or a file begins.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from crossent import PredictionStats

_GROUP = 2**15  # rows
BINS = 15  # of the calibration error, as in Guo et al. (2017)
LOSS_STEP, _LOSS_BINS = 1 / 32, 2**12  # of the histogram, in nats; the last bin has all that is larger
_PAIRS_AT_ONCE, _PAIRS_KEPT = 2**20, 2**22
_COLUMNS = ("row", "label", *PredictionStats._fields)


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

    def of(self, label: int, n: int) -> list[tuple[int, int]]:
        """What rows of this label were most often taken for, and how many."""
        lo, hi = np.searchsorted(self.label, [label, label + 1])
        prediction, rows = self.prediction[lo:hi], self.rows[lo:hi]
        order = np.lexsort((prediction, -rows))[:n]
        return list(zip(prediction[order].tolist(), rows[order].tolist()))


@dataclass(frozen=True)
class Metrics:
    """What was found in `rows` rows whose labels are not ignored. NLL is in nats, `worst` the rows with the largest."""

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
    worst: dict[str, np.ndarray]

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll) if self.nll < 700 else math.inf


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole != 0)


@dataclass
class Accumulator:
    """`add` blocks of rows, then ask for the `metrics` of all so far."""

    classes: int
    top: int
    ignore_index: int
    rows: int = 0
    ignored: int = 0
    _waiting: list[dict[str, np.ndarray]] = field(default_factory=list)
    _sums: dict[str, np.ndarray] = field(default_factory=dict)
    _worst: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        self._pairs = _Pairs(self.classes)

    def add(self, start: int, labels: np.ndarray, stats: PredictionStats) -> None:
        """Rows from number `start` on."""
        kept = labels != self.ignore_index
        columns = (np.arange(start, start + len(labels)), labels, *stats)
        if not kept.all():
            columns = tuple(column[kept] for column in columns)
        self.ignored += len(labels) - len(columns[0])
        self._waiting.append(dict(zip(_COLUMNS, columns)))
        if sum(len(part["row"]) for part in self._waiting) >= _GROUP:
            self._count_groups(_GROUP)

    def metrics(self) -> Metrics | None:
        """Of all rows so far, None where none counts; nothing may be added after it."""
        self._count_groups(1)
        sums, rows = self._sums, self.rows
        if not rows:
            return None
        binned, hits, confidence = (sums[name] for name in ("rows by bin", "hits by bin", "confidence by bin"))
        error = float(abs(hits - confidence).sum() / binned.sum())
        labels, correct = sums["rows by class"], sums["correct"]
        return Metrics(
            rows=rows, ignored=self.ignored, classes=self.classes, nll=float(sums["nll"]) / rows,
            accuracy=int(correct.sum()) / rows, top5=int(sums["top5"]) / rows,
            brier=float(sums["brier"]) / rows, impossible=int(sums["impossible"]),
            calibration=Calibration(binned, _ratio(hits, binned), _ratio(confidence, binned), error),
            losses=sums["losses"],
            by_class=ByClass(labels, _ratio(sums["nll by class"], labels), correct, sums["predicted"]),
            confusion=self._pairs.confusion(), worst=self._worst,
        )  # fmt: skip

    def _count_groups(self, least: int) -> None:
        """Count what waits, as long as there are `least` rows."""
        if not self._waiting:
            return
        whole = {name: np.concatenate([part[name] for part in self._waiting]) for name in _COLUMNS}
        lo, n = 0, len(whole["row"])
        while n - lo >= least:
            self._count({name: column[lo : lo + _GROUP] for name, column in whole.items()})
            lo += _GROUP
        self._waiting = [{name: column[lo:] for name, column in whole.items()}]

    def _count(self, group: dict[str, np.ndarray]) -> None:
        label, prediction, nll = group["label"], group["prediction"], -group["logprob"].astype(np.float64)
        confidence, hit = group["confidence"].astype(np.float64), prediction == label
        # The bins are open below and closed above.
        place = np.clip(np.ceil(confidence * BINS).astype(np.int32) - 1, 0, BINS - 1)
        loss = np.minimum(nll / LOSS_STEP, _LOSS_BINS - 1).astype(np.int32)
        self.rows += len(label)
        for name, value in {
            "nll": nll.sum(),
            "top5": (group["rank"] < 5).sum(),
            "brier": group["brier"].sum(dtype=np.float64),
            "impossible": (nll == np.inf).sum(),
            "rows by bin": np.bincount(place, minlength=BINS),
            "hits by bin": np.bincount(place[hit], minlength=BINS),
            "confidence by bin": np.bincount(place, confidence, BINS),
            "losses": np.bincount(loss, minlength=_LOSS_BINS),
            "rows by class": np.bincount(label, minlength=self.classes),
            "correct": np.bincount(label[hit], minlength=self.classes),
            "predicted": np.bincount(prediction, minlength=self.classes),
            "nll by class": np.bincount(label, nll, self.classes),
        }.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._pairs.add((label * self.classes + prediction)[~hit])
        self._keep_worst(group, nll)

    def _keep_worst(self, group: dict[str, np.ndarray], nll: np.ndarray) -> None:
        """The rows with the largest NLL, of equal ones the first."""
        worst = self._worst or {name: column[:0] for name, column in group.items()}
        candidates = slice(None)
        if len(worst["row"]) == self.top:
            candidates = np.flatnonzero(nll > (-worst["logprob"][-1] if self.top else np.inf))
        elif self.top < len(nll):
            candidates = np.flatnonzero(nll >= np.partition(nll, -self.top)[-self.top])
        group = {name: column[candidates] for name, column in group.items()}
        both = {name: np.concatenate([worst[name], column]) for name, column in group.items()}
        order = np.argsort(both["logprob"], kind="stable")[: self.top]
        self._worst = {name: column[order] for name, column in both.items()}


class _Pairs:
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
            self._merge()

    def _merge(self) -> None:
        new, counts = self._counted(np.concatenate(self._waiting))
        self._waiting = []
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
        if self._waiting:
            self._merge()
        return Confusion(self.codes // self.classes, self.codes % self.classes, self.counts, self.short)
