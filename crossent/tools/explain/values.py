"""Findings about labels and losses: what is wrong or not finite, and which rows and classes the loss comes from."""

import math

import numpy as np

from crossent.tools.arrays import as_numpy
from crossent.tools.explain.case import total
from crossent.tools.explain.checks import LARGEST
from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.tally import ONE_BASED, one_based
from crossent.tools.explain.words import classes, few, first, in_first, rows

_FEW_ROWS = 10


def bad_labels(facts):
    case = facts.case
    if not case.bad.any():
        return None
    numbers = np.flatnonzero(case.bad)
    advice = "Correct the labels, or give the input more classes."
    if case.labels is not None and _one_based(case):
        advice = ONE_BASED
    has = "has a label that is no class" if len(numbers) == 1 else "have labels that are no classes"
    sentence = f"{rows(case, numbers).capitalize()} {has}. {facts.mistake}. {advice}"
    return Finding("bad_labels", "error", sentence, first(case, numbers))


def _one_based(case):
    labels = case.labels[case.keep | case.bad]
    return one_based(labels.min(), labels.max(), case.classes)


def nothing_counts(facts):
    case = facts.case
    if case.options.reduction != "mean" or case.divisor != 0.0:
        return None
    if case.arguments["denominator"] is not None:
        what, advice = "the denominator is 0", "Give the number of targets that count in the whole batch."
    elif not case.rows:
        what, advice = "the batch is empty", "Leave it out."
    elif case.keep.any():
        what, advice = "the weights of the rows that count sum to 0", "Leave the batch out, or give a denominator."
    elif case.labels is None or (case.labels != case.options.ignore_index).any():
        what, advice = "no row counts", "Correct the labels or the sample weights."
    else:
        what = f"all labels are ignore_index {case.options.ignore_index}"
        advice = "Leave the batch out, or give a denominator: the number of targets that count in the whole batch."
    return Finding("nothing_counts", "error", f"The mean divides by 0, since {what}. {advice}")


def weights_not_finite(facts):
    case, found, where = facts.case, [], ()
    if case.weight is not None and not np.isfinite(case.weight).all():
        where = np.flatnonzero(~np.isfinite(case.weight))
        found.append(f"weight of {classes(where)}")
    numbers = np.zeros(0, int)
    if case.samples is not None and not np.isfinite(case.samples).all():
        numbers = np.flatnonzero(~np.isfinite(case.samples))
        found.append(f"sample_weight of {rows(case, numbers)}")
    strange = case.keep & ~np.isfinite(facts.scan.target_total)
    if strange.any():
        numbers = np.flatnonzero(strange)
        found.append(f"target of {rows(case, numbers)}")
    if not found:
        return None
    sentence = f"Not finite: {' and '.join(found)}. Correct these before the loss."
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
        sentence = f"{source}: {len(numbers)} of {case.rows} losses are lost."
        return Finding(name, "error", f"{sentence} Look for the first step whose gradient is not finite.")
    where = np.flatnonzero(test(case.logits(case.index(numbers[0]))))
    what = "log-probability" if case.picks else "logit"
    sentence = f"{rows(case, numbers).capitalize()}: the {what} of {classes(where)}{in_first(numbers)} is {word}, "
    sentence += "and so the loss is lost."
    if case.head:
        sentence += f" Input and linear_weight are finite: the products are too large for {case.dtype}."
    elif word == "inf" and case.dtype in ("float16", "bfloat16"):
        sentence += f" {case.dtype} ends at {LARGEST[case.dtype]:g}: compute the last layer in float32, or scale it."
    else:
        sentence += " It came in with the input: look at the layer before the loss."
    return Finding(name, "error", sentence, first(case, numbers), few(where))


def _head_source(case, numbers):
    """Where a head's logits have it from."""
    a = case.arguments
    for name in ("linear_weight", "linear_bias"):
        if a[name] is not None:
            flat = as_numpy(a[name]).reshape(case.classes, -1)
            broken = np.flatnonzero(~np.isfinite(flat.sum(-1)))
            if len(broken):
                return f"{name} of {classes(broken)} is not finite"
    x = as_numpy(a["input"][case.index(numbers[0])[: case.axis]])
    if not np.isfinite(x).all():
        return f"The input of {rows(case, numbers)} is not finite"
    return None


def nothing_but_minus_infinity(facts):
    case, numbers = facts.case, np.flatnonzero(_strange(facts) & (facts.scan.high == -np.inf))
    if not len(numbers):
        return None
    sentence = f"{rows(case, numbers).capitalize()}: every logit is -inf, so that no class is left. "
    return Finding("nothing_left", "error", f"{sentence}Ignore such rows, or mask fewer classes.", first(case, numbers))


def target_at_minus_infinity(facts):
    case, scan = facts.case, facts.scan
    numbers = np.flatnonzero(_strange(facts) & np.isfinite(scan.high) & scan.masked)
    if not len(numbers):
        return None
    x = case.logits(case.index(numbers[0]))
    label = None if case.labels is None else int(case.labels[numbers[0]])
    if label is not None and x[label] == -np.inf:
        what, where = f"the label's class, {label}{in_first(numbers)}, is -inf", [label]
        advice = "A mask has removed the right answer: unmask it, or ignore the row."
    elif case.options.label_smoothing:
        where = np.flatnonzero(x == -np.inf)
        what = (
            f"{classes(where)}{in_first(numbers)} is -inf, and label_smoothing gives every class a share of the target"
        )
        advice = "Smooth only what is not masked, by probabilities as target, or mask with a large negative number."
    else:
        where = np.flatnonzero((x == -np.inf) & (case.row_target(numbers[0]) != 0.0))
        what = f"{classes(where)}{in_first(numbers)} is -inf and has a probability in the target"
        advice = "Give masked classes probability 0."
    sentence = f"{rows(case, numbers).capitalize()}: the logit of {what}, so that the loss is inf. {advice}"
    return Finding("target_at_minus_infinity", "error", sentence, first(case, numbers), few(where))


def overflow(facts):
    case, scan, result = facts.case, facts.scan, facts.result
    numbers = np.flatnonzero(_strange(facts) & np.isfinite(scan.high) & ~scan.masked)
    limit = f"{facts.dtype} ends at {LARGEST[facts.dtype]:g}"
    if len(numbers) and weights_not_finite(facts) is None:
        sentence = f"{rows(case, numbers).capitalize()}: the loss is too large, {limit}. Convert the input to float32."
        return Finding("overflow", "error", sentence, first(case, numbers))
    if result is None or math.isfinite(result) or not np.isfinite(facts.losses).all() or nothing_counts(facts):
        return None
    if not math.isfinite(case.divisor):
        return None
    sentence = f"Every loss is finite, but their sum is {total(facts.losses):.4g}: {limit}. "
    return Finding("overflow", "error", f"{sentence}Take the mean, or convert the input to float32.")


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
    make = "makes" if needed == 1 else "make"
    sentence = f"{rows(facts.case, chosen).capitalize()} {make} {share[needed - 1]:.0%} of the loss: "
    sentence += "look at them first, for wrong labels or rare cases." if needed > 1 else "look at it first."
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
    is_are = "is the label" if len(chosen) == 1 else "are the labels"
    make = "makes" if len(chosen) == 1 else "make"
    sentence = f"{classes(chosen).capitalize()} {is_are} of {often[chosen].sum():.0%} of the rows and {make} "
    sentence += f"{share[chosen].sum():.0%} of the loss: look at these rows' labels, or weigh the class."
    return Finding("classes_that_dominate", "note", sentence, classes=tuple(int(c) for c in chosen))
