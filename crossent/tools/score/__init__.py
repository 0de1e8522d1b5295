"""`crossent score` and `crossent.Score`: what logits and labels say of a model.

`formats`, `text` and `parquet` know the files, `roles` which of their columns are meant, `readers` makes one stream of
rows of them, `labels` and `pairs` put labels beside logits, and `scales` tells logits from probabilities. `running` has
the `Score`, for which `metrics` counts, in exact `sums`, `worst` keeps rows, `inputs` looks for mistakes, `said` makes
numbers and lists of it, and `partial` keeps it in a file. `show` and `report` show it, and `command` is all of it
together. `scaling` fits temperatures and vectors, and `calibration` is the command that does it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.tally import ENOUGH, ONE_BASED, one_based
from crossent.tools.score import partial, scales
from crossent.tools.score.held import SKIPPED, Held, Options, Part
from crossent.tools.score.inputs import along_rows
from crossent.tools.score.metrics import Metrics
from crossent.tools.score.pairs import Block, Pair, pair_of
from crossent.tools.score.readers import BadFile, Reading, paths_of
from crossent.tools.score.rows import Columns, places, spread
from crossent.tools.score.running import Score as Score
from crossent.tools.score.scaling import Scaling as Scaling, calibrate as calibrate
from crossent.tools.score.texts import UNITS, decoded, given
from crossent.tools.score.worst import Index, WorstRow, natural


@dataclass(frozen=True)
class Scored:
    """A Score of the first `done` of `rows` rows of files."""

    total: Score
    done: int
    rows: int

    @property
    def complete(self) -> bool:
        return self.done == self.rows

    @property
    def top(self) -> int:
        """How many of the worst rows there are at most."""
        return self.total._held.options.top

    def save(self, path: Path) -> None:
        """As a part, whose name is made of what was counted."""
        held = self.total._held
        held.parts = {name or partial.name(held, part): part for name, part in held.parts.items()}
        self.total.save(path)

    @cached_property
    def metrics(self) -> Metrics:
        return self.total._held.metrics()

    @property
    def worst(self) -> tuple[WorstRow, ...]:
        return self.total._held.worst.rows

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return self.total._held.findings(self.metrics)

    @cached_property
    def parts(self) -> list[Part]:
        """In the order of their names."""
        return sorted(
            self.total._held.parts.values(), key=lambda part: (natural(part.logits), part.logits, part.labels)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken for what."""
        return tuple(dict.fromkeys(note for part in self.parts for note in part.notes))

    @property
    def texts(self) -> dict[str, Any]:
        """What is known of bytes, words and documents."""
        return self.total._held.texts.result(self.metrics.nll * self.metrics.rows)

    @property
    def files(self) -> int:
        """Of logits."""
        return sum(part.files for part in self.parts)


def score(
    logits: str,
    labels: str | None = None,
    *,
    reading: Reading | None = None,
    scale: scales.Scale | None = None,
    ignore_index: int = -100,
    scaling: Scaling | None = None,
    top: int = 10,
    top_k: Sequence[int] = (5,),
    empty: bool = False,
    beside: Mapping[str, str] | None = None,
    shift: int = 0,
    tokenizer: Any = None,
    each: Callable[[Columns], None] | None = None,
    note: Callable[[str], None] = lambda said: None,
    go_on: Callable[[int, int], bool] = lambda done, rows: True,
) -> Scored:
    """Score the files of these names or patterns, in the memory of one block of rows.

    Without `labels` they are in the file of the logits. `reading` says how files are read and `scale`, one of `SCALES`,
    what the numbers are, where the files are not to say so; `scaling` is that of the logits. `top` is how many of the
    worst rows are kept, `empty` says that there need be no row that counts. `beside` has what else rows have by its
    name, "group", "bytes" or "words", as FILE or FILE:COLUMN, or the number of all bytes or words; of a `tokenizer`
    these are what its `batch_decode` makes of the labels. `top_k` and `shift` are as in Score, and `each` as in its
    `update`, with the file as well. `note` is told what was taken for what, before any row counts. `go_on` is told
    after each block how many rows are done, of how many, and says whether to go on. Raises `BadFile`, whose message
    names the file, for whatever is wrong with one, and KeyboardInterrupt where it is to stop before any row counts.
    """
    begun = opened(
        logits, labels, reading=reading, scale=scale, ignore_index=ignore_index, scaling=scaling, top=top, top_k=top_k,
        beside=beside, shift=shift, tokenizer=tokenizer, note=note,
    )  # fmt: skip
    for done in begun.counted(each):
        if not go_on(done, begun.pair.rows):
            break
    return begun.scored(empty)


