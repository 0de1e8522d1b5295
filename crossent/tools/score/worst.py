"""The worst of something, the same ones in whatever order rows come."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

Index: TypeAlias = tuple[int, ...]  # a number for each axis of the labels


@lru_cache(1024)
def natural(name: str) -> list[tuple[int, str]]:
    """What sorts shard 10 after shard 9."""
    return [(int(digits or -1), text) for text, digits in re.findall(r"(\D*)(\d*)", name)]


@dataclass(frozen=True)
class Placed:
    """What is known of a row besides where it is. `file` is None where it came from none."""

    file: str | None
    index: Index

    @property
    def size(self) -> float:
        """How bad it is."""
        raise NotImplementedError

    @property
    def row(self) -> int | Index:
        return shown(self.index)

    @property
    def order(self) -> tuple[Any, ...]:
        """The worst first; of equal ones the first in their files. Those of equal order are alike in all."""
        file, *known = vars(self).values()
        return (-self.size, natural(file or ""), file or "", *known)

    def as_dict(self) -> dict[str, Any]:
        file, _, *known = vars(self).items()
        return dict((file, ("row", self.row), *known))


@dataclass(frozen=True)
class WorstRow(Placed):
    label: int
    prediction: int
    rank: int
    logprob: float
    confidence: float

    @property
    def size(self) -> float:
        return -self.logprob


@dataclass(frozen=True)
class Document(Placed):
    """`rows` are its tokens, and `nll` is their mean."""

    rows: int
    nll: float

    @property
    def size(self) -> float:
        return self.nll


@dataclass(frozen=True)
class Changed(Placed):
    """A row that one model gets right and the other wrong."""

    label: int
    predictions: tuple[int, int]
    losses: tuple[float, float]

    @property
    def size(self) -> float:
        return abs(self.losses[1] - self.losses[0])


Some = TypeVar("Some", bound=Placed)


@dataclass
class Worst(Generic[Some]):
    """At most `top` of them, the worst first."""

    top: int
    rows: tuple[Some, ...] = ()

    def add(
        self, at: np.ndarray, size: np.ndarray, keys: Callable[[np.ndarray], Sequence[np.ndarray]],
        made: Callable[[int], Some],
    ) -> None:  # fmt: skip
        """Those at some places of a block. Of equal size those come first whose first key is smaller, and so on."""
        if not self.top:
            return
        if len(self.rows) == self.top:
            at = at[size[at] >= self.rows[-1].size]
        elif len(at) > self.top:
            at = at[size[at] >= np.partition(size[at], -self.top)[-self.top]]
        at = at[np.lexsort([*reversed(keys(at)), -size[at]])[: self.top]]
        self.merge(map(made, at.tolist()))

    def merge(self, rows: Iterable[Some]) -> None:
        self.rows = tuple(sorted((*self.rows, *rows), key=lambda row: row.order)[: self.top])


def shown(index: Index) -> int | Index:
    """A number where one is enough."""
    return index if len(index) > 1 else sum(index)
