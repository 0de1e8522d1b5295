"""`crossent demo`."""

from __future__ import annotations  # of which typer alone reads the values

from pathlib import Path
from typing import Annotated

from crossent.tools.commands.common import require, typer


def demo(output: Annotated[Path, typer.Option(help="Folder for the plots.")] = Path("demo-output")) -> None:
    """Show the losses by hand, on real data and in a language model, beside PyTorch. Under three minutes."""
    require("demo", "torch", "sklearn", "matplotlib", "tokenizers")
    from crossent.tools.demo import run

    raise typer.Exit(run(output))
