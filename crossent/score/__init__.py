"""`crossent score`: what stored logits and labels say of a model.

`formats` knows the files, `readers` makes one stream of rows of them, `metrics` counts, `show` and `report` show, and
`command` is all of it together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossent import PredictionStats, prediction_stats
from crossent.score.metrics import Accumulator, Metrics
from crossent.score.readers import BadFile, Rows, labels_of, logits_of, paired


@dataclass(frozen=True)
class Score:
    """The metrics of the first `done` of `rows` rows in so many `shards`; `places` are the files of the worst rows, and
    their numbers there."""

    logits: str
    labels: str
    done: int
    rows: int
    shards: int
    metrics: Metrics
    places: list[tuple[Path, int]]

    @property
    def complete(self) -> bool:
        return self.done == self.rows


def score(
    logits: str,
    labels: str,
    *,
    key: str | None = None,
    labels_key: str | None = None,
    ignore_index: int = -100,
    top: int = 10,
    go_on: Callable[[int, int], bool] = lambda done, rows: True,
) -> Score:
    """Score the files of these names or patterns, in the memory of one block of rows.

    `top` is how many of the worst rows are kept. `go_on` is told after each block how many rows are done, of how many,
    and says whether to go on. Raises `BadFile`, whose message names the file, for whatever is wrong with one, and
    KeyboardInterrupt where it is not to go on before any row counts.
    """
    stored = logits_of(logits, key)
    targets = labels_of(labels, labels_key)
    accumulator, done = Accumulator(stored.width, top, ignore_index), 0
    for done, classes, stats in _stats(stored, targets, ignore_index):
        accumulator.add(done - len(classes), classes, stats)
        if not go_on(done, len(stored)):
            break
    metrics = accumulator.metrics()
    if metrics is None:
        if done < len(stored):
            raise KeyboardInterrupt
        raise BadFile(f"{logits}: nothing to score, {'every label is ignored' if done else 'there are no rows'}")
    places = [stored.find(row) for row in metrics.worst["row"].tolist()]
    return Score(logits, labels, done, len(stored), len(stored.files), metrics, places)


def _stats(stored: Rows, targets: Rows, ignore_index: int):
    """Of each block the number of rows up to its end, its labels, and what each of its rows says."""
    for start, block, classes in paired(stored, targets, ignore_index):
        try:
            found = prediction_stats(block, _like(block, classes), ignore_index=ignore_index)
        except TypeError as error:
            raise BadFile(f"{stored.place(start)}: {error}") from error
        stats = PredictionStats(*(np.asarray(value) for value in found))
        bad = np.isnan(stats.logprob)
        if bad.any():
            raise BadFile(f"{stored.place(start + int(bad.argmax()))}: the logits hold nan or inf, or are all -inf")
        yield start + len(classes), classes, stats


def _like(block: Any, labels: np.ndarray) -> Any:
    """The labels as an array of the block's library."""
    if isinstance(block, np.ndarray):
        return labels
    import torch

    return torch.from_numpy(labels)
