"""How sure metrics are: intervals of 95 % for what they would be in endless rows like these.

Each row falls into one of `CELLS` cells, by a hash of where it is. Cells are drawn with replacement, as rows are in the
bootstrap (Efron & Tibshirani, "An introduction to the bootstrap", 1993), so that what is kept of rows is a sum for each
cell. All labels of a row of the data are in one cell: pixels of an image are drawn together.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np

from crossent.tools.score.sums import Cells, ratio

Interval: TypeAlias = tuple[float, float]

CELLS = 2**8  # as many as a byte has values
_RESAMPLES = 2000
_Z = 1.959963984540054  # the 97.5th percentile of the normal distribution
_SURE = 3.0  # standard errors by which confidence and accuracy of a bin differ where it is sure which is larger


def cells_of(file: str, numbers: np.ndarray) -> np.ndarray:
    """The cells of rows with these numbers in a file of this name."""
    key = int.from_bytes(hashlib.sha256(file.encode(errors="surrogatepass")).digest()[:8], "little")
    x = numbers.astype(np.uint64) + np.uint64(key)  # wrapping around, as do the products
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return (x >> np.uint64(56)).astype(np.uint8)


@cache
def weights() -> np.ndarray:
    """How often each cell is drawn, in each of the resamples: the same numbers in every run."""
    drawn = np.random.PCG64(0).random_raw(_RESAMPLES * CELLS // 8).view(np.uint8).reshape(_RESAMPLES, CELLS)
    return np.stack([np.bincount(one, minlength=CELLS) for one in drawn]).astype(np.float64)


@dataclass(frozen=True)
class Sample:
    """The sums of each cell. `gap` is by bin of the confidence too: right rows less the sum of the confidence; `units`
    are rows of the data, which may have several labels each."""

    rows: np.ndarray
    right: np.ndarray
    impossible: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    gap: np.ndarray
    units: int
    top: dict[str, np.ndarray]

    @classmethod
    def of(cls, cells: Cells, bins: Cells, top_k: Sequence[int], units: int) -> "Sample":
        rows, right, confidence = (bins[name].reshape(CELLS, -1) for name in ("rows", "right", "confidence"))
        top = {f"top{k}": cells[f"top{k}"] * 1.0 for k in top_k}
        nll, brier, gap = (_short(x) for x in (cells["nll"], cells["brier"], right - confidence))
        return cls(rows.sum(1) * 1.0, right.sum(1) * 1.0, cells["impossible"] * 1.0, nll, brier, gap, units, top)

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric of rows whose cells have these weights, (n, CELLS); nan where there is none."""
        parts = {"nll": self.nll, "accuracy": self.right, **self.top, "brier": self.brier}
        rows, impossible, *sums = _weighed(weights, self.rows, self.impossible, *parts.values())
        error = abs(_weighed(weights, *self.gap.T)).sum(0)
        found = {name: ratio(part, rows) for name, part in zip((*parts, "calibration_error"), (*sums, error))}
        found["nll"][impossible > 0] = np.inf
        with np.errstate(over="ignore"):
            return found | {"perplexity": np.exp(found["nll"])}

    def intervals(self) -> dict[str, Interval]:
        found = {name: self.percentiles(values) for name, values in self.resampled(weights()).items()}
        for name, part in {"accuracy": self.right, **self.top}.items():
            low, high = shares(part[None], self.rows[None], self.rows.sum() / max(1, self.units))
            found[name] = float(low[0]), float(high[0])
        return found | {"calibration_error": self._of_calibration()}

    def percentiles(self, values: np.ndarray) -> Interval:
        """Of what a metric, or the difference of two, is in the resamples.

        Wider by as much as the mean of so few cells is less sure than normal: Hesterberg, "What teachers should know
        about the bootstrap" (2015), section 4.3.
        """
        used = int((self.rows > 0).sum())
        values = np.sort(values[~np.isnan(values)])
        if used < 2 or not len(values):
            return math.nan, math.nan
        tail = math.erfc(float(_t(np.array(used - 1))) * math.sqrt(used / (used - 1) / 2)) / 2
        out = int(tail * len(values))
        return float(values[out]), float(values[-1 - out])

    def _of_calibration(self) -> Interval:
        if not self.rows.any():
            return math.nan, math.nan
        error, (most, least) = float(abs(self.gap.sum(0)).sum() / self.rows.sum()), self.calibration_off()
        return float(np.maximum(0.0, error - self.percentiles(most)[1])), error - self.percentiles(least)[0]

    def calibration_off(self) -> tuple[np.ndarray, np.ndarray]:
        """By how much the error of these rows is larger than that of endless ones, at most and at least: by chance, as
        in each of the resamples.

        The error is a sum of absolute values, and larger in resamples than in the rows, as in the rows it is larger
        than in endless ones: percentiles would lie too high. What is resampled are the differences themselves. Where it
        is not sure which of confidence and accuracy is the larger, most takes their true difference for 0, so that all
        of it is chance, and least for one that chance leaves unchanged on average.
        """
        rows, *gaps = _weighed(weights(), self.rows, *self.gap.T)
        gap = self.gap.sum(0) / self.rows.sum()
        off = (np.array(gaps)[:, rows > 0] / rows[rows > 0]) - gap[:, None]
        sign = np.where(gap < 0, -1.0, 1.0)[:, None]
        sure = abs(gap) > _SURE * off.std(1)
        return np.where(sure[:, None], sign * off, abs(off)).sum(0), (sign * off).sum(0)


