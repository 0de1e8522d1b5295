"""Coverage against accuracy: how often the rows are right in which a model is surest."""

from dataclasses import dataclass

import numpy as np

from crossent.tools.score.sums import Cells, ratio

_IN_OCTAVE, _OCTAVES = 16, 29
_HALF = _IN_OCTAVE * _OCTAVES
STEPS = 2 * _HALF  # of the confidence: 16 to each factor of 2, up to 1/2 of itself, and above of what is missing to 1


def step_of(confidence: np.ndarray) -> np.ndarray:
    """From 0 to STEPS - 1, rising with the confidence."""
    part, octave = np.frexp(np.clip(np.minimum(confidence, 1.0 - confidence), 2.0**-30, 0.5 - 2.0**-30))
    step = (octave.astype(np.intp) + _OCTAVES) * _IN_OCTAVE + ((part - 0.5) * (2 * _IN_OCTAVE)).astype(np.intp)
    return np.where(confidence < 0.5, step, STEPS - 1 - step)


def _least(step: np.ndarray) -> np.ndarray:
    """The least confidence of a step."""
    low = np.where(step < _HALF, step, STEPS - step)
    edge = np.ldexp(0.5 + low % _IN_OCTAVE / (2 * _IN_OCTAVE), low // _IN_OCTAVE - _OCTAVES)
    return np.where(step < _HALF, edge, 1.0 - edge)


@dataclass(frozen=True)
class Coverage:
    """Rows by confidence, the surest first: in each step how many, how many of them are right, and from which
    confidence on. Of the rows of a step each is taken to be as sure as the others."""

    rows: np.ndarray
    right: np.ndarray
    least: np.ndarray

    @classmethod
    def of(cls, steps: Cells) -> "Coverage":
        used = np.flatnonzero(steps["rows"])[::-1]
        return cls(steps["rows"][used], steps["right"][used], _least(used))

    @property
    def area(self) -> float:
        """Below the curve of the accuracy over the coverage: the mean accuracy over all coverages from 0 to 1."""
        share, before, right = ratio(self.right, self.rows), *(np.cumsum(x) - x for x in (self.rows, self.right))
        # Within a step the accuracy is (right + share * x) / (before + x), x being rows.
        grown = np.log1p(self.rows / np.maximum(before, 1))
        return float((self.right + (right - share * before) * grown).sum() / max(1, self.rows.sum()))

    def at(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each share of all rows the accuracy of the surest ones, and from which confidence on rows are of them."""
        rows, right = np.cumsum(self.rows), np.cumsum(self.right)
        wanted = shares * rows[-1]
        step = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
        beyond = (rows[step] - wanted) * self.right[step] / self.rows[step]
        return (right[step] - beyond) / wanted, self.least[step]
