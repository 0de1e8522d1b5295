"""The process of one case: times crossent and its rivals and prints the results as JSON, on the last line."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median, quantiles

import torch

from benchmarks.cases import CASES, Case
from benchmarks.rivals import RIVALS, numpy_arrays, ours, torch_arrays
from benchmarks.timing import interleaved

HUGE_PAGES = os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"


def results(case: Case, rounds: int, seconds: float) -> list[dict]:
    found = []
    arrays = numpy_arrays(case) if case.arrays == "numpy" else torch_arrays(case)
    for mode in case.modes:
        torch.compiler.reset()
        with torch.no_grad() if mode == "evaluation" else nullcontext():
            found += _timed(case, mode, arrays, rounds, seconds)
    return found


def _timed(case: Case, mode: str, arrays: tuple, rounds: int, seconds: float) -> list[dict]:
    callables = {"ours": _run(ours(case), mode, arrays)}
    callables["ours"]()
    found = []
    for rival in case.rivals:
        row = {"case": case.name, "mode": mode, "huge_pages": HUGE_PAGES, "rival": rival}
        if limits := case.limits(mode, rival, HUGE_PAGES):
            try:
                callables[rival] = _warm(_run(RIVALS[rival](case), mode, arrays))
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:500]
            found.append(row | limits)
    samples = interleaved(callables, rounds, seconds)
    return [row | _compared(samples["ours"], samples[row["rival"]]) if "error" not in row else row for row in found]


def _compared(mine: list[float], theirs: list[float]) -> dict:
    low, ratio, high = quantiles((rival / own for own, rival in zip(mine, theirs, strict=True)), n=4)
    times = {"ours": median(mine), "seconds": median(theirs)}
    return times | {"ratio": ratio, "quartiles": [low, high], "rounds": len(mine)}


def _run(function: Callable, mode: str, arrays: tuple) -> Callable[[], object]:
    if mode != "step":
        return partial(function, *arrays)
    logits = arrays[0]
    gradient = torch.randn_like(logits) if function(*arrays).ndim else None

    def step():
        function(*arrays).backward(gradient)
        logits.grad = None  # here, so that nobody pays for unmapping another's gradient

    return step


def _warm(call: Callable[[], object]) -> Callable[[], object]:
    for _ in range(3):
        call()
    return call


if __name__ == "__main__":
    named = {case.name: case for case in CASES}
    print("\n" + json.dumps(results(named[sys.argv[1]], int(sys.argv[2]), float(sys.argv[3]))))
