"""What the numbers were measured on; run as a program, how fast its memory is."""

import json
import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

import crossent
from benchmarks.timing import interleaved

PACKAGES = ("torch", "numpy", "numba", "scipy", "scikit-learn")
WORDS = 64_000_000  # of 8 bytes: far more than any cache holds


def machine() -> dict:
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": platform.platform(),
        "huge_pages": Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip(),
    }


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "crossent": crossent.__version__} | packages


def memory_rates() -> dict[str, float]:
    """GB/s on all cores: of reading, and of copying with what is read and what is written counted."""
    cores = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(cores)
    source, copy = np.ones(WORDS, np.int64), np.zeros(WORDS, np.int64)
    sources, copies = np.array_split(source, cores), np.array_split(copy, cores)
    samples = interleaved(
        {
            "read": lambda: list(pool.map(np.add.reduce, sources)),
            "copy": lambda: list(pool.map(np.copyto, copies, sources)),
        },
        rounds=11,
        seconds=2,
    )
    gigabytes = source.nbytes / 1e9
    return {"read": gigabytes / median(samples["read"]), "copy": 2 * gigabytes / median(samples["copy"])}


if __name__ == "__main__":
    print(json.dumps(memory_rates()))
