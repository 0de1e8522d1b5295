"""The results as tables: on the terminal with their targets, and in Markdown for those who want the numbers alone."""

import re
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from crossent.tools.bench.machine import in_words
from crossent.tools.bench.report import in_time

RIVALS = {"eager": "PyTorch", "compile": "torch.compile"}  # as results name them, and as a reader knows them
RATIOS = (*RIVALS, "own compile", "empty compile")
ENVIRONMENTS = {False: "As installed", True: "With THP_MEM_ALLOC_ENABLE=1"}


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

    def markdown(self) -> str:
        marks = ["---" if at < self.names else "---:" for at in range(len(self.heading))]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.heading, marks, *self.rows))


def once(rows: list[tuple[str, ...]], columns: int = 1) -> list[tuple[str, ...]]:
    """The rows, with the first cells left empty where the row above has the same first one."""
    above = [None, *(row[0] for row in rows)]
    return [("",) * columns + row[columns:] if row[0] == name else row for row, name in zip(rows, above)]


def sheets(results: dict) -> list[Sheet]:
    """The tables that have any rows."""
    found = [_times(results, huge_pages, title) for huge_pages, title in ENVIRONMENTS.items()]
    of_steps = "case", "a step", "measured", "ratio"
    found.append(Sheet("The fused head", of_steps, _of_steps(results["head"], "head, "), 3))
    found.append(Sheet("Classes spread over two processes of one thread", of_steps, _of_steps(results["spread"]), 3))
    found.append(Sheet("Beside PyTorch", ("measured", "result"), _others(results), 1))
    return [sheet for sheet in found if sheet.rows]


def met(row: dict) -> bool:
    """Whether a result, which is a "ratio" or a "value", is within its limit."""
    value = row["ratio"] if "ratio" in row else row["value"]
    return row.get("at_least", value) <= value <= row.get("at_most", value)


def _times(results: dict, huge_pages: bool, title: str) -> Sheet:
    """A row for each case and mode: the time, then the ratios, marked where they miss their target."""
    known = {
        (row["case"], row["mode"], row["rival"]): row for row in results["times"] if row["huge_pages"] == huge_pages
    }
    rivals = [rival for rival in RATIOS if any(rival == key[2] for key in known)]
    rows = []
    for case, mode in dict.fromkeys(key[:2] for key in known if key[2] in RATIOS):
        cells = [known.get((case, mode, rival)) for rival in rivals]
        own = next((cell["ours"] for cell in cells if cell and "ours" in cell), None)
        rows.append((case, mode, in_time(own) if own else "-", *map(_ratio, cells)))
    return Sheet(f"{title}: time, then rival / crossent", ("case", "mode", "crossent", *rivals), once(rows), 2)


def _of_steps(results: list[dict], prefix: str = "") -> list[tuple[str, ...]]:
    rows = []
    for row in results:
        case, _, measured = row["name"].removeprefix(prefix).partition(": ")
        rows.append((case, in_time(row["seconds"]), measured, _marked(row, f"{row['value']:.3g}")))
    return once(rows, 2)


def _others(results: dict) -> list[tuple[str, ...]]:
    """Everything that is not a ratio to PyTorch's time."""
    rows = []
    for row in results["times"]:
        if row["rival"] not in RATIOS:
            how = " (THP)" if row["huge_pages"] else ""
            rows.append((f"{row['rival']} / crossent, {row['case']}{how}", _ratio(row)))
    for row in results["memory"]:
        rows.append((f"extra memory, {row['mode']}, {row['library']}", _value(row, "x the logits")))
    for row in results["head_memory"]:
        rows.append((f"extra memory of the head, {row['name']}", _value(row, "MB")))
    rows += [(f"crossent score, {row['name']}", _value(row, row["unit"]).strip()) for row in results["score"]]
    rows += [(row["name"], _value(row, "s")) for row in results["start"]]
    rates = [rate for row in results["memory_rates"] for rate in row.items()]
    return rows + [(f"{name} rate of memory", f"{rate:.1f} GB/s") for name, rate in rates]


def _ratio(row: dict | None) -> str:
    if row is None:
        return "-"
    return "(error)" if "error" in row else _marked(row, f"{row['ratio']:.2f}")


def _value(row: dict, unit: str) -> str:
    return _marked(row, f"{row['value']:.2f} {unit}")


def _marked(row: dict, text: str) -> str:
    if met(row):
        return text
    limit = f"< {row['at_least']:g}" if "at_least" in row else f"> {row['at_most']:.3g}"
    return f"{text} ({limit})"


def show(console: Console, results: dict) -> None:
    for sheet in sheets(results):
        console.print(replace(sheet, rows=[_emphasised(row, sheet) for row in sheet.rows]).table())
    failed = [
        f"{row['case']}, {row['mode']}, {row['rival']}: {row['error']}" for row in results["times"] if "error" in row
    ]
    for error in failed + results["errors"]:
        console.print(error, style="red", markup=False)


def markdown(results: dict) -> str:
    """What docs/measurements keeps of a run: the targets are for those who work on the library."""
    lines = [f"`{results['command']}`, {results['date']}.", in_words(results)]
    for sheet in sheets(results):
        kept = [at for at, heading in enumerate(sheet.heading) if heading in RIVALS or heading not in RATIOS]
        rows = [tuple(re.sub(r" \([<>] [^)]*\)$", "", row[at]) for at in kept) for row in sheet.rows]
        heading = tuple(RIVALS.get(sheet.heading[at], sheet.heading[at]) for at in kept)
        lines += ["", f"{sheet.title}:", "", replace(sheet, heading=heading, rows=rows).markdown()]
    return "\n".join(lines) + "\n"


def _emphasised(row: tuple[str, ...], sheet: Sheet) -> tuple[str, ...]:
    """The row, with the cells that miss their target made to stand out."""
    return tuple(f"[red]{cell}[/]" if at >= sheet.names and cell.endswith(")") else cell for at, cell in enumerate(row))
