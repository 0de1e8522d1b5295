"""Times a loss whose classes are spread over two processes, of one thread each, and prints rows as JSON.

Beside a step stand: "half", what each process does with its own half of the classes as if there were no others, both at
the same time so that they contend for the machine's memory as they do in a step; "sent", the collectives of a step
alone; a step without DTensors; and PyTorch's loss_parallel. A sample is the time until the slower process is done.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel

import crossent
from benchmarks.cases import SPREAD, SpreadCase, proportion
from crossent.tools.bench.calls import of_arrays
from crossent.tools.bench.timing import SAMPLE_SECONDS, SETTLE_SECONDS

PROCESSES = 2
SUMS = 3  # numbers a row that are sent


def under_loss_parallel(call: Callable[[], None]) -> Callable[[], None]:
    def inside() -> None:
        with loss_parallel():
            call()

    return inside


def sent(*tensors: torch.Tensor) -> Callable[[], None]:
    """The first is gathered and the others are added up."""
    gathered, *summed = tensors
    everywhere = [torch.empty_like(gathered) for _ in range(PROCESSES)]

    def call() -> None:
        distributed.all_gather(everywhere, gathered)
        for tensor in summed:
            distributed.all_reduce(tensor)

    return call


def calls(case: SpreadCase, mesh: Any) -> dict[str, Callable[[], None]]:
    torch.manual_seed(mesh.get_rank())
    here = case.classes // PROCESSES
    labels = torch.arange(case.rows) * 7919 % case.classes
    own_labels = labels % here  # every row counts, as in a step
    sums = torch.zeros(SUMS, case.rows)
    if not case.features:
        logits = torch.randn(case.rows, here).requires_grad_()
        spread = DTensor.from_local(logits.detach(), mesh, [Shard(1)], run_check=False).requires_grad_()
        own, whole, sums_of_gradient = (logits,), (spread,), ()
        loss, rival = crossent.cross_entropy, F.cross_entropy
    else:
        hidden = torch.linspace(-1, 1, case.rows * case.features).sin().reshape(case.rows, -1).requires_grad_()
        matrix = (torch.randn(here, case.features) / 16).requires_grad_()
        own, sums_of_gradient = (hidden, matrix), (torch.zeros_like(hidden),)
        whole = tuple(
            DTensor.from_local(tensor.detach(), mesh, [placement], run_check=False).requires_grad_()
            for tensor, placement in ((hidden, Replicate()), (matrix, Shard(0)))
        )
        loss, rival = crossent.linear_cross_entropy, lambda x, w, y: F.cross_entropy(F.linear(x, w), y)
    return {
        "step": of_arrays(loss, "step", (*whole, labels)),
        "step of plain tensors": of_arrays(partial(loss, group=mesh), "step", (*own, labels)),
        "half": of_arrays(loss, "step", (*own, own_labels)),
        "sent": sent(sums, *sums_of_gradient),
        "loss_parallel": under_loss_parallel(of_arrays(rival, "step", (*whole, labels))),
    }


def slower(seconds: float) -> float:
    """Of the processes."""
    found = torch.tensor(seconds, dtype=torch.float64)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return found.item()


def sample(call: Callable[[], None], loops: int) -> float:
    time.sleep(SETTLE_SECONDS)
    distributed.barrier()
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return slower((time.perf_counter() - start) / loops)


def measure(case: SpreadCase, mesh: Any, rounds: int) -> list[dict]:
    found = calls(case, mesh)
    for call in found.values():
        call()
    loops = {name: math.ceil(SAMPLE_SECONDS / min(sample(call, 1) for _ in range(3))) for name, call in found.items()}
    samples: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds):
        for name in list(found)[:: 1 if turn % 2 else -1]:
            samples[name].append(sample(found[name], loops[name]))
    samples["half + sent"] = [half + sent for half, sent in zip(samples["half"], samples["sent"])]
    times = {name: median(seconds) for name, seconds in samples.items()}
    row = {"seconds": times["step"], "times": times}
    return [
        row | {"name": f"{case.name}: {measured}", "value": proportion(measured, samples)} | limit
        for measured, limit in case.limits.items()
    ]


def process(rank: int, meeting: str, name: str, rounds: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES)
    rows = measure(SPREAD[name], init_device_mesh("cpu", (PROCESSES,)), rounds)
    if rank == 0:
        print("\n" + json.dumps(rows), flush=True)
    distributed.barrier()
    os._exit(0)  # gloo may abort a process that ends its threads while the other still uses them


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.spread", description=__doc__)
    parser.add_argument("case", choices=SPREAD)
    parser.add_argument("rounds", type=int)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (f"{folder}/meeting", chosen.case, chosen.rounds), nprocs=PROCESSES)
