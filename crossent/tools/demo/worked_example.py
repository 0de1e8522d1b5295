"""Part 1: three rows of four logits, from the softmax to the cross entropy, as modules and as functions."""

import torch
from rich.console import Console
from torch import Tensor

import crossent.nn as nn
import crossent.nn.functional as F

# What is printed is what is run: name, what it is, its formula, and its expression, one for each style if they differ.
STEPS: list[tuple[str, ...]] = [
    ("p", "softmax", "p[i,c] = exp(x[i,c]) / sum_k exp(x[i,k])",
     "nn.Softmax(dim=1)(logits)", "F.softmax(logits, dim=1)"),
    ("log_of_p", "its logarithm", "log p[i,c]", "torch.log(p)"),
    ("log_p", "log-softmax", "log p[i,c] = x[i,c] - lse[i], lse[i] = log sum_k exp(x[i,k])",
     "nn.LogSoftmax(dim=1)(logits)", "F.log_softmax(logits, dim=1)"),
    ("picked", "the entries that the labels pick", "log p[i,y[i]]", "log_p[[0, 1, 2], labels]"),
    ("by_hand", "1. their mean, by hand", "-(1/3) sum_i log p[i,y[i]]", "-picked.mean()"),
    ("nll_sum", "2. negative log likelihood, the sum over three", "(1/3) sum_i -log p[i,y[i]]",
     'nn.NLLLoss(reduction="sum")(log_p, labels) / 3', 'F.nll_loss(log_p, labels, reduction="sum") / 3'),
    ("nll_mean", "3. negative log likelihood, the mean", "mean_i -log p[i,y[i]]",
     "nn.NLLLoss()(log_p, labels)", "F.nll_loss(log_p, labels)"),
    ("cross_entropy_sum", "4. cross entropy, the sum over three", "(1/3) sum_i (lse[i] - x[i,y[i]])",
     'nn.CrossEntropyLoss(reduction="sum")(logits, labels) / 3',
     'F.cross_entropy(logits, labels, reduction="sum") / 3'),
    ("cross_entropy_mean", "5. cross entropy, the mean", "mean_i (lse[i] - x[i,y[i]])",
     "nn.CrossEntropyLoss()(logits, labels)", "F.cross_entropy(logits, labels)"),
]  # fmt: skip
FIVE_WAYS = ("by_hand", "nll_sum", "nll_mean", "cross_entropy_sum", "cross_entropy_mean")


def values(style: str) -> dict[str, Tensor]:
    """Every step's value, in order, in the style "modules" or "functions"."""
    torch.manual_seed(42)
    known = {"logits": torch.randn(3, 4), "labels": torch.tensor([1, 0, 2])}
    for name, _, _, *codes in STEPS:
        code = codes[0 if style == "modules" else -1]
        known[name] = eval(code, {"torch": torch, "nn": nn, "F": F}, known)
    return known


def show(console: Console) -> list[str]:
    with console.status("Compiling the kernels (only the first time)"):
        by_modules, by_functions = values("modules"), values("functions")
    for line in ("import crossent.nn as nn", "import crossent.nn.functional as F", "torch.manual_seed(42)"):
        console.print(line, style="green")
    for title, name, code in (("logits x", "logits", "torch.randn(3, 4)"), ("labels y", "labels", "[1, 0, 2]")):
        console.print(f"\n{title}", style="bold")
        _show_line(console, code, by_modules[name])
    for name, title, formula, *codes in STEPS:
        console.print(f"\n{title}", style="bold", end="")
        console.print(f"    {formula}", style="cyan")
        for code, known in zip(codes, (by_modules, by_functions)):
            _show_line(console, code, known[name])
    return _summary(console, by_modules, by_functions)


def _show_line(console: Console, code: str, value: Tensor) -> None:
    """The code and, right of it, its value: one row a line."""
    for row in torch.atleast_2d(value).tolist():
        entries = "".join(f"{entry:8.4f}" if isinstance(entry, float) else f"{entry:3d}" for entry in row)
        if len(code) + len(entries) > 74:
            console.print(f"  {code}", style="green")
            code = ""
        console.print(f"  {code}", style="green", end="")
        console.print(entries.rjust(74 - len(code)))
        code = ""


def _summary(console: Console, by_modules: dict[str, Tensor], by_functions: dict[str, Tensor]) -> list[str]:
    ways = [f"{known[name].item():.4f}" for known in (by_modules, by_functions) for name in FIVE_WAYS]
    theirs = torch.nn.functional.cross_entropy(by_modules["logits"], by_modules["labels"]).item()
    console.print(f"\nFive ways, as modules and as functions: {', '.join(sorted(set(ways)))}.", style="bold", end=" ")
    console.print(f"PyTorch's own cross entropy: {theirs:.4f}.")
    return [] if set(ways) == {"2.1275"} else [f"the worked example gives {ways}, not 2.1275 in every way"]
