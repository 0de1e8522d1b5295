"""linear_token_stats: values against float64 formulas on the whole logits, derivatives, ignored rows, errors."""

import contextlib

import numpy as np
import pytest
import torch
from harness import composite

import crossent

DTYPES = ["float16", "bfloat16", "float32", "float64"]
CLASSES = 37


def arrays(dtype, classes=CLASSES, shape=(2, 5), features=6, ignored=True):
    generator = torch.Generator().manual_seed(0)
    sizes = (*shape, features), (classes, features), (classes,)
    hidden, weight, bias = (torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes)
    labels = torch.randint(classes, shape, generator=generator)
    if ignored:
        labels[0, 3] = -100
    return hidden, weight, bias, labels


def exact(hidden, weight, bias, labels, shift, softcap):
    """From the whole logits, in float64."""
    z = hidden.double() @ weight.double().T + bias.double()
    z = softcap * torch.tanh(z / softcap) if softcap else z
    if shift:
        z, labels = z[:, :-shift], labels[:, shift:]
    kept, log_p = labels != -100, z.log_softmax(-1)
    label = labels.clamp(min=0)[..., None]
    values = log_p.gather(-1, label)[..., 0], z.logsumexp(-1), -(log_p.exp() * log_p).sum(-1)
    rank = (z > z.gather(-1, label)).sum(-1)
    return [torch.where(kept, value, 0.0) for value in values], torch.where(kept, rank, -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("chunk_bytes", [1, 10**6])
def test_values_and_gradients(dtype, shift, softcap, chunk_bytes):
    check_values_and_gradients(dtype, shift, softcap, chunk_bytes)


def check_values_and_gradients(name, shift, softcap, chunk_bytes):
    dtype = getattr(torch, name)
    hidden, weight, bias, labels = arrays(dtype)
    stats = crossent.linear_token_stats(
        hidden, weight, labels, linear_bias=bias, shift=shift, softcap=softcap, chunk_bytes=chunk_bytes
    )
    values, rank = exact(hidden, weight, bias, labels, shift, softcap)
    eps = 40 * torch.finfo(dtype).eps
    for ours, theirs in zip(stats[:3], values):
        assert ours.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
        torch.testing.assert_close(ours.double(), theirs, rtol=eps, atol=4 * eps)
    if dtype in (torch.float32, torch.float64):
        assert torch.equal(stats.rank, rank)
    upstream = [torch.randn_like(value) for value in values]
    leaves = hidden, weight, bias
    gradients = torch.autograd.grad(stats[:3], leaves, [u.to(s.dtype) for u, s in zip(upstream, stats)])
    for ours, theirs in zip(gradients, torch.autograd.grad(values, leaves, upstream)):
        assert ours.dtype == dtype
        largest = float(theirs.double().abs().max())
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=4 * eps, atol=4 * eps * largest)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numpy_agrees(dtype):
    hidden, weight, bias, labels = arrays(getattr(torch, dtype))
    theirs = crossent.linear_token_stats(hidden, weight, labels, linear_bias=bias, shift=1)
    arguments = (tensor.detach().numpy() for tensor in (hidden, weight, labels))
    ours = crossent.linear_token_stats(*arguments, linear_bias=bias.detach().numpy(), shift=1)
    for mine, other in zip(ours, theirs):
        assert isinstance(mine, np.ndarray)
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-3 if dtype == "float16" else 1e-5, atol=1e-3)


@pytest.mark.parametrize("chunk_bytes", [8, 1000])
def test_derivatives(chunk_bytes):
    """Of every order, in both modes, batched."""
    hidden, weight, bias, labels = arrays(torch.float64, classes=4, shape=(1, 4), features=3)

    def function(hidden, weight, bias):
        return crossent.linear_token_stats(hidden, weight, labels, linear_bias=bias, chunk_bytes=chunk_bytes)[:3]

    leaves = hidden, weight, bias
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_func_and_one_result_alone():
    hidden, weight, bias, labels = arrays(torch.float64)

    def entropy(hidden):
        return crossent.linear_token_stats(hidden, weight.detach(), labels).entropy.sum()

    (expected,) = torch.autograd.grad(entropy(hidden), hidden)
    torch.testing.assert_close(torch.func.grad(entropy)(hidden.detach()), expected)
    (values, _) = exact(hidden, weight, torch.zeros_like(bias), labels, 0, None)
    torch.testing.assert_close(expected, torch.autograd.grad(values[2].sum(), hidden)[0])


