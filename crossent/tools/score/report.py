"""The page: one file with its plots in it, which asks no other host for anything."""

import crossent
from crossent.tools.score import Score, plots, show


def page(score: Score, top: int) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Names of files are whatever somebody called them, so everything but the plots is escaped.
    environment = Environment(
        loader=PackageLoader("crossent.tools.score", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    metrics = score.metrics
    return environment.get_template("report.html").render(
        score=score,
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
