"""Metrics of rows, the same bits however the rows were cut into blocks and parts, and in whatever order these came.

Rows are counted, and the sums of floats are exact. Only what a class was taken for is not, where too many different
pairs of classes occur: rows are counted in groups that begin anew every `_GROUP` rows, and not where a block or a file
begins, so that a stream of rows says the same however it was cut.
"""

import math
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from crossent import PredictionStats
from crossent.tools.explain.baselines import baselines
from crossent.tools.score.confusion import Confusion, Pairs
from crossent.tools.score.coverage import STEPS, Coverage, step_of
from crossent.tools.score.groups import Group, GroupCells
from crossent.tools.score.intervals import CELLS, Interval, Sample
from crossent.tools.score.sums import Cells, ratio

_GROUP = 2**15  # rows, at most 2**20
BINS = 15  # of the calibration error, as in Guo et al. (2017)
LOSS_STEP, _LOSS_BINS = 1 / 32, 2**12  # of the histogram, in nats; the last bin has all that is larger
NEAR = 1e-6  # a part of the NLL, which rounded logits may change: no worse than knowing nothing
_COLUMNS = ("label", *PredictionStats._fields, "cell", "group")


@dataclass(frozen=True)
class Calibration:
    """Rows by confidence, in bins of equal width: their number, the share that is right, their mean confidence.

    `error` is the ECE: the mean distance between accuracy and confidence, bins weighted by their rows.
    """

    rows: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray
    error: float

    @classmethod
    def of(cls, rows: np.ndarray, right: np.ndarray, confidence: np.ndarray) -> "Calibration":
        """Of the numbers of rows and sums over them."""
        error = _mean(float(abs(right - confidence).sum()), int(rows.sum()))
        return cls(rows.astype(np.int64), ratio(right, rows), ratio(confidence, rows), error)


@dataclass(frozen=True)
class ByClass:
    """For each class: rows with this label, their mean NLL, how many of them and of all rows were predicted so."""

    rows: np.ndarray
    nll: np.ndarray
    correct: np.ndarray
    predicted: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        return ratio(self.correct, self.rows)

    @property
    def precision(self) -> np.ndarray:
        return ratio(self.correct, self.predicted)

    def worst(self, n: int) -> np.ndarray:
        """The classes with the most rows that were taken for others."""
        wrong = self.rows - self.correct
        return np.lexsort((np.arange(len(wrong)), -wrong))[: min(n, int((wrong > 0).sum()))]


