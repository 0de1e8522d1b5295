"""The rules by themselves, on one row: each derivative is that of the value it belongs to, by a complex step."""

import numpy as np
import pytest

from crossent import _rules

STEP = 1e-30
X, WEIGHT = np.array([0.5, -1.25, 2.0, 0.75]), np.array([0.5, 1.5, 2.0, 0.75])
PROBABILITIES, LABEL = np.array([0.1, 0.2, 0.4, 0.3]), 2
KEEP, SMOOTHING, Z_LOSS, CAP = 1.5, 0.2, 0.3, 3.0


def derivative(function, x):
    """By Squire and Trapp, Using complex variables to estimate derivatives of real functions (1998)."""
    return np.array([function(x + 1j * STEP * unit).imag / STEP for unit in np.eye(len(x))])


def lse_of(z):
    return np.log(np.exp(z).sum())


def loss_of(x, t):
    z = CAP * np.tanh(x / CAP)
    q = KEEP * WEIGHT * ((1 - SMOOTHING) * t + SMOOTHING / len(x))
    return (q * (lse_of(z) - z + Z_LOSS * lse_of(z) ** 2)).sum()


Z = CAP * np.tanh(X / CAP)
P, PEAK = np.exp(Z - lse_of(Z)), Z.max()
LOG_TOTAL = lse_of(Z) - PEAK


def test_a_soft_target():
    q = _rules.target_weight(PROBABILITIES, WEIGHT, KEEP, SMOOTHING, len(X))
    slope = _rules.lse_slope(q.sum(), lse_of(Z), Z_LOSS)
    dx = _rules.class_grad(P, q, slope) * _rules.softcap_slope(Z, CAP)
    assert dx == pytest.approx(derivative(lambda x: loss_of(x, PROBABILITIES), X), rel=1e-12)
    dt = _rules.target_grad(LOG_TOTAL + Z_LOSS * lse_of(Z) ** 2, Z - PEAK, WEIGHT, KEEP, SMOOTHING)
    assert dt == pytest.approx(derivative(lambda t: loss_of(X, t), PROBABILITIES), rel=1e-12)


def test_a_label():
    one_hot, w = np.eye(len(X))[LABEL], WEIGHT[LABEL]
    mass = _rules.label_weight(w, KEEP, SMOOTHING)
    rest = _rules.target_weight(0.0, WEIGHT, KEEP, SMOOTHING, len(X))
    nll = lse_of(Z) - Z[LABEL]
    loss = _rules.row_loss(nll, mass, LOG_TOTAL, rest.sum(), (rest * (Z - PEAK)).sum(), lse_of(Z), Z_LOSS)
    assert loss == pytest.approx(loss_of(X, one_hot), rel=1e-12)
    slope = _rules.lse_slope(mass + rest.sum(), lse_of(Z), Z_LOSS)
    d = _rules.label_grad(P[LABEL], 1 - P[LABEL], mass, rest[LABEL], slope) * _rules.softcap_slope(Z[LABEL], CAP)
    assert d == pytest.approx(derivative(lambda x: loss_of(x, one_hot), X)[LABEL], rel=1e-12)


def test_what_a_token_says():
    exponentials, above = np.exp(Z - PEAK), (0.5, -0.75, 1.25)

    def value(z):
        p = np.exp(z - lse_of(z))
        return above[0] * np.log(p[LABEL]) + above[1] * lse_of(z) - above[2] * (p * np.log(p)).sum()

    entropy = _rules.entropy_of(LOG_TOTAL, (exponentials * (Z - PEAK)).sum(), exponentials.sum())
    assert entropy == pytest.approx(-(P * np.log(P)).sum(), rel=1e-12)
    dz = _rules.token_grad(P, np.log(P), entropy, *above) + above[0] * np.eye(len(X))[LABEL]
    assert dz == pytest.approx(derivative(value, Z), rel=1e-12)
    others = np.delete(exponentials, LABEL)
    brier = _rules.brier(others.sum(), (others**2).sum(), exponentials.sum())
    assert brier == pytest.approx(((P - np.eye(len(X))[LABEL]) ** 2).sum(), rel=1e-12)
