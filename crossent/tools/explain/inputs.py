"""Findings about what was passed: probabilities for logits, labels off by one, the wrong axis."""

import math

import numpy as np

from crossent import cross_entropy
from crossent.tools.arrays import as_numpy, dtype_of
from crossent.tools.explain.tally import ENOUGH, EPS, fits_better
from crossent.tools.explain.words import error, note, rows, warning


def one_class(case):
    return error() if case.classes == 1 and not case.picks and case.tally.counted else None


def equal_logits(case):
    return warning() if case.tally.holds("equal") else None


def probabilities(case):
    key = "probabilities_to_nll_loss" if case.picks else ""
    return error(key) if case.tally.holds("probable") else None


def log_probabilities(case):
    if case.picks or not case.tally.holds("log-probable") or equal_logits(case):
        return None
    return note("log_probabilities_stored") if case.stored else warning()


def softmax_twice(case):
    return error() if case.tally.twice else None


def logits_to_nll_loss(case):
    tally = case.tally
    scaled = tally.holds("log-probable") or tally.holds("probable")
    if not case.picks or scaled or tally.classes < 2 or not tally.finite:
        return None
    at = np.flatnonzero(case.keep & np.isfinite(case.lse))
    worst = at[[np.abs(case.lse[at]).argmax()]]
    lse = float(case.lse[worst][0])
    total = f"{math.exp(lse):.4g}" if abs(lse) < 700 else f"exp({lse:.4g})"
    severity = error if case.high[at].max() > 0.0 else warning
    return severity("", worst, rows=rows(case, worst), total=total)


def labels_off_by_one(case):
    tally = case.tally
    if not tally.off_by_one:
        return None
    before, hits = tally.before.sum() / tally.counted, tally.hits / tally.counted
    return warning(before=f"{before:.0%}", hits=f"{hits:.0%}")


def class_axis(case):
    axis = case.other_axis() if case.stored else other_axis(case)
    if axis is None:
        return None
    key, severity = ("class_axis_soft", error) if case.soft else ("class_axis", warning)
    return severity(key, axis=axis, own=case.axis, shape=case.shape)


def other_axis(case):
    """The axis of a call's input along which the classes look to lie, if that is not its own."""
    if case.head or case.input.ndim < 2:
        return None
    for axis in range(case.input.ndim):
        if axis != case.axis and (_sums_along(case, axis) if case.soft else _fits_better(case, axis)):
            return axis
    return None


def _sums_along(case, axis):
    if not _sums_off(case).any():
        return False
    return bool((np.abs(as_numpy(case.arguments["target"].sum(axis)) - 1.0) <= _tolerance(case)).all())


def _fits_better(case, axis):
    a, shape = case.arguments, case.shape
    if shape[:axis] + shape[axis + 1 :] != case.row_shape or case.keep.sum() < ENOUGH or shape[axis] < 3:
        return False

    def mean(axis):  # of log-probabilities too
        weighed = {"ignore_index": case.options.ignore_index, "sample_weight": a["sample_weight"]}
        return float(cross_entropy(case.input, a["target"], dim=axis, **weighed))

    return fits_better(mean(axis), mean(case.axis), case.classes)


def _tolerance(case):
    target = case.arguments["target"]
    return max(1e-3, 2 * EPS[dtype_of(getattr(target, "probs", target))])


def _sums_off(case):
    return case.keep & ((np.abs(case.target_total - 1.0) > _tolerance(case)) | (case.target_low < 0.0))


def target_sums(case):
    if not case.soft or class_axis(case) is not None:
        return None
    numbers = np.flatnonzero(_sums_off(case) & np.isfinite(case.target_total))
    if not len(numbers):
        return None
    one = numbers[0]
    key = "target_sums" if case.target_low[one] >= 0.0 else "target_negative"
    return warning(key, numbers, total=f"{case.target_total[one]:.4g}")
