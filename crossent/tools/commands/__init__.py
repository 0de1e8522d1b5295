"""The `crossent` command: a file for each of its commands, whose work is in a module and whose needs in an extra.

What commands there are, and what they need, is told without typer as well.
"""

from __future__ import annotations  # of which typer alone reads the values

import inspect
import sys
from textwrap import fill
from typing import Annotated

import crossent
from crossent.tools.commands.bench import bench
from crossent.tools.commands.calibrate import calibrate
from crossent.tools.commands.common import ANY, missing, require, typer
from crossent.tools.commands.compare import compare
from crossent.tools.commands.demo import demo
from crossent.tools.commands.explain import explain
from crossent.tools.commands.plan import plan
from crossent.tools.commands.score import score
from crossent.tools.commands.warmup import warmup
from crossent.tools.output import end, guarded

COMMANDS = {function.__name__: function for function in (demo, explain, bench, plan, score, compare, calibrate, warmup)}


def main() -> None:
    with guarded():
        try:
            if missing(ANY):
                _without_typer(sys.argv[1:])
            else:
                _application()(sys.argv[1:] or ["--help"])
        except OSError as error:
            end(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _application():
    application = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # whose panels leave a third of the width to the text
        context_settings={"max_content_width": 120},
    )
    application.callback()(_crossent)
    for function in COMMANDS.values():
        application.command(short_help=_purpose(function))(function)
    return application


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"crossent {crossent.__version__}")
        raise SystemExit(0)


def _crossent(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Classification losses with the interface of torch.nn: the same numbers, faster, in less memory."""


def _without_typer(arguments: list[str]) -> None:
    """The version, what commands there are, or what to install for one."""
    first = arguments[0] if arguments else "--help"
    _show_version(first == "--version")
    if first in COMMANDS:
        require(first, *ANY)
    if first != "--help":
        end(f"there is no command {first!r}; crossent --help shows those there are")
    print(f"{inspect.getdoc(_crossent)}\nIts commands need packages that the library does without.")
    for name, function in COMMANDS.items():
        print(f"\ncrossent {name}: pip install crossent[{name}]")
        print(fill(_purpose(function), 80, initial_indent="    ", subsequent_indent="    "))


def _purpose(function) -> str:
    return inspect.getdoc(function).partition("\n\n")[0]
