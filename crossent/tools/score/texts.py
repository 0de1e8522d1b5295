"""What is asked of language models beside the loss of a token: that of a byte, of a word, and of whole documents.

A document is a row of labels along two axes, (rows, time).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from crossent.tools.score.sums import ExactSums
from crossent.tools.score.worst import Index, natural, shown

Measure: TypeAlias = Callable[[np.ndarray, np.ndarray], dict[str, int]]  # of labels, and which of them count
UNITS = {"bytes": "byte", "words": "word"}


def shifted(labels: np.ndarray, shift: int, fill: int) -> np.ndarray:
    """Of each row what belongs to the label of so many later ones along the last axis; the last rows have none."""
    if labels.ndim < 2:
        raise ValueError(f"shift needs rows with an axis of time, got labels of shape {labels.shape}")
    found = np.full_like(labels, fill)
    found[..., : max(0, labels.shape[-1] - shift)] = labels[..., shift:]
    return found


def given(lengths: Mapping[str, Any], shift: int) -> Measure:
    """Of lengths in these units: that of all labels, or one for each of them, or for each row of the first axis."""

    def of(length: np.ndarray, kept: np.ndarray) -> int:
        if not length.ndim:
            return int(length)
        if length.shape == kept.shape:
            return int((shifted(length, shift, 0) if shift else length)[kept].sum())
        return int(length[kept.reshape(len(kept), -1).any(1)].sum())

    return lambda labels, kept: {name: of(np.asarray(length), kept) for name, length in lengths.items()}


def decoded(tokenizer: Any) -> Measure:
    """Of what the labels of each row say: bytes of UTF-8, and words between blanks."""

    def measure(labels: np.ndarray, kept: np.ndarray) -> dict[str, int]:
        rows = [row[counts].tolist() for row, counts in zip(labels, kept)]
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        return {"bytes": sum(len(text.encode()) for text in texts), "words": sum(len(text.split()) for text in texts)}

    return measure


@dataclass(frozen=True)
class Document:
    """`rows` are its tokens, and `nll` is their mean."""

    file: str | None
    index: Index
    rows: int
    nll: float

    @property
    def order(self) -> tuple[Any, ...]:
        place = ([], "") if self.file is None else (natural(self.file), self.file)
        return (-self.nll, *place, self.index, self.rows)


@dataclass
class Texts:
    """How many `units` there are of those that are known, the documents, and at most `top` of these with the largest
    mean NLL."""

    top: int
    units: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    infinite: int = 0
    nll: ExactSums = field(default_factory=lambda: ExactSums(1))
    worst: tuple[Document, ...] = ()

    def add(
        self, losses: np.ndarray, kept: np.ndarray, numbers: np.ndarray, find: Callable[[int], tuple[str | None, Index]]
    ) -> None:
        """Documents, a row each, of which the positions `kept` count; `numbers` and `find` are as in Worst."""
        rows = kept.sum(1)
        at = np.flatnonzero(rows)
        means = np.where(kept, losses, 0.0).astype(np.float64).sum(1)[at] / rows[at]
        finite = np.isfinite(means)
        self.documents, self.infinite = self.documents + len(at), self.infinite + int((~finite).sum())
        self.nll.add(np.zeros(int(finite.sum()), np.intp), means[finite])
        chosen = np.lexsort((numbers[at], -means))[: self.top].tolist()
        places = [find(int(at[i]) * kept.shape[1]) for i in chosen]
        self._keep(
            Document(file, index[:1], int(rows[at[i]]), float(means[i])) for i, (file, index) in zip(chosen, places)
        )

    def merge(self, other: "Texts") -> None:
        self.units.update(other.units)
        self.documents, self.infinite = self.documents + other.documents, self.infinite + other.infinite
        self.nll.merge(other.nll)
        self._keep(other.worst)

    def _keep(self, documents) -> None:
        self.worst = tuple(sorted((*self.worst, *documents), key=lambda one: one.order)[: self.top])

    def result(self, nll: float) -> dict[str, Any]:
        """Of a loss of so many nats in all, as far as it is known."""
        found: dict[str, Any] = {}
        for name, one in UNITS.items():
            if name in self.units:
                each = nll / self.units[name] if self.units[name] else math.nan
                found |= {name: self.units[name], f"perplexity_by_{one}": exp(each)}
                found |= {"bits_per_byte": each / math.log(2)} if name == "bytes" else {}
        if self.documents:
            mean = math.inf if self.infinite else float(self.nll.rounded()[0]) / self.documents
            worst = [{"file": d.file, "row": shown(d.index), "rows": d.rows, "nll": d.nll} for d in self.worst]
            found["documents"] = {"count": self.documents, "nll": mean, "perplexity": exp(mean), "worst": worst}
        return found

    def packed(self) -> dict[str, Any]:
        """For JSON."""
        digits = {str(i): int(digit[0]) for i, digit in self.nll.digits.items()}
        return vars(self) | {"nll": digits, "worst": [asdict(one) for one in self.worst]}


def exp(nats: float) -> float:
    return math.inf if nats >= 700 else math.exp(nats)
