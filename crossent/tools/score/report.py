"""The page: one file with its plots in it, which asks no other host for anything."""

import crossent
from crossent.tools.pages import rendered
from crossent.tools.score import Scored, plots, show


def page(score: Scored, top: int) -> str:
    metrics = score.metrics
    return rendered(
        "crossent.tools.score",
        "report.html",
        score=score,
        title=_title(score),
        counted=show.counted(score),
        summary=show.summary(score),
        plots={
            "Reliability": (
                plots.reliability(metrics),
                "How often rows of a confidence are right.",
            ),
            "Losses": (plots.losses(metrics), "Rows by the loss that they have."),
            "Classes": (plots.classes(metrics), "Of the rows with a label, how many are predicted so."),
        },
        classes=show.class_rows(metrics, metrics.by_class.worst(top)),
        short=metrics.confusion.short,
        rows=show.worst_rows(score),
        version=crossent.__version__,
        nats=show.nats,
        percent=show.percent,
    )


def _title(score: Scored) -> str:
    (first, *others) = score.parts
    return f"{first.logits} and {len(others):,} more parts" if others else first.logits
