"""Which rows are shown, and which of their classes."""

import numpy as np

from crossent.tools.explain.explanation import Row

CLASSES = 6  # of a row; one fewer where there are others, whose sum is shown
ROWS = 4


def choose(case, losses, wanted):
    """The numbers of the rows to show, each with the reason: the caller's, or the few that matter."""
    if wanted is not None:
        return {case.number(position): "chosen" for position in wanted}
    if case.rows <= ROWS:
        return dict.fromkeys(range(case.rows), "")
    chosen = {int(row): "" for row in np.flatnonzero(case.bad)[:1]}
    chosen |= {int(row): "not finite" for row in np.flatnonzero(case.keep & ~np.isfinite(losses))[:2]}
    counted = np.flatnonzero(case.keep & np.isfinite(losses))
    if len(counted):
        chosen.setdefault(int(counted[losses[counted].argmin()]), "smallest loss")
        large = counted[np.argpartition(losses[counted], -min(ROWS, len(counted)))[-ROWS:]]
        for row in sorted(large, key=lambda row: -losses[row]):
            if len(chosen) < ROWS:
                chosen.setdefault(int(row), "large loss")
    return dict(sorted(chosen.items())) or {0: "ignored like all others"}


def row_of(case, worked, reason):
    number = worked.row
    state = "bad label" if case.bad[number] else "counts" if case.keep[number] else "ignored"
    label = None if case.labels is None else int(case.labels[number])
    return Row(case.position(number), label, state, reason, _classes(case, worked), worked.loss)


def _classes(case, worked):
    """All classes if they are few; else the label, those that are not finite and matter, and the largest."""
    if case.classes <= CLASSES:
        return tuple(range(case.classes))
    order = [] if case.labels is None or not case.keep[worked.row] else [int(case.labels[worked.row])]
    order += np.flatnonzero(np.isnan(worked.x) | (worked.x == np.inf))[:2].tolist()
    order += np.flatnonzero(~np.isfinite(worked.cost))[:1].tolist()
    if case.soft:
        order += np.argsort(-worked.q, kind="stable")[:3].tolist()
    order += np.argsort(-worked.z, kind="stable")[:CLASSES].tolist()
    return tuple(sorted(list(dict.fromkeys(order))[: CLASSES - 1]))
