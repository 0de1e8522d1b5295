"""Findings about what was passed: probabilities for logits, labels off by one, the wrong axis."""

import math

import numpy as np

from crossent import cross_entropy
from crossent.tools.arrays import as_numpy, dtype_of
from crossent.tools.explain.checks import EPS
from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.tally import ENOUGH, fits_better
from crossent.tools.explain.words import first, in_first, rows


def one_class(facts):
    if facts.case.classes > 1 or facts.case.picks or not facts.tally.counted:
        return None
    sentence = "There is one class, which has probability 1: the cross entropy is 0 whatever the logits are. "
    sentence += "Give the input a class for each answer; one logit for yes or no needs a loss of its own, such as "
    return Finding("one_class", "error", f"{sentence}PyTorch's binary_cross_entropy_with_logits.")


def equal_logits(facts):
    if not facts.tally.holds("equal"):
        return None
    sentence = "In every row all logits are equal, so that each class is as likely as any other: "
    sentence += "look at the layer before the loss, whose weights may be 0, or its output masked."
    return Finding("equal_logits", "warning", sentence)


def probabilities(facts):
    if not facts.tally.holds("probable"):
        return None
    sentence = "The input holds probabilities: in every row no entry is negative and their sum is 1. "
    if facts.case.picks:
        sentence += "nll_loss takes their logarithm: pass log_softmax of the logits."
    else:
        sentence += "cross_entropy applies the softmax itself, so that it is applied twice here: pass the logits."
    return Finding("probabilities", "error", sentence)


def log_probabilities(facts):
    if facts.case.picks or not facts.tally.holds("log-probable") or equal_logits(facts):
        return None
    sentence = "The input holds log-probabilities: in every row their exponentials sum to 1. "
    if facts.stored:
        sentence += "They are as good as logits: another log-softmax changes nothing."
        return Finding("log_probabilities", "note", sentence)
    sentence += "The loss is right, since another log-softmax changes nothing, but the work is done twice: pass the "
    sentence += "logits, or call nll_loss."
    return Finding("log_probabilities", "warning", sentence)


def softmax_twice(facts):
    if not facts.tally.twice:
        return None
    sentence = "The input looks like log_softmax of probabilities: no class is more than e times as likely as "
    sentence += "another. A softmax was applied to what had been through one: pass log_softmax of the logits."
    return Finding("softmax_twice", "error", sentence)


def logits_to_nll_loss(facts):
    tally = facts.tally
    scaled = tally.holds("log-probable") or tally.holds("probable")
    if not facts.case.picks or scaled or tally.classes < 2 or not tally.finite:
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
    tally = facts.tally
    if not tally.off_by_one:
        return None
    before, hits = tally.before.sum() / tally.counted, tally.hits / tally.counted
    sentence = f"In {before:.0%} of the rows the largest logit is that of the class before the label, and in "
    sentence += f"{hits:.0%} that of the label: the labels look one-based. Subtract 1."
    return Finding("labels_off_by_one", "warning", sentence)


def class_axis(facts):
    if (axis := facts.other_axis()) is None:
        return None
    why = "the target sums to 1 along it" if facts.case.soft else "the labels fit it far better"
    sentence = f"The classes look as if they lay along axis {axis}, since {why}; this call reads axis "
    sentence += f"{facts.case.axis} of {facts.case.shape}. Pass dim={axis}, or move the axis."
    return Finding("class_axis", "error" if facts.case.soft else "warning", sentence)


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
    problem = f"sum to {scan.target_total[one]:.4g}" if scan.target_low[one] >= 0.0 else "are partly negative"
    sentence = f"{rows(case, numbers).capitalize()}: the target's probabilities {problem}{in_first(numbers)}. "
    sentence += "The loss is then no cross entropy: divide by their sum, or weigh rows with sample_weight."
    return Finding("target_sums", "warning", sentence, first(case, numbers))
