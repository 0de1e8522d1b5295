"""The `crossent` command. Each command is a function here: its work is in a module, its needs in an extra of its name.

What commands there are, and what they need, is told without typer as well.
"""

from __future__ import annotations  # of which typer alone reads the values

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Annotated

import crossent
from crossent._output import end, guarded

try:
    import typer
except ModuleNotFoundError as error:
    if error.name != "typer":
        raise
else:
    # How `explain` and `score` are told to read files.
    _Key = Annotated[str | None, typer.Option(help="The logits' entry or column in a file of several.")]
    _LabelsKey = Annotated[str | None, typer.Option(help="The labels' entry or column.")]
    _Header = Annotated[bool | None, typer.Option(help="Whether the first line of text has names.")]
    _Columns = Annotated[str | None, typer.Option(help="The classes' columns: names, or numbers such as 1-10.")]
    _Logits = Annotated[bool, typer.Option("--logits", help="The numbers are logits, whatever they look like.")]
    _Probabilities = Annotated[bool, typer.Option("--probabilities", help="They are probabilities.")]
    _LogProbabilities = Annotated[bool, typer.Option("--log-probabilities", help="They are their logarithms.")]

_ANY = ("typer", "rich")  # what every command needs


def main() -> None:
    with guarded():
        try:
            if _missing(_ANY):
                _without_typer(sys.argv[1:])
            else:
                _application()()
        except OSError as error:
            end(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _missing(modules: tuple[str, ...]) -> list[str]:
    return [name for name in modules if find_spec(name) is None]


def _require(command: str, *modules: str, extra: str = "") -> None:
    if missing := _missing(modules):
        end(f"{command} needs {', '.join(missing)}: pip install crossent[{extra or command.split()[0]}]")


@contextmanager
def _bad_input() -> Iterator[None]:
    """What the caller got wrong, in a line and with exit status 2."""
    try:
        yield
    except (ValueError, TypeError, IndexError, MemoryError) as error:
        end(str(error))


def demo(output: Annotated[Path, typer.Option(help="Folder for the plots.")] = Path("demo-output")) -> None:
    """Show the losses by hand, on real data and in a language model, beside PyTorch. Under three minutes."""
    _require("demo", "torch", "sklearn", "matplotlib", "tokenizers")
    from crossent.demo import run

    raise typer.Exit(run(output))


def explain(
    files: Annotated[list[str] | None, typer.Argument(metavar="LOGITS LABELS", help="As for score.")] = None,
    key: _Key = None,
    labels_key: _LabelsKey = None,
    header: _Header = None,
    columns: _Columns = None,
    logits: _Logits = False,
    probabilities: _Probabilities = False,
    log_probabilities: _LogProbabilities = False,
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
    if html:
        _require("explain --html", "jinja2")
    if plot:
        _require("explain --plot", "matplotlib")
    from crossent.explanation._command import run
    from crossent.score.scales import asked

    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    with _bad_input():
        reading, scale = asked(key, labels_key, header, columns, dim, logits, probabilities, log_probabilities)
        status = run(files or [], reading, scale, row or [], html, plot, json, options)
    raise typer.Exit(status)


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
    _require("bench", "torch")
    if plot:
        _require("bench --plot", "matplotlib")
    from crossent.bench import command

    with _bad_input():
        cases = command.cases(shape or [], head or [], dtype or ["float32"], device)
        command.check_files(save, plot)
        status = command.bench(cases, rounds, json, save, plot)
    raise typer.Exit(status)


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
        _require("plan --library torch", "torch", extra="torch")
    from crossent import _plan_of_shapes

    given = {name: text for name, text in shapes.items() if text is not None}
    with _bad_input():
        planned = _plan_of_shapes.plan_of(function, given, dtype, library, option or [], gradient)
    _plan_of_shapes.show(planned, json)


def warmup(
    dtypes: Annotated[
        list[str] | None,
        typer.Argument(metavar="DTYPE ...", help="float16, bfloat16, float32 (if left out), float64."),
    ] = None,
) -> None:
    """Compile the kernels of common calls now, so that no first call has to wait for them.

    They are kept where numba keeps them: in the package's folder, else in the user's cache, else in a private
    folder in the temporary directory; with NUMBA_CACHE_DIR in that folder.
    """
    from crossent import _warmup

    with _bad_input():
        _warmup.run(dtypes or ["float32"])


def score(
    files: Annotated[
        list[str],
        typer.Argument(metavar="LOGITS [LABELS]", help="Both, or one file that has both.", show_default=False),
    ],
    key: _Key = None,
    labels_key: _LabelsKey = None,
    header: _Header = None,
    columns: _Columns = None,
    logits: _Logits = False,
    probabilities: _Probabilities = False,
    log_probabilities: _LogProbabilities = False,
    dim: Annotated[int | None, typer.Option(help="The class axis; 1 by default.")] = None,
    ignore_index: Annotated[int, typer.Option(help="The label of rows that do not count.")] = -100,
    top: Annotated[int, typer.Option(min=0, help="How many of the worst classes and rows are shown.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every class.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots to this file as well.")] = None,
) -> None:
    """Score stored predictions: NLL, accuracy, calibration, the worst classes and rows.

    Files are .npy, .npz, .safetensors, .pt, .parquet, or text: .csv, .tsv, .txt,
    also .gz of these. A pattern in quotes, as in 'logits-*.npy', stands for
    shards, which are read in the order of their numbers. Files may be larger
    than memory. What was taken for what is said on standard error.

    Exit status 0: all is well.
    Exit status 2: the files cannot be scored, or the command line is wrong.
    Exit status 130: interrupted, after the score of the rows so far.
    """
    if html:
        _require("score --html", "jinja2", "matplotlib")
    from crossent.score.command import run
    from crossent.score.scales import asked

    with _bad_input():
        reading, scale = asked(key, labels_key, header, columns, dim, logits, probabilities, log_probabilities)
    status = run(files, as_json=as_json, html=html, top=top, reading=reading, scale=scale, ignore_index=ignore_index)
    raise typer.Exit(status)


COMMANDS = {function.__name__: function for function in (demo, explain, bench, plan, score, warmup)}


def _application():
    application = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    application.callback()(_crossent)
    for function in COMMANDS.values():
        application.command()(function)
    return application


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"crossent {crossent.__version__}")
        raise SystemExit(0)


def _crossent(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show it.")] = False,
) -> None:
    """Classification losses with the interface of torch.nn: the same numbers, faster, in less memory."""


def _without_typer(arguments: list[str]) -> None:
    """The version, what commands there are, or what to install for one."""
    first = arguments[0] if arguments else "--help"
    _show_version(first == "--version")
    if first in COMMANDS:
        _require(first, *_ANY)
    if first != "--help":
        end(f"there is no command {first!r}; crossent --help shows those there are")
    print(f"{inspect.getdoc(_crossent)}\nIts commands need packages that the library does without.")
    for name, function in COMMANDS.items():
        purpose = inspect.getdoc(function).partition("\n\n")[0]
        print(f"\ncrossent {name}: pip install crossent[{name}]")
        print(fill(purpose, 80, initial_indent="    ", subsequent_indent="    "))


if __name__ == "__main__":
    main()
