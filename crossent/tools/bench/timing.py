"""Interleaved timing: one sample of every callable a round, in turn."""

import gc
import math
import time
from collections.abc import Callable
from statistics import median, quantiles

Call = Callable[[], object]
SAMPLE_SECONDS = 5e-3
# OpenMP's threads spin after a parallel region; a sample waits until the one before has let go of the cores.
SETTLE_SECONDS = 5e-3


def interleaved(
    calls: dict[str, Call], rounds: int, seconds: float, finish: Call = lambda: None
) -> dict[str, list[float]]:
    """Seconds per call, a sample for each round: at least so many rounds, and more until the time is used up.

    `finish` waits for a device that works on its own: once a sample, so that calls follow each other there as in use.
    """
    loops = {name: _loops(call, finish) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    end = time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    while len(samples[order[0]]) < rounds or time.perf_counter() < end:
        for name in order:
            time.sleep(SETTLE_SECONDS)
            samples[name].append(_sample(calls[name], loops[name], finish))
        order.reverse()
    gc.enable()
    return samples


def medians(calls: dict[str, Call], rounds: int, seconds: float) -> dict[str, float]:
    """The median seconds per call."""
    return {name: median(samples) for name, samples in interleaved(calls, rounds, seconds).items()}


def beside(own: Call, rivals: dict[str, Call], rounds: int, seconds: float, finish: Call = lambda: None) -> dict:
    """What `compared` says of every rival, all of which have their turn in each round."""
    samples = interleaved({"": own} | rivals, rounds, seconds, finish)
    return {name: compared(samples[""], samples[name]) for name in rivals}


def compared(mine: list[float], theirs: list[float]) -> dict:
    """Medians of the seconds, and of the rounds' ratios theirs / mine with their quartiles."""
    low, ratio, high = quantiles((rival / own for own, rival in zip(mine, theirs, strict=True)), n=4)
    times = {"ours": median(mine), "seconds": median(theirs)}
    return times | {"ratio": ratio, "quartiles": [low, high], "rounds": len(mine)}


def _sample(call: Call, loops: int, finish: Call) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    finish()
    return (time.perf_counter() - start) / loops


def _loops(call: Call, finish: Call) -> int:
    """As many calls as make a sample long enough to time, after a first one, which may load things."""
    call()
    finish()
    loops = 1
    # The shorter of two: one alone may have been interrupted, and a single call is a cold one.
    while (taken := loops * min(_sample(call, loops, finish), _sample(call, loops, finish))) < SAMPLE_SECONDS:
        loops = max(2 * loops, math.ceil(loops * SAMPLE_SECONDS / taken))
    return loops
