"""What no call on a device can go below: a copy that moves as many bytes, or the bare matrix products of a head."""

from collections.abc import Callable

import torch

from crossent.tools.bench.cases import Case


def least(case: Case, mode: str) -> dict[str, float]:
    """The bytes that a loss has to move, where it reads the logits once and in a step writes their gradient once; or
    the operations of a head's matrix products, of which a step has three.
    """
    if case.head:
        tokens, features, classes = case.shape
        return {"flops": 2.0 * tokens * features * classes * (3 if mode == "step" else 1)}
    targets = case.size if case.soft_targets else 0
    return {"bytes": float(case.size * (2 if mode == "step" else 1) + targets)}


def at_limit(case: Case, mode: str, arrays: tuple) -> Callable[[], object]:
    """A call that does nothing but that, with the case's arrays."""
    return products(mode, *(array.detach() for array in arrays)) if case.head else copy(case, mode)


def copy(case: Case, mode: str) -> Callable[[], object]:
    """Half of its bytes are read and half are written."""
    size = int(least(case, mode)["bytes"]) // 2
    source = torch.ones(size, dtype=torch.uint8, device=case.device)
    there = torch.empty_like(source)
    return lambda: there.copy_(source)


def products(mode: str, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    """The gradient is the loss's own: most of its numbers are nearly 0, and of such ones a product takes less time than
    of random ones, on processors that are held back by their power.
    """
    logits = hidden @ weight.t()
    if mode != "step":
        return lambda: torch.mm(hidden, weight.t(), out=logits)
    leaf = logits.detach().requires_grad_()
    (dlogits,) = torch.autograd.grad(torch.nn.functional.cross_entropy(leaf, labels), leaf)

    def step() -> None:
        torch.mm(hidden, weight.t(), out=logits)
        torch.mm(dlogits, weight)
        torch.mm(dlogits.t(), hidden)

    return step
