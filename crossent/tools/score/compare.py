"""`crossent compare`: two models on the same rows: by how much they differ, and whether that may be chance."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from crossent.tools.score import Opened, Scored, opened
from crossent.tools.score.intervals import weights
from crossent.tools.score.metrics import Metrics
from crossent.tools.score.readers import BadFile
from crossent.tools.score.worst import Index, natural

_AT_ONCE = 2**15  # rows that are compared together


@dataclass(frozen=True)
class Changed:
    """A row that one model gets right and the other wrong."""

    file: str
    index: Index
    label: int
    predictions: tuple[int, int]
    losses: tuple[float, float]

    @property
    def order(self) -> tuple[Any, ...]:
        """The largest differences first; of equal ones the first in their files."""
        return (-abs(self.losses[1] - self.losses[0]), natural(self.file), self.file, self.index)


@dataclass
class Sides:
    """How often which of two models is right: `rows[c, a, b]` of class c, where a and b are 1 where A or B is.

    `lost` are rows that A alone gets right, `won` those that B does: at most `top` of each.
    """

    classes: int
    top: int
    rows: np.ndarray = field(init=False)
    lost: list[Changed] = field(default_factory=list)
    won: list[Changed] = field(default_factory=list)

    def __post_init__(self):
        self.rows = np.zeros((self.classes, 2, 2), np.int64)

    def add(self, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
        """The same rows as both models see them."""
        label, right = a["label"], [one["prediction"] == a["label"] for one in (a, b)]
        code = 4 * label + 2 * right[0] + right[1]
        self.rows += np.bincount(code, minlength=4 * self.classes).reshape(-1, 2, 2)
        with np.errstate(invalid="ignore"):  # of two infinite losses, where nobody is right
            off = abs(b["loss"] - a["loss"])
        for kept, changed in ((self.lost, right[0] & ~right[1]), (self.won, ~right[0] & right[1])):
            at = np.flatnonzero(changed)
            at = at[np.argsort(-off[at], kind="stable")[: self.top]]
            kept += [_changed(a, b, i) for i in at.tolist()]
            kept.sort(key=lambda row: row.order)
            del kept[self.top :]


def _changed(a: dict[str, np.ndarray], b: dict[str, np.ndarray], i: int) -> Changed:
    index = tuple(int(a[name][i]) for name in a if name == "row" or name.startswith("index_"))
    pair = {name: (a[name][i].item(), b[name][i].item()) for name in ("prediction", "loss")}
    return Changed(str(a["file"][i]), index, int(a["label"][i]), pair["prediction"], pair["loss"])


def _evenly(opened: Opened) -> Iterator[dict[str, np.ndarray]]:
    """What is known of rows as they are counted, so many at once whatever the blocks."""
    waiting: list[dict[str, np.ndarray]] = []
    for _ in opened.counted(waiting.append, paired=True):
        rows = sum(len(one["label"]) for one in waiting)
        if rows >= _AT_ONCE:
            whole = {name: np.concatenate([one[name] for one in waiting]) for name in waiting[0]}
            *full, rest = range(0, rows + 1, _AT_ONCE)
            yield from ({name: column[lo : lo + _AT_ONCE] for name, column in whole.items()} for lo in full)
            waiting[:] = [{name: column[rest:] for name, column in whole.items()}]
    if waiting:
        yield {name: np.concatenate([one[name] for one in waiting]) for name in waiting[0]}


def mcnemar(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The exact test of McNemar (1947): how likely rows that changed sides are parted so unevenly, or more so."""
    from scipy.special import bdtr

    return np.minimum(1.0, 2 * bdtr(np.minimum(one, other), one + other, 0.5))


@dataclass(frozen=True)
class Difference:
    """A metric of A and of B, their difference, and both ends of its interval of 95 %."""

    a: float
    b: float
    difference: float
    low: float
    high: float

    def verdict(self, name: str) -> str:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return "no interval"
        if self.low <= 0 <= self.high:
            return "may be chance"
        return "B is better" if (self.high < 0) == (name in _LESS_IS_BETTER) else "A is better"


_LESS_IS_BETTER = ("nll", "perplexity", "brier", "calibration_error")


