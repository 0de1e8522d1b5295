"""The kernels: rows in, numbers out.

Below this line there is no reduction, no class axis, no validation and no framework. Arrays are addresses, with a
storage type of "float16", "bfloat16", "float32" or "float64" and the strides in a `_rows.Layout`:

    forward(layout, arrays, options, loss, stats, threads) -> (sum of losses, sum of weights)
    backward(layout, arrays, options, stats, dloss, scale, dx, dtarget, threads)
    pick_forward, pick_backward                             the same for log-probabilities
    softmax_forward(layout, storage, x, out, log, threads)
    softmax_backward(layout, storage, out, dout, dx, log, threads)

A label outside the classes raises `BadLabel` with the number of its row, before anything is read or written there.
"""

from dataclasses import dataclass


class BadLabel(Exception):
    """A row's label is neither a class nor ignored."""

    def __init__(self, row):
        super().__init__(row)
        self.row = row


@dataclass(slots=True)
class Arrays:
    """The addresses of a loss's inputs, 0 for what is not there.

    The target holds int64 labels, or probabilities stored like x; class weights have the type of the arithmetic, sample
    weights, one for each row in order, are float64. `owners` are the objects that own the memory.
    """

    storage: str
    x: int
    target: int
    target_strides: tuple
    soft: bool
    weight: int
    weight_total: float
    samples: int
    owners: tuple
