"""`crossent bench`."""

from __future__ import annotations  # of which typer alone reads the values

from pathlib import Path
from typing import Annotated

from crossent.tools.commands.common import bad_input, require, typer


def bench(
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="SHAPE", help="Of logits, such as 2048x32000; may be given several times."),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(metavar="SHAPE", help="Of a fused head, tokens x features x classes, such as 2048x512x32768."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DTYPE", help="float16, bfloat16, float32 (if left out) or float64; may be given several times."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(metavar="N", min=2, help="Rounds of each comparison, at least.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    save: Annotated[Path | None, typer.Option(help="A file for the JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A file for bars of time and memory: .png, .svg or .pdf.")] = None,
) -> None:
    """Measure time and memory on this machine, beside every other library with these losses that is installed.

    The rivals: PyTorch's own losses, compiled ones and its chunked head, SciPy, scikit-learn and optax, and on a
    GPU Liger-Kernel, cut-cross-entropy and quack. Without a shape or a head two shapes and a head are measured, in
    about two minutes.
    """
    require("bench", "torch")
    if plot:
        require("bench --plot", "matplotlib")
    from crossent.tools.bench import command

    with bad_input():
        cases = command.cases(shape or [], head or [], dtype or ["float32"], device)
        raise typer.Exit(command.bench(cases, rounds, json, save, plot))