def differences(a: Metrics, b: Metrics) -> dict[str, Difference]:
    """Of each metric of the same rows. Intervals are those of differences in resampled rows, the same ones for both."""
    drawn = [one.sample.resampled(weights()) for one in (a, b)]
    found = {}
    for name, value in a.numbers.items():
        with np.errstate(invalid="ignore"):
            off = b.numbers[name] - value
            low, high = a.sample.percentiles(drawn[1][name] - drawn[0][name])
        if name == "calibration_error":
            (most_a, least_a), (most_b, least_b) = (one.sample.calibration_off() for one in (a, b))
            low = off - a.sample.percentiles(most_b - least_a)[1]
            high = off - a.sample.percentiles(least_b - most_a)[0]
        found[name] = Difference(value, b.numbers[name], off, low, high)
    return found


@dataclass(frozen=True)
class ClassChange:
    """A class whose rows A or B alone gets right; `adjusted` is `p` of McNemar's test among that of all classes."""

    label: int
    rows: int
    recall_a: float
    recall_b: float
    a_alone: int
    b_alone: int
    p: float
    adjusted: float


@dataclass(frozen=True)
class Compared:
    """Two scores of the same rows; `sides` has how they differ row by row."""

    a: Scored
    b: Scored
    sides: Sides

    @cached_property
    def differences(self) -> dict[str, Difference]:
        return differences(self.a.metrics, self.b.metrics)

    @property
    def agreement(self) -> dict[str, Any]:
        """How many rows both models, one alone and neither get right, and how likely that is of equally good ones."""
        (neither, b_alone), (a_alone, both) = self.sides.rows.sum(0).tolist()
        p = float(mcnemar(np.array(a_alone), np.array(b_alone)))
        return {"both": both, "a_alone": a_alone, "b_alone": b_alone, "neither": neither, "p": p}

    @cached_property
    def classes(self) -> list[ClassChange]:
        """Those of which B gets fewer rows right than A, the least likely by chance first."""
        from scipy.stats import false_discovery_control

        known = np.flatnonzero(self.sides.rows.any((1, 2)))
        rows = self.sides.rows[known]
        n, a, b, both = rows.sum((1, 2)), rows[:, 1, 0], rows[:, 0, 1], rows[:, 1, 1]
        p = mcnemar(a, b)
        columns = known, n, (a + both) / n, (b + both) / n, a, b, p, false_discovery_control(p)
        chosen = np.lexsort((known, b - a, p))
        return [ClassChange(*(column[i].item() for column in columns)) for i in chosen if a[i] > b[i]]

    @property
    def tested(self) -> int:
        return int(self.sides.rows.any((1, 2)).sum())

    def as_dict(self) -> dict:
        """For JSON."""
        lists = {"classes_that_got_worse": self.classes, "lost": self.sides.lost, "won": self.sides.won}
        return {
            "a": self.a.parts[0].logits, "b": self.b.parts[0].logits, "labels": self.a.parts[0].labels,
            "notes": [*self.a.notes, *self.b.notes], "rows": self.a.metrics.rows, "ignored": self.a.metrics.ignored,
            "classes": self.a.metrics.classes, "agreement": self.agreement, "classes_tested": self.tested,
            "differences": {name: asdict(one) for name, one in self.differences.items()},
            **{name: [asdict(one) for one in ones] for name, ones in lists.items()},
        }  # fmt: skip


def compared(a: str, b: str, labels: str, **options: Any) -> Compared:
    """Compare the logits of A and B in the memory of two blocks of rows. `options` are those of `opened`."""
    one, other = (opened(logits, labels, **options) for logits in (a, b))
    if other.pair.shape != one.pair.shape or other.pair.classes != one.pair.classes:
        raise BadFile(f"{b}: has logits of shape {other.pair.logits.shape}, and {a} of {one.pair.logits.shape}")
    if one.pair.names != other.pair.names and None not in (one.pair.names, other.pair.names):
        raise BadFile(f"{b}: the header names other classes than that of {a}, or in another order")
    sides = Sides(one.pair.classes, options["top"])
    for rows, others in zip(_evenly(one), _evenly(other), strict=True):
        if not np.array_equal(rows["label"], others["label"]):
            raise BadFile(f"{b}: the labels are read as other classes than those of {a}: give both the same header")
        sides.add(rows, others)
    return Compared(one.scored(), other.scored(), sides)
