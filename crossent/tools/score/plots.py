"""The plots of the pages, as SVG that takes its ink from the page around it, with a name and a text for each."""

import io
import re
from collections.abc import Mapping
from contextlib import contextmanager
from html import escape
from typing import Any

import numpy as np

from crossent.tools.score.coverage import SHARES
from crossent.tools.score.metrics import LOSS_STEP, Calibration, Metrics

_INK = "#010203"  # stands for the page's text colour until the SVG is made
BLUE, ORANGE = "#4c8bd6", "#dd8452"  # seen on white and on black
_RED, _GREY = "#c4494c", "#8a9099"
_BARS = 60  # at most, of the classes
# Where the bars of the losses begin and end, in steps of the histogram: eight narrow ones, then four an octave.
_EDGES = np.array([*range(8), *(m << octave for octave in range(1, 10) for m in range(4, 8)), 4095])


RELIABILITY = "How often rows of a confidence are right, and their number."


def of_score(metrics: Metrics) -> list[tuple[str, str, str]]:
    """Name, plot and meaning of those on the page of a score."""
    return [
        ("Reliability", reliability(metrics.shown_calibration), RELIABILITY),
        ("Coverage", coverage(metrics), "How often the rows are right in which the model is surest."),
        ("Losses", losses(metrics), "Rows by the loss that they have."),
        ("Classes", classes(metrics), "Of the rows with a label, how many are predicted so."),
    ]


def of_models(models: Mapping[str, Metrics]) -> list[tuple[str, str, str]]:
    """Two reliability diagrams, whose bins are alike."""
    fine = any(one.shown_calibration is one.by_octave for one in models.values())
    bins = {name: one.by_octave if fine else one.calibration for name, one in models.items()}
    return [(f"Reliability: {name}", reliability(one, name), RELIABILITY) for name, one in bins.items()]


def reliability(bins: Calibration, name: str = "reliability") -> str:
    """Accuracy over confidence, bin by bin, the gap to the diagonal of perfect calibration, and the rows of each.

    Both scales are logarithmic where bins are narrower below.
    """
    used, width = bins.rows > 0, np.diff(bins.edges)
    uneven = len(width) > 1 and width[0] < width[-1] / 2
    low, high = bins.edges[:-1][used], bins.edges[1:][used]
    rows, accuracy, confidence = (column[used] for column in (bins.rows, bins.accuracy, bins.confidence))
    told = zip(low.tolist(), rows.tolist(), accuracy.tolist(), confidence.tolist())
    said = "; ".join(f"above {lo:.2g} {n:,} rows, {a:.2%} right, sure to {c:.2%}" for lo, n, a, c in told)
    if uneven:
        low = np.maximum(low, high / 2)
    middle, wide = np.sqrt(low * high) if uneven else (low + high) / 2, high - low
    with new_figure() as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        axes.bar(low + 0.04 * wide, accuracy, 0.92 * wide, color=BLUE, align="edge", label="accuracy")
        axes.bar(
            low + 0.25 * wide, confidence - accuracy, 0.5 * wide, accuracy, color=ORANGE, alpha=0.7, align="edge",
            label="gap to confidence",
        )  # fmt: skip
        axes.plot(middle, accuracy, "o", color=BLUE, markersize=3.5)  # seen where there is no bar to be seen
        least = low[0] if uneven and len(low) else 0.0
        axes.plot([least, 1], [least, 1], color=_INK, linewidth=0.8, linestyle="--")
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="accuracy")
        if uneven:
            seen = accuracy[accuracy > 0]
            bottom = min([least, *seen / 2])
            axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(bottom, 1.3))
        legend(axes)
        below.bar(low + 0.04 * wide, rows, 0.92 * wide, color=_GREY, align="edge")
        below.set(yscale="log", ylim=(0.7, rows.max() ** 1.5 + 30), xlabel="confidence", ylabel="rows")
        for x, n in zip(middle, rows.tolist()):
            below.text(x, 1.3 * n, _short(n), ha="center", va="bottom", rotation=90, size=7)
        return svg(figure, name, "Accuracy and number of rows by confidence", f"By confidence: {said}.")


def _short(n: int) -> str:
    return f"{n:,}" if n < 10_000 else f"{n / 1e3:.0f}k" if n < 1e6 else f"{n / 1e6:.1f}M"


