"""The process that measures memory: the peak of one call beside what it has to have.

For cross entropy that is the logits, in whose size the peak is given; for the fused head the inputs, their gradients
and for a weight of 16 bits one float32 accumulator of its gradient, and the peak is in bytes.
"""

import sys

import torch

import crossent
from benchmarks.cases import HEAD_MEMORY, MEMORY_SHAPE
from crossent.tools.bench.calls import grad_mode, torch_arrays
from crossent.tools.bench.cases import HEAD, Case
from crossent.tools.bench.memory import extra_peak

LOSSES = {"crossent": crossent.cross_entropy, "torch": torch.nn.functional.cross_entropy}


def of_cross_entropy(library: str, mode: str) -> float:
    """After a call of the same size, so that only what every call takes is counted."""
    logits, labels = torch_arrays(Case("memory", MEMORY_SHAPE))
    options = {"inplace_backward": True} if mode == "step in place" else {}

    def call() -> None:
        with grad_mode(mode):
            loss = LOSSES[library](logits, labels, **options)
        if mode != "evaluation":
            loss.backward()
            logits.grad = None

    return extra_peak(call) / logits.nbytes


def of_the_head(name: str) -> float:
    shape, dtype, variant = HEAD_MEMORY[name]
    hidden, weight, target = torch_arrays(Case("memory", shape, function=HEAD, dtype=dtype))
    if variant == "soft targets":
        target = torch.rand(len(hidden), len(weight), dtype=hidden.dtype).div_(len(weight))
    options: dict = {"label_smoothing": 0.1} if variant == "smoothing" else {}
    if variant in ("sum", "none"):
        options = {"reduction": variant}
    gradients = hidden.nbytes + weight.nbytes + (4 * weight.numel() if hidden.itemsize == 2 else 0)

    def call() -> None:
        loss = crossent.linear_cross_entropy(hidden, weight, target, **options)
        loss.backward(torch.ones_like(loss))
        hidden.grad = weight.grad = None

    return extra_peak(call) - gradients


MEASURED = {"cross entropy": of_cross_entropy, "head": of_the_head}

if __name__ == "__main__":
    print(MEASURED[sys.argv[1]](*sys.argv[2:]))
