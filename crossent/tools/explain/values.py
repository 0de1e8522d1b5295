"""Findings about labels and losses: what is wrong or not finite, and which rows and classes the loss comes from."""

import math

import numpy as np

from crossent.tools.arrays import as_numpy
from crossent.tools.explain.case import total
from crossent.tools.explain.checks import LARGEST
from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.tally import one_based
from crossent.tools.explain.words import class_name, classes, few, first, in_first, rows
from crossent.tools.language import say

_FEW_ROWS = 10


def _of_rows(facts, name, numbers, key="", where=(), severity="error", **values):
    """A finding about rows, if there are any, and the classes `where`; its sentence may say which they are."""
    if not len(numbers):
        return None
    at = {"rows": rows(facts.case, numbers).capitalize(), "in_first": in_first(numbers)}
    if len(where):
        at["classes"] = classes(where)
    return Finding(name, severity, say(key or name, **at, **values), first(facts.case, numbers), few(where))


def bad_labels(facts):
    case, advice, numbers = facts.case, "correct_labels", np.flatnonzero(facts.case.bad)
    if not len(numbers):
        return None
    if case.labels is not None:
        labels = case.labels[case.keep | case.bad]
        advice = "one_based" if one_based(labels.min(), labels.max(), case.classes) else advice
    named = case.named[case.index(numbers[0])]
    label = named[(named < 0) | (named >= case.classes)][0]
    key = "bad_labels" if len(numbers) == 1 else "bad_labels_many"
    return _of_rows(facts, "bad_labels", numbers, key, label=label, last=case.classes - 1, advice=say(advice))


def nothing_counts(facts):
    case = facts.case
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
    zero = say(f"zero.{why}", index=case.options.ignore_index)
    sentence = say("nothing_counts", why=zero, advice=say(f"advice.{why}"))
    return Finding("nothing_counts", "error", sentence)


def weights_not_finite(facts):
    case, found, where, numbers = facts.case, [], np.zeros(0, int), np.zeros(0, int)
    if case.weight is not None and not np.isfinite(case.weight).all():
        where = np.flatnonzero(~np.isfinite(case.weight))
        found.append(say("of", name="weight", where=classes(where)))
    of_rows = {"target": case.keep & ~np.isfinite(facts.scan.target_total)}
    if case.samples is not None:
        of_rows = {"sample_weight": ~np.isfinite(case.samples)} | of_rows
    for name, strange in of_rows.items():
        if strange.any():
            numbers = np.flatnonzero(strange)
            found.append(say("of", name=name, where=rows(case, numbers)))
    if not found:
        return None
    sentence = say("weights_not_finite", what=say("and").join(found))
    return Finding("weights_not_finite", "error", sentence, first(case, numbers), few(where))


def _strange(facts, among=True):
    """The rows that count and whose loss is not finite, `among` these."""
    return np.flatnonzero(facts.case.keep & ~np.isfinite(facts.losses) & among)


def nan_logits(facts):
    return _from_above(facts, "nan_logits", _strange(facts, np.isnan(facts.scan.high)), np.isnan, "nan")


def infinite_logits(facts):
    return _from_above(facts, "infinite_logits", _strange(facts, facts.scan.high == np.inf), np.isposinf, "inf")


def _from_above(facts, name, numbers, test, word):
    case = facts.case
    if not len(numbers):
        return None
    if case.head and (source := _head_source(case, numbers)):
        return _of_rows(facts, name, numbers, "head_source", source=source, lost=len(numbers), count=case.rows)
    if case.head:
        advice = say("advice.products", dtype=case.dtype)
    elif word == "inf" and case.dtype in ("float16", "bfloat16"):
        advice = say("advice.range", dtype=case.dtype, limit=f"{LARGEST[case.dtype]:g}")
    else:
        advice = say("advice.above")
    where = np.flatnonzero(test(case.logits(case.index(numbers[0]))))
    what = say("log_probability" if case.picks else "logit")
    return _of_rows(facts, name, numbers, "from_above", where, what=what, word=word, advice=advice)