def coverage(metrics: Metrics) -> str:
    """The accuracy of the surest rows, over their share of all."""
    found = metrics.coverage
    rows, right = np.cumsum(found.rows), np.cumsum(found.right)
    with new_figure() as figure:
        axes = figure.add_subplot()
        axes.plot(rows / rows[-1], right / rows, color=BLUE, label=f"accuracy, on average {found.area:.1%}")
        axes.axhline(metrics.accuracy, color=ORANGE, linewidth=1.2, label=f"all rows {metrics.accuracy:.1%}")
        axes.set(xlim=(0, 1), ylim=(None, 1.01), xlabel="share of the rows, surest first", ylabel="accuracy")
        legend(axes)
        told = "; ".join(f"{share:.0%} of the rows, {right:.1%}" for share, right in zip(SHARES, found.accuracy))
        return svg(figure, "coverage", "Accuracy of the surest rows", f"Right of the surest rows: {told}.")


def losses(metrics: Metrics) -> str:
    """How many rows have which loss. Both scales are logarithmic, so that neither few nor large losses are lost."""
    bars, infinite = np.add.reduceat(metrics.losses, _EDGES), metrics.impossible
    bars[-1] -= infinite
    edges, last = _EDGES * LOSS_STEP, int(np.flatnonzero(bars)[-1]) if bars.any() else 0
    last = max(last, int(np.searchsorted(edges, 1.0)))
    mean = f"mean {metrics.nll:.4g}"
    with new_figure() as figure:
        axes = figure.add_subplot()
        axes.bar(np.arange(last + 1) + 0.5, bars[: last + 1], 0.92, color=BLUE)
        if infinite:
            axes.bar(last + 2.5, infinite, 0.92, color=_RED, label=f"{infinite:,} infinite")
        at = np.nan if infinite else float(np.interp(metrics.nll, edges, np.arange(len(edges))))
        axes.axvline(at, color=ORANGE, linewidth=1.2, label=mean)
        ticks = [i for i in range(last + 2) if i < len(edges) and edges[i] in (0, *2.0 ** np.arange(-3, 7))]
        axes.set_xticks(ticks, [f"{edges[i]:g}" for i in ticks])
        axes.set(yscale="log", ylim=(0.7, None), xlim=(0, None), xlabel="NLL in nats", ylabel="rows")
        legend(axes)
        upto = (np.cumsum(bars) / max(1, metrics.rows)).tolist()
        said = ", ".join(f"{upto[i - 1]:.1%} below {edges[i]:g}" for i in ticks if i)
        return svg(figure, "losses", "Number of rows by loss", f"{mean} nats; of the rows {said}; {infinite} infinite.")


def classes(metrics: Metrics, name: str = "classes") -> str:
    """The recall of every class, or of the worst where there are many."""
    found = metrics.by_class
    known = np.flatnonzero(found.rows)
    chosen = known[np.lexsort((known, found.recall[known]))[:_BARS]]
    if len(known) <= _BARS:
        chosen = known
    whole, recall = len(chosen) == len(known), found.recall[chosen]
    with new_figure() as figure:
        axes = figure.add_subplot()
        place = np.arange(len(chosen))
        axes.bar(place, recall, 0.8, color=BLUE)
        axes.plot(place, recall, "o", color=BLUE, markersize=2.5)  # as above
        axes.axhline(metrics.accuracy, color=ORANGE, linewidth=1.2, label=f"all rows {metrics.accuracy:.1%}")
        shown = place[:: -(-len(place) // 12)]
        axes.set_xticks(shown, [str(label) for label in chosen[shown]], rotation=90 if chosen.max() > 99 else 0)
        axes.set(ylim=(-0.02, 1.02), ylabel="recall", xlabel="class" if whole else "classes, worst first")
        legend(axes)
        said = ", ".join(f"{label}: {value:.1%}" for label, value in zip(chosen.tolist(), recall.tolist()))
        which = "" if whole else f" of the {len(chosen)} worst classes"
        return svg(figure, name, f"Recall by class{which}", f"By class: {said}; of all rows {metrics.accuracy:.1%}.")


@contextmanager
def new_figure():
    """A figure in the page's colours."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif", "axes.edgecolor": _INK,
        "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK,
        "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "crossent",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield Figure((4.8, 3.9), layout="constrained")


def legend(axes) -> None:
    """Above the axes, where there are no bars."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)


def svg(figure, name: str, title: str, said: str) -> str:
    """The same for the same numbers, with ids that no other plot of the page has; `title` and `said` for who hears."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\b(id=\"|href=\"#|url\(#)", rf"\g<1>{name}-", text)
    heard = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(said)}</desc>'
    role = f'<svg role="img" aria-labelledby="{name}-title" aria-describedby="{name}-desc"'
    head, _, rest = text.removeprefix("<svg").partition(">")
    return f"{role}{head}>{heard}{rest}"
