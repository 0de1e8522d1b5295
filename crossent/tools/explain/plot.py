"""An explanation as a figure."""

import math
import warnings
from contextlib import suppress
from functools import cache

import numpy as np
from matplotlib import font_manager, ft2font, rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from crossent.tools.explain import words
from crossent.tools.language import name_of, say, speaking

_BARS = 40  # rows whose losses are drawn one by one
_FAR = 20.0  # times the median, beyond which a loss would leave no room for the others
_COLOURED = 40.0  # nats below the largest number, where the colours of logits end: exp(-40) is next to nothing
_BLUE, _ORANGE, _RED = "#3b82c4", "#e0521f", "#c22"


def figure(e):
    """Logits and probabilities of the rows shown as heat maps, the entries that the labels pick framed, and losses."""
    fonts = _chinese_fonts() if e.lang == "zh" else []
    with rc_context({"font.family": rcParams["font.family"] + fonts}), speaking("zh" if fonts else "en", e.names.get):
        steps = {step.name: step for step in e.steps}
        maps = [steps[name] for name in ("logits", "log-probabilities", "softmax") if name in steps]
        height = 1.4 + 0.6 * max(3, len(e.rows))
        made = Figure(figsize=(4.2 * (len(maps) + 1), height), layout="constrained")
        *heat, last = made.subplots(1, len(maps) + 1)
        for axes, step in zip(heat, maps):
            _heat(axes, e, step)
        (_bars if e.losses.size <= _BARS else _curve)(last, e)
        made.suptitle(words.headline(e), fontsize=11)
    return made


@cache
def _chinese_fonts():
    """The name of a font that has Chinese letters, the plainest that is installed; without one it says so, once."""
    manager = font_manager.fontManager
    for path in {*font_manager.findSystemFonts()} - {font.fname for font in manager.ttflist}:
        with suppress(RuntimeError, OSError):  # installed since matplotlib wrote its list, or of a kind it cannot read
            manager.addfont(path)
    fonts = [font for font in manager.ttflist if "Last Resort" not in font.name]  # which has boxes for all letters
    for font in sorted(fonts, key=lambda font: ("Sans" not in font.name, font.weight != 400, font.style != "normal")):
        face = ft2font.FT2Font(font.fname)
        if all(face.get_char_index(ord(letter)) for letter in say("plot.losses")):
            return [font.name]
    warnings.warn(say("plot.no_font"), stacklevel=4)
    return []


def _row(position):
    return say("row.one", one=position)


def _heat(axes, e, step):
    columns = max((len(row.classes) for row in e.rows), default=1)
    values = np.full((len(e.rows), columns), np.nan)
    for i, cells in enumerate(step.values):
        values[i, : len(cells)] = cells
    finite = values[np.isfinite(values)]
    largest = finite.max(initial=1.0)
    low, high, colours = max(finite.min(initial=0.0), largest - _COLOURED), largest, "viridis"
    if step.name == "softmax":
        low, high, colours = 0.0, 1.0, "Blues"
    known = np.where(np.isfinite(values), values, np.nan)
    image = axes.imshow(known, colours, aspect="auto", vmin=low, vmax=high)
    all_shown = columns == e.classes
    for i, row in enumerate(e.rows):
        for j, c in enumerate(row.classes):
            red, green, blue, _ = image.cmap(image.norm(known[i, j])) if np.isfinite(known[i, j]) else (1, 1, 1, 1)
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
            text = words.number(values[i, j]) + ("" if all_shown else f"\n{_class(c)}")
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
            if row.picks(c):
                frame = Rectangle((j - 0.47, i - 0.46), 0.94, 0.92, fill=False, edgecolor=_ORANGE, linewidth=2.5)
                axes.add_patch(frame)
    axes.set_yticks(range(len(e.rows)), [_row(row.position) for row in e.rows])
    axes.set_xticks(range(columns), [_class(c) for c in range(columns)] if all_shown else [])
    axes.tick_params(length=0)
    name = say("plot.log_probabilities") if step.name == "log-probabilities" else step.name
    axes.set_title(f"{name}, {step.formula}", fontsize=10)


def _class(c):
    return say("class.one", one=c) if name_of(c) is None else words.class_head(c)


def _bars(axes, e):
    losses = e.losses.reshape(-1).astype(np.float64)
    finite = np.isfinite(losses)
    axes.barh(range(len(losses)), np.where(finite, losses, 0.0), color=_BLUE)
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if scale := _scale(losses[finite]):
        axes.set_xscale("symlog", **scale)
    if losses[finite].min(initial=0.0) >= 0.0:
        axes.set_xlim(0.0, None if losses[finite].any() else 1.0)
    if len(losses) == len(e.rows):
        axes.set_yticks(range(len(losses)), [_row(row.position) for row in e.rows])
    across, box = axes.get_yaxis_transform(), {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    for i in np.flatnonzero(~finite):  # as wide as the axes
        axes.barh(i, 1.0, linewidth=0.0, fill=False, edgecolor=_RED, hatch="////", transform=across)
        axes.text(0.5, i, str(losses[i]), transform=across, ha="center", va="center", color=_RED, bbox=box)
    if e.result is not None and e.reduction == "mean" and math.isfinite(e.result):
        axes.axvline(e.result, color="0.4", linestyle="--", linewidth=1)
    axes.set_title(say("plot.losses"), fontsize=10)
    axes.set_xlabel("nats")


def _scale(losses):
    """Of an axis of losses some of which are far larger than most: linear up to the median, logarithmic beyond."""
    median = float(np.median(np.abs(losses))) if len(losses) else 0.0
    return {"linthresh": median} if median > 0.0 and losses.max() > _FAR * median else {}


def _curve(axes, e):
    """All losses in order, and where the rows shown stand."""
    losses = np.sort(e.losses.reshape(-1).astype(np.float64))[::-1]
    finite = losses[np.isfinite(losses)]
    axes.plot(np.linspace(0.0, 100.0, len(finite)), finite, color=_BLUE)
    if scale := _scale(finite):
        axes.set_yscale("symlog", **scale)
    axes.autoscale_view()  # for the places of points
    lowest = math.inf  # of the names so far, in points, which must not lie on each other
    for row in sorted((row for row in e.rows if math.isfinite(row.loss)), key=lambda row: -row.loss):
        at = 100.0 * np.searchsorted(-finite, -row.loss) / max(1, len(finite) - 1)
        axes.plot(at, row.loss, "o", color=_ORANGE)
        point = axes.transData.transform((at, row.loss))[1] * 72.0 / axes.figure.dpi
        lowest = min(point, lowest - 9.0)
        place = {"xytext": (7 if at < 50.0 else -7, lowest - point), "ha": "left" if at < 50.0 else "right"}
        axes.annotate(_row(row.position), (at, row.loss), textcoords="offset points", fontsize=8, va="center", **place)
    lost = len(losses) - len(finite)
    axes.set_title(say("plot.ordered_lost", lost=lost) if lost else say("plot.ordered"), fontsize=10)
    axes.set_xlabel(say("plot.share"))
    axes.set_ylabel("nats")
