"""The results of `crossent bench` as bars."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from crossent.tools.bench.report import in_quartiles, in_ratio, in_size, in_time, measured, noisy
from crossent.tools.bench.rivals import RIVALS, Rival
from crossent.tools.files import replacing

OURS, THEIRS, SLOWER = "tab:blue", "tab:grey", "tab:red"


def check_format(path: Path) -> None:
    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise ValueError(f"--plot must end in one of {', '.join('.' + name for name in sorted(known))}, got {path}")


def draw(path: Path, results: dict, rivals: dict[str, Rival] = RIVALS) -> None:
    """A row for each case: the ratios of the times on the left, the peaks of memory on the right."""
    drawn = [(case, measured(results, case)[0][::-1]) for case in results["cases"]]
    drawn = [(case, rows) for case, rows in drawn if rows]
    heights = [1.2 + 0.45 * len(rows) for _, rows in drawn] or [1.0]
    figure = Figure(figsize=(13, 0.6 + sum(heights)), layout="constrained")
    figure.suptitle("crossent and its rivals" if drawn else "Nothing was measured")
    if drawn:
        panels = figure.subplots(len(drawn), 2, squeeze=False, height_ratios=heights)
        for (case, rows), (time, memory) in zip(drawn, panels, strict=True):
            names = [f"{rivals[row['rival']].title}, {row['mode']}" for row in rows]
            _times(time, case["name"], names, rows)
            _peaks(memory, case["name"], names, rows)
    with replacing(path) as file:
        FigureCanvasAgg(figure).print_figure(file, dpi=120)


def _times(axes: Axes, case: str, names: list[str], rows: list[dict]) -> None:
    ratios = np.array([row["ratio"] for row in rows])
    colours = [OURS if ratio >= 1 else SLOWER for ratio in ratios]
    # From 1 on a logarithmic axis, where as much faster is as long as as much slower.
    axes.barh(names, ratios - 1, left=1, color=colours, height=0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(LogFormatter())  # 10, not 10 to the power of 1
    axes.xaxis.set_minor_formatter(LogFormatter())
    low, high = min(0.8, 0.8 * ratios.min()), max(1.5, ratios.max())
    axes.set_xlim(low, high * (high / low) ** 0.9)  # with room for words
    axes.axvline(1, color="black", linewidth=0.8)
    for at, row in enumerate(rows):
        times = f"{in_time(row['seconds'])}, crossent {in_time(row['ours'])}"
        ratio = f"noisy, {in_quartiles(row)}" if noisy(row) else in_ratio(row["ratio"])
        axes.annotate(f" {ratio} x: {times}", (max(1, row["ratio"]), at), va="center", fontsize=8)
    axes.set(title=f"{case}: time", xlabel="rival / crossent")


def _peaks(axes: Axes, case: str, names: list[str], rows: list[dict]) -> None:
    places = np.arange(len(rows))
    for label, key, colour, shift in (("rival", "bytes", THEIRS, 0.2), ("crossent", "our_bytes", OURS, -0.2)):
        sizes = [(row[key] or 0) / 1e6 for row in rows]
        bars = axes.barh(places + shift, sizes, 0.36, color=colour, label=label)
        axes.bar_label(bars, [in_size(row[key]) for row in rows], padding=2, fontsize=8)
    axes.set_yticks(places, names)
    axes.margins(x=0.15)
    axes.legend(loc="best", fontsize=8)
    axes.set(title=f"{case}: memory", xlabel="MB at the peak, beside the arguments")
