"""The steps from the logits to the reduced loss, as tables of the numbers that are shown."""

import numpy as np

from crossent.tools.explain.explanation import Step


def steps_of(case, rows, worked, losses, result):
    """All steps of a call whose `rows` are shown and were `worked` out; `losses` and `result` are the function's."""
    table = _Table(case, rows, worked)
    if case.picks:
        table.by_class("log-probabilities", "x", "x", "The input, taken as it is.")
    else:
        table.softmax()
    table.target()
    table.loss()
    return (*table.steps, *_reduction(case, losses, result))


def divisor(case):
    """What the mean divides by."""
    given = case.arguments["denominator"]
    return total(case.counts()) if given is None else float(given)


def total(array):
    """Its sum in float64, whatever is in it."""
    with np.errstate(all="ignore"):
        return float(array.sum(dtype=np.float64))


class _Table:
    def __init__(self, case, rows, worked):
        self.case, self.rows, self.worked, self.steps = case, rows, worked, []
        self.z = "x" if case.options.softcap is None else "z"

    def by_class(self, name, formula, attribute, note, sums=False, of_target=False):
        values, others = [], []
        for row, worked in zip(self.rows, self.worked):
            full = getattr(worked, attribute)
            there = [not of_target or worked.q[c] != 0.0 for c in row.classes]
            values.append(tuple(float(full[c]) if has else None for c, has in zip(row.classes, there)))
            hidden = np.delete(full, row.classes)
            others.append(total(hidden) if sums and len(hidden) else None)
        self.steps.append(Step(name, formula, "class", tuple(values), note, tuple(others), of_target))

    def by_row(self, name, formula, attribute, note):
        values = tuple(float(getattr(worked, attribute)) for worked in self.worked)
        self.steps.append(Step(name, formula, "row", values, note))

    def softmax(self):
        case, z, cap = self.case, self.z, self.case.options.softcap
        formula, note = "x", "Scores of any size; only their differences count."
        if case.head:
            formula = "x = input @ W.T" if case.arguments["linear_bias"] is None else "x = input @ W.T + b"
            note = "The layer's output, with W = linear_weight and b = linear_bias."
        self.by_class("logits", formula, "x", note)
        if cap is not None:
            note = f"The softcap bends them into the range from {-cap:g} to {cap:g}."
            self.by_class("capped logits", f"z = {cap:g} tanh(x / {cap:g})", "z", note)
        self.by_row("normaliser", f"lse = log sum exp({z})", "lse", "One number for each row.")
        note = "Probabilities: between 0 and 1, and each row sums to 1."
        self.by_class("softmax", f"p = exp({z}) / sum exp({z})", "p", note, sums=True)
        note = "The logarithm of the softmax, without the detour that loses digits."
        self.by_class("log-softmax", f"log p = {z} - lse", "log_p", note)

    def target(self):
        case, smoothing = self.case, self.case.options.label_smoothing
        weighted = case.weight is not None
        if not case.spread:
            log_p = "x[y]" if case.picks else "log p[y]"
            self.formula = f"-w[y] {log_p}" if weighted else f"-{log_p}"
            note = "The label y picks one entry of its row."
            self.by_class("picked entry", self.formula, "cost", note, of_target=True)
            if weighted:
                self.by_row("class weight", "w[y]", "mass", "The weight of the label's class.")
            return
        q = f"{1.0 - smoothing:g} t + {smoothing:g}/C" if smoothing else "t"
        q = q if not weighted else f"w ({q})" if smoothing else f"w {q}"
        self.by_class("target", f"q = {q}", "q", "What each class holds of the target.", sums=True, of_target=True)
        note = "What each class adds to the loss: nothing where it holds nothing of the target."
        self.by_class("cost", "-q log p", "cost", note, sums=True, of_target=True)
        self.formula = "sum(-q log p)"

    def loss(self):
        case, formula = self.case, self.formula
        if case.options.z_loss:
            term = f"{case.options.z_loss:g} lse^2"
            if case.weight is not None or case.soft:
                term = f"sum(q) {term}" if case.spread else f"w[y] {term}"
            self.by_row("z-loss", term, "z_term", "Keeps the normaliser near 1.")
            formula = f"{formula} + {term}"
        if case.samples is not None:
            self.by_row("sample weight", "s", "sample", "What the row counts for, 0 where it is ignored.")
            formula = f"s ({formula})"
        self.by_row("loss", f"loss = {formula}", "loss", "In nats; 0 where the row is ignored.")


def _reduction(case, losses, result):
    if case.options.reduction == "none":
        return ()
    summed = Step("sum", "sum of the losses", "call", total(losses), f"Of all {case.rows} rows.")
    if case.options.reduction == "sum":
        return (summed,)
    if case.arguments["denominator"] is not None:
        formula = "denominator"
    elif case.weight is None or case.soft:
        formula = "rows that count" if case.samples is None else "sum of s"
    else:
        formula = "sum of w[y]" if case.samples is None else "sum of s w[y]"
    by = Step("divisor", formula, "call", divisor(case), "What the mean divides by.")
    return summed, by, Step("mean", "sum / divisor", "call", result, "What the function returned.")
