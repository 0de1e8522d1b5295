"""What a loss written in Python cannot go below where rows are few: its node in the autograd graph, beside PyTorch.

Run as `python -m benchmarks.floor`. A node that does nothing saves what it is given, and in its backward pass makes
room for a gradient and hands that out: a loss does at least this, in Python. Evaluation is what crossent does beside
its node: it looks the call up and computes.
"""

from argparse import ArgumentParser

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import crossent
from crossent.tools.bench.calls import of_arrays
from crossent.tools.bench.timing import medians

SHAPES = ((32, 10), (128, 1000))
ROUNDS, SECONDS = 11, 3.0


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target):
        ctx.save_for_backward(input, target)
        return torch.scalar_tensor(0.0)

    @staticmethod
    def backward(ctx, *dloss):
        input, _ = ctx.saved_tensors
        return torch.empty_like(input), None


def times(rows: int, classes: int) -> dict[str, float]:
    logits, labels = torch.randn(rows, classes), torch.randint(classes, (rows,))
    leaf = logits.clone().requires_grad_()
    losses = {
        "torch": functional.cross_entropy,
        "crossent": crossent.cross_entropy,
        "a node that does nothing": Nothing.apply,
    }

    calls = {
        f"{name}, {mode}": of_arrays(loss, mode, (leaf, labels))
        for name, loss in losses.items()
        for mode in ("step", "forward")
    }
    calls["crossent, evaluation"] = lambda: crossent.cross_entropy(logits, labels)
    return medians(calls, ROUNDS, SECONDS)


def main() -> None:
    ArgumentParser("python -m benchmarks.floor", description=__doc__).parse_args()
    table = Table("", *(f"{rows} x {classes}" for rows, classes in SHAPES), title="Microseconds a call")
    measured = [times(*shape) for shape in SHAPES]
    for name in sorted(measured[0]):
        table.add_row(name, *(f"{1e6 * found[name]:.1f}" for found in measured))
    Console().print(table)


if __name__ == "__main__":
    main()
