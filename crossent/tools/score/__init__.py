"""`crossent score`: what stored logits and labels say of a model.

`formats`, `text` and `parquet` know the files, `roles` which of their columns are meant, `readers` makes one stream of
rows of them, `labels` and `pairs` put labels beside logits, `scales` tells logits from probabilities, `metrics` counts,
`inputs` looks for mistakes, `show` and `report` show, and `command` is all of it together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossent import PredictionStats, prediction_stats
from crossent.tools.arrays import like
from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.tally import ONE_BASED, one_based
from crossent.tools.score import scales
from crossent.tools.score.inputs import Inputs
from crossent.tools.score.metrics import Accumulator, Metrics
from crossent.tools.score.pairs import Pair, pair_of
from crossent.tools.score.readers import BadFile, Reading


@dataclass(frozen=True)
class Score:
    """The metrics of the first `done` of `rows` rows in so many `shards`; `places` are the files of the worst rows, and
    their numbers there. `notes` say what was taken for what, `findings` what looks like a mistake."""

    logits: str
    labels: str
    done: int
    rows: int
    shards: int
    metrics: Metrics
    places: list[tuple[Path, Any]]
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def complete(self) -> bool:
        return self.done == self.rows


def score(
    logits: str,
    labels: str | None = None,
    *,
    reading: Reading | None = None,
    scale: str | None = None,
    ignore_index: int = -100,
    top: int = 10,
    note: Callable[[str], None] = lambda said: None,
    go_on: Callable[[int, int], bool] = lambda done, rows: True,
) -> Score:
    """Score the files of these names or patterns, in the memory of one block of rows.

    Without `labels` they are in the file of the logits. `reading` says how files are read and `scale`, one of `SCALES`,
    what the numbers are, where the files are not to say so. `top` is how many of the worst rows are kept. `note` is
    told what was taken for what, before any row counts. `go_on` is told after each block how many rows are done, of how
    many, and says whether to go on. Raises `BadFile`, whose message names the file, for whatever is wrong with one, and
    KeyboardInterrupt where it is not to go on before any row counts.
    """
    pair = pair_of(logits, labels, reading or Reading())
    scale, said = (scale, "") if scale else scales.scale_of(pair, ignore_index)
    notes = (*pair.notes, said) if said else pair.notes
    for one in notes:
        note(one)
    accumulator, done = Accumulator(pair.classes, top, ignore_index), 0
    inputs = Inputs(pair, scale, ignore_index)
    for done, classes, stats in _stats(pair, scale, ignore_index, inputs):
        accumulator.add(done - len(classes), classes, stats)
        if not go_on(done, pair.rows):
            break
    metrics = accumulator.metrics()
    if metrics is None:
        if done < pair.rows:
            raise KeyboardInterrupt
        raise BadFile(f"{logits}: nothing to score, {'every label is ignored' if done else 'there are no rows'}")
    places = [pair.find(row) for row in metrics.worst["row"].tolist()]
    return Score(
        logits, logits if labels is None else labels, done, pair.rows, len(pair.logits.files), metrics, places, notes,
        inputs.found(metrics.nll),
    )  # fmt: skip


def _stats(pair: Pair, scale: str, ignore_index: int, inputs: Inputs):
    """Of each block the number of rows up to its end, its labels, and what each of its rows says."""
    for start, block, labels in pair.blocks(None if scale == scales.LOGITS else scales.BLOCK):

        def place(row: int, start: int = start) -> str:
            return pair.place(start + row)

        flat = labels.reshape(-1)
        kept = flat != ignore_index
        _check_labels(pair, flat, kept, start, ignore_index)
        flat = flat.astype(np.int64)
        rows = scales.as_logits(block.reshape(-1, pair.classes), scale, kept, place)
        try:
            found = prediction_stats(rows, like(rows, flat), ignore_index=ignore_index)
        except TypeError as error:
            raise BadFile(f"{place(0) if len(flat) else pair.logits.path}: {error}") from error
        stats = PredictionStats(*(np.asarray(value) for value in found))
        bad = np.isnan(stats.logprob)
        if bad.any():
            raise BadFile(f"{place(int(bad.argmax()))}: the logits hold nan or inf, or are all -inf")
        inputs.add(block, rows, labels, kept, stats.prediction)
        yield start + len(flat), flat, stats


def _check_labels(pair: Pair, labels: np.ndarray, kept: np.ndarray, start: int, ignore_index: int) -> None:
    where = pair.label_place(start) if len(labels) else pair.labels.path
    if labels.dtype.kind not in "iu":
        raise BadFile(f"{where}: labels must be integers, got {labels.dtype}")
    bad = ((labels < 0) | (labels >= pair.classes)) & kept
    if bad.any():
        row = int(bad.argmax())
        targets = pair.targets()
        targets = targets[targets != ignore_index]
        advice = f". {ONE_BASED}" if one_based(targets.min(), targets.max(), pair.classes) else ""
        raise BadFile(
            f"{pair.label_place(start + row)}: label {labels[row]} is out of bounds: labels must be between 0 and "
            f"{pair.classes - 1}, or {ignore_index} to be ignored{advice}"
        )
