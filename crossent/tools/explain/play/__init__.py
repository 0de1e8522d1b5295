"""A page to play with: a few rows and all that their loss depends on, which the reader changes while it follows."""

from base64 import b64encode
from typing import Any

import numpy as np

import crossent
from crossent.tools.explain import words
from crossent.tools.language import messages, say, speaking

ROWS = 8  # of a page at most


def given_of(case, worked, rate) -> dict[str, Any]:
    """What the page starts from: all logits and targets of the first rows shown, and what the call had beside them."""
    options, denominator = case.options, case.arguments["denominator"]
    rows = [
        {
            "ignored": not case.keep[w.row],
            "sample": str(1.0 if case.samples is None else float(case.samples[w.row]) or 1.0),
            "x": w.x,
            "t": case.row_target(w.row) if case.soft else None,
        }
        for w in worked[:ROWS]
    ]
    return {
        "rows": rows, "weight": case.weight, "rate": rate, "reduction": options.reduction, "softcap": options.softcap,
        "smoothing": options.label_smoothing, "zloss": options.z_loss, "soft": case.soft, "classes": case.classes,
        "denominator": None if denominator is None else str(float(denominator)),
    }  # fmt: skip


def page(e) -> str:
    """The page of an explanation, as HTML."""
    from crossent.tools.pages import rendered

    with speaking(e.lang, e.names.get):
        texts = {key: message[e.lang] for key, message in messages()["play"].items()}  # whose places a script fills
        names = {c: words.class_head(c) for row in e.rows for c in row.classes}
        rows = [given | _shown(row) for row, given in zip(e.rows, e.given["rows"])]
        start = _packed(e.given | {"rows": rows, "names": names, "text": texts})
        values = {"e": e, "words": words, "say": say, "t": texts, "start": start, "notes": _notes(e)}
        return rendered("crossent.tools.explain", "play/play.html", **values, version=crossent.__version__)


def _shown(row):
    label = row.label if row.label is None or row.label in row.classes else row.classes[0]
    return {"name": str(row.position), "label": label, "shown": row.classes}


def _packed(value):
    """With every bit of all numbers, nan and infinities too, in a form that a script reads in one line."""
    if isinstance(value, dict):
        return {key: _packed(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_packed(one) for one in value]
    if not isinstance(value, np.ndarray):
        return value
    narrow = value.astype(np.float32)
    held = narrow if np.array_equal(narrow, value, equal_nan=True) else value
    return {"size": held.itemsize, "bytes": b64encode(held.astype(f"<f{held.itemsize}").tobytes()).decode()}


def _notes(e):
    """Where the page's numbers are not those of the call, and why."""
    shown, rows = len(e.given["rows"]), e.summary["rows"]
    if shown < rows:
        yield say("play.some_rows", rows=f"{rows:,}", shown=shown)
    if e.function == "nll_loss":
        yield say("play.from_log_probabilities")
    for row in e.rows[:shown]:
        if row.state == "bad label":
            yield say("play.bad_label", row=row.position, label=row.label)
