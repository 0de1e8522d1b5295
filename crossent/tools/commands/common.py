"""What the commands have in common: typer where it is installed, options that several take, and how they fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from crossent.tools.output import end

try:
    import typer
except ModuleNotFoundError as error:
    if error.name != "typer":
        raise
    typer = None  # pyright: ignore[reportAssignmentType] - no command runs then, but each is told of
else:
    IgnoreIndex = Annotated[int, typer.Option(help="The label of rows that do not count.")]
    Html = Annotated[Path | None, typer.Option(help="A file for a page with plots.")]
    Json = Annotated[bool, typer.Option("--json", help="Print JSON instead, with all numbers.")]

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


def _read_as(
    key: Annotated[str | None, typer.Option(help="The entry or column of the logits, among several.")] = None,
    labels_key: Annotated[str | None, typer.Option(help="The entry or column of the labels.")] = None,
    header: Annotated[bool | None, typer.Option(help="Whether the first line of a text file holds names.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="The columns of the classes: names, or numbers such as 1-10.")
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="The numbers are logits, whatever they look like.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="The numbers are probabilities.")] = False,
    log_probabilities: Annotated[
        bool, typer.Option("--log-probabilities", help="The numbers are logarithms of probabilities.")
    ] = False,
    dim: Annotated[int | None, typer.Option(help="The axis of the classes; 1 if left out.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out and count rows that cannot count.")] = False,
) -> dict[str, Any]:
    """How files are read, and what their numbers are."""
    from crossent.tools.language import say
    from crossent.tools.score.readers import Reading

    scales = {"logits": logits, "probabilities": probabilities, "log-probabilities": log_probabilities}
    chosen = [scale for scale, on in scales.items() if on]
    if len(chosen) > 1:
        raise ValueError(say("wrong.exclude", one=f"--{chosen[0]}", other=f"--{chosen[1]}"))
    if key is not None and columns is not None:
        raise ValueError(say("wrong.exclude_names"))
    reading = Reading(key, labels_key, header, columns, dim, skip_bad)
    return {"reading": reading, "scale": chosen[0] if chosen else None}


def reads_files(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `_read_as`, but those `without`: the command gets, by name, what they ask for."""

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        if typer is None:
            return command

        @wraps(command)
        def run(**given: Any) -> None:
            from crossent.tools.language import speaking

            with bad_input(), speaking(given.get("lang", "en")):
                read_as = _read_as(**{name: given.pop(name) for name in options})
            command(**given, **read_as)

        own, of_reading = (dict(inspect.signature(one, eval_str=True).parameters) for one in (command, _read_as))
        del own["read_as"]
        options = {name: one for name, one in of_reading.items() if name not in without}
        every = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*options.values(), *own.values())]
        run.__signature__ = inspect.Signature(every)  # pyright: ignore[reportAttributeAccessIssue] - for typer
        run.__annotations__ = {one.name: one.annotation for one in every}
        return run

    return with_options
