"""Every rival on every case, each in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count, product

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from crossent.tools.bench.cases import Case
from crossent.tools.bench.limits import least
from crossent.tools.bench.machine import measured_on
from crossent.tools.bench.memory import available
from crossent.tools.bench.rivals import LIMIT, RIVALS, Rival

TIME_LIMIT = 300  # seconds for a rival on a case, above which it is given up
# One heap for all threads: of others the C library does not give all free memory back, so that a peak misses it.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
COPIES = 6  # of the logits that a case takes with what most rivals make of them


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A bar for so many measurements, or where no terminal is, a line for each; tell it the title as one begins."""
    if not console.is_terminal:
        numbers = count(1)
        yield lambda title: console.print(f"{next(numbers)} of {total}: {title}", markup=False, soft_wrap=True)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    # Drawn by hand: a bar that draws itself would take turns on the cores with what is timed.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=total, completed=-1)
        yield lambda title: bar.update(task, description=title, advance=1, refresh=True)


def last_line(module: str, *parameters: str, quiet: bool = False, timeout: float | None = None, **environment) -> str:
    """The last line that the module prints, run as a program; `quiet` keeps what it says on stderr for the error."""
    # One compiler process: idle ones would share the cores with what is timed.
    variables = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-m", module, *parameters],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        timeout=timeout,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def in_a_process(case: Case, name: str, rounds: int) -> list[dict]:
    """The rows of a rival on a case; of a process that dies, what it said last."""
    job = json.dumps({"case": asdict(case), "rival": name, "rounds": rounds})
    try:
        return json.loads(last_line("crossent.tools.bench.worker", job, quiet=True, timeout=TIME_LIMIT, **ENVIRONMENT))
    except subprocess.TimeoutExpired:
        return [{"error": f"not done after {TIME_LIMIT} seconds"}]
    except subprocess.CalledProcessError as died:
        said = [line for line in died.stderr.splitlines() if line.strip()]
        how = f"killed by signal {-died.returncode}" if died.returncode < 0 else f"ended with status {died.returncode}"
        return [{"error": f"{how}{': ' + said[-1][:200] if said else ''}"}]


def run(
    cases: list[Case], rounds: int, console: Console, rivals: dict[str, Rival] = RIVALS, measure=in_a_process
) -> dict:
    """What was measured, what failed and what was not measured, with the machine and the versions."""
    found = measured_on(("numpy", "numba", *dict.fromkeys(rival.package for rival in rivals.values())))
    found["machine"]["threads"] = torch.get_num_threads()
    if any(case.device == "cuda" for case in cases):
        found["machine"]["gpu"] = torch.cuda.get_device_name()
    leasts = [{"bytes": case.size, "least": {mode: least(case, mode) for mode in LIMIT.modes}} for case in cases]
    found["cases"] = [asdict(case) | more for case, more in zip(cases, leasts)]
    found["titles"] = titles = {name: rival.title for name, rival in (rivals | {"limit": LIMIT}).items()}
    found |= {"results": [], "not_measured": [], "interrupted": False}
    jobs = []
    for case, name in product(cases, rivals):
        if reason := rivals[name].why_not(case) or _too_large(case):
            found["not_measured"].append({"case": case.name, "rival": name, "reason": reason})
        else:
            jobs.append((case, name))
    jobs += [(case, "limit") for case in cases if case.device != "cpu"]
    try:
        with progress(console, len(jobs)) as begins:
            while jobs:
                case, name = jobs[0]
                begins(f"{titles[name]}: {case.name}")
                found["results"] += [{"case": case.name, "rival": name} | row for row in measure(case, name, rounds)]
                del jobs[0]
    except KeyboardInterrupt:
        found["interrupted"] = True
        found["not_measured"] += [{"case": case.name, "rival": name, "reason": "interrupted"} for case, name in jobs]
    return found


def _too_large(case: Case) -> str:
    needed, free = COPIES * case.size, available()
    if case.device != "cpu" or needed <= free:
        return ""
    return f"takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
