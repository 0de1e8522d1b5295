"""`crossent calibrate`: a scaling is fitted to some rows of files, and judged by others, before and after."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crossent import softmax
from crossent.tools.arrays import as_numpy
from crossent.tools.score import Opened, plots, scales, score
from crossent.tools.score.command import Errors, answered
from crossent.tools.score.held import SKIPPED
from crossent.tools.score.metrics import BINS, bin_of
from crossent.tools.score.readers import BadFile, two_files
from crossent.tools.score.running import Score
from crossent.tools.score.said import bins_of
from crossent.tools.score.scaling import Method, Passes, Scaling, fitted
from crossent.tools.score.show import Answer, Cells, Page, Shown, left_out, metrics_of, reliability

_TOP = 10  # classes that are shown


class Judged:
    """Rows as they are, or scaled: what a Score finds, and the calibration error in two other ways.

    Bins with as many rows each give the adaptive one, and `by_class` is that of the probabilities of each class.
    """

    def __init__(self, passes: Passes, scaling: Scaling | None = None):
        total, bins, confidence, right = Score(top=0), np.zeros(1), [], []
        for z, labels in passes():
            z = z if scaling is None else scaling(z)
            total.update(z, labels)
            p = softmax(z, 1)
            confidence.append(p.max(1))
            right.append(z.argmax(1) == labels)
            place = bin_of(p) + BINS * np.arange(z.shape[1])
            off = (np.arange(z.shape[1]) == labels[:, None]).ravel() - p.ravel()
            bins = bins + np.bincount(place.ravel(), off, BINS * z.shape[1])
        self.metrics, sure = total._held.metrics(), np.concatenate(confidence)
        edges = np.quantile(sure, np.arange(1, BINS) / BINS, method="inverted_cdf")
        adaptive = np.bincount(np.searchsorted(edges, sure), np.concatenate(right) - sure)
        self.by_class = abs(bins).reshape(-1, BINS).sum(1) / len(sure)
        names = ("nll", "accuracy", "brier", "calibration_error")
        self.numbers = {name: self.metrics.numbers[name] for name in names}
        self.numbers["adaptive_calibration_error"] = float(abs(adaptive).sum()) / len(sure)
        self.numbers["class_wise_calibration_error"] = float(self.by_class.mean())


def run(
    files: Sequence[str], *, as_json: bool = False, html: Path | None = None, save: Path | None = None, **options: Any
) -> int:
    """Everything but the parsing of the command line."""
    find = partial(_answer, files, **options)
    return answered("calibrate", files, find, files={"--html": html, "--save": save}, as_json=as_json)


def _answer(
    files: Sequence[str], errors: Errors, *, method: Method = "temperature", split: float = 0.5, seed: int = 0,
    **options: Any,
) -> Answer:  # fmt: skip
    """Fit to the first two of four files, or to a share of the rows of two. `options` are those of `Opened`."""
    if not 0 < split <= 1:
        raise ValueError(f"--split must be above 0 and at most 1, got {split}")
    apart = len(files) == 4
    # Scored once, which refuses what is bad, so that no pass has to look for it.
    parts = (files[:2], files[2:]) if apart else (files,)
    begun = [score(*two_files(some), top=0, note=errors.note, **options) for some in parts]
    first, last = begun[0], begun[-1]
    where = first.pair.logits.path
    if first.pair.classes != last.pair.classes:
        raise BadFile(f"{last.pair.logits.path}: has {last.pair.classes} classes, and {where} has {first.pair.classes}")
    whole = apart or split == 1
    to_fit = partial(_rows, first, seed, 0.0, 1.0 if whole else split)
    to_judge = partial(_rows, last, seed, 0.0 if whole else split, 1.0)
    numbers = [sum(len(labels) for _, labels in some()) for some in (to_fit, to_judge)]
    for n, what in zip(numbers, ("fit a scaling to", "judge a scaling by")):
        if not n:
            raise BadFile(f"{where}: there is no row to {what} among those that are not ignored")
    try:
        scaling = fitted(to_fit, method)
    except ValueError as error:
        raise BadFile(f"{where}: {error}") from error
    name = "vector scaling" if scaling.temperature is None else f"temperature {scaling.temperature:.6g}"
    others = "others" if apart or split < 1 else "the same ones"
    head = f"{name}, fitted to {numbers[0]:,} rows, and judged by {numbers[1]:,} {others}"
    found = {"scaling": {"temperature": scaling.temperature} | asdict(scaling), "fitted": numbers[0]}
    found |= {"judged": numbers[1], "notes": errors.notes}
    found["skipped"] = {what: last.held.skipped[what] for what in SKIPPED}
    both = {"before": Judged(to_judge), "after": Judged(to_judge, scaling)}
    head += "".join(left_out(one) for one in begun)
    return replace(_shown(files[0], head, found, both, last.pair.names), saved={"--save": scaling.save})


def _shown(
    title: str, head: str, found: dict[str, Any], both: dict[str, Judged], names: Sequence[str] | None
) -> Answer:
    for name, one in both.items():
        found[name] = one.numbers | {"calibration": bins_of(one.metrics.calibration), "by_class": one.by_class.tolist()}
    before, after = both.values()
    rows = [
        (metric.name, metric.number(before.numbers[key]), metric.number(after.numbers[key]), metric.meaning)
        for key, metric in metrics_of(before.numbers, before.metrics).items()
    ]
    shown = both if before.metrics.shown_calibration is before.metrics.by_octave else {}
    bins = [reliability(one.metrics.by_octave, f"Rows by confidence, {name}") for name, one in shown.items()]
    numbers = Shown("", ("metric.", "before", "after", "meaning."), rows)
    cards = [(name, now, "", f"before {once}; {meaning}") for name, once, now, meaning in rows]
    drawn = partial(plots.of_models, {name: one.metrics for name, one in both.items()})
    page = Page(head, numbers, cards, drawn, [*bins, _classes(both, names)])
    return Answer("Calibration", title, lambda: found, lambda: page, found["notes"])


def _classes(both: dict[str, Judged], names: Sequence[str] | None) -> Shown:
    before, after = (one.by_class.tolist() for one in both.values())
    rows = both["before"].metrics.by_class.rows.tolist()
    worst = sorted(range(len(before)), key=lambda c: -before[c])[:_TOP]
    found = [{"label": c, "rows": rows[c], "before": before[c], "after": after[c]} for c in worst]
    columns = {"class": "{label:class}", "rows": "{rows:,}", "before": "{before:.4f}", "after": "{after:.4f}"}
    return Cells(names).table("Calibration error by class", found, columns)


def _rows(begun: Opened, seed: int, low: float, high: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows that count and whose lots, drawn anew in each pass, are from `low` to `high`, in float64."""
    lots, held = np.random.default_rng(seed), begun.held
    for block in begun.pair.blocks(scales.BLOCK):
        lot, labels = lots.random(len(block.labels)), block.labels.reshape(-1)
        counts = begun.seen(block).kept if held.options.skip_bad else labels != held.options.ignore_index
        kept = counts & ((low <= lot) & (lot < high)).repeat(block.labels[:1].size)
        z = as_numpy(block.logits.reshape(-1, begun.pair.classes))[kept].astype(np.float64)
        yield scales.log_of(z) if held.scale == scales.PROBABILITIES else z, labels[kept].astype(np.int64)
