"""The page: what the lines of a training say, in one file that asks for no other."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import crossent
from crossent.tools import files
from crossent.tools.pages import rendered
from crossent.tools.score import plots
from crossent.tools.score.metrics import Calibration
from crossent.tools.watch.looks import Sums

_POINTS = 400  # of a curve, at most
_CLASSES = 30  # shown, at most
_END = 10  # the end of a training is one in so many of its steps

Curve = list[tuple[int, float]]  # numbers of steps, and values


def write(path: Path) -> None:
    """Beside the lines; as a whole or not at all."""
    lines = list(_lines(path))
    steps = [line for line in lines if line["event"] == "step"]
    for number, line in enumerate(steps, 1):  # of a training that went on there was more than one start
        line["number"] = number
    names = dict.fromkeys(name for line in steps for name in line["losses"])
    start, end = lines[0], lines[-1]
    stopped = f", stopped by {end['stopped']}" if end.get("stopped") else ""
    text = rendered(
        "crossent.tools", "watch/watch.html", kind="Training", title=path.name, version=crossent.__version__,
        told=f"{start['model']} of {start['parameters']:,} parameters, {len(steps):,} steps{stopped}",
        fault=next((line for line in lines if line["event"] == "fault"), None),
        losses=[_shown(f"{i}", name, lines, steps) for i, name in enumerate(names)],
        notes=[_looked(name, steps) for name in names],
    )  # fmt: skip
    files.write(path.with_suffix(".html"), text)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except json.JSONDecodeError:  # a process was killed while it wrote
                continue


def _curve(name: str, what: str, steps: list[dict[str, Any]], looked: bool = False) -> Curve:
    said = ((line["number"], line["losses"].get(name)) for line in steps)
    if looked:
        said = ((number, part and part.get("looked")) for number, part in said)
    return [(number, float(part[what])) for number, part in said if part]


def _looked(name: str, steps: list[dict[str, Any]]) -> str:
    looks, counted = _curve(name, "rows", steps, looked=True), _curve(name, "rows", steps)
    rows, of = (sum(int(n) for _, n in curve) for curve in (looks, counted))
    return f"{name}: {len(looks):,} of {len(counted):,} steps were looked at, {rows:,} of {of:,} rows that count"


def _shown(key: str, name: str, lines: list[dict[str, Any]], steps: list[dict[str, Any]]) -> dict[str, Any]:
    classes = int(name.split()[2])
    windows = [line for line in lines if line["event"] == "classes" and line["loss"] == name]
    first, last = _sums(classes, windows[:1]), _sums(classes, windows[-2:])
    loss, ignored = (_curve(name, what, steps) for what in ("loss", "ignored"))
    right, sure, gradient = (
        _curve(name, what, steps, looked=True) for what in ("accuracy", "confidence", "gradient_at_logits")
    )
    nothing = f"knowing nothing costs {math.log(classes):.4g}"
    gradients = {"of all parameters": [(line["number"], float(line["gradient"])) for line in steps]}
    summary = [
        ("Loss", f"{_end(loss):.4g}", f"nats a row; {nothing}"),
        ("Ignored", f"{_end(ignored):.1%}", "of targets"),
    ]
    drawn = [
        ("Loss", _drawn(f"loss-{key}", "Loss by step", {"loss": loss}, "nats a row", level=math.log(classes)),
         f"The mean of each step's rows; {nothing} (the dashed line)."),
    ]  # fmt: skip
    if right:
        calibration, all_rows = _calibration(last), f"{int(last.rows.sum()):,} rows that were looked at last"
        summary += [
            ("Accuracy", f"{_end(right):.1%}", "labels with the largest logit"),
            ("Confidence", f"{_end(sure):.1%}", "mean probability of the largest logit"),
            ("Calibration error", f"{calibration.error:.4f}", "distance between accuracy and confidence"),
            ("Gradient at the logits", f"{_end(gradient):.4g}", "norm of a row's, root mean square"),
        ]
        gradients["at the logits"] = gradient
        both = {"accuracy": right, "confidence": sure}
        reliability = plots.reliability(SimpleNamespace(calibration=calibration), f"reliability-{key}")  # pyright: ignore
        drawn += [
            ("Confidence", _drawn(f"confidence-{key}", "Accuracy and confidence by step", both, "of the rows"),
             "Where it is above the accuracy, the model is too sure of itself."),
            ("Reliability", reliability, f"Of {all_rows}."),
            ("Classes", _by_class(f"classes-{key}", last), f"Those with the largest loss, of {all_rows}."),
        ]  # fmt: skip
    drawn.append(
        ("Gradients", _drawn(f"gradient-{key}", "Norms of gradients by step", gradients, "norm", scale="log"),
         "Before clipping; with the scale of a GradScaler in that of the parameters."),
    )  # fmt: skip
    return {
        "name": name,
        "summary": [(what, number, "", told) for what, number, told in summary],
        "plots": drawn,
        "tables": [_table(first, last)] if right else [],
    }


def _end(curve: Curve) -> float:
    return float(np.mean([value for _, value in curve[-max(1, len(curve) // _END) :]]))


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


def _by_class(name: str, sums: Sums) -> str:
    chosen = _worst(sums)
    nll, labels = sums.nll[chosen] / sums.rows[chosen], [str(c) for c in chosen]
    with plots._figure() as figure:
        axes = figure.add_subplot()
        axes.bar(labels, nll, 0.8, color=plots._BLUE)
        mean = float(sums.nll.sum() / sums.rows.sum())
        axes.axhline(mean, color=plots._ORANGE, linewidth=1.2, label=f"all rows {mean:.4g}")
        axes.tick_params("x", rotation=90 if len("".join(labels)) > 40 else 0, labelsize=7)
        axes.set(xlabel="class", ylabel="mean loss in nats")
        plots._legend(axes)
        said = ", ".join(f"{label}: {value:.4g}" for label, value in zip(labels, nll))
        return plots._svg(figure, name, "Loss by class", f"By class: {said}.")


def _table(first: Sums, last: Sums) -> tuple:
    rows = []
    for c in _worst(last)[:10].tolist():
        n, then = int(last.rows[c]), f"{first.nll[c] / first.rows[c]:.4g}" if first.rows[c] else ""
        rows.append((c, f"{n:,}", then, f"{last.nll[c] / n:.4g}", f"{last.right[c] / n:.1%}"))
    return "Classes with the largest loss", ("class", "rows", "loss at first", "loss at last", "right"), rows


def _drawn(name: str, title: str, curves: dict[str, Curve], unit: str, scale="linear", level: float = math.nan) -> str:
    said = []
    with plots._figure() as figure:
        axes = figure.add_subplot()
        for (label, curve), colour in zip(curves.items(), (plots._BLUE, plots._ORANGE)):
            step, value = _thinned(np.array(curve, float).T)
            axes.plot(step, value, color=colour, linewidth=1.2, label=label, marker="o" if len(step) == 1 else None)
            said.append(f"{label}: {value[0]:.4g} at first, {value[-1]:.4g} at last")
        if not math.isnan(level):
            axes.axhline(level, color=plots._ORANGE, linewidth=1.2, linestyle="--")
        axes.set(xlabel="step", ylabel=unit, yscale=scale)
        if scale == "linear":
            axes.set_ylim(0, None)
        plots._legend(axes)
        return plots._svg(figure, name, title, "; ".join(said) + ".")


def _thinned(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of as many steps as make few enough points."""
    starts = np.arange(0, curve.shape[1], -(-curve.shape[1] // _POINTS))
    return np.add.reduceat(curve, starts, axis=1) / np.diff(np.append(starts, curve.shape[1]))
