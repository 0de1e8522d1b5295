"""The process that measures memory: how fast it is, or the peak of one call beside what it has to have.

For cross entropy that is the logits, in whose size the peak is given; for the fused head the inputs, their gradients
and for a weight of 16 bits one float32 accumulator of its gradient, and the peak is in megabytes. Prints rows as JSON.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

import crossent
from benchmarks.cases import HEAD_MEMORY, HEAD_MEMORY_AT_MOST, MEMORY, MEMORY_SHAPE
from crossent.tools.bench.calls import grad_mode, of_arrays, torch_arrays
from crossent.tools.bench.cases import HEAD, Case
from crossent.tools.bench.machine import cores
from crossent.tools.bench.memory import extra_peak
from crossent.tools.bench.timing import medians

LOSSES = {"crossent": crossent.cross_entropy, "torch": torch.nn.functional.cross_entropy}
WORDS = 64_000_000  # of 8 bytes: far more than any cache holds


def of_cross_entropy(library: str, mode: str) -> list[dict]:
    """After a call of the same size, so that only what every call takes is counted."""
    logits, labels = torch_arrays(Case("memory", MEMORY_SHAPE))
    loss = partial(LOSSES[library], **{"inplace_backward": True} if mode == "step in place" else {})
    with grad_mode(mode):
        value = extra_peak(of_arrays(loss, mode.removesuffix(" in place"), (logits, labels))) / logits.nbytes
    limit = MEMORY[library, mode]
    return [{"library": library, "mode": mode, "value": value} | ({"at_most": limit} if limit else {})]


def of_the_head(name: str) -> list[dict]:
    shape, dtype, variant = HEAD_MEMORY[name]
    hidden, weight, target = torch_arrays(Case("memory", shape, function=HEAD, dtype=dtype))
    if variant == "soft targets":
        target = torch.rand(len(hidden), len(weight), dtype=hidden.dtype).div_(len(weight))
    options: dict = {"label_smoothing": 0.1} if variant == "smoothing" else {}
    if variant in ("sum", "none"):
        options = {"reduction": variant}
    gradients = hidden.nbytes + weight.nbytes + (4 * weight.numel() if hidden.itemsize == 2 else 0)
    loss = partial(crossent.linear_cross_entropy, **options)
    value = extra_peak(of_arrays(loss, "step", (hidden, weight, target))) - gradients
    return [{"name": name, "value": value / 1e6, "at_most": HEAD_MEMORY_AT_MOST / 1e6}]


def rates() -> list[dict]:
    """GB/s on all cores: of reading, and of copying with what is read and what is written counted."""
    parts = cores()
    pool = ThreadPoolExecutor(parts)
    source, copy = np.ones(WORDS, np.int64), np.zeros(WORDS, np.int64)
    sources, copies = np.array_split(source, parts), np.array_split(copy, parts)
    seconds = medians(
        {
            "read": lambda: list(pool.map(np.add.reduce, sources)),
            "copy": lambda: list(pool.map(np.copyto, copies, sources)),
        },
        rounds=11,
        seconds=2,
    )
    gigabytes = source.nbytes / 1e9
    return [{"read": gigabytes / seconds["read"], "copy": 2 * gigabytes / seconds["copy"]}]


MEASURED = {"rates": rates, "cross entropy": of_cross_entropy, "head": of_the_head}

if __name__ == "__main__":
    print(json.dumps(MEASURED[sys.argv[1]](*sys.argv[2:])))
