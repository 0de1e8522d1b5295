"""What is said of a score, in numbers and lists. None is what there is nothing to divide by."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from crossent.tools.score.coverage import SHARES
from crossent.tools.score.held import SKIPPED, Held
from crossent.tools.score.intervals import Interval
from crossent.tools.score.metrics import Calibration, Metrics

TAKEN_FOR = 3  # classes that a class was most often taken for


def result_of(held: Held, m: Metrics) -> dict[str, Any]:
    found = {
        "findings": [asdict(finding) for finding in held.findings(m)],
        "scored": m.rows, "ignored": m.ignored, "skipped": {what: held.skipped[what] for what in SKIPPED},
        "classes": m.classes, "impossible": m.impossible, **m.lengths, **_with_ends(m.numbers, m.intervals),
        "baselines": m.baselines, "calibration": bins_of(m.calibration),
        "calibration_by_octave": [one for one in bins_of(m.by_octave) if one["rows"]],
        "coverage": _with_ends(m.numbers, m.intervals, "coverage.") | {"points": coverage_of(m)},
        "by_class": classes_of(m, np.flatnonzero(m.by_class.rows + m.by_class.predicted), held.options.names),
        "confusion_short": m.confusion.short,
        "worst": [row.as_dict() for row in held.worst.rows],
    }  # fmt: skip
    if m.groups is not None:
        found["groups"] = groups_of(m)
    if m.documents:
        worst = [one.as_dict() for one in held.documents.rows]
        found["documents"] = {"count": m.documents, **_with_ends(m.numbers, m.intervals, "documents."), "worst": worst}
    return found


def classes_of(metrics: Metrics, labels: np.ndarray, names: Sequence[str] | None) -> list[dict[str, Any]]:
    found = metrics.by_class
    rows, taken_for = found.rows[labels].tolist(), metrics.confusion.of(labels, TAKEN_FOR)
    columns = (_there(column[labels]) for column in (found.recall, found.precision, found.nll))
    return [
        {"label": label} | ({} if names is None else {"name": names[label]})
        | {"rows": n, "recall": recall, "precision": precision, "nll": nll}
        | {"taken_for": [{"label": other, "rows": n} for other, n in others]}
        for label, n, recall, precision, nll, others in zip(labels.tolist(), rows, *columns, taken_for)
    ]  # fmt: skip


def groups_of(m: Metrics) -> list[dict[str, Any]]:
    return [
        {
            "group": g.name,
            "rows": g.rows,
            "confidence": g.confidence,
            "accuracy": _known(g.accuracy),
            "nll": _known(g.nll),
        }
        | {"intervals": {"accuracy": _there(g.accuracy_interval), "nll": _there(g.nll_interval)}}
        for g in m.groups or ()
    ]


def bins_of(bins: Calibration) -> list[dict[str, Any]]:
    columns = bins.edges[:-1].tolist(), bins.edges[1:].tolist(), bins.rows.tolist()
    names = "above", "to", "rows", "accuracy", "confidence"
    return [dict(zip(names, one)) for one in zip(*columns, _there(bins.accuracy), _there(bins.confidence))]


def coverage_of(metrics: Metrics) -> list[dict[str, Any]]:
    """Shares of the rows, how often the surest ones are right, and from which confidence on a row is of them."""
    if not metrics.rows:
        return []
    return [
        {"coverage": share, "confidence": confidence}
        | _with_ends(metrics.numbers, metrics.intervals, f"coverage.points.{i}.")
        for i, (share, confidence) in enumerate(zip(SHARES.tolist(), metrics.coverage.confidence.tolist()))
    ]


def _with_ends(numbers: Mapping[str, float], intervals: Mapping[str, Interval], prefix: str = "") -> dict[str, Any]:
    """Those whose names begin so and have no further point, and both ends of each."""

    def some(found: Mapping[str, Any]) -> dict[str, Any]:
        here = {name.removeprefix(prefix): one for name, one in found.items() if name.startswith(prefix)}
        return {name: one for name, one in here.items() if "." not in name}

    ends = {name: _there(both) for name, both in some(intervals).items()}
    return {name: _known(one) for name, one in some(numbers).items()} | {"intervals": ends}


def _there(values: Iterable[float]) -> list[float | None]:
    return [_known(float(value)) for value in values]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
