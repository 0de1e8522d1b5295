"""Findings about labels and losses: what is wrong or not finite, and which rows and classes the loss comes from."""

import math

import numpy as np

from crossent.tools.arrays import as_numpy
from crossent.tools.explain.case import total
from crossent.tools.explain.checks import LARGEST
from crossent.tools.explain.tally import one_based
from crossent.tools.explain.words import capital, class_name, classes, error, note, rows
from crossent.tools.language import say

_FEW_ROWS = 10


def bad_labels(case):
    numbers, advice = np.flatnonzero(case.bad), "correct_labels"
    if not len(numbers):
        return None
    if case.labels is not None:
        labels = case.labels[case.keep | case.bad]
        advice = "one_based" if one_based(labels.min(), labels.max(), case.classes) else advice
    named = case.named[case.index(numbers[0])]
    label = named[(named < 0) | (named >= case.classes)][0]
    key = "bad_labels" if len(numbers) == 1 else "bad_labels_many"
    return error(key, numbers, label=label, last=case.classes - 1, advice=say(advice))


def nothing_counts(case):
    if case.options.reduction != "mean" or case.divisor != 0.0:
        return None
    if case.arguments["denominator"] is not None:
        why = "denominator"
    elif not case.rows:
        why = "empty"
    elif case.keep.any():
        why = "weights"
    elif case.labels is None or (case.labels != case.options.ignore_index).any():
        why = "rows"
    else:
        why = "ignored"
    return error(why=say(f"zero.{why}", index=case.options.ignore_index), advice=say(f"advice.{why}"))


def weights_not_finite(case):
    found, numbers, of_class = [], None, ()
    if case.weight is not None and not np.isfinite(case.weight).all():
        of_class = np.flatnonzero(~np.isfinite(case.weight))
        found.append(say("of", name="weight", where=classes(of_class)))
    of_rows = {"target": case.keep & ~np.isfinite(case.target_total)}
    if case.samples is not None:
        of_rows = {"sample_weight": ~np.isfinite(case.samples)} | of_rows
    for name, strange in of_rows.items():
        if strange.any():
            numbers = np.flatnonzero(strange)
            found.append(say("of", name=name, where=rows(case, numbers)))
    return error("", numbers, of_class, what=say("and").join(found)) if found else None


def _strange(case, among=True):
    """The rows that count and whose loss is not finite, `among` these."""
    return np.flatnonzero(case.keep & ~np.isfinite(case.losses) & among)


def nan_logits(case):
    return _from_above(case, _strange(case, np.isnan(case.high)), np.isnan, "nan")


def infinite_logits(case):
    return _from_above(case, _strange(case, case.high == np.inf), np.isposinf, "inf")


def _from_above(case, numbers, test, word):
    if not len(numbers):
        return None
    if case.head and (source := _head_source(case, numbers)):
        return error("head_source", numbers, source=source, lost=len(numbers), count=case.rows)
    if case.head:
        advice = say("advice.products", dtype=case.dtype)
    elif word == "inf" and case.dtype in ("float16", "bfloat16"):
        advice = say("advice.range", dtype=case.dtype, limit=f"{LARGEST[case.dtype]:g}")
    else:
        advice = say("advice.above")
    where = np.flatnonzero(test(case.logits(case.index(numbers[0]))))
    what = say("log_probability" if case.picks else "logit")
    key = "from_above" if len(where) < case.classes else "from_above_all"
    return error(key, numbers, where, what=what, word=word, advice=advice)


def _head_source(case, numbers):
    """Where a head's logits have it from."""
    a = case.arguments
    for name in ("linear_weight", "linear_bias"):
        if a[name] is not None:
            broken = np.flatnonzero(~np.isfinite(as_numpy(a[name]).reshape(case.classes, -1).sum(-1)))
            if len(broken):
                return say("head_source_of", name=name, classes=classes(broken))
    x = as_numpy(a["input"][case.index(numbers[0])[: case.axis]])
    return None if np.isfinite(x).all() else say("head_source_input", rows=rows(case, numbers))


def nothing_left(case):
    return error("", _strange(case, case.high == -np.inf))


def target_at_minus_infinity(case):
    numbers = _strange(case, np.isfinite(case.high) & case.masked)
    if not len(numbers):
        return None
    masked = case.logits(case.index(numbers[0])) == -np.inf
    label = None if case.labels is None else int(case.labels[numbers[0]])
    if label is not None and masked[label]:
        return error("masked_label", numbers, [label], label=class_name(label))
    if case.options.label_smoothing:
        return error("masked_smoothing", numbers, np.flatnonzero(masked))
    return error("masked_target", numbers, np.flatnonzero(masked & (case.row_target(numbers[0]) != 0.0)))


def overflow(case):
    limit = {"dtype": case.loss_dtype, "limit": f"{LARGEST[case.loss_dtype]:g}"}
    numbers = _strange(case, np.isfinite(case.high) & ~case.masked)
    if len(numbers) and weights_not_finite(case) is None:
        return error("overflow_row", numbers, **limit)
    if case.result is None or math.isfinite(case.result) or not np.isfinite(case.losses).all():
        return None
    if nothing_counts(case) or not math.isfinite(case.divisor):
        return None
    return error("", sum=f"{total(case.losses):.4g}", **limit)


def _counted(case):
    """The numbers of the rows that count and their losses, where all is finite and nothing negative."""
    numbers = np.flatnonzero(case.keep)
    losses = case.losses[numbers].astype(np.float64)
    usable = len(losses) > 2 and np.isfinite(losses).all() and losses.min() >= 0.0 and losses.sum() > 0.0
    return (numbers, losses) if usable else (numbers[:0], losses[:0])


def rows_that_dominate(case):
    numbers, losses = _counted(case)
    order = np.argsort(-losses, kind="stable")
    share = np.cumsum(losses[order]) / losses.sum()
    needed = int(np.searchsorted(share, 0.5)) + 1
    if not len(losses) or needed > max(1, len(losses) // _FEW_ROWS):
        return None
    key = "row_dominates" if needed == 1 else "rows_that_dominate"
    return note(key, numbers[order[:needed]], share=f"{share[needed - 1]:.0%}")


def classes_that_dominate(case):
    """Classes with a third of the loss that are labels of few rows."""
    numbers, losses = _counted(case)
    if len(losses) < _FEW_ROWS or case.labels is None:
        return None
    labels = case.labels[numbers].astype(np.int64)
    share, often = np.bincount(labels, losses) / losses.sum(), np.bincount(labels) / len(labels)
    chosen = np.flatnonzero((share >= 0.3) & (share >= 3.0 * often) & (often * len(labels) >= 2))
    if not len(chosen):
        return None
    key = "class_dominates" if len(chosen) == 1 else "classes_that_dominate"
    shares = {"part": f"{often[chosen].sum():.0%}", "share": f"{share[chosen].sum():.0%}"}
    return note(key, None, chosen, classes=capital(classes(chosen)), **shares)
