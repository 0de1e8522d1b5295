"""An explanation in lines. Each is a list of pieces, a text and its style as rich writes it; the texts say it all."""

from textwrap import fill

from crossent.tools.explain import words

_LINE, _CELL = 25, 8  # six classes then fit 80 columns
_WIDTH = 80  # of a text that goes nowhere in particular
_COLOURS = {"note": "cyan", "warning": "yellow", "error": "bold red"}


def show(explanation, console=None):
    """Print it: colours where the console has any, plain text elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console(highlight=False)
    for line in lines(explanation):
        console.print(Text.assemble(*line))


def text(explanation):
    """The explanation as plain text."""
    return "\n".join(_filled("".join(piece for piece, _ in line)) for line in lines(explanation))


def _filled(line):
    return fill(line, _WIDTH, replace_whitespace=False, break_on_hyphens=False)


def lines(e):
    yield [(words.headline(e), "bold")]
    yield [("   ".join(words.formulas(e)), "cyan")]
    for index in range(len(e.rows)):
        yield []
        yield _title(e, index)
        yield from _table(e, index)
    yield []
    if (line := words.reduction(e)) is not None:
        yield [(line, "bold")]
    if e.summary["rows"] > len(e.rows) or e.reduction == "none":
        yield [(words.summary(e), "")]
    yield []
    yield from _checks(e)
    yield []
    for line in str(e.plan).splitlines():
        yield [(line, "dim")]
    for finding in e.findings:
        yield []
        yield of_finding(finding)


def finding_line(finding):
    """For a rich console, with an empty line above."""
    from rich.text import Text

    return Text.assemble("\n", *of_finding(finding))


def of_finding(finding):
    return [(finding.severity, _COLOURS[finding.severity]), (f"  {finding.sentence}", "")]


def _title(e, index):
    first, *more = words.title(e, index)
    pieces = [(first, "bold"), (f"   {'   '.join(more)}", "")]
    reason = e.rows[index].reason
    return [*pieces, (f"   ({reason})", "dim")] if reason else pieces


def _table(e, index):
    row = e.rows[index]
    hidden = e.classes - len(row.classes)
    headers = [f"y={c}" if row.picks(c) else str(c) for c in row.classes]
    styles = ["bold green" if row.picks(c) else "" for c in row.classes]
    if hidden:
        headers, styles = [*headers, "others"], [*styles, "dim"]
    yield _in_columns("  class", headers, headers, "dim", [style or "dim" for style in styles])
    for _, formula, cells in words.class_lines(e, index):
        shown = cells if hidden else cells[:-1]
        yield _in_columns(f"  {formula}", map(words.number, shown), headers, "cyan", styles)


def _in_columns(name, cells, headers, style, styles):
    """The cells as wide as their columns' headers need; nothing for the empty ones at the end."""
    pieces = [(f"{name:<{_LINE}}", style)]
    for cell, header, style in zip(cells, headers, styles):
        pieces.append((f" {cell:>{max(_CELL, len(header))}}", style))
    while not pieces[-1][0].strip():
        pieces.pop()
    return pieces


def _checks(e):
    width = max(len(check.name) for check in e.checks)
    verdicts = [("ok", "green") if check.passed else ("NOT SO", "bold red") for check in e.checks]
    first = max(len(word) for word, _ in verdicts)
    for check, (word, style) in zip(e.checks, verdicts):
        yield [(f"{word:<{first}}", style), (f"  {check.name:<{width}}  {check.digits:g} digits", "")]
