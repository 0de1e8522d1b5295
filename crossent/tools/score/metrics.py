"""Metrics of rows, the same bits however the rows were cut into blocks and parts, and in whatever order these came.

Rows are counted, and the sums of floats are exact. Only what a class was taken for is not, where too many different
pairs of classes occur: rows are counted in groups that begin anew every `_GROUP` rows, and not where a block or a file
begins, so that a stream of rows says the same however it was cut.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from crossent.tools.explain.baselines import baselines
from crossent.tools.score.confusion import Pairs
from crossent.tools.score.coverage import OCTAVES, STEPS, by_octave, step_of
from crossent.tools.score.groups import Groups
from crossent.tools.score.intervals import CELLS, FEW, OF_COVERAGE, Interval, Sample, means_of, short
from crossent.tools.score.sums import Cells, ratio
from crossent.tools.score.texts import UNITS

_GROUP = 2**15  # rows, at most 2**20
BINS = 15  # of the calibration error, as in Guo et al. (2017)
_EVEN = np.arange(BINS + 1) / BINS
LOSS_STEP, _LOSS_BINS = 1 / 32, 2**12  # of the histogram, in nats; the last bin has all that is larger
NEAR = 1e-6  # a part of the NLL, which rounded logits may change: no worse than knowing nothing


class Calibration:
    """Rows by confidence, in bins between `edges`: their number, the share that is right, their mean confidence.

    `error` is the mean distance between accuracy and confidence, bins weighted by their rows: the ECE, where bins have
    equal width. It is made of the numbers of rows and sums over them.
    """

    def __init__(self, rows: np.ndarray, right: np.ndarray, confidence: np.ndarray, edges: np.ndarray = _EVEN):
        self.rows, self.edges = rows.astype(np.int64), edges
        self.accuracy, self.confidence = ratio(right, rows), ratio(confidence, rows)
        self.error = float(ratio(abs(right - confidence).sum(), rows.sum()))


class ByClass:
    """For each class: rows with this label, their mean NLL, how many of them and of all rows were predicted so."""

    def __init__(self, rows: np.ndarray, nll: np.ndarray, correct: np.ndarray, predicted: np.ndarray):
        self.rows, self.nll, self.correct, self.predicted = rows, nll, correct, predicted
        self.recall, self.precision = ratio(correct, rows), ratio(correct, predicted)

    def worst(self, n: int) -> np.ndarray:
        """The classes with the most rows that were taken for others."""
        wrong = self.rows - self.correct
        return np.lexsort((np.arange(len(wrong)), -wrong))[: min(n, int((wrong > 0).sum()))]


class Metrics:
    """What was found in `rows` rows whose labels are not ignored. NLL is in nats; nan is what there is no row for.

    `numbers` has all that has an interval, by the name that it has in a result, and `baselines` the mean NLL of whoever
    says the same of every row. `by_octave` is the calibration in bins for each factor of 2 of the confidence, and
    `shown_calibration` the one whose bins tell rows apart. `groups` is None where rows have none, and `sample` has what
    the intervals are made of.
    """

    def __init__(self, counts: "Counts"):
        tables, total, self.sample = counts.tables, counts.sums(1), counts.sample()
        labels, bins, steps = tables["class"], tables["bin"].folded(BINS), tables["confidence"].folded(STEPS)
        self.rows, self.impossible = (int(total[name].item()) for name in ("rows", "impossible"))
        self.classes, self.ignored, self.confusion = counts.classes, counts.ignored, counts.pairs
        self.calibration = Calibration(*(bins[name] for name in ("rows", "right", "confidence")))
        self.by_octave = Calibration(*by_octave(steps["rows"], steps["right"]), OCTAVES)
        uneven = 2 * self.calibration.rows[0] > self.rows
        self.shown_calibration = self.by_octave if uneven else self.calibration
        self.coverage, self.losses = self.sample.coverage, tables["loss"]["rows"]
        self.by_class = ByClass(labels["rows"], labels.mean("nll"), labels["right"], tables["prediction"]["rows"])
        self.groups = counts.groups.found(self.rows / max(1, counts.units)) if counts.groups.names else None
        self.lengths = {name: int(total[name].item()) for name in counts.lengths}
        self.documents = int(tables["document"]["documents"].sum())
        self.numbers = {name: value.item() for name, value in means_of(total).items()}
        self.numbers |= {"calibration_error": self.calibration.error}
        self.numbers |= dict(zip(OF_COVERAGE, (self.coverage.area, *self.coverage.accuracy.tolist())))
        self.nll, self.accuracy = self.numbers["nll"], self.numbers["accuracy"]
        self.baselines: dict[str, Any] = baselines(self.by_class.rows, self.rows, self.nll, NEAR)

    @property
    def intervals(self) -> dict[str, Interval]:
        """Of each of the `numbers`, both ends nan where too few rows tell them."""
        return self.sample.intervals


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """The bins are open below and closed above."""
    return np.clip(np.ceil(confidence * BINS).astype(np.intp) - 1, 0, BINS - 1)


class Counts:
    """`add` blocks of rows, `merge` the counts of others, then ask for the `Metrics` of settled ones.

    Of no classes before the first row. `units` are rows of the data, which may have several labels each, and `lengths`
    those bytes and words of which it is not known which rows they belong to.
    """

    def __init__(self, classes: int, top_k: Sequence[int]):
        self.classes, self.top_k = classes, top_k
        self.ignored = self.units = self._rows_waiting = 0
        self.lengths: Counter[str] = Counter()
        self.groups, self.pairs = Groups(), Pairs(classes)
        self.tables = {
            "class": Cells(classes, ("rows", "right", "impossible"), ("nll",)),
            "prediction": Cells(classes, ("rows",)),
            "loss": Cells(_LOSS_BINS, ("rows",)),
            "confidence": Cells(FEW * STEPS, ("rows", "right")),
            "bin": Cells(CELLS * BINS, ("rows", "right"), ("confidence",)),
            "cell": Cells(CELLS, ("impossible", *(f"top{k}" for k in top_k)), ("nll", "brier")),
            "length": Cells(CELLS, UNITS),  # of those that belong to rows
            "document": Cells(CELLS, ("documents", "endless"), ("mean",)),
            "group": self.groups,
        }
        self._waiting: list[dict[str, np.ndarray]] = []

    def add(
        self, rows: Mapping[str, np.ndarray], kept: np.ndarray, units: int, groups: np.ndarray | None
    ) -> None:  # fmt: skip
        """Columns of a block of rows, of which those `kept` count, and the name of the group of each."""
        if self.units and (groups is None) == bool(self.groups.names):
            raise ValueError("groups must be given for all rows or for none")
        group = np.zeros(len(kept), np.intp) if groups is None else self.groups.of_rows(groups, kept)
        columns = {name: column[kept] for name, column in (*rows.items(), ("group", group))}
        self.units += units
        self._waiting.append(columns)
        self._rows_waiting += len(columns["group"])
        self._count_groups(_GROUP)

    def add_lengths(self, lengths: Mapping[str, np.ndarray], cells: np.ndarray) -> None:
        """Numbers of bytes or words: of each row of the data, with its cell, or of all rows of a block."""
        for name, length in lengths.items():
            self.lengths.update({name: 0 if length.ndim else int(length)})
            if length.ndim:
                self.tables["length"].put(name, cells, length)

    def add_documents(self, losses: np.ndarray, cells: np.ndarray) -> None:
        """The mean loss of each document, and its cell."""
        endless = losses == np.inf
        rows = {"documents": np.full(len(losses), True), "endless": endless, "mean": np.where(endless, 0.0, losses)}
        self.tables["document"].add(cells, rows)

    @property
    def scored(self) -> int:
        """How many rows count."""
        return int(self.tables["class"]["rows"].sum()) + self._rows_waiting

    def settled(self) -> "Counts":
        """The same with what waits to become a whole group counted. Others may look at these at the same time."""
        found = deepcopy(self)
        found._count_groups(1)
        found.groups.sort()
        found.pairs.settle()
        return found

    def merge(self, other: "Counts") -> None:
        """Those of so many classes too."""
        other = other.settled()
        self.ignored += other.ignored
        self.units += other.units
        self.lengths.update(other.lengths)
        for name, table in other.tables.items():
            self.tables[name].merge(table)
        self.pairs.merge(other.pairs)

    def sums(self, n: int) -> dict[str, np.ndarray]:
        """Over the rows of each cell, or (n = 1) over all, by the names of `means_of`."""
        tables = [self.tables[name].folded(n) for name in ("cell", "length", "document")]
        found = {name: table[name] for table in tables for name in table.digits}
        for name in ("rows", "right"):
            found[name] = self.tables["bin"][name].reshape(CELLS, BINS).sum(1).reshape(-1, n).sum(0)
        for name in UNITS:
            length = found.pop(name)
            if name in self.lengths:  # where it is not known which rows have how many, all have as many
                share = found["rows"] / max(1, found["rows"].sum()) if n > 1 else 1
                found[name] = length + self.lengths[name] * share
        if not found["documents"].any():
            del found["documents"]
        return found

    def sample(self) -> Sample:
        bins, steps = self.tables["bin"], self.tables["confidence"]
        gap = short(bins["right"] - bins["confidence"]).reshape(CELLS, BINS)
        sums = {name: short(column) for name, column in self.sums(CELLS).items()}
        return Sample(sums, gap, np.array([steps[name].reshape(FEW, STEPS) for name in ("rows", "right")]), self.units)

    def _count_groups(self, least: int) -> None:
        """Count what waits, as long as there are `least` rows."""
        if self._rows_waiting < least:
            return
        whole = {name: np.concatenate([some[name] for some in self._waiting]) for name in self._waiting[0]}
        lo, n = 0, self._rows_waiting
        while n - lo >= least:
            self._count({name: column[lo : lo + _GROUP] for name, column in whole.items()})
            lo += _GROUP
        # Copies and no views, which would keep all of it.
        self._waiting, self._rows_waiting = (
            [{name: column[lo:].copy() for name, column in whole.items()}],
            max(0, n - lo),
        )

    def _count(self, group: dict[str, np.ndarray]) -> None:
        label, prediction, cell = group["label"], group["prediction"], group["cell"].astype(np.intp)
        nll, confidence, brier = (group[name].astype(np.float64) for name in ("logprob", "confidence", "brier"))
        nll, right = np.maximum(-nll, 0.0), prediction == label
        places = {
            "class": label, "prediction": prediction, "cell": cell, "bin": cell * BINS + bin_of(confidence),
            "confidence": cell % FEW * STEPS + step_of(confidence),
            "loss": np.minimum(nll / LOSS_STEP, _LOSS_BINS - 1).astype(np.intp),
        }  # fmt: skip
        if self.groups.names:
            places["group"] = cell % FEW * len(self.groups.names) + group["group"]
        infinite = nll == np.inf
        rows = {f"top{k}": group["rank"] < k for k in self.top_k} | {
            "right": right, "impossible": infinite, "nll": np.where(infinite, 0.0, nll), "brier": brier,
            "confidence": confidence,
        }  # fmt: skip
        for name, place in places.items():
            self.tables[name].add(place, rows)
        self.pairs.add((label * self.classes + prediction)[~right])
