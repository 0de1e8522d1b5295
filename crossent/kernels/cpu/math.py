"""Exponential, logarithms and tanh of vectors, to about one unit in the last place.

exp:   x = n ln2 + r, exp(x) = 2^n (1 + r + r^2 q(r)), q a minimax fit on |r| <= ln2 / 2 (Muller, Elementary Functions,
       section 11). Adding 1.5 * 2^mantissa and the exponent's bias rounds x / ln2 and leaves n + bias in the lowest
       bits, which moved to the exponent's place are 2^n.
log:   log(1 + u) = 2 atanh(s) with s = u / (2 + u), atanh(s) = s + s^3 q(s^2), q a Chebyshev fit on s^2 <= 1/9.
"""

from crossent.kernels.cpu import vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.rules import softcap_slope

_ONE = v.constant(1.0, 1.0)
_LN2 = v.constant(0.6931471805599453, 0.6931471805599453)
_RECIPROCAL_LN2 = v.constant(1.4426950408889634, 1.4426950408889634)
_ROUNDER = v.constant(1.5 * 2**23 + 127, 1.5 * 2**52 + 1023)
_MINUS_LN2_HIGH = v.constant(-0.693145751953125, -0.6931471803691238)
_MINUS_LN2_LOW = v.constant(-1.4286068203094172e-06, -1.9082149292705877e-10)
_SMALLEST = v.constant(-87.0, -708.0)  # below it exp is subnormal, and 0 is given instead
_NEARLY_ONE = v.constant(-0.34, -0.34)  # log(1/2) / 2 with a margin
_EXP_REST = v.polynomial(
    [0.0013926183587713495, 0.008363179052722577, 0.041666554617204574, 0.16666576989698776, 0.5],
    [
        2.5100385495510319e-8,
        2.7620088445409748e-7,
        2.7557268459997065e-6,
        2.4801521295954375e-5,
        1.9841269863053617e-4,
        1.3888888917213717e-3,
        8.3333333333300618e-3,
        4.1666666666624128e-2,
        0.16666666666666667,
        0.5000000000000001,
    ],
)
_ATANH_REST = v.polynomial(
    [0.11612164612011674, 0.10853287900440187, 0.14296178997151418, 0.1999985316596486, 0.3333333366026371],
    [
        0.08082022805971766,
        0.04400369243072337,
        0.06000536404795356,
        0.06657072104827468,
        0.07692785032479312,
        0.09090894718066429,
        0.11111111358713932,
        0.1428571428355438,
        0.20000000000007292,
        0.3333333333333333,
    ],
)


@inline
def _reduced(like, x):
    """2^n and exp(r) - 1. The first may be any number for nan, the second is nan."""
    shifted = v.fma(x, _RECIPROCAL_LN2(like), _ROUNDER(like))
    n = shifted - _ROUNDER(like)
    r = v.fma(n, _MINUS_LN2_LOW(like), v.fma(n, _MINUS_LN2_HIGH(like), x))
    return v.power_of_two(shifted), v.fma(_EXP_REST(like, r), r * r, r)


@inline
def exp(like, x):
    """For x up to 88 (float64: 709); exactly 0 below the smallest normal number, nan for nan."""
    power, rest = _reduced(like, x)
    return v.select(x < _SMALLEST(like), v.splat(like, 0.0), v.fma(rest, power, power))


@inline
def exp_or_expm1(like, x):
    """A mask of the lanes in which x is near 0, where only exp(x) - 1 keeps its digits; in these exp(x) - 1, in the
    others exp(x). For x up to 0.
    """
    power, rest = _reduced(like, x)
    near, value = _NEARLY_ONE(like) < x, v.fma(rest, power, power)  # where it is near, n is 0
    return near, v.select(near, rest, v.select(x < _SMALLEST(like), v.splat(like, 0.0), value))


@inline
def _atanh(like, s):
    square = s * s
    return v.fma(s * square, _ATANH_REST(like, square), s)


@inline
def log1p(like, x):
    """For 0 <= x <= 1."""
    s = _atanh(like, x / (x + v.splat(like, 2.0)))
    return s + s


@inline
def log(like, x):
    """For x >= 0, except subnormal numbers; nan for nan."""
    f = v.fraction(x)
    s = _atanh(like, (f - _ONE(like)) / (f + _ONE(like)))
    n = v.exponent(x)
    logarithm = v.fma(n, _LN2(like), s + s)
    return v.select(
        v.splat(like, 0.0) < x, logarithm, v.select(x <= v.splat(like, 0.0), v.splat(like, -float("inf")), x)
    )


@inline
def log_of_sum(like, total, rest):
    """log(total) as `log` gives it; for a total from 1 to 2, log(1 + rest), which keeps the digits of `rest`."""
    zero, one, two = v.splat(like, 0.0), _ONE(like), v.splat(like, 2.0)
    small, f = (one <= total) & (total < two), v.fraction(total)
    s = _atanh(like, v.select(small, rest, f - one) / v.select(small, rest + two, f + one))
    s = s + s
    logarithm = v.select(small, s, v.fma(v.exponent(total), _LN2(like), s))
    return v.select(zero < total, logarithm, v.select(total <= zero, v.splat(like, -float("inf")), total))


@inline
def nll(like, others, own, own_exp):
    """log((others + own_exp) / own_exp), which keeps its digits when `others` is tiny beside own_exp.

    `own` is log(own_exp). The result is log(1 + others / own_exp) if the label outweighs the others, else
    log(others + own_exp) - own; both share one division and one series.
    """
    total = others + own_exp
    confident = others <= own_exp
    f = v.fraction(total)
    above = v.select(confident, others, f - 1.0)
    below = v.select(confident, total + own_exp, f + 1.0)
    s = _atanh(like, above / below)
    s = s + s
    result = v.select(confident, s, v.fma(v.exponent(total), _LN2(like), s - own))
    return v.select(total != total, total, result)


@inline
def tanh(like, x):
    """E / (E + 2) with E = exp(2x) - 1, which keeps the relative precision near 0."""
    double = v.select(
        x < v.splat(like, -20.0), v.splat(like, -40.0), v.select(v.splat(like, 20.0) < x, v.splat(like, 40.0), x + x)
    )
    power, rest = _reduced(like, double)
    shrunk = v.fma(rest, power, power - _ONE(like))
    return shrunk / (shrunk + v.splat(like, 2.0))


@inline
def through_cap(d, capped_logit, cap):
    """The derivative with respect to a logit, from that with respect to the capped logit; for vectors and numbers."""
    return d * softcap_slope(capped_logit, cap) if cap > 0.0 else d


@inline
def capped(like, x, cap):
    """The logit after a softcap; `cap` 0 means none."""
    if cap > 0.0:
        return tanh(like, x / cap) * cap
    return x
