"""The commands score, compare and calibrate: files in, tables, JSON or a page out, and an exit status."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from crossent.tools import plain_json
from crossent.tools.files import check_file
from crossent.tools.score import conditions, merged, score
from crossent.tools.score.pairs import file_and_column
from crossent.tools.score.readers import paths_of, printable, two_files
from crossent.tools.score.rows import check_rows_file, rows_file
from crossent.tools.score.show import Answer, of_score

FINE, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 3, 130


@dataclass
class Errors:
    """Where a `command` says what was taken for what, and what is wrong."""

    command: str
    console: Console = field(
        default_factory=lambda: Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    )
    notes: list[str] = field(default_factory=list)

    def note(self, said: str) -> None:
        """Once, as what is said of labels that two files share."""
        if said not in self.notes:
            self.notes.append(said)
            self.console.print(f"crossent {self.command}: {said}")


def answered(
    command: str, read: Sequence[str], find: Callable[[Errors], Answer], *, files: Mapping[str, Path | None],
    as_json: bool = False, fail_if: Sequence[str] = (),
) -> int:  # fmt: skip
    """The exit status of a command that reads files, shows what it finds in them, and writes those of its options."""
    errors = Errors(command)
    try:
        for said in fail_if:
            conditions.parsed(said)
        inputs = [path for name in read for path in paths_of(name)]
        for option, path in files.items():
            check_file(path, option, inputs)
        answer = find(errors)
        for option, path in files.items():
            if path is not None and not answer.unfinished:
                answer.save(option, path)
        found = answer.found() if as_json or fail_if else {}
        if as_json:
            print(plain_json.text(found, indent=1))
        else:
            answer.page.print(Console(highlight=False, markup=False))
        if answer.unfinished:
            unwritten = "".join(f"; {path} is not written" for path in files.values() if path is not None)
            errors.console.print(f"{answer.unfinished}{unwritten}.")
            return INTERRUPTED
        failed = list(conditions.failures(fail_if, found))
    except KeyboardInterrupt:
        errors.console.print("Interrupted before there was a result.")
        return INTERRUPTED
    except (ValueError, MemoryError, OSError) as error:
        errors.note(str(error))
        return BAD_INPUT
    for line in failed:
        errors.note(line)
    return FAILED if failed else FINE


def run(
    files: Sequence[str], *, beside: Mapping[str, str] | None = None, tokenizer: str | None = None,
    rows: Path | None = None, html: Path | None = None, part: Path | None = None, as_json: bool = False,
    fail_if: Sequence[str] = (), **options: Any,
) -> int:  # fmt: skip
    """Score files: everything but the parsing of the command line. `options` are those of `Opened`."""

    def find(errors: Errors) -> Answer:
        check_rows_file(rows)
        found, logits_and_labels = None, two_files(files)
        try:
            with rows_file(rows) as each, _first_interrupt_noted() as interrupts, _progress(errors.console) as told:

                def go_on(done: int, rows: int) -> bool:
                    told(done, rows)
                    return not interrupts

                of_command = {"beside": beside, "tokenizer": tokenizer and tokenizer_of(tokenizer)}
                of_command |= {"empty": part is not None, "note": errors.note, "go_on": go_on, "each": each}
                found = score(*logits_and_labels, **of_command, **options)
                if not found.complete:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            if found is None:
                raise
        return of_score(found)

    read = [*files, *(file_and_column(said)[0] for said in (beside or {}).values())]
    written = {"--html": html, "--partial": part, "--rows": rows}
    return answered("score", read, find, files=written, as_json=as_json, fail_if=fail_if)


def run_merge(
    files: Sequence[str], *, html: Path | None = None, part: Path | None = None, top: int | None = None, **options: Any
) -> int:
    """Merge partial results; a part of several may become one of more."""

    def find(errors: Errors) -> Answer:
        return of_score(merged(files, top=top, empty=part is not None))

    return answered("score", (), find, files={"--html": html, "--partial": part}, **options)


def tokenizer_of(name: str) -> Any:
    """Of transformers, by its name or from a folder."""
    if find_spec("transformers") is None:
        raise ValueError("--tokenizer needs transformers: pip install crossent[transformers]")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of many kinds
        raise ValueError(f"--tokenizer {name}: {printable(str(error).strip().partition(chr(10))[0])}") from error


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
