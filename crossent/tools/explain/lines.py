"""An explanation in lines. Each is a list of pieces, a text and its style as rich writes it; the texts say it all."""

import math
from itertools import pairwise

from crossent.tools.explain import words
from crossent.tools.language import line_starts, padded, say, width as columns_of

_LINE, _CELL = 25, 8  # six classes then fit 80 columns
_WIDTH = 80  # of a text that goes nowhere in particular
_COLOURS = {"note": "cyan", "warning": "yellow", "error": "bold red"}


def show(explanation, console=None):
    """Print it: colours where the console has any, plain text elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console(highlight=False)
    for line in lines(explanation, console.width):
        whole = Text.assemble(*line)
        for part in whole.divide(line_starts(whole.plain, console.width)):
            part.rstrip()
            console.print(part)


def text(explanation):
    """The explanation as plain text."""
    found = []
    for line in ("".join(piece for piece, _ in pieces) for pieces in lines(explanation)):
        starts = [0, *line_starts(line, _WIDTH), len(line)]
        found += [line[start:end].rstrip() for start, end in pairwise(starts)]
    return "\n".join(found)


def lines(e, width=_WIDTH):
    yield [(words.headline(e), "bold")]
    for style, call in e.styles.items():
        yield [(padded(say(style), 8), "dim"), (f"  {call}", "cyan")]
    for index in range(len(e.rows)):
        yield []
        yield _title(e, index)
        yield from _table(e, index, width)
    yield []
    below = {words.reduction(e): "bold", words.baselines(e): ""}
    if e.summary["rows"] > len(e.rows) or e.reduction == "none":
        below[words.summary(e)] = ""
    yield from ([(line, style)] for line, style in below.items() if line)
    yield []
    verdicts = [(say("ok"), "green") if check.passed else (say("not_so"), "bold red") for check in e.checks]
    first, names = max(columns_of(word) for word, _ in verdicts), max(columns_of(check.name) for check in e.checks)
    for check, (word, style) in zip(e.checks, verdicts):
        told = f"  {padded(check.name, names)}  {say('digits', digits=f'{check.digits:g}')}"
        yield [(padded(word, first), style), (told, "")]
    yield []
    yield from ([(line, "dim")] for line in words.plan(e))
    for finding in e.findings:
        yield []
        yield of_finding(finding)


def finding_line(finding):
    """For a rich console, with an empty line above."""
    from rich.text import Text

    return Text.assemble("\n", *of_finding(finding))


def of_finding(finding):
    return [(say(finding.severity), _COLOURS[finding.severity]), (f"  {finding.sentence}", "")]


def _title(e, index):
    first, *more = words.title(e, index)
    pieces = [(first, "bold"), (f"   {'   '.join(more)}", "")]
    reason = e.rows[index].reason
    return [*pieces, (f"   ({reason})", "dim")] if reason else pieces


def _table(e, index, width):
    """The steps of a row, so many classes beside each other; what there is one number of stands below the first."""
    row = e.rows[index]
    headers = [f"y={name}" if row.picks(c) else name for c in row.classes for name in [words.class_head(c)]]
    headers += [say("others")] * (e.classes > len(row.classes))
    styles = ["bold green" if row.picks(c) else "" for c in row.classes] + ["dim"]
    room = max(1, (width - _LINE) // (_CELL + 1))
    columns = math.ceil(len(headers) / math.ceil(len(headers) / room))
    for lo in range(0, len(headers), columns):
        some = slice(lo, min(lo + columns, len(headers)))
        name, dim = f"  {say('class_head')}", [style or "dim" for style in styles[some]]
        yield _in_columns(name, headers[some], headers[some], "dim", dim)
        for step, formula, cells in words.steps(e, index):
            if any(cells[some]):
                if columns_of(formula) > _LINE - 3:
                    yield [(f"  {formula}", "cyan")]
                    formula = ""
                yield _in_columns(f"  {formula}", cells[some], headers[some], "cyan", styles[some])
            elif step is None and not lo:
                yield from _packed(formula, width)


def _packed(formulas, width):
    """As many in a line as there is room for."""
    line = f"  {formulas[0]}"
    for formula in formulas[1:]:
        if columns_of(line) + 3 + columns_of(formula) > width:
            yield [(line, "cyan")]
            line = f"  {formula}"
        else:
            line += f"   {formula}"
    yield [(line, "cyan")]


def _in_columns(name, cells, headers, style, styles):
    """The cells as wide as their columns' headers need; nothing for the empty ones at the end."""
    pieces = [(padded(name, _LINE), style)]
    for cell, header, style in zip(cells, headers, styles):
        pieces.append((" " * (1 + max(_CELL, columns_of(header)) - columns_of(cell)) + cell, style))
    while not pieces[-1][0].strip():
        pieces.pop()
    return pieces
