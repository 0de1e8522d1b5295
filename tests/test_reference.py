"""The reference itself, held against PyTorch in float64, and against autograd where PyTorch lacks the option."""

import itertools

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F

SHAPES = [(5,), (4, 5), (2, 3, 4), (2, 5, 3, 2), (1, 1), (3, 1), (0, 4)]


def logits_of(shape, seed=0):
    return 3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels_of(shape, ignore_index=-100):
    dim = 1 if len(shape) > 1 else 0
    rest = shape[:dim] + shape[dim + 1 :]
    labels = torch.randint(shape[dim], rest, generator=torch.Generator().manual_seed(1))
    return torch.where(torch.arange(labels.numel()).reshape(rest) % 3 == 1, ignore_index, labels)


def close(ours, torchs):
    torchs = torchs.detach().numpy()
    assert ours.shape == torchs.shape
    np.testing.assert_allclose(ours.astype(np.float64), torchs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name, shape):
    for dim in range(len(shape)):
        x = logits_of(shape).requires_grad_()
        up = logits_of(shape, 5)
        out = getattr(F, name)(x, dim=dim)
        value, gradient = getattr(reference, name)(x.detach().numpy(), dim, up.numpy())
        close(value, out)
        close(gradient, torch.autograd.grad(out, x, up)[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["nll_loss", "labels", "soft"])
def test_losses(name, shape, reduction, weighted):
    x = logits_of(shape).requires_grad_()
    classes = shape[1] if len(shape) > 1 else shape[0]
    weight = torch.linspace(0.5, 2, classes, dtype=torch.float64) if weighted else None
    target = logits_of(shape, 7).softmax(1 if len(shape) > 1 else 0) if name == "soft" else labels_of(shape, -7)
    for smoothing in [0.0, 0.1] if name != "nll_loss" else [0.0]:
        if name == "nll_loss":
            function, options = "nll_loss", {"ignore_index": -7}
        else:
            function, options = "cross_entropy", {"ignore_index": -7, "label_smoothing": smoothing}
        out = getattr(F, function)(x, target, weight, reduction=reduction, **options)
        up = torch.rand_like(out)
        numpy_weight = None if weight is None else weight.numpy()
        value, gradient = getattr(reference, function)(
            x.detach().numpy(), target.numpy(), numpy_weight, reduction=reduction, upstream=up.numpy(), **options
        )
        close(value, out)
        close(gradient, torch.autograd.grad(out, x, up)[0])


def test_extras_against_autograd():
    """Softcap, z-loss, sample weights and the denominator, composed from PyTorch's own operations."""
    shape, dim = (3, 4, 5), 2
    labels = torch.tensor([[0, 1, 2, 3], [4, -100, 0, 1], [2, 3, 4, -100]])
    sample_weight = torch.linspace(0, 2, 12, dtype=torch.float64).reshape(3, 4)
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    for softcap, z_loss, smoothing, denominator, reduction in itertools.product(
        [None, 2.0], [0.0, 0.3], [0.0, 0.2], [None, 7.0], ["none", "mean", "sum"]
    ):
        x = logits_of(shape).requires_grad_()
        z = x if softcap is None else softcap * torch.tanh(x / softcap)
        keep = (labels != -100).double()
        rows = F.cross_entropy(z.movedim(2, 1), labels, weight, label_smoothing=smoothing, reduction="none")
        mass = keep * ((1 - smoothing) * weight[labels.clamp(0)] + smoothing * weight.mean())
        rows = sample_weight * (rows + mass * z_loss * z.logsumexp(2) ** 2)
        total = (keep * sample_weight * weight[labels.clamp(0)]).sum() if denominator is None else denominator
        out = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / total}[reduction]
        up = torch.rand_like(out)
        value, gradient = reference.cross_entropy(
            x.detach().numpy(), labels.numpy(), weight.numpy(), reduction=reduction, label_smoothing=smoothing, dim=dim,
            sample_weight=sample_weight.numpy(), denominator=denominator, softcap=softcap, z_loss=z_loss,
            upstream=up.numpy(),
        )  # fmt: skip
        close(value, out)
        close(gradient, torch.autograd.grad(out, x, up)[0])


def test_confident_rows_against_mpmath():
    import mpmath

    mpmath.mp.dps = 80
    x = [80.0, 0.0, -1.0, 3.5]
    total = sum(mpmath.e**v for v in x)
    value, gradient = reference.cross_entropy(np.array([x]), np.array([0]))
    assert abs(float(value / LONG(mpmath.log(total) - 80)) - 1) < 1e-15
    for c in range(4):
        exact = mpmath.e ** x[c] / total - (c == 0)
        assert abs(float(gradient[0, c] / LONG(exact)) - 1) < 1e-15


def LONG(value):
    return np.longdouble(str(value))


def test_degenerate():
    inf = np.inf
    x = np.array([[-inf] * 3, [0, inf, 0], [0, np.nan, 0], [0, -inf, 1], [0, -inf, 1]])
    value, gradient = reference.cross_entropy(x, np.array([0, 1, 2, 0, 1]), reduction="none", upstream=np.ones(5))
    assert np.isnan(value[:3]).all() and np.isfinite(value[3]) and value[4] == inf
    assert np.isfinite(gradient[3:].astype(float)).all() and gradient[4, 1] == -1
    value, gradient = reference.cross_entropy(x[:3], np.full(3, -100), reduction="none", upstream=np.ones(3))
    assert (value == 0).all() and (gradient == 0).all()
    value, _ = reference.cross_entropy(x[3], np.array([0.5, 0, 0.5]))
    assert np.isfinite(value)
    value, _ = reference.cross_entropy(x[3], np.array(0), label_smoothing=0.1)
    assert value == inf
    value, gradient = reference.cross_entropy(x[:2], np.array([-100, -100]))
    assert np.isnan(value) and (gradient == 0).all()
