"""The process that measures memory: the peak of one call beside what it has to have.

For cross entropy that is the logits, in whose size the peak is given; for the fused head the inputs, their gradients
and for a weight of 16 bits one float32 accumulator of its gradient, and the peak is in bytes.
"""

import re
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

import crossent
from benchmarks.cases import HEAD_MEMORY_SHAPE, MEMORY_SHAPE

LOSSES = {"crossent": crossent.cross_entropy, "torch": torch.nn.functional.cross_entropy}


def of_cross_entropy(library: str, mode: str) -> float:
    """After a call of the same size, so that only what every call takes is counted."""
    torch.manual_seed(0)
    logits = torch.randn(MEMORY_SHAPE, requires_grad=True)
    labels = torch.randint(MEMORY_SHAPE[1], MEMORY_SHAPE[:1])
    options = {"inplace_backward": True} if mode == "step in place" else {}

    def call() -> None:
        with torch.no_grad() if mode == "evaluation" else nullcontext():
            loss = LOSSES[library](logits, labels, **options)
        if mode != "evaluation":
            loss.backward()
            logits.grad = None

    return _extra_peak(call) / logits.nbytes


def of_the_head(dtype: str, variant: str) -> float:
    tokens, features, classes = HEAD_MEMORY_SHAPE
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    hidden = torch.randn(tokens, features, dtype=kind, requires_grad=True)
    weight = (torch.randn(classes, features) / features**0.5).to(kind).requires_grad_()
    target = torch.randint(classes, (tokens,))
    if variant == "soft targets":
        target = torch.rand(tokens, classes, dtype=kind).div_(classes)
    options: dict = {"label_smoothing": 0.1} if variant == "smoothing" else {}
    if variant in ("sum", "none"):
        options = {"reduction": variant}
    gradients = hidden.nbytes + weight.nbytes + (4 * weight.numel() if kind.itemsize == 2 else 0)

    def call() -> None:
        loss = crossent.linear_cross_entropy(hidden, weight, target, **options)
        loss.backward(torch.ones_like(loss))
        hidden.grad = weight.grad = None

    return _extra_peak(call) - gradients


def _extra_peak(call) -> float:
    call()
    crossent.empty_cache()  # what waits there for this call would not be counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _peak()
    call()
    return _peak() - before


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


MEASURED = {"cross entropy": of_cross_entropy, "head": of_the_head}

if __name__ == "__main__":
    print(MEASURED[sys.argv[1]](*sys.argv[2:]))
