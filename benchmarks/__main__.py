"""Runs every measurement in a process of its own, and writes results.json and table.md."""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks import report
from benchmarks.cases import CASES, HEAD_CASES, HEAD_MEMORY, MEMORY, SPREAD, START
from crossent.tools.bench.machine import measured_on
from crossent.tools.bench.runner import last_line, progress

PACKAGES = ("torch", "numpy", "numba", "scipy", "scikit-learn")
# Of the results.
GROUPS = ("times", "memory", "head", "head_memory", "spread", "score", "start", "memory_rates")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="crossent beside its rivals")
    parser.add_argument(
        "--case", action="append", help="part of a case's name, 'memory', 'score' or 'start'; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that everything runs")
    parser.add_argument(
        "--output", type=Path, default=Path("bench-output"), help="folder for results.json and table.md"
    )
    return parser.parse_args()


def child(module: str, *parameters: str, **environment: str) -> Any:
    """What a module says when it runs as a program; most say the rows of their results."""
    return json.loads(last_line(f"benchmarks.{module}", *parameters, **environment))


def measure_start(name: str) -> list[dict]:
    if "cold" in name:
        with tempfile.TemporaryDirectory() as empty:
            seconds = [child("start", name, NUMBA_CACHE_DIR=empty)]
    else:
        seconds = [child("start", name) for _ in range(6)][1:]
    return [{"name": name, "value": median(seconds), "at_most": START[name]}]


def jobs(quick: bool) -> Iterator[tuple[str, str, Callable[[], list[dict]]]]:
    """What there is to run: the group of its results, its name, and a call that returns them."""
    rounds, seconds, rounds_of_head = ("3", "0", "1") if quick else ("11", "2", "3")
    for case in CASES:
        times = partial(child, "worker", case.name, rounds, seconds)
        yield "times", case.name, partial(times, THP_MEM_ALLOC_ENABLE="0")
        if case.arrays == "torch":
            yield "times", f"{case.name} (THP)", partial(times, THP_MEM_ALLOC_ENABLE="1")
    for library, mode in MEMORY:
        yield "memory", f"memory: {library}, {mode}", partial(child, "memory", "cross entropy", library, mode)
    for case in HEAD_CASES:
        yield "head", case.name, partial(child, "head", case.name, rounds_of_head)
    for name in HEAD_MEMORY:
        yield "head_memory", f"memory: head, {name}", partial(child, "memory", "head", name)
    for name in SPREAD:
        yield "spread", f"spread: {name}", partial(child, "spread", name, rounds)
    yield "score", "score", partial(child, "score", rounds)
    for name in START:
        yield "start", f"start: {name}", partial(measure_start, name)
    yield "memory_rates", "rates of memory", partial(child, "memory", "rates")


def run(chosen: argparse.Namespace, console: Console) -> dict:
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    results = {"command": command} | measured_on(PACKAGES) | {"errors": []} | {group: [] for group in GROUPS}
    wanted = [job for job in jobs(chosen.quick) if not chosen.case or any(part in job[1] for part in chosen.case)]
    with progress(console, len(wanted)) as begins:
        for group, name, measure in wanted:
            begins(name)
            try:
                results[group] += measure()
            except subprocess.CalledProcessError as error:
                results["errors"].append(f"{name}: {error}")
    return results


def main() -> None:
    chosen = arguments()
    console = Console(highlight=False)
    results = run(chosen, console)
    report.show(console, results)
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (chosen.output / "table.md").write_text(report.markdown(results))
    console.print(f"Written: {chosen.output / 'results.json'}, {chosen.output / 'table.md'}")


if __name__ == "__main__":
    main()
