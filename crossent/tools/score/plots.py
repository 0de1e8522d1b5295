"""The plots of the page, as SVG that takes its ink from the page around it."""

import io
import re
from contextlib import contextmanager
from typing import Any

import numpy as np

from crossent.tools.score.metrics import BINS, LOSS_STEP, Calibration, Metrics

_INK = "#010203"  # stands for the page's text colour until the SVG is made
_BLUE, _ORANGE = "#4c8bd6", "#dd8452"  # seen on white and on black
_RED = "#c4494c"
_FAR, _FEW = 3, 0.01  # the share of rows that gets one bar if it is so many times farther out than the others
_FEWEST = 32  # bins, which make a nat
_BARS = 60  # at most, of the histogram and of the classes


def reliability(metrics: Metrics) -> str:
    """Accuracy over confidence, bin by bin, and the gap to the diagonal of perfect calibration."""
    bins: Calibration = metrics.calibration
    used = bins.rows > 0
    middle, accuracy, confidence = (np.arange(BINS) + 0.5) / BINS, bins.accuracy, bins.confidence
    with _figure() as figure:
        axes = figure.add_subplot()
        axes.bar(middle[used], accuracy[used], 0.92 / BINS, color=_BLUE, label="accuracy")
        gap = (confidence - accuracy)[used]
        axes.bar(middle[used], gap, 0.5 / BINS, accuracy[used], color=_ORANGE, alpha=0.7, label="gap to confidence")
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle="--")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        _legend(axes)
        return _svg(figure, "reliability")


def losses(metrics: Metrics) -> str:
    """How many rows have which loss, on a logarithmic scale. The few that are far larger, or infinite, have one bar."""
    counts, last = metrics.losses, _where_most_are(metrics)
    step = -(-last // _BARS)
    bars = np.add.reduceat(counts[:last], np.arange(0, last, step))
    width, end, beyond = step * LOSS_STEP, len(bars) * step * LOSS_STEP, int(counts[last:].sum())
    with _figure() as figure:
        axes = figure.add_subplot()
        axes.bar(np.arange(len(bars)) * width, bars, width * 0.92, align="edge", color=_BLUE)
        if beyond:
            infinite = f", {metrics.impossible:,} infinite" if metrics.impossible else ""
            said = f"{beyond:,} above {end:.3g}{infinite}"
            axes.bar(end + width, beyond, width * 2, align="edge", color=_RED, label=said)
        draw = axes.axvline if metrics.nll <= end else lambda at, **style: axes.plot([], [], **style)
        draw(metrics.nll, color=_ORANGE, linewidth=1.2, label=f"mean {metrics.nll:.4g}")
        axes.set(yscale="log", ylim=(0.7, None), xlim=(0, None), xlabel="NLL in nats", ylabel="rows")
        _legend(axes)
        return _svg(figure, "losses")


def _where_most_are(metrics: Metrics) -> int:
    """The number of bins that are drawn: all that hold rows, unless the last hundredth of these is far from the rest.

    Never the very last bin, which has what is larger than the others, and what is infinite.
    """
    counts = metrics.losses[:-1]
    last = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    reach = int(np.searchsorted(np.cumsum(counts), (1.0 - _FEW) * counts.sum())) + 1
    return max(_FEWEST, min(last, _FAR * reach))


def classes(metrics: Metrics) -> str:
    """The recall of every class, or of the worst where there are many."""
    found = metrics.by_class
    known = np.flatnonzero(found.rows)
    chosen = known[np.lexsort((known, found.recall[known]))[:_BARS]]
    if len(known) <= _BARS:
        chosen = known
    with _figure() as figure:
        axes = figure.add_subplot()
        place = np.arange(len(chosen))
        axes.bar(place, found.recall[chosen], 0.8, color=_BLUE)
        axes.axhline(metrics.accuracy, color=_ORANGE, linewidth=1.2, label=f"all rows {metrics.accuracy:.1%}")
        shown = place[:: -(-len(place) // 12)]
        axes.set_xticks(shown, [str(label) for label in chosen[shown]], rotation=90 if chosen.max() > 99 else 0)
        axes.set(ylim=(0, 1), ylabel="recall", xlabel="class" if len(chosen) == len(known) else "classes, worst first")
        _legend(axes)
        return _svg(figure, "classes")


@contextmanager
def _figure():
    """A figure in the page's colours."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif", "axes.edgecolor": _INK,
        "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK,
        "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "crossent",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield Figure((4.4, 3.1), layout="constrained")


def _legend(axes) -> None:
    """Above the axes, where there are no bars."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)


def _svg(figure, name: str) -> str:
    """The same for the same numbers, with ids that no other plot of the page has."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r"\b(id=\"|href=\"#|url\(#)", rf"\g<1>{name}-", svg)
