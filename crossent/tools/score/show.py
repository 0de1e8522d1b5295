"""A score as JSON and as tables."""

from typing import Any

from rich.console import Console
from rich.table import Table

from crossent.tools.explain.lines import finding_line
from crossent.tools.score import Scored
from crossent.tools.score.held import SKIPPED
from crossent.tools.score.metrics import BINS
from crossent.tools.score.said import ClassRow, class_rows


def summary(score: Scored) -> list[tuple[str, str, str]]:
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


def counted(score: Scored) -> str:
    """What the numbers are about."""
    m = score.metrics
    said = f"{m.rows:,} rows of {m.classes:,} classes"
    if m.ignored:
        said += f", {m.ignored:,} ignored"
    if skipped := score.total._held.skipped:
        said += f", {skipped.total():,} skipped ({', '.join(f'{n:,}: {SKIPPED[what]}' for what, n in skipped.items())})"
    if len(score.parts) > 1:
        said += f", in {len(score.parts):,} parts"
    return said if score.complete else f"{said}: the first {score.done:,} of {score.rows:,} rows"


def tables(console: Console, score: Scored, top: int) -> None:
    m = score.metrics
    console.print(counted(score))
    if not m.rows:
        return
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
    if score.worst:
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


def _of_rows(score: Scored) -> Table:
    table = Table(title="Rows with the largest loss", title_justify="left")
    for name in (*(["file"] if score.files > 1 else []), "row", "label", "prediction", "confidence", "NLL"):
        table.add_column(name, justify="left" if name == "file" else "right", overflow="fold")
    for path, row, *numbers in worst_rows(score):
        table.add_row(*([path] if score.files > 1 else []), str(row), *numbers)
    return table


def worst_rows(score: Scored) -> list[tuple[str, Any, str, str, str, str]]:
    """File, row, label, prediction, confidence and NLL."""
    return [
        (w.file or "", w.row, str(w.label), str(w.prediction), f"{w.confidence:.2%}", nats(0.0 - w.logprob))
        for w in score.worst
    ]


def nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def as_dict(score: Scored) -> dict:
    """For JSON. None is what there is nothing to divide by."""
    if len(score.parts) == 1:
        (part,) = score.parts
        named: dict[str, Any] = {"logits": part.logits, "labels": part.labels}
    else:
        named = {"parts": [{"logits": part.logits, "labels": part.labels} for part in score.parts]}
    done = {"rows": score.rows, "done": score.done, "complete": score.complete, "notes": score.notes}
    return named | done | score.total.result()
