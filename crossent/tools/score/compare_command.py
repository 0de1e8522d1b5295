"""The command `crossent compare`: tables, JSON and a page of two models on the same rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from crossent.tools import plain_json
from crossent.tools.files import check_file, write
from crossent.tools.score.compare import Changed, Compared, compared
from crossent.tools.score.readers import paths_of
from crossent.tools.score.show import Shown, interval, nats, percent
from crossent.tools.score.worst import shown

_NAMES = {
    "nll": "mean NLL", "accuracy": "accuracy", "brier": "Brier score", "calibration_error": "calibration error",
}  # fmt: skip


def headline(found: Compared) -> str:
    m, (a, b) = found.a.metrics, (one.parts[0].logits for one in (found.a, found.b))
    ignored = f", {m.ignored:,} ignored" if m.ignored else ""
    return f"{m.rows:,} rows of {m.classes:,} classes{ignored}; A is {a}, B is {b}"


def test(found: Compared) -> str:
    """McNemar's in a sentence."""
    n = found.agreement
    if not n["a_alone"] + n["b_alone"]:
        return "Both models get the same rows right."
    chance = f"that may be chance (p = {n['p']:.2g})" if n["p"] > 0.05 else f"that is hardly chance (p = {n['p']:.2g})"
    return (
        f"Both get {n['both']:,} rows right, A alone {n['a_alone']:,}, B alone {n['b_alone']:,}, neither "
        f"{n['neither']:,}: {chance}, McNemar's exact test."
    )


def metrics(found: Compared) -> Shown:
    columns = "metric.", "A", "B", "B - A", "95% interval", "verdict."
    return Shown("", columns, [
        (_NAMES[name], _form(name, one.a), _form(name, one.b), _form(name, one.difference, "+"),
         interval((one.low, one.high), "+.2%" if name == "accuracy" else "+.4f"), one.verdict(name))
        for name, one in found.differences.items() if name in _NAMES
    ])  # fmt: skip


def _form(name: str, value: float, sign: str = "") -> str:
    return f"{value:{sign}.2%}" if name == "accuracy" else f"{value:{sign}.4f}"


def tables(found: Compared, top: int) -> Iterator[Shown]:
    """Classes that got worse, and rows that changed sides."""
    if found.classes and top:
        columns = "class", "rows", "recall A", "recall B", "A alone", "B alone", "p", "adjusted p"
        rows = [
            (str(c.label), f"{c.rows:,}", percent(c.recall_a), percent(c.recall_b), f"{c.a_alone:,}", f"{c.b_alone:,}",
             f"{c.p:.2g}", f"{c.adjusted:.2g}")
            for c in found.classes[:top]
        ]  # fmt: skip
        note = (
            f"Of {found.tested:,} classes some get worse by chance. The adjusted p (Benjamini-Hochberg) allows for "
            "that: of the classes with 0.05 or less, at most one in twenty is expected to be chance."
        )
        yield Shown("Classes that got worse", columns, rows, note)
    for title, changed in (("A right, B wrong", found.sides.lost), ("A wrong, B right", found.sides.won)):
        if changed:
            columns = "row", "label", "A predicts", "B predicts", "NLL of A", "NLL of B"
            files = len({row.file for row in changed}) > 1
            columns = ("file.", *columns) if files else columns
            yield Shown(f"Rows that changed sides: {title}", columns, [_row(row, files) for row in changed])


def _row(row: Changed, files: bool) -> tuple[str, ...]:
    numbers = (str(n) for n in (shown(row.index), row.label, *row.predictions))
    return (*([row.file] if files else []), *numbers, *map(nats, row.losses))


def run(a: str, b: str, labels: str, *, as_json: bool, html: Path | None, top: int, **options: Any) -> int:
    """Everything but the parsing of the command line. Raises ValueError for what cannot be compared."""
    check_file(html, "--html", [path for name in (a, b, labels) for path in paths_of(name)])
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    told: list[str] = []

    def note(said: str) -> None:
        if said not in told:  # of the labels, which both are read with
            errors.print(f"crossent compare: {said}")
        told.append(said)

    found = compared(a, b, labels, top=top, note=note, **options)
    if html is not None:
        from crossent.tools.score.report import both

        summary = [
            (name, difference, interval, f"A {one}, B {other}: {verdict}")
            for name, one, other, difference, interval, verdict in metrics(found).rows
        ]
        said, models = [f"{headline(found)}.", test(found)], {"A": found.a.metrics, "B": found.b.metrics}
        shown = {"summary": summary, "tables": tables(found, top)}
        write(html, both("Comparison", f"{a} and {b}", said, dict.fromkeys(told), models, **shown))
    if as_json:
        print(plain_json.text(found.as_dict(), indent=1))
        return 0
    console = Console(highlight=False, markup=False)
    console.print(headline(found))
    metrics(found).print(console, box=None, pad_edge=False)
    console.print(test(found))
    for one in tables(found, top):
        console.print()
        one.print(console)
    return 0
