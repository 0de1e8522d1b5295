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
from crossent.tools.score.rows import rows_file

ROWS, CLASSES = 200_000, 1_000
ANONYMOUS = "RssAnon"  # what of this process is in memory and not that of a file
RATIO_AT_MOST, WITH_ALL_AT_MOST, MEGABYTES_AT_MOST = 1.5, 3, 300


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


def with_all(folder: Path, logits: str, labels: str) -> None:
    """Groups, a file of all rows, and the result with its intervals."""
    with rows_file(folder / "rows.parquet") as each:
        score(logits, labels, beside={"group": str(folder / "groups.npy")}, each=each).total.result()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write(folder, ROWS)
        np.save(folder / "groups.npy", np.array([f"group {i}" for i in range(50)])[np.arange(ROWS) % 50])
        memory = extra_memory(*files)
        calls = {"score": lambda: score(*files), "all": lambda: with_all(folder, *files)}
        found = beside(lambda: np.load(files[0], mmap_mode="r").sum(), calls, int(sys.argv[1]), 0.0)
    size, plain, everything = "200,000 x 1,000", found["score"]["ratio"], found["all"]["ratio"]
    rows = [
        {"name": f"{size} (800 MB) / numpy.sum", "value": plain, "unit": "", "at_most": RATIO_AT_MOST},
        {"name": f"{size} with groups, rows / numpy.sum", "value": everything, "unit": "", "at_most": WITH_ALL_AT_MOST},
        {"name": "extra memory", "value": memory / 1e6, "unit": "MB", "at_most": MEGABYTES_AT_MOST},
    ]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
