"""`crossent plan`: what a call is going to do, from the shapes of its arrays alone."""

import dataclasses
import inspect
import json
from math import prod
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import crossent
from crossent._rows import class_axis
from crossent.tools.shapes import ITEM_SIZES, check_dtype, shape_of

SOFTMAX, LOSSES, HEADS = (
    ("softmax", "log_softmax"),
    ("nll_loss", "cross_entropy", "prediction_stats"),
    ("linear_cross_entropy", "linear_token_stats"),
)
LABELS = "int64"


def plan_of(
    name: str, shapes: dict[str, str], dtype: str, library: str, options: list[str], gradient: bool
) -> crossent.Plan:
    """The plan of a call with arrays of these shapes, "input" and "target" among them; its memory is never touched.

    A target is labels, or class probabilities where it has the axes of those; without one it is labels that fit.
    """
    if name not in SOFTMAX + LOSSES + HEADS:
        raise ValueError(f"FUNCTION must be one of {', '.join(SOFTMAX + LOSSES + HEADS)}, got {name!r}")
    if library not in ("torch", "numpy"):
        raise ValueError(f"--library must be torch or numpy, got {library!r}")
    check_dtype(dtype)
    if library == "numpy" and dtype == "bfloat16":
        raise ValueError("--dtype: NumPy has no bfloat16")
    function = getattr(crossent, name)
    scalars = _scalars(options)
    flags = {argument: "--shape" if argument == "input" else f"--{argument.replace('_', '-')}" for argument in shapes}
    sizes = {argument: shape_of(text, flags[argument]) for argument, text in shapes.items()}
    if name in HEADS and "linear_weight" not in sizes:
        raise ValueError(f"{name} needs a --linear-weight, such as 50304x64 for 50304 classes and 64 features")
    if name not in SOFTMAX and "target" not in sizes:
        sizes["target"] = _labels(name, sizes, scalars.get("dim"))
    known = inspect.signature(function).parameters
    for argument in sizes | scalars:
        if argument not in known:
            raise ValueError(f"{name} has no argument {argument!r}; it has {', '.join(known)}")
    arrays, axes = {}, len(sizes["input"]) + len(sizes.get("linear_weight", ())[2:])  # of the logits
    for argument, shape in sizes.items():
        labels = argument == "target" and len(shape) != axes
        differentiated = gradient and argument in ("input", "linear_weight", "linear_bias")
        arrays[argument] = _array(library, argument, shape, LABELS if labels else dtype, differentiated)
    return crossent.plan(function, **arrays, **scalars)


def show(plan: crossent.Plan, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(plan), indent=1))
        return
    rows = Table(title=plan.function, title_justify="left", title_style="bold", show_header=False)
    rows.add_row("computed by", plan.path)
    rows.add_row("arithmetic", plan.arithmetic)
    if plan.chunks is not None:
        rows.add_row("chunks", f"{plan.chunks} of {plan.chunk_rows} rows")
    rows.add_row("memory", f"{plan.extra_bytes / 1e6:.1f} MB beside arguments, results and gradients")
    rows.add_row("because", "\n".join(f"- {reason}" for reason in plan.reasons))
    Console(highlight=False).print(rows)


def _scalars(options: list[str]) -> dict[str, Any]:
    """The name=value pairs; a value that is not JSON is text."""
    found = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--option must be a name and a value, such as reduction=sum, got {option!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _labels(name: str, sizes: dict[str, tuple[int, ...]], dim: Any) -> tuple[int, ...]:
    """The shape of the labels that the input asks for."""
    shape = sizes["input"]
    if name in HEADS:
        return shape[:-1] + sizes["linear_weight"][1:-1]
    axis = class_axis(len(shape), dim)
    return shape[:axis] + shape[axis + 1 :]


def _array(library: str, name: str, shape: tuple[int, ...], dtype: str, gradient: bool) -> Any:
    """Labels are zeros; of other arrays nothing is read, and memory that nobody touches is not taken."""
    try:
        if library == "numpy":
            return np.zeros(shape, dtype)
        import torch

        make = torch.zeros if dtype == LABELS else torch.empty
        return make(shape, dtype=getattr(torch, dtype), requires_grad=gradient)
    except (MemoryError, RuntimeError):
        size = prod(shape) * ITEM_SIZES[dtype] / 1e9
        raise MemoryError(f"{name} of shape {shape}: {size:,.0f} GB are more than this machine gives") from None
