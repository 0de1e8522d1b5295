"""`crossent score` and `crossent.Score`: what logits and labels say of a model.

`formats`, `text` and `tables` know the files, `roles` which of their columns are meant, `readers` makes one stream of
rows of them, `labels` and `pairs` put labels beside logits, and `scales` tells logits from probabilities. `running` has
the `Score`, for which `metrics` counts, in exact `sums`, `worst` keeps rows, `inputs` looks for mistakes, `said` makes
numbers and lists of it, and `partial` keeps it in a file. `show` and `report` show it, and `command` is all of it
together. `compare` is two Scores of the same rows; `scaling` fits temperatures and vectors, and `calibration` is the
command that does it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.tally import ENOUGH, ONE_BASED, one_based
from crossent.tools.score import partial, scales
from crossent.tools.score.compare import Comparison as Comparison
from crossent.tools.score.held import SKIPPED, Held, Part, Seen
from crossent.tools.score.inputs import along_rows
from crossent.tools.score.intervals import cells_of
from crossent.tools.score.metrics import Metrics
from crossent.tools.score.pairs import Block, pair_of
from crossent.tools.score.readers import BadFile, Reading, paths_of
from crossent.tools.score.rows import Columns
from crossent.tools.score.running import Score as Score
from crossent.tools.score.scaling import Scaling as Scaling, calibrate as calibrate
from crossent.tools.score.texts import UNITS, decoded, given
from crossent.tools.score.worst import WorstRow, natural


class Scored:
    """A Score, `total`, of the first `done` of `rows` rows of files."""

    def __init__(self, total: Score, rows: int, done: int):
        self.total, self.rows, self.done = total, rows, done

    @property
    def held(self) -> Held:
        return self.total._held

    @property
    def complete(self) -> bool:
        return self.done == self.rows

    def save(self, path: Path) -> None:
        """As a part, whose name is made of what was counted."""
        self.held.parts = {name or partial.name(self.held, part): part for name, part in self.held.parts.items()}
        self.total.save(path)

    @cached_property
    def metrics(self) -> Metrics:
        return self.held.metrics()

    @property
    def worst(self) -> tuple[WorstRow, ...]:
        return self.held.worst.rows

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.held.findings(self.metrics)

    @cached_property
    def parts(self) -> list[Part]:
        """In the order of their names."""
        return sorted(self.held.parts.values(), key=lambda part: (natural(part.logits), part.logits, part.labels))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken for what."""
        return tuple(dict.fromkeys(note for part in self.parts for note in part.notes))


def score(
    logits: str,
    labels: str | None = None,
    *,
    empty: bool = False,
    each: Callable[[Columns], None] | None = None,
    go_on: Callable[[int, int], bool] = lambda done, rows: True,
    **options: Any,
) -> "Opened":
    """Score the files of these names or patterns, in the memory of one block of rows.

    `options` are those of `Opened`. `empty` says that there need be no row that counts, and `each` is as in Score's
    `update`, with the file as well. `go_on` is told after each block how many rows are done, of how many, and says
    whether to go on. Raises `BadFile`, whose message names the file, for whatever is wrong with one, and
    KeyboardInterrupt where it is to stop before any row counts.
    """
    begun = Opened(logits, labels, **options)
    for block in begun.blocks():
        begun.count(block, begun.seen(block), each)
        if not go_on(begun.done, begun.rows):
            break
    return begun.scored(empty)


