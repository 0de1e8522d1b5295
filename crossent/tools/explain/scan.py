"""One pass over all rows of the input, in blocks: what the findings ask of every row."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Scan:
    """Of each row of logits the largest and smallest, their sum, lse, and the class of the largest.

    `masked` says that the target has a share of a class whose logit is -inf. `target_low` and `target_total` are the
    smallest and the sum of a soft target's probabilities, None for labels.
    """

    high: np.ndarray
    low: np.ndarray
    total: np.ndarray
    lse: np.ndarray
    top: np.ndarray
    masked: np.ndarray
    target_low: np.ndarray | None
    target_total: np.ndarray | None


def scan(case):
    shape = case.row_shape
    wide = np.float64 if case.dtype == "float64" else np.float32
    high, low, total, lse = (np.empty(shape, wide) for _ in range(4))
    top, masked = np.empty(shape, np.int32), np.empty(shape, bool)
    dense = case.soft and not case.sparse
    target_low, target_total = (np.empty(shape, wide) if dense else None for _ in range(2))
    with np.errstate(all="ignore"):
        for block in case.blocks():
            x = case.logits(block)
            high[block], low[block], total[block], lse[block] = sizes(x)
            top[block] = x.argmax(-1)
            masked[block] = _masked(case, block, x)
            if dense:
                t = case.probabilities(block)
                target_low[block], target_total[block] = t.min(-1), t.sum(-1)
    if case.sparse:
        target_low, target_total = case.sparse_probs.min(-1, initial=0.0), case.sparse_probs.sum(-1)
    if target_low is not None:
        target_low, target_total = target_low.reshape(-1), target_total.reshape(-1)
    high, low, total, lse = (array.reshape(-1) for array in (high, low, total, lse))
    return Scan(high, low, total, lse, top.reshape(-1), masked.reshape(-1), target_low, target_total)


def sizes(x):
    """Of each row the largest and the smallest logit, their sum, and lse."""
    peak = x.max(-1, keepdims=True)
    return peak[..., 0], x.min(-1), x.sum(-1), peak[..., 0] + np.log(np.exp(x - peak).sum(-1))


def _masked(case, block, x):
    if case.options.label_smoothing:
        return (x == -np.inf).any(-1)
    if case.soft and not case.sparse:
        return ((x == -np.inf) & (case.probabilities(block) != 0.0)).any(-1)
    if case.sparse:
        classes, probs = case.sparse_classes[block], case.sparse_probs[block]
    else:
        classes, probs = case.labels.reshape(case.row_shape)[block][..., None], 1.0
    valid = (classes >= 0) & (classes < case.classes)
    picked = np.take_along_axis(x, np.where(valid, classes, 0).astype(np.intp), -1)
    return (valid & (probs != 0.0) & (picked == -np.inf)).any(-1)
