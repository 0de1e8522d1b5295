"""Findings about the losses: which rows and classes they come from. Notes, since that is no mistake."""

import numpy as np

from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.words import classes, first, rows

_FEW_ROWS = 10


def _counted(facts):
    """The numbers of the rows that count and their losses, where all is finite and nothing negative."""
    numbers = np.flatnonzero(facts.case.keep)
    losses = facts.losses[numbers].astype(np.float64)
    usable = len(losses) > 2 and np.isfinite(losses).all() and losses.min() >= 0.0 and losses.sum() > 0.0
    return (numbers, losses) if usable else (numbers[:0], losses[:0])


def rows_that_dominate(facts):
    numbers, losses = _counted(facts)
    if not len(losses):
        return None
    order = np.argsort(-losses, kind="stable")
    share = np.cumsum(losses[order]) / losses.sum()
    needed = int(np.searchsorted(share, 0.5)) + 1
    if needed > max(1, len(losses) // _FEW_ROWS):
        return None
    chosen = numbers[order[:needed]]
    make = "makes" if needed == 1 else "make"
    sentence = f"{rows(facts.case, chosen).capitalize()} {make} {share[needed - 1]:.0%} of the loss: "
    sentence += "look at them first, for wrong labels or rare cases." if needed > 1 else "look at it first."
    return Finding("rows_that_dominate", "note", sentence, first(facts.case, chosen))


def classes_that_dominate(facts):
    """Classes with a third of the loss that are labels of few rows."""
    numbers, losses = _counted(facts)
    case = facts.case
    if len(losses) < _FEW_ROWS or case.labels is None:
        return None
    labels = case.labels[numbers].astype(np.int64)
    share = np.bincount(labels, losses) / losses.sum()
    often = np.bincount(labels) / len(labels)
    chosen = np.flatnonzero((share >= 0.3) & (share >= 3.0 * often) & (often * len(labels) >= 2))
    if not len(chosen):
        return None
    is_are = "is the label" if len(chosen) == 1 else "are the labels"
    make = "makes" if len(chosen) == 1 else "make"
    sentence = f"{classes(chosen).capitalize()} {is_are} of {often[chosen].sum():.0%} of the rows and {make} "
    sentence += f"{share[chosen].sum():.0%} of the loss: look at these rows' labels, or weigh the class."
    return Finding("classes_that_dominate", "note", sentence, classes=tuple(int(c) for c in chosen))
