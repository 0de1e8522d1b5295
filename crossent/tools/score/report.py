"""The page of score, compare and calibrate: one file with its plots in it, which asks no other host for anything."""

from collections.abc import Iterable
from typing import Any

import crossent
from crossent.tools.pages import rendered
from crossent.tools.score import Scored, plots, show
from crossent.tools.score.metrics import Metrics

RELIABILITY = "How often rows of a confidence are right, and their number."


def page(score: Scored, top: int) -> str:
    metrics = score.metrics
    (first, *others) = score.parts
    drawn = [
        ("Reliability", plots.reliability(metrics), RELIABILITY),
        ("Coverage", plots.coverage(metrics), "How often the rows are right in which the model is surest."),
        ("Losses", plots.losses(metrics), "Rows by the loss that they have."),
        ("Classes", plots.classes(metrics), "Of the rows with a label, how many are predicted so."),
    ]
    title = f"{first.logits} and {len(others):,} more parts" if others else first.logits
    said = [f"{'' if others else f'Labels: {first.labels}. '}{show.counted(score)}."]
    shown = {"summary": show.summary(score), "plots": drawn, "tables": show.parts(score, top)}
    return made("Score", title, said, score.notes, findings=score.findings, **shown)


def both(
    kind: str, title: str, said: list[str], notes: Iterable[str], metrics: dict[str, Metrics], **shown: Any
) -> str:
    """A page with two reliability diagrams."""
    drawn = [(f"Reliability: {name}", plots.reliability(one, name), RELIABILITY) for name, one in metrics.items()]
    return made(kind, title, said, notes, findings=(), plots=drawn, **shown)


def made(
    kind: str, title: str, said: list[str], notes: Iterable[str], texts: Iterable[tuple[str, str]] = (), **shown: Any
) -> str:
    """`texts` are titles and what is shown below them as it is."""
    values = {"kind": kind, "title": title, "said": said, "notes": notes, "texts": texts}
    return rendered("crossent.tools.score", "report.html", version=crossent.__version__, **values, **shown)
