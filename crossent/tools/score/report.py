"""The page: one file with its plots in it, which asks no other host for anything."""

from typing import Any

import crossent
from crossent.tools.pages import rendered
from crossent.tools.score import Scored, plots, show

RELIABILITY = "How often rows of a confidence are right, and their number."


def page(score: Scored, top: int) -> str:
    metrics = score.metrics
    (first, *others) = score.parts
    return made(
        "report.html",
        "Score",
        title=f"{first.logits} and {len(others):,} more parts" if others else first.logits,
        notes=score.notes,
        score=score,
        counted=show.counted(score),
        summary=show.summary(score),
        plots=[
            ("Reliability", plots.reliability(metrics), RELIABILITY),
            ("Coverage", plots.coverage(metrics), "How often the rows are right in which the model is surest."),
            ("Losses", plots.losses(metrics), "Rows by the loss that they have."),
            ("Classes", plots.classes(metrics), "Of the rows with a label, how many are predicted so."),
        ],
        tables=show.parts(score, top),
    )


def made(template: str, kind: str, **values: Any) -> str:
    return rendered("crossent.tools.score", template, kind=kind, version=crossent.__version__, **values)
