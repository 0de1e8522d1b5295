"""What some rows of a loss say: losses, confidence, gradients at the logits; and the sums of them by class."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import crossent
from crossent._options import of_arguments
from crossent.tools.arrays import as_numpy
from crossent.tools.score.metrics import BINS, bin_of
from crossent.tools.watch.seen import Loss

_NUMBERS = 2**20  # logits in a look
_FEWEST = 16  # rows, however many classes there are


@dataclass(frozen=True, eq=False)
class Look:
    """Rows that count, chosen anew each time, but for those whose loss is not finite; and the root mean square of the
    norms of their gradients at the logits.
    """

    label: NDArray[np.int64]
    nll: NDArray[np.float64]
    right: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    logit_gradient: float

    def to_dict(self) -> dict[str, float]:
        return {
            "rows": len(self.label), "nll": float(self.nll.mean()), "accuracy": float(self.right.mean()),
            "confidence": float(self.confidence.mean()), "gradient_at_logits": self.logit_gradient,
        }  # fmt: skip


@torch.no_grad()
def look(loss: Loss, generator: np.random.Generator) -> Look | None:
    """None where there is no label to look at, and where each row of a head has several."""
    labels = loss.labels
    if labels is None or (loss.is_head and loss["linear_weight"].ndim > 2):
        return None
    counted = (labels.reshape(-1) != loss["ignore_index"]).nonzero().squeeze(1)
    if not len(counted):
        return None
    chosen = counted[_chosen(generator, len(counted), max(_FEWEST, _NUMBERS // loss.classes)).to(counted.device)]
    logits, label = as_numpy(_logits(loss, labels, chosen)), as_numpy(labels.reshape(-1)[chosen])
    # As NumPy arrays, of which autograd, and what hooks of a checkpoint make of it, sees nothing.
    options: dict[str, Any] = of_arguments(loss.arguments) | {"reduction": "sum"}
    if loss["weight"] is not None:
        options["weight"] = as_numpy(loss["weight"])
    _, gradient = crossent.value_and_grad(crossent.cross_entropy)(logits, label, **options)
    cap = loss["softcap"]
    stats = crossent.prediction_stats(logits if cap is None else cap * np.tanh(logits / cap), label)
    norm, finite = float(np.linalg.norm(gradient)) / math.sqrt(len(label)), np.isfinite(stats.logprob)
    if not finite.any():
        return None
    nll, confidence = (column[finite].astype(np.float64) for column in (-stats.logprob, stats.confidence))
    return Look(label[finite], nll, stats.rank[finite] == 0, confidence, norm)


def _chosen(generator: np.random.Generator, rows: int, most: int) -> Tensor:
    """All rows, or one at random of each of as many equal parts as there may be rows."""
    if rows <= most:
        return torch.arange(rows)
    return torch.from_numpy(((np.arange(most) + generator.random(most)) * (rows / most)).astype(np.int64))


def _logits(loss: Loss, labels: Tensor, chosen: Tensor) -> Tensor:
    """Of the rows chosen, before a softcap."""
    x = loss["input"].detach()
    x = x[..., : x.shape[-2] - (loss["shift"] or 0), :] if loss.is_head and x.ndim > 1 else x.movedim(loss.axis, -1)
    rows = x[torch.unravel_index(chosen, labels.shape)] if labels.ndim else x[None]
    return torch.nn.functional.linear(rows, loss["linear_weight"], loss["linear_bias"]) if loss.is_head else rows


class Sums:
    """Of the rows that were looked at, by class and by confidence."""

    def __init__(self, classes: int):
        self.rows, self.right = np.zeros((2, classes), np.int64)
        self.nll = np.zeros(classes)
        self.bins = np.zeros((3, BINS))  # rows, how many were right, their confidence

    def add(self, found: Look) -> None:
        np.add.at(self.rows, found.label, 1)
        np.add.at(self.right, found.label, found.right)
        np.add.at(self.nll, found.label, found.nll)
        place = bin_of(found.confidence)
        for column, values in zip(self.bins, (1, found.right, found.confidence)):
            np.add.at(column, place, values)

    def to_dict(self) -> dict[str, list]:
        """Of the classes that were met."""
        met = np.flatnonzero(self.rows)
        columns = {"class": met, "rows": self.rows[met], "right": self.right[met], "nll": self.nll[met]}
        return {name: column.tolist() for name, column in columns.items()} | {"bins": self.bins.tolist()}
