"""The `crossent` command. Each command is a function below `_application`, with its work in a module of its own."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

NEEDED = {"demo": ("typer", "rich", "torch", "sklearn", "matplotlib", "tokenizers")}


def main() -> None:
    _require(("typer", "rich"))
    _application()()


def _require(modules: tuple[str, ...]) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        sys.exit(f"crossent: this command needs {', '.join(missing)}: pip install crossent[demo]")


def _application():
    import typer

    application = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

    @application.callback()
    def crossent() -> None:
        """Classification losses with the interface of torch.nn: the same numbers, faster, in less memory."""

    @application.command()
    def demo(output: Annotated[Path, typer.Option(help="Folder for the plots.")] = Path("demo-output")) -> None:
        """Show the losses at work: by hand, on real data and in a language model beside PyTorch. Under six minutes."""
        _require(NEEDED["demo"])
        from crossent.demo import run

        raise typer.Exit(run(output))

    return application


if __name__ == "__main__":
    main()
