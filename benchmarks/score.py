"""The process that measures scoring a large .npy file: its time over that of NumPy's sum, and its memory, as JSON.

The file is read before anything is timed, so that it lies in the page cache, and the first score is not counted: it
compiles the kernel, or loads it. Memory is the peak of what is resident and belongs to no file.
"""

import json
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from crossent.tools.bench.memory import of_this_process
from crossent.tools.bench.timing import beside
from crossent.tools.score import score

ROWS, CLASSES = 200_000, 1_000
ANONYMOUS = "RssAnon"  # what of this process is in memory and not that of a file
RATIO_AT_MOST, MEGABYTES_AT_MOST = 1.5, 300


def write(folder: Path, rows: int) -> tuple[str, str]:
    generator = np.random.default_rng(0)
    logits = np.lib.format.open_memmap(folder / "logits.npy", "w+", np.float32, (rows, CLASSES))
    for block in np.array_split(logits, max(1, rows // 10_000)):
        block[...] = generator.standard_normal(block.shape, dtype=np.float32)
    np.save(folder / "labels.npy", generator.integers(CLASSES, size=rows))
    return str(folder / "logits.npy"), str(folder / "labels.npy")


def extra_memory(logits: str, labels: str) -> int:
    """The peak over that of the process before, by looking every millisecond."""
    before, peak, done = of_this_process(ANONYMOUS), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(1e-3):
            peak = max(peak, of_this_process(ANONYMOUS))

    watcher = threading.Thread(target=watch)
    watcher.start()
    score(logits, labels)
    done.set()
    watcher.join()
    return max(0, peak - before)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), ROWS)
        memory = extra_memory(*files)
        calls = {"score": lambda: score(*files)}
        found = beside(lambda: np.load(files[0], mmap_mode="r").sum(), calls, int(sys.argv[1]), 0.0)["score"]
    rows = [
        {"name": "200,000 x 1,000 (800 MB) / numpy.sum", "value": found["ratio"], "unit": "", "at_most": RATIO_AT_MOST},
        {"name": "extra memory", "value": memory / 1e6, "unit": "MB", "at_most": MEGABYTES_AT_MOST},
    ]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
