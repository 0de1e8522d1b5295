"""The command: files in, tables, JSON or a page out, and an exit status."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from crossent.tools import plain_json
from crossent.tools.files import check_file, write
from crossent.tools.score import score, show
from crossent.tools.score.readers import two_files

FINE, BAD_INPUT, INTERRUPTED = 0, 2, 130


def run(files: Sequence[str], *, as_json: bool, html: Path | None, top: int, **options) -> int:
    """Everything but the parsing of the command line. `options` are those of `score`."""
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def note(said: str) -> None:
        errors.print(f"crossent score: {said}")

    try:
        logits, labels = two_files(files)
        check_file(html, "--html")
        with _first_interrupt_noted() as interrupts, _progress(errors) as told:

            def go_on(done: int, rows: int) -> bool:
                told(done, rows)
                return not interrupts

            found = score(logits, labels, top=top, note=note, go_on=go_on, **options)
        if html is not None and found.complete:
            from crossent.tools.score.report import page

            write(html, page(found, top))
    except KeyboardInterrupt:
        errors.print("Interrupted before there was a score.")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        note(str(error))
        return BAD_INPUT
    if as_json:
        print(plain_json.text(show.as_dict(found), indent=1))
    else:
        show.tables(Console(highlight=False, markup=False), found, top)
    if found.complete:
        return FINE
    unwritten = f"; {html} is not written" if html is not None else ""
    errors.print(f"Interrupted after {found.done:,} of {found.rows:,} rows, of which this is the score{unwritten}.")
    return INTERRUPTED


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
