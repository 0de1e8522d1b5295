"""`crossent score`."""

from __future__ import annotations  # of which typer alone reads the values

from pathlib import Path
from typing import Annotated, Any

from crossent.tools.commands import common
from crossent.tools.commands.common import bad_input, require, typer


@common.reads_files()
def score(
    files: Annotated[
        list[str],
        typer.Argument(metavar="LOGITS [LABELS]", help="Two files, or one that has both.", show_default=False),
    ],
    ignore_index: Annotated[int | None, typer.Option(help="Label of rows that do not count; -100 if left out.")] = None,
    top: Annotated[int | None, typer.Option(metavar="N", min=0, help="How many of the worst; 10 if left out.")] = None,
    temperature: Annotated[float | None, typer.Option(help="A number to divide the logits by.")] = None,
    scaling: Annotated[Path | None, typer.Option(help="A file of calibrate --save, to scale the logits by.")] = None,
    top_k: Annotated[
        str | None, typer.Option(metavar="K,...", help="Accuracy among the K best; 5 if left out.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="FILE[:COLUMN]", help="A value for each row: equal ones are a group.")
    ] = None,
    as_json: common.Json = False,
    html: common.Html = None,
    partial: Annotated[Path | None, typer.Option(help="A file for what --merge takes.")] = None,
    rows: Annotated[Path | None, typer.Option(help="A file for each row's loss: .parquet, .csv or .npz.")] = None,
    shift: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Labels are those of N positions later.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="NAME|FOLDER", help="Decodes labels, to count bytes and words.")
    ] = None,
    bytes: Annotated[
        str | None, typer.Option(metavar="N|FILE[:COLUMN]", help="Bytes of the text: of all rows, or of each.")
    ] = None,
    words: Annotated[str | None, typer.Option(metavar="N|FILE[:COLUMN]", help="Words of the text, likewise.")] = None,
    fail_if: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help="End with status 3 if it holds, as in 'nll>1.2'.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="The files are of --partial: score all rows.")] = False,
    **read_as: Any,
) -> None:
    """Score stored predictions: NLL, accuracy, calibration, the worst classes and rows.

    Files are .npy, .npz, .safetensors, .pt, .parquet, or text: .csv, .tsv, .txt,
    also .gz of these. A pattern in quotes, as in 'logits-*.npy', stands for
    shards, which are read in the order of their numbers. Files may be larger
    than memory. What was taken for what is said on standard error.

    Where rows lie on many machines, each scores its own with --partial; then
    --merge shows the score of all, to the last digit that of one run.

    \b
    Exit status 0: all is well.
    Exit status 2: the files or the command line are wrong.
    Exit status 3: what --fail-if says is so.
    Exit status 130: interrupted, after some of the rows.
    """
    if html:
        require("score --html", "jinja2", "matplotlib")
    from crossent.tools.score.command import run, run_merge
    from crossent.tools.score.readers import Reading
    from crossent.tools.score.scaling import asked as scaling_asked

    shown = {"as_json": as_json, "html": html, "part": partial, "fail_if": fail_if or ()}
    with bad_input():
        scaled = scaling_asked(temperature, scaling)
        beside = {"group": group, "bytes": bytes, "words": words}
        of_rows = scaled, ignore_index, shift, rows, top_k, tokenizer, *beside.values(), *read_as.values()
        if merge and of_rows != (*[None] * 9, Reading(), None):
            raise ValueError("--merge takes parts as they were scored: say how to read the rows where they are scored")
        if tokenizer and (bytes or words):
            raise ValueError("--tokenizer counts bytes and words: leave --bytes and --words out")
        ranks = _whole_numbers(top_k or "5")
    if merge:
        raise typer.Exit(run_merge(files, top=top, **shown))
    top, ignore_index = 10 if top is None else top, -100 if ignore_index is None else ignore_index
    options = {"ignore_index": ignore_index, "shift": shift or 0, "top": top}
    options |= {"scaling": scaled, "top_k": ranks, "tokenizer": tokenizer}
    options |= {"beside": {name: said for name, said in beside.items() if said}, **read_as}
    raise typer.Exit(run(files, rows=rows, **options, **shown))


def _whole_numbers(said: str) -> list[int]:
    try:
        return list(map(int, said.split(",")))
    except ValueError:
        raise ValueError(f"--top-k takes numbers with commas between them, as in 1,3,10, got {said!r}") from None
