"""The plots of the pages, drawn whenever these are built: of the tables in the README, and an explanation's own."""

import io
import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
COLOURS = {"light": "#37474f", "dark": "#cfd8dc"}  # of text and axes
HEADS = {
    "torch chunked, default / step": "PyTorch, in chunks as they come",
    "torch chunked, best / step": "PyTorch, in chunks of its best size",
    "torch reference / step": "PyTorch, all logits at once",
}
PALETTE = ("#f28e2b", "#4e79a7", "#9aa5b1")


def table(title: str) -> list[dict[str, str]]:
    """The rows of the README's table below the line that starts with this title; an empty cell is the one above."""
    lines = README.read_text(encoding="utf-8").splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(title))
    cells = [re.findall(r" *([^|]*?) *\|", line[1:]) for line in lines[at + 2 :] + [""]]
    heading, rows = cells[0], cells[2 : cells.index([])]
    for above, row in zip(rows, rows[1:]):
        row[:] = [cell or previous for cell, previous in zip(row, above)]
    return [dict(zip(heading, row, strict=True)) for row in rows]


def number(cell: str) -> float:
    """The number that a cell starts with, whatever marks and units it has."""
    return float(re.match(r"\**([\d.]+)", cell)[1])


def steps() -> tuple[list[str], dict[str, list[float]]]:
    """Cases, and how many times longer PyTorch takes for a training step."""
    rows = [row for row in table("As installed") if row["mode"] == "step" and "softmax" not in row["case"]]
    series = {f"PyTorch, {name}": [number(row[name]) for row in rows] for name in ("eager", "compile")}
    return [row["case"] for row in rows], series


def heads() -> tuple[list[str], dict[str, list[float]]]:
    """Cases of the fused head, and how many times longer PyTorch takes for a training step."""
    ratios = {(row["case"], row["measured"]): number(row["ratio"]) for row in table("The fused head")}
    cases = [case for case in dict.fromkeys(case for case, _ in ratios) if all((case, m) in ratios for m in HEADS)]
    return cases, {rival: [ratios[case, measured] for case in cases] for measured, rival in HEADS.items()}


def memory() -> tuple[list[str], dict[str, list[float]]]:
    """Memory that a step takes on top of its logits, in sizes of the logits."""
    rows = {row["measured"]: number(row["result"]) for row in table("Beside PyTorch")}
    names = {"torch": "step, torch", "crossent": "step, crossent", "crossent, in place": "step in place, crossent"}
    return list(names), {"": [rows[f"extra memory, {name}"] for name in names.values()]}


PLOTS = {
    "steps": (steps, "time / crossent's time", 1.0),
    "heads": (heads, "time / crossent's time", 1.0),
    "memory": (memory, "extra memory / the logits", None),
}


def svg(name: str, scheme: str) -> bytes:
    """Grouped bars of a plot, for a light or a dark page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    measure, label, mark = PLOTS[name]
    cases, series = measure()
    colour, height = COLOURS[scheme], 0.8 / len(series)
    settings = {"svg.hashsalt": name, "font.size": 9, "text.color": colour, "axes.edgecolor": colour}
    settings |= {"axes.labelcolor": colour, "xtick.color": colour, "ytick.color": colour}
    with rc_context(settings):
        figure = Figure(figsize=(7.6, 0.9 + 0.17 * len(cases) * (len(series) + 1)), layout="constrained")
        ax = figure.subplots()
        for at, (rival, values) in enumerate(series.items()):
            places = [case + (at - (len(series) - 1) / 2) * height for case in range(len(cases))]
            bars = ax.barh(places, values, 0.9 * height, label=rival, color=PALETTE[at])
            ax.bar_label(bars, [f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in values], padding=3)
        if mark:
            ax.axvline(mark, color=colour, lw=1, ls=":")
            figure.legend(frameon=False, loc="outside upper left", ncols=len(series))
        ax.set(xlabel=label, yticks=range(len(cases)), yticklabels=cases)
        ax.invert_yaxis()
        ax.margins(x=0.1)
        ax.spines[["top", "right"]].set_visible(False)
        written = io.BytesIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return written.getvalue()


def explanation() -> bytes:
    """What `crossent explain --plot` draws of the worked example."""
    from matplotlib import rc_context

    import crossent
    from crossent.explanation._command import worked_example

    written = io.BytesIO()
    with rc_context({"svg.hashsalt": "explanation"}):
        crossent.explain(*worked_example()).plot().savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()
