"""Part 2: the digits program with crossent and with torch from the same seed, its curves side by side."""

from importlib.resources import files
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

LIBRARIES = ("torch", "crossent")
LEAST_ACCURACY = 0.95
# Equal up to float32 rounding, which a thousand steps carry on: two losses and an accuracy (two images).
LARGEST_DIFFERENCES = (1e-3, 1e-3, 0.005)

Curves = dict[str, dict[str, NDArray[np.float64]]]


def program(library: str) -> ModuleType:
    """The digits program with its two import lines naming this library."""
    source = (files("crossent.tools.demo") / "digits.py").read_text(encoding="utf-8")
    source = source.replace("\nimport crossent.nn", f"\nimport {library}.nn")
    module = ModuleType(f"digits_with_{library}")
    exec(compile(source, module.__name__, "exec"), vars(module))
    return module


def curves(progress: Progress) -> Curves:
    """For each classifier and library: training loss, test loss and test accuracy, a row for each epoch."""
    programs = {library: program(library) for library in LIBRARIES}
    classifiers = programs["torch"].CLASSIFIERS
    task = progress.add_task("", total=len(classifiers) * len(LIBRARIES) * programs["torch"].EPOCHS)
    found: Curves = {name: {} for name in classifiers}
    for name in classifiers:
        for library, digits in programs.items():
            progress.update(task, description=f"{name} with {library}")
            rows = []
            for row in digits.train(digits.CLASSIFIERS[name]):
                rows.append(row)
                progress.advance(task)
            found[name][library] = np.array(rows)
    return found


def show(console: Console, output: Path) -> list[str]:
    console.print(
        "Three classifiers of 1,797 real 8 x 8 images (scikit-learn's), trained on three quarters of them and tested on"
        " the rest. One program, run twice from the same seed; these two lines differ:\n"
    )
    for library in LIBRARIES:
        console.print(f"    import {library}.nn as nn", style="green")
        console.print(f"    import {library}.nn.functional as F", style="green")
    console.print()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        found = curves(progress)
    console.print(_table(found))
    console.print(f"The curves: {_plot(found, output)}")
    return _failures(found)


def _table(found: Curves) -> Table:
    numbers = (Column(heading, justify="right") for heading in ("training loss", "test loss", "test accuracy"))
    table = Table("classifier", "last epoch", *numbers)
    for name, by_library in found.items():
        for library, classifier in zip(LIBRARIES, (name, ""), strict=True):
            table.add_row(classifier, library, *(f"{value:.4f}" for value in by_library[library][-1]))
        differences = (f"{value:.1e}" if value else "0" for value in _differences(by_library))
        table.add_row("", "largest difference", *differences, end_section=True, style="cyan")
    return table


def _differences(by_library: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The largest over all epochs, for each of the three curves."""
    return np.abs(by_library["torch"] - by_library["crossent"]).max(axis=0)


def _plot(found: Curves, output: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = np.asarray(figure.subplots(2, len(found), sharex=True, sharey="row"))
    for (above, below), (name, by_library) in zip(axes.T, found.items(), strict=True):
        epochs = np.arange(1, len(by_library["torch"]) + 1)
        for library, line in (("torch", {"linewidth": 6, "alpha": 0.35}), ("crossent", {"linewidth": 1.5})):
            training_loss, test_loss, accuracy = by_library[library].T
            above.semilogy(epochs, training_loss, color="tab:blue", label=f"training, {library}", **line)
            above.semilogy(epochs, test_loss, color="tab:orange", label=f"test, {library}", **line)
            below.plot(epochs, accuracy, color="tab:orange", label=f"test, {library}", **line)
        below.axhline(LEAST_ACCURACY, color="grey", linestyle=":", label=f"{LEAST_ACCURACY}")
        above.set_title(name)
        below.set_xlabel("epoch")
    axes[0, 0].set_ylabel("loss (nats)")
    axes[1, 0].set_ylabel("accuracy")
    axes[0, -1].legend()
    axes[1, -1].legend(loc="lower right")
    figure.suptitle("Handwritten digits: the same program with torch.nn and with crossent.nn")
    path = output / "digits.png"
    figure.savefig(path, dpi=120)
    return path


def _failures(found: Curves) -> list[str]:
    failures = []
    for name, by_library in found.items():
        accuracy = by_library["crossent"][-1, 2]
        if accuracy <= LEAST_ACCURACY:
            failures.append(f"{name}: an accuracy of {accuracy:.3f}, not over {LEAST_ACCURACY}")
        differences = _differences(by_library)
        if not (differences <= LARGEST_DIFFERENCES).all():
            failures.append(f"{name}: curves that differ by {differences.max():.1e}")
    return failures
