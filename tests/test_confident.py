"""Rows in which one class outweighs all others together: log_softmax keeps the digits of its log-probability, and the
gradient those of what is missing from 1; so that nll_loss(log_softmax(x)) is cross_entropy(x).
"""

import contextlib

import numpy as np
import pytest
import reference
import torch
from harness import EPS, FRONTENDS, SMALLEST, TORCH_DTYPES, composite, quantise

import crossent

GAPS = (0.5, 3.0, 9.0, 20.0, 45.0, 70.0)
CLASSES = [2, 10, 17, 100, 1030, 2100]
EVERYWHERE = [(f, d) for f in FRONTENDS for d in TORCH_DTYPES if (f, d) != ("numpy", "bfloat16")]


def confident(classes, dtype, seed=0):
    """A row for each gap between the largest logit, which is anywhere, and the next; and the places of the largest.

    Logits are quarters, so that their differences are exact.
    """
    generator = np.random.default_rng(seed)
    logits = np.minimum(generator.integers(-8, 7, (len(GAPS), classes)) / 4, 1.5)
    top = generator.integers(classes, size=len(GAPS))
    top[:2] = 0, classes - 1
    logits[np.arange(len(GAPS)), top] = 1.5 + np.array(GAPS)
    return quantise(logits, dtype), top


def exact(logits):
    """Log-probabilities of rows, and the gradient of the sum of the rows' losses at their largest logits."""
    out = reference.log_softmax(logits, 1)[0]
    missing = np.where(logits == logits.max(1, keepdims=True), np.expm1(out), np.exp(out))
    return out, missing


def place(x, layout):
    """Rows of logits, the classes side by side, rows side by side, or neither."""
    if layout == "last":
        return x, 1
    if layout == "inner":
        return x.T[None].copy() if isinstance(x, np.ndarray) else x.T[None].contiguous(), 1
    wide = np.zeros((*x.shape, 2), x.dtype) if isinstance(x, np.ndarray) else x.new_zeros((*x.shape, 2))
    wide[..., 0] = x
    return wide[..., 0], 1


def rows_of(result, layout):
    result = np.asarray(result.detach().double() if isinstance(result, torch.Tensor) else result, np.float64)
    return result[0].T if layout == "inner" else result


def assert_digits(found, right, digits, smallest):
    np.testing.assert_allclose(found, np.asarray(right, np.float64), rtol=digits, atol=smallest)


@pytest.mark.parametrize(("frontend", "dtype"), EVERYWHERE)
@pytest.mark.parametrize("layout", ["last", "inner", "strided"])
def test_log_softmax_keeps_its_digits(frontend, dtype, layout):
    eps, smallest = EPS[dtype], SMALLEST[dtype]
    for classes in CLASSES:
        logits, top = confident(classes, dtype)
        right, gradient = exact(logits)
        if frontend == "numpy":
            x, dim = place(logits.astype(dtype), layout)
            assert_digits(rows_of(crossent.log_softmax(x, dim), layout), right, 6 * eps, smallest)
            continue
        x, dim = place(torch.as_tensor(logits).to(TORCH_DTYPES[dtype]), layout)
        labels = torch.as_tensor(top).reshape(x.shape[:dim] + x.shape[dim + 1 :])
        x.requires_grad_()
        with composite() if frontend == "composite" else contextlib.nullcontext():
            out = crossent.log_softmax(x, dim)
            crossent.nll_loss(out, labels, reduction="sum").backward()
            plain = crossent.log_softmax(x.detach(), dim)
        assert torch.equal(plain, out)
        assert_digits(rows_of(out, layout), right, 6 * eps, smallest)
        # What backward starts from is rounded: an error of out is one of exp(out) times out.
        digits = (12 + abs(right).max(1, keepdims=True)) * eps
        error = abs(rows_of(x.grad, layout) - gradient) / np.maximum(abs(gradient), smallest / eps)
        assert (error <= digits).all(), (classes, error.max())


@pytest.mark.parametrize("classes", [10, 1000])
def test_nll_loss_of_log_softmax_is_cross_entropy(classes):
    logits, top = confident(classes, "float32", seed=1)
    pairs = []
    for loss in (lambda x, y: crossent.nll_loss(crossent.log_softmax(x, 1), y, reduction="none"),
                 lambda x, y: crossent.cross_entropy(x, y, reduction="none")):  # fmt: skip
        x = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
        losses = loss(x, torch.tensor(top))
        losses.sum().backward()
        pairs.append((losses.detach(), x.grad))
    for ours, theirs in zip(*pairs):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-37)
    assert (pairs[0][0] > 0).all()


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("layout", ["last", "inner", "strided"])
def test_equal_maxima_and_what_is_not_finite(frontend, layout):
    inf, nan = np.inf, np.nan
    logits = np.full((9, 40), -100.0, np.float32)
    logits[0, [3, 30]], logits[1], logits[2, 39] = 2, 7, 5
    logits[3, :], logits[3, 8] = -inf, 1
    logits[4], logits[5, 2], logits[6, 2], logits[7, [2, 5]] = -inf, nan, inf, inf
    logits[8, [0, 1]] = 0, -1e-6  # which rounds to 1 once it is exp
    right = reference.log_softmax(logits.astype(np.float64), 1)[0].astype(np.float64)
    with composite() if frontend == "composite" else contextlib.nullcontext():
        x, dim = place(logits if frontend == "numpy" else torch.from_numpy(logits), layout)
        found = rows_of(crossent.log_softmax(x, dim), layout)
    assert np.isnan(found[4:8]).all()
    np.testing.assert_allclose(found[[0, 1, 2, 3, 8]], right[[0, 1, 2, 3, 8]], 1e-6, 1e-37)


def per_sample(x, labels):
    """By function transforms."""
    loss = torch.func.grad_and_value(lambda row, y: crossent.nll_loss(crossent.log_softmax(row, 0), y))
    gradient, value = torch.func.vmap(loss)(x, labels)
    return value, gradient


def differentiable(x, labels):
    """The gradient as something to be differentiated again."""
    x = x.requires_grad_()
    losses = crossent.nll_loss(crossent.log_softmax(x, 1), labels, reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), x, create_graph=True)[0].detach()


def by_graph(make):
    def run(x, labels):
        x = x.requires_grad_()
        losses = -make(lambda x: crossent.log_softmax(x, 1), x)(x).gather(1, labels[:, None])[:, 0]
        return losses.detach(), torch.autograd.grad(losses.sum(), x)[0]

    return run


def exported(function, x):
    class Module(torch.nn.Module):
        def forward(self, x):
            return function(x)

    return torch.export.export(Module(), (x.detach(),)).module()


def traced(function, x):
    return torch.jit.trace(function, (x.detach(),), check_trace=False)


WAYS = {
    "vmap": per_sample,
    "create_graph": differentiable,
    "compile": by_graph(lambda function, _: torch.compile(function, backend="aot_eager", fullgraph=True)),
    "export": by_graph(exported),
    "trace": by_graph(traced),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_keeps_the_digits(way):
    logits, top = confident(10, "float32")
    right, gradient = exact(logits)
    losses, found = WAYS[way](torch.tensor(logits, dtype=torch.float32), torch.tensor(top))
    assert_digits(losses, -right[np.arange(len(top)), top], 1e-6, 1e-37)
    assert_digits(found, gradient, 2e-5, 1e-37)
