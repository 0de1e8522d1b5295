"""`crossent plan`."""

from __future__ import annotations  # of which typer alone reads the values

from typing import Annotated

from crossent.tools.commands.common import bad_input, require, typer


def plan(
    function: Annotated[str, typer.Argument(metavar="FUNCTION", help="Of crossent.")],
    shape: Annotated[str, typer.Option(metavar="SHAPE", help="Of the input, such as 2048x32000.")],
    target: Annotated[
        str | None,
        typer.Option(metavar="SHAPE", help="Labels that fit if left out; with an axis of classes: probabilities."),
    ] = None,
    linear_weight: Annotated[str | None, typer.Option(metavar="SHAPE", help="Classes x features.")] = None,
    linear_bias: Annotated[str | None, typer.Option(metavar="SHAPE", help="Classes.")] = None,
    weight: Annotated[str | None, typer.Option(metavar="SHAPE", help="Classes.")] = None,
    sample_weight: Annotated[str | None, typer.Option(metavar="SHAPE", help="That of the labels.")] = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="float16, bfloat16, float32 or float64.")] = "float32",
    library: Annotated[str, typer.Option(metavar="LIBRARY", help="torch or numpy.")] = "torch",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any other argument: reduction=none, shift=1; may be repeated."),
    ] = None,
    gradient: Annotated[bool, typer.Option(help="Whether input, linear weight and bias require one.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what a call with arrays of these shapes would do, without doing it: the code, the memory and the reasons.

    FUNCTION is softmax, log_softmax, nll_loss, cross_entropy, prediction_stats, linear_cross_entropy or
    linear_token_stats.
    """
    shapes = {
        "input": shape,
        "target": target,
        "linear_weight": linear_weight,
        "linear_bias": linear_bias,
        "weight": weight,
        "sample_weight": sample_weight,
    }
    if library == "torch":
        require("plan --library torch", "torch", extra="torch")
    from crossent.tools import plan_of_shapes

    given = {name: text for name, text in shapes.items() if text is not None}
    with bad_input():
        planned = plan_of_shapes.plan_of(function, given, dtype, library, option or [], gradient)
    plan_of_shapes.show(planned, json)
