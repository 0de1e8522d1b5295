"""All that a Score is made of: what it counts, and what of others fits it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from crossent import PredictionStats, prediction_stats
from crossent._options import integer, whole_number
from crossent.tools.arrays import as_numpy, is_numpy, like
from crossent.tools.explain.explanation import Finding
from crossent.tools.score import scales
from crossent.tools.score.inputs import Inputs
from crossent.tools.score.intervals import cells_of
from crossent.tools.score.metrics import Counts, Metrics
from crossent.tools.score.rows import spread
from crossent.tools.score.scales import Scale
from crossent.tools.score.scaling import Scaling
from crossent.tools.score.texts import Measure, Texts, shifted
from crossent.tools.score.worst import Index, Worst, shown

_MOST_RANKS = 20
# What may be wrong with rows that are skipped.
SKIPPED = {"labels": "label is no class", "logits": "nan, inf or no number", "scale": "other numbers than said"}


@dataclass(frozen=True)
class Options:
    """What all parts of a score have in common. `scale` is None where no row that counts has told it."""

    top: int
    ignore_index: int
    scale: Scale | None
    names: tuple[str, ...] | None
    skip_bad: bool = False
    shift: int = 0
    scaling: Scaling | None = None
    top_k: tuple[int, ...] = (5,)

    @classmethod
    def checked(
        cls, top: int, ignore_index: int, scale: Scale, names: Sequence[str] | None, skip_bad: bool = False,
        shift: int = 0, scaling: Scaling | None = None, top_k: Sequence[int] = (5,),
    ) -> "Options":  # fmt: skip
        top, shift = whole_number("top", top, 0), whole_number("shift", shift, 0)
        ranks = tuple(sorted({whole_number("top_k", k, 1) for k in top_k}))
        if len(ranks) > _MOST_RANKS:
            raise ValueError(f"top_k must be at most {_MOST_RANKS} numbers, got {len(ranks)}")
        if scale not in scales.SCALES:
            raise ValueError(f"scale must be one of {', '.join(scales.SCALES)}, got {scale!r}")
        if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
            raise TypeError(f"names must be a sequence of names, got {names!r}")
        if not isinstance(scaling, Scaling | None):
            raise TypeError(f"scaling must be a crossent.Scaling, got {type(scaling).__name__}")
        named = None if names is None else tuple(names)
        return cls(top, integer("ignore_index", ignore_index), scale, named, bool(skip_bad), shift, scaling, ranks)

    def differences(self, other: "Options") -> Iterator[tuple[str, Any, Any]]:
        """What another one differs in, and the two values."""
        for what in ("ignore_index", "scale", "scaling", "shift", "top", "top_k"):
            known = what != "scale" or (self.scale and other.scale)
            if known and getattr(self, what) != getattr(other, what):
                yield what, getattr(self, what), getattr(other, what)
        if self.names is None or other.names is None:
            if self.names != other.names:
                yield "names", self.names and self.names[:3], other.names and other.names[:3]
            return
        for i, (one, another) in enumerate(zip(self.names, other.names)):
            if one != another:
                yield f"the name of class {i}", one, another

    def known(self, other: "Options") -> "Options":
        """The same with the scale that another one may know."""
        return replace(self, scale=self.scale or other.scale)


@dataclass(frozen=True)
class Part:
    """Where rows that were counted together came from: nowhere, or so many `files` of logits by these names."""

    logits: str = ""
    labels: str = ""
    files: int = 0
    notes: tuple[str, ...] = ()


@dataclass
class Held:
    """`parts` have names that no others have; `counts` is None before the first row.

    `skipped` has how many rows were left out for what is wrong in their labels, their logits or their scale.
    """

    options: Options
    parts: dict[str, Part] = field(default_factory=dict)
    counts: Counts | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    texts: Texts = field(init=False)
    worst: Worst = field(init=False)
    inputs: Inputs = field(init=False)

    def __post_init__(self):
        self.texts = Texts(self.options.top)
        self.worst, self.inputs = Worst(self.options.top), Inputs(self.scale, self.options.ignore_index)

    @property
    def scale(self) -> Scale:
        """Where no row has told it, the rows to come are logits."""
        return self.options.scale or scales.LOGITS

    def count(
        self, block: Any, axis: int, labels: np.ndarray, numbers: np.ndarray,
        find: Callable[[int], tuple[str | None, Index]], each: Callable[[np.ndarray, dict], Any] | None = None,
        file: str = "", groups: np.ndarray | None = None, measure: Measure | None = None,
    ) -> None:  # fmt: skip
        """Rows with their classes last, which belong at `axis`; `find` says where one is, `numbers` are as in Worst,
        those of the rows in the `file`. `groups` are names for each of them or each label.

        `each` is told which rows count, and columns with what is known of these. `measure` is asked for their lengths.
        """
        classes, ignored = block.shape[-1], self.options.ignore_index
        self.check_classes(classes)
        given, labels = labels, _signed(labels)
        if self.options.shift:
            given = labels = shifted(labels, self.options.shift, ignored)
        kept, skipped = labels.reshape(-1) != ignored, Counter[str]()

        def leave_out(what: str, bad: np.ndarray, why: Callable[[str, int], ValueError]) -> None:
            if not (bad := bad & kept).any():
                return
            if not self.options.skip_bad:
                file, index = find(row := int(bad.argmax()))
                raise why(f"{'' if file is None else f'{file}: '}row {shown(index)}", row)
            skipped[what] += int(bad.sum())
            kept[bad] = False

        rows = block.reshape(-1, classes)
        if self.options.skip_bad and labels.dtype.kind in "iu":
            leave_out("labels", ((labels < 0) | (labels >= classes)).reshape(-1), ValueError)
        if self.scale != scales.LOGITS:
            leave_out("scale", *scales.misfits(rows, self.scale))
        if self.scale == scales.PROBABILITIES:
            rows = scales.log_of(rows)
        if skipped.total():
            given = labels = np.where(kept.reshape(labels.shape), labels, ignored)
        scaling = self.options.scaling
        shaped = (rows if scaling is None else scaling(rows)).reshape(block.shape)
        given = given if is_numpy(shaped) else like(shaped, labels)
        found = prediction_stats(shaped, given, dim=-1, ignore_index=ignored)
        stats = PredictionStats(*(as_numpy(value).reshape(-1) for value in found))
        leave_out("logits", np.isnan(stats.logprob), _not_finite)
        if skipped.total():
            labels = np.where(kept.reshape(labels.shape), labels, ignored)
        flat, shape = labels.reshape(-1), labels.shape or (1,)
        lengths = measure(labels, kept.reshape(shape)) if measure else {}
        if self.counts is not None and lengths.keys() != self.texts.units.keys():
            raise ValueError("bytes and words must be given for all rows or for none")
        units = _different(numbers, kept) if len(flat) else 0
        counts = self.counts or Counts(classes, self.options.top_k)
        groups = None if groups is None else spread(groups, shape)
        counts.add(flat, stats, kept, units, spread(cells_of(file, numbers), shape), groups)
        self.options, self.counts = replace(self.options, scale=self.scale), counts
        self.counts.ignored -= skipped.total()
        self.skipped += skipped
        self.worst.add(flat, stats, kept, numbers, find)
        self.inputs.add(block, axis, rows, labels, kept, stats.prediction)
        self.texts.units.update(lengths)
        losses = np.maximum(0.0 - stats.logprob, 0.0)
        if len(shape) == 2:
            self.texts.add(losses.reshape(shape), kept.reshape(shape), numbers, find)
        if each is not None:
            known = {"label": flat, "prediction": stats.prediction, "rank": stats.rank}
            known |= {"loss": losses, "confidence": stats.confidence, "brier": stats.brier}
            each(kept, {name: column[kept] for name, column in known.items()})

    @property
    def scored(self) -> int:
        """How many rows count."""
        return self.counts.scored if self.counts else 0

    @property
    def ignored(self) -> int:
        return self.counts.ignored if self.counts else 0

    def check_classes(self, classes: int) -> None:
        names, counts = self.options.names, self.counts
        if names is not None and len(names) != classes:
            raise ValueError(f"names must have one for each of the {classes} classes, got {len(names)}")
        if counts is not None and counts.classes != classes:
            raise ValueError(f"input has {classes} classes, and that of the rows before {counts.classes}")

    def check(self, name: str, other: "Held") -> None:
        """Whether another one, which messages call `name`, can be merged with this one."""
        differences = [*self.options.differences(other.options)]
        if self.counts and other.counts and self.counts.classes != other.counts.classes:
            differences.append(("the number of classes", self.counts.classes, other.counts.classes))
        if self.counts and other.counts and self.counts.units and other.counts.units:
            grouped, others = (counts.groups is not None for counts in (self.counts, other.counts))
            if grouped != others:
                differences.append(("whether rows have groups", grouped, others))
            if self.texts.units.keys() != other.texts.units.keys():
                known = sorted(self.texts.units), sorted(other.texts.units)
                differences.append(("what lengths are known", *known))
        for what, ours, theirs in differences:
            raise ValueError(f"{name}: {what} is {theirs!r}, but {ours!r} in what came before: score all alike")
        if self.parts.keys() & other.parts.keys():
            raise ValueError(f"{name}: its rows are counted already: merge each part once")

    def merge(self, other: "Held") -> None:
        """One that has been checked."""
        self.options = self.options.known(other.options)
        if other.counts is not None:
            self.counts = self.counts or Counts(other.counts.classes, self.options.top_k)
            self.counts.merge(other.counts)
        self.worst.merge(other.worst)
        self.inputs.merge(other.inputs)
        self.texts.merge(other.texts)
        self.inputs.scale = self.scale
        self.parts = self.parts | other.parts
        self.skipped += other.skipped

    def keep(self, top: int) -> None:
        """No more than so many of the worst rows."""
        self.worst = Worst(top, self.worst.rows[:top])
        self.texts.top, self.texts.worst = top, self.texts.worst[:top]
        self.options = replace(self.options, top=top)

    def metrics(self) -> Metrics:
        return (self.counts or Counts(len(self.options.names or ()), self.options.top_k)).metrics()

    def findings(self, metrics: Metrics) -> tuple[Finding, ...]:
        return self.inputs.found(metrics.nll)


def _not_finite(place: str, row: int) -> ValueError:
    return ValueError(f"{place}: the logits hold nan or inf, or are all -inf")


def _different(numbers: np.ndarray, kept: np.ndarray) -> int:
    """How many different numbers there are of which something counts."""
    found = numbers[kept if len(kept) == len(numbers) else kept.reshape(len(numbers), -1).any(1)]
    return len(found) if (found[1:] > found[:-1]).all() else len(np.unique(found))


def _signed(labels: np.ndarray) -> np.ndarray:
    """A copy of integers in int64, in which what is too large for it is no class either; else what they are."""
    if labels.dtype.kind == "u":
        labels = np.minimum(labels, np.uint64(2**63 - 1))
    return labels.astype(np.int64) if labels.dtype.kind in "iu" else labels
