"""The process of one case on a GPU: prints its rows as JSON. With "dry" it is a small one, on the CPU."""

import itertools
import json
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from statistics import median
from typing import Any

import torch

import crossent
from benchmarks.cases import proportion
from benchmarks.gpu.cases import CASES, Case
from crossent.tools.bench.calls import of_arrays, torch_arrays, wait
from crossent.tools.bench.limits import at_limit, copy, least
from crossent.tools.bench.memory import extra_peak
from crossent.tools.bench.rivals import RIVALS
from crossent.tools.bench.timing import interleaved
from crossent.tools.bench.worker import in_a_line

ROUNDS, SECONDS = 7, 0.5
CACHE = 2**29  # bytes of logits that no cache holds
EVERYTHING = {"label_smoothing": 0.1, "softcap": 30.0, "z_loss": 1e-4}
PRODUCTS = {"products": "step", "product": "evaluation"}  # of a head, by the mode that needs them
Calls = dict[str, Callable[[], object]]


def in_turn(calls: list[Callable[[], object]]) -> Callable[[], object]:
    """A call of the next one each time, so that no cache has what it is called with."""
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def arrays_of(case: Case) -> tuple[torch.Tensor, ...]:
    """With a filter, of a head as training makes it first of all: it knows how frequent the classes are, by Zipf's law,
    and so are the labels.
    """
    arrays = torch_arrays(case)
    if not case.filter_eps:
        return arrays
    hidden, weight, labels = arrays
    frequency = 1 / (torch.arange(len(weight), device=case.device) + 2.7)
    with torch.no_grad():
        hidden[:, 0], weight[:, 0] = 1.0, frequency.log()
    return hidden, weight, frequency.multinomial(len(labels), replacement=True)


def own_calls(case: Case, arrays: tuple, wanted: set[str]) -> Calls:
    """Those of the library."""
    loss = getattr(crossent, case.function)
    if case.filter_eps:
        loss = partial(loss, filter_eps=case.filter_eps)
    steps = {"step": loss, "step in place": partial(loss, inplace_backward=True)}
    if "everything" in wanted:
        logits, target, *_ = arrays
        steps["everything"] = partial(
            loss,
            weight=torch.rand(logits.shape[1], device=logits.device) + 0.5,
            sample_weight=torch.rand(target.shape, device=logits.device),
            **EVERYTHING,
        )
    found = {name: of_arrays(function, "step", arrays) for name, function in steps.items() if name in wanted}
    return found | ({"forward": torch.no_grad()(partial(loss, *arrays))} if "forward" in wanted else {})


def limit_calls(case: Case, arrays: tuple, wanted: set[str]) -> Calls:
    makers = {"copy": partial(copy, case, "step")}
    if case.head:
        makers = {name: partial(at_limit, case, mode, arrays) for name, mode in PRODUCTS.items()}
    found = {name: make() for name, make in makers.items() if name in wanted}
    if "read" in wanted:
        found |= {
            "read by a sum": partial(torch.sum, arrays[0].detach()),
            "read by half a copy": copy(case, "evaluation"),
        }
    return found


def rival_calls(case: Case, arrays: tuple, wanted: set[str]) -> tuple[Calls, dict[str, str]]:
    """Steps of rivals, and why there are none of others."""
    calls, missing = {}, {}
    for name in wanted & RIVALS.keys():
        if reason := RIVALS[name].why_not(case):
            missing[name] = reason
            continue
        try:
            calls[name] = of_arrays(RIVALS[name].build(case), "step", arrays)
            for _ in range(3):
                calls[name]()
        except Exception as error:
            calls.pop(name, None)
            missing[name] = in_a_line(error)
    return calls, missing


def wanted_of(case: Case) -> set[str]:
    """The names in the limits."""
    return {"step"} | {part for measured in case.limits for part in measured.replace("memory of ", "").split(" / ")}


def times(case: Case, calls: list[Calls], rounds: int) -> dict[str, list[float]]:
    """Samples of each; "read" is the quicker way to read."""
    turns = {name: in_turn([one[name] for one in calls]) for name in calls[0]}
    found = interleaved(turns, rounds, 0.0 if case.device == "cpu" else SECONDS, partial(wait, case.device))
    ways = [samples for name, samples in found.items() if name.startswith("read ")]
    return found | ({"read": min(ways, key=median)} if ways else {})


def syncs(call: Callable[[], object]) -> int:
    """How many times a call waits for the GPU."""
    call()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def measure(case: Case, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """A row for each limit: "value", or "missing" with the reason."""
    wanted = wanted_of(case)
    sets = 1 if case.head or case.device == "cpu" else max(1, CACHE // case.size)
    arrays = [arrays_of(case) for _ in range(min(sets, 8))]
    of_rivals, missing = rival_calls(case, arrays[0], wanted)
    peaks = {}
    if "memory of step / memory of liger" in case.limits and "liger" in of_rivals:
        own = own_calls(case, arrays[0], {"step"})["step"]
        peaks = {name: extra_peak(call, case.device) for name, call in (("step", own), ("liger", of_rivals["liger"]))}
    calls = [own_calls(case, one, wanted) | limit_calls(case, one, wanted) | of_rivals for one in arrays]
    samples = times(case, calls, rounds)
    rows = []
    for measured, limit in case.limits.items():
        row: dict[str, Any] = {"name": f"{case.name}: {measured}", "seconds": median(samples["step"])} | limit
        if measured == "syncs":
            found = {"missing": "there is no GPU"} if case.device == "cpu" else {"value": syncs(calls[0]["step"])}
        else:
            found = _proportion(measured, samples, peaks, missing)
        rows.append(row | found | {"least": least(case, "step")})
    return rows


def _proportion(measured: str, samples: dict, peaks: dict, missing: dict) -> dict[str, Any]:
    above, below = (part.removeprefix("memory of ") for part in measured.split(" / "))
    if reason := missing.get(above) or missing.get(below):
        return {"missing": reason}
    if measured.startswith("memory of "):
        return {"value": peaks[above] / peaks[below]}
    return {"value": proportion(measured, samples), "times": {name: median(samples[name]) for name in (above, below)}}


def as_on_a_gpu() -> AbstractContextManager:
    """Tensors on the CPU take the ways of a GPU's, with kernels that Triton's interpreter runs."""
    from crossent._plan import STAGES
    from crossent.frontends.torch import late, modes, staged
    from crossent.kernels.triton.device import DeviceKernels

    staged.KERNELS_OF["cpu"] = DeviceKernels(lambda device: 2, once_from=0, note=late.note)
    return modes.only(STAGES)


if __name__ == "__main__":
    chosen = next(case for case in CASES if case.name == sys.argv[1])
    if "dry" in sys.argv:
        with as_on_a_gpu():
            found = measure(chosen.small(), 2)
    else:
        found = measure(chosen)
    print("\n" + json.dumps(found))
