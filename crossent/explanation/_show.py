"""An explanation in the terminal: colours where there are any, plain text elsewhere."""

import io

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crossent.explanation import _words

_LINE, _CELL = 25, 8  # six classes then fit 80 columns
_WIDTH = 80  # of a text that goes nowhere in particular
_COLOURS = {"note": "cyan", "warning": "yellow", "error": "bold red"}


def text(explanation):
    """The explanation as plain text."""
    file = io.StringIO()
    show(explanation, Console(file=file, width=_WIDTH, color_system=None, highlight=False))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def show(explanation, console=None):
    e, console = explanation, console or Console(highlight=False)
    console.print(Text(_words.headline(e), style="bold"))
    console.print(Text("   ".join(_words.formulas(e)), style="cyan"))
    for index in range(len(e.rows)):
        console.print()
        console.print(_title(e, index))
        console.print(_table(e, index))
    console.print()
    if (line := _words.reduction(e)) is not None:
        console.print(Text(line, style="bold"))
    if e.summary["rows"] > len(e.rows) or e.reduction == "none":
        console.print(Text(_words.summary(e)))
    _show_checks(e, console)
    console.print(Text(f"\n{e.plan}", style="dim"))
    for finding in e.findings:
        console.print(finding_line(finding))


def finding_line(finding):
    return Text.assemble("\n", (finding.severity, _COLOURS[finding.severity]), "  ", finding.sentence)


def _title(e, index):
    first, *more = _words.title(e, index)
    made = Text.assemble((first, "bold"), "   ", "   ".join(more))
    reason = e.rows[index].reason
    return made.append(f"   ({reason})", "dim") if reason else made


def _table(e, index):
    row = e.rows[index]
    hidden = e.classes - len(row.classes)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("  class", width=_LINE)
    for c in row.classes:
        picked = row.state == "counts" and c == row.label
        header = f"y={c}" if picked else str(c)
        table.add_column(header, justify="right", width=max(_CELL, len(header)), style="bold green" if picked else "")
    if hidden:
        table.add_column("others", justify="right", width=_CELL, style="dim")
    for _, formula, cells in _words.class_lines(e, index):
        shown = cells if hidden else cells[:-1]
        table.add_row(Text(f"  {formula}", style="cyan"), *(_words.number(cell) for cell in shown))
    return table


def _show_checks(e, console):
    table = Table.grid(padding=(0, 2))
    for check in e.checks:
        word = Text("ok" if check.passed else "NOT SO", style="green" if check.passed else "bold red")
        table.add_row(word, check.name, f"{check.digits:g} digits")
    console.print(Padding(table, (1, 0, 0, 0)))
