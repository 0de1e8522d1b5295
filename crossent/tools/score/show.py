"""A score as JSON and as tables."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from crossent.tools.explain.lines import finding_line
from crossent.tools.score import Score
from crossent.tools.score.metrics import BINS, Metrics

TAKEN_FOR = 3  # classes that a class was most often taken for


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
    found, confusion = metrics.by_class, metrics.confusion
    recall, precision, nll = map(_there, (found.recall, found.precision, found.nll))
    return [
        ClassRow(c, int(found.rows[c]), recall[c], precision[c], nll[c], confusion.of(c, TAKEN_FOR))
        for c in labels.tolist()
    ]


def summary(score: Score) -> list[tuple[str, str, str]]:
    """Name, value and meaning of what is said of all rows together."""
    m = score.metrics
    rows = [
        ("mean NLL", f"{m.nll:.4f}", "nats; the loss of cross_entropy"),
        ("perplexity", f"{m.perplexity:.6g}", "exp of the mean NLL"),
        ("accuracy", f"{m.accuracy:.2%}", "the largest logit is the label's"),
        ("top-5 accuracy", f"{m.top5:.2%}", "fewer than five classes come before the label's"),
        ("calibration error", f"{m.calibration.error:.4f}", f"ECE, {BINS} bins: |accuracy - confidence|"),
        ("Brier score", f"{m.brier:.4f}", "squared error of the probabilities, 0 to 2"),
    ]
    if m.impossible:
        rows.append(("impossible", f"{m.impossible:,}", "rows whose label has probability 0: the NLL is infinite"))
    return rows


def counted(score: Score) -> str:
    """What the numbers are about."""
    m = score.metrics
    said = f"{m.rows:,} rows of {m.classes:,} classes"
    if m.ignored:
        said += f", {m.ignored:,} ignored"
    return said if score.complete else f"{said}: the first {score.done:,} of {score.rows:,} rows"


def tables(console: Console, score: Score, top: int) -> None:
    m = score.metrics
    console.print(counted(score))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    for row in summary(score):
        table.add_row(*row)
    console.print(table)
    if top and (worst := class_rows(m, m.by_class.worst(top))):
        console.print()
        console.print(_of_classes(worst))
        if m.confusion.short:
            console.print(f"Counts of what a class was taken for may be up to {m.confusion.short:,} too small.")
    if score.places:
        console.print()
        console.print(_of_rows(score))
    for finding in score.findings:
        console.print(finding_line(finding))


def _of_classes(rows: list[ClassRow]) -> Table:
    table = Table(title="Classes with the most errors", title_justify="left")
    for name in ("class", "rows", "recall", "precision", "mean NLL"):
        table.add_column(name, justify="right")
    table.add_column("taken for (rows)")
    for row in rows:
        confused = ", ".join(f"{label} ({n:,})" for label, n in row.taken_for)
        table.add_row(str(row.label), f"{row.rows:,}", percent(row.recall), percent(row.precision), nats(row.nll),
                      confused)  # fmt: skip
    return table


def _of_rows(score: Score) -> Table:
    table = Table(title="Rows with the largest loss", title_justify="left")
    for name in (*(["file"] if score.shards > 1 else []), "row", "label", "prediction", "confidence", "NLL"):
        table.add_column(name, justify="left" if name == "file" else "right", overflow="fold")
    for path, row, *numbers in worst_rows(score):
        table.add_row(*([path] if score.shards > 1 else []), str(row), *numbers)
    return table


def worst_rows(score: Score) -> list[tuple[str, Any, str, str, str, str]]:
    """File, row, label, prediction, confidence and NLL."""
    w = score.metrics.worst
    numbers = zip(w["label"].tolist(), w["prediction"].tolist(), w["confidence"].tolist(), w["logprob"].tolist())
    return [
        (str(path), row, str(label), str(prediction), f"{confidence:.2%}", nats(0.0 - logprob))
        for (path, row), (label, prediction, confidence, logprob) in zip(score.places, numbers)
    ]


def nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def as_dict(score: Score) -> dict:
    """For JSON. None is what there is nothing to divide by."""
    said = {
        "logits": score.logits, "labels": score.labels, "rows": score.rows, "done": score.done,
        "complete": score.complete, "notes": score.notes, "findings": [asdict(finding) for finding in score.findings],
    }  # fmt: skip
    m = score.metrics
    numbers = {"nll": m.nll, "perplexity": m.perplexity, "accuracy": m.accuracy, "top5": m.top5, "brier": m.brier}
    bins = m.calibration
    columns = {"rows": bins.rows.tolist(), "accuracy": _there(bins.accuracy), "confidence": _there(bins.confidence)}
    calibration = [
        {"above": i / BINS, "to": (i + 1) / BINS} | {name: column[i] for name, column in columns.items()}
        for i in range(BINS)
    ]
    classes = class_rows(m, np.flatnonzero(m.by_class.rows + m.by_class.predicted))
    worst = {name: m.worst[name].tolist() for name in ("label", "prediction", "rank", "logprob", "confidence")}
    return said | {
        "scored": m.rows, "ignored": m.ignored, "classes": m.classes, "impossible": m.impossible,
        **numbers,
        "calibration_error": m.calibration.error, "calibration": calibration,
        "by_class": [_named(row) for row in classes], "confusion_short": m.confusion.short,
        "worst": [
            {"file": str(path), "row": row} | {name: column[i] for name, column in worst.items()}
            for i, (path, row) in enumerate(score.places)
        ],
    }  # fmt: skip


def _named(row: ClassRow) -> dict:
    return asdict(row) | {"taken_for": [{"label": label, "rows": n} for label, n in row.taken_for]}


def _there(values: np.ndarray) -> list:
    """None where 0 was divided by 0."""
    return [None if math.isnan(value) else value for value in values.tolist()]
