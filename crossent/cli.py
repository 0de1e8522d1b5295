"""The `crossent` command. Each command is a function below `_application`, with its work in a module of its own."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

NEEDED = {
    "demo": ("typer", "rich", "torch", "sklearn", "matplotlib", "tokenizers"),
    "explain": ("typer", "rich", "jinja2", "matplotlib"),
}


def main() -> None:
    _require("demo", ("typer", "rich"))
    _application()()


def _require(extra: str, modules: tuple[str, ...]) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        sys.exit(f"crossent: this command needs {', '.join(missing)}: pip install crossent[{extra}]")


def _application():
    import typer

    application = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

    @application.callback()
    def crossent() -> None:
        """Classification losses with the interface of torch.nn: the same numbers, faster, in less memory."""

    @application.command()
    def demo(output: Annotated[Path, typer.Option(help="Folder for the plots.")] = Path("demo-output")) -> None:
        """Show the losses at work: by hand, on real data and in a language model beside PyTorch. Under six minutes."""
        _require("demo", NEEDED["demo"])
        from crossent.demo import run

        raise typer.Exit(run(output))

    @application.command()
    def explain(
        files: Annotated[list[Path] | None, typer.Argument(metavar="LOGITS LABELS", help=".npy or .npz.")] = None,
        row: Annotated[list[int] | None, typer.Option(help="A row to show; may be given more than once.")] = None,
        ignore_index: Annotated[int, typer.Option(help="The label of rows that count for nothing.")] = -100,
        label_smoothing: Annotated[float, typer.Option(help="The share of targets spread over all classes.")] = 0.0,
        reduction: Annotated[str, typer.Option(help="mean, sum or none.")] = "mean",
        dim: Annotated[int | None, typer.Option(help="The class axis; 1 (of a single row 0) by default.")] = None,
        json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
        html: Annotated[Path | None, typer.Option(help="A page to write.")] = None,
        plot: Annotated[Path | None, typer.Option(help="A picture to write: .png, .svg or .pdf.")] = None,
    ) -> None:
        """Open a cross entropy and show every step: of stored logits and labels, or of a worked example.

        The exit status is 1 where something is wrong with the loss, and 2 for files that cannot be explained.
        """
        _require("explain", NEEDED["explain"])
        from crossent.explanation._command import run

        options = {
            "ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction, "dim": dim,
        }  # fmt: skip
        try:
            status = run(files or [], row or [], html, plot, json, options)
        except ValueError as error:
            print(f"crossent explain: {error}", file=sys.stderr)
            status = 2
        raise typer.Exit(status)

    return application


if __name__ == "__main__":
    main()
