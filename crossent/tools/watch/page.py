"""The page: what the lines of a training say, in one file that asks for no other."""

import json
import math
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools import files
from crossent.tools.explain.explanation import Finding
from crossent.tools.score import plots
from crossent.tools.score.metrics import Calibration
from crossent.tools.score.report import made
from crossent.tools.watch.looks import Sums

_POINTS = 400  # of a curve, at most
_CLASSES = 30  # shown, at most

Curve = NDArray[np.float64]  # numbers of steps, and values


@dataclass
class _Loss:
    """What the lines say of a loss; curves are numbers of steps and values in turn."""

    name: str
    curves: dict[str, array] = field(default_factory=lambda: defaultdict(lambda: array("d")))
    windows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, step: int, said: dict[str, Any], prefix: str = "") -> None:
        for what, value in said.items():
            if isinstance(value, dict):
                self.add(step, value, "looked ")
            else:
                self.curves[prefix + what].extend((step, float(value)))

    def curve(self, what: str) -> Curve:
        return np.array(self.curves[what]).reshape(-1, 2).T

    def looked(self) -> str:
        (looks, rows), (steps, of) = self.curve("looked rows"), self.curve("rows")
        shares = f"{len(looks):,} of {len(steps):,} steps were looked at, {int(rows.sum()):,} of {int(of.sum()):,} rows"
        return f"{self.name}: {shares} that count"


def write(path: Path) -> None:
    """Beside the lines; as a whole or not at all."""
    said: dict[str, dict[str, Any]] = {}
    losses: dict[str, _Loss] = {}
    whole, steps = _Loss(""), 0  # of a training that went on there was more than one start
    for line in _lines(path):
        event = line["event"]
        if event == "classes":
            losses.setdefault(line["loss"], _Loss(line["loss"])).windows.append(line)
        elif event == "step":
            steps += 1
            whole.add(steps, {"gradient": line["gradient"]})
            for name, found in line["losses"].items():
                losses.setdefault(name, _Loss(name)).add(steps, found)
        else:
            said[event] = line
    start, stopped, fault = said["start"], said["end"]["stopped"], said.get("fault")
    told = f"{start['model']} of {start['parameters']:,} parameters, {steps:,} step{'s' * (steps != 1)}"
    gradient = whole.curve("gradient")
    shown: dict[str, list] = {"summary": [], "plots": [], "tables": []}
    if steps:
        drawn = _drawn("gradient", "Norm of the gradient by step", {"of all parameters": gradient}, "norm", scale="log")
        shown["plots"].append(("Gradient", drawn, "Before clipping, with the scale of a GradScaler in it."))
    for number, loss in enumerate(losses.values()):
        for part, found in _shown(f"{number}", loss, f" ({loss.name})" if len(losses) > 1 else "").items():
            shown[part] += found
    notes = [loss.looked() for loss in losses.values()]
    findings = []
    if fault:
        findings.append(Finding("fault", "error", fault["sentence"]))
        notes.append(f"All of the explanation is in the line of the fault in {path.name}")
    told = [f"{told}, stopped by {stopped}." if stopped else f"{told}."]
    files.write(path.with_suffix(".html"), made("Training", path.name, told, notes, findings=findings, **shown))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except json.JSONDecodeError:  # a process was killed while it wrote
                continue


