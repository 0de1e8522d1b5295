"""The command: files in, tables, JSON or a page out, and an exit status."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from crossent.tools import plain_json
from crossent.tools.files import check_file, write
from crossent.tools.score import Scored, merged, score, show
from crossent.tools.score.readers import paths_of, two_files

FINE, BAD_INPUT, INTERRUPTED = 0, 2, 130


def run(
    files: Sequence[str], *, as_json: bool = False, html: Path | None = None, part: Path | None = None,
    top: int = 10, **options,
) -> int:  # fmt: skip
    """Score files: everything but the parsing of the command line. `options` are those of `score`."""

    def scored(errors: Console) -> Scored:
        logits, labels = two_files(files)
        for path, option in ((html, "--html"), (part, "--partial")):
            check_file(path, option)
            _check_inputs(path, option, [found for name in files for found in paths_of(name)])
        with _first_interrupt_noted() as interrupts, _progress(errors) as told:

            def go_on(done: int, rows: int) -> bool:
                told(done, rows)
                return not interrupts

            empty = part is not None
            return score(logits, labels, top=top, empty=empty, note=_note(errors), go_on=go_on, **options)

    return _shown(scored, as_json, html, part)


def run_merge(
    files: Sequence[str], *, as_json: bool = False, html: Path | None = None, part: Path | None = None,
    top: int | None = None,
) -> int:  # fmt: skip
    """Merge partial results; a `part` of several may become one of more."""

    def scored(errors: Console) -> Scored:
        for path, option in ((html, "--html"), (part, "--partial")):
            check_file(path, option)
        return merged(files, top=top, empty=part is not None)

    return _shown(scored, as_json, html, part)


def _shown(scored: Callable[[Console], Scored], as_json: bool, html: Path | None, part: Path | None) -> int:
    """Show what is scored, and write what is to be written, if all went well."""
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        found = scored(errors)
        if found.complete and html is not None and found.metrics.rows:
            from crossent.tools.score.report import page

            write(html, page(found, found.top))
        if found.complete and part is not None:
            found.total.save(part)
    except KeyboardInterrupt:
        errors.print("Interrupted before there was a score.")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        _note(errors)(str(error))
        return BAD_INPUT
    if as_json:
        print(plain_json.text(show.as_dict(found), indent=1))
    else:
        show.tables(Console(highlight=False, markup=False), found, found.top)
    if found.complete:
        return FINE
    unwritten = "".join(f"; {path} is not written" for path in (html, part) if path is not None)
    errors.print(f"Interrupted after {found.done:,} of {found.rows:,} rows, of which this is the score{unwritten}.")
    return INTERRUPTED


def _note(errors: Console) -> Callable[[str], None]:
    return lambda said: errors.print(f"crossent score: {said}")


def _check_inputs(path: Path | None, option: str, inputs: Sequence[Path]) -> None:
    """What is written must not take the place of what is read."""
    if path is not None and path.exists() and any(one.exists() and one.samefile(path) for one in inputs):
        raise ValueError(f"{option} must be another file than those that are read, got {path}")


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
