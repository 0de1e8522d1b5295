"""`crossent.Comparison`: by how much two models differ on the same rows, and whether that may be chance."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from crossent.tools.score.held import SKIPPED, Seen
from crossent.tools.score.intervals import half_width, weights
from crossent.tools.score.metrics import Metrics
from crossent.tools.score.running import Score
from crossent.tools.score.scales import Scale
from crossent.tools.score.worst import Changed, Worst


class Comparison:
    """Two models on the same rows: what differs, by how much, and whether that may be chance.

        Comparison().update(logits_a_1, logits_b_1, labels_1).update(logits_a_2, logits_b_2, labels_2).result()
        Comparison().merge(comparison_of_one_process, comparison_of_another, ...).result()

    For each metric m of a `crossent.Score` the difference is m(B) - m(A) over the rows that count, and its interval of
    95 % is that of differences in resampled rows, the same ones for both models. Where A alone gets n rows right and B
    alone k, McNemar's exact test has

        p = min(1, 2 * sum over i <= min(n, k) of binomial(n + k, i) / 2**(n + k))

    Args:
        top: how many rows that changed sides are kept, of those that A alone gets right and of those that B does.
        ignore_index, scale, names, skip_bad: as of a `crossent.Score`. A row that cannot count for one of the models
            counts for neither.

    `a` and `b` are the Scores of both. As a Score, a Comparison holds sums, not rows, can be pickled, and has the same
    result to the last bit however rows were cut.

    Losses are in nats. Differentiates nothing. Raises as Score. PyTorch has no such class. Sources: McNemar, "Note on
    the sampling error of the difference between correlated proportions or percentages" (1947); Benjamini & Hochberg,
    "Controlling the false discovery rate" (1995). `result` needs SciPy.

    >>> import numpy as np
    >>> import crossent
    >>> labels = np.array([0, 1, 2, 2])
    >>> a, b = np.eye(3)[[0, 1, 2, 0]], 2 * np.eye(3)[[0, 1, 2, 2]]
    >>> found = crossent.Comparison().update(a, b, labels).result()
    >>> print(f"{found['differences']['nll']['difference']:.4f}", found["agreement"])
    -0.5619 {'both': 3, 'a_alone': 0, 'b_alone': 1, 'neither': 0, 'p': 1.0}
    >>> found["won"]
    [{'file': None, 'row': 3, 'label': 2, 'predictions': (0, 2), 'losses': (1.551444713932051, 0.23954...)}]
    """

    def __init__(
        self, *, top: int = 10, ignore_index: int = -100, scale: Scale = "logits", names: Sequence[str] | None = None,
        skip_bad: bool = False,
    ):  # fmt: skip
        options: Any = {"top": top, "ignore_index": ignore_index, "scale": scale, "names": names, "skip_bad": skip_bad}
        self._hold(Score(**options), Score(**options))

    def _hold(self, a: Score, b: Score) -> None:
        """`_rows[c, x, y]` are those of class c that A (x = 1) and B (y = 1) get right or not."""
        self.a, self.b, self._rows = a, b, np.zeros((1, 2, 2), np.int64)
        self._lost, self._won = (Worst[Changed](a._held.options.top) for _ in range(2))

    def update(self, a: Any, b: Any, target: Any, *, dim: int | None = None, rows: Any = None) -> "Comparison":
        """Counts rows, and returns the Comparison itself.

        Args:
            a, b: the logits of both models for the same rows, each as `crossent.Score.update` takes them; dtypes may
                differ.
            target, dim, rows: as there.

        Raises as there, and ValueError where the logits have different shapes. Nothing is counted then.
        """
        shapes = [tuple(getattr(one, "shape", ())) for one in (a, b)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"b must have the shape of a, {shapes[0]}, got {shapes[1]}")
        seen = [score._look("Comparison.update", one, target, dim, rows) for score, one in ((self.a, a), (self.b, b))]
        self._count(*seen)
        for score, one in zip((self.a, self.b), seen):
            score._held.count(one)
            score._counted(len(one.numbers))
        return self

    def merge(self, *others: "Comparison") -> "Comparison":
        """Adds what other Comparisons have counted, leaves them as they are, and returns the Comparison itself.

        Raises as `crossent.Score.merge`. Nothing is merged then.
        """
        for i, other in enumerate(others):
            if not isinstance(other, Comparison):
                raise TypeError(f"others[{i}] must be a Comparison, got {type(other).__name__}")
        self.a.merge(*(other.a for other in others))
        self.b.merge(*(other.b for other in others))
        for other in others:
            self._rows = self._rows + other._rows
            self._lost.merge(other._lost.rows)
            self._won.merge(other._won.rows)
        return self

    def result(self) -> dict[str, Any]:
        """What `crossent compare --json` shows, for all rows so far; more may follow.

        A dict of Python numbers, lists and dicts, with nan for what is not known:

            scored, ignored, skipped, classes   as of a Score, the same for both models
            differences                         of each metric that has an interval, by its name, with points where a
                                                Score has it within something else: a, b, difference, and both ends of
                                                its interval, low and high
            agreement                           how many rows both, a_alone, b_alone and neither get right, and p
            classes_tested                      how many have rows
            classes_that_got_worse              those of which B gets fewer rows right, the least likely by chance
                                                first: label, name where they have some, rows, recall_a, recall_b,
                                                a_alone, b_alone, p, and adjusted: p among that of all classes
            lost, won                           rows that A alone gets right, and that B does, with the largest
                                                differences: file, row, label, predictions and losses, A's first
        """
        return self._result(self.a._held.metrics(), self.b._held.metrics())

    def _result(self, a: Metrics, b: Metrics) -> dict[str, Any]:
        (neither, b_alone), (a_alone, both) = self._rows.sum(0).tolist()
        p = float(mcnemar(np.array(a_alone), np.array(b_alone)))
        return {
            "scored": a.rows, "ignored": a.ignored, "skipped": {what: self.a._held.skipped[what] for what in SKIPPED},
            "classes": a.classes, "differences": differences(a, b),
            "agreement": {"both": both, "a_alone": a_alone, "b_alone": b_alone, "neither": neither, "p": p},
            "classes_tested": int(self._rows.any((1, 2)).sum()), "classes_that_got_worse": self._worse(),
            "lost": [row.as_dict() for row in self._lost.rows], "won": [row.as_dict() for row in self._won.rows],
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"<crossent.Comparison of {self._rows.sum():,} rows>"

    def _count(self, a: Seen, b: Seen) -> None:
        """Which rows changed sides, of those that count for either model and hence for both."""
        a.skip(b.wrong)
        b.skip(a.wrong)
        labels, classes = a.labels.reshape(-1), a.block.shape[-1]
        right = [one.kept & (one.stats.prediction == labels) for one in (a, b)]
        code = (4 * labels + 2 * right[0] + right[1])[a.kept]
        self._rows = self._rows + np.bincount(code, minlength=4 * classes).reshape(-1, 2, 2)
        with np.errstate(invalid="ignore"):  # of two infinite losses, where nobody is right
            off = abs(b.losses - a.losses.astype(np.float64))
        for kept, changed in ((self._lost, right[0] & ~right[1]), (self._won, ~right[0] & right[1])):
            kept.add(np.flatnonzero(changed), off, a.places, partial(_changed, a, b))

    def _worse(self) -> list[dict[str, Any]]:
        """Classes of which B gets fewer rows right than A."""
        from scipy.stats import false_discovery_control

        names, known = self.a._held.options.names, np.flatnonzero(self._rows.any((1, 2)))
        rows = self._rows[known]
        n, a, b, both = rows.sum((1, 2)), rows[:, 1, 0], rows[:, 0, 1], rows[:, 1, 1]
        p = mcnemar(a, b)
        columns = {"rows": n, "recall_a": (a + both) / n, "recall_b": (b + both) / n, "a_alone": a, "b_alone": b}
        columns |= {"p": p, "adjusted": false_discovery_control(p)}
        chosen = [i for i in np.lexsort((known, b - a, p)).tolist() if a[i] > b[i]]
        named = {"name": np.array(names)[known]} if names and len(known) else {}
        columns = {"label": known} | named | columns
        return [{name: column[i].item() for name, column in columns.items()} for i in chosen]


def _changed(a: Seen, b: Seen, i: int) -> Changed:
    predictions = a.stats.prediction[i].item(), b.stats.prediction[i].item()
    return Changed(*a.find(i), a.labels.reshape(-1)[i].item(), predictions, (a.losses[i].item(), b.losses[i].item()))


def mcnemar(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How likely rows that changed sides are parted so unevenly, or more so."""
    from scipy.special import bdtr

    return np.minimum(1.0, 2 * bdtr(np.minimum(one, other), one + other, 0.5))


def verdict(name: str, low: float, high: float) -> str:
    """What an interval of the difference says."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    if low <= 0 <= high:
        return "may be chance"
    return "B is better" if (low > 0) == name.startswith(("accuracy", "top", "coverage")) else "A is better"


def differences(a: Metrics, b: Metrics) -> dict[str, dict[str, float]]:
    """Of each metric of the same rows. Intervals are those of differences in resampled rows, the same ones for both."""
    one, other = a.sample, b.sample
    of_a, of_b = (sample.resampled(weights()) for sample in (one, other))
    found = {}
    for name, value in a.numbers.items():
        with np.errstate(invalid="ignore"):
            off = b.numbers[name] - value
            if name in one.influence:
                half = float(half_width(other.influence[name] - one.influence[name], one.steps[0].sum(1)))
                low, high = off - half, off + half
            elif name == "calibration_error":
                (most_a, least_a), (most_b, least_b) = one.calibration_off(), other.calibration_off()
                low = off - one.percentiles(most_b - least_a)[1]
                high = off - one.percentiles(least_b - most_a)[0]
            else:
                low, high = one.percentiles(of_b[name] - of_a[name])
        found[name] = {"a": value, "b": b.numbers[name], "difference": off, "low": low, "high": high}
    return found
