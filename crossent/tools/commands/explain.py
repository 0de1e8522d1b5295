"""`crossent explain`."""

from __future__ import annotations  # of which typer alone reads the values

from pathlib import Path
from typing import Annotated, Any

from crossent.tools.commands import common
from crossent.tools.commands.common import bad_input, require, typer


@common.reads_files("skip_bad")
def explain(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="LOGITS LABELS", help="Files, read as crossent score reads them.")
    ] = None,
    row: Annotated[list[int] | None, typer.Option(help="A row to show; may be given several times.")] = None,
    ignore_index: common.IgnoreIndex = -100,
    label_smoothing: Annotated[float, typer.Option(help="The share of each target that all classes get.")] = 0.0,
    reduction: Annotated[str, typer.Option(help="mean, sum or none.")] = "mean",
    names: Annotated[Path | None, typer.Option(help="A text file with the name of a class in each line.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Of the step along the gradient that is shown.")] = 1.0,
    lang: Annotated[str, typer.Option(help="The language: en or zh (Chinese).")] = "en",
    json: common.Json = False,
    html: Annotated[Path | None, typer.Option(help="A file for a page, whose numbers can be moved.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A file for a picture: .png, .svg or .pdf.")] = None,
    **read_as: Any,
) -> None:
    """Show every step of a cross entropy: of stored logits and labels, or of a worked example.

    Without files it is the worked example.

    \b
    Exit status 0: nothing is wrong with the loss.
    Exit status 1: something is.
    Exit status 2: the files or the command line are wrong.
    """
    if html:
        require("explain --html", "jinja2")
    if plot:
        require("explain --plot", "matplotlib")
    from crossent.tools.explain.command import run
    from crossent.tools.language import speaking

    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    options |= {"learning_rate": learning_rate, "lang": lang, "names": names}
    with bad_input(), speaking(lang):
        status = run(files or [], rows=row or [], html=html, plot=plot, json=json, options=options, **read_as)
    raise typer.Exit(status)