class Opened(Scored):
    """Files, a `part` of which no row counts yet.

    Without `labels` they are in the file of the logits. `reading` says how files are read and `scale`, one of `SCALES`,
    what the numbers are, where the files are not to say so. `beside` has what else rows have by its name, "group",
    "bytes" or "words", as FILE or FILE:COLUMN, or the number of all bytes or words; of a `tokenizer` these are what its
    `batch_decode` makes of the labels. `note` is told what was taken for what. Other `options` are those of a Score.
    """

    def __init__(
        self, logits: str, labels: str | None, *, note: Callable[[str], None] = lambda said: None,
        reading: Reading | None = None, scale: scales.Scale | None = None, beside: Mapping[str, str] | None = None,
        tokenizer: Any = None, **options: Any,
    ):  # fmt: skip
        reading, beside = reading or Reading(), dict(beside or {})
        self._totals = {name: int(beside.pop(name)) for name in UNITS if beside.get(name, "").isdecimal()}
        self.pair = pair = pair_of(logits, labels, reading, beside)
        self._asked, self._tokenizer, said, scaling = scale, tokenizer, "", options.get("scaling")
        if scale is None:
            scale, said = scales.scale_of(pair, options.get("ignore_index", -100))
        scaled = "" if scaling is None else f"the logits are scaled: {scaling.said}"
        notes = (*pair.notes, *filter(None, (said, scaled)))
        for one in notes:
            note(one)
        super().__init__(Score(scale=scale, names=pair.names, skip_bad=reading.skip_bad, **options), pair.rows, 0)
        self._shift = self.held.options.shift
        for option, on in (("--shift", self._shift), ("--tokenizer", tokenizer)):
            if on and len(pair.shape) != 2:
                shape = pair.logits.shape
                raise BadFile(f"{pair.logits.path}: {option} needs logits of shape (rows, time, classes), got {shape}")
        # Where there are as many rows as classes, which no block can tell, the classes may lie along the rows.
        square = pair.axis and pair.logits.shape[1:] == pair.shape and pair.rows >= ENOUGH and pair.classes >= 3
        if square and self.held.scale == scales.LOGITS and not self._shift:
            self.held.inputs.along[0] = along_rows(pair, self.held.options.ignore_index)
        self.part = Part(logits, logits if labels is None else labels, len(pair.logits.files), notes)

    def blocks(self) -> Iterator[Block]:
        return self.pair.blocks(None if self.held.scale == scales.LOGITS else scales.BLOCK)

    def seen(self, block: Block, paired: bool = False) -> Seen:
        """The rows of a block, none of which counts yet. `paired` rows are drawn alike, whatever files they are in."""
        labels, pair = block.labels, self.pair
        path, first = pair.find(block.start) if labels.size else ("", 0)
        numbers = (first[0] if isinstance(first, tuple) else first) + np.arange(len(labels))
        start = np.unravel_index(block.start, pair.shape)[0] if paired and labels.size else 0
        cells = cells_of("", start + np.arange(len(labels))) if paired else None
        self._check_labels(block)
        with self._naming(block):
            return self.held.look(block.logits, pair.axis, labels, numbers, str(path), cells)

    def _check_labels(self, block: Block) -> None:
        labels, start, pair, ignored = block.labels, block.start, self.pair, self.held.options.ignore_index
        if labels.dtype.kind not in "iu":
            where = pair.place(start, pair.labels.rows) if len(labels) else pair.labels.rows.path
            raise BadFile(f"{where}: labels must be integers, got {labels.dtype}")
        bad = (labels < 0) | (labels >= pair.classes)
        if self.held.options.skip_bad or not bad.any():
            return
        bad &= labels != ignored
        if self._shift:
            bad[..., : self._shift] = False  # of which nothing is asked
        if bad.any():
            row, targets = int(bad.argmax()), pair.targets()
            targets = targets[targets != ignored]
            advice = f". {ONE_BASED}" if one_based(targets.min(), targets.max(), pair.classes) else ""
            raise BadFile(
                f"{pair.place(start + row, pair.labels.rows)}: label {labels.reshape(-1)[row]} is out of bounds: "
                f"labels must be between 0 and {pair.classes - 1}, or {ignored} to be ignored{advice}"
            )

    def count(self, block: Block, seen: Seen, each: Callable[[Columns], None] | None = None) -> None:
        lengths = self._totals | {name: values for name, values in block.beside.items() if name in UNITS}
        measure = given(lengths, self._shift) if lengths else self._tokenizer and decoded(self._tokenizer)
        self._totals = dict.fromkeys(self._totals, 0)  # which the first block has had
        with self._naming(block):
            self.held.count(seen, block.beside.get("group"), measure)
            if each is not None:
                each(seen.columns(block.beside))
        self.done = block.start + block.labels.size

    @contextmanager
    def _naming(self, block: Block) -> Iterator[None]:
        try:
            yield
        except TypeError as error:
            where = self.pair.place(block.start) if block.labels.size else self.pair.logits.path
            raise BadFile(f"{where}: {error}") from error
        except ValueError as error:
            raise BadFile(str(error)) from error

    def scored(self, empty: bool = False) -> "Opened":
        held = self.held
        if not held.counts.scored:
            if not self.complete:
                raise KeyboardInterrupt
            if not empty:
                raise _nothing(self.part.logits, held)
            held.options = replace(held.options, scale=self._asked)
        held.parts = {"": self.part}
        return self


def merged(files: Sequence[str], *, top: int | None = None, empty: bool = False) -> Scored:
    """The score of all rows whose partial results are in the files of these names or patterns.

    `top` is how many of the worst rows are shown, None for as many as the parts keep. Raises ValueError, whose message
    names the file, for one that is no part, does not fit those before it, or has rows of one of them.
    """
    first, *others = (path for name in files for path in paths_of(name))
    total = Score.load(first)
    held = total._held
    for path in others:
        held.merge(str(path), partial.read(path))
    if top is not None and top > held.options.top:
        kept = held.options.top
        raise BadFile(f"--top asks for {top} rows, and each part keeps {kept}: score the parts with --top {top}")
    held.keep(held.options.top if top is None else top)
    if not held.counts.scored and not empty:
        raise _nothing(first, held)
    rows = held.counts.ignored + held.counts.scored + held.skipped.total()
    return Scored(total, rows, rows)


def _nothing(files: Any, held: Held) -> BadFile:
    why = "every label is ignored" if held.counts.ignored else "there are no rows"
    if skipped := held.skipped:
        why = f"every row is ignored or skipped ({', '.join(f'{n:,}: {SKIPPED[what]}' for what, n in skipped.items())})"
    return BadFile(f"{files}: nothing to score, {why}")
