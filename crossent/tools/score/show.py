"""What a command has found, for people and as JSON: numbers, tables and a page, of which each command makes its own."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.lines import finding_line
from crossent.tools.files import write
from crossent.tools.score import Scored
from crossent.tools.score.held import SKIPPED
from crossent.tools.score.intervals import Interval
from crossent.tools.score.metrics import BINS, NEAR, Calibration, Metrics
from crossent.tools.score.readers import printable
from crossent.tools.score.said import bins_of, classes_of, coverage_of, groups_of, result_of

KNOWING = {"uniform": "knowing nothing", "label_entropy": "the labels' shares alone"}  # whoever looks at no row
# Of each number its name, how it is written, and what it means, in the order in which they are shown.
METRICS = {
    "nll": ("mean NLL", ".4f", "nats; the loss of cross_entropy"),
    "perplexity": ("perplexity", ".6g", "exp of the mean NLL"),
    "accuracy": ("accuracy", ".2%", "the largest logit is the label's"),
    "top": ("top-{k} accuracy", ".2%", "the label is among the first {k}"),
    "calibration_error": ("calibration error", ".4f", f"|accuracy - confidence|, {BINS} bins"),
    "adaptive_calibration_error": ("the same, adaptive", ".4f", f"{BINS} bins with as many rows each"),
    "class_wise_calibration_error": ("the same, class-wise", ".4f", "the same for each class's probability"),
    "brier": ("Brier score", ".4f", "squared error of p, 0 to 2"),
    "coverage.area": ("coverage area", ".4f", "mean accuracy of the surest rows"),
    "perplexity_by_byte": ("perplexity by byte", ".6g", "exp of the NLL of {bytes:,} bytes"),
    "perplexity_by_word": ("perplexity by word", ".6g", "exp of the NLL of {words:,} words"),
    "bits_per_byte": ("bits per byte", ".4f", "NLL / bytes / log 2"),
    "documents.nll": ("document NLL", ".4f", "mean of {documents:,} documents' means"),
    "documents.perplexity": ("document perplexity", ".6g", "exp of the document NLL"),
}
# How ends of intervals are written, and differences.
_ENDS = {".4f": ".3f", ".6g": ".4g", ".2%": ".1%"}
_OFF = {".4f": "+.4f", ".6g": "+.4g", ".2%": "+.2%"}


class Metric(NamedTuple):
    name: str
    form: str
    meaning: str

    def number(self, value: float) -> str:
        return f"{value:{self.form}}"

    def ends(self, ends: Interval) -> str:
        return interval(ends, _ENDS[self.form])

    def difference(self, off: float, ends: Interval) -> tuple[str, str]:
        return f"{off:{_OFF[self.form]}}", interval(ends, _OFF[self.form])


def metrics_of(numbers: Iterable[str], m: Metrics) -> dict[str, Metric]:
    """Those of these names that are shown, in their order."""
    kinds = {name: name.rstrip("0123456789") for name in numbers}  # of top5 it is top
    found = {}
    for kind, (title, form, meaning) in METRICS.items():
        for name in (name for name in kinds if kinds[name] == kind):
            k = name.removeprefix("top")
            found[name] = Metric(title.format(k=k), form, meaning.format(k=k, documents=m.documents, **m.lengths))
    return found


def interval(ends: Interval, form: str) -> str:
    low, high = ends
    return "-" if math.isnan(low) else f"{low:{form}} to {high:{form}}"


class Shown(NamedTuple):
    """A table of texts. The names of columns of words end in a point, which is not shown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def print(self, console: Console) -> None:
        """Without a frame where it has no title, or there is no room for one; in sentences where there is none for the
        numbers, which are never folded."""
        texts = [[name.rstrip("."), *cells] for name, *cells in zip(self.columns, *self.rows)]
        widths = [max(map(len, cells)) for cells in texts]
        least = [max(len(word) for cell in cells for word in cell.split() or [""]) for cells in texts]
        framed = self.title and sum(least) + 3 * len(least) < console.width
        room = console.width - (3 * len(least) + 1 if framed else 2 * len(least) - 2)
        while sum(widths) > room and widths != least:  # the widest of those that can be folded, the last of equal ones
            _, i = max((width, i) for i, width in enumerate(widths) if width > least[i])
            widths[i] -= 1
        if sum(widths) > room:
            lines = [", ".join(f"{head} {cell}" for (head, *_), cell in zip(texts, row)) for row in self.rows]
            console.print("\n".join(filter(None, [self.title, *lines, self.note])))
            return
        plain: dict[str, Any] = {} if framed else {"box": None, "pad_edge": False, "header_style": "dim"}
        table = Table(title=self.title or None, title_justify="left", **plain)
        for name, (head, *_), width in zip(self.columns, texts, widths):
            table.add_column(head, justify="left" if name.endswith(".") else "right", overflow="fold", width=width)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        if self.note:
            console.print(self.note)


