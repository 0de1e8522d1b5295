"""The process of one case and one rival: memory and times of both, as JSON on the last line."""

import json
import sys
from collections.abc import Callable
from functools import partial
from math import isclose
from time import perf_counter
from typing import Any, NamedTuple

import torch

from crossent.tools.bench.calls import grad_mode, jax_arrays, numpy_arrays, of_arrays, of_jax, torch_arrays, wait
from crossent.tools.bench.cases import Case
from crossent.tools.bench.machine import work_of_others
from crossent.tools.bench.memory import extra_peak
from crossent.tools.bench.rivals import LIMIT, RIVALS, Rival, ours
from crossent.tools.bench.timing import beside

SECONDS = 0.5  # for a comparison, or longer where the rounds take longer
LARGEST_DIFFERENCE = 0.02  # of the two losses: more than 16 bits round, and less than any mistake makes
ARRAYS = {
    "torch": (torch_arrays, of_arrays),
    "numpy": (numpy_arrays, of_arrays),
    "jax": (jax_arrays, of_jax),
    "limit": (torch_arrays, lambda function, mode, arrays: function(mode, arrays)),
}


class Side(NamedTuple):
    """A function, the arrays it is called with, and what makes a timed call of both."""

    function: Callable
    arrays: tuple
    timed: Callable[[Callable, str, tuple], Callable]


def sides(case: Case, rival: Rival) -> tuple[Side, Side]:
    """Ours and theirs, on the same arrays where they take the same kind."""
    own, own_timed = ARRAYS["numpy" if rival.arrays == "numpy" else "torch"]
    make, timed = ARRAYS[rival.arrays]
    mine = Side(ours(case, rival.arrays), own(case), own_timed)
    return mine, Side(rival.build(case), mine.arrays if make is own else make(case), timed)


def measure(case: Case, rival: Rival, rounds: int) -> list[dict]:
    """A row for each mode, with what was measured or with an "error"."""
    return [{"mode": mode} | _measured(case, rival, mode, rounds) for mode in rival.modes]


def _measured(case: Case, rival: Rival, mode: str, rounds: int) -> dict:
    try:
        torch.compiler.reset()
        with grad_mode(mode):
            both = sides(case, rival)
            if rival is not LIMIT:  # ours first: some rivals write gradients over the logits
                _check_losses(*(side.function(*side.arrays) for side in both))
            own_call, call = (side.timed(side.function, mode, side.arrays) for side in both)
            memory = {"bytes": extra_peak(call, case.device), "our_bytes": extra_peak(own_call, case.device)}
            began, worked = perf_counter(), work_of_others()
            found = beside(own_call, {"theirs": call}, rounds, SECONDS, partial(wait, case.device))["theirs"]
            others = (work_of_others() - worked) / (perf_counter() - began)  # processors, on average
    except Exception as error:
        return {"error": in_a_line(error)}
    return found | memory | {"others": max(0.0, others)}


def _check_losses(*losses: Any) -> None:
    own_loss, loss = (loss if isinstance(loss, float) else loss.item() for loss in losses)
    if not isclose(own_loss, loss, rel_tol=LARGEST_DIFFERENCE):
        raise ValueError(f"a loss of {loss:.6g} where crossent has {own_loss:.6g}")


def in_a_line(error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:200]


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    job["case"]["shape"] = tuple(job["case"]["shape"])
    rival = (RIVALS | {"limit": LIMIT})[job["rival"]]
    print("\n" + json.dumps(measure(Case(**job["case"]), rival, job["rounds"])))
