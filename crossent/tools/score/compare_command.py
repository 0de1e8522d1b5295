"""The command `crossent compare`: tables, JSON and a page of two models on the same rows."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crossent.tools.score import Opened, Scored, plots
from crossent.tools.score.command import Errors, answered
from crossent.tools.score.compare import Comparison, verdict
from crossent.tools.score.pairs import Block
from crossent.tools.score.readers import BadFile
from crossent.tools.score.show import Answer, Cells, Page, Shown, metrics_of, of_rows


def run(a: str, b: str, labels: str, *, as_json: bool = False, html: Path | None = None, **options: Any) -> int:
    """Everything but the parsing of the command line. `options` are those of `Opened`."""
    find = partial(_answer, a, b, labels, **options)
    return answered("compare", [a, b, labels], find, files={"--html": html}, as_json=as_json)


def _answer(a: str, b: str, labels: str, errors: Errors, **options: Any) -> Answer:
    """Of two models, in the memory of two blocks of rows."""
    found, one, other = _compared(*(Opened(logits, labels, note=errors.note, **options) for logits in (a, b)))
    result, kept = found._result(one.metrics, other.metrics), found.a._held.options

    def show() -> Page:
        rows, cards = [], []
        for name, metric in metrics_of(result["differences"], one.metrics).items():
            of_a, of_b, off, low, high = result["differences"][name].values()
            values, said = (metric.number(of_a), metric.number(of_b)), verdict(name, low, high)
            differ = metric.difference(off, (low, high))
            rows.append((metric.name, *values, *differ, said))
            cards.append((metric.name, *differ, "A {}, B {}: {}".format(*values, said)))
        numbers = Shown("", ("metric.", "A", "B", "B - A", "95% interval", "verdict."), rows)
        drawn = partial(plots.of_models, {"A": one.metrics, "B": other.metrics})
        tables = [
            _worse(result, Cells(kept.names), kept.top),
            _changes("A right, B wrong", result["lost"], kept.names),
            _changes("A wrong, B right", result["won"], kept.names),
        ]
        head = f"{of_rows(one)}; A is {a}, B is {b}"
        return Page(head, numbers, cards, drawn, [one for one in tables if one.rows], _test(result["agreement"]))

    known = {"a": a, "b": b, "labels": labels, "notes": errors.notes}
    return Answer("Comparison", f"{a} and {b}", lambda: known | result, show, errors.notes)


def _compared(one: Opened, other: Opened) -> tuple[Comparison, Scored, Scored]:
    a, b = one.part.logits, other.part.logits
    if other.pair.shape != one.pair.shape or other.pair.classes != one.pair.classes:
        raise BadFile(f"{b}: has logits of shape {other.pair.logits.shape}, and {a} of {one.pair.logits.shape}")
    if one.pair.names != other.pair.names and None not in (one.pair.names, other.pair.names):
        raise BadFile(f"{b}: the header names other classes than that of {a}, or in another order")
    found = Comparison()
    found._hold(one.total, other.total)
    for blocks in _together(one, other):
        seen = [each.seen(block, paired=True) for each, block in zip((one, other), blocks)]
        if not np.array_equal(seen[0].labels, seen[1].labels):
            raise BadFile(f"{b}: the labels are read as other classes than those of {a}: give both the same header")
        found._count(*seen)
        for each, block, rows in zip((one, other), blocks, seen):
            each.count(block, rows)
    return found, one.scored(), other.scored()


def _together(*both: Opened) -> Iterator[list[Block]]:
    """Blocks of the same rows: cut wherever those of one are."""
    streams = [one.blocks() for one in both]
    waiting = [next(stream, None) for stream in streams]
    while None not in waiting:
        rows = min(len(block.labels) for block in waiting if block)
        if rows:
            yield [_cut(block, 0, rows) for block in waiting if block]
        waiting = [
            next(stream, None) if block is None or len(block.labels) == rows else _cut(block, rows, len(block.labels))
            for stream, block in zip(streams, waiting)
        ]


def _cut(block: Block, low: int, high: int) -> Block:
    labels = block.labels[low:high]
    return Block(block.start + block.labels[:low].size, block.logits[low:high], labels, {})


def _test(n: Mapping[str, Any]) -> str:
    """McNemar's in a sentence."""
    if not n["a_alone"] + n["b_alone"]:
        return "Both models get the same rows right."
    chance = f"that {'may be' if n['p'] > 0.05 else 'is hardly'} chance (p = {n['p']:.2g})"
    return (
        f"Both get {n['both']:,} rows right, A alone {n['a_alone']:,}, B alone {n['b_alone']:,}, neither "
        f"{n['neither']:,}: {chance}, McNemar's exact test."
    )


def _worse(result: Mapping[str, Any], cells: Cells, top: int) -> Shown:
    note = (
        f"Of {result['classes_tested']:,} classes some get worse by chance. The adjusted p (Benjamini-Hochberg) "
        "allows for that: of the classes with 0.05 or less, at most one in twenty is expected to be chance."
    )
    return cells.table("Classes that got worse", result["classes_that_got_worse"][:top], {
        "class": "{label:class}", "rows": "{rows:,}", "recall A": "{recall_a:.1%}", "recall B": "{recall_b:.1%}",
        "A alone": "{a_alone:,}", "B alone": "{b_alone:,}", "p": "{p:.2g}", "adjusted p": "{adjusted:.2g}",
    }, note)  # fmt: skip


def _changes(title: str, changed: list[dict[str, Any]], names: Sequence[str] | None) -> Shown:
    cells = Cells(names, len({row["file"] for row in changed}) > 1)
    return cells.table(f"Rows that changed sides: {title}", changed, {
        "row": "{row}", "label": "{label:class}", "A predicts": "{predictions[0]:class}",
        "B predicts": "{predictions[1]:class}", "NLL of A": "{losses[0]:.4f}", "NLL of B": "{losses[1]:.4f}",
    })  # fmt: skip
