"""The steps from the logits to the reduced loss and back to the gradient, as tables of the numbers that are shown."""

import numpy as np

from crossent.tools.explain.case import total
from crossent.tools.explain.explanation import Step
from crossent.tools.language import say

_BY_ROW = ("unshifted", "total", "lse", "mass", "z_term", "sample", "loss", "after")  # of a row there is one number
# Where a class takes no part in a step: what of it has which value.
_ABSENT = {"digits": ("z", -np.inf), **dict.fromkeys(("picked entry", "target", "cost"), ("q", 0.0))}
_SUMMED = ("exponentials", "softmax", "target", "cost", "slope", "gradient")  # also over the classes that are not shown


def steps_of(case, worked, rate):
    """All steps of a call whose rows that are shown were `worked` out."""
    cap, narrow = case.options.softcap or 0.0, case.arithmetic
    said = {"z": "x" if case.options.softcap is None else "z", "cap": f"{cap:g}", "low": f"{-cap:g}"}
    said |= {"dtype": narrow.__name__, "limit": f"{np.log(np.finfo(narrow).max):.1f}"}
    forth = [_step(worked, said, False, *step) for step in _to_softmax(case, said)]
    back = [_step(worked, said, True, *step) for step in (*_to_loss(case), *_to_gradient(case, rate))]
    return (*forth, *back, *_reduction(case))


def _step(worked, said, of_target, name, formula, attribute, note=None):
    """`attribute` is what a row that was worked out has of it, `note` the message where it is not the step's own."""
    note = say(f"step.{(note or name).replace(' ', '_').replace('-', '_')}", **said)
    if attribute in _BY_ROW:
        values = tuple(float(getattr(w, attribute)) for w in worked)
        return Step(name, formula, "row", values, note, (), of_target)
    values, others, (absent, nothing) = [], [], _ABSENT.get(name, ("x", None))
    for w in worked:
        full, of = getattr(w, attribute), getattr(w, absent)
        values.append(tuple(None if of[c] == nothing else float(full[c]) for c in w.shown.classes))
        hidden = np.delete(full, w.shown.classes)
        others.append(total(hidden) if name in _SUMMED and len(hidden) else None)
    return Step(name, formula, "class", tuple(values), note, tuple(others), of_target)


def _to_softmax(case, said):
    """Each step's name, formula and attribute, and its message where that is another."""
    z, cap = said["z"], said["cap"]
    if case.picks:
        yield "log-probabilities", "x", "x"
        return
    if case.head:
        yield "logits", "x = input @ W.T" + (" + b" if case.bias is not None else ""), "x", "layer"
    else:
        yield "logits", "x", "x"
    if z == "z":
        yield "capped logits", f"z = {cap} tanh(x / {cap})", "z"
    yield "exponentials", f"e = exp({z} - max {z})", "e"
    yield "digits", say("formula.digits", **said), "digits"
    yield "unshifted sum", say("formula.unshifted", **said), "unshifted"
    yield "sum of exponentials", "sum e", "total"
    yield "normaliser", f"lse = max {z} + log sum e", "lse"
    yield "softmax", "p = e / sum e", "p"
    yield "log-softmax", f"log p = {z} - lse", "log_p"


def _to_loss(case):
    smoothing, z_loss, weighted = case.options.label_smoothing, case.options.z_loss, case.weight is not None
    if case.spread:
        q = f"{1.0 - smoothing:g} t + {smoothing:g}/C" if smoothing else "t"
        q = q if not weighted else f"w ({q})" if smoothing else f"w {q}"
        yield "target", f"q = {q}", "q"
        yield "cost", "-q log p", "cost"
        formula = "sum(-q log p)"
    else:
        log_p = "x[y]" if case.picks else "log p[y]"
        formula = f"-w[y] {log_p}" if weighted else f"-{log_p}"
        yield "picked entry", formula, "cost"
        if weighted:
            yield "class weight", "w[y]", "mass"
    if z_loss:
        term = f"{_mass(case)}{z_loss:g} lse^2"
        yield "z-loss", term, "z_term"
        formula = f"{formula} + {term}"
    if case.samples is not None:
        yield "sample weight", "s", "sample"
        formula = f"s ({formula})"
    yield "loss", f"loss = {formula}", "loss"


def _mass(case):
    """What the target holds in all, as a factor."""
    if case.spread:
        return "sum(q) " if case.weight is not None or case.soft else ""
    return "w[y] " if case.weight is not None else ""


def _to_gradient(case, rate):
    options, mass, q = case.options, _mass(case), "q" if case.spread else "[c = y]"
    p = f"(1 + {2.0 * options.z_loss:g} lse) p" if options.z_loss else "p"
    if case.picks:
        d = f"-{mass}{q}"
    elif case.spread or not mass:
        d = f"{mass}{p} - {q}"
    else:
        d = f"{mass}({p} - {q})"
    factors = ["s d" if case.samples is not None else "d"]
    if options.softcap is not None:
        factors.append(f"(1 - (z/{options.softcap:g})^2)")
    if options.reduction == "mean":
        factors.append(f"/ {case.divisor:.6g}")
    if factors == ["d"]:
        yield "gradient", f"g = {d}", "g"
    else:
        yield "slope", f"d = {d}", "d", "slope_nll" if case.picks else "slope"
        yield "gradient", f"g = {' '.join(factors)}", "g", "gradient_times"
    step = f"{rate:g} g".removeprefix("1 ")
    yield "loss after a step", say("formula.after", step=step), "after"


def _reduction(case):
    if case.options.reduction == "none":
        return ()
    summed = Step("sum", say("formula.sum"), "call", total(case.losses), say("step.sum", rows=case.rows))
    if case.options.reduction == "sum":
        return (summed,)
    samples, weights = case.samples is not None, case.weight is not None and not case.soft
    by = "weighted_samples" if samples and weights else "samples" if samples else "weights" if weights else "rows"
    formula = say(f"formula.{by}") if case.arguments["denominator"] is None else "denominator"
    divided = Step("divisor", formula, "call", case.divisor, say("step.divisor"))
    return summed, divided, Step("mean", say("formula.mean"), "call", case.result, say("step.mean"))
