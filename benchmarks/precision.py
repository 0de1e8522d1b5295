"""How far the head of 16 bits is from float64, beside PyTorch's: `python -m benchmarks.precision` prints the tables.

Errors of gradients are relative, by norm; the others are those of the row that is farthest off, in nats.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

import crossent
from benchmarks.report import Sheet
from crossent.kernels.cpu.processor import PRODUCTS_OF_BFLOAT16
from crossent.tools.bench.machine import machine

F = torch.nn.functional
ROWS, FEATURES, CLASSES = 256, 512, 8000
POLICIES = ("accurate", "balanced", "compact")


@dataclass(frozen=True)
class Case:
    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, scale: float, dtype: torch.dtype, rows: int = ROWS, features: int = FEATURES, classes: int = CLASSES):
        """A weight of normal numbers times `scale`."""
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(rows, features, generator=generator)
        weight = scale * torch.randn(classes, features, generator=generator)
        labels = torch.randint(classes, (rows,), generator=generator)
        return cls(hidden.to(dtype), weight.to(dtype), labels)

    def gradients(self, loss: Callable, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        """For hidden states and weight, in float64."""
        leaves = [a.to(dtype or a.dtype, copy=True).requires_grad_() for a in (self.hidden, self.weight)]
        return [gradient.double() for gradient in torch.autograd.grad(loss(*leaves, self.labels), leaves)]

    def exact(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The gradients, and lse."""
        lse = (self.hidden.double() @ self.weight.double().t()).logsumexp(1)
        return self.gradients(_eager, torch.float64), lse


def _eager(hidden, weight, labels):
    return F.cross_entropy(F.linear(hidden, weight), labels)


def _own(**options) -> Callable:
    chosen = torch.nn.LinearCrossEntropyOptions(**options) if options else None
    return lambda *arguments: crossent.linear_cross_entropy(*arguments, options=chosen)


def _chunked(**options) -> Callable:
    chosen = torch.nn.LinearCrossEntropyOptions(**options)
    return lambda *arguments: F.linear_cross_entropy(*arguments, options=chosen)


def ways() -> dict[str, Callable]:
    found = {"crossent": _own(), 'crossent, "accurate"': _own(acc_policy="accurate"), "PyTorch, eager": _eager}
    found["PyTorch, chunked"] = _chunked()
    for policy in POLICIES:
        found[f'PyTorch, "{policy}"'] = _chunked(acc_policy=policy, acc_dtype=torch.float32)
    return found


def errors(case: Case, loss: Callable) -> list[float]:
    """Of the gradients for hidden states and weight."""
    pairs = zip(case.gradients(loss), case.exact()[0])
    return [float((ours - exact).norm() / exact.norm()) for ours, exact in pairs]


def lse_errors(case: Case) -> dict[str, float]:
    exact = case.exact()[1]
    own = crossent.linear_token_stats(case.hidden, case.weight, case.labels).lse
    eager = F.linear(case.hidden, case.weight).float().logsumexp(1)
    return {name: float((lse - exact).abs().max()) for name, lse in (("crossent", own), ("PyTorch, eager", eager))}


def table(case: Case) -> str:
    lse = lse_errors(case)
    rows = [
        (name, *(f"{error:.1e}" for error in errors(case, loss)), f"{lse[name]:.1e}" if name in lse else "")
        for name, loss in ways().items()
    ]
    return Sheet("", ("", "hidden states' gradient", "weight's gradient", "lse"), rows, 1).markdown()


def main() -> None:
    usual, exact = PRODUCTS_OF_BFLOAT16
    print(f"{machine()['cpu']}, PyTorch {torch.__version__}; bfloat16 is multiplied {usual}, if accurate {exact}.")
    for dtype in (torch.bfloat16, torch.float16):
        for scale, words in ((1.0, "normal numbers"), (0.02, "0.02 times normal numbers")):
            print(f"\n{str(dtype).removeprefix('torch.')}, {ROWS} rows, {FEATURES} features, {CLASSES} classes, "
                  f"a weight of {words}:\n")  # fmt: skip
            print(table(Case.of(scale, dtype)), flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__).parse_args()
    main()
