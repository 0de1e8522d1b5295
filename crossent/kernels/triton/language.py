"""What a row's loss means, from `crossent._rules`, and the functions of numbers that the kernels need."""

import triton
import triton.language as tl

from crossent import _rules


def _rule(function):
    """A rule as kernels call it; Triton's interpreter runs it as it is."""
    return function if triton.knobs.runtime.interpret else triton.jit(function)


brier = _rule(_rules.brier)
class_grad = _rule(_rules.class_grad)
entropy_of = _rule(_rules.entropy_of)
label_grad = _rule(_rules.label_grad)
label_weight = _rule(_rules.label_weight)
lse_slope = _rule(_rules.lse_slope)
row_loss = _rule(_rules.row_loss)
softcap_slope = _rule(_rules.softcap_slope)
target_grad = _rule(_rules.target_grad)
target_weight = _rule(_rules.target_weight)
token_grad = _rule(_rules.token_grad)

INFINITY = tl.constexpr(float("inf"))
LOG2_E = tl.constexpr(1.4426950408889634)
# A log-probability, from which on `expm1` is right; as in `crossent.kernels.plain.log_softmax_grad_of`.
NEARLY_CERTAIN = tl.constexpr(-0.34)


@triton.jit
def number(bits, A: tl.constexpr):
    """A number that the host passes by its 64 bits: as a float it would arrive with 32."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True).to(A)


@triton.jit
def exp(x):
    """One instruction beside the product; `tl.exp` takes four (tests/test_machine_code.py counts them)."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def relative_to(peak):
    """The numbers a, b and c for which exp(z - peak) is exp2(z * a + b) * c, for z up to the peak: one instruction
    before the exponential. The rounding of b is the same for all z, and c undoes it: both are within 2**32 of 1.

    Above the limit numbers are 64 or more apart, so that exp2 makes as good a 0 of another z as exp, and with a = 1
    nothing is rounded.
    """
    limit: tl.constexpr = 2.0**58 if peak.dtype == tl.float64 else 2.0**29
    a = tl.where(tl.abs(peak) < limit, tl.full(peak.shape, LOG2_E, peak.dtype), 1.0)
    b = -(peak * a)
    return a, b, tl.exp2(-tl.fma(peak, a, b))


@triton.jit
def kept_exp(x, NARROW: tl.constexpr):
    """`exp` of numbers of at most 0 with all digits of small results too, if they are not for a result of 16 bits.

    x is taken apart into n * log(2), whose exponential is a power of 2, and the rest, of which nothing is lost.
    """
    if x.dtype == tl.float64:
        return tl.exp(x)
    if NARROW:
        return exp(x)
    x = tl.where(x < -150.0, -150.0, x)  # whose exponential is 0; -inf has no rest
    n = x * LOG2_E + 12582912.0  # from 2**23 on there are whole numbers alone
    n -= 12582912.0
    return exp((x - n * 0.693145751953125) - n * 1.428606765330187e-06) * tl.exp2(n)


@triton.jit
def expm1(x):
    """For x from -0.34 to 0, by its series."""
    if x.dtype == tl.float64:
        series = 1.0
        for k in tl.static_range(15, 1, -1):
            series = 1.0 + x * (1.0 / k) * series
        return x * series
    series = 1 / 40320 + x * (1 / 362880)
    series = 1 / 120 + x * (1 / 720 + x * (1 / 5040 + x * series))
    return x * (1.0 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * series))))


@triton.jit
def finite(x):
    """0 for the maximum of numbers that are all -inf."""
    return tl.where(x == -INFINITY, 0.0, x)


@triton.jit
def log1p(x):
    """For x from 0 to 1: 2 * atanh(s) by its series, which keeps the digits that 1 + x would lose."""
    s = x / (2.0 + x)
    square, series = s * s, 0.0
    if x.dtype == tl.float64:
        for k in tl.static_range(16, -1, -1):
            series = series * square + 1.0 / (2 * k + 1)
    else:
        for k in tl.static_range(7, -1, -1):
            series = series * square + 1.0 / (2 * k + 1)
    return 2.0 * s * series


@triton.jit
def tanh(x, by, NARROW: tl.constexpr):
    """tanh(x * by). `NARROW`: of logits of 16 bits, which have no digits that this would lose near 0."""
    if NARROW:
        root = tl.rsqrt(1.0 + tl.exp2(x * (by * (2.0 * LOG2_E))))  # a division would take five instructions
        y = tl.fma(-2.0 * root, root, tl.full(root.shape, 1.0, root.dtype))
    else:
        x *= by
        a = tl.abs(x)
        e = exp(-2.0 * a)
        y = (1.0 - e) / (1.0 + e)
        if x.dtype != tl.float64:
            s = a * a
            small = a + a * s * (-0.33333328 + s * (0.13332403 + s * (-0.05384999 + s * (0.021069 - s * 0.0066))))
            y = tl.where(a < 0.5, small, y)
        y = tl.where(x < 0, -y, y)
    return y
