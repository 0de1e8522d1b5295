"""What `crossent.watch` costs: steps of the demo's transformer with it, beside the same steps without it.

Run as `python -m benchmarks.watch`. Two equal models take turns, step by step, one of them watched, with lines and
looks as a user has them; all steps count, those with a look too. Two more that nobody watches say what of the
difference is chance. The share is the watch's own time in that of its steps. With --cpu it is the time of one thread
that has a processor, which says more where others are at work.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from crossent.tools.demo.transformer import DEMO, HEADS, Settings, batch, seeded_model, train_step
from crossent.tools.watch import seen, watch

AT_MOST = 0.03  # of a step
FIRST = 3  # steps that are not counted: they load and compile


OWN = ("_keep", "see", "after_backward", "_before_step", "_after_step")  # what a watch does in a step


now = time.perf_counter


class Timed(watch):
    """Adds up its own seconds."""

    spent = 0.0

    def __init__(self, *args):
        super().__init__(*args)
        for name in OWN:
            setattr(self, name, partial(self._timed, getattr(self, name)))

    def _timed(self, call, *args):
        start = now()
        try:
            return call(*args)
        finally:
            self.spent += now() - start


def seconds(head: Callable, settings: Settings, steps: int, watched: bool) -> tuple[list[float], list[float], float]:
    """Of each step of two models, the second watched if it is to be; and the share of the watch's own time in it."""
    tokens = torch.arange(100 * settings.batch * (settings.length + 1)) * 7919 % settings.vocabulary
    models = [seeded_model(settings) for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True) for model in models]
    taken: list[list[float]] = [[], []]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        follow = stack.enter_context(Timed(models[1], Path(folder) / "run.jsonl")) if watched else None
        for step in range(steps + FIRST):
            for number in (0, 1) if step % 2 else (1, 0):
                turn = partial(train_step, models[number], head, batch(tokens, settings, step))
                with seen.unseen() if number == 0 else ExitStack():
                    start = now()
                    turn(optimizers[number])
                    taken[number].append(now() - start)
            if follow and step == FIRST - 1:
                before = follow.spent
        share = (follow.spent - before) / sum(taken[1][FIRST:]) if follow else 0.0
    return taken[0][FIRST:], taken[1][FIRST:], share


def main() -> None:
    global now
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch", description="what crossent.watch costs")
    parser.add_argument("--steps", type=int, default=60, help="of each model")
    parser.add_argument("--head", choices=HEADS, action="append", help="those of the demo; both by default")
    parser.add_argument("--cpu", action="store_true", help="the time of a processor, on one thread")
    parser.add_argument("--compiled", action="store_true", help="crossent's head in compiled code")
    chosen = parser.parse_args()
    if chosen.cpu:
        torch.set_num_threads(1)
        now = time.thread_time
    table = Table("head", "", "step", "watched", "all steps", "median of pairs", "own time")
    heads = {name: HEADS[name] for name in chosen.head or HEADS}
    if chosen.compiled:
        heads = {"crossent, compiled": torch.compile(HEADS["crossent"], fullgraph=True)}
    for head, function in heads.items():
        for watched in (False, True):
            plain, other, share = seconds(function, DEMO, chosen.steps, watched)
            pairs = median(b / a for a, b in zip(plain, other, strict=True)) - 1
            own = f"{share:.2%}, at most {AT_MOST:.0%}" if watched else ""
            times = (f"{1e3 * median(each):.0f} ms" for each in (plain, other))
            together = f"{sum(other) / sum(plain) - 1:+.2%}", f"{pairs:+.2%}", own
            table.add_row(head, "watched" if watched else "chance", *times, *together)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
