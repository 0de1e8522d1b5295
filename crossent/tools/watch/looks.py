"""What some rows of a loss say: losses, confidence, gradients at the logits; and the sums of them by class."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossent import PredictionStats
from crossent._options import loss_options, of_arguments
from crossent.frontends.numpy import losses  # crossent's own functions change what compilers have read of them
from crossent.tools.arrays import as_numpy
from crossent.tools.score.metrics import BINS, bin_of
from crossent.tools.score.sums import Cells
from crossent.tools.watch.seen import Loss

_NUMBERS = 2**20  # logits in a look
_FEWEST = 16  # rows, however many classes there are


@torch.no_grad()
def look(loss: Loss, generator: np.random.Generator) -> tuple[dict[str, NDArray], dict[str, float]] | None:
    """Columns of rows that count, chosen anew each time, but for those whose loss is not finite; and what is said of
    them. None where there is no label to look at, where each row of a head has several, and where other processes have
    a part of it.
    """
    labels = loss.labels
    if labels is None or loss.is_spread or (loss.is_head and loss["linear_weight"].ndim > 2):
        return None
    counted = (labels.reshape(-1) != loss["ignore_index"]).nonzero().squeeze(1)
    if not len(counted):
        return None
    chosen = counted[_chosen(generator, len(counted), max(_FEWEST, _NUMBERS // loss.classes)).to(counted.device)]
    # As NumPy arrays, of which autograd, and what hooks of a checkpoint make of it, sees nothing.
    logits, label = as_numpy(_logits(loss, labels, chosen)), as_numpy(labels.reshape(-1)[chosen])
    cap = loss["softcap"]
    capped = logits if cap is None else cap * np.tanh(logits / cap)
    stats = PredictionStats(*losses.prediction_stats(capped, label, None, loss_options(reduction="none")))
    finite = np.isfinite(stats.logprob)
    if not finite.any():
        return None
    nll, confidence = (column[finite].astype(float) for column in (0.0 - stats.logprob, stats.confidence))
    rows = {"label": label[finite], "nll": nll, "right": stats.rank[finite] == 0, "confidence": confidence}
    said = {"rows": len(nll), "nll": float(nll.mean()), "accuracy": float(rows["right"].mean())}
    norm = math.sqrt(_squared_gradient(loss, logits, label, stats.brier) / len(label))
    return rows, said | {"confidence": float(confidence.mean()), "gradient_at_logits": norm}


def _squared_gradient(loss: Loss, logits: NDArray, label: NDArray, brier: NDArray) -> float:
    """Of the sum of these rows' losses at their logits."""
    options: dict[str, Any] = of_arguments(loss.arguments) | {"reduction": "sum", "ignore_index": -100}
    weight = None if loss["weight"] is None else as_numpy(loss["weight"])
    if weight is None and loss_options(**options) is loss_options(reduction="sum"):
        return float(brier.sum(dtype=float))  # it is p, less 1 at the label
    arguments = label, weight, None, None, None, loss_options(**options), False
    _, gradient = losses.value_and_grad(losses.cross_entropy, logits, arguments, {})
    return float(np.linalg.norm(gradient)) ** 2


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
    """Of the rows that were looked at, by class and by confidence; of how many others there were sums before."""

    def __init__(self, classes: int, before: int = 0):
        self.rows, self.before = 0, before
        self.classes = Cells(classes, ("rows", "right"), ("nll",))
        self.bins = Cells(BINS, ("rows", "right"), ("confidence",))

    def add(self, rows: dict[str, NDArray]) -> None:
        self.rows += len(rows["label"])
        self.classes.add(rows["label"], rows)
        self.bins.add(bin_of(rows["confidence"]), rows)

    def to_dict(self) -> dict[str, list]:
        """Of the classes that were met."""
        met, bins = np.flatnonzero(self.classes["rows"]), ("rows", "right", "confidence")
        columns = {name: self.classes[name][met].tolist() for name in ("rows", "right", "nll")}
        return {"class": met.tolist(), **columns, "bins": [self.bins[name].tolist() for name in bins]}
