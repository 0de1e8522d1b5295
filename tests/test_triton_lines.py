"""Rows that begin anywhere in a line of memory, in all of the GPU's kernels that read them by whole lines.

Triton's interpreter runs them on the CPU. A row is a tile and its edges, or several tiles and its edges.
"""

import pytest
import torch
from harness import new_plans, on_triton, on_triton_at_once, triton_kernels

import crossent

pytest.importorskip("triton")

CLASSES = 261
TILE = 128
# In the first and the last lines of a row, and where tiles end.
LABELS = torch.tensor([0, TILE - 2, TILE + 1, CLASSES - 5, CLASSES - 1, -100])


@pytest.fixture(params=["once", "loop"], autouse=True)
def tiles(request, monkeypatch):
    """Rows are one tile, or more."""
    real = triton_kernels().cut_of
    at_most = TILE if request.param == "loop" else 2**20

    def cut_of(classes, itemsize, side_by_side, asked):
        return real(classes, itemsize, side_by_side, min(asked, at_most))

    monkeypatch.setattr(triton_kernels(), "cut_of", cut_of)
    monkeypatch.setattr("crossent.kernels.triton.slices.cut_of", cut_of)
    with new_plans():
        yield request.param


def numbers(*shape, seed=0, scale=3.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(ours, theirs, eps=4e-6):
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=eps, atol=eps * float(theirs.abs().max()))


@pytest.mark.parametrize("way", [on_triton, on_triton_at_once])
def test_labels(way):
    x = numbers(len(LABELS), CLASSES).requires_grad_()
    exact = x.detach().double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, LABELS)
    with way():
        loss = crossent.cross_entropy(x, LABELS)
        (gradient,) = torch.autograd.grad(loss, x)
    same(loss, expected)
    same(gradient, torch.autograd.grad(expected, exact)[0])


@pytest.mark.parametrize("way", [on_triton, on_triton_at_once])
def test_soft_targets(way):
    """With their gradient, which there is no way at once to make."""
    x, target = numbers(4, CLASSES).requires_grad_(), numbers(4, CLASSES, seed=1).softmax(1)
    target.requires_grad_(way is not on_triton_at_once)
    weight = torch.rand(CLASSES, generator=torch.Generator().manual_seed(2))
    leaves = [leaf for leaf in (x, target) if leaf.requires_grad]
    exact, exact_target = (leaf.detach().double().requires_grad_() for leaf in (x, target))
    expected = torch.nn.functional.cross_entropy(exact, exact_target, weight.double(), label_smoothing=0.1)
    with way():
        loss = crossent.cross_entropy(x, target, weight, label_smoothing=0.1)
        gradients = torch.autograd.grad(loss, leaves)
    same(loss, expected)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, (exact, exact_target))):
        same(ours, theirs)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name):
    x, above = numbers(4, CLASSES).requires_grad_(), numbers(4, CLASSES, seed=1)
    exact = x.detach().double().requires_grad_()
    expected = getattr(torch, name)(exact, 1)
    with on_triton():
        found = getattr(crossent, name)(x, 1)
        (gradient,) = torch.autograd.grad(found, x, above)
    same(found, expected)
    same(gradient, torch.autograd.grad(expected, exact, above.double())[0])


def test_nll_loss():
    log_p = numbers(len(LABELS), CLASSES).log_softmax(1).requires_grad_()
    with on_triton():
        (gradient,) = torch.autograd.grad(crossent.nll_loss(log_p, LABELS, reduction="sum"), log_p)
    expected = torch.zeros(len(LABELS), CLASSES)
    expected[range(len(LABELS) - 1), LABELS[:-1]] = -1.0
    assert torch.equal(gradient, expected)


def test_predictions():
    """Ties go by the order of the classes: whole numbers are often equal."""
    x = numbers(len(LABELS), CLASSES, scale=0.5).round()
    x[1] = 0.0
    with on_triton():
        stats = crossent.prediction_stats(x, LABELS)
    own, label = x.gather(1, LABELS.clamp(min=0)[:, None]), LABELS[:, None]
    rank = ((x > own) | ((x == own) & (torch.arange(CLASSES) < label))).sum(1)
    p = x.double().softmax(1)
    brier = (p - torch.nn.functional.one_hot(LABELS.clamp(min=0), CLASSES)).square().sum(1)
    assert torch.equal(stats.rank[:-1], rank[:-1]) and stats.rank[-1] == -1
    assert torch.equal(stats.prediction[:-1], (x == x.amax(1, keepdim=True)).int().argmax(1)[:-1])
    same(stats.confidence[:-1], p.amax(1)[:-1])
    same(stats.logprob[:-1], x.double().log_softmax(1).gather(1, label.clamp(min=0))[:-1, 0])
    same(stats.brier[:-1], brier[:-1])


def test_tokens():
    """The gradient is written over the logits."""
    hidden, weight = (numbers(rows, 6, seed=rows, scale=1.0).requires_grad_() for rows in (len(LABELS), CLASSES))
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    log_p = (exact[0] @ exact[1].T).log_softmax(1)
    own = log_p.gather(1, LABELS.clamp(min=0)[:, None])
    entropy = -(log_p.exp() * log_p).sum(1)
    counts = LABELS >= 0
    with on_triton():
        stats = crossent.linear_token_stats(hidden, weight, LABELS)
        gradients = torch.autograd.grad((stats.logprob + stats.entropy).sum(), (hidden, weight))
    assert torch.equal(stats.rank[counts], (log_p > own).sum(1)[counts])
    same(stats.logprob[counts], own[counts, 0], 2e-5)
    same(stats.entropy[counts], entropy[counts], 2e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad((own[:, 0] + entropy)[counts].sum(), exact)):
        same(ours, theirs, 2e-5)


def on_many_processors():
    """Rows are cut into parts."""
    return on_triton(processors=lambda device: 64)


@pytest.mark.parametrize("way", [on_triton, on_many_processors])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_a_last_edge_without_whole_lines(name, dtype, way, monkeypatch):
    """The whole lines of some rows end where a tile does, so that the last of the tiles or parts is an edge alone. New
    memory is filled, so that what is not written shows; the last classes have most of the probability.
    """
    x = numbers(9, 4097)
    x[:, -3:] = 12.0
    x, labels, new = x.to(dtype).requires_grad_(), torch.arange(9) * 512, torch.empty_like
    exact = x.detach().double().requires_grad_()
    expected = getattr(torch.nn.functional, name)(exact, labels)
    with way():
        loss = getattr(crossent, name)(x, labels)
        monkeypatch.setattr(torch, "empty_like", lambda *args, **options: new(*args, **options).fill_(7.0))
        (gradient,) = torch.autograd.grad(loss, x)
    eps = 8e-3 if dtype is torch.bfloat16 else 4e-6
    same(loss, expected, eps)
    same(gradient, torch.autograd.grad(expected, exact)[0], eps)
