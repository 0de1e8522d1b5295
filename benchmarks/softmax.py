"""softmax and log_softmax beside PyTorch's, as called and compiled: `python -m benchmarks.softmax` prints the table."""

from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import crossent
from crossent.tools.bench.calls import of_arrays, torch_arrays
from crossent.tools.bench.cases import Case
from crossent.tools.bench.rivals import bound, compiled
from crossent.tools.bench.timing import medians

SHAPES = ((32, 10), (128, 100), (128, 1000), (4096, 1000), (2048, 32000))
FUNCTIONS = ("softmax", "log_softmax")
WAYS = {"called": lambda function: function, "compiled": compiled}
COLUMNS = tuple(f"{mode}, {library}" for mode in ("forward", "step") for library in ("crossent", "torch"))
ROUNDS, SECONDS = 11, 1.0


def calls(way: Callable[[Callable], Callable], name: str, shape: tuple[int, int]) -> dict[str, Callable]:
    """By the columns' names; a step takes a gradient of the results."""
    case = Case(name, shape, function=name)
    (leaf,) = torch_arrays(case)
    arrays, found = {"forward": leaf.detach(), "step": leaf}, {}
    for library in (crossent, torch):
        function = way(bound(library, case))
        found |= {f"{mode}, {library.__name__}": of_arrays(function, mode, (x,)) for mode, x in arrays.items()}
    return found


def main() -> None:
    table = Table("", "logits", *COLUMNS, title="Microseconds a call")
    for name in FUNCTIONS:
        for way, make in WAYS.items():
            for shape in SHAPES:
                torch.compiler.reset()
                times = medians(calls(make, name, shape), ROUNDS, SECONDS)
                micros = (f"{1e6 * times[column]:.1f}" for column in COLUMNS)
                table.add_row(f"{name}, {way}", f"{shape[0]} x {shape[1]}", *micros)
    Console().print(table)


if __name__ == "__main__":
    main()
