"""The `crossent` command. Each command is a function below `_application`, with its work in a module of its own."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

NEEDED = {
    "bench": ("typer", "rich", "torch", "matplotlib"),
    "demo": ("typer", "rich", "torch", "sklearn", "matplotlib", "tokenizers"),
    "explain": ("typer", "rich", "jinja2", "matplotlib"),
    "score": ("typer", "rich", "jinja2", "matplotlib"),
}


def main() -> None:
    _require("demo", ("typer", "rich"))
    _application()()


def _require(extra: str, modules: tuple[str, ...]) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        sys.exit(f"crossent: this command needs {', '.join(missing)}: pip install crossent[{extra}]")


@contextmanager
def _bad_input() -> Iterator[None]:
    """What the caller got wrong, in a line and with exit status 2."""
    try:
        yield
    except (ValueError, TypeError, IndexError, MemoryError) as error:
        print(f"crossent: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _application():
    import typer

    application = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

    @application.callback()
    def crossent() -> None:
        """Classification losses with the interface of torch.nn: the same numbers, faster, in less memory."""

    @application.command()
    def demo(output: Annotated[Path, typer.Option(help="Folder for the plots.")] = Path("demo-output")) -> None:
        """Show the losses by hand, on real data and in a language model, beside PyTorch. Under three minutes."""
        _require("demo", NEEDED["demo"])
        from crossent.demo import run

        raise typer.Exit(run(output))

    @application.command()
    def explain(
        files: Annotated[list[Path] | None, typer.Argument(metavar="LOGITS LABELS", help="As for score.")] = None,
        key: Annotated[str | None, typer.Option(help="The logits' entry or column in a file of several.")] = None,
        labels_key: Annotated[str | None, typer.Option(help="The labels' entry or column.")] = None,
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
        with _bad_input():
            status = run(files or [], (key, labels_key), row or [], html, plot, json, options)
        raise typer.Exit(status)

    @application.command()
    def bench(
        shape: Annotated[
            list[str] | None, typer.Option(metavar="SHAPE", help="Of logits, such as 2048x32000; may be repeated.")
        ] = None,
        head: Annotated[
            list[str] | None,
            typer.Option(metavar="SHAPE", help="Of a fused head: tokens x features x classes, such as 2048x512x32768."),
        ] = None,
        dtype: Annotated[
            list[str] | None,
            typer.Option(metavar="DTYPE", help="float16, bfloat16, float32 (if left out), float64; may be repeated."),
        ] = None,
        device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
        rounds: Annotated[int, typer.Option(min=2, help="Rounds of each comparison, at least.")] = 3,
        json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
        save: Annotated[Path | None, typer.Option(help="A file for the JSON.")] = None,
        plot: Annotated[Path | None, typer.Option(help="A file for bars of time and memory: .png, .svg, .pdf.")] = None,
    ) -> None:
        """Measure time and memory on this machine, beside every other library with these losses that is installed.

        The rivals: PyTorch's own losses, compiled ones and its chunked head, SciPy, scikit-learn and optax, and on a
        GPU Liger-Kernel and cut-cross-entropy. Without a shape or a head two shapes and a head are measured, in about
        two minutes.
        """
        _require("bench", NEEDED["bench"])
        from crossent.bench import command

        with _bad_input():
            cases = command.cases(shape or [], head or [], dtype or ["float32"], device)
            command.check_files(save, plot)
            status = command.bench(cases, rounds, json, save, plot)
        raise typer.Exit(status)

    @application.command()
    def plan(
        function: Annotated[str, typer.Argument(metavar="FUNCTION", help="Of crossent.")],
        shape: Annotated[str, typer.Option(metavar="SHAPE", help="Of the input, such as 2048x32000.")],
        target: Annotated[
            str | None,
            typer.Option(metavar="SHAPE", help="Labels that fit if left out; with an axis of classes: probabilities."),
        ] = None,
        linear_weight: Annotated[str | None, typer.Option(metavar="SHAPE", help="Classes x features.")] = None,
        linear_bias: Annotated[str | None, typer.Option(metavar="SHAPE", help="Classes.")] = None,
        weight: Annotated[str | None, typer.Option(metavar="SHAPE", help="Classes.")] = None,
        sample_weight: Annotated[str | None, typer.Option(metavar="SHAPE", help="That of the labels.")] = None,
        dtype: Annotated[str, typer.Option(metavar="DTYPE", help="float16, bfloat16, float32 or float64.")] = "float32",
        library: Annotated[str, typer.Option(metavar="LIBRARY", help="torch or numpy.")] = "torch",
        option: Annotated[
            list[str] | None,
            typer.Option(metavar="NAME=VALUE", help="Any other argument: reduction=none, shift=1; may be repeated."),
        ] = None,
        gradient: Annotated[bool, typer.Option(help="Whether input, linear weight and bias require one.")] = True,
        json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    ) -> None:
        """Say what a call with arrays of these shapes would do, without doing it: the code, the memory and the reasons.

        FUNCTION is softmax, log_softmax, nll_loss, cross_entropy, prediction_stats, linear_cross_entropy or
        linear_token_stats.
        """
        shapes = {
            "input": shape,
            "target": target,
            "linear_weight": linear_weight,
            "linear_bias": linear_bias,
            "weight": weight,
            "sample_weight": sample_weight,
        }
        if library == "torch":
            _require("torch", ("torch",))
        from crossent import _plan_of_shapes

        given = {name: text for name, text in shapes.items() if text is not None}
        with _bad_input():
            planned = _plan_of_shapes.plan_of(function, given, dtype, library, option or [], gradient)
        _plan_of_shapes.show(planned, json)

    @application.command()
    def score(
        logits: Annotated[str, typer.Argument(help="Logits of shape (rows, classes).", show_default=False)],
        labels: Annotated[str, typer.Argument(help="Integer labels of shape (rows,).", show_default=False)],
        key: Annotated[str | None, typer.Option(help="The logits' entry or column in a file of several.")] = None,
        labels_key: Annotated[str | None, typer.Option(help="The labels' entry or column.")] = None,
        ignore_index: Annotated[int, typer.Option(help="The label of rows that do not count.")] = -100,
        top: Annotated[int, typer.Option(min=0, help="How many of the worst classes and rows are shown.")] = 10,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every class.")] = False,
        html: Annotated[Path | None, typer.Option(help="Write a page with plots to this file as well.")] = None,
    ) -> None:
        """Score stored predictions: NLL, accuracy, calibration, the worst classes and rows.

        Files are .npy, .npz, .safetensors, .pt, .csv or .parquet. A pattern in
        quotes, as in 'logits-*.npy', stands for shards, which are read in the
        order of their numbers. Files may be larger than memory.

        Exit status 0: all is well.
        Exit status 2: the files cannot be scored, or the command line is wrong.
        Exit status 130: interrupted, after the score of the rows so far.
        """
        _require("score", NEEDED["score"])
        from crossent.score.command import run

        raise typer.Exit(
            run(
                logits, labels, as_json=as_json, html=html, top=top, key=key, labels_key=labels_key,
                ignore_index=ignore_index,
            )
        )  # fmt: skip

    return application


if __name__ == "__main__":
    main()
