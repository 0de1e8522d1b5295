"""The process that measures memory: the peak of one call beside its logits, in sizes of the logits."""

import re
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

import crossent
from benchmarks.cases import MEMORY_SHAPE

LOSSES = {"crossent": crossent.cross_entropy, "torch": torch.nn.functional.cross_entropy}


def extra_peak(library: str, mode: str) -> float:
    """After a call of the same size, so that only what every call takes is counted."""
    torch.manual_seed(0)
    logits = torch.randn(MEMORY_SHAPE, requires_grad=True)
    labels = torch.randint(MEMORY_SHAPE[1], MEMORY_SHAPE[:1])
    _call(library, mode, logits, labels)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _peak()
    _call(library, mode, logits, labels)
    return (_peak() - before) / (logits.numel() * logits.element_size())


def _call(library: str, mode: str, logits: torch.Tensor, labels: torch.Tensor) -> None:
    options = {"inplace_backward": True} if mode == "step in place" else {}
    with torch.no_grad() if mode == "evaluation" else nullcontext():
        loss = LOSSES[library](logits, labels, **options)
    if mode != "evaluation":
        loss.backward()
        logits.grad = None


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


if __name__ == "__main__":
    print(extra_peak(sys.argv[1], sys.argv[2]))
