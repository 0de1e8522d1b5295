"""`crossent compare`."""

from __future__ import annotations  # of which typer alone reads the values

from typing import Annotated, Any

from crossent.tools.commands import common
from crossent.tools.commands.common import require, typer


@common.reads_files()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Logits of a model: as for score.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Those of another model.", show_default=False)],
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="Of the rows of both.", show_default=False)],
    ignore_index: common.IgnoreIndex = -100,
    top: Annotated[int, typer.Option(metavar="N", min=0, help="How many classes and rows to show at most.")] = 10,
    as_json: common.Json = False,
    html: common.Html = None,
    **read_as: Any,
) -> None:
    """Compare two models on the same rows: by how much they differ, and whether that may be chance.

    Rows of A and B belong together by their order, as those of logits and labels do.

    Exit status 2: the files cannot be compared, or the command line is wrong.
    """
    require("compare", "scipy")
    if html:
        require("compare --html", "jinja2", "matplotlib")
    from crossent.tools.score.compare_command import run

    raise typer.Exit(run(a, b, labels, as_json=as_json, html=html, ignore_index=ignore_index, top=top, **read_as))
