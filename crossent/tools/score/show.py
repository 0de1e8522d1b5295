"""A score as JSON and as tables."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from crossent.tools.explain.lines import finding_line
from crossent.tools.score import Scored
from crossent.tools.score.held import SKIPPED
from crossent.tools.score.intervals import Interval
from crossent.tools.score.metrics import BINS, NEAR
from crossent.tools.score.readers import printable
from crossent.tools.score.said import class_rows, coverage_rows
from crossent.tools.score.texts import UNITS

KNOWING = {"uniform": "knowing nothing", "label_entropy": "the labels' shares alone"}  # whoever looks at no row


def summary(score: Scored) -> list[tuple[str, str, str, str]]:
    """Name, value, interval and meaning of what is said of all rows together."""
    m = score.metrics

    def row(name: str, key: str, form: str, ends: str, meaning: str) -> tuple[str, str, str, str]:
        return name, f"{m.numbers[key]:{form}}", interval(m.intervals[key], ends), meaning

    before = m.baselines
    unlike = [f"worse than {what}" for name, what in KNOWING.items() if m.nll > before[name] * (1 + NEAR)]
    known = f"NLL of their shares; log C {before['uniform']:.4f}"
    top = [row(f"top-{k} accuracy", f"top{k}", ".2%", ".1%", f"the label is among the first {k}") for k in m.top_k]
    rows = [
        row("mean NLL", "nll", ".4f", ".3f", (*unlike, "nats; the loss of cross_entropy")[0]),
        ("labels' entropy", f"{before['label_entropy']:.4f}", "", known),
        row("perplexity", "perplexity", ".6g", ".4g", "exp of the mean NLL"),
        row("accuracy", "accuracy", ".2%", ".1%", "the largest logit is the label's"),
        *top,
        row("calibration error", "calibration_error", ".4f", ".3f", f"|accuracy - confidence|, {BINS} bins"),
        row("Brier score", "brier", ".4f", ".3f", "squared error of p, 0 to 2"),
    ]
    texts = score.texts
    for name, one in UNITS.items():
        if name in texts:
            meaning = f"exp of the NLL of {texts[name]:,} {name}"
            rows.append((f"perplexity by {one}", f"{texts[f'perplexity_by_{one}']:.6g}", "", meaning))
    if "bits_per_byte" in texts:
        rows.append(("bits per byte", f"{texts['bits_per_byte']:.4f}", "", "NLL / bytes / log 2"))
    if documents := texts.get("documents"):
        rows.append(("document NLL", f"{documents['nll']:.4f}", "", f"mean of {documents['count']:,} documents' means"))
    if m.impossible:
        rows.append(("impossible", f"{m.impossible:,}", "", "rows whose label has probability 0: the NLL is infinite"))
    return rows


def interval(ends: Interval, form: str) -> str:
    low, high = ends
    return "-" if math.isnan(low) else f"{low:{form}} to {high:{form}}"


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


class Shown(NamedTuple):
    """A table of texts. The names of columns of words end in a point, which is not shown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def print(self, console: Console, **options: Any) -> None:
        table = Table(title=self.title, title_justify="left", **options)
        widths = [max(map(len, cells)) + 3 for cells in zip(self.columns, *self.rows)]
        words = [name.endswith(".") for name in self.columns]
        # Words are folded before numbers are, where these have room.
        room = sum(10 if word else width for word, width in zip(words, widths)) < console.width
        for name, word in zip(self.columns, words):
            justify = "left" if word else "right"
            table.add_column(name.rstrip("."), justify=justify, overflow="fold", no_wrap=room and not word)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        if self.note:
            console.print(self.note)


def tables(console: Console, score: Scored, top: int) -> None:
    console.print(counted(score))
    if not score.metrics.rows:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column()
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column("95% interval", no_wrap=True)
    table.add_column(style="dim")
    for row in summary(score):
        table.add_row(*row)
    console.print(table)
    for shown in parts(score, top):
        console.print()
        shown.print(console)
    for finding in score.findings:
        console.print(finding_line(finding))


def parts(score: Scored, top: int) -> Iterator[Shown]:
    """The surest rows, the worst groups, classes, rows and documents."""
    m, names = score.metrics, score.total._held.options.names

    def called(c: int) -> str:
        return str(c) if names is None else printable(names[c])

    words = "" if names is None else "."
    rows = [(f"{share:.0%}", f"{least:.2%}", f"{accuracy:.2%}") for share, accuracy, least in coverage_rows(m)]
    yield Shown("Accuracy of the surest rows", ("coverage", "confidence from", "accuracy"), rows)
    if m.groups and top:
        columns = ("group.", "rows", "accuracy", "interval", "NLL", "interval", "confidence")
        rows = [
            (printable(g.name), f"{g.rows:,}", percent(g.accuracy), _narrow(g.accuracy_interval, ".1%"), nats(g.nll),
             _narrow(g.nll_interval, ".3f"), percent(g.confidence))
            for g in m.groups[:top]
        ]  # fmt: skip
        few = f"{top} of {len(m.groups):,} groups." if len(m.groups) > top else ""
        yield Shown("Groups, worst first, with intervals of 95%", columns, rows, few)
    if classes := class_rows(m, m.by_class.worst(top)):
        columns = (f"class{words}", "rows", "recall", "precision", "mean NLL", "taken for (rows).")
        short = f"Counts of what a class was taken for may be up to {m.confusion.short:,} too small."
        rows = [
            (called(c.label), f"{c.rows:,}", percent(c.recall), percent(c.precision), nats(c.nll),
             ", ".join(f"{called(label)} ({n:,})" for label, n in c.taken_for))
            for c in classes
        ]  # fmt: skip
        yield Shown("Classes with the most errors", columns, rows, short if m.confusion.short else "")
    file = ("file.",) if score.files > 1 else ()
    if score.worst:
        rows = [
            (*[w.file or ""][: len(file)], str(w.row), called(w.label), called(w.prediction), f"{w.confidence:.2%}",
             nats(0.0 - w.logprob))
            for w in score.worst
        ]  # fmt: skip
        columns = (*file, "row", f"label{words}", f"prediction{words}", "confidence", "NLL")
        yield Shown("Rows with the largest loss", columns, rows)
    if worst := score.texts.get("documents", {}).get("worst"):
        rows = [
            (*[one["file"] or ""][: len(file)], str(one["row"]), f"{one['rows']:,}", nats(one["nll"])) for one in worst
        ]
        yield Shown("Documents, worst first", (*file, "row", "tokens", "mean NLL"), rows)


def _narrow(ends: Interval, form: str) -> str:
    return interval(ends, form).replace("% to ", "–").replace(" to ", "–")


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
