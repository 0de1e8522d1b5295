"""A page to play with: a few rows and all that their loss depends on, which the reader changes while it follows."""

from base64 import b64encode
from dataclasses import dataclass, fields

import numpy as np

import crossent

ROWS = 8  # of a page at most
_KNOWN = {"reduction", "ignore_index", "label_smoothing", "loss_dtype"}  # the page's numbers are all in float64


@dataclass(frozen=True, eq=False)
class Given:
    """What a page starts from: all logits of the first rows shown, in float64, and what the call had beside them.

    `unknown` names the arguments of the call that a page knows nothing of.
    """

    logits: tuple[np.ndarray, ...]
    weight: np.ndarray
    smoothing: float
    unknown: tuple[str, ...]


def given_of(case, worked) -> Given:
    options, arguments = case.options, case.arguments
    left_out = [option for option in fields(options) if option.name not in _KNOWN]
    unknown = [option.name for option in left_out if getattr(options, option.name) != option.default]
    unknown += [name for name in ("sample_weight", "denominator") if arguments[name] is not None]
    unknown += ["probabilities as target"] if case.soft else []
    weight = np.ones(case.classes) if case.weight is None else case.weight
    return Given(tuple(w.x for w in worked[:ROWS]), weight, options.label_smoothing, tuple(unknown))


def page(e) -> str:
    """The page of an explanation, as HTML."""
    from crossent.tools.pages import rendered

    if e.given.unknown:
        raise ValueError(f"a page to play with knows no {' and no '.join(e.given.unknown)}: explain a call without")
    if not e.rows:
        raise ValueError("a page to play with needs at least one row, got none")
    return rendered(__name__, "play.html", e=e, start=_start(e), notes=_notes(e), version=crossent.__version__)


def _start(e):
    rows = [
        {
            "name": str(row.position),
            "label": row.label if row.label in row.classes else row.classes[0],
            "ignored": row.state != "counts",
            "shown": row.classes,
            "x": _packed(x),
        }
        for row, x in zip(e.rows, e.given.logits)
    ]
    return {
        "rows": rows,
        "classes": e.classes,
        "weight": _packed(e.given.weight),
        "smoothing": e.given.smoothing,
        "reduction": e.reduction,
    }


def _packed(numbers):
    """Every bit of them, nan and infinities too, in a form that a script reads in one line."""
    return b64encode(np.asarray(numbers, "<f8").tobytes()).decode()


def _notes(e):
    """Where the page's numbers are not those of the call, and why."""
    shown, rows = len(e.given.logits), e.summary["rows"]
    if shown < rows:
        yield f"Of {rows:,} rows the page has {shown}: the loss here is theirs alone."
    if e.function == "nll_loss":
        yield "The call was given log-probabilities. Here they are logits, and their softmax gives them again."
    for row in e.rows[:shown]:
        if row.state == "bad label":
            yield f"Row {row.position} has the label {row.label}, which is no class: here it starts as ignored."
