"""Rows, classes and numbers, as sentences and tables have them."""

import math
from itertools import groupby

_FIRST = 5


def first(case, numbers):
    """The positions of the first of these rows."""
    return tuple(case.position(int(number)) for number in numbers[:_FIRST])


def rows(case, numbers):
    return _listed("row", "rows", [case.position(int(number)) for number in numbers[:_FIRST]], len(numbers))


def classes(numbers):
    return _listed("class", "classes", few(numbers), len(numbers))


def few(numbers):
    """The first of these classes."""
    return tuple(int(number) for number in numbers[:_FIRST])


def in_first(numbers):
    """Where something was looked up in one row only."""
    return "" if len(numbers) == 1 else " in the first of them"


def _listed(noun, plural, some, count):
    """row 3; rows 3 and 7; rows 1, 2, 3, 4, 5 and 12 more"""
    if count == 1:
        return f"{noun} {some[0]}"
    *most, last = [str(item) for item in some]
    if count > len(some):
        return f"{plural} {', '.join([*most, last])} and {count - len(some)} more"
    return f"{plural} {', '.join(most)} and {last}"


def number(value):
    """In at most 8 characters; nothing for None."""
    if value is None:
        return ""
    size = abs(value)
    if not math.isfinite(value) or size == 0.0:
        return f"{value:g}".removeprefix("-") if size == 0.0 else str(value)
    if not 1e-4 <= size < 1e4:
        return f"{value:.1e}"
    return f"{value:.{4 if size < 99.99 else 3 if size < 999.9 else 2}f}"


def headline(explanation):
    """What was called, and what came of it."""
    e, counted = explanation, explanation.summary["counted"]
    rows = f"{counted} row{'s' * (counted != 1)} of {e.classes} classes, {e.dtype}"
    if e.result is None:
        return f"{e.function}: {rows}"
    return f"{e.function}: {e.reduction} {number(e.result)} over {rows}"


def reduction(explanation):
    """The reduction as one line with its numbers, None for "none"."""
    steps = {step.name: step for step in explanation.steps if step.level == "call"}
    if "mean" in steps:
        by, total = steps["divisor"], steps["sum"].values
        numbers = f"{total:.6g} / {by.values:.6g} = {number(steps['mean'].values)}"
        return f"mean = sum of the losses / {by.formula} = {numbers}"
    return f"sum of the losses = {steps['sum'].values:.6g}" if steps else None


def summary(explanation):
    """All losses in one sentence."""
    s = explanation.summary
    others = {"ignored": "ignored", "bad_labels": "with bad labels", "not_finite": "with a loss that is not finite"}
    some = [f"{s[key]} {word}" for key, word in others.items() if s[key]]
    sentence = f"{s['counted']} of {s['rows']} rows count" + (f" ({', '.join(some)})" if some else "")
    if "mean" in s:
        losses = [f"{key} {number(s[key])}" for key in ("smallest", "median", "mean", "largest")]
        sentence += f"; losses: {', '.join(losses)}"
    if "accuracy" in s:
        sentence += f"; the label has the largest logit in {s['accuracy']:.1%}"
    return f"{sentence}."


def baselines(explanation):
    """What knowing nothing costs beside the loss; None where no row counts."""
    b = explanation.baselines
    if not b:
        return None
    named = f"log {explanation.classes} = " if math.isclose(b["uniform"], math.log(explanation.classes)) else ""
    sentence = f"Knowing nothing costs {named}{number(b['uniform'])} a row, knowing how often each class occurs "
    sentence += f"{number(b['label_entropy'])}; these rows cost {number(b['mean'])}"
    return f"{sentence}: worse than knowing nothing." if b["worse_than_uniform"] else f"{sentence}."


def title(explanation, index):
    """The shown row number `index`, in a few words."""
    row = explanation.rows[index]
    parts = [f"row {row.position}"]
    if row.label is not None:
        parts.append(f"label y = {row.label}")
    return [*parts, f"loss = {number(row.loss)}" if row.state == "counts" else row.state]


def steps(explanation, index):
    """The lines of a row's table: step, formula, and a cell for each class and one for the others.

    What a row has one number of stands between: these have no step and no cells, and formulas with the numbers.
    """
    loss = next(step for step in explanation.steps if step.name == "loss")
    shown = [step for step in explanation.steps if step.level != "call" and _tells(explanation, step, index)]
    if picked := [step for step in shown if loss.formula == f"loss = {step.formula}"]:
        shown.remove(loss)
    for level, some in groupby(shown, key=lambda step: step.level):
        if level == "row":
            yield None, [f"{step.formula} = {number(step.values[index])}" for step in some], ()
            continue
        for step in some:
            cells = [_cell(step, value) for value in (*step.values[index], step.others[index])]
            yield step, loss.formula if step in picked else step.formula, cells


def _cell(step, value):
    return f"{value:g}" if step.name == "digits" and value is not None else number(value)


def _tells(explanation, step, index):
    """Whether a step says something of a row: those of the target where it counts, those of floats where digits die."""
    if step.of_target and explanation.rows[index].state != "counts":
        return False
    if step.name == "digits":
        return any(value is not None and value < 1.0 for value in step.values[index])
    return step.name != "unshifted sum" or step.values[index] in (0.0, math.inf)
