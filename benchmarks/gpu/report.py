"""The measurements as a table: each beside what is demanded and what is aimed at."""

from rich.console import Console

from benchmarks.report import Sheet, met, once
from crossent.tools.bench.machine import in_words
from crossent.tools.bench.report import in_rate, in_time

HEADING = "case", "measured", "result", "demand", "aim", "step", "rate"
EPILOGUE = (
    "a / b: the time of a in proportion to that of b, the median of rounds in which each has its turn; read and copy"
    " move as many bytes as a forward pass and a step have to, the products are those of a head's own gradient."
)


def sheet(results: dict) -> Sheet:
    return Sheet("On a GPU", HEADING, once([_row(row) for row in results["results"]]), 2)


def _row(row: dict) -> tuple[str, ...]:
    case, _, measured = row["name"].partition(": ")
    name = "at_least" if "at_least" in row else "at_most"
    demand = f"{'at least' if name == 'at_least' else 'at most'} {row[name]:g}" if name in row else ""
    aim = f"{row['aim']:g}" if "aim" in row else ""
    return case, measured, _result(row), demand, aim, in_time(row["seconds"]), in_rate(row["least"], row["seconds"])


def _result(row: dict) -> str:
    if "missing" in row:
        return f"- ({row['missing']})"
    return f"{row['value']:.3g}" if met(row) else f"{row['value']:.3g} (missed)"


def show(console: Console, results: dict) -> None:
    for check in results["checks"]:
        console.print(f"{check['name']}: {check['outcome']}", markup=False)
    if results["results"]:
        console.print(sheet(results).table())
    for error in results["errors"]:
        console.print(error, style="red", markup=False)
    console.print(f"{EPILOGUE}\n{in_words(results)} {results['date']}.", markup=False)


def markdown(results: dict) -> str:
    checks = [f"- {check['name']}: {check['outcome']}" for check in results["checks"]]
    lines = [f"{in_words(results)} {results['date']}.", "", *checks, *([""] if checks else [])]
    return "\n".join([*lines, sheet(results).markdown(), "", EPILOGUE]) + "\n"