def _shown(key: str, found: _Loss, of: str) -> dict[str, list]:
    """What is shown of a loss, by the parts of a page; `of` says of which, where there are several."""
    classes = int(found.name.split()[2])
    nothing, loss = f"knowing nothing costs {math.log(classes):.4g}", found.curve("loss")
    summary = [
        ("Loss" + of, f"{_end(loss):.4g}", "", f"nats a row; {nothing}"),
        ("Ignored" + of, f"{_end(found.curve('ignored')):.1%}", "", "of the targets"),
    ]
    drawn = _drawn(f"loss-{key}", f"Loss by step{of}", {"loss": loss}, "nats a row", level=math.log(classes))
    plotted = [("Loss" + of, drawn, f"The mean of each step's rows; {nothing} (the dashed line).")]
    if not found.windows:
        return {"summary": summary, "plots": plotted}
    first, last = _sums(classes, found.windows[:1]), _sums(classes, found.windows[-2:])
    names = "accuracy", "confidence", "gradient_at_logits"
    right, sure, gradient = (found.curve(f"looked {what}") for what in names)
    calibration, rows = _calibration(last), f"{int(last.rows.sum()):,} rows that were looked at last"
    summary += [
        ("Accuracy" + of, f"{_end(right):.1%}", "", "labels with the largest logit"),
        ("Confidence" + of, f"{_end(sure):.1%}", "", "mean probability of the largest logit"),
        ("Calibration error" + of, f"{calibration.error:.4f}", "", "distance between accuracy and confidence"),
        ("Gradient at the logits" + of, f"{_end(gradient):.4g}", "", "norm of a row's, root mean square"),
    ]
    both = {"accuracy": right, "confidence": sure}
    reliability = plots.reliability(SimpleNamespace(calibration=calibration), f"reliability-{key}")  # pyright: ignore
    plotted += [
        ("Confidence" + of, _drawn(f"confidence-{key}", f"Accuracy and confidence by step{of}", both, "of the rows"),
         "Where it is above the accuracy, the model is too sure of itself."),
        ("Gradient at the logits" + of, _drawn(f"logits-{key}", f"Norm of a row's gradient by step{of}",
         {"at the logits": gradient}, "norm"), "Of a row's loss, root mean square: 0 when all is learnt."),
        ("Reliability" + of, reliability, f"Of {rows}."),
        ("Classes" + of, _by_class(f"classes-{key}", last, of), f"Those with the largest loss, of {rows}."),
    ]  # fmt: skip
    return {"summary": summary, "plots": plotted, "tables": [_table(first, last, of)]}


def _end(curve: Curve) -> float:
    """The mean of its last tenth."""
    return float(curve[1, -max(1, curve.shape[1] // 10) :].mean())


def _sums(classes: int, windows: list[dict[str, Any]]) -> Sums:
    total = Sums(classes)
    for window in windows:
        for name in ("rows", "right", "nll"):
            getattr(total, name)[window["class"]] += np.array(window[name])
        total.bins += np.array(window["bins"])
    return total


def _calibration(sums: Sums) -> Calibration:
    rows, right, confidence = sums.bins
    with np.errstate(invalid="ignore"):
        error = float(np.abs(right - confidence).sum() / rows.sum())
        return Calibration(rows.astype(np.int64), right / rows, confidence / rows, error)


def _worst(sums: Sums) -> NDArray[np.int64]:
    met = np.flatnonzero(sums.rows)
    return met[np.argsort(-sums.nll[met] / sums.rows[met], kind="stable")[:_CLASSES]]


def _by_class(name: str, sums: Sums, of: str) -> str:
    chosen = _worst(sums)
    nll, labels = sums.nll[chosen] / sums.rows[chosen], [str(c) for c in chosen]
    with plots.new_figure() as figure:
        axes = figure.add_subplot()
        axes.bar(labels, nll, 0.8, color=plots.BLUE)
        mean = float(sums.nll.sum() / sums.rows.sum())
        axes.axhline(mean, color=plots.ORANGE, linewidth=1.2, label=f"all rows {mean:.4g}")
        axes.tick_params("x", rotation=90 if len("".join(labels)) > 40 else 0, labelsize=7)
        axes.set(xlabel="class", ylabel="mean loss in nats")
        plots.legend(axes)
        said = ", ".join(f"{label}: {value:.4g}" for label, value in zip(labels, nll))
        return plots.svg(figure, name, f"Loss by class{of}", f"By class: {said}.")


def _table(first: Sums, last: Sums, of: str) -> dict[str, Any]:
    rows = []
    for c in _worst(last)[:10].tolist():
        n, then = int(last.rows[c]), f"{first.nll[c] / first.rows[c]:.4g}" if first.rows[c] else ""
        rows.append((c, f"{n:,}", then, f"{last.nll[c] / n:.4g}", f"{last.right[c] / n:.1%}"))
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
        if not math.isnan(level):
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
