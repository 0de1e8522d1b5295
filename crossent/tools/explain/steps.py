"""The steps from the logits to the reduced loss, as tables of the numbers that are shown."""

import numpy as np

from crossent.tools.explain.case import total
from crossent.tools.explain.explanation import Step


def steps_of(case, rows, worked, losses, result, rate):
    """All steps of a call whose `rows` are shown and were `worked` out; `losses` and `result` are the function's."""
    table = _Table(case, rows, worked)
    if case.picks:
        table.by_class("log-probabilities", "x", "x", "The input, taken as it is.")
    else:
        table.softmax()
    table.target()
    table.loss()
    table.gradient(rate)
    return (*table.steps, *_reduction(case, losses, result))


def _in_target(worked):
    return worked.q != 0.0


def _not_masked(worked):
    return worked.z > -np.inf


class _Table:
    def __init__(self, case, rows, worked):
        self.case, self.rows, self.worked, self.steps = case, rows, worked, []
        self.z = "x" if case.options.softcap is None else "z"

    def by_class(self, name, formula, attribute, note, sums=False, of_target=False, among=None):
        """`among` says of the classes of a row that was worked out which of them take part."""
        values, others = [], []
        for row, worked in zip(self.rows, self.worked):
            full = getattr(worked, attribute)
            values.append(tuple(float(full[c]) if among is None or among(worked)[c] else None for c in row.classes))
            hidden = np.delete(full, row.classes)
            others.append(total(hidden) if sums and len(hidden) else None)
        self.steps.append(Step(name, formula, "class", tuple(values), note, tuple(others), of_target))

    def by_row(self, name, formula, attribute, note, of_target=True):
        values = tuple(float(getattr(worked, attribute)) for worked in self.worked)
        self.steps.append(Step(name, formula, "row", values, note, of_target=of_target))

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
        note = f"Shifted by the largest, so that nothing is above 1: the differences of {z} stay what they are."
        self.by_class("exponentials", f"e = exp({z} - max {z})", "e", note, sums=True)
        narrow = case.arithmetic.__name__
        note = "Decimal digits that are left of e when it is added to the sum; 0 where it is below half a unit in the "
        self.by_class(
            "digits", f"digits kept in {narrow}", "digits", f"{note}last place of the sum.", among=_not_masked
        )
        note = f"Without the shift, in {narrow}: exp ends at {np.log(np.finfo(narrow).max):.1f}."
        self.by_row("unshifted sum", f"sum exp({z}) in {narrow}", "unshifted", note, of_target=False)
        self.by_row("sum of exponentials", "sum e", "total", "At least 1, by the largest.", of_target=False)
        note = f"One number for each row, the same as log sum exp({z})."
        self.by_row("normaliser", f"lse = max {z} + log sum e", "lse", note, of_target=False)
        self.by_class("softmax", "p = e / sum e", "p", "Probabilities: between 0 and 1, each row sums to 1.", sums=True)
        note = "The logarithm of the softmax, without the detour that loses digits."
        self.by_class("log-softmax", f"log p = {z} - lse", "log_p", note)

    def target(self):
        case, smoothing = self.case, self.case.options.label_smoothing
        weighted = case.weight is not None
        if not case.spread:
            log_p = "x[y]" if case.picks else "log p[y]"
            self.formula = f"-w[y] {log_p}" if weighted else f"-{log_p}"
            note = "The label y picks one entry of its row."
            self.by_class("picked entry", self.formula, "cost", note, of_target=True, among=_in_target)
            if weighted:
                self.by_row("class weight", "w[y]", "mass", "The weight of the label's class.")
            return
        q = f"{1.0 - smoothing:g} t + {smoothing:g}/C" if smoothing else "t"
        q = q if not weighted else f"w ({q})" if smoothing else f"w {q}"
        self.by_class(
            "target",
            f"q = {q}",
            "q",
            "What each class holds of the target.",
            sums=True,
            of_target=True,
            among=_in_target,
        )
        note = "What each class adds to the loss: nothing where it holds nothing of the target."
        self.by_class("cost", "-q log p", "cost", note, sums=True, of_target=True, among=_in_target)
        self.formula = "sum(-q log p)"

    def loss(self):
        case, formula = self.case, self.formula
        if case.options.z_loss:
            term = f"{self.mass()}{case.options.z_loss:g} lse^2"
            self.by_row("z-loss", term, "z_term", "Keeps the normaliser near 1.")
            formula = f"{formula} + {term}"
        if case.samples is not None:
            self.by_row("sample weight", "s", "sample", "What the row counts for, 0 where it is ignored.")
            formula = f"s ({formula})"
        self.by_row("loss", f"loss = {formula}", "loss", "In nats; 0 where the row is ignored.")

    def mass(self):
        """What the target holds in all, as a factor."""
        case = self.case
        if case.spread:
            return "sum(q) " if case.weight is not None or case.soft else ""
        return "w[y] " if case.weight is not None else ""

    def gradient(self, rate):
        case, options, q = self.case, self.case.options, "q" if self.case.spread else "[c = y]"
        if case.picks:
            d, note = f"-{self.mass()}{q}", "The slope of the loss: only the label's entry counts."
        else:
            p = f"(1 + {2.0 * options.z_loss:g} lse) p" if options.z_loss else "p"
            d = f"{self.mass()}{p} - q" if case.spread else f"{p} - {q}"
            d = f"{self.mass()}({d})" if self.mass() and not case.spread else d
            note = "The slope of the loss: what the model says less what it should say."
        factors = ["s d" if case.samples is not None else "d"]
        if options.softcap is not None:
            factors.append(f"(1 - (z/{options.softcap:g})^2)")
        if options.reduction == "mean":
            factors.append(f"/ {case.divisor:.6g}")
        if factors != ["d"]:
            self.by_class("slope", f"d = {d}", "d", note, sums=True, of_target=True)
            d, note = " ".join(factors), "The same times what weights and the reduction give it"
        note += "; what x gets in the backward pass. Rows that are ignored get 0."
        self.by_class("gradient", f"g = {d}", "g", note, sums=True, of_target=True)
        step = f"{rate:g} g".removeprefix("1 ")
        note = "What one step of gradient descent on the logits makes of the loss."
        self.by_row("loss after a step", f"one step, x - {step}: loss", "after", note)


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
    by = Step("divisor", formula, "call", case.divisor, "What the mean divides by.")
    return summed, by, Step("mean", "sum / divisor", "call", result, "What the function returned.")
