"""`crossent plan`."""

from __future__ import annotations  # of which typer alone reads the values

from typing import Annotated

from crossent.tools.commands.common import bad_input, require, typer


def plan(
    function: Annotated[str, typer.Argument(metavar="FUNCTION", help="The function that would be called.")],
    shape: Annotated[str, typer.Option(metavar="SHAPE", help="Shape of the input, such as 2048x32000.")],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE",
            help="Shape of the target: with an axis of classes it is of probabilities; labels if left out.",
        ),
    ] = None,
    linear_weight: Annotated[
        str | None, typer.Option(metavar="SHAPE", help="Shape of a head's weight: classes x features.")
    ] = None,
    linear_bias: Annotated[str | None, typer.Option(metavar="SHAPE", help="Shape of its bias: classes.")] = None,
    weight: Annotated[str | None, typer.Option(metavar="SHAPE", help="Shape of the class weights: classes.")] = None,
    sample_weight: Annotated[
        str | None, typer.Option(metavar="SHAPE", help="Shape of the rows' weights: that of labels.")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="float16, bfloat16, float32 or float64.")] = "float32",
    library: Annotated[str, typer.Option(metavar="LIBRARY", help="torch or numpy.")] = "torch",
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Any other argument, such as reduction=none; may be given several times."
        ),
    ] = None,
    gradient: Annotated[bool, typer.Option(help="Whether input, linear weight and bias require a gradient.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what a call with arrays of these shapes would do, without doing it: the code, the memory and the reasons.

    FUNCTION is softmax, log_softmax, nll_loss, cross_entropy, prediction_stats, linear_cross_entropy or
    linear_token_stats.
    """
    shapes = {"input": shape, "target": target, "linear_weight": linear_weight, "linear_bias": linear_bias}
    shapes |= {"weight": weight, "sample_weight": sample_weight}
    if library == "torch":
        require("plan --library torch", "torch", extra="torch")
    from crossent.tools import plan_of_shapes

    given = {name: text for name, text in shapes.items() if text is not None}
    with bad_input():
        planned = plan_of_shapes.plan_of(function, given, dtype, library, option or [], gradient)
    plan_of_shapes.show(planned, json)
