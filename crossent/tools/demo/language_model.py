"""Part 4: a transformer trained on Python's own source with PyTorch's head and with the fused one, step by step."""

import inspect
import statistics
import time
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from crossent.tools.bench import memory
from crossent.tools.bench.report import in_size
from crossent.tools.demo.transformer import DEMO, HEADS, Settings, seeded_model, tokenized, train

# After so many seconds no further step is begun: a slow machine trains less, not longer.
TIME_LIMIT = 120
LARGEST_DIFFERENCE = 1e-3  # of a loss; float32 rounding, which the steps carry on
LAST_STEPS = 10  # whose mean is the loss that training ended with

Records = dict[str, NDArray[np.float64]]


def show(console: Console, output: Path, settings: Settings = DEMO) -> list[str]:
    with console.status("Training a tokenizer"):
        texts, tokens = tokenized(settings)
    rows, classes, size = settings.batch * settings.length, settings.vocabulary, _logits_bytes(settings)
    # The gradient and two averages for each parameter.
    kept = 3 * 4 * sum(parameter.numel() for parameter in seeded_model(settings).parameters())
    console.print(
        f"{len(texts)} source files of Python's standard library, {len(tokens) / 1e6:.1f} million tokens of a byte-pair"
        f" vocabulary of {classes:,} made from them. A transformer of {settings.layers} layers and {settings.features}"
        " features learns to predict the next token, twice, from the same seed on the same batches. The logits of a"
        f" step are {rows} x {classes} ({in_size(size)}). With torch and with crossent:\n"
    )
    for head in HEADS.values():
        console.print(inspect.getsource(head), style="green")
    with Progress(console=console, transient=True, disable=not console.is_terminal, refresh_per_second=2) as progress:
        records = train_in_turns(progress, tokens, settings)
    console.print(_table(records, settings))
    console.print(
        f"In {len(records['torch'])} steps the losses never differ by more than {_difference(records):.0e} of their"
        f" value. Tokens per second: of the median step, on {torch.get_num_threads()} threads. Peak memory: of a"
        " process of its own, beyond what it held before its first step;"
        f" {in_size(kept)} of that, for either head, are gradients and AdamW's averages."
    )
    console.print(f"The curves: {_plot(records, settings, output)}")
    return _failures(records)


def _logits_bytes(settings: Settings) -> int:
    return 4 * settings.batch * settings.length * settings.vocabulary


def train_in_turns(progress: Progress, tokens: torch.Tensor, settings: Settings) -> Records:
    """For each head a row for each step: the loss in nats, the seconds it took, and the peak memory so far in bytes.

    Each trains in a process of its own, for a peak of its own; they take turns, so that the machine's moods fall on
    both alike.
    """
    rows, pipes, spawning = {name: [] for name in HEADS}, {}, get_context("spawn")
    for name in HEADS:
        pipes[name], theirs = spawning.Pipe()
        spawning.Process(target=_serve, args=(theirs, name, tokens.numpy(), settings), daemon=True).start()
        theirs.close()  # or the end of the process would not be seen
    task = progress.add_task("Starting a process for each", total=settings.steps)
    for pipe in pipes.values():
        pipe.recv()
    end = time.monotonic() + TIME_LIMIT
    while len(rows["torch"]) < settings.steps and time.monotonic() < end:
        for name, pipe in pipes.items():
            pipe.send("step")
            rows[name].append(pipe.recv())
        losses = ", ".join(f"{name} {found[-1][0]:.4f}" for name, found in rows.items())
        progress.update(task, description=f"Loss: {losses}", advance=1)
    for pipe in pipes.values():
        pipe.close()
    return {name: np.array(found) for name, found in rows.items()}


def _serve(pipe: Connection, name: str, tokens: NDArray[np.int64], settings: Settings) -> None:
    """Trains a step whenever it is told to, and answers with what it took."""
    # A small training loads what there is to load, which is no part of the peak.
    small = Settings(vocabulary=64, features=32, layers=1, batch=1, length=8, steps=2)
    list(train(seeded_model(small), HEADS[name], torch.arange(64), small))
    losses = train(seeded_model(settings), HEADS[name], torch.from_numpy(tokens), settings)
    pipe.send("ready")
    before = memory.resident()
    with suppress(EOFError):
        while pipe.recv():
            start = time.perf_counter()
            loss = next(losses)
            pipe.send((loss, time.perf_counter() - start, memory.peak() - before))


def _tokens_per_second(records: Records, settings: Settings) -> dict[str, float]:
    return {name: settings.batch * settings.length / statistics.median(rows[:, 1]) for name, rows in records.items()}


def _peaks(records: Records) -> dict[str, float]:
    return {name: rows[-1, 2] for name, rows in records.items()}


def _difference(records: Records) -> float:
    """The largest of any step, relative to torch's loss."""
    theirs, ours = records["torch"][:, 0], records["crossent"][:, 0]
    return float((np.abs(ours - theirs) / theirs).max())


def _table(records: Records, settings: Settings) -> Table:
    heads = "first loss", f"last {LAST_STEPS}", "tokens per second", "faster", "peak memory", "of the logits"
    table = Table("", *(Column(head, justify="right") for head in heads))
    speeds, peaks = _tokens_per_second(records, settings), _peaks(records)
    for name, rows in records.items():
        losses = (f"{loss:.4f}" for loss in (rows[0, 0], rows[-LAST_STEPS:, 0].mean()))
        speed = f"{speeds[name]:,.0f}", f"{speeds[name] / speeds['torch']:.1f} x"
        share = f"{peaks[name] / _logits_bytes(settings):.2f} x"
        table.add_row(name, *losses, *speed, in_size(peaks[name]), share)
    return table


def _plot(records: Records, settings: Settings, output: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    curves, speed, peak = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    for (name, rows), line in zip(records.items(), ({"linewidth": 6, "alpha": 0.35}, {"linewidth": 1.5}), strict=True):
        curves.plot(np.arange(1, len(rows) + 1), rows[:, 0], color="tab:blue", label=name, **line)
    title = f"The same loss, to {_difference(records):.0e} of its value"
    curves.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    curves.legend()
    _bars(speed, "Tokens per second: {:.1f} x torch's", _tokens_per_second(records, settings))
    _bars(peak, "Peak memory (MB): {:.2f} x torch's", {name: size / 1e6 for name, size in _peaks(records).items()})
    figure.suptitle("A transformer trained on Python's standard library, with torch's head and with crossent's")
    path = output / "language_model.png"
    figure.savefig(path, dpi=120)
    return path


def _bars(axes, title: str, values: dict[str, float]) -> None:
    bars = axes.bar(list(values), list(values.values()), color=["tab:grey", "tab:blue"], width=0.6)
    axes.bar_label(bars, [f"{value:,.0f}" for value in values.values()], padding=2)
    axes.set_title(title.format(values["crossent"] / values["torch"]))
    axes.margins(x=0.2, y=0.1)
    axes.set_yticks([])


def _failures(records: Records) -> list[str]:
    failures = []
    if not _difference(records) <= LARGEST_DIFFERENCE:
        failures.append(f"language model: losses that differ by {_difference(records):.1e} of their value")
    if not records["crossent"][-1, 0] < records["crossent"][0, 0]:
        failures.append("language model: a loss that does not fall")
    return failures
