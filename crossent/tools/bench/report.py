"""The results of `crossent bench` as tables."""

from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table

from crossent.tools.bench.machine import in_words

NOTE = (
    "Time: the median of rounds in which both have their turn; faster: the median of the rounds' ratios, and the"
    " quartiles between which half of these lie. A step is forward, backward and freeing the gradients, evaluation the"
    " loss alone. MB: the peak of memory beside the arguments, gradients included; - where the system does not say."
)
NOISY = 1.5  # from one quartile to the other, above which a median says little
BUSY = 0.1  # of the processors at work for others, above which that is told
UNITS = (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")
RATES = {"bytes": (1e9, "GB/s", "a copy of as many bytes"), "flops": (1e12, "TFLOP/s", "the bare matrix products")}


def show(console: Console, results: dict) -> None:
    for case in results["cases"]:
        rows, limits = measured(results, case)
        if rows:
            console.print(_table(case, rows, results["titles"], console.width))
        for row in limits:
            console.print(_share(case, row))
    for row in results["results"]:
        if "error" in row:
            where = ", ".join([results["titles"][row["rival"]], row["case"], *([row["mode"]] if "mode" in row else [])])
            console.print(f"Failed: {where}: {row['error']}", style="red", markup=False)
    if results["not_measured"]:
        console.print(_not_measured(results))
    for warning in warnings(results):
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    console.print(f"{NOTE}\n{in_words(results)}")


def noisy(row: dict) -> bool:
    """Whether the rounds differ so much that their median is no result."""
    low, high = row["quartiles"]
    return not 0 < high <= NOISY * low


def warnings(results: dict) -> list[str]:
    """What was seen that makes the numbers doubtful, and what to do about it."""
    rows = [row for row in results["results"] if "ratio" in row]
    doubtful, cores = sum(map(noisy, rows)), results["machine"]["cores"]
    others = max((row["others"] for row in rows), default=0.0)
    found = []
    if doubtful:
        found.append(
            f"{doubtful} of {len(rows)} results are noisy: from round to round their ratios differ by half and"
            " more, so that only the quartiles are shown."
        )
    if others > BUSY * cores:
        found.append(f"other programs kept up to {others:.1f} of {cores} cores busy meanwhile.")
    if found:
        found[-1] += " Measure again when nothing else runs, or for longer: --rounds 50."
    return found


def measured(results: dict, case: dict) -> tuple[list[dict], list[dict]]:
    """The rows of a case: of rivals, and of what none goes below."""
    rows = [row for row in results["results"] if row["case"] == case["name"] and "ratio" in row]
    return [row for row in rows if row["rival"] != "limit"], [row for row in rows if row["rival"] == "limit"]


def in_rate(amount: dict[str, float], seconds: float) -> str:
    ((what, number),) = amount.items()
    unit, name, _ = RATES[what]
    return f"{number / seconds / unit:.0f} {name}"


def _share(case: dict, row: dict) -> str:
    least = case["least"][row["mode"]]
    ours, limit, what = in_rate(least, row["ours"]), in_rate(least, row["seconds"]), RATES[next(iter(least))][2]
    return f"{row['mode']}: crossent makes {ours}, {row['ratio']:.0%} of what {what} makes ({limit})"


def in_time(seconds: float) -> str:
    size, unit = next((found for found in UNITS if seconds >= found[0]), UNITS[-1])
    number = seconds / size
    return f"{number:#.3g} {unit}" if number < 99.95 else f"{number:.0f} {unit}"


def in_size(size: float | None) -> str:
    return "-" if size is None else f"{size / 1e6:.{int(size < 1e7)}f} MB"


def in_ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 1 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def in_quartiles(row: dict) -> str:
    return "-".join(in_ratio(max(0.0, quartile)) for quartile in row["quartiles"])


def _verdict(row: dict) -> str:
    if noisy(row):
        return "[yellow]noisy[/]"
    return f"{in_ratio(row['ratio'])} x" if row["ratio"] >= 1 else f"[red]{in_ratio(row['ratio'])} x[/]"


def _table(case: dict, rows: list[dict], titles: dict[str, str], width: int) -> Table:
    """Where it is narrow, times break between number and unit, and nothing else does."""
    title = f"{case['function']}, {case['name'].removeprefix('head, ')} (logits: {in_size(case['bytes'])})"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
        padding=(0, int(width >= 70), 0, 0),
    )  # fmt: skip
    table.add_column("rival", no_wrap=True)
    for heading in ("rival\ntime", "our\ntime", "faster", "quartiles", "rival\nMB", "our\nMB"):
        table.add_column(heading, justify="right", no_wrap="time" not in heading)
    for name, of_rival in groupby(rows, key=lambda row: row["rival"]):
        table.add_row(titles[name])
        for row in of_rival:
            times = map(in_time, (row["seconds"], row["ours"]))
            sizes = (in_size(size).removesuffix(" MB") for size in (row["bytes"], row["our_bytes"]))
            table.add_row(f"  {row['mode']}", *times, _verdict(row), in_quartiles(row), *sizes)
    return table


def _not_measured(results: dict) -> Table:
    """A row for each rival and reason."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in results["not_measured"]:
        cases.setdefault((results["titles"][row["rival"]], row["reason"]), []).append(row["case"])
    table = Table("rival", "why", "where", title="Not measured", title_justify="left", title_style="bold")
    for why, where in cases.items():
        table.add_row(*why, "all cases" if len(where) == len(results["cases"]) else "\n".join(where))
    return table
