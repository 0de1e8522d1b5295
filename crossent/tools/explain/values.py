"""Findings about labels and losses: what is wrong or not finite, and which rows and classes the loss comes from."""

import math

import numpy as np

from crossent.tools.arrays import as_numpy
from crossent.tools.explain.case import total
from crossent.tools.explain.checks import LARGEST
from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.language import say
from crossent.tools.explain.tally import one_based
from crossent.tools.explain.words import class_name, classes, few, first, in_first, rows

_FEW_ROWS = 10


def bad_labels(facts):
    case = facts.case
    if not case.bad.any():
        return None
    numbers = np.flatnonzero(case.bad)
    advice = "one_based" if case.labels is not None and _one_based(case) else "correct_labels"
    key = "bad_labels" if len(numbers) == 1 else "bad_labels_many"
    sentence = say(key, rows=rows(case, numbers).capitalize(), mistake=facts.mistake, advice=say(advice))
    return Finding("bad_labels", "error", sentence, first(case, numbers))


def _one_based(case):
    labels = case.labels[case.keep | case.bad]
    return one_based(labels.min(), labels.max(), case.classes)


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
    case, found, where = facts.case, [], ()
    if case.weight is not None and not np.isfinite(case.weight).all():
        where = np.flatnonzero(~np.isfinite(case.weight))
        found.append(say("of", name="weight", where=classes(where)))
    numbers = np.zeros(0, int)
    if case.samples is not None and not np.isfinite(case.samples).all():
        numbers = np.flatnonzero(~np.isfinite(case.samples))
        found.append(say("of", name="sample_weight", where=rows(case, numbers)))
    strange = case.keep & ~np.isfinite(facts.scan.target_total)
    if strange.any():
        numbers = np.flatnonzero(strange)
        found.append(say("of", name="target", where=rows(case, numbers)))
    if not found:
        return None
    sentence = say("weights_not_finite", what=say("and").join(found))
    return Finding("weights_not_finite", "error", sentence, first(case, numbers), few(where))


def _strange(facts):
    """The rows that count and whose loss is not finite."""
    return facts.case.keep & ~np.isfinite(facts.losses)


def nan_logits(facts):
    return _from_above(facts, "nan_logits", _strange(facts) & np.isnan(facts.scan.high), np.isnan, "nan")


def infinite_logits(facts):
    return _from_above(facts, "infinite_logits", _strange(facts) & (facts.scan.high == np.inf), np.isposinf, "inf")


def _from_above(facts, name, chosen, test, word):
    case, numbers = facts.case, np.flatnonzero(chosen)
    if not len(numbers):
        return None
    if case.head and (source := _head_source(case, numbers)):
        sentence = say("head_source", source=source, lost=len(numbers), rows=case.rows)
        return Finding(name, "error", sentence, first(case, numbers))
    where = np.flatnonzero(test(case.logits(case.index(numbers[0]))))
    if case.head:
        advice = say("advice.products", dtype=case.dtype)
    elif word == "inf" and case.dtype in ("float16", "bfloat16"):
        advice = say("advice.range", dtype=case.dtype, limit=f"{LARGEST[case.dtype]:g}")
    else:
        advice = say("advice.above")
    sentence = say(
        "from_above", rows=rows(case, numbers).capitalize(), what=say("log_probability" if case.picks else "logit"),
        classes=classes(where), in_first=in_first(numbers), word=word, advice=advice,
    )  # fmt: skip
    return Finding(name, "error", sentence, first(case, numbers), few(where))


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
    case, numbers = facts.case, np.flatnonzero(_strange(facts) & (facts.scan.high == -np.inf))
    if not len(numbers):
        return None
    sentence = say("nothing_left", rows=rows(case, numbers).capitalize())
    return Finding("nothing_left", "error", sentence, first(case, numbers))


def target_at_minus_infinity(facts):
    case, scan = facts.case, facts.scan
    numbers = np.flatnonzero(_strange(facts) & np.isfinite(scan.high) & scan.masked)
    if not len(numbers):
        return None
    x = case.logits(case.index(numbers[0]))
    label = None if case.labels is None else int(case.labels[numbers[0]])
    if label is not None and x[label] == -np.inf:
        key, where = "masked_label", np.array([label])
    elif case.options.label_smoothing:
        key, where = "masked_smoothing", np.flatnonzero(x == -np.inf)
    else:
        key, where = "masked_target", np.flatnonzero((x == -np.inf) & (case.row_target(numbers[0]) != 0.0))
    at = rows(case, numbers).capitalize()
    sentence = say(
        key,
        rows=at,
        label=class_name(where[0]),
        classes=classes(where),
        in_first=in_first(numbers),
    )
    return Finding("target_at_minus_infinity", "error", sentence, first(case, numbers), few(where))


def overflow(facts):
    case, scan, result = facts.case, facts.scan, facts.result
    numbers = np.flatnonzero(_strange(facts) & np.isfinite(scan.high) & ~scan.masked)
    limit = {"dtype": facts.dtype, "limit": f"{LARGEST[facts.dtype]:g}"}
    if len(numbers) and weights_not_finite(facts) is None:
        sentence = say("overflow_row", rows=rows(case, numbers).capitalize(), **limit)
        return Finding("overflow", "error", sentence, first(case, numbers))
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
    if not len(losses):
        return None
    order = np.argsort(-losses, kind="stable")
    share = np.cumsum(losses[order]) / losses.sum()
    needed = int(np.searchsorted(share, 0.5)) + 1
    if needed > max(1, len(losses) // _FEW_ROWS):
        return None
    chosen = numbers[order[:needed]]
    key = "row_dominates" if needed == 1 else "rows_that_dominate"
    sentence = say(key, rows=rows(facts.case, chosen).capitalize(), share=f"{share[needed - 1]:.0%}")
    return Finding("rows_that_dominate", "note", sentence, first(facts.case, chosen))


def classes_that_dominate(facts):
    """Classes with a third of the loss that are labels of few rows."""
    numbers, losses = _counted(facts)
    case = facts.case
    if len(losses) < _FEW_ROWS or case.labels is None:
        return None
    labels = case.labels[numbers].astype(np.int64)
    share = np.bincount(labels, losses) / losses.sum()
    often = np.bincount(labels) / len(labels)
    chosen = np.flatnonzero((share >= 0.3) & (share >= 3.0 * often) & (often * len(labels) >= 2))
    if not len(chosen):
        return None
    shares = {"part": f"{often[chosen].sum():.0%}", "share": f"{share[chosen].sum():.0%}"}
    key = "class_dominates" if len(chosen) == 1 else "classes_that_dominate"
    sentence = say(key, classes=classes(chosen).capitalize(), **shares)
    return Finding("classes_that_dominate", "note", sentence, classes=tuple(int(c) for c in chosen))