@dataclass
class Opened:
    """The files of a `part`, of whose rows the first `done` are counted in `total`; `asked` is the scale asked for.

    `totals` are the bytes or words of all rows, where they are known.
    """

    pair: Pair
    total: Score
    part: Part
    asked: scales.Scale | None
    tokenizer: Any
    totals: dict[str, int]
    done: int = 0

    def counted(self, each: Callable[[Columns], None] | None = None, paired: bool = False) -> Iterator[int]:
        """After each block how many rows are done. `paired` rows are drawn alike, whatever files they are in."""
        for done in _counted(self, each, paired):
            self.done = done
            yield done

    def scored(self, empty: bool = False) -> Scored:
        held = self.total._held
        if not held.scored:
            if self.done < self.pair.rows:
                raise KeyboardInterrupt
            if not empty:
                raise _nothing(self.part.logits, self.total)
            held.options = replace(held.options, scale=self.asked)
        held.parts = {"": self.part}
        return Scored(self.total, self.done, self.pair.rows)


def opened(
    logits: str, labels: str | None, *, note: Callable[[str], None], reading: Reading | None = None,
    scale: scales.Scale | None = None, ignore_index: int = -100, scaling: Scaling | None = None, top: int = 10,
    top_k: Sequence[int] = (5,), beside: Mapping[str, str] | None = None, shift: int = 0,
    tokenizer: Any = None,
) -> Opened:  # fmt: skip
    """Files as `score` takes them, before any row counts."""
    reading = reading or Reading()
    beside = dict(beside or {})
    totals = {name: int(beside.pop(name)) for name in UNITS if beside.get(name, "").isdecimal()}
    pair = pair_of(logits, labels, reading, beside)
    asked, said = scale, ""
    if scale is None:
        scale, said = scales.scale_of(pair, ignore_index)
    notes = (*pair.notes, said) if said else pair.notes
    if scaling is not None:
        notes = (*notes, f"the logits are scaled: {scaling.said}")
    for one in notes:
        note(one)
    options: dict[str, Any] = {"scale": scale, "names": pair.names, "skip_bad": reading.skip_bad, "shift": shift}
    options |= {"scaling": scaling, "top_k": top_k}
    total = Score(top=top, ignore_index=ignore_index, **options)
    for option, on in (("--shift", shift), ("--tokenizer", tokenizer)):
        if on and len(pair.shape) != 2:
            shape = pair.logits.shape
            raise BadFile(f"{pair.logits.path}: {option} needs logits of shape (rows, time, classes), got {shape}")
    if not shift:
        _look_along_rows(total._held, pair)
    part = Part(logits, logits if labels is None else labels, len(pair.logits.files), notes)
    return Opened(pair, total, part, asked, tokenizer, totals)


def merged(files: Sequence[str], *, top: int | None = None, empty: bool = False) -> Scored:
    """The score of all rows whose partial results are in the files of these names or patterns.

    `top` is how many of the worst rows are shown, None for as many as the parts keep. Raises ValueError, whose message
    names the file, for one that is no part, does not fit those before it, or has rows of one of them.
    """
    first, *others = (path for name in files for path in paths_of(name))
    total = Score.load(first)
    held = total._held
    for path in others:
        part = partial.read(path)
        held.check(str(path), part)
        held.merge(part)
    if top is not None and top > held.options.top:
        kept = held.options.top
        raise BadFile(f"--top asks for {top} rows, and each part keeps {kept}: score the parts with --top {top}")
    held.keep(held.options.top if top is None else top)
    if not held.scored and not empty:
        raise _nothing(first, total)
    rows = held.ignored + held.scored + held.skipped.total()
    return Scored(total, rows, rows)


