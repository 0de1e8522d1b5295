"""softmax and log_softmax beside PyTorch's, as called and compiled: `python -m benchmarks.softmax` prints the table."""

from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import crossent
from crossent.tools.bench.rivals import compiled
from crossent.tools.bench.timing import medians

SHAPES = ((32, 10), (128, 100), (128, 1000), (4096, 1000), (2048, 32000))
FUNCTIONS = ("softmax", "log_softmax")
WAYS = {"called": lambda function: function, "compiled": compiled}
COLUMNS = tuple(f"{mode}, {library}" for mode in ("forward", "step") for library in ("crossent", "torch"))
ROUNDS, SECONDS = 11, 1.0


def calls(way: Callable[[Callable], Callable], name: str, shape: tuple[int, int]) -> dict[str, Callable]:
    """By the columns' names; a step takes a gradient of the results."""
    logits, upstream = torch.randn(shape), torch.randn(shape)
    leaf = logits.clone().requires_grad_()

    def step(function: Callable) -> None:
        function(leaf).backward(upstream)
        leaf.grad = None

    functions = {}
    for library in (crossent, torch):
        function = getattr(library, name)
        functions[library.__name__] = way(lambda x, function=function: function(x, 1))
    found = {f"forward, {library}": lambda call=call: call(logits) for library, call in functions.items()}
    return found | {f"step, {library}": lambda call=call: step(call) for library, call in functions.items()}


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
