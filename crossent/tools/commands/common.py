"""What the commands have in common: typer where it is installed, options that two of them take, and how they fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from crossent.tools.output import end

try:
    import typer
except ModuleNotFoundError as error:
    if error.name != "typer":
        raise
    typer = None  # pyright: ignore[reportAssignmentType] - no command runs then, but each is told of
else:
    # How `explain` and `score` are told to read files.
    Key = Annotated[str | None, typer.Option(help="The entry or column of the logits, in a file that has several.")]
    LabelsKey = Annotated[str | None, typer.Option(help="The entry or column of the labels.")]
    Header = Annotated[bool | None, typer.Option(help="Whether the first line of a text file holds names.")]
    Columns = Annotated[str | None, typer.Option(help="The columns of the classes: names, or numbers such as 1-10.")]
    Dim = Annotated[int | None, typer.Option(help="The axis of the classes; 1 if left out.")]
    IgnoreIndex = Annotated[int, typer.Option(help="The label of rows that do not count.")]
    Html = Annotated[Path | None, typer.Option(help="A file for a page with plots.")]
    Names = Annotated[Path | None, typer.Option(help="A text file with the name of a class in each line.")]
    SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out and count rows that cannot count.")]
    Logits = Annotated[bool, typer.Option("--logits", help="The numbers are logits, whatever they look like.")]
    Probabilities = Annotated[bool, typer.Option("--probabilities", help="The numbers are probabilities.")]
    LogProbabilities = Annotated[
        bool, typer.Option("--log-probabilities", help="The numbers are logarithms of probabilities.")
    ]

ANY = ("typer", "rich")  # what every command needs


def missing(modules: tuple[str, ...]) -> list[str]:
    return [name for name in modules if find_spec(name) is None]


def require(command: str, *modules: str, extra: str = "") -> None:
    """End the command with what to install where one of these modules is not there."""
    if absent := missing(modules):
        end(f"{command} needs {', '.join(absent)}: pip install crossent[{extra or command.split()[0]}]")


@contextmanager
def bad_input() -> Iterator[None]:
    """End the command with a line and exit status 2 for what the caller got wrong."""
    try:
        yield
    except (ValueError, TypeError, IndexError, MemoryError) as error:
        end(str(error))
