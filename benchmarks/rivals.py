"""The rivals of `crossent bench` by what they are built with, and yardsticks that are no rivals."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

import crossent
from benchmarks.cases import Case
from crossent.tools.bench import rivals
from crossent.tools.bench.rivals import bound, compiled


def _empty_compiled(case: Case) -> Callable:
    """crossent, and then compiled code with next to nothing in it: what its call alone adds."""
    own = bound(crossent, case)
    empty = compiled(lambda logits: logits[(0,) * logits.ndim] * 2)

    def call(*arrays):
        loss = own(*arrays)
        empty(arrays[0])
        return loss

    return call


def _memory_read(_: Case) -> Callable:
    """Nothing but reading the logits, on as many threads as PyTorch has."""
    pool = ThreadPoolExecutor(torch.get_num_threads())

    def read(logits, *_):
        words = logits.detach().view(-1).view(torch.int64).numpy()
        return list(pool.map(np.add.reduce, np.array_split(words, torch.get_num_threads())))

    return read


RIVALS: dict[str, Callable[[Case], Callable]] = {
    **{name: rival.build for name, rival in rivals.RIVALS.items()},
    "own compile": lambda case: compiled(bound(crossent, case)),
    "empty compile": _empty_compiled,
    "memory read": _memory_read,
}
