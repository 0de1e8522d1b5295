"""Two ways to one number, and to how many digits they agree."""

import math

import numpy as np

from crossent.tools.explain.case import total
from crossent.tools.explain.explanation import Check
from crossent.tools.explain.tally import EPS
from crossent.tools.language import say

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38, "float64": 1.7976e308}
_SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
_ULPS = 16  # of the arithmetic
_MOST = 16.0


def checks_of(case, worked):
    checks = []
    if not case.picks:
        sums = [(w.p.sum(), 1.0, 1e-12) for w in worked if np.isfinite(w.lse)]
        checks = [_check("sum", sums), _check("log", map(_log_of_softmax, worked))]
    checks.append(_rows(case, worked))
    if case.result is not None and (np.isfinite(case.losses).all() or not math.isfinite(case.result)):
        checks.append(_reduced(case))  # losses beyond the dtype's range have lost what a finite mean is made of
    return tuple(checks)


def _check(name, pairs, function=""):
    """`pairs` are the two numbers and the error that is allowed."""
    agreements = [_agreement(*pair) for pair in pairs]
    digits = min((digits for digits, _ in agreements), default=_MOST)
    return Check(say(f"check.{name}", function=function), round(digits, 1), all(passed for _, passed in agreements))


def _agreement(one, other, allowed, smallest=0.0):
    if one == other or (math.isnan(one) and math.isnan(other)):
        return _MOST, True
    error = abs(one - other)
    if not math.isfinite(error):
        return 0.0, False
    if error <= smallest:
        return _MOST, True
    return min(_MOST, max(0.0, -math.log10(error / max(abs(one), abs(other))))), error <= allowed


def _log_of_softmax(w):
    """Up to an absolute error: near p = 1 the detour loses the relative one, which is why it is not taken."""
    there = w.p > 1e-300  # below, the softmax has lost the class
    error = np.abs(np.log(w.p[there]) - w.log_p[there]) / np.maximum(1.0, -w.log_p[there])
    return 1.0 + error.max(initial=0.0), 1.0, 1e-12


def _rows(case, worked):
    """By hand against the function, which computes in float32 or float64 and rounds once."""
    dtype, pairs = case.loss_dtype, []
    arithmetic = max(_arithmetic(dtype), EPS[case.dtype] if case.head else 0.0)  # its products are in the input's dtype
    for w in worked:
        if not case.bad[w.row] and math.isfinite(w.sample) and math.isfinite(w.mass):
            by_hand = _rounded(w.loss, dtype)
            allowed = _ULPS * arithmetic * max(w.size, abs(w.loss)) + EPS[dtype] * abs(w.loss) + _SMALLEST[dtype]
            pairs.append((by_hand, float(case.losses[w.row]), allowed, _SMALLEST[dtype]))
    return _check("rows", pairs, case.name)


def _reduced(case):
    dtype, losses = case.loss_dtype, case.losses
    arithmetic = _arithmetic(dtype)
    value, allowed = total(losses), (_ULPS * arithmetic + EPS[dtype]) * total(np.abs(losses))
    if case.options.reduction == "mean":
        by = np.float64(case.divisor)
        counted = abs(by) if case.arguments["denominator"] is not None else total(np.abs(case.counts()))
        with np.errstate(all="ignore"):  # by 0 too, as arrays divide
            value, allowed = float(value / by), allowed / abs(by)
            allowed += _ULPS * arithmetic * abs(value) * counted / abs(by)
    allowed += EPS[dtype] * abs(value) + _SMALLEST[dtype]
    return _check("pieces", [(_rounded(value, dtype), case.result, allowed, _SMALLEST[dtype])], case.name)


def _arithmetic(dtype):
    return EPS["float64" if dtype == "float64" else "float32"]


def _rounded(value, dtype):
    """What is beyond the dtype's range is infinite there."""
    return math.copysign(math.inf, value) if abs(value) > LARGEST[dtype] else value
