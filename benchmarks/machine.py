"""The program that measures how fast the machine's memory is."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from crossent.tools.bench.machine import cores
from crossent.tools.bench.timing import medians

WORDS = 64_000_000  # of 8 bytes: far more than any cache holds


def memory_rates() -> dict[str, float]:
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
    return {"read": gigabytes / seconds["read"], "copy": 2 * gigabytes / seconds["copy"]}


if __name__ == "__main__":
    print(json.dumps(memory_rates()))
