"""The steps from the logits to the reduced loss and back to the gradient, as tables of the numbers that are shown."""

import numpy as np

from crossent.tools.explain.case import total
from crossent.tools.explain.explanation import Step
from crossent.tools.explain.language import say

# Where a class takes no part in a step: what of it has which value.
_ABSENT = {"digits": ("z", -np.inf), **dict.fromkeys(("picked entry", "target", "cost"), ("q", 0.0))}
_SUMMED = ("exponentials", "softmax", "target", "cost", "slope", "gradient")  # also over the classes that are not shown


def steps_of(case, rows, worked, losses, result, rate):
    """All steps of a call whose `rows` are shown and were `worked` out; `losses` and `result` are the function's."""
    table = _Table(case, rows, worked)
    if case.picks:
        table.by_class("log-probabilities", "x", "x")
    else:
        table.softmax()
    table.of_target = True
    table.target()
    table.loss()
    table.gradient(rate)
    return (*table.steps, *_reduction(case, losses, result))


class _Table:
    def __init__(self, case, rows, worked):
        self.case, self.rows, self.worked, self.steps, self.of_target = case, rows, worked, [], False
        self.z, cap, narrow = "x" if case.options.softcap is None else "z", case.options.softcap or 0.0, case.arithmetic
        limit = f"{np.log(np.finfo(narrow).max):.1f}"
        self.said = {"z": self.z, "cap": f"{cap:g}", "low": f"{-cap:g}", "dtype": narrow.__name__, "limit": limit}

    def by_class(self, name, formula, attribute, note=None):
        values, others = [], []
        absent, nothing = _ABSENT.get(name, ("x", None))
        for row, worked in zip(self.rows, self.worked):
            full, of = getattr(worked, attribute), getattr(worked, absent)
            values.append(tuple(None if of[c] == nothing else float(full[c]) for c in row.classes))
            hidden = np.delete(full, row.classes)
            others.append(total(hidden) if name in _SUMMED and len(hidden) else None)
        self._add(name, formula, "class", tuple(values), note or name, tuple(others))

    def by_row(self, name, formula, attribute):
        self._add(name, formula, "row", tuple(float(getattr(worked, attribute)) for worked in self.worked), name)

    def _add(self, name, formula, level, values, note, others=()):
        note = say(f"step.{note.replace(' ', '_').replace('-', '_')}", **self.said)
        self.steps.append(Step(name, formula, level, values, note, others, self.of_target))

    def softmax(self):
        case, z, cap = self.case, self.z, self.case.options.softcap
        if case.head:
            bias = "" if case.bias is None else " + b"
            self.by_class("logits", f"x = input @ W.T{bias}", "x", note="layer")
        else:
            self.by_class("logits", "x", "x")
        if cap is not None:
            self.by_class("capped logits", f"z = {cap:g} tanh(x / {cap:g})", "z")
        self.by_class("exponentials", f"e = exp({z} - max {z})", "e")
        self.by_class("digits", say("formula.digits", **self.said), "digits")
        self.by_row("unshifted sum", say("formula.unshifted", **self.said), "unshifted")
        self.by_row("sum of exponentials", "sum e", "total")
        self.by_row("normaliser", f"lse = max {z} + log sum e", "lse")
        self.by_class("softmax", "p = e / sum e", "p")
        self.by_class("log-softmax", f"log p = {z} - lse", "log_p")

    def target(self):
        case, smoothing = self.case, self.case.options.label_smoothing
        weighted = case.weight is not None
        if not case.spread:
            log_p = "x[y]" if case.picks else "log p[y]"
            self.formula = f"-w[y] {log_p}" if weighted else f"-{log_p}"
            self.by_class("picked entry", self.formula, "cost")
            if weighted:
                self.by_row("class weight", "w[y]", "mass")
            return
        q = f"{1.0 - smoothing:g} t + {smoothing:g}/C" if smoothing else "t"
        q = q if not weighted else f"w ({q})" if smoothing else f"w {q}"
        self.by_class("target", f"q = {q}", "q")
        self.by_class("cost", "-q log p", "cost")
        self.formula = "sum(-q log p)"

    def loss(self):
        case, formula = self.case, self.formula
        if case.options.z_loss:
            term = f"{self.mass()}{case.options.z_loss:g} lse^2"
            self.by_row("z-loss", term, "z_term")
            formula = f"{formula} + {term}"
        if case.samples is not None:
            self.by_row("sample weight", "s", "sample")
            formula = f"s ({formula})"
        self.by_row("loss", f"loss = {formula}", "loss")

    def mass(self):
        """What the target holds in all, as a factor."""
        case = self.case
        if case.spread:
            return "sum(q) " if case.weight is not None or case.soft else ""
        return "w[y] " if case.weight is not None else ""

    def gradient(self, rate):
        case, options, q = self.case, self.case.options, "q" if self.case.spread else "[c = y]"
        if case.picks:
            d = f"-{self.mass()}{q}"
        else:
            p = f"(1 + {2.0 * options.z_loss:g} lse) p" if options.z_loss else "p"
            d = f"{self.mass()}{p} - q" if case.spread else f"{p} - {q}"
            d = f"{self.mass()}({d})" if self.mass() and not case.spread else d
        factors = ["s d" if case.samples is not None else "d"]
        if options.softcap is not None:
            factors.append(f"(1 - (z/{options.softcap:g})^2)")
        if options.reduction == "mean":
            factors.append(f"/ {case.divisor:.6g}")
        if factors == ["d"]:
            self.by_class("gradient", f"g = {d}", "g")
        else:
            self.by_class("slope", f"d = {d}", "d", note="slope_nll" if case.picks else "slope")
            self.by_class("gradient", f"g = {' '.join(factors)}", "g", note="gradient_times")
        step = f"{rate:g} g".removeprefix("1 ")
        self.by_row("loss after a step", say("formula.after", step=step), "after")


def _reduction(case, losses, result):
    if case.options.reduction == "none":
        return ()
    summed = Step("sum", say("formula.sum"), "call", total(losses), say("step.sum", rows=case.rows))
    if case.options.reduction == "sum":
        return (summed,)
    if case.arguments["denominator"] is not None:
        formula = "denominator"
    elif case.weight is None or case.soft:
        formula = say("formula.rows" if case.samples is None else "formula.samples")
    else:
        formula = say("formula.weights" if case.samples is None else "formula.weighted_samples")
    by = Step("divisor", formula, "call", case.divisor, say("step.divisor"))
    return summed, by, Step("mean", say("formula.mean"), "call", result, say("step.mean"))
