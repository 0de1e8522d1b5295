"""The process of one case of the fused head: its times over those of bare matrix products and of rivals, as JSON.

"products" is the time of the three products of a step (logits, input's gradient, weight's gradient) by torch.mm alone,
chunk by chunk, at the chunk size that suits them best; "product" that of the first.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import torch

import crossent
from benchmarks.cases import HEAD_CASES, HeadCase
from crossent.kernels.cpu.processor import PRODUCTS_OF_BFLOAT16, WIDENED
from crossent.tools.bench.calls import torch_arrays
from crossent.tools.bench.cases import HEAD, Case

CHUNKS = (512, 1024, 2048, 4096)
RIVALS = ("torch", "products")
LONG = 5.0  # seconds; what takes a rival longer is measured once


class Head:
    def __init__(self, case: HeadCase):
        self.options = {"filter_eps": case.filter_eps} if case.filter_eps else {}
        if case.trained:
            from crossent.tools.demo.transformer import DEMO, trained

            settings = replace(DEMO, batch=case.tokens // DEMO.length)
            hidden, weight, self.labels = trained(case.trained, settings)
            self.hidden, self.weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            return
        shape = case.tokens, case.features, case.classes
        arrays = torch_arrays(Case(case.name, shape, function=HEAD, dtype=case.dtype))
        self.hidden, self.weight, self.all_labels = arrays
        self.labels = self.all_labels.masked_fill(torch.rand(case.tokens) < case.ignored, -100)

    def step(self, labels: torch.Tensor, function: Callable, **options) -> None:
        function(self.hidden, self.weight, labels, **options).backward()
        self.hidden.grad = self.weight.grad = None

    def gradients(self, **options) -> dict[str, torch.Tensor]:
        loss = crossent.linear_cross_entropy(self.hidden, self.weight, self.labels, **options)
        dinput, dweight = torch.autograd.grad(loss, (self.hidden, self.weight))
        return {"input's gradient": dinput, "weight's gradient": dweight}

    def forward(self, function: Callable) -> None:
        with torch.no_grad():
            function(self.hidden, self.weight, self.labels)

    def products(self, rows: int) -> Iterator[Callable]:
        """The three products in chunks of so many rows."""
        hidden, weight = self.hidden.detach(), self.weight.detach()
        chunks = hidden.split(rows)
        logits = torch.randn(rows, len(weight)).to(hidden.dtype)
        yield lambda: [torch.mm(x, weight.t(), out=logits[: len(x)]) for x in chunks]
        yield lambda: [torch.mm(logits[: len(x)], weight) for x in chunks]
        yield lambda: [torch.mm(logits[: len(x)].t(), x) for x in chunks]


def _seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def own_calls(case: HeadCase, head: Head) -> dict[str, Callable]:
    own = crossent.linear_cross_entropy
    found = {
        "step": lambda: head.step(head.labels, own, **head.options),
        "step in chunks of 512 MB": lambda: head.step(head.labels, own, chunk_bytes=2**29, **head.options),
        "forward": lambda: head.forward(own),
        "token stats": lambda: head.forward(crossent.linear_token_stats),
    }
    if case.ignored:
        found["step without"] = lambda: head.step(head.all_labels, own)
    return {name: call for name, call in found.items() if _asked(name, case)}


def rival_calls(case: HeadCase, head: Head, sizes: list[int]) -> dict[str, Callable]:
    theirs = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if theirs and any("torch" in name for name in case.limits):
        options = torch.nn.LinearCrossEntropyOptions
        ways = {"reference": None, "chunked, default": options()}
        return _torch(head, case, theirs, ways | {f"chunked, {r}": options(batch_chunk_size=r) for r in sizes})
    return {}


def _torch(head: Head, case: HeadCase, function: Callable, options: dict) -> dict[str, Callable]:
    def step(chosen):
        return lambda: head.step(head.labels, function, options=chosen)

    wanted = {name.partition(" / ")[0] for name in case.limits}
    best = "torch chunked, best" in wanted
    return {
        f"torch {name}": step(chosen)
        for name, chosen in options.items()
        if f"torch {name}" in wanted or (best and name.rpartition(" ")[2].isdigit())
    }


def measure(case: HeadCase, rounds: int) -> list[dict]:
    """Rounds in which everything has its turn, after one that does not count for what is quick."""
    head = rivals_head = Head(case)
    if case.dtype == "bfloat16" and PRODUCTS_OF_BFLOAT16[0] == WIDENED:
        # PyTorch takes minutes there, number by number: what it takes for some of the rows stands for all of them.
        rivals_head = Head(replace(case, tokens=CHUNKS[0]))
    share = len(rivals_head.labels) / case.tokens
    sizes = [rows for rows in CHUNKS if rows <= len(rivals_head.labels) and rows * case.classes < 2**29]
    functions = own_calls(case, head) | rival_calls(case, rivals_head, sizes)
    rounds = 1 if case.tokens * case.classes > 2**30 else rounds
    for rows in sizes:
        functions |= {f"products, {rows}, {part}": call for part, call in enumerate(rivals_head.products(rows))}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, call in functions.items():
            taken = samples[name]
            rival = name.startswith(RIVALS)
            if rival and taken and (taken[0] > LONG or (name.startswith("torch") and len(taken) > 1)):
                continue
            taken.append(_seconds(call))
    times = {name: median(values[1:] or values) for name, values in samples.items()}
    times |= {name: seconds / share for name, seconds in times.items() if name.startswith(RIVALS)}
    times["products"], times["product"] = min(
        (sum(times[f"products, {rows}, {part}"] for part in range(3)), times[f"products, {rows}, 0"]) for rows in sizes
    )
    chunked = [seconds for name, seconds in times.items() if name.rpartition(" ")[2].isdigit() and "torch" in name]
    times["torch chunked, best"] = min(chunked, default=0.0)
    if case.filter_eps:
        some = head.gradients(**head.options)
        for what, exact in head.gradients().items():
            times[f"exact {what}"] = float(exact.norm())
            times[f"error of {what}"] = float((some[what] - exact).norm())
    return [_row(case, name, limit, times) for name, limit in case.limits.items()]


def _asked(name: str, case: HeadCase) -> bool:
    return name == "step" or any(name in limit.split(" / ") for limit in case.limits)


def _row(case: HeadCase, name: str, limit: dict, times: dict[str, float]) -> dict:
    above, _, below = name.partition(" / ")
    value = times[above] / times[below]
    return {"name": f"{case.name}: {name}", "value": value, "seconds": times["step"]} | limit


if __name__ == "__main__":
    named = {case.name: case for case in HEAD_CASES}
    print("\n" + json.dumps(measure(named[sys.argv[1]], int(sys.argv[2]))))