def shares(part: np.ndarray, rows: np.ndarray, labels: float) -> tuple[np.ndarray, np.ndarray]:
    """Of shares of rows, by cells along the last axis: Wilson, "Probable inference, the law of succession, and
    statistical inference" (1927), which is no point where all rows are right or wrong.

    Where rows of the data have several `labels`, for as many rows as would have the variance that the cells have.
    """
    n = rows.sum(-1)
    p = ratio(part.sum(-1), n)
    if labels > 1:
        spread = _variance(part, rows)
        n = np.where(spread > 0, ratio(p * (1 - p), spread), n / labels)
    with np.errstate(all="ignore"):
        half = _Z * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        middle, scale = p + _Z**2 / (2 * n), 1 + _Z**2 / n
    return np.maximum(0.0, middle - half) / scale, np.minimum(scale, middle + half) / scale


def means(total: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of means that are not negative, by cells along the last axis: Student's."""
    mean = ratio(total.sum(-1), rows.sum(-1))
    off = _t((rows > 0).sum(-1) - 1) * np.sqrt(_variance(total, rows))
    return np.maximum(0.0, mean - off), mean + off


def _variance(total: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of the ratio of two sums over cells that are drawn: linear in what the cells differ by; nan of one cell."""
    n, used = rows.sum(-1), (rows > 0).sum(-1)
    off = total - ratio(total.sum(-1), n)[..., None] * rows
    return ratio((off**2).sum(-1), n.astype(float) ** 2) * ratio(used, used - 1)


def _t(freedom: np.ndarray) -> np.ndarray:
    """The 97.5th percentile of Student's distribution: Abramowitz & Stegun, "Handbook of mathematical functions"
    (1964), 26.7.5."""
    z, v = _Z, np.where(freedom > 0, freedom, np.nan)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def _weighed(weights: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """The sum of each column over the cells, for each row of weights. Without BLAS, whose threads would wait for each
    other longer than this takes."""
    return np.einsum("rc,bc->br", weights, np.stack(columns))


def _short(values: np.ndarray) -> np.ndarray:
    """Rounded to 40 binary digits of the largest, so that their weighted sums are the same in whatever order."""
    step = np.ldexp(1.0, int(np.frexp(abs(values).max(initial=0.0))[1]) - 40)
    return np.rint(values / step) * step