def _head_source(case, numbers):
    """Where a head's logits have it from."""
    a = case.arguments
    for name in ("linear_weight", "linear_bias"):
        if a[name] is not None:
            flat = as_numpy(a[name]).reshape(case.classes, -1)
            broken = np.flatnonzero(~np.isfinite(flat.sum(-1)))
            if len(broken):
                return say("head_source_of", name=name, classes=classes(broken))
    x = as_numpy(a["input"][case.index(numbers[0])[: case.axis]])
    if not np.isfinite(x).all():
        return say("head_source_input", rows=rows(case, numbers))
    return None


def nothing_but_minus_infinity(facts):
    return _of_rows(facts, "nothing_left", _strange(facts, facts.scan.high == -np.inf))


def target_at_minus_infinity(facts):
    case, numbers = facts.case, _strange(facts, np.isfinite(facts.scan.high) & facts.scan.masked)
    if not len(numbers):
        return None
    masked = case.logits(case.index(numbers[0])) == -np.inf
    label = None if case.labels is None else int(case.labels[numbers[0]])
    if label is not None and masked[label]:
        key, where = "masked_label", np.array([label])
    elif case.options.label_smoothing:
        key, where = "masked_smoothing", np.flatnonzero(masked)
    else:
        key, where = "masked_target", np.flatnonzero(masked & (case.row_target(numbers[0]) != 0.0))
    return _of_rows(facts, "target_at_minus_infinity", numbers, key, where, label=class_name(where[0]))


def overflow(facts):
    case, scan, result = facts.case, facts.scan, facts.result
    limit = {"dtype": facts.dtype, "limit": f"{LARGEST[facts.dtype]:g}"}
    numbers = _strange(facts, np.isfinite(scan.high) & ~scan.masked)
    if len(numbers) and weights_not_finite(facts) is None:
        return _of_rows(facts, "overflow", numbers, "overflow_row", **limit)
    if result is None or math.isfinite(result) or not np.isfinite(facts.losses).all() or nothing_counts(facts):
        return None
    if not math.isfinite(case.divisor):
        return None
    return Finding("overflow", "error", say("overflow", sum=f"{total(facts.losses):.4g}", **limit))


def _counted(facts):
    """The numbers of the rows that count and their losses, where all is finite and nothing negative."""
    numbers = np.flatnonzero(facts.case.keep)
    losses = facts.losses[numbers].astype(np.float64)
    usable = len(losses) > 2 and np.isfinite(losses).all() and losses.min() >= 0.0 and losses.sum() > 0.0
    return (numbers, losses) if usable else (numbers[:0], losses[:0])


def rows_that_dominate(facts):
    numbers, losses = _counted(facts)
    order = np.argsort(-losses, kind="stable")
    share = np.cumsum(losses[order]) / losses.sum()
    needed = int(np.searchsorted(share, 0.5)) + 1
    if not len(losses) or needed > max(1, len(losses) // _FEW_ROWS):
        return None
    key, told = "row_dominates" if needed == 1 else "rows_that_dominate", f"{share[needed - 1]:.0%}"
    return _of_rows(facts, "rows_that_dominate", numbers[order[:needed]], key, severity="note", share=told)


def classes_that_dominate(facts):
    """Classes with a third of the loss that are labels of few rows."""
    numbers, losses = _counted(facts)
    if len(losses) < _FEW_ROWS or facts.case.labels is None:
        return None
    labels = facts.case.labels[numbers].astype(np.int64)
    share, often = np.bincount(labels, losses) / losses.sum(), np.bincount(labels) / len(labels)
    chosen = np.flatnonzero((share >= 0.3) & (share >= 3.0 * often) & (often * len(labels) >= 2))
    if not len(chosen):
        return None
    key = "class_dominates" if len(chosen) == 1 else "classes_that_dominate"
    shares = {"part": f"{often[chosen].sum():.0%}", "share": f"{share[chosen].sum():.0%}"}
    sentence = say(key, classes=classes(chosen).capitalize(), **shares)
    return Finding("classes_that_dominate", "note", sentence, classes=few(chosen))
