"""`crossent calibrate`: a scaling is fitted to some rows of files, and judged by others, before and after."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from crossent import softmax
from crossent.tools import plain_json
from crossent.tools.arrays import as_numpy
from crossent.tools.files import check_file, write
from crossent.tools.score import scales, score
from crossent.tools.score.metrics import BINS, Metrics, bin_of
from crossent.tools.score.pairs import Pair, pair_of
from crossent.tools.score.readers import BadFile, Reading, paths_of, two_files
from crossent.tools.score.running import Score
from crossent.tools.score.said import bins_of
from crossent.tools.score.scaling import Method, Passes, Scaling, fitted
from crossent.tools.score.show import Shown


@dataclass(frozen=True)
class Judged:
    """Rows as they are, or scaled: what a Score finds, and the calibration error in two other ways.

    `adaptive` is that of bins with as many rows each; `by_class` that of the probabilities of each class, its mean.
    """

    metrics: Metrics
    adaptive: float
    by_class: float

    @property
    def numbers(self) -> dict[str, float]:
        m = self.metrics
        return {
            "nll": m.nll, "accuracy": m.accuracy, "brier": m.brier, "calibration_error": m.calibration.error,
            "adaptive_calibration_error": self.adaptive, "class_wise_calibration_error": self.by_class,
        }  # fmt: skip


@dataclass(frozen=True)
class Calibrated:
    """A scaling, how many rows it was fitted to, and what others, or the same ones, say of it."""

    scaling: Scaling
    fitted: int
    apart: bool
    before: Judged
    after: Judged

    @property
    def said(self) -> str:
        others = "others" if self.apart else "the same ones"
        rows = f"fitted to {self.fitted:,} rows, and judged by {self.before.metrics.rows:,} {others}"
        found = self.scaling.temperature
        return f"{'vector scaling' if found is None else f'temperature {found:.6g}'}, {rows}"

    @property
    def both(self) -> dict[str, Judged]:
        return {"before": self.before, "after": self.after}

    @property
    def table(self) -> Shown:
        after = self.after.numbers
        rows = [
            (name, form.format(value), form.format(after[key]), meaning)
            for (key, value), (name, form, meaning) in zip(self.before.numbers.items(), _SHOWN)
        ]
        return Shown("", ("metric.", "before", "after", "meaning."), rows)

    def as_dict(self) -> dict:
        found = {name: one.numbers | {"calibration": bins_of(one.metrics)} for name, one in self.both.items()}
        scaling = {"temperature": self.scaling.temperature} | asdict(self.scaling)
        return {"scaling": scaling, "fitted": self.fitted, "judged": self.before.metrics.rows} | found


_SHOWN = (
    ("mean NLL", "{:.4f}", "nats"),
    ("accuracy", "{:.2%}", "the largest logit is the label's"),
    ("Brier score", "{:.4f}", "squared error of the probabilities, 0 to 2"),
    ("calibration error", "{:.4f}", f"ECE, {BINS} bins: |accuracy - confidence|"),
    ("the same, adaptive", "{:.4f}", f"{BINS} bins with as many rows each"),
    ("the same, class-wise", "{:.4f}", "the same for each class's probability"),
)


def judged(passes: Passes, scaling: Scaling | None = None) -> Judged:
    total, bins, confidence, right = Score(top=0), np.zeros(1), [], []
    for z, labels in passes():
        z = z if scaling is None else scaling(z)
        total.update(z, labels)
        p = softmax(z, 1)
        confidence.append(p.max(1))
        right.append(z.argmax(1) == labels)
        place = bin_of(p) + BINS * np.arange(z.shape[1])
        bins = bins + np.bincount(place.ravel(), (np.arange(z.shape[1]) == labels[:, None]).ravel() - p.ravel(),
                                  BINS * z.shape[1])  # fmt: skip
    metrics, sure = total._held.metrics(), np.concatenate(confidence)
    edges = np.quantile(sure, np.arange(1, BINS) / BINS, method="inverted_cdf")
    adaptive = np.bincount(np.searchsorted(edges, sure), np.concatenate(right) - sure)
    return Judged(metrics, float(abs(adaptive).sum()) / len(sure), float(abs(bins).mean()) * BINS / len(sure))


def calibrated(
    files: Sequence[str], method: Method, split: float, seed: int, ignore_index: int, reading: Reading, **options: Any
) -> Calibrated:
    """Fit to the first two of four files, or to a share of the rows of two. `options` are those of `score`."""
    if not 0 < split <= 1:
        raise ValueError(f"--split must be above 0 and at most 1, got {split}")
    apart = len(files) == 4
    opened = []
    for some in (files[:2], files[2:]) if apart else (files,):
        names = two_files(some)
        # Which refuses what is bad, so that no pass has to look for it.
        scored = score(*names, top=0, ignore_index=ignore_index, reading=reading, **options)
        opened.append((pair_of(*names, reading), scored.total._held.scale, ignore_index, seed))
    (first, *_), (last, *_) = opened[0], opened[-1]
    if first.classes != last.classes:
        raise BadFile(f"{last.logits.path}: has {last.classes} classes, and {first.logits.path} has {first.classes}")
    whole = apart or split == 1
    to_fit = partial(_rows, *opened[0], 0.0, 1.0 if whole else split)
    to_judge = partial(_rows, *opened[-1], 0.0 if whole else split, 1.0)
    numbers = [sum(len(labels) for _, labels in passes()) for passes in (to_fit, to_judge)]
    for n, what in zip(numbers, ("fit a scaling to", "judge a scaling by")):
        if not n:
            raise BadFile(f"{first.logits.path}: there is no row to {what} among those that are not ignored")
    try:
        scaling = fitted(to_fit, method)
    except ValueError as error:
        raise BadFile(f"{first.logits.path}: {error}") from error
    return Calibrated(scaling, numbers[0], apart or split < 1, judged(to_judge), judged(to_judge, scaling))


def _rows(
    pair: Pair, scale: str, ignore_index: int, seed: int, low: float, high: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows that count and whose lots, drawn anew in each pass, are from `low` to `high`, in float64."""
    lots = np.random.default_rng(seed)
    for block in pair.blocks(scales.BLOCK):
        lot, labels = lots.random(len(block.labels)), block.labels.reshape(-1)
        kept = (labels != ignore_index) & ((low <= lot) & (lot < high)).repeat(block.labels[:1].size)
        z = as_numpy(block.logits.reshape(-1, pair.classes))[kept].astype(np.float64)
        yield scales.log_of(z) if scale == scales.PROBABILITIES else z, labels[kept].astype(np.int64)


def run(
    files: Sequence[str], *, as_json: bool, html: Path | None, save: Path | None, **options: Any
) -> int:  # fmt: skip
    """Everything but the parsing of the command line. Raises ValueError for what cannot be calibrated."""
    for path, option in ((html, "--html"), (save, "--save")):
        check_file(path, option, [found for name in files for found in paths_of(name)])
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    notes: list[str] = []

    def note(said: str) -> None:
        notes.append(said)
        errors.print(f"crossent calibrate: {said}")

    found = calibrated(files, note=note, **options)
    if html is not None:
        from crossent.tools.score.report import both

        summary = [
            (name, after, "", f"before {before}; {meaning}") for name, before, after, meaning in found.table.rows
        ]
        metrics = {name: one.metrics for name, one in found.both.items()}
        write(html, both("Calibration", files[0], [f"{found.said}."], notes, metrics, summary=summary, tables=()))
    if save is not None:
        found.scaling.save(save)
    if as_json:
        print(plain_json.text(found.as_dict(), indent=1))
        return 0
    console = Console(highlight=False, markup=False)
    console.print(found.said)
    found.table.print(console, box=None, pad_edge=False)
    return 0
