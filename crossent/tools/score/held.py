"""All that a Score is made of: what it counts, and what of others fits it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from crossent import PredictionStats, prediction_stats
from crossent._options import integer
from crossent.tools.arrays import as_numpy, is_numpy, like
from crossent.tools.explain.explanation import Finding
from crossent.tools.score import scales
from crossent.tools.score.inputs import AlongRows, Inputs
from crossent.tools.score.metrics import Counts, Metrics
from crossent.tools.score.scales import Scale
from crossent.tools.score.worst import Index, Worst, shown


@dataclass(frozen=True)
class Options:
    """What all parts of a score have in common. `scale` is None where no row that counts has told it."""

    top: int
    ignore_index: int
    scale: Scale | None
    names: tuple[str, ...] | None

    @classmethod
    def checked(cls, top: int, ignore_index: int, scale: Scale, names: Sequence[str] | None) -> "Options":
        if integer("top", top) < 0:
            raise ValueError(f"top must be at least 0, got {top}")
        if scale not in scales.SCALES:
            raise ValueError(f"scale must be one of {', '.join(scales.SCALES)}, got {scale!r}")
        if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
            raise TypeError(f"names must be a sequence of names, got {names!r}")
        named = None if names is None else tuple(names)
        return cls(integer("top", top), integer("ignore_index", ignore_index), scale, named)

    def differences(self, other: "Options") -> Iterator[tuple[str, Any, Any]]:
        """What another one differs in, and the two values."""
        for what in ("ignore_index", "scale", "top"):
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
    """`parts` have names that no others have; `counts` is None before the first row."""

    options: Options
    parts: dict[str, Part] = field(default_factory=dict)
    counts: Counts | None = None
    worst: Worst = field(init=False)
    inputs: Inputs = field(init=False)

    def __post_init__(self):
        self.worst, self.inputs = Worst(self.options.top), Inputs(self.scale, self.options.ignore_index)

    @property
    def scale(self) -> Scale:
        """Where no row has told it, the rows to come are logits."""
        return self.options.scale or scales.LOGITS

    def count(
        self, block: Any, axis: int, labels: np.ndarray, numbers: np.ndarray,
        find: Callable[[int], tuple[str | None, Index]],
    ) -> None:  # fmt: skip
        """Rows with their classes last, which belong at `axis`; `find` says where one is, `numbers` are as in Worst."""
        classes, ignored = block.shape[-1], self.options.ignore_index

        def place(i: int) -> str:
            file, index = find(i)
            return f"row {shown(index)}" if file is None else f"{file}: row {shown(index)}"

        self.check_classes(classes)
        given, labels = labels, _signed(labels)
        flat = labels.reshape(-1)
        kept = flat != ignored
        rows = scales.as_logits(block.reshape(-1, classes), self.scale, kept, place)
        shaped = rows.reshape(block.shape)
        given = given if is_numpy(shaped) else like(shaped, labels)
        found = prediction_stats(shaped, given, dim=-1, ignore_index=ignored)
        stats = PredictionStats(*(as_numpy(value).reshape(-1) for value in found))
        bad = np.isnan(stats.logprob)
        if bad.any():
            raise ValueError(f"{place(int(bad.argmax()))}: the logits hold nan or inf, or are all -inf")
        self.options, self.counts = replace(self.options, scale=self.scale), self.counts or Counts(classes)
        self.counts.add(flat, stats, kept)
        self.worst.add(flat, stats, kept, numbers, find)
        self.inputs.add(block, axis, rows, labels, kept, stats.prediction)

    def check_classes(self, classes: int) -> None:
        names, counts = self.options.names, self.counts
        if names is not None and len(names) != classes:
            raise ValueError(f"names must have one for each of the {classes} classes, got {len(names)}")
        if counts is not None and counts.classes != classes:
            raise ValueError(f"input has {classes} classes, and that of the rows before {counts.classes}")

    def look_along_rows(self, rows: int, labels: np.ndarray) -> None:
        """In so many rows of logits, which come in order; `labels` are all of theirs."""
        if self.scale == scales.LOGITS:
            self.inputs.along[0] = AlongRows(rows, labels)

    def check(self, name: str, other: "Held") -> None:
        """Whether another one, which messages call `name`, can be merged with this one."""
        differences = [*self.options.differences(other.options)]
        if self.counts and other.counts and self.counts.classes != other.counts.classes:
            differences.append(("the number of classes", self.counts.classes, other.counts.classes))
        for what, ours, theirs in differences:
            raise ValueError(f"{name}: {what} is {theirs!r}, but {ours!r} in what came before: score all alike")
        if self.parts.keys() & other.parts.keys():
            raise ValueError(f"{name}: its rows are counted already: merge each part once")

    def merge(self, other: "Held") -> None:
        """One that has been checked."""
        self.options = self.options.known(other.options)
        if other.counts is not None:
            self.counts = self.counts or Counts(other.counts.classes)
            self.counts.merge(other.counts)
        self.worst.merge(other.worst)
        self.inputs.merge(other.inputs)
        self.inputs.scale = self.scale
        self.parts = self.parts | other.parts

    def keep(self, top: int) -> None:
        """No more than so many of the worst rows."""
        self.worst = Worst(top, self.worst.rows[:top])
        self.options = replace(self.options, top=top)

    def metrics(self) -> Metrics:
        return (self.counts or Counts(len(self.options.names or ()))).metrics()

    def findings(self, metrics: Metrics) -> tuple[Finding, ...]:
        return self.inputs.found(metrics.nll)


def _signed(labels: np.ndarray) -> np.ndarray:
    """A copy of integers in int64, in which what is too large for it is no class either; else what they are."""
    if labels.dtype.kind == "u":
        labels = np.minimum(labels, np.uint64(2**63 - 1))
    return labels.astype(np.int64) if labels.dtype.kind in "iu" else labels
