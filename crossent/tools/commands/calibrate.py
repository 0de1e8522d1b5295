"""`crossent calibrate`."""

from __future__ import annotations  # of which typer alone reads the values

from pathlib import Path
from typing import Annotated, Any

from crossent.tools.commands import common
from crossent.tools.commands.common import require, typer


@common.reads_files()
def calibrate(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="LOGITS [LABELS] [LOGITS LABELS]",
            help="Files as score reads them; the second two judge the fit, else rows that are left out of it do.",
            show_default=False,
        ),
    ],
    ignore_index: common.IgnoreIndex = -100,
    method: Annotated[
        str, typer.Option(help="temperature, or vector: a weight and a bias of each class.")
    ] = "temperature",
    split: Annotated[float, typer.Option(help="The share of rows to fit, drawn at random; 1 for all.")] = 0.5,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the random draw.")] = 0,
    as_json: common.Json = False,
    html: common.Html = None,
    save: Annotated[Path | None, typer.Option(help="A file for the scaling, which score --scaling takes.")] = None,
    **read_as: Any,
) -> None:
    """Fit a temperature to stored predictions, and show how well calibrated they are before and after.

    Dividing the logits by it changes no prediction, but their probabilities:
    crossent score LOGITS LABELS --temperature 1.7 scores them so.

    Exit status 2: nothing can be fitted, or the command line is wrong.
    """
    require("calibrate", "scipy")
    if html:
        require("calibrate --html", "jinja2", "matplotlib")
    from crossent.tools.score.calibration import run

    options = {"ignore_index": ignore_index, "method": method, "split": split, "seed": seed, **read_as}
    raise typer.Exit(run(files, as_json=as_json, html=html, save=save, **options))
