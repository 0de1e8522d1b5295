"""Findings about what was passed: probabilities for logits, labels off by one, the wrong axis."""

import math

import numpy as np

from crossent import cross_entropy
from crossent.tools.arrays import as_numpy, dtype_of
from crossent.tools.explain.checks import EPS
from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.tally import ENOUGH, fits_better
from crossent.tools.explain.words import first, in_first, rows
from crossent.tools.language import say


def _said(name, severity, sentence=None, **named):
    return Finding(name, severity, say(sentence or name, **named))


def one_class(facts):
    alone = facts.case.classes == 1 and not facts.case.picks and facts.tally.counted
    return _said("one_class", "error") if alone else None


def equal_logits(facts):
    return _said("equal_logits", "warning") if facts.tally.holds("equal") else None


def probabilities(facts):
    sentence = "probabilities_to_nll_loss" if facts.case.picks else None
    return _said("probabilities", "error", sentence) if facts.tally.holds("probable") else None


def log_probabilities(facts):
    if facts.case.picks or not facts.tally.holds("log-probable") or equal_logits(facts):
        return None
    severity, sentence = ("note", "log_probabilities_stored") if facts.stored else ("warning", None)
    return _said("log_probabilities", severity, sentence)


def softmax_twice(facts):
    return _said("softmax_twice", "error") if facts.tally.twice else None


def logits_to_nll_loss(facts):
    tally = facts.tally
    scaled = tally.holds("log-probable") or tally.holds("probable")
    if not facts.case.picks or scaled or tally.classes < 2 or not tally.finite:
        return None
    at = np.flatnonzero(facts.case.keep & np.isfinite(facts.scan.lse))
    worst = at[np.abs(facts.scan.lse[at]).argmax()]
    sentence = say("logits_to_nll_loss", rows=rows(facts.case, [worst]), total=_exp(float(facts.scan.lse[worst])))
    severity = "error" if facts.scan.high[at].max() > 0.0 else "warning"
    return Finding("logits_to_nll_loss", severity, sentence, first(facts.case, [worst]))


def _exp(lse):
    return f"{math.exp(lse):.4g}" if abs(lse) < 700 else f"exp({lse:.4g})"


def labels_off_by_one(facts):
    tally = facts.tally
    if not tally.off_by_one:
        return None
    before, hits = tally.before.sum() / tally.counted, tally.hits / tally.counted
    return _said("labels_off_by_one", "warning", before=f"{before:.0%}", hits=f"{hits:.0%}")


def class_axis(facts):
    if (axis := facts.other_axis()) is None:
        return None
    sentence, severity = ("class_axis_soft", "error") if facts.case.soft else ("class_axis", "warning")
    return _said("class_axis", severity, sentence, axis=axis, own=facts.case.axis, shape=facts.case.shape)


def other_axis(facts):
    """The axis of a call's input along which the classes look to lie, if that is not its own."""
    case = facts.case
    if case.head or case.input.ndim < 2:
        return None
    for axis in range(case.input.ndim):
        if axis != case.axis and (_sums_along(facts, axis) if case.soft else _fits_better(facts, axis)):
            return axis
    return None


def _sums_along(facts, axis):
    if not _sums_off(facts).any():
        return False
    return bool((np.abs(as_numpy(facts.case.arguments["target"].sum(axis)) - 1.0) <= _tolerance(facts)).all())


def _fits_better(facts, axis):
    case, shape = facts.case, facts.case.shape
    if shape[:axis] + shape[axis + 1 :] != case.row_shape or case.keep.sum() < ENOUGH or shape[axis] < 3:
        return False
    a = case.arguments

    def mean(axis):  # of log-probabilities too
        weighed = {"ignore_index": case.options.ignore_index, "sample_weight": a["sample_weight"]}
        return float(cross_entropy(case.input, a["target"], dim=axis, **weighed))

    return fits_better(mean(axis), mean(case.axis), case.classes)


def _tolerance(facts):
    target = facts.case.arguments["target"]
    return max(1e-3, 2 * EPS[dtype_of(getattr(target, "probs", target))])


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
    key = "target_sums" if scan.target_low[one] >= 0.0 else "target_negative"
    at, sum_of_one = rows(case, numbers).capitalize(), f"{scan.target_total[one]:.4g}"
    sentence = say(key, rows=at, total=sum_of_one, in_first=in_first(numbers))
    return Finding("target_sums", "warning", sentence, first(case, numbers))