def _nothing(files: Any, total: Score) -> BadFile:
    if skipped := total._held.skipped:
        why = f"every row is ignored or skipped ({', '.join(f'{n:,}: {SKIPPED[what]}' for what, n in skipped.items())})"
    else:
        why = "every label is ignored" if total._held.ignored else "there are no rows"
    return BadFile(f"{files}: nothing to score, {why}")


def _look_along_rows(held: Held, pair: Pair) -> None:
    """Where there are as many rows as classes, which no block can tell, the classes may lie along the rows."""
    square = pair.axis and pair.logits.shape[1:] == pair.shape
    if held.scale == scales.LOGITS and square and pair.rows >= ENOUGH and pair.classes >= 3:
        held.inputs.along[0] = along_rows(pair, held.options.ignore_index)


def _counted(begun: Opened, each: Callable[[Columns], None] | None, paired: bool) -> Iterator[int]:
    """Of each block the number of rows up to its end, once it is counted."""
    pair, held, totals = begun.pair, begun.total._held, begun.totals
    for block in pair.blocks(None if held.scale == scales.LOGITS else scales.BLOCK):
        start, labels = block.start, block.labels

        def find(row: int, start: int = start) -> tuple[str, Index]:
            path, index = pair.find(start + row)
            return str(path), index if isinstance(index, tuple) else (index,)

        path, (first, *_) = find(0) if labels.size else ("", (0,))

        def tell(kept: np.ndarray, columns: Columns, block: Block = block, path: str = path, first: int = first):
            row, *more = np.unravel_index(np.flatnonzero(kept), block.labels.shape)
            file = {"file": np.broadcast_to(np.array(path), len(row))}  # since a block is of one
            beside = {name: spread(values, block.labels.shape)[kept] for name, values in block.beside.items()}
            each(file | places(first + row, more) | columns | beside)

        _check_labels(pair, block, held.options)
        if paired and labels.size:
            path, (first, *_) = "", np.unravel_index(start, pair.shape)
        numbers, groups = first + np.arange(len(labels)), block.beside.get("group")
        lengths = totals | {name: values for name, values in block.beside.items() if name in UNITS}
        measure = given(lengths, held.options.shift) if lengths else begun.tokenizer and decoded(begun.tokenizer)
        totals = dict.fromkeys(totals, 0)  # which the first block has had
        try:
            held.count(block.logits, pair.axis, labels, numbers, find, each and tell, Path(path).name, groups, measure)
        except TypeError as error:
            raise BadFile(f"{pair.place(start) if labels.size else pair.logits.path}: {error}") from error
        except ValueError as error:
            raise BadFile(str(error)) from error
        yield start + labels.size


def _check_labels(pair: Pair, block: Block, options: Options) -> None:
    labels, start = block.labels, block.start
    if labels.dtype.kind not in "iu":
        where = pair.place(start, pair.labels.rows) if len(labels) else pair.labels.rows.path
        raise BadFile(f"{where}: labels must be integers, got {labels.dtype}")
    ignored, bad = options.ignore_index, (labels < 0) | (labels >= pair.classes)
    if options.skip_bad or not bad.any():
        return
    bad &= labels != ignored
    if options.shift:
        bad[..., : options.shift] = False  # of which nothing is asked
    if bad.any():
        row = int(bad.argmax())
        place = pair.place(start + row, pair.labels.rows)
        targets = pair.targets()
        targets = targets[targets != ignored]
        advice = f". {ONE_BASED}" if one_based(targets.min(), targets.max(), pair.classes) else ""
        raise BadFile(
            f"{place}: label {labels.reshape(-1)[row]} is out of bounds: labels must be between 0 and "
            f"{pair.classes - 1}, or {ignored} to be ignored{advice}"
        )
