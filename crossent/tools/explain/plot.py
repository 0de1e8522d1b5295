"""An explanation as a figure."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from crossent.tools.explain import words

_BARS = 40  # rows whose losses are drawn one by one
_FAR = 20.0  # times the median, beyond which a loss would leave no room for the others
_COLOURED = 40.0  # nats below the largest number, where the colours of logits end: exp(-40) is next to nothing


def figure(explanation):
    """Logits and probabilities of the rows shown as heat maps, the entries that the labels pick framed, and losses."""
    steps = {step.name: step for step in explanation.steps}
    maps = [steps[name] for name in ("logits", "log-probabilities", "softmax") if name in steps]
    height = 1.4 + 0.6 * max(3, len(explanation.rows))
    made = Figure(figsize=(4.2 * (len(maps) + 1), height), layout="constrained")
    *heat, last = made.subplots(1, len(maps) + 1)
    for axes, step in zip(heat, maps):
        _heat(axes, explanation, step)
    if explanation.losses.size <= _BARS:
        _bars(last, explanation)
    else:
        _curve(last, explanation)
    made.suptitle(words.headline(explanation), fontsize=11)
    return made


def _heat(axes, e, step):
    columns = max((len(row.classes) for row in e.rows), default=1)
    values = np.full((len(e.rows), columns), np.nan)
    for i, cells in enumerate(step.values):
        values[i, : len(cells)] = cells
    probabilities = step.name == "softmax"
    finite = values[np.isfinite(values)]
    largest = finite.max(initial=1.0)
    span = (0.0, 1.0) if probabilities else (max(finite.min(initial=0.0), largest - _COLOURED), largest)
    colours = "Blues" if probabilities else "viridis"
    image = axes.imshow(
        np.where(np.isfinite(values), values, np.nan), colours, aspect="auto", vmin=span[0], vmax=span[1]
    )
    all_shown = columns == e.classes
    for i, row in enumerate(e.rows):
        for j, c in enumerate(row.classes):
            red, green, blue, opaque = (
                image.cmap(image.norm(values[i, j])) if np.isfinite(values[i, j]) else (1, 1, 1, 1)
            )
            dark = opaque and 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
            text = words.number(values[i, j]) + ("" if all_shown else f"\nclass {words.class_head(c)}")
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
            if row.picks(c):
                axes.add_patch(_frame(j, i))
    axes.set_yticks(range(len(e.rows)), [f"row {row.position}" for row in e.rows])
    axes.set_xticks(range(columns), [f"class {words.class_head(c)}" for c in range(columns)] if all_shown else [])
    axes.tick_params(length=0)
    axes.set_title(f"{step.name}, {step.formula}", fontsize=10)


def _frame(j, i):
    return Rectangle((j - 0.47, i - 0.46), 0.94, 0.92, fill=False, edgecolor="#e0521f", linewidth=2.5)


def _bars(axes, e):
    losses = e.losses.reshape(-1).astype(np.float64)
    finite = np.isfinite(losses)
    axes.barh(range(len(losses)), np.where(finite, losses, 0.0), color="#3b82c4")
    axes.invert_yaxis()
    scale = _scale(losses[finite])
    if scale:
        axes.set_xscale("symlog", **scale)
    if losses[finite].min(initial=0.0) >= 0.0:
        axes.set_xlim(0.0, None if losses[finite].any() else 1.0)
    if len(losses) == len(e.rows):
        axes.set_yticks(range(len(losses)), [f"row {row.position}" for row in e.rows])
    for i in np.flatnonzero(~finite):  # as wide as the axes
        across, red = axes.get_yaxis_transform(), "#c22"
        axes.barh(i, 1.0, linewidth=0.0, fill=False, edgecolor=red, hatch="////", transform=across)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text(0.5, i, str(losses[i]), transform=across, ha="center", va="center", color=red, bbox=box)
    if e.result is not None and e.reduction == "mean" and math.isfinite(e.result):
        axes.axvline(e.result, color="0.4", linestyle="--", linewidth=1)
    axes.set_title("loss of each row", fontsize=10)
    axes.set_xlabel("nats")


def _scale(losses):
    """Of an axis of losses some of which are far larger than most: linear up to the median, logarithmic beyond."""
    median = float(np.median(np.abs(losses))) if len(losses) else 0.0
    return {"linthresh": median} if median > 0.0 and losses.max() > _FAR * median else {}


def _curve(axes, e):
    """All losses in order, and where the rows shown stand."""
    losses = np.sort(e.losses.reshape(-1).astype(np.float64))[::-1]
    finite = losses[np.isfinite(losses)]
    axes.plot(np.linspace(0.0, 100.0, len(finite)), finite, color="#3b82c4")
    if scale := _scale(finite):
        axes.set_yscale("symlog", **scale)
    axes.autoscale_view()  # for the places of points
    lowest = math.inf  # of the names so far, in points, which must not lie on each other
    for row in sorted(e.rows, key=lambda row: -row.loss if math.isfinite(row.loss) else 0.0):
        if math.isfinite(row.loss):
            at = 100.0 * np.searchsorted(-finite, -row.loss) / max(1, len(finite) - 1)
            axes.plot(at, row.loss, "o", color="#e0521f")
            side, align = (7, "left") if at < 50.0 else (-7, "right")
            name = f"row {row.position}"
            point = axes.transData.transform((at, row.loss))[1] * 72.0 / axes.figure.dpi
            lowest = min(point, lowest - 9.0)
            place = (side, lowest - point)
            axes.annotate(name, (at, row.loss), place, textcoords="offset points", fontsize=8, ha=align, va="center")
    lost = len(losses) - len(finite)
    axes.set_title("losses, the largest first" + (f"; {lost} not finite" if lost else ""), fontsize=10)
    axes.set_xlabel("% of the rows")
    axes.set_ylabel("nats")
