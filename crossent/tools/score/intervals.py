"""How sure metrics are: intervals of 95 % for what they would be in endless rows like these.

Each row falls into one of `CELLS` cells, by a hash of where it is. Cells are drawn with replacement, as rows are in the
bootstrap (Efron & Tibshirani, "An introduction to the bootstrap", 1993), so that what is kept of rows is a sum for each
cell. All labels of a row of the data are in one cell: pixels of an image are drawn together.
"""

import hashlib
import math
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any, TypeAlias

import numpy as np

from crossent.tools.score.coverage import SHARES, Coverage
from crossent.tools.score.sums import ratio
from crossent.tools.score.texts import UNITS

Interval: TypeAlias = tuple[float, float]

CELLS = 2**8  # as many as a byte has values
FEW = 32  # of them: the sums of all whose numbers differ by multiples of it, where there are many sums for each
OF_COVERAGE = "coverage.area", *(f"coverage.points.{i}.accuracy" for i in range(len(SHARES)))
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


def means_of(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics that are made of means, of sums over rows by their names; nan where there is none."""

    def mean(part: str, whole: str, infinite: str) -> np.ndarray:
        return np.where(sums[infinite] > 0, np.inf, ratio(sums[part], sums[whole]))

    with np.errstate(over="ignore"):
        nll = mean("nll", "rows", "impossible")
        found = {"nll": nll, "perplexity": np.exp(nll), "accuracy": ratio(sums["right"], sums["rows"])}
        found |= {name: ratio(part, sums["rows"]) for name, part in sums.items() if name.startswith("top")}
        found["brier"] = ratio(sums["brier"], sums["rows"])
        for unit, one in UNITS.items():
            if unit in sums:
                each = mean("nll", unit, "impossible")
                found[f"perplexity_by_{one}"] = np.exp(each)
                found |= {"bits_per_byte": each / math.log(2)} if unit == "bytes" else {}
        if "documents" in sums:
            each = mean("mean", "documents", "endless")
            found |= {"documents.nll": each, "documents.perplexity": np.exp(each)}
    return found


class Sample:
    """`sums` over the rows of each cell, by their names. `gap` is by bin of the confidence too: right rows less the sum
    of the confidence. `steps` are the rows and the right ones of some cells, by step of the `coverage`; `units` are
    rows of the data, which may have several labels each."""

    def __init__(self, sums: dict[str, np.ndarray], gap: np.ndarray, steps: np.ndarray, units: int):
        used = np.flatnonzero(steps[0].any(0))[::-1]  # the surest first
        self.sums, self.gap, self.steps, self.units = sums, gap, steps[:, :, used], units
        self.rows, (rows, right) = sums["rows"], self.steps.sum(1)
        self.coverage = Coverage(rows, right, used)

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric that is made of means, of rows whose cells have these weights, (n, CELLS)."""
        return means_of(dict(zip(self.sums, _weighed(weights, *self.sums.values()))))

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        found = {name: self.percentiles(values) for name, values in self.resampled(weights()).items()}
        labels = max(1.0, self.rows.sum() / max(1, self.units))
        for name in found:
            if name == "accuracy" or name.startswith("top"):
                part = self.sums[{"accuracy": "right"}.get(name, name)]
                found[name] = _ends(*shares(part[None], self.rows[None], labels))
        return found | {"calibration_error": self._of_calibration()} | self._of_coverage(labels)

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

    @cached_property
    def influence(self) -> dict[str, np.ndarray]:
        """By how much the rows of each of some cells move what is said of the coverage."""
        if_right, lost = self.coverage.influence
        rows, right = self.steps
        return dict(zip(OF_COVERAGE, if_right @ right.T - lost @ rows.T))

    def _of_coverage(self, labels: float) -> dict[str, Interval]:
        """Wilson's, for as many rows as would have the variance of what each row, or cell, adds."""
        rows, right, (if_right, lost) = self.coverage.rows, self.coverage.right, self.coverage.influence
        n, of_cells, moved = max(1, rows.sum()), self.steps[0].sum(1), np.stack([*self.influence.values()])
        squares = (if_right - lost) ** 2 @ right + lost**2 @ (rows - right)
        spread, z = (squares - moved.sum(1) ** 2 / n) / float(n) ** 2, _Z
        if labels > 1:
            spread, z = np.nan_to_num(_variance(moved, np.broadcast_to(of_cells, moved.shape))), _z_of(of_cells)
        p, most = np.array([self.coverage.area, *self.coverage.accuracy]), np.array([1.0, *SHARES]) * n / labels
        with np.errstate(all="ignore"):
            most = np.fmax(most, p * (1 - p) / spread)  # where labels of a row are unlike
            near = (p * most + z**2 / 2) / (most + z**2)  # as if a few more were right, and a few wrong
            like = near * (1 - near) / (spread + (near * (1 - near) - p * (1 - p)) / most)
        return dict(zip(OF_COVERAGE, map(_ends, *_wilson(p, like, z))))

    def _of_calibration(self) -> Interval:
        error, (most, least) = float(abs(self.gap.sum(0)).sum() / max(1.0, self.rows.sum())), self.calibration_off()
        return float(np.maximum(0.0, error - self.percentiles(most)[1])), error - self.percentiles(least)[0]

    def calibration_off(self) -> tuple[np.ndarray, np.ndarray]:
        """By how much the error of these rows is larger than that of endless ones, at most and at least: by chance, as
        in each of the resamples.

        The error is a sum of absolute values, and larger in resamples than in the rows, as in the rows it is larger
        than in endless ones: percentiles would lie too high. What is resampled are the differences themselves. Where it
        is not sure which of confidence and accuracy is the larger, most takes their true difference for 0, so that all
        of it is chance, and least for one that chance leaves unchanged on average.
        """
        if not self.rows.any():
            return np.full(1, np.nan), np.full(1, np.nan)
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
    n, z = rows.sum(-1), np.array(_Z)
    p = ratio(part.sum(-1), n)
    if labels > 1:
        spread, z = _variance(part, rows), _z_of(rows)
        n = np.where(spread > 0, ratio(p * (1 - p), spread), n / labels)
    return _wilson(p, n, z)


def _z_of(rows: np.ndarray) -> np.ndarray:
    """How many standard errors of a variance that is that of cells, along the last axis."""
    used = (rows > 0).sum(-1)
    return np.where(used > 1, _t(used - 1), _Z)


def _wilson(p: np.ndarray, n: np.ndarray, z: Any) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(all="ignore"):
        half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        middle, scale = p + z**2 / (2 * n), 1 + z**2 / n
    return np.maximum(0.0, middle - half) / scale, np.minimum(scale, middle + half) / scale


def means(total: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of means that are not negative, by cells along the last axis: Student's."""
    mean, off = ratio(total.sum(-1), rows.sum(-1)), half_width(total, rows)
    return np.maximum(0.0, mean - off), mean + off


def half_width(total: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of the interval of means, by cells along the last axis."""
    return _t((rows > 0).sum(-1) - 1) * np.sqrt(_variance(total, rows))


def _variance(total: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of the ratio of two sums over cells that are drawn: linear in what the cells differ by; nan of one cell."""
    n, used = rows.sum(-1), (rows > 0).sum(-1)
    off = total - ratio(total.sum(-1), n)[..., None] * rows
    return ratio((off**2).sum(-1), n.astype(float) ** 2) * ratio(used, used - 1)


def _ends(low: np.ndarray, high: np.ndarray) -> Interval:
    return float(low.squeeze()), float(high.squeeze())


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


def short(values: np.ndarray) -> np.ndarray:
    """Rounded to 40 binary digits of the largest, so that their weighted sums are the same in whatever order."""
    step = np.ldexp(1.0, int(np.frexp(abs(values).max(initial=0.0))[1]) - 40)
    return np.rint(values / step) * step
