"""A page to play with: a few rows and all that their loss depends on, which the reader changes while it follows."""

from base64 import b64encode
from dataclasses import dataclass, fields

import numpy as np

import crossent
from crossent.tools.explain import words
from crossent.tools.explain.language import messages, say, speaking

ROWS = 8  # of a page at most
_KNOWN = {"reduction", "ignore_index", "label_smoothing", "loss_dtype"}  # the page's numbers are all in float64
# What the page's script puts into messages stays as it is in them.
_PLACES = {
    name: f"{{{name}}}" for name in "change count label logit loss name p row rows shown slope value what".split()
}


@dataclass(frozen=True, eq=False)
class Given:
    """What a page starts from: all logits of the first rows shown, in float64, and what the call had beside them.

    It is `playable` if the call had nothing that a page knows nothing of.
    """

    logits: tuple[np.ndarray, ...]
    weight: np.ndarray
    smoothing: float
    rate: float
    playable: bool


def given_of(case, worked, rate) -> Given:
    options, arguments = case.options, case.arguments
    left_out = [option for option in fields(options) if option.name not in _KNOWN]
    default = all(getattr(options, option.name) == option.default for option in left_out)
    weighed = arguments["sample_weight"] is not None or arguments["denominator"] is not None
    weight = np.ones(case.classes) if case.weight is None else case.weight
    return Given(
        tuple(w.x for w in worked[:ROWS]), weight, options.label_smoothing, rate, default and not (weighed or case.soft)
    )


def page(e) -> str:
    """The page of an explanation that is playable, as HTML."""
    from crossent.tools.pages import rendered

    with speaking(e.lang, e.names.get):
        texts = {key: say(f"play.{key}", **_PLACES) for key in messages()["play"]}
        start = _start(e) | {"text": texts}
        values = {"e": e, "words": words, "say": say, "t": texts, "start": start, "notes": _notes(e)}
        return rendered("crossent.tools.explain", "play/play.html", **values, version=crossent.__version__)


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
        "names": {c: words.class_head(c) for row in e.rows for c in row.classes},
        "smoothing": e.given.smoothing,
        "rate": e.given.rate,
        "reduction": e.reduction,
    }


def _packed(numbers):
    """Every bit of them, nan and infinities too, in a form that a script reads in one line."""
    return b64encode(np.asarray(numbers, "<f8").tobytes()).decode()


def _notes(e):
    """Where the page's numbers are not those of the call, and why."""
    shown, rows = len(e.given.logits), e.summary["rows"]
    if shown < rows:
        yield say("play.some_rows", rows=f"{rows:,}", shown=shown)
    if e.function == "nll_loss":
        yield say("play.from_log_probabilities")
    for row in e.rows[:shown]:
        if row.state == "bad label":
            yield say("play.bad_label", row=row.position, label=row.label)
