"""`crossent demo`: the losses by hand, on real data beside PyTorch, on large logits, and in a language model."""

from pathlib import Path


def run(output: Path) -> int:
    """Runs the parts, printing as it goes. Returns the exit status: 0 where everything shown holds."""
    from rich.console import Console

    output.mkdir(parents=True, exist_ok=True)  # or it fails now, and not after minutes
    console = Console(highlight=False, markup=False)
    with console.status("Loading PyTorch"):
        from crossent.tools.demo import language_model, large_logits, training, worked_example
    parts = {
        "A worked example": worked_example.show,
        "Handwritten digits": lambda console: training.show(console, output),
        "Logits of a language model's size": large_logits.show,
        "A language model": lambda console: language_model.show(console, output),
    }
    failures = []
    for number, (title, show) in enumerate(parts.items(), start=1):
        console.print()
        console.rule(f"{number}. {title}", align="left", style="cyan")
        console.print()
        failures += show(console)
    for failure in failures:
        console.print(f"Not as promised: {failure}", style="bold red")
    return 1 if failures else 0
