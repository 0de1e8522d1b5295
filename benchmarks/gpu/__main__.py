"""Tests, a check of memory accesses and measurements, within so many minutes; writes gpu.json and gpu.md."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.gpu import report
from benchmarks.gpu.cases import CASES
from crossent.tools.bench.machine import cores, measured_on
from crossent.tools.bench.runner import last_line

PACKAGES = "torch", "triton", "numpy", "liger-kernel", "cut-cross-entropy", "quack-kernels"
TESTS = "tests/test_gpu_kernels.py", "tests/test_gpu_softmax.py", "tests/test_gpu.py"
SANITIZED = "tests/test_gpu_kernels.py", "-k", "test_many_classes and plain and dtype2"
# Seconds: of the tests, of a sample of them under the sanitizer, and of a case.
LIMITS = {"tests": 180, "sanitizer": 60, "case": 60}
PROCESSES = 12  # of the tests at most, which compile kernels for most of their time
WIDTH = 140  # of the table where there is no terminal
TRITON_INTERPRETER = {"TRITON_INTERPRET": "1"}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="crossent on a GPU")
    parser.add_argument("--case", action="append", help="part of a case's name; may be repeated")
    parser.add_argument("--only", choices=["checks", "times"], help="the tests, or the measurements")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing new is begun")
    parser.add_argument("--dry", action="store_true", help="a few numbers of each case on the CPU, and no tests")
    parser.add_argument("--output", type=Path, default=Path("bench-output"), help="folder for gpu.json and gpu.md")
    return parser.parse_args(given)


class Clock:
    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes

    def left(self, at_most: float) -> float:
        """Seconds, none where the time is up."""
        return max(0.0, min(at_most, self.end - time.monotonic()))


def check(name: str, command: list[str], seconds: float, **environment: str) -> dict:
    """What a command said last, and whether it failed."""
    if not seconds:
        return {"name": name, "outcome": "not run: the time is up", "failed": False}
    try:
        done = subprocess.run(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return {"name": name, "outcome": f"not done after {seconds:.0f} seconds", "failed": True}
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    found = {"name": name, "outcome": lines[-1] if lines else "", "failed": done.returncode != 0}
    return found | ({"said": failed or lines[-30:]} if done.returncode else {})


def checks(clock: Clock) -> list[dict]:
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    several = ["-n", str(min(PROCESSES, cores()))] if find_spec("xdist") else []
    found = [check("tests", [*pytest, *several, *TESTS], clock.left(LIMITS["tests"]))]
    sanitizer = shutil.which("compute-sanitizer")
    if not sanitizer:
        return [
            *found,
            {"name": "memory accesses", "outcome": "not run: there is no compute-sanitizer", "failed": False},
        ]
    command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9", *pytest, *SANITIZED]
    seconds = clock.left(LIMITS["sanitizer"])
    return [*found, check("memory accesses", command, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")]


def measured(chosen: argparse.Namespace, clock: Clock, console: Console) -> tuple[list[dict], list[str]]:
    """Rows, and what went wrong."""
    rows, errors = [], []
    for case in CASES:
        if chosen.case and not any(part in case.name for part in chosen.case):
            continue
        seconds = clock.left(LIMITS["case"])
        if not seconds:
            errors.append(f"{case.name}: not measured: the time is up")
            continue
        console.print(case.name, markup=False)
        try:
            how = ("dry",) if chosen.dry else ()
            environment = TRITON_INTERPRETER if chosen.dry else {}
            rows += json.loads(last_line("benchmarks.gpu.worker", case.name, *how, timeout=seconds, **environment))
        except subprocess.TimeoutExpired:
            errors.append(f"{case.name}: not done after {seconds:.0f} seconds")
        except (subprocess.CalledProcessError, json.JSONDecodeError) as error:
            errors.append(f"{case.name}: {error}")
    return rows, errors


def run(chosen: argparse.Namespace, console: Console) -> dict:
    clock = Clock(chosen.minutes)
    results = measured_on(PACKAGES) | {"checks": [], "results": [], "errors": []}
    if torch.cuda.is_available():
        results["machine"]["gpu"] = torch.cuda.get_device_name()
    if chosen.only != "times" and not chosen.dry:
        results["checks"] = checks(clock)
    if chosen.only != "checks":
        results["results"], results["errors"] = measured(chosen, clock, console)
    return results


def main(given: list[str] | None = None) -> int:
    chosen, console = arguments(given), Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    if not torch.cuda.is_available() and not chosen.dry:
        console.print("skipped: there is no GPU")
        return 0
    results = run(chosen, console)
    report.show(console, results)
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    (chosen.output / "gpu.md").write_text(report.markdown(results))
    console.print(f"Written: {chosen.output / 'gpu.json'}, {chosen.output / 'gpu.md'}")
    return int(any(check["failed"] for check in results["checks"]) or bool(results["errors"]))


if __name__ == "__main__":
    sys.exit(main())
