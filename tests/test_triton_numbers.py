"""Numbers at which the GPU's kernels could go wrong: near the ends of the float's range, -inf, and far from 0."""

import numpy as np
import pytest
import torch
from harness import check, on_triton, on_triton_at_once

import crossent

pytest.importorskip("triton")

LARGEST = float(torch.finfo(torch.float32).max)
# One tile for several rows, one for a row, parts of a row, and a loop; the label is in a tile of its own or the last.
SHAPES = [
    ((3, 40), on_triton), ((3, 300), on_triton), ((3, 300), on_triton_at_once), ((1, 5000), on_triton),
    ((1, 33000), on_triton_at_once),
]  # fmt: skip
ROWS = {
    "all the lowest": lambda z: np.full_like(z, -LARGEST),
    "all the largest": lambda z: np.full_like(z, LARGEST),
    "all -inf but two": lambda z: np.where(np.arange(z.shape[1]) % (z.shape[1] - 1) < 1, z, -np.inf),
    "the lowest among others": lambda z: np.where(np.arange(z.shape[1]) % 3 == 1, -LARGEST, z),
    "far above 0": lambda z: z + 3e4,
    "far below 0": lambda z: z - 3e4,
    "enormous": lambda z: z * 1e37,
}
OPTIONS = {"plain": {}, "smoothing": {"label_smoothing": 0.1}, "softcap": {"softcap": 4.0, "label_smoothing": 0.1}}


def reference(logits, labels, label_smoothing=0.0, softcap=None):
    """Losses and the gradient of their sum, in float64."""
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    z = x if softcap is None else softcap * torch.tanh(x / softcap)
    loss = torch.nn.functional.cross_entropy(z, labels, label_smoothing=label_smoothing, reduction="none")
    loss.sum().backward()
    return loss.detach(), x.grad


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("shape", "way"), SHAPES)
def test_ends_of_the_range(shape, options, way):
    labels = torch.tensor([shape[1] - 1, 0, 7])[: shape[0]]
    for kind, made in ROWS.items():
        logits = made(np.random.default_rng(0).normal(size=shape)).astype(np.float32)
        if kind == "all -inf but two" and options == "smoothing":
            continue  # the loss is infinite
        losses, gradient = reference(logits, labels, **OPTIONS[options])
        x = torch.tensor(logits, requires_grad=True)
        with way():
            loss = crossent.cross_entropy(x, labels, **OPTIONS[options], reduction="sum")
            loss.backward()
        exact = losses.sum().float()
        torch.testing.assert_close(loss.detach(), exact, rtol=3e-6, atol=0.02 if "far" in kind else 1e-5, msg=kind)
        torch.testing.assert_close(x.grad.double(), gradient, rtol=0.0, atol=0.01 if "far" in kind else 1e-5, msg=kind)


def test_a_confident_row_keeps_its_digits():
    """In a loop and in one tile, with the label in any tile."""
    for classes, label in [(300, 299), (5000, 17), (5000, 4999), (5000, 2100)]:
        logits = np.random.default_rng(0).normal(size=(1, classes))
        logits[0, label] = 25.0
        for way in ("triton", "triton at once"):
            check(way, "cross_entropy", logits, np.array([label]), dtype="float32", reduction="none", ulps=8)
