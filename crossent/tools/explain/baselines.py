"""What is to be had without looking at a row: a loss above that is worse than knowing nothing."""

from typing import Any

import numpy as np


def baselines(masses: np.ndarray, divisor: float, mean: float, eps: float) -> dict[str, Any]:
    """Mean losses, in nats, of a model that says the same of every row; nothing where no row counts.

    `masses` are what the targets of all rows together hold of each class, in the simplest case how many rows have that
    label; `divisor` is what a mean divides by, and `mean` the loss itself, known to a part of `eps`. "uniform" gives
    every class the same probability, and costs log C for a target of mass 1. "label_entropy" gives each class its share
    of the targets, which is the best that such a model can do.
    """
    mass = float(masses.sum())
    if not 0.0 < divisor < np.inf:
        return {}
    with np.errstate(all="ignore"):
        share = masses / mass
        entropy = -float((share * np.log(share, where=share != 0.0, out=np.zeros_like(share))).sum())
    uniform = mass / divisor * float(np.log(len(masses)))
    found = {"uniform": uniform, "label_entropy": mass / divisor * entropy, "mean": mean}
    return found | {"worse_than_uniform": mean > uniform * (1.0 + eps)}
