"""`crossent score`."""

from __future__ import annotations  # of which typer alone reads the values

from pathlib import Path
from typing import Annotated

from crossent.tools.commands import common
from crossent.tools.commands.common import bad_input, require, typer


def score(
    files: Annotated[
        list[str],
        typer.Argument(metavar="LOGITS [LABELS]", help="Both, or one file that has both.", show_default=False),
    ],
    key: common.Key = None,
    labels_key: common.LabelsKey = None,
    header: common.Header = None,
    columns: common.Columns = None,
    logits: common.Logits = False,
    probabilities: common.Probabilities = False,
    log_probabilities: common.LogProbabilities = False,
    dim: Annotated[int | None, typer.Option(help="The class axis; 1 by default.")] = None,
    ignore_index: Annotated[int | None, typer.Option(help="The label of rows that do not count; else -100.")] = None,
    top: Annotated[int | None, typer.Option(min=0, help="How many of the worst classes and rows; else 10.")] = None,
    temperature: Annotated[float | None, typer.Option(help="What to divide the logits by.")] = None,
    scaling: Annotated[Path | None, typer.Option(help="What calibrate --save wrote: logits are scaled so.")] = None,
    top_k: Annotated[str | None, typer.Option(metavar="K,...", help="The K of top-K accuracies; else 5.")] = None,
    group: Annotated[
        str | None, typer.Option(metavar="FILE[:COLUMN]", help="A value for each row: score groups of equal ones too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every class.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots to this file as well.")] = None,
    partial: Annotated[Path | None, typer.Option(help="Write what --merge takes to this file as well.")] = None,
    rows: Annotated[Path | None, typer.Option(help="Write each row's loss to this .parquet, .csv or .npz too.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out and count rows that cannot count.")] = False,
    shift: Annotated[int | None, typer.Option(min=0, help="A row's label is that of so many positions later.")] = None,
    fail_if: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help="End with status 3 if so: 'nll>1.2'; several times.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Files are what --partial wrote: score all rows.")] = False,
) -> None:
    """Score stored predictions: NLL, accuracy, calibration, the worst classes and rows.

    Files are .npy, .npz, .safetensors, .pt, .parquet, or text: .csv, .tsv, .txt,
    also .gz of these. A pattern in quotes, as in 'logits-*.npy', stands for
    shards, which are read in the order of their numbers. Files may be larger
    than memory. What was taken for what is said on standard error.

    Where rows lie on many machines, each scores its own with --partial; then
    --merge shows the score of all, to the last digit that of one run.

    Exit status 0: all is well.
    Exit status 2: the files cannot be scored, or the command line is wrong.
    Exit status 3: what --fail-if says is so.
    Exit status 130: interrupted, after the score of the rows so far.
    """
    if html:
        require("score --html", "jinja2", "matplotlib")
    from crossent.tools.score.command import run, run_merge
    from crossent.tools.score.scales import Reading, asked
    from crossent.tools.score.scaling import asked as scaling_asked

    shown = {"as_json": as_json, "html": html, "part": partial, "fail_if": fail_if or ()}
    with bad_input():
        scaled = scaling_asked(temperature, scaling)
        reading, scale = asked(
            key, labels_key, header, columns, dim, logits, probabilities, log_probabilities, skip_bad
        )  # fmt: skip
        if merge and (scale, scaled, ignore_index, shift, rows, top_k, group, reading) != (*[None] * 7, Reading()):
            raise ValueError("--merge takes parts as they were scored: say how to read the rows where they are scored")
        ranks = _whole_numbers(top_k or "5")
    if merge:
        raise typer.Exit(run_merge(files, top=top, **shown))
    top, ignore_index = 10 if top is None else top, -100 if ignore_index is None else ignore_index
    options = {"reading": reading, "scale": scale, "ignore_index": ignore_index, "shift": shift or 0, "top": top}
    options |= {"scaling": scaled, "top_k": ranks, "beside": {"group": group} if group else None}
    raise typer.Exit(run(files, rows=rows, **options, **shown))


def _whole_numbers(said: str) -> list[int]:
    try:
        return list(map(int, said.split(",")))
    except ValueError:
        raise ValueError(f"--top-k takes numbers with commas between them, as in 1,3,10, got {said!r}") from None
