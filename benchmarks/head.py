"""The process of one case of the fused head: its times over those of bare matrix products and of rivals, as JSON.

"products" is the time of the three products of a step (logits, input's gradient, weight's gradient) by torch.mm alone,
chunk by chunk, at the chunk size that suits them best; "product" that of the first.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import torch

import crossent
from benchmarks.cases import HEAD_CASES, HeadCase, proportion
from crossent.kernels.cpu.processor import PRODUCTS_OF_BFLOAT16, WIDENED
from crossent.tools.bench.calls import of_arrays, torch_arrays
from crossent.tools.bench.cases import HEAD, Case

CHUNKS = (512, 1024, 2048, 4096)
RIVALS = ("torch", "products")
LONG = 5.0  # seconds; what takes a rival longer is measured once


class Head:
    """The arrays of a case, and calls of functions of them."""

    def __init__(self, case: HeadCase):
        if case.trained:
            from crossent.tools.demo.transformer import DEMO, trained

            settings = replace(DEMO, batch=case.tokens // DEMO.length)
            hidden, weight, self.all_labels = trained(case.trained, settings)
            self.hidden, self.weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        else:
            shape = case.tokens, case.features, case.classes
            arrays = torch_arrays(Case(case.name, shape, function=HEAD, dtype=case.dtype))
            self.hidden, self.weight, self.all_labels = arrays
        self.labels = self.all_labels.masked_fill(torch.rand(case.tokens) < case.ignored, -100)

    def step(self, function: Callable, labels: torch.Tensor | None = None) -> Callable[[], object]:
        return of_arrays(function, "step", (self.hidden, self.weight, self.labels if labels is None else labels))

    def forward(self, function: Callable) -> Callable[[], object]:
        return torch.no_grad()(lambda: function(self.hidden, self.weight, self.labels))

    def gradients(self, function: Callable) -> dict[str, torch.Tensor]:
        loss = function(self.hidden, self.weight, self.labels)
        dinput, dweight = torch.autograd.grad(loss, (self.hidden, self.weight))
        return {"input's gradient": dinput, "weight's gradient": dweight}

    def products(self, rows: int) -> Iterator[Callable]:
        """The three products in chunks of so many rows."""
        hidden, weight = self.hidden.detach(), self.weight.detach()
        chunks = hidden.split(rows)
        logits = torch.randn(rows, len(weight)).to(hidden.dtype)
        yield lambda: [torch.mm(x, weight.t(), out=logits[: len(x)]) for x in chunks]
        yield lambda: [torch.mm(logits[: len(x)], weight) for x in chunks]
        yield lambda: [torch.mm(logits[: len(x)].t(), x) for x in chunks]


def own(case: HeadCase) -> Callable:
    return partial(crossent.linear_cross_entropy, **{"filter_eps": case.filter_eps} if case.filter_eps else {})


def own_calls(case: HeadCase, head: Head) -> dict[str, Callable]:
    loss = own(case)
    return {
        "step": head.step(loss),
        "step in chunks of 512 MB": head.step(partial(loss, chunk_bytes=2**29)),
        "step without": head.step(loss, head.all_labels),
        "forward": head.forward(loss),
        "token stats": head.forward(crossent.linear_token_stats),
    }


def rival_calls(head: Head, sizes: list[int]) -> dict[str, Callable]:
    theirs = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if not theirs:
        return {}
    options = torch.nn.LinearCrossEntropyOptions
    ways = {"reference": None, "chunked, default": options()}
    ways |= {f"chunked, best, {rows}": options(batch_chunk_size=rows) for rows in sizes}
    return {f"torch {name}": head.step(partial(theirs, options=chosen)) for name, chosen in ways.items()}


def measure(case: HeadCase, rounds: int) -> list[dict]:
    head = rivals_head = Head(case)
    if case.dtype == "bfloat16" and PRODUCTS_OF_BFLOAT16[0] == WIDENED:
        # PyTorch takes minutes there, number by number: what it takes for some of the rows stands for all of them.
        rivals_head = Head(replace(case, tokens=CHUNKS[0]))
    share = len(rivals_head.labels) / case.tokens
    sizes = [rows for rows in CHUNKS if rows <= len(rivals_head.labels) and rows * case.classes < 2**29]
    asked = {"step", *(part for name in case.limits for part in name.split(" / "))}
    functions = own_calls(case, head) | rival_calls(rivals_head, sizes)
    functions = {name: call for name, call in functions.items() if {name, name.rpartition(", ")[0]} & asked}
    for rows in sizes:
        functions |= {f"products, {rows}, {part}": call for part, call in enumerate(rivals_head.products(rows))}
    times = _times(functions, 1 if case.tokens * case.classes > 2**30 else rounds)
    times |= {name: seconds / share for name, seconds in times.items() if name.startswith(RIVALS)}
    times["products"], times["product"] = min(
        (sum(times[f"products, {rows}, {part}"] for part in range(3)), times[f"products, {rows}, 0"]) for rows in sizes
    )
    best = "torch chunked, best"
    times[best] = min((seconds for name, seconds in times.items() if name.startswith(best)), default=0.0)
    if case.filter_eps:
        some = head.gradients(own(case))
        for what, exact in head.gradients(crossent.linear_cross_entropy).items():
            times[f"exact {what}"] = float(exact.norm())
            times[f"error of {what}"] = float((some[what] - exact).norm())
    samples = {name: [seconds] for name, seconds in times.items()}
    row = {"seconds": times["step"]}
    return [
        row | {"name": f"{case.name}: {name}", "value": proportion(name, samples)} | limit
        for name, limit in case.limits.items()
    ]


def _times(functions: dict[str, Callable], rounds: int) -> dict[str, float]:
    """The median seconds of rounds in which each has its turn, after one that does not count for what is quick."""
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, call in functions.items():
            taken = samples[name]
            if name.startswith(RIVALS) and taken and (taken[0] > LONG or (name.startswith("torch") and len(taken) > 1)):
                continue
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return {name: median(values[1:] or values) for name, values in samples.items()}


if __name__ == "__main__":
    named = {case.name: case for case in HEAD_CASES}
    print("\n" + json.dumps(measure(named[sys.argv[1]], int(sys.argv[2]))))
