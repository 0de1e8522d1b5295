"""What the numbers of a file are: logits, probabilities or log-probabilities. Of the latter two logits are made."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np

from crossent.tools.arrays import as_numpy, dtype_of
from crossent.tools.explain.checks import EPS
from crossent.tools.explain.tally import Tally, sizes
from crossent.tools.score.pairs import Pair
from crossent.tools.score.readers import BadFile

Scale: TypeAlias = Literal["logits", "probabilities", "log-probabilities"]
LOGITS: Scale = "logits"
PROBABILITIES: Scale = "probabilities"
LOG_PROBABILITIES: Scale = "log-probabilities"
SCALES: tuple[Scale, ...] = LOGITS, PROBABILITIES, LOG_PROBABILITIES
_FIRST_LOOK = 2**16  # numbers that are looked at together, since of logits the first rows tell
_ROUNDED = 0.1  # by which the sum of probabilities, or the logarithm of the sum, may miss what it should be
BLOCK = 2**21  # numbers in a block of which float64 is made


def scale_of(pair: Pair, ignore_index: int) -> tuple[Scale, str]:
    """What the numbers are, and what to say of it. All rows that count are looked at until one of them decides."""
    tally = None
    for block in pair.blocks(_FIRST_LOOK):
        if dtype_of(block.logits) not in EPS:
            return LOGITS, ""  # which are refused
        tally = tally or Tally(pair.classes, dtype_of(block.logits))
        add(tally, block.logits, block.labels.reshape(-1) != ignore_index)
        if not tally.holds("nearly probable") and tally.finite:
            return LOGITS, ""
    where = pair.logits.path
    if tally is None or not tally.holds("nearly probable"):
        return LOGITS, ""
    if not tally.holds("probable"):
        raise BadFile(
            f"{where}: in every row the numbers are from 0 to 1 and their sum is near 1, as that of rounded "
            "probabilities: say --probabilities or --logits"
        )
    if tally.holds("certain"):
        raise BadFile(f"{where}: every row is a single 1 among zeros: say --probabilities or --logits")
    said = f"{where}: in every row the numbers sum to 1: taken for probabilities (--logits takes them as they are)"
    return PROBABILITIES, said


def add(tally: Tally, block: Any, kept: np.ndarray) -> None:
    """Rows of a block, the classes last, of which some count, as long as they make a difference."""
    rows = block.reshape(-1, tally.classes)
    step = max(1, _FIRST_LOOK // tally.classes)
    for lo in range(0, len(rows), step):
        if not tally.undecided:
            return
        x = as_numpy(rows[lo : lo + step])[kept[lo : lo + step]]
        if len(x):
            with np.errstate(all="ignore"):
                tally.add(*sizes(x))


def misfits(block: Any, scale: str) -> tuple[np.ndarray, Callable[[str, int], ValueError]]:
    """Which rows of probabilities, or of their logarithms, are none, and the error for one of them and its place."""
    with np.errstate(all="ignore"):
        _, low, total, lse = sizes(as_numpy(block))
    good = np.abs(lse) <= _ROUNDED
    if scale == PROBABILITIES:
        good = (low >= 0.0) & (np.abs(total - 1.0) <= _ROUNDED)

    def why(place: str, row: int) -> ValueError:
        wrong = f"have the sum {total[row]:.4g} and the smallest is {low[row]:.4g}"
        if scale == LOG_PROBABILITIES:
            wrong = f"have exponentials whose sum is {np.exp(lse[row]):.4g}"
        return ValueError(f"{place}: the numbers are no {scale}: they {wrong}")

    return ~good, why


def log_of(probabilities: Any) -> np.ndarray:
    """In float64; -inf for 0."""
    with np.errstate(all="ignore"):
        return np.log(as_numpy(probabilities).astype(np.float64))
