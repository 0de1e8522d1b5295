"""The process of one case: times crossent and its rivals and prints the results as JSON, on the last line."""

import json
import os
import sys
from collections.abc import Callable

import torch

from benchmarks.cases import CASES, Case
from benchmarks.rivals import RIVALS
from crossent.tools.bench.calls import grad_mode, of_arrays
from crossent.tools.bench.rivals import ours
from crossent.tools.bench.timing import beside
from crossent.tools.bench.worker import ARRAYS, in_a_line

HUGE_PAGES = os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"


def results(case: Case, rounds: int, seconds: float) -> list[dict]:
    found = []
    make, _ = ARRAYS[case.arrays]
    arrays = make(case)
    for mode in case.modes:
        torch.compiler.reset()
        with grad_mode(mode):
            found += _timed(case, mode, arrays, rounds, seconds)
    return found


def _timed(case: Case, mode: str, arrays: tuple, rounds: int, seconds: float) -> list[dict]:
    own = of_arrays(ours(case, case.arrays), mode, arrays)
    own()
    rows, calls = {}, {}
    for rival in case.rivals:
        if limits := case.limits(mode, rival, HUGE_PAGES):
            rows[rival] = {"case": case.name, "mode": mode, "huge_pages": HUGE_PAGES, "rival": rival} | limits
            try:
                calls[rival] = _warm(of_arrays(RIVALS[rival](case), mode, arrays))
            except Exception as error:
                rows[rival]["error"] = in_a_line(error)
    found = beside(own, calls, rounds, seconds)
    return [row | found.get(rival, {}) for rival, row in rows.items()]


def _warm(call: Callable[[], object]) -> Callable[[], object]:
    for _ in range(3):
        call()
    return call


if __name__ == "__main__":
    named = {case.name: case for case in CASES}
    print("\n" + json.dumps(results(named[sys.argv[1]], int(sys.argv[2]), float(sys.argv[3]))))
