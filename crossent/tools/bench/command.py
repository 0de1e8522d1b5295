"""What `crossent bench` does with its arguments."""

import json
from pathlib import Path

import torch
from rich.console import Console

from crossent.tools.bench import report, runner
from crossent.tools.bench.cases import HEAD, Case, case_of
from crossent.tools.files import check_file, write
from crossent.tools.shapes import check_dtype, shape_of

SHAPES, HEADS = ("2048x32000", "4096x1000"), ("1024x512x8192",)


def cases(shapes: list[str], heads: list[str], dtypes: list[str], device: str) -> list[Case]:
    """Every shape and head in every dtype; those above where neither is given."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU")
    for dtype in dtypes:
        check_dtype(dtype)
    if not shapes and not heads:
        shapes, heads = list(SHAPES), list(HEADS)
    calls = [(_sizes(text, "--shape"), "cross_entropy") for text in shapes]
    calls += [(_sizes(text, "--head", ("tokens", "features", "classes")), HEAD) for text in heads]
    found = [case_of(shape, dtype, function, device) for shape, function in calls for dtype in dtypes]
    return list({case.name: case for case in found}.values())


def _sizes(text: str, option: str, axes: tuple[str, ...] = ()) -> tuple[int, ...]:
    shape = shape_of(text, option, axes)
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"{option} must have rows and classes, at least one of each, got {text}")
    return shape


def bench(cases: list[Case], rounds: int, as_json: bool, save: Path | None, plot: Path | None) -> int:
    """Measures and shows. Returns the exit status, 130 where the user broke it off."""
    check_file(save, "--save")
    check_file(plot, "--plot")
    if plot:
        from crossent.tools.bench.plot import check_format, draw

        check_format(plot)
    results = runner.run(cases, rounds, Console(stderr=True))
    text = json.dumps(results, indent=1)
    if as_json:
        print(text)
    else:
        report.show(Console(highlight=False), results)
    if save:
        write(save, f"{text}\n")
    if plot:
        draw(plot, results)
    return 130 if results["interrupted"] else 0