@dataclass(frozen=True)
class Page:
    """What people see: lines, numbers and what is said of them, tables, and on a page `cards` (name, value, interval,
    meaning) and `plots` (name, SVG, meaning)."""

    head: str
    numbers: Shown
    cards: Sequence[Sequence[str]]
    plots: Callable[[], Sequence[Sequence[str]]]
    tables: Sequence[Shown]
    said: str = ""
    findings: Sequence[Finding] = ()

    def print(self, console: Console) -> None:
        console.print(self.head)
        if self.numbers.rows:
            self.numbers.print(console)
        if self.said:
            console.print(self.said)
        for one in self.tables:
            console.print()
            one.print(console)
        for finding in self.findings:
            console.print(finding_line(finding))


@dataclass(frozen=True)
class Answer:
    """What a command has found: `found` makes JSON of it, and `show` a page. `saved` writes the files of options, and
    `unfinished` says that it was interrupted."""

    kind: str
    title: str
    found: Callable[[], dict[str, Any]]
    show: Callable[[], Page]
    notes: Iterable[str]
    saved: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    unfinished: str = ""

    @cached_property
    def page(self) -> Page:
        return self.show()

    def save(self, option: str, path: Path) -> None:
        """The file of an option. Of no rows there is no page."""
        if option in self.saved:
            self.saved[option](path)
        elif option == "--html" and self.page.numbers.rows:
            write(path, self.html())

    def html(self) -> str:
        from crossent.tools.score.report import made

        page = self.page
        said = [f"{page.head}.", *filter(None, [page.said])]
        shown = {"summary": page.cards, "plots": page.plots(), "tables": page.tables, "findings": page.findings}
        return made(self.kind, self.title, said, self.notes, **shown)


def of_score(score: Scored) -> Answer:
    first, others = score.parts[0], len(score.parts) - 1
    found = {"logits": first.logits, "labels": first.labels}
    if others:
        found = {"parts": [{"logits": part.logits, "labels": part.labels} for part in score.parts]}
    done = {"rows": score.rows, "done": score.done, "complete": score.complete, "notes": score.notes}
    until = f"Interrupted after {score.done:,} of {score.rows:,} rows, of which this is the score"
    return Answer(
        "Score", f"{first.logits} and {others:,} more parts" if others else first.logits,
        lambda: found | done | result_of(score.held, score.metrics), lambda: _page(score), score.notes,
        {"--partial": score.save}, "" if score.complete else until,
    )  # fmt: skip


def _page(score: Scored) -> Page:
    from crossent.tools.score import plots

    if not score.metrics.rows:
        return Page(counted(score), Shown("", (), ()), (), lambda: (), ())
    rows = summary(score)
    numbers = Shown("", (".", "", "95% interval", "."), rows)
    drawn = lambda: plots.of_score(score.metrics)  # noqa: E731
    return Page(counted(score), numbers, rows, drawn, parts(score), findings=score.findings)


def summary(score: Scored) -> list[tuple[str, str, str, str]]:
    """Name, value, interval and meaning of what is said of all rows together."""
    m, before = score.metrics, score.metrics.baselines
    unlike = [f"worse than {what}" for name, what in KNOWING.items() if m.nll > before[name] * (1 + NEAR)]
    found = [
        (one.name, one.number(m.numbers[name]), one.ends(m.intervals[name]), one.meaning)
        for name, one in metrics_of(m.numbers, m).items()
    ]
    name, value, ends, meaning = found[0]
    known = f"NLL of their shares; log C {before['uniform']:.4f}"
    entropy = "labels' entropy", f"{before['label_entropy']:.4f}", "", known
    found[:1] = [(name, value, ends, (*unlike, meaning)[0]), entropy]
    if m.impossible:
        found.append(("impossible", f"{m.impossible:,}", "", "rows whose label has probability 0: the NLL is infinite"))
    return found


def counted(score: Scored) -> str:
    """What the numbers are about."""
    said = of_rows(score)
    if len(score.parts) > 1:
        said += f", in {len(score.parts):,} parts"
    return said if score.complete else f"{said}: the first {score.done:,} of {score.rows:,} rows"


