"""Coverage against accuracy: how often the rows are right in which a model is surest."""

from functools import cached_property

import numpy as np

from crossent.tools.score.sums import ratio

_IN_OCTAVE, _OCTAVES = 16, 29
_HALF = _IN_OCTAVE * _OCTAVES
_NEAR = 0.05  # of all rows, to each side of a share, tell how often a row there is right
SHARES = np.array([0.25, 0.5, 0.75, 0.9, 1.0])  # of the rows, of which the accuracy is shown
OCTAVES = np.array([0.0, *2.0 ** np.arange(-_OCTAVES, 1)])  # confidences between which each is a factor of 2
STEPS = 2 * _HALF  # of the confidence: 16 to each factor of 2, up to 1/2 of itself, and above of what is missing to 1


def step_of(confidence: np.ndarray) -> np.ndarray:
    """From 0 to STEPS - 1, rising with the confidence."""
    small = np.clip(np.minimum(confidence, 1.0 - confidence), 2.0**-30, 0.5 - 2.0**-30)
    step = (small.view(np.int64) >> 48) - (1022 - _OCTAVES) * _IN_OCTAVE  # exponent, and four bits of what is behind it
    return np.where(confidence < 0.5, step, STEPS - 1 - step)


def _least(step: np.ndarray) -> np.ndarray:
    """The least confidence of a step."""
    low = np.where(step < _HALF, step, STEPS - step)
    edge = np.ldexp(0.5 + low % _IN_OCTAVE / (2 * _IN_OCTAVE), low // _IN_OCTAVE - _OCTAVES)
    return np.where(step < _HALF, edge, 1.0 - edge)


def by_octave(rows: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the rows and the right ones by step sums between the OCTAVES, and of the confidence, which is that of the
    middle of a step."""
    edges = np.append(_least(np.arange(STEPS)), 1.0)
    low, confidence = np.arange(0, _HALF + 1, _IN_OCTAVE), rows * (edges[:-1] + edges[1:]) / 2
    return np.add.reduceat(rows, low), np.add.reduceat(right, low), np.add.reduceat(confidence, low)


class Coverage:
    """Rows by confidence, the surest first: in each of some steps how many, how many of them are right, and from which
    confidence on. Of the rows of a step each is taken to be as sure as the others."""

    def __init__(self, rows: np.ndarray, right: np.ndarray, steps: np.ndarray):
        self.rows, self.right, self.least = rows, right, _least(steps)

    @property
    def area(self) -> float:
        """Below the curve of the accuracy over the coverage: the mean accuracy over all coverages from 0 to 1."""
        return min(1.0, float(ratio(self.right, self.rows) @ self._weight)) if len(self.rows) else np.nan

    @property
    def accuracy(self) -> np.ndarray:
        """Of the surest rows, for each of the SHARES."""
        return np.minimum(1.0, ratio(self._taken(SHARES) @ self.right, SHARES * self.rows.sum()))  # despite rounding

    @property
    def confidence(self) -> np.ndarray:
        """From which on a row is one of them."""
        upto = np.cumsum(self.rows)
        return self.least[np.minimum(np.searchsorted(upto, SHARES * upto[-1]), len(upto) - 1)]

    @property
    def _weight(self) -> np.ndarray:
        """Of the accuracy of each step in the area: what -log u is over the shares u that come in it."""
        u = np.cumsum([0, *self.rows]) / max(1, self.rows.sum())
        return np.diff(u - u * np.log(np.where(u > 0, u, 1.0)))

    def _taken(self, shares: np.ndarray) -> np.ndarray:
        """Which part of each step is of the surest rows, for each share of all."""
        before = np.cumsum(self.rows) - self.rows
        return np.clip((shares[:, None] * self.rows.sum() - before) / self.rows, 0.0, 1.0)

    @cached_property
    def influence(self) -> tuple[np.ndarray, np.ndarray]:
        """By how much a row of each step moves the area and the accuracy of the SHARES, (6, steps), times the number of
        rows: the first if it is right, less the second, and but for a part that is the same for all rows.

        Where rows leave, as many less sure ones come among the surest, which are as often right as those near the end.
        """
        if not len(self.rows):
            return np.zeros((1 + len(SHARES), 0)), np.zeros((1 + len(SHARES), 0))
        near, taken = self._taken(SHARES + _NEAR) - self._taken(SHARES - _NEAR), self._taken(SHARES) / SHARES[:, None]
        at_end = ratio(near @ self.right, near @ self.rows)
        share, upto = self.right / self.rows, np.cumsum(self.rows)
        grown = share * np.log(upto / np.maximum(upto - self.rows, 1))
        later = np.cumsum(grown[::-1])[::-1] - grown
        log = self._weight * upto[-1] / self.rows
        lost = share * (np.log(upto / upto[-1]) + log) + later
        return np.vstack([log, taken]), np.vstack([lost, at_end[:, None] * taken])