def test_ignored_rows_may_hold_nan():
    hidden, weight, _, labels = arrays(torch.float32)
    with torch.no_grad():
        hidden[0, 3] = torch.nan
    stats = crossent.linear_token_stats(hidden, weight, labels)
    assert [float(value[0, 3]) for value in stats] == [0, 0, 0, -1]
    gradients = torch.autograd.grad(sum(value.sum() for value in stats[:3]), (hidden, weight))
    assert torch.equal(gradients[0][0, 3], torch.zeros(6)) and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("mode", [contextlib.nullcontext, composite], ids=["kernels", "composite"])
@pytest.mark.parametrize("classes", [5, 1040])
def test_infinity_in_a_row_is_nan(mode, classes):
    """At the label too: log-probability 0 would say that the model is certain. The loss is nan as well."""
    bias, labels = torch.zeros(classes), torch.tensor([3, 1])
    bias[3] = torch.inf
    rows = torch.zeros(2, 2), torch.zeros(classes, 2)
    with mode():
        stats = crossent.linear_token_stats(*rows, labels, linear_bias=bias)
        losses = crossent.linear_cross_entropy(*rows, labels, linear_bias=bias, reduction="none")
    assert all(stat.isnan().all() for stat in (stats.logprob, stats.lse, stats.entropy, losses))


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("classes", [5, 40, 1040])
def test_ties_go_by_class_order(classes, softcap):
    """Ranks by a stable sort; of logits that are exact, from every kind of array."""
    generator = np.random.default_rng(classes)
    weight = generator.integers(-2, 3, size=(classes, 30)).astype(np.float32)
    weight[:, 0] = 0
    labels = generator.permutation(np.arange(30) * (classes - 1) // 29)
    order = np.argsort(-weight, 0, kind="stable")
    expected = (order == labels).argmax(0)
    arrays = np.eye(30, dtype=np.float32), weight, labels
    found = [crossent.linear_token_stats(*arrays, softcap=softcap).rank]
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [torch.from_numpy(array) for array in arrays]
        tensors[:2] = [tensor.to(dtype) for tensor in tensors[:2]]
        found.append(crossent.linear_token_stats(*tensors, softcap=softcap).rank)
        with composite():
            found.append(crossent.linear_token_stats(*tensors, softcap=softcap).rank)
    for rank in found:
        np.testing.assert_array_equal(rank, expected)


@pytest.mark.parametrize("plainly", [False, True])
@pytest.mark.parametrize("gap", [1.0, 10.0, 20.0, 40.0, 80.0])
def test_results_of_confident_rows(gap, plainly):
    """logprob and entropy are nearly 0, and right to the last digits."""
    weight = torch.tensor([[gap], [0.5], [0.0], [-0.25]], requires_grad=True)
    with composite() if plainly else contextlib.nullcontext():
        stats = crossent.linear_token_stats(torch.ones(1, 1), weight, torch.tensor([0]))
    odds = torch.tensor([0.5, 0.0, -0.25], dtype=torch.float64) - gap
    others = odds.exp().sum()
    entropy = torch.log1p(others) - (odds.exp() * odds).sum() / (1 + others)
    for found, expected in ((stats.logprob, -torch.log1p(others)), (stats.entropy, entropy)):
        torch.testing.assert_close(found.double(), expected.reshape(1), rtol=1e-6, atol=0)
    # d entropy / d z of the label, p * (log p + entropy) with the opposite sign
    (gradient,) = torch.autograd.grad(stats.entropy.sum(), weight)
    expected = -torch.exp(-torch.log1p(others)) * (entropy - torch.log1p(others))
    torch.testing.assert_close(gradient[0].double(), expected.reshape(1), rtol=1e-5, atol=0)


def test_confident_rows_keep_their_digits():
    """With the other logits 80 below the label's."""
    weight = torch.tensor([[80.0], [0.0], [0.0]], requires_grad=True)
    stats = crossent.linear_token_stats(torch.ones(1, 1), weight, torch.tensor([0]))
    expected = -2 * torch.tensor(-80.0, dtype=torch.float64).exp()
    torch.testing.assert_close(stats.logprob.double(), expected.reshape(1), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(stats.logprob.sum(), weight)
    torch.testing.assert_close(gradient[0].double(), -expected.reshape(1), rtol=1e-5, atol=0)


def test_errors():
    hidden, weight, _, labels = arrays(torch.float32, ignored=False)
    with pytest.raises(IndexError, match=r"Target 37 at position \(1, 2\)"):
        wrong = labels.clone()
        wrong[1, 2] = CLASSES
        crossent.linear_token_stats(hidden, weight, wrong)
    with pytest.raises(ValueError, match="one label for each row"):
        crossent.linear_token_stats(hidden, weight, torch.rand(2, 5, CLASSES))
    with pytest.raises(ValueError, match="wrong shape"):
        crossent.linear_token_stats(hidden, weight, labels[0])
    with pytest.raises(TypeError, match="dtype of input"):
        crossent.linear_token_stats(hidden, weight.double(), labels)