def of_rows(score: Scored) -> str:
    return f"{score.metrics.rows:,} rows of {score.metrics.classes:,} classes{left_out(score)}"


def left_out(score: Scored) -> str:
    """Rows that do not count."""
    said, skipped = f", {score.held.counts.ignored:,} ignored" if score.held.counts.ignored else "", score.held.skipped
    if skipped:
        said += f", {skipped.total():,} skipped ({', '.join(f'{n:,}: {SKIPPED[what]}' for what, n in skipped.items())})"
    return said


class Cells(Formatter):
    """Makes tables of what is in the JSON: columns are texts such as "{rows:,}", which each row fills in.

    Forms of this kind alone are "class", for what a class is called, and those after a dash, for both ends of an
    interval. None is a hyphen. With `files` a table of rows says in which file they are.
    """

    def __init__(self, names: Sequence[str] | None = None, files: bool = False):
        self.names, self.files = names, files

    def format_field(self, value: Any, form: str) -> str:
        if value is None:
            return "-"
        if form == "class":
            return printable(str(value if self.names is None else self.names[value]))
        if form.startswith("–"):
            low, high = (self.format_field(end, form[1:]) for end in value)
            return "-" if low == "-" else f"{low.removesuffix('%')}–{high}"
        return printable(f"{value:{form}}")

    def table(self, title: str, rows: Iterable[dict[str, Any]], columns: dict[str, str], note: str = "") -> Shown:
        columns = {"file.": "{file}"} | columns if self.files and "row" in columns else columns
        words = "" if self.names is None else "."
        heads = [head + words * text.endswith(":class}") for head, text in columns.items()]
        return Shown(title, heads, [[self.vformat(text, (), row) for text in columns.values()] for row in rows], note)


def parts(score: Scored) -> list[Shown]:
    """The surest rows, the worst groups, classes, rows and documents."""
    m, top = score.metrics, score.held.options.top
    cells = Cells(score.held.options.names, sum(part.files for part in score.parts) > 1)
    found = [cells.table("Accuracy of the surest rows, with intervals of 95%", coverage_of(m), {
        "coverage": "{coverage:.0%}", "confidence from": "{confidence:.2%}", "accuracy": "{accuracy:.2%}",
        "interval": "{intervals[accuracy]:–.1%}",
    })]  # fmt: skip
    if m.shown_calibration is m.by_octave:
        found.append(reliability(m.by_octave))
    groups = groups_of(m)
    found.append(cells.table("Groups, worst first, with intervals of 95%", groups[:top], {
        "group.": "{group}", "rows": "{rows:,}", "accuracy": "{accuracy:.1%}", "interval": "{intervals[accuracy]:–.1%}",
        "NLL": "{nll:.4f}", "its 95%": "{intervals[nll]:–.3f}", "confidence": "{confidence:.1%}",
    }, f"{top} of {len(groups):,} groups." if len(groups) > top else ""))  # fmt: skip
    classes = classes_of(m, m.by_class.worst(top), None)
    for one in classes:
        one["others"] = ", ".join(cells.format("{label:class} ({rows:,})", **other) for other in one["taken_for"])
    short = f"Counts of what a class was taken for may be up to {m.confusion.short:,} too small."
    found.append(cells.table("Classes with the most errors", classes, {
        "class": "{label:class}", "rows": "{rows:,}", "recall": "{recall:.1%}", "precision": "{precision:.1%}",
        "mean NLL": "{nll:.4f}", "taken for (rows).": "{others}",
    }, short if m.confusion.short else ""))  # fmt: skip
    worst = [row.as_dict() | {"nll": 0.0 - row.logprob} for row in score.worst]
    found.append(cells.table("Rows with the largest loss", worst, {
        "row": "{row}", "label": "{label:class}", "prediction": "{prediction:class}", "confidence": "{confidence:.2%}",
        "NLL": "{nll:.4f}",
    }))  # fmt: skip
    documents = [one.as_dict() for one in score.held.documents.rows]
    columns = {"row": "{row}", "tokens": "{rows:,}", "mean NLL": "{nll:.4f}"}
    found.append(cells.table("Documents, worst first", documents, columns))
    return [table for table in found if table.rows]


def reliability(bins: Calibration, title: str = "Rows by confidence") -> Shown:
    """Where most of the rows are in the first bin."""
    return Cells().table(title, filter(itemgetter("rows"), bins_of(bins)), {
        "above": "{above:.3%}", "to": "{to:.3%}", "rows": "{rows:,}", "accuracy": "{accuracy:.2%}",
        "confidence": "{confidence:.2%}",
    })  # fmt: skip
