"""Part 3: logits of a language model's size, measured as `crossent bench` does, beside PyTorch."""

from rich.console import Console

from crossent.tools.bench import report, runner
from crossent.tools.bench.cases import case_of
from crossent.tools.bench.memory import available
from crossent.tools.bench.rivals import RIVALS

ROWS, CLASSES, ROUNDS = 2048, 32_000, 9


def show(console: Console) -> list[str]:
    rows = ROWS
    while (case := case_of((rows, CLASSES), "float32", "cross_entropy", "cpu")) and rows > 64:
        if runner.COPIES * case.size <= available():
            break
        rows //= 2
    results = runner.run([case], ROUNDS, console, {"eager": RIVALS["eager"]})
    report.show(console, results)
    return [f"large logits: {row['error']}" for row in results["results"] if "error" in row]
