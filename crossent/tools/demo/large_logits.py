"""Part 3: one training step on logits of a language model's size, its time and memory beside PyTorch's.

Run as a program it is the child process that measures one library's memory.
"""

import sys

import torch
from rich.console import Console
from rich.table import Table

import crossent.nn.functional
from crossent.tools.bench import memory
from crossent.tools.bench.calls import of_arrays, torch_arrays
from crossent.tools.bench.cases import Case
from crossent.tools.bench.memory import in_megabytes
from crossent.tools.bench.runner import last_line, progress
from crossent.tools.bench.timing import medians

STEPS = {
    "torch": torch.nn.functional.cross_entropy,
    "crossent": crossent.nn.functional.cross_entropy,
    "crossent, in place": lambda x, y: crossent.nn.functional.cross_entropy(x, y, inplace_backward=True),
}
ROWS, CLASSES = 2048, 32_000
REPEATS = 9


def show(console: Console) -> list[str]:
    case = _case(_rows_that_fit())
    rows, size = case.shape[0], case.size
    console.print(f"Forward and backward of float32 logits of {rows} x {CLASSES} ({in_megabytes(size)}).\n")
    peaks = {}
    with progress(console, len(STEPS) + 1) as begins:
        for name in STEPS:
            begins("Measuring memory")
            peaks[name] = int(last_line(__name__, name, str(rows)))
        begins("Measuring time")
        arrays = torch_arrays(case)
        times = medians({name: of_arrays(loss, "step", arrays) for name, loss in STEPS.items()}, REPEATS, 0.0)
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


def _case(rows: int) -> Case:
    return Case("a training step", (rows, CLASSES))


def _rows_that_fit() -> int:
    """Fewer rows where six times the logits would not fit into memory: PyTorch's step needs four."""
    rows = ROWS
    while rows > 64 and 6 * _case(rows).size > memory.available():
        rows //= 2
    return rows


def _extra_peak_memory(name: str, rows: int) -> int:
    """Bytes that a step takes on top of its logits, after a small step has loaded what there is to load."""
    STEPS[name](*torch_arrays(_case(8))).backward()
    arrays = torch_arrays(_case(rows))
    before = memory.peak()
    STEPS[name](*arrays).backward()
    return memory.peak() - before


if __name__ == "__main__":
    print(_extra_peak_memory(sys.argv[1], int(sys.argv[2])))
