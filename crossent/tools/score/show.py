"""What a command has found, for people and as JSON: numbers, tables and a page, of which each command makes its own."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.lines import finding_line
from crossent.tools.files import write
from crossent.tools.score import Scored
from crossent.tools.score.coverage import SHARES
from crossent.tools.score.held import SKIPPED
from crossent.tools.score.intervals import OF_COVERAGE, Interval
from crossent.tools.score.metrics import BINS, NEAR, Calibration, Metrics
from crossent.tools.score.readers import printable
from crossent.tools.score.said import bins_of, classes_of, result_of

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
        """Without a frame where it has no title, or there is no room for one. Numbers are never folded."""
        texts = [[name.rstrip("."), *cells] for name, *cells in zip(self.columns, *self.rows)]
        widths = [max(map(len, cells)) for cells in texts]
        least = [max(len(word) for cell in cells for word in cell.split() or [""]) for cells in texts]
        framed = self.title and sum(least) + 3 * len(least) < console.width
        room = console.width - (3 * len(least) + 1 if framed else 2 * len(least) - 2)
        while sum(widths) > room and widths != least:  # the widest of those that can be folded, the last of equal ones
            _, i = max((width, i) for i, width in enumerate(widths) if width > least[i])
            widths[i] -= 1
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


class Classes:
    """What classes are called in tables: their names, where they have some; `column` makes the name of a column."""

    def __init__(self, names: Sequence[str] | None):
        self.names, self._point = names, "" if names is None else "."

    def __call__(self, label: int) -> str:
        return str(label) if self.names is None else printable(self.names[label])

    def column(self, name: str) -> str:
        return name + self._point


def parts(score: Scored) -> list[Shown]:
    """The surest rows, the worst groups, classes, rows and documents."""
    m, top, called = score.metrics, score.held.options.top, Classes(score.held.options.names)
    found = [surest(m)]
    if m.shown_calibration is m.by_octave:
        found.append(reliability(m.by_octave))
    if m.groups and top:
        columns = ("group.", "rows", "accuracy", "interval", "NLL", "interval", "confidence")
        rows = [
            (printable(g.name), f"{g.rows:,}", percent(g.accuracy), _narrow(g.accuracy_interval, ".1%"), nats(g.nll),
             _narrow(g.nll_interval, ".3f"), percent(g.confidence))
            for g in m.groups[:top]
        ]  # fmt: skip
        few = f"{top} of {len(m.groups):,} groups." if len(m.groups) > top else ""
        found.append(Shown("Groups, worst first, with intervals of 95%", columns, rows, few))
    if classes := classes_of(m, m.by_class.worst(top), None):
        columns = (called.column("class"), "rows", "recall", "precision", "mean NLL", "taken for (rows).")
        short = f"Counts of what a class was taken for may be up to {m.confusion.short:,} too small."
        rows = [
            (called(c["label"]), f"{c['rows']:,}", percent(c["recall"]), percent(c["precision"]), nats(c["nll"]),
             ", ".join(f"{called(other['label'])} ({other['rows']:,})" for other in c["taken_for"]))
            for c in classes
        ]  # fmt: skip
        found.append(Shown("Classes with the most errors", columns, rows, short if m.confusion.short else ""))
    files = sum(part.files for part in score.parts) > 1
    if score.worst:
        columns = "row", called.column("label"), called.column("prediction"), "confidence", "NLL"
        rows = [
            (w.file, str(w.row), called(w.label), called(w.prediction), f"{w.confidence:.2%}", nats(0.0 - w.logprob))
            for w in score.worst
        ]
        found.append(placed("Rows with the largest loss", columns, rows, files))
    if worst := score.held.documents.rows:
        rows = [(one.file, str(one.row), f"{one.rows:,}", nats(one.nll)) for one in worst]
        found.append(placed("Documents, worst first", ("row", "tokens", "mean NLL"), rows, files))
    return found


def placed(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | None]], files: bool) -> Shown:
    """Of rows, whose file comes first, and is shown where there are several `files`."""
    cells = [tuple(cell or "" for cell in row) for row in rows]
    return Shown(title, ("file.", *columns), cells) if files else Shown(title, columns, [row[1:] for row in cells])


def surest(m: Metrics) -> Shown:
    found, ends = m.coverage, [m.intervals[name] for name in OF_COVERAGE[1:]]
    columns = ("coverage", "confidence from", "accuracy", "interval")
    return Shown("Accuracy of the surest rows, with intervals of 95%", columns, [
        (f"{share:.0%}", f"{least:.2%}", f"{accuracy:.2%}", _narrow(both, ".1%"))
        for share, least, accuracy, both in zip(SHARES, found.confidence, found.accuracy, ends)
    ])  # fmt: skip


def reliability(bins: Calibration, title: str = "Rows by confidence") -> Shown:
    """Where most of the rows are in the first bin."""
    return Shown(title, ("above", "to", "rows", "accuracy", "confidence"), [
        (f"{one['above']:.3%}", f"{one['to']:.3%}", f"{one['rows']:,}", f"{one['accuracy']:.2%}",
         f"{one['confidence']:.2%}")
        for one in bins_of(bins) if one["rows"]
    ])  # fmt: skip


def _narrow(ends: Interval, form: str) -> str:
    return interval(ends, form).replace("% to ", "–").replace(" to ", "–")


def nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
