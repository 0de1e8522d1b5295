"""The plots of the pages, drawn whenever these are built: of the tables of one machine, and an explanation's own.

Run as a program it prints the table that the README has of the same numbers.
"""

import io
import re
from pathlib import Path

MEASURED = Path(__file__).parents[1] / "measurements/amd-epyc.md"
COLOURS = {"light": "#37474f", "dark": "#cfd8dc"}  # of text and axes
HEADS = {
    "torch chunked, default / step": "PyTorch, in chunks as they come",
    "torch chunked, best / step": "PyTorch, in chunks of its best size",
    "torch reference / step": "PyTorch, all logits at once",
}
PALETTE = ("#f28e2b", "#4e79a7", "#9aa5b1")


def table(title: str) -> list[dict[str, str]]:
    """The rows of the table below the line that starts with this title; an empty cell is the one above."""
    lines = MEASURED.read_text(encoding="utf-8").splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(title))
    cells = [re.findall(r" *([^|]*?) *\|", line[1:]) for line in lines[at + 2 :] + [""]]
    heading, rows = cells[0], cells[2 : cells.index([])]
    for above, row in zip(rows, rows[1:]):
        row[:] = [cell or previous for cell, previous in zip(row, above)]
    return [dict(zip(heading, row, strict=True)) for row in rows]


def number(cell: str) -> float:
    """The number that a cell starts with, whatever its unit."""
    return float(re.match(r"[\d.]+", cell)[0])


def steps() -> tuple[list[str], dict[str, list[float]]]:
    """Cases, and how many times longer PyTorch takes for a training step."""
    rows = [row for row in table("As installed") if row["mode"] == "step" and "softmax" not in row["case"]]
    series = {name: [number(row[name]) for row in rows] for name in ("PyTorch", "torch.compile")}
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


def drawn(name: str):
    """Grouped bars of a plot, with a legend that is as wide as the figure at most."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    from crossent.tools.bench.plot import bars

    measure, label, mark = PLOTS[name]
    cases, series = measure()
    said = {
        rival: (values, [f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in values])
        for rival, values in series.items()
    }
    figure = Figure(figsize=(5, 0.9 + 0.17 * len(cases) * (len(series) + 1)), layout="constrained")
    ax = figure.subplots()
    bars(ax, cases, said, PALETTE)
    if mark:
        ax.axvline(mark, color=rcParams["text.color"], lw=1, ls=":")
        columns = len(series) if len("".join(series)) < 40 else 1
        figure.legend(frameon=False, loc="outside upper left", ncols=columns)
    ax.set(xlabel=label)
    ax.margins(x=0.1)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def svg(name: str, scheme: str) -> bytes:
    """The plot for a light or a dark page."""
    from matplotlib import rc_context

    colour, buffer = COLOURS[scheme], io.BytesIO()
    settings = {"svg.hashsalt": name, "font.size": 9, "text.color": colour, "axes.edgecolor": colour}
    settings |= {"axes.labelcolor": colour, "xtick.color": colour, "ytick.color": colour}
    with rc_context(settings):
        drawn(name).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def in_words(name: str) -> str:
    """The numbers that a plot shows."""
    cases, series = PLOTS[name][0]()
    bars = [[f"{rival} {value:g}".strip() for rival, value in zip(series, values)] for values in zip(*series.values())]
    return "; ".join(f"{case}: {', '.join(of_case)}" for case, of_case in zip(cases, bars))


def explanation() -> bytes:
    """What `crossent explain --plot` draws of the worked example."""
    from matplotlib import rc_context

    import crossent
    from crossent.tools.explain.command import worked_example

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "explanation"}):
        crossent.explain(*worked_example()).plot().savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


# What the README has, as text: an index of packages shows no pictures of the repository.

ENVIRONMENTS = ("As installed", "With THP")
TRAINED = {
    "images, 1,000 classes": "4096 x 1000",
    "segmentation, 19 classes": "4 x 19 x 512 x 512",
    "a language model's logits": "2048 x 32000",
    "the same in 16 bits": "2048 x 32000, bfloat16",
    "a batch as small as": "32 x 10",
}
FUSED = "2048 x 512 x 32768, float32"
UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}


def _steps(title: str) -> dict[str, dict[str, str]]:
    return {row["case"]: row for row in table(title) if row["mode"] == "step"}


def seconds(cell: str) -> float:
    return number(cell) * UNITS[cell.split()[-1]]


def written(time: float) -> str:
    unit = next(unit for unit, size in UNITS.items() if time >= size)
    return f"{time / UNITS[unit]:.3g} {unit}"


def gain(ratio: float) -> str:
    return f"{ratio:.1f} x" if ratio > 1.1 else "no gain"


def gains() -> str:
    """Training steps that people make: PyTorch's time, crossent's, and how many times less that is."""
    rows = [("what you train", "logits", "PyTorch", "crossent", "faster", "with huge pages")]
    rows.append(("---", "---", *["---:"] * 4))
    installed, huge = map(_steps, ENVIRONMENTS)
    for what, case in TRAINED.items():
        ratio, own = number(installed[case]["PyTorch"]), seconds(installed[case]["crossent"])
        ratios = gain(ratio), gain(number(huge[case]["PyTorch"]))
        rows.append((what, case, written(own * ratio), written(own), *ratios))
    head = {row["measured"]: row for row in table("The fused head") if row["case"] == FUSED}
    best, default = (number(head[f"torch chunked, {how} / step"]["ratio"]) for how in ("best", "default"))
    own = seconds(head["torch chunked, best / step"]["a step"])
    ratios = f"{gain(best)} at its best chunk, {gain(default)} as it comes", "-"
    rows.insert(-1, ("its head and loss in one", "2048 x 512 x 32768", written(own * best), written(own), *ratios))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


if __name__ == "__main__":
    print(gains())
