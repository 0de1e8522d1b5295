"""Findings about what was passed: probabilities for logits, labels off by one, the wrong axis."""

import math

import numpy as np

from crossent import cross_entropy
from crossent.explanation._case import as_numpy, dtype_of
from crossent.explanation._checks import EPS
from crossent.explanation._explanation import Finding
from crossent.explanation._words import first, in_first, rows

_ENOUGH = 16  # rows, before a share of them says something


def _all_rows(facts, test):
    """Whether all rows that count and whose logits are finite pass a test, and there are some with two classes."""
    scan, case = facts.scan, facts.case
    there = case.keep & np.isfinite(scan.high) & ~np.isnan(scan.low)
    return not case.head and case.classes > 1 and bool(there.any()) and bool(test(there).all())


def _are_probabilities(facts):
    scan, tolerance = facts.scan, max(1e-3, 2 * EPS[facts.case.dtype])
    return _all_rows(facts, lambda at: (scan.low[at] >= 0.0) & (np.abs(scan.total[at] - 1.0) <= tolerance))


def _are_log_probabilities(facts):
    """lse of log-probabilities is 0, but for the rounding of each."""
    scan, tolerance = facts.scan, max(1e-4, 2 * EPS[facts.case.dtype] * (1.0 + math.log(facts.case.classes)))
    return _all_rows(facts, lambda at: np.abs(scan.lse[at]) <= tolerance)


def probabilities(facts):
    if not _are_probabilities(facts):
        return None
    sentence = "The input holds probabilities: in every row no entry is negative and their sum is 1. "
    if facts.case.picks:
        sentence += "nll_loss takes their logarithm: pass log_softmax of the logits."
    else:
        sentence += "cross_entropy applies the softmax itself, so that it is applied twice here: pass the logits."
    return Finding("probabilities", "error", sentence)


def log_probabilities(facts):
    if facts.case.picks or not _are_log_probabilities(facts):
        return None
    sentence = "The input holds log-probabilities: in every row their exponentials sum to 1. The loss is right, since "
    sentence += "another log-softmax changes nothing, but the work is done twice: pass the logits, or call nll_loss."
    return Finding("log_probabilities", "warning", sentence)


def softmax_twice(facts):
    """log_softmax of probabilities p is p minus a number, so that its mean is 1 / C - p_min above its smallest entry.

    That is at most 1 / C, and close to it where one class has next to nothing, in most rows of a classifier.
    """
    scan, case = facts.scan, facts.case
    if not _are_log_probabilities(facts) or case.keep.sum() < _ENOUGH:
        return None
    at = case.keep & np.isfinite(scan.low)
    above = scan.total[at] - case.classes * scan.low[at]  # C * (mean - smallest)
    slack = 16 * EPS[case.dtype] * case.classes
    if not len(above) or above.max() > 1.0 + slack or np.mean(above >= 0.9) < 0.5 or slack > 0.1:
        return None
    sentence = "The input looks like log_softmax of probabilities: no class is more than e times as likely as "
    sentence += "another. A softmax was applied to what had been through one: pass log_softmax of the logits."
    return Finding("softmax_twice", "error", sentence)


def logits_to_nll_loss(facts):
    if not facts.case.picks or _are_log_probabilities(facts) or _are_probabilities(facts):
        return None
    if not _all_rows(facts, lambda at: np.isfinite(facts.scan.lse[at])):
        return None
    at = np.flatnonzero(facts.case.keep & np.isfinite(facts.scan.lse))
    worst = at[np.abs(facts.scan.lse[at]).argmax()]
    total = _exp(float(facts.scan.lse[worst]))
    sentence = "nll_loss takes log-probabilities, whose exponentials sum to 1; "
    sentence += f"in {rows(facts.case, [worst])} they sum to {total}. "
    sentence += "Call cross_entropy for logits, or pass their log_softmax."
    severity = "error" if facts.scan.high[at].max() > 0.0 else "warning"
    return Finding("logits_to_nll_loss", severity, sentence, first(facts.case, [worst]))


def _exp(lse):
    return f"{math.exp(lse):.4g}" if abs(lse) < 700 else f"exp({lse:.4g})"


def labels_off_by_one(facts):
    """The largest logits stand one before the label, for labels of several kinds."""
    case, top = facts.case, facts.scan.top
    if case.labels is None or case.keep.sum() < _ENOUGH:
        return None
    labels, top = case.labels[case.keep].astype(np.int64), top[case.keep]
    before = top == labels - 1
    kinds = np.bincount(labels[before], minlength=1)
    varied = (kinds > 0).sum() >= 3 and kinds.max() <= 0.6 * kinds.sum()
    if not varied or before.mean() < 0.5 or np.mean(top == labels) > 0.1:
        return None
    sentence = f"In {before.mean():.0%} of the rows the largest logit is that of the class before the label, and in "
    sentence += f"{np.mean(top == labels):.0%} that of the label: the labels look one-based. Subtract 1."
    return Finding("labels_off_by_one", "warning", sentence)


def class_axis(facts):
    case = facts.case
    if case.head or case.input.ndim < 2:
        return None
    for axis in range(case.input.ndim):
        if axis != case.axis and (_sums_along(facts, axis) if case.soft else _fits_better(facts, axis)):
            why = "the target sums to 1 along it" if case.soft else "the labels fit it far better"
            sentence = f"The classes look as if they lay along axis {axis}, since {why}; this call reads axis "
            sentence += f"{case.axis} of {tuple(case.input.shape)}. Pass dim={axis}, or move the axis."
            return Finding("class_axis", "error" if case.soft else "warning", sentence)
    return None


def _sums_along(facts, axis):
    if not _sums_off(facts).any():
        return False
    return bool((np.abs(as_numpy(facts.case.target.sum(axis)) - 1.0) <= _tolerance(facts)).all())


def _fits_better(facts, axis):
    """Whether the loss along this axis is far below chance, and below half of the call's own."""
    case, shape = facts.case, tuple(facts.case.input.shape)
    if shape[:axis] + shape[axis + 1 :] != case.row_shape or case.keep.sum() < _ENOUGH or shape[axis] < 3:
        return False
    a = case.arguments

    def mean(axis):  # of log-probabilities too
        weighed = {"ignore_index": case.options.ignore_index, "sample_weight": a["sample_weight"]}
        return float(cross_entropy(case.input, a["target"], dim=axis, **weighed))

    there = mean(axis)
    return there < 0.5 * math.log(case.classes) and there < 0.5 * mean(case.axis)


def _tolerance(facts):
    target = facts.case.arguments["target"]
    return max(1e-3, 2 * EPS[dtype_of(target.probs if facts.case.sparse else target)])


def _sums_off(facts):
    scan = facts.scan
    return facts.case.keep & ((np.abs(scan.target_total - 1.0) > _tolerance(facts)) | (scan.target_low < 0.0))


def target_sums(facts):
    case, scan = facts.case, facts.scan
    if not case.soft or class_axis(facts) is not None:
        return None
    numbers = np.flatnonzero(_sums_off(facts) & np.isfinite(scan.target_total))
    if not len(numbers):
        return None
    one = numbers[0]
    problem = f"sum to {scan.target_total[one]:.4g}" if scan.target_low[one] >= 0.0 else "are partly negative"
    sentence = f"{rows(case, numbers).capitalize()}: the target's probabilities {problem}{in_first(numbers)}. "
    sentence += "The loss is then no cross entropy: divide by their sum, or weigh rows with sample_weight."
    return Finding("target_sums", "warning", sentence, first(case, numbers))
