"""The page: what the lines of a training say, in one file that asks for no other."""

import json
import math
from array import array
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools import files
from crossent.tools.explain import words
from crossent.tools.explain.baselines import baselines
from crossent.tools.explain.explanation import Finding
from crossent.tools.score import plots
from crossent.tools.score.metrics import NEAR, ByClass, Calibration
from crossent.tools.score.report import made
from crossent.tools.score.sums import ratio
from crossent.tools.watch.seen import ALONE

_POINTS = 400  # of a curve, at most
_CLASSES = 20  # in the table, at most

Curve = NDArray[np.float64]  # numbers of steps, and values


class _Loss:
    """What the lines say of a loss; `windows` are sums of the rows that were looked at."""

    def __init__(self, name: str):
        self.name, self.windows = name, []
        self._curves = defaultdict(lambda: array("d"))  # numbers of steps and values in turn

    def add(self, step: int, said: dict[str, Any]) -> None:
        for what, value in said.items():
            self._curves[what].extend((step, float(value)))

    def __getitem__(self, what: str) -> Curve:
        return np.array(self._curves[what]).reshape(-1, 2).T

    def end(self, what: str) -> float:
        """The mean of the last tenth."""
        curve = self[what]
        return float(curve[1, -max(1, curve.shape[1] // 10) :].mean())


def write(path: Path) -> None:
    """Beside the lines; as a whole or not at all."""
    said: dict[str, dict[str, Any]] = {}
    losses: dict[str, _Loss] = {}
    findings: list[Finding] = []
    whole, steps = _Loss(""), 0  # of a training that went on there was more than one start
    for line in _lines(path):
        said[line["event"]] = line
        if line["event"] == "classes":
            losses.setdefault(line["loss"], _Loss(line["loss"])).windows.append(line)
        elif line["event"] == "step":
            steps += 1
            whole.add(steps, {"gradient": line["gradient"]})
            for name, found in line["losses"].items():
                looked = {f"looked {what}": value for what, value in found.pop("looked", {}).items()}
                losses.setdefault(name, _Loss(name)).add(steps, found | looked)
        elif line["event"] == "unseen":
            findings.append(Finding("unseen", "warning", f"{line['sentence']}."))
        elif line["event"] == "fault":
            findings.append(Finding("fault", "error", line["sentence"]))
    start, stopped, fault = said["start"], said["end"]["stopped"], said.get("fault")
    told = f"{start['model']} of {start['parameters']:,} parameters, {steps:,} step{'s' * (steps != 1)}"
    shown: dict[str, list] = {"summary": [], "plots": [], "tables": [], "notes": []}
    if steps:
        title, curves = "Norm of the gradient by step", {"of all parameters": whole["gradient"]}
        drawn = _drawn("gradient", title, curves, "norm", scale="log")
        shown["plots"].append(("Gradient", drawn, "Before clipping, and without the scale of a GradScaler."))
    for number, loss in enumerate(losses.values()):
        _show(shown, str(number), loss, f" ({loss.name})" if len(losses) > 1 else "")
    texts = [("The batch of the fault", fault["explanation"])] if fault and fault["explanation"] else []
    told = [f"{told}, stopped by {stopped}." if stopped else f"{told}."]
    files.write(path.with_suffix(".html"), made("Training", path.name, told, findings=findings, texts=texts, **shown))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except json.JSONDecodeError:  # a process was killed while it wrote
                continue


def _show(shown: dict[str, list], key: str, found: _Loss, of: str) -> None:
    """Add to each part of the page what belongs to a loss; `of` says which, where there are several."""
    classes = int(found.name.split()[2])

    def plot(name: str, title: str, curves: dict[str, str], unit: str, meaning: str, **more: Any) -> None:
        whole = {label: found[what] for label, what in curves.items()}
        drawn = _drawn(f"{name.lower().replace(' ', '-')}-{key}", f"{title} by step{of}", whole, unit, **more)
        shown["plots"].append((name + of, drawn, meaning))

    shown["summary"] += [
        ("Loss" + of, words.number(found.end("loss")), "", "nats a row"),
        ("Ignored" + of, f"{found.end('ignored'):.1%}", "", "of the targets"),
    ]
    meaning, level = "The mean of each step's rows.", math.nan
    if ALONE not in found.name:
        meaning, level = f"{meaning} The dashed line is log C, what knowing nothing costs.", math.log(classes)
    plot("Loss", "Loss", {"loss": "loss"}, "nats a row", meaning, level=level)
    (looks, rows), (steps, of_rows) = found["looked rows"], found["rows"]
    shares = f"{len(looks):,} of {len(steps):,} steps were looked at, {rows.sum():,.0f} of {of_rows.sum():,.0f} rows"
    shown["notes"].append(f"{found.name}: {shares} that count")
    if not found.windows:
        return
    first, last = _sums(classes, found.windows[:1]), _sums(classes, found.windows[-2:])
    bins = np.sum([window["bins"] for window in found.windows[-2:]], axis=0)
    metrics: Any = SimpleNamespace(
        by_class=last, accuracy=last.correct.sum() / last.rows.sum(), calibration=Calibration(*bins)
    )
    mean = float(np.nansum(last.nll * last.rows) / last.rows.sum())
    before = SimpleNamespace(classes=classes, baselines=baselines(last.rows, float(last.rows.sum()), mean, NEAR))
    shown["notes"].append(f"{found.name}, rows looked at last: {words.baselines(before)}".rstrip("."))
    shown["summary"] += [
        ("Accuracy" + of, f"{found.end('looked accuracy'):.1%}", "", "labels with the largest logit"),
        ("Confidence" + of, f"{found.end('looked confidence'):.1%}", "", "mean probability of the largest logit"),
        ("Calibration error" + of, f"{metrics.calibration.error:.4f}", "", "distance between accuracy and confidence"),
        ("Gradient at the logits" + of, words.number(found.end("looked gradient_at_logits")), "",
         "norm of a row's, root mean square"),
    ]  # fmt: skip
    both = {"accuracy": "looked accuracy", "confidence": "looked confidence"}
    meaning = "Where it is above the accuracy, the model is too sure of itself."
    plot("Confidence", "Accuracy and confidence", both, "of the rows", meaning)
    meaning = "Of a row's loss, root mean square: 0 when all is learnt."
    plot("Gradient at the logits", "Norm of a row's gradient", {"at the logits": "looked gradient_at_logits"}, "norm",
         meaning)  # fmt: skip
    shown["plots"] += [
        ("Reliability" + of, plots.reliability(metrics.calibration, f"reliability-{key}"), plots.RELIABILITY),
        ("Classes" + of, plots.classes(metrics, f"classes-{key}"), "Of the rows with a label, how many are right."),
    ]
    shown["tables"].append(_table(first, last, of))


def _sums(classes: int, windows: list[dict[str, Any]]) -> ByClass:
    sums = np.zeros((3, classes))
    for window in windows:
        sums[:, window["class"]] += [window["rows"], window["nll"], window["right"]]
    rows, nll, right = sums
    return ByClass(rows.astype(int), ratio(nll, rows), right, np.zeros(classes))


def _table(first: ByClass, last: ByClass, of: str) -> dict[str, Any]:
    met = np.flatnonzero(last.rows)
    rows = [
        (c, f"{last.rows[c]:,}", words.number(first.nll[c]) if first.rows[c] else "", words.number(last.nll[c]),
         f"{last.recall[c]:.1%}")
        for c in met[np.argsort(-last.nll[met], kind="stable")[:_CLASSES]].tolist()
    ]  # fmt: skip
    columns = "class", "rows", "loss at first", "loss at last", "right"
    return {"title": f"Classes with the largest loss{of}", "columns": columns, "rows": rows, "note": ""}


def _drawn(name: str, title: str, curves: dict[str, Curve], unit: str, scale="linear", level: float = math.nan) -> str:
    said = []
    with plots.new_figure() as figure:
        axes = figure.add_subplot()
        for (label, curve), colour in zip(curves.items(), (plots.BLUE, plots.ORANGE)):
            step, value = _thinned(curve)
            axes.plot(step, value, color=colour, linewidth=1.2, label=label, marker="o" if len(step) == 1 else None)
            said.append(f"{label}: {value[0]:.4g} at first, {value[-1]:.4g} at last")
        axes.axhline(level, color=plots.ORANGE, linewidth=1.2, linestyle="--")
        axes.set(xlabel="step", ylabel=unit)
        if scale == "log" and any((curve[1] > 0.0).any() for curve in curves.values()):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, None)
        plots.legend(axes)
        return plots.svg(figure, name, title, "; ".join(said) + ".")


def _thinned(curve: Curve) -> Curve:
    """Means of as many steps as make few enough points."""
    starts = np.arange(0, curve.shape[1], -(-curve.shape[1] // _POINTS))
    return np.add.reduceat(curve, starts, axis=1) / np.diff(np.append(starts, curve.shape[1]))
