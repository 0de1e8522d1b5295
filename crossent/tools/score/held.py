"""All that a Score is made of: what it counts, and what of others fits it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
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
from crossent.tools.score.rows import Columns, spread
from crossent.tools.score.scales import Scale
from crossent.tools.score.scaling import Scaling
from crossent.tools.score.sums import ratio
from crossent.tools.score.texts import Measure, shifted
from crossent.tools.score.worst import Document, Index, Worst, WorstRow, shown

_MOST_RANKS = 20
# What may be wrong with rows that are skipped.
SKIPPED = {"labels": "label is no class", "logits": "nan, inf or no number", "scale": "other numbers than said"}


@dataclass(frozen=True)
class Options:
    """What all parts of a score have in common. `scale` is None where no row that counts has told it."""

    top: int = 10
    ignore_index: int = -100
    scale: Scale | None = scales.LOGITS
    names: Sequence[str] | None = None
    skip_bad: bool = False
    shift: int = 0
    scaling: Scaling | None = None
    top_k: Sequence[int] = (5,)

    def __post_init__(self) -> None:
        ranks, names = tuple(sorted({whole_number("top_k", k, 1) for k in self.top_k})), self.names
        if len(ranks) > _MOST_RANKS:
            raise ValueError(f"top_k must be at most {_MOST_RANKS} numbers, got {len(ranks)}")
        if self.scale not in (*scales.SCALES, None):
            raise ValueError(f"scale must be one of {', '.join(scales.SCALES)}, got {self.scale!r}")
        if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
            raise TypeError(f"names must be a sequence of names, got {names!r}")
        if not isinstance(self.scaling, Scaling | None):
            raise TypeError(f"scaling must be a crossent.Scaling, got {type(self.scaling).__name__}")
        known = {"top": whole_number("top", self.top, 0), "shift": whole_number("shift", self.shift, 0)}
        known |= {"ignore_index": integer("ignore_index", self.ignore_index), "skip_bad": bool(self.skip_bad)}
        known |= {"names": None if names is None else tuple(names), "top_k": ranks}
        vars(self).update(known)  # which is the way into a frozen one


@dataclass(frozen=True)
class Part:
    """Where rows that were counted together came from: nowhere, or so many `files` of logits by these names."""

    logits: str = ""
    labels: str = ""
    files: int = 0
    notes: tuple[str, ...] = ()


class Seen:
    """Rows that were looked at: which of them count, and what is known of these.

    `labels` have the shape of the block without its classes, all else is flat. `numbers` are those of the rows along
    the first axis in their `file`, which is None where they come from none, and `cells` theirs in the sample. `wrong`
    says which rows are skipped for what. `logits` and `block` are the rows as logits, and as they came: with their
    classes last, which belong at `axis`. Raises ValueError or IndexError for what cannot count, or skips it.
    """

    def __init__(
        self, options: Options, block: Any, axis: int, labels: np.ndarray, numbers: np.ndarray, file: str | None,
        cells: np.ndarray | None,
    ):  # fmt: skip
        self.block, self.axis, self.numbers, self.file = block, axis, numbers, file
        self.cells = cells_of(file and Path(file).name or "", numbers) if cells is None else cells
        self.wrong: dict[str, np.ndarray] = {}
        classes, ignored, given, labels = block.shape[-1], options.ignore_index, labels, _signed(labels)
        if options.shift:
            given = labels = shifted(labels, options.shift, ignored)
        self.labels, self.kept, self.logits = labels, labels.reshape(-1) != ignored, block.reshape(-1, classes)
        self.shape: tuple[int, ...] = labels.shape or (1,)

        def leave_out(what: str, bad: np.ndarray, why: Callable[[str, int], ValueError]) -> None:
            if options.skip_bad:
                self.skip({what: bad})
            elif (bad := bad & self.kept).any():
                file, index = self.find(row := int(bad.argmax()))
                raise why(f"{'' if file is None else f'{file}: '}row {shown(index)}", row)

        if options.skip_bad and labels.dtype.kind in "iu":
            leave_out("labels", ((labels < 0) | (labels >= classes)).reshape(-1), ValueError)
        if options.scale not in (None, scales.LOGITS):
            leave_out("scale", *scales.misfits(self.logits, options.scale))
        if options.scale == scales.PROBABILITIES:
            self.logits = scales.log_of(self.logits)
        if self.wrong:
            given = labels = np.where(self.kept.reshape(labels.shape), labels, ignored)
        scaled = self.logits if options.scaling is None else options.scaling(self.logits)
        shaped = scaled.reshape(block.shape)
        given = given if is_numpy(shaped) else like(shaped, labels)
        found = prediction_stats(shaped, given, dim=-1, ignore_index=ignored)
        self.stats = PredictionStats(*(as_numpy(value).reshape(-1) for value in found))
        bad = np.isnan(self.stats.logprob)
        leave_out("logits", bad, lambda place, _: ValueError(f"{place}: the logits hold nan or inf, or are all -inf"))

    @property
    def losses(self) -> np.ndarray:
        return np.maximum(0.0 - self.stats.logprob, 0.0)

    def find(self, row: int) -> tuple[str | None, Index]:
        """Where it is."""
        first, *more = map(int, np.unravel_index(row, self.shape))
        return self.file, (int(self.numbers[first]), *more)

    def places(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By which rows are in order: the number of each, and where it is behind the first axis."""
        inner = len(self.kept) // max(1, len(self.numbers))
        return self.numbers[at // inner], at % inner

    def skip(self, wrong: Mapping[str, np.ndarray]) -> None:
        """Leave those out, of which something is wrong."""
        for what, bad in wrong.items():
            if (bad := bad & self.kept).any():
                self.wrong[what] = self.wrong.get(what, False) | bad
                self.kept = self.kept & ~bad

    def columns(self, beside: Mapping[str, np.ndarray] | None = None) -> Columns:
        """Of the rows that count, where they are, what was found, and what is beside them."""
        first, *more = np.unravel_index(np.flatnonzero(self.kept), self.shape)
        found = {} if self.file is None else {"file": np.broadcast_to(np.array(self.file), len(first))}
        found |= {"row": self.numbers[first]} | {f"index_{i}": index for i, index in enumerate(more, 1)}
        known = {"label": self.labels.reshape(-1), "prediction": self.stats.prediction, "rank": self.stats.rank}
        known |= {"loss": self.losses, "confidence": self.stats.confidence, "brier": self.stats.brier}
        known |= {name: spread(values, self.shape) for name, values in (beside or {}).items()}
        return found | {name: column[self.kept] for name, column in known.items()}


class Held:
    """`parts` have names that no others have. `skipped` has how many rows were left out for what is wrong in their
    labels, their logits or their scale."""

    def __init__(self, options: Options):
        self.options, self.counts = options, Counts(len(options.names or ()), options.top_k)
        self.parts: dict[str, Part] = {}
        self.skipped: Counter[str] = Counter()
        self.worst: Worst[WorstRow] = Worst(options.top)
        self.documents: Worst[Document] = Worst(options.top)
        self.inputs = Inputs(self.scale, options.ignore_index)

    @property
    def scale(self) -> Scale:
        """Where no row has told it, the rows to come are logits."""
        return self.options.scale or scales.LOGITS

    def look(
        self, block: Any, axis: int, labels: np.ndarray, numbers: np.ndarray, file: str | None = None,
        cells: np.ndarray | None = None,
    ) -> Seen:  # fmt: skip
        """As Seen."""
        self.check_classes(block.shape[-1])
        return Seen(self.options, block, axis, labels, numbers, file, cells)

    def count(self, seen: Seen, groups: np.ndarray | None = None, measure: Measure | None = None) -> None:
        """`groups` are names for each row or each label, and `measure` is asked for lengths."""
        shape, kept, numbers, stats, labels = seen.shape, seen.kept, seen.numbers, seen.stats, seen.labels
        if seen.wrong:
            labels = np.where(kept.reshape(labels.shape), labels, self.options.ignore_index)
        counts = self.counts if self.counts.classes else Counts(seen.block.shape[-1], self.options.top_k)
        lengths = measure(labels, kept.reshape(shape)) if measure else {}
        if (counts.units or counts.lengths) and lengths.keys() != counts.lengths.keys():
            raise ValueError("bytes and words must be given for all rows or for none")
        columns = {"label": labels.reshape(-1), **stats._asdict(), "cell": spread(seen.cells, shape)}
        units = _different(numbers, kept) if len(kept) else 0
        counts.add(columns, kept, units, None if groups is None else spread(groups, shape))
        counts.add_lengths(lengths, seen.cells)
        self.options, self.counts = replace(self.options, scale=self.scale), counts
        skipped = {what: int(bad.sum()) for what, bad in seen.wrong.items()}
        self.skipped.update(skipped)
        counts.ignored += len(kept) - int(kept.sum()) - sum(skipped.values())
        self.inputs.add(seen.block, seen.axis, seen.logits, labels, kept, stats.prediction)
        known = [columns[name] for name in ("label", "prediction", "rank", "logprob", "confidence")]
        self.worst.add(
            np.flatnonzero(kept), -stats.logprob, lambda at: (*seen.places(at), *(column[at] for column in known)),
            lambda i: WorstRow(*seen.find(i), *(column[i].item() for column in known)),
        )  # fmt: skip
        if len(shape) == 2:
            tokens = kept.reshape(shape).sum(1)
            means = ratio(np.where(kept, seen.losses, 0.0).astype(np.float64).reshape(shape).sum(1), tokens)
            counts.add_documents(means[tokens > 0], seen.cells[tokens > 0])
            self.documents.add(
                np.flatnonzero(tokens), means, lambda at: (numbers[at], tokens[at]),
                lambda i: Document(seen.file, (int(numbers[i]),), int(tokens[i]), float(means[i])),
            )  # fmt: skip

    def check_classes(self, classes: int) -> None:
        names, before = self.options.names, self.counts.classes
        if names is not None and len(names) != classes:
            raise ValueError(f"names must have one for each of the {classes} classes, got {len(names)}")
        if before not in (0, classes):
            raise ValueError(f"input has {classes} classes, and that of the rows before {before}")

    @property
    def common(self) -> dict[str, Any]:
        """What all that are merged have in common, as far as it is known, by what messages call it."""
        counts, known = self.counts, ("ignore_index", "scale", "scaling", "shift", "top", "top_k", "names")
        found = {name: getattr(self.options, name) for name in known}
        if self.options.scale is None:
            del found["scale"]
        if counts.classes:
            found["the number of classes"] = counts.classes
        if counts.units:
            found["whether rows have groups"] = bool(counts.groups.names)
            found["what lengths are known"] = sorted(counts.lengths)
        return found

    def merge(self, name: str, other: "Held") -> None:
        """Another one, which messages call `name`. Raises ValueError, and is of no use then, where it does not fit."""
        theirs = other.common
        for what, here in self.common.items():
            if (there := theirs.get(what, here)) != here:
                what, here, there = _named(here, there) if what == "names" else (what, here, there)
                raise ValueError(f"{name}: {what} is {there!r}, but {here!r} in what came before: score all alike")
        if self.parts.keys() & other.parts.keys():
            raise ValueError(f"{name}: its rows are counted already: merge each part once")
        self.options = replace(self.options, scale=self.options.scale or other.options.scale)
        if other.counts.classes:
            self.counts = self.counts if self.counts.classes else Counts(other.counts.classes, self.options.top_k)
            self.counts.merge(other.counts)
        self.worst.merge(other.worst.rows)
        self.documents.merge(other.documents.rows)
        self.inputs.merge(other.inputs)
        self.inputs.scale = self.scale
        self.parts |= other.parts
        self.skipped.update(other.skipped)

    def keep(self, top: int) -> None:
        """No more than so many of the worst rows."""
        self.worst, self.documents = Worst(top, self.worst.rows[:top]), Worst(top, self.documents.rows[:top])
        self.options = replace(self.options, top=top)

    def metrics(self) -> Metrics:
        return Metrics(self.counts.settled())

    def findings(self, metrics: Metrics) -> tuple[Finding, ...]:
        return self.inputs.found(metrics.nll)


def _named(here: Any, there: Any) -> tuple[str, Any, Any]:
    """What differs in the names of classes."""
    if here is None or there is None:
        return "names", here and here[:3], there and there[:3]
    pairs = enumerate(zip_longest(here, there))
    return next((f"the name of class {i}", one, other) for i, (one, other) in pairs if one != other)


def _different(numbers: np.ndarray, kept: np.ndarray) -> int:
    """How many different numbers there are of which something counts."""
    found = numbers[kept if len(kept) == len(numbers) else kept.reshape(len(numbers), -1).any(1)]
    return len(found) if (found[1:] > found[:-1]).all() else len(np.unique(found))


def _signed(labels: np.ndarray) -> np.ndarray:
    """A copy of integers in int64, in which what is too large for it is no class either; else what they are."""
    if labels.dtype.kind == "u":
        labels = np.minimum(labels, np.uint64(2**63 - 1))
    return labels.astype(np.int64) if labels.dtype.kind in "iu" else labels
