"""The command: files in, tables, JSON or a page out, and an exit status."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from crossent.tools import plain_json
from crossent.tools.files import check_file, write
from crossent.tools.score import Scored, conditions, merged, score, show
from crossent.tools.score.pairs import file_and_column
from crossent.tools.score.readers import paths_of, printable, two_files
from crossent.tools.score.rows import check_rows_file, rows_file

FINE, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 3, 130


@dataclass(frozen=True)
class Output:
    """Where a score goes beside the terminal, as JSON or tables, and what it must not be: `fail_if` are conditions."""

    as_json: bool = False
    html: Path | None = None
    part: Path | None = None
    rows: Path | None = None
    fail_if: Sequence[str] = ()

    def check(self, inputs: Sequence[Path] = ()) -> None:
        """Before the work."""
        for said in self.fail_if:
            conditions.parsed(said)
        check_rows_file(self.rows)
        for path, option in ((self.html, "--html"), (self.part, "--partial"), (self.rows, "--rows")):
            check_file(path, option, inputs)


def run(
    files: Sequence[str], *, beside: Mapping[str, str] | None = None, tokenizer: str | None = None,
    as_json: bool = False, html: Path | None = None, part: Path | None = None, rows: Path | None = None,
    fail_if: Sequence[str] = (), **options,
) -> int:  # fmt: skip
    """Score files: everything but the parsing of the command line. `options` are those of `score`."""
    output = Output(as_json, html, part, rows, fail_if)

    def scored(errors: Console) -> Scored:
        logits, labels = two_files(files)
        read = [*files, *(file_and_column(said)[0] for said in (beside or {}).values())]
        output.check([found for name in read for found in paths_of(name)])
        found = None
        try:
            with rows_file(output.rows) as each, _first_interrupt_noted() as interrupts, _progress(errors) as told:

                def go_on(done: int, rows: int) -> bool:
                    told(done, rows)
                    return not interrupts

                of_command = {"empty": output.part is not None, "note": _note(errors), "go_on": go_on, "each": each}
                of_command["tokenizer"] = tokenizer and tokenizer_of(tokenizer)
                found = score(logits, labels, beside=beside, **of_command, **options)
                if not found.complete:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            if found is None:
                raise
        return found

    return _shown(scored, output)


def tokenizer_of(name: str) -> Any:
    """Of transformers, by its name or from a folder."""
    if find_spec("transformers") is None:
        raise ValueError("--tokenizer needs transformers: pip install crossent[transformers]")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of many kinds
        raise ValueError(f"--tokenizer {name}: {printable(str(error).strip().partition(chr(10))[0])}") from error


def run_merge(
    files: Sequence[str], *, as_json: bool = False, html: Path | None = None, part: Path | None = None,
    fail_if: Sequence[str] = (), top: int | None = None,
) -> int:  # fmt: skip
    """Merge partial results; a part of several may become one of more."""
    output = Output(as_json, html, part, None, fail_if)

    def scored(errors: Console) -> Scored:
        output.check()
        return merged(files, top=top, empty=output.part is not None)

    return _shown(scored, output)


def _shown(scored: Callable[[Console], Scored], output: Output) -> int:
    """Show what is scored, and write what is to be written, if all went well."""
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        found = scored(errors)
        if found.complete and output.html is not None and found.metrics.rows:
            from crossent.tools.score.report import page

            write(output.html, page(found, found.top))
        if found.complete and output.part is not None:
            found.save(output.part)
    except KeyboardInterrupt:
        errors.print("Interrupted before there was a score.")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        _note(errors)(str(error))
        return BAD_INPUT
    if output.as_json:
        print(plain_json.text(show.as_dict(found), indent=1))
    else:
        show.tables(Console(highlight=False, markup=False), found, found.top)
    if not found.complete:
        unwritten = [path for path in (output.html, output.part, output.rows) if path is not None]
        said = "".join(f"; {path} is not written" for path in unwritten)
        errors.print(f"Interrupted after {found.done:,} of {found.rows:,} rows, of which this is the score{said}.")
        return INTERRUPTED
    try:
        failed = list(conditions.failures(output.fail_if, found.total.result())) if output.fail_if else []
    except ValueError as error:
        _note(errors)(str(error))
        return BAD_INPUT
    for line in failed:
        _note(errors)(line)
    return FAILED if failed else FINE


def _note(errors: Console) -> Callable[[str], None]:
    return lambda said: errors.print(f"crossent score: {said}")


@contextmanager
def _first_interrupt_noted() -> Iterator[list[int]]:
    """The first Ctrl-C is put on a list, so that no block is counted by halves; the next one interrupts at once."""
    noted: list[int] = []

    def note(number, frame) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(console: Console) -> Iterator:
    """What to tell of the rows done; drawn in a terminal alone."""
    columns = TextColumn("Scoring"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, rows: progress.update(task, completed=done, total=rows)
