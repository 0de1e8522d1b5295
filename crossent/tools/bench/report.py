"""The results of `crossent bench` as tables."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from crossent.tools.bench.memory import in_megabytes
from crossent.tools.bench.rivals import LIMIT, RIVALS, Rival

NOTE = (
    "Time: the median of rounds in which both have their turn; faster: the median of the rounds' ratios. A step is"
    " forward, backward and freeing the gradients, evaluation the loss alone. Memory: the peak beside the arguments,"
    " gradients included; - where the system does not say."
)
UNITS = (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")
RATES = {"bytes": (1e9, "GB/s", "a copy of as many bytes"), "flops": (1e12, "TFLOP/s", "the bare matrix products")}


@dataclass(frozen=True)
class Sheet:
    title: str
    heading: tuple[str, ...]
    rows: list[tuple[str, ...]]
    names: int  # how many columns, on the left, are words

    def table(self, **style) -> Table:
        found = Table(title=self.title, title_justify="left", **style)
        for at, heading in enumerate(self.heading):
            found.add_column(heading, justify="left" if at < self.names else "right", no_wrap=at > 0)
        for row in self.rows:
            found.add_row(*row)
        return found


def once(rows: list[tuple[str, ...]], columns: int = 1) -> list[tuple[str, ...]]:
    """The rows, with the first cells left empty where the row above has the same first one."""
    above = [None, *(row[0] for row in rows)]
    return [("",) * columns + row[columns:] if row[0] == name else row for row, name in zip(rows, above)]


def show(console: Console, results: dict, rivals: dict[str, Rival] = RIVALS) -> None:
    for case in results["cases"]:
        rows, limits = measured(results, case)
        if rows:
            console.print(_table(case, rows, rivals))
        for row in limits:
            console.print(_share(case, row))
    for row in results["results"]:
        if "error" in row:
            mode = f", {row['mode']}" if "mode" in row else ""
            title = (LIMIT if row["rival"] == "limit" else rivals[row["rival"]]).title
            where = f"{title}, {row['case']}{mode}"
            console.print(f"Failed: {where}: {row['error']}", style="red", markup=False)
    if results["not_measured"]:
        console.print(_not_measured(results, rivals))
    console.print(f"{NOTE}\n{_measured_on(results)}")


def measured(results: dict, case: dict) -> tuple[list[dict], list[dict]]:
    """The rows of a case: of rivals, and of what none goes below."""
    rows = [row for row in results["results"] if row["case"] == case["name"] and "ratio" in row]
    return [row for row in rows if row["rival"] != "limit"], [row for row in rows if row["rival"] == "limit"]


def in_rate(amount: dict[str, float], seconds: float) -> str:
    (what, number), *_ = amount.items()
    unit, name, _ = RATES[what]
    return f"{number / seconds / unit:.0f} {name}"


def _share(case: dict, row: dict) -> str:
    least = case["least"][row["mode"]]
    (what, _), *_ = least.items()
    ours, limit = in_rate(least, row["ours"]), in_rate(least, row["seconds"])
    return f"{row['mode']}: crossent makes {ours}, {row['ratio']:.0%} of what {RATES[what][2]} makes ({limit})"


def in_time(seconds: float) -> str:
    size, unit = next((found for found in UNITS if seconds >= found[0]), UNITS[-1])
    number = seconds / size
    return f"{number:#.3g} {unit}" if number < 99.95 else f"{number:.0f} {unit}"


def in_size(size: int | None) -> str:
    if size is None:
        return "-"
    return in_megabytes(size) if size >= 1e7 else f"{size / 1e6:.1f} MB"


def in_ratio(ratio: float) -> str:
    return f"{ratio:.2f} x" if ratio < 1 else f"{ratio:.1f} x" if ratio < 100 else f"{ratio:.0f} x"


def _table(case: dict, rows: list[dict], rivals: dict[str, Rival]) -> Table:
    title = f"{case['function']}, {case['name'].removeprefix('head, ')} (logits: {in_size(case['bytes'])})"
    heading = ("rival", "", "rival\ntime", "crossent\ntime", "faster", "rival\nmemory", "crossent\nmemory")
    cells = [
        (
            rivals[row["rival"]].title,
            row["mode"],
            in_time(row["seconds"]),
            in_time(row["ours"]),
            in_ratio(row["ratio"]) if row["ratio"] >= 1 else f"[red]{in_ratio(row['ratio'])}[/]",
            in_size(row["bytes"]),
            in_size(row["our_bytes"]),
        )
        for row in rows
    ]
    return Sheet(title, heading, once(cells), 2).table(title_style="bold", pad_edge=False, show_edge=False)


def _not_measured(results: dict, rivals: dict[str, Rival]) -> Table:
    """A row for each rival and reason."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in results["not_measured"]:
        cases.setdefault((row["rival"], row["reason"]), []).append(row["case"])
    table = Table("rival", "why", "where", title="Not measured", title_justify="left", title_style="bold")
    for (name, reason), where in cases.items():
        everywhere = len(where) == len(results["cases"])
        table.add_row(rivals[name].title, reason, "all cases" if everywhere else "\n".join(where))
    return table


def _measured_on(results: dict) -> str:
    machine = results["machine"]
    size = f"{machine['cores']} cores, {machine['threads']} threads, {machine['memory_gb']} GB"
    numbers = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    return f"{gpu}{machine['cpu']}, {size}. {numbers}."
