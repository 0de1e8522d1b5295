"""Part 3: one training step on logits of a language model's size, its time and memory beside PyTorch's.

Run as a program it is the child process that measures one library's memory.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import crossent.nn.functional
from crossent.tools.bench import memory
from crossent.tools.bench.memory import in_megabytes

STEPS = {
    "torch": torch.nn.functional.cross_entropy,
    "crossent": crossent.nn.functional.cross_entropy,
    "crossent, in place": lambda x, y: crossent.nn.functional.cross_entropy(x, y, inplace_backward=True),
}
ROWS, CLASSES = 2048, 32_000
REPEATS = 9


def show(console: Console) -> list[str]:
    rows = _rows_that_fit()
    size = rows * CLASSES * 4
    console.print(f"Forward and backward of float32 logits of {rows} x {CLASSES} ({in_megabytes(size)}).\n")
    peaks = {name: _memory_of_a_child(name, rows) for name in _progress(console, list(STEPS), "Measuring memory")}
    times = _times(console, rows)
    table = Table("", "time", "faster", "extra memory", "of the logits")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, seconds in times.items():
        faster = times["torch"] / seconds
        share = peaks[name] / size
        table.add_row(name, f"{seconds * 1e3:.1f} ms", f"{faster:.1f} x", in_megabytes(peaks[name]), f"{share:.2f} x")
    console.print(table)
    console.print(f"Time: median of {REPEATS} interleaved repeats on {torch.get_num_threads()} threads.", end=" ")
    console.print("Memory: the peak of a fresh process.")
    return []


def _progress(console: Console, items: list, description: str):
    # Drawn seldom, since drawing takes time on the cores from what is measured.
    hidden = not console.is_terminal
    return track(items, description, console=console, transient=True, refresh_per_second=2, disable=hidden)


def _rows_that_fit() -> int:
    """Fewer rows where six times the logits would not fit into memory: PyTorch's step needs four."""
    rows = ROWS
    while rows > 64 and 6 * rows * CLASSES * 4 > memory.available():
        rows //= 2
    return rows


def _times(console: Console, rows: int) -> dict[str, float]:
    """The median seconds of a step by each library, interleaved so that the machine's moods fall on all alike."""
    logits, labels = _example(rows)
    times = {name: [] for name in STEPS}
    for repeat in _progress(console, list(range(-1, REPEATS)), "Measuring time"):
        for name, loss in STEPS.items():
            start = time.perf_counter()
            _step(loss, logits, labels)
            if repeat >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def _example(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, CLASSES, requires_grad=True), torch.randint(CLASSES, (rows,))


def _step(loss: Callable, logits: torch.Tensor, labels: torch.Tensor) -> None:
    loss(logits, labels).backward()
    logits.grad = None


def _memory_of_a_child(name: str, rows: int) -> int:
    command = [sys.executable, "-m", __name__, name, str(rows)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _extra_peak_memory(name: str, rows: int) -> int:
    """Bytes that a step takes on top of its logits, after a small step has loaded what there is to load."""
    _step(STEPS[name], *_example(8))
    logits, labels = _example(rows)
    before = memory.peak()
    _step(STEPS[name], logits, labels)
    return memory.peak() - before


if __name__ == "__main__":
    print(_extra_peak_memory(sys.argv[1], int(sys.argv[2])))