@dataclass(frozen=True)
class Metrics:
    """What was found in `rows` rows whose labels are not ignored. NLL is in nats; nan is what there is no row for.

    `top_k` has the share of the rows with a rank below k for each k, `groups` is None where rows have none, and
    `sample` has what the intervals are made of.
    """

    rows: int
    ignored: int
    classes: int
    nll: float
    accuracy: float
    top_k: dict[int, float]
    brier: float
    impossible: int
    calibration: Calibration
    coverage: Coverage
    losses: np.ndarray
    by_class: ByClass
    confusion: Confusion
    groups: list[Group] | None
    sample: Sample

    @property
    def perplexity(self) -> float:
        return math.inf if self.nll >= 700 else math.exp(self.nll)

    @property
    def baselines(self) -> dict[str, Any]:
        """The mean NLL of whoever says the same of every row."""
        return baselines(self.by_class.rows, self.rows, self.nll, NEAR)

    @property
    def numbers(self) -> dict[str, float]:
        """All that has an interval, by its name."""
        top = {f"top{k}": share for k, share in self.top_k.items()}
        found = {"nll": self.nll, "perplexity": self.perplexity, "accuracy": self.accuracy, **top}
        return found | {"brier": self.brier, "calibration_error": self.calibration.error}

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Of each of the `numbers`, both ends nan where too few rows tell them."""
        return self.sample.intervals()


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """The bins are open below and closed above."""
    return np.clip(np.ceil(confidence * BINS).astype(np.intp) - 1, 0, BINS - 1)


@dataclass
class Counts:
    """`add` blocks of rows, `merge` the counts of others, then ask for the `metrics` of all so far.

    `units` are rows of the data, which may have several labels each.
    """

    classes: int
    top_k: tuple[int, ...]
    ignored: int = 0
    units: int = 0
    _waiting: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    _rows_waiting: int = 0

    def __post_init__(self):
        top = [f"top{k}" for k in self.top_k]
        self.tables = {
            "class": Cells(self.classes, ("rows", "right", "impossible"), ("nll",)),
            "prediction": Cells(self.classes, ("rows",)),
            "loss": Cells(_LOSS_BINS, ("rows",)),
            "confidence": Cells(STEPS, ("rows", "right")),
            "bin": Cells(CELLS * BINS, ("rows", "right"), ("confidence",)),
            "cell": Cells(CELLS, ("impossible", *top), ("nll", "brier")),
        }
        self.groups: GroupCells | None = None
        self.pairs = Pairs(self.classes)

    def add(
        self, labels: np.ndarray, stats: PredictionStats, kept: np.ndarray, units: int, cells: np.ndarray,
        groups: np.ndarray | None,
    ) -> None:  # fmt: skip
        """A block of rows, of which those `kept` count, with the cell of the sample and the group of each."""
        if self.units and (groups is None) != (self.groups is None):
            raise ValueError("groups must be given for all rows or for none")
        grouped = None if groups is None else self.groups or GroupCells()
        places = np.zeros(len(labels), np.intp) if groups is None or grouped is None else grouped.places(groups, kept)
        self.groups = grouped
        columns = tuple(column[kept] for column in (labels, *stats, cells, places))
        self.ignored += len(labels) - len(columns[0])
        self.units += units
        self._waiting.append(columns)
        self._rows_waiting += len(columns[0])
        if self._rows_waiting >= _GROUP:
            self._count_groups(_GROUP)

    @property
    def scored(self) -> int:
        """How many rows count."""
        return int(self.tables["class"]["rows"].sum()) + self._rows_waiting

    def settled(self) -> "Counts":
        """The same with what waits to become a whole group counted. Others may look at these at the same time."""
        found = copy(self)
        found.tables, found.pairs = {name: table.copy() for name, table in self.tables.items()}, self.pairs.copy()
        found.groups = self.groups and self.groups.copy()
        found._count_groups(1)
        if found.groups:
            found.groups.sort()
        found.pairs.settle()
        return found

    def merge(self, other: "Counts") -> None:
        """Those of so many classes too."""
        other = other.settled()
        self.ignored += other.ignored
        self.units += other.units
        for name, table in other.tables.items():
            self.tables[name].merge(table)
        if other.groups is not None:
            self.groups = self.groups or GroupCells()
            self.groups.merge(other.groups)
        self.pairs.merge(other.pairs)

    def metrics(self) -> Metrics:
        settled = self.settled()
        tables = settled.tables
        labels, cells, bins = tables["class"], tables["cell"], tables["bin"].folded(BINS)
        total, binned, right = cells.folded(1), bins["rows"], bins["right"]
        rows, infinite, confidence = int(binned.sum()), int(total["impossible"][0]), bins["confidence"]
        by_class = ByClass(labels["rows"], labels.mean("nll"), labels["right"], tables["prediction"]["rows"])
        return Metrics(
            rows=rows, ignored=self.ignored, classes=self.classes,
            nll=_mean(math.inf if infinite else float(total["nll"][0]), rows),
            accuracy=_mean(int(right.sum()), rows),
            top_k={k: _mean(int(total[f"top{k}"][0]), rows) for k in self.top_k},
            brier=_mean(float(total["brier"][0]), rows), impossible=infinite,
            calibration=Calibration.of(binned, right, confidence),
            coverage=Coverage.of(tables["confidence"]),
            losses=tables["loss"]["rows"], by_class=by_class, confusion=settled.pairs.confusion(),
            groups=settled.groups and settled.groups.found(rows / max(1, self.units)),
            sample=Sample.of(cells, tables["bin"], self.top_k, self.units),
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
        label, prediction, cell = group["label"], group["prediction"], group["cell"].astype(np.intp)
        nll, confidence, brier = (group[name].astype(np.float64) for name in ("logprob", "confidence", "brier"))
        nll, right = np.maximum(-nll, 0.0), prediction == label
        places = {
            "class": label, "prediction": prediction, "cell": cell, "bin": cell * BINS + bin_of(confidence),
            "confidence": step_of(confidence), "loss": np.minimum(nll / LOSS_STEP, _LOSS_BINS - 1).astype(np.intp),
        }  # fmt: skip
        infinite = nll == np.inf
        rows = {f"top{k}": group["rank"] < k for k in self.top_k} | {
            "right": right, "impossible": infinite, "nll": np.where(infinite, 0.0, nll), "brier": brier,
            "confidence": confidence,
        }  # fmt: skip
        for name, table in self.tables.items():
            table.add(places[name], rows)
        if self.groups is not None:
            self.groups.add(group["group"], cell, rows)
        self.pairs.add((label * self.classes + prediction)[~right])


def _mean(total: float, rows: int) -> float:
    return total / rows if rows else math.nan
