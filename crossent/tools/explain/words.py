"""Rows, classes and numbers, as sentences and tables have them."""

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from crossent.tools.language import name_of, say, translated

_FIRST = 5
_HEAD = 12  # characters of a name above a column


def first(case, numbers):
    """The positions of the first of these rows."""
    return tuple(case.position(number) for number in few(numbers))


def few(numbers):
    return tuple(int(number) for number in numbers[:_FIRST])


def rows(case, numbers):
    """row 3; rows 3 and 7; rows 1, 2, 3, 4, 5 and 12 more"""
    return _listed("row", first(case, numbers), len(numbers))


def classes(numbers):
    return _listed("class", map(class_name, few(numbers)), len(numbers))


def class_name(c):
    """What a class is called in a sentence: its number, and its name where it has one."""
    name = name_of(c)
    return str(c) if name is None else f"{c} ({name})"


def class_head(c):
    """What it is called above a column: its name where it has one, of which some characters are left out."""
    name = name_of(c)
    if name is None:
        return str(c)
    return name if len(name) <= _HEAD else f"{name[: _HEAD - 1]}\N{HORIZONTAL ELLIPSIS}"


def in_first(numbers):
    """Where something was looked up in one row only."""
    return "" if len(numbers) == 1 else say("in_first")


def capital(text):
    return text[:1].upper() + text[1:]


def _listed(noun, some, count):
    *others, last = map(str, some)
    if count == 1:
        return say(f"{noun}.one", one=last)
    if count > _FIRST:
        return say(f"{noun}.more", some=say("comma").join([*others, last]), more=count - _FIRST)
    return say(f"{noun}.several", some=say("comma").join(others), last=last)


def _severity(name):
    def said(key="", rows=None, classes=(), /, **places):
        """What a finding of this severity says, by the message `key`: of these rows, which nothing is said of if there
        are none, and these classes, with what its places hold."""
        if rows is None or len(rows):
            return name, key, () if rows is None else rows, classes, places
        return None

    return said


note, warning, error = map(_severity, ("note", "warning", "error"))


def number(value):
    """In at most 8 characters; nothing for None."""
    if value is None:
        return ""
    size = abs(value)
    if not math.isfinite(value) or size == 0.0:
        return str(value) if size else "0"
    if not 1e-4 <= size < 9.9e6:
        return f"{value:.1e}"
    return f"{value:.{sum(size < limit for limit in (99.99, 999.9, 9999.9, 99999.9))}f}"


def plan(explanation):
    head, *reasons = str(explanation.plan).splitlines()
    return [translated(head), *(f"  {translated(reason.strip())}" for reason in reasons)]


def headline(explanation):
    """What was called, and what came of it."""
    e, counted = explanation, explanation.summary["counted"]
    rows = say("of_row" if counted == 1 else "of_rows", count=counted, classes=e.classes, dtype=e.dtype)
    key, told = "headline_none" if e.result is None else "headline", {"function": e.function, "rows": rows}
    return say(key, reduction=e.reduction, result=number(e.result), **told)


def reduction(explanation):
    """The reduction as one line with its numbers, None for "none"."""
    steps = {step.name: step for step in explanation.steps if step.level == "call"}
    if "mean" in steps:
        total, by, mean = (steps[name] for name in ("sum", "divisor", "mean"))
        return f"mean = {total.formula} / {by.formula} = {total.values:.6g} / {by.values:.6g} = {number(mean.values)}"
    return f"{steps['sum'].formula} = {steps['sum'].values:.6g}" if steps else None


def summary(explanation):
    """All losses in one sentence."""
    s = explanation.summary
    some = [say(f"are_{key}", count=s[key]) for key in ("ignored", "bad_labels", "not_finite") if s[key]]
    counts = {"counted": s["counted"], "rows": s["rows"], "some": say("comma").join(some)}
    sentence = say("count_some" if some else "count", **counts)
    if "mean" in s:
        sentence += say("losses", **{key: number(s[key]) for key in ("smallest", "median", "mean", "largest")})
    if "accuracy" in s:
        sentence += say("accuracy", share=f"{s['accuracy']:.1%}")
    return sentence + say("end")


def baselines(explanation):
    """What knowing nothing costs beside the loss; None where no row counts, or the loss is nan."""
    b = explanation.baselines
    if not b or math.isnan(b["mean"]):
        return None
    named = f"log {explanation.classes} = " if math.isclose(b["uniform"], math.log(explanation.classes)) else ""
    key = "baselines_worse" if b["worse_than_uniform"] else "baselines"
    return say(key, uniform=named + number(b["uniform"]), entropy=number(b["label_entropy"]), mean=number(b["mean"]))


def title(explanation, index):
    """The shown row number `index`, in a few words."""
    row = explanation.rows[index]
    label = [] if row.label is None else [say("label", label=class_name(row.label))]
    state = f"loss = {number(row.loss)}" if row.state == "counts" else say(f"state.{row.state.replace(' ', '_')}")
    return [say("row.one", one=row.position), *label, state]


def steps(explanation, index) -> Iterator[tuple[Any, Any, Any]]:
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
