"""What is said of metrics, in numbers and lists."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from crossent.tools.explain.explanation import Finding
from crossent.tools.score.groups import Group
from crossent.tools.score.intervals import Interval
from crossent.tools.score.metrics import BINS, Metrics
from crossent.tools.score.worst import WorstRow

TAKEN_FOR = 3  # classes that a class was most often taken for
COVERAGES = 0.25, 0.5, 0.75, 0.9, 1.0  # of which the accuracy is shown


@dataclass(frozen=True)
class ClassRow:
    """What is shown of a class; its recall, precision and NLL are None where there is nothing to divide by."""

    label: int
    rows: int
    recall: float | None
    precision: float | None
    nll: float | None
    taken_for: list[tuple[int, int]]


def class_rows(metrics: Metrics, labels: np.ndarray) -> list[ClassRow]:
    found = metrics.by_class
    recall, precision, nll = (_there(column[labels]) for column in (found.recall, found.precision, found.nll))
    taken_for = metrics.confusion.of(labels, TAKEN_FOR)
    rows = found.rows[labels].tolist()
    return [ClassRow(*row) for row in zip(labels.tolist(), rows, recall, precision, nll, taken_for)]


def bins_of(metrics: Metrics) -> list[dict]:
    bins = metrics.calibration
    columns = {"rows": bins.rows.tolist(), "accuracy": _there(bins.accuracy), "confidence": _there(bins.confidence)}
    return [
        {"above": i / BINS, "to": (i + 1) / BINS} | {name: column[i] for name, column in columns.items()}
        for i in range(BINS)
    ]


def result_of(
    metrics: Metrics, worst: Iterable[WorstRow], findings: Iterable[Finding], names: Sequence[str] | None
) -> dict:
    """None is what there is nothing to divide by."""
    m = metrics
    classes = class_rows(m, np.flatnonzero(m.by_class.rows + m.by_class.predicted))
    return {
        "findings": [asdict(finding) for finding in findings],
        "scored": m.rows, "ignored": m.ignored, "classes": m.classes, "impossible": m.impossible,
        **{name: _known(value) for name, value in m.numbers.items()},
        "intervals": _of_intervals(m.intervals),
        "baselines": m.baselines, "calibration": bins_of(m), "coverage": _of_coverage(m),
        **({} if m.groups is None else {"groups": [_of_group(group) for group in m.groups]}),
        "by_class": [_of_class(row, names) for row in classes], "confusion_short": m.confusion.short,
        "worst": [_of_row(row) for row in worst],
    }  # fmt: skip


def _of_class(row: ClassRow, names: Sequence[str] | None) -> dict:
    """Without `asdict`, which takes seconds where there are many classes."""
    named = {"label": row.label} if names is None else {"label": row.label, "name": names[row.label]}
    taken_for = [{"label": label, "rows": n} for label, n in row.taken_for]
    return named | {
        "rows": row.rows, "recall": row.recall, "precision": row.precision, "nll": row.nll, "taken_for": taken_for
    }  # fmt: skip


def _of_row(row: WorstRow) -> dict:
    return {
        "file": row.file, "row": row.row, "label": row.label, "prediction": row.prediction, "rank": row.rank,
        "logprob": row.logprob, "confidence": row.confidence,
    }  # fmt: skip


def _of_coverage(metrics: Metrics) -> dict:
    names = ("coverage", "accuracy", "confidence")
    points = [dict(zip(names, point)) for point in coverage_rows(metrics)]
    return {"area": metrics.coverage.area if metrics.rows else None, "points": points}


def coverage_rows(metrics: Metrics) -> list[tuple[float, float, float]]:
    """Shares of the rows, how often the surest ones are right, and from which confidence on a row is of them."""
    if not metrics.rows:
        return []
    accuracy, confidence = metrics.coverage.at(np.array(COVERAGES))
    return list(zip(COVERAGES, accuracy.tolist(), confidence.tolist()))


def _of_group(group: Group) -> dict:
    intervals = {"accuracy": group.accuracy_interval, "nll": group.nll_interval}
    return {
        "group": group.name, "rows": group.rows, "accuracy": group.accuracy, "nll": group.nll,
        "confidence": group.confidence, "intervals": _of_intervals(intervals),
    }  # fmt: skip


def _of_intervals(found: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    return {name: [_known(end) for end in ends] for name, ends in found.items()}


def _there(values: np.ndarray) -> list:
    """None where 0 was divided by 0."""
    return list(map(_known, values.tolist()))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
