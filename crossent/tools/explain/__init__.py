"""`crossent.explain`: a call of a loss with its steps by hand, its checks and what is worth knowing about it."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from crossent import cross_entropy, plan
from crossent._options import loss_options, number, of_arguments
from crossent.tools.arrays import dtype_of
from crossent.tools.explain.baselines import baselines
from crossent.tools.explain.case import bind, called, detached, total
from crossent.tools.explain.checks import checks_of
from crossent.tools.explain.explanation import (
    Check as Check,
    Explanation as Explanation,
    Finding as Finding,
    Position,
    Row as Row,
    Step as Step,
)
from crossent.tools.explain.findings import findings_of
from crossent.tools.explain.given import ARRAYS, as_arrays, naming
from crossent.tools.explain.play import given_of
from crossent.tools.explain.steps import steps_of
from crossent.tools.explain.styles import styles_of
from crossent.tools.explain.tally import EPS
from crossent.tools.explain.working import choose, work
from crossent.tools.language import LANGUAGES, name_of, say, speaking


def explain(
    *args: Any,
    function: Callable[..., Any] = cross_entropy,
    rows: Iterable[Position] | None = None,
    learning_rate: float = 1.0,
    names: Any = None,
    lang: str = "en",
    **kwargs: Any,
) -> Explanation:
    """Every step of a call of a loss, with its numbers, and what is worth knowing about it.

        explain(input, target, ...)    explains    cross_entropy(input, target, ...)

    Args:
        args, kwargs: what the function takes, all of its options included: tensors on any device or NumPy arrays, of
            any size; also lists, frames and whatever has `__array__`, of which NumPy makes arrays.
        function: `crossent.cross_entropy`, `crossent.nll_loss` or `crossent.linear_cross_entropy`.
        rows: which rows to show, numbers in the order of the losses (negative ones count from the end) or positions,
            tuples with an index for each axis of the labels. None shows all rows if they are at most four, else the
            first with a bad label or a loss that is not finite, the smallest and the largest losses. Of a row at most
            six classes are shown: the label, what is not finite, and the largest.
        learning_rate: of the step of gradient descent, on the logits themselves, whose effect on each row is shown.
        names: what classes are called: a sequence with a name for each, a mapping from classes to names, or a
            tokenizer (whatever has `decode`). None takes the names of a frame's columns. With names the
            target may hold names.
        lang: the language of all sentences, "en" or "zh" (Chinese). What the function itself says of an error stays in
            English, behind what it was called with.

    The steps are worked out from the formula of `crossent.cross_entropy` in float64, without the library's kernels, and
    the checks compare them with what the function returns. They end with the gradient: g is that of the result, or for
    reduction "none" of the row's loss, at the logits. The function is called twice, for its result and for the
    losses of all rows; beside these, all logits are read once, in blocks. Losses are in nats.

    Returns an `Explanation`: rows, steps, checks, findings, a summary of the losses, what knowing nothing would cost,
    the call in both styles, and what `crossent.plan` says of it. It has print(), plot(), to_dict(), to_json() and
    to_html(), and shows itself in a notebook.

    Raises what the function raises for shapes, dtypes and options; but a label that is no class is a finding. TypeError
    for another function; IndexError for rows that are not there. An input without classes is a ValueError.

    Differentiates nothing: what autograd would record is left out.

    >>> import numpy as np
    >>> import crossent
    >>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, -np.inf]])
    >>> found = crossent.explain(logits, np.array([0, 2]))
    >>> steps = {step.name: step for step in found.steps}
    >>> steps["gradient"].formula, [round(g, 4) for g in steps["gradient"].values[0]]
    ('g = d / 2', [-0.1674, 0.1224, 0.045])
    >>> for finding in found.findings:
    ...     print(finding.severity, finding.rows, finding.classes, finding.sentence)
    error (1,) (2,) Row 1: the logit of the label's class, 2, is -inf, so that the loss is inf. A mask has
    removed the right answer: unmask it, or ignore the row.
    >>> found = crossent.explain([[2.0, 1.0, 0.0]], ["dog"], names=["cat", "dog", "elk"])
    >>> found.names, found.rows[0].label, round(found.result, 4)
    ({0: 'cat', 1: 'dog', 2: 'elk'}, 1, 1.4076)
    >>> [check.passed for check in found.checks]
    [True, True, True, True]
    """
    if lang not in LANGUAGES:
        raise ValueError(f"lang must be one of {', '.join(map(repr, LANGUAGES))}, got {lang!r}")
    with speaking(lang):
        rate = number("learning_rate", learning_rate)
        if not math.isfinite(rate):
            raise ValueError(say("wrong.not_finite", name="learning_rate", got=rate))
        a, names = as_arrays(bind(function, args, kwargs), names)
        try:
            options = loss_options(**of_arguments(a))
            a |= {"reduction": options.reduction} | {name: None for name in ("size_average", "reduce") if name in a}
            case = called(function, detached(a), options)
        except (ValueError, TypeError, IndexError) as error:
            if lang == "en":
                raise
            raise type(error)(say("refused", function=function.__name__, arrays=_said(a), error=error)) from error
        told = {"lang": lang, "styles": styles_of(function, a, options)}
        repaired = ("target", "sample_weight") if case.bad.any() else ()
        told["plan"] = plan(function, **a | {name: case.arguments[name] for name in repaired})
        with speaking(lang, naming(names, case.classes)):
            return _explanation(case, rows, rate, told)


def _said(arguments):
    """The arrays among the arguments of a call, with their shapes and dtypes."""
    arrays = {name: arguments[name] for name in ("input", *ARRAYS) if arguments.get(name) is not None}
    kinds = (f"{tuple(a.shape)} {dtype_of(a)}" if hasattr(a, "dtype") else type(a).__name__ for a in arrays.values())
    return say("comma").join(f"{name} {kind}" for name, kind in zip(arrays, kinds))


def _explanation(case, wanted, rate, told):
    worked = [work(case, row, reason, rate) for row, reason in choose(case, wanted).items()]
    rows = tuple(w.shown for w in worked)
    findings = findings_of(case)
    shown = {c for one in (*rows, *findings) for c in one.classes} | {r.label for r in rows if r.label is not None}
    with np.errstate(all="ignore"):
        divisor = total(case.counts())
        mean = float(total(case.losses[case.keep]) / np.float64(divisor))
        known = baselines(case.class_masses(), divisor, mean, EPS[case.loss_dtype])
    return Explanation(
        function=case.name, shape=case.shape, dtype=case.dtype, classes=case.classes,
        reduction=case.options.reduction, result=case.result, rows=rows,
        steps=steps_of(case, worked, rate), checks=checks_of(case, worked), findings=findings,
        summary=_summary(case), baselines=known, losses=case.losses.reshape(case.row_shape),
        given=given_of(case, worked, rate), names={c: name for c in sorted(shown) if (name := name_of(c)) is not None},
        **told,
    )  # fmt: skip


def _summary(case):
    """How many rows there are, and the finite losses of those that count."""
    losses = case.losses[case.keep]
    counted, bad, finite = len(losses), int(case.bad.sum()), losses[np.isfinite(losses)]
    found = {"rows": case.rows, "counted": counted, "ignored": case.rows - counted - bad, "bad_labels": bad}
    found["not_finite"] = counted - len(finite)
    if len(finite):
        found |= {"smallest": float(finite.min()), "median": float(np.median(finite))}
        found |= {"mean": float(finite.mean(dtype=np.float64)), "largest": float(finite.max())}
    if counted and case.labels is not None:
        found["accuracy"] = float(np.mean(case.top[case.keep] == case.labels[case.keep]))
    return found
