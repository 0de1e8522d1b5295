"""The results of `crossent bench` as bars."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from crossent.tools.bench.report import in_quartiles, in_ratio, in_size, in_time, measured, noisy
from crossent.tools.files import replacing

Series = Mapping[str, tuple[Sequence[float], Sequence[str]]]  # by name, the values and what is said of each


def check_format(path: Path) -> None:
    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise ValueError(f"--plot must end in one of {', '.join('.' + name for name in sorted(known))}, got {path}")


def draw(path: Path, results: dict) -> None:
    """A row for each case: the times on the left, the peaks of memory on the right."""
    drawn = [(case, rows) for case in results["cases"] if (rows := measured(results, case)[0])]
    heights = [1.2 + 0.5 * len(rows) for _, rows in drawn] or [1.0]
    figure = Figure(figsize=(13, 0.6 + sum(heights)), layout="constrained")
    figure.suptitle("crossent and its rivals" if drawn else "Nothing was measured")
    panels = figure.subplots(len(drawn), 2, squeeze=False, height_ratios=heights) if drawn else ()
    for (case, rows), (left, right) in zip(drawn, panels, strict=True):
        names = [f"{results['titles'][row['rival']]}, {row['mode']}" for row in rows]
        seconds, own = [row["seconds"] for row in rows], [row["ours"] for row in rows]
        gains = [f"noisy, {in_quartiles(row)}" if noisy(row) else in_ratio(row["ratio"]) for row in rows]
        said = [f"{in_time(time)}: {gain} x faster" for time, gain in zip(own, gains)]
        times = {"rival": (seconds, [in_time(time) for time in seconds]), "crossent": (own, said)}
        peaks = {
            name: ([row[key] or 0 for row in rows], [in_size(row[key]) for row in rows])
            for name, key in (("rival", "bytes"), ("crossent", "our_bytes"))
        }
        for axes, series, label, unit in (
            (left, times, "time of a call", "s"),
            (right, peaks, "memory at the peak, beside the arguments", "B"),
        ):
            bars(axes, names, series, ("tab:grey", "tab:blue"))
            axes.legend(loc="best", fontsize=8)
            axes.margins(x=0.25)
            axes.set(title=case["name"], xlabel=label)
            axes.xaxis.set_major_formatter(EngFormatter(unit))
    with replacing(path) as file:
        FigureCanvasAgg(figure).print_figure(file, dpi=120)


def bars(axes: Axes, names: Sequence[str], series: Series, colours: Sequence[str]) -> None:
    """A group of bars for each name, from above, with what is said of each bar beside it."""
    height = 0.8 / len(series)
    for at, ((label, (values, said)), colour) in enumerate(zip(series.items(), colours)):
        places = [place + (at - (len(series) - 1) / 2) * height for place in range(len(names))]
        axes.bar_label(axes.barh(places, values, 0.9 * height, label=label, color=colour), said, padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
