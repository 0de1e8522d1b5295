"""The kernels of softmax, nll_loss and prediction_stats on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from test_gpu_kernels import waiting_for_nothing

import crossent

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

DEVICE = "cuda"
# One tile of several rows, of one, a loop, lines that start anywhere; classes across memory, few and many.
SHAPES = [
    (4000, 10), (700, 3000), (300, 32768), (30, 128256), (100, 50257), (5, 19, 33, 35), (2, 1500, 70), (1, 1), (8, 1000)
]  # fmt: skip
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NAMES = ["softmax", "log_softmax"]


@pytest.fixture(autouse=True)
def by_kernels(monkeypatch):
    from crossent.frontends.torch import softmax

    monkeypatch.setattr(softmax, "_LAUNCH_FROM", 0)


def logits(shape, dtype, seed=0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    x = 3 * torch.randn(shape, device=DEVICE, generator=generator)
    x.view(shape[0], shape[1], -1)[0, 0, 0] += 60
    return x.to(dtype).requires_grad_()


def labels(shape):
    generator = torch.Generator(DEVICE).manual_seed(1)
    y = torch.randint(shape[1], shape[:1] + shape[2:], device=DEVICE, generator=generator)
    y.view(-1)[3::5] = -100
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_softmax(name, shape, dtype):
    x, above = logits(shape, dtype), logits(shape, dtype, 2).detach()
    out = getattr(crossent, name)(x, 1)
    (gradient,) = torch.autograd.grad(out, x, above)
    exact = x.detach().double().requires_grad_()
    right = getattr(F, name)(exact, 1)
    eps = torch.finfo(dtype).eps
    assert type(out.grad_fn).__name__ == "_SoftmaxOnDeviceBackward"
    torch.testing.assert_close(out.double(), right, rtol=max(2 * eps, 1e-5), atol=max(eps**2, 1e-12))
    from_result = out.detach().double()  # from which the backward pass starts
    if name == "softmax":
        right = from_result * (above.double() - (from_result * above.double()).sum(1, keepdim=True))
    else:
        right = above.double() - from_result.exp() * above.double().sum(1, keepdim=True)
    scale = above.abs().max().item() + above.double().sum(1).abs().max().item() * (name == "log_softmax")
    torch.testing.assert_close(gradient.double(), right, rtol=2 * eps, atol=max(eps, 4e-7) * scale)


def test_digits_of_a_confident_row():
    x = torch.zeros(3, 5000, device=DEVICE)
    x[:, 7] = torch.tensor([30.0, 60.0, 80.0])
    exact = F.log_softmax(x.double().cpu(), 1)[:, 7]
    exact = -torch.log1p(4999 * torch.exp(-x[:, 7].double().cpu()))
    torch.testing.assert_close(crossent.log_softmax(x, 1)[:, 7].double().cpu(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nll_loss(shape, dtype):
    x, y = logits(shape, dtype), labels(shape)
    for reduction in ("mean", "sum", "none"):
        exact = x.detach().double().requires_grad_()
        ours, right = crossent.nll_loss(x, y, reduction=reduction), F.nll_loss(exact, y, reduction=reduction)
        gradients = torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(right.sum(), exact)[0]
        tolerance = max(2 * torch.finfo(dtype).eps, 1e-6)
        for a, b in zip((ours, gradients[0]), (right, gradients[1])):
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prediction_stats(shape, dtype):
    x, y = logits(shape, dtype).detach(), labels(shape)
    assert crossent.plan(crossent.prediction_stats, x, y).path == "kernels"
    expected = crossent.prediction_stats(x.cpu(), y.cpu())
    for name, ours, theirs in zip(expected._fields, crossent.prediction_stats(x, y), expected):
        if theirs.is_floating_point():
            torch.testing.assert_close(ours.cpu(), theirs, rtol=2e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert torch.equal(ours.cpu(), theirs), name


def everything(x, y):
    x.grad = None
    results = [*(getattr(crossent, name)(x, 1) for name in NAMES), crossent.nll_loss(x, y, reduction="none")]
    for out in results:
        out.backward(torch.ones_like(out))
    return [*(out.detach() for out in results), *crossent.prediction_stats(x, y), x.grad]


@pytest.mark.parametrize("shape", [(300, 3000), (30, 128256), (3000, 10)], ids=str)
def test_the_same_bits_and_nothing_waited_for(shape, monkeypatch):
    monkeypatch.setenv("CROSSENT_CHECK_LABELS", "later")
    x, y = logits(shape, torch.bfloat16), labels(shape)
    first = everything(x, y)  # kernels are compiled
    with waiting_for_nothing():
        others = [everything(x, y) for _ in range(10)]
    assert all(torch.equal(a, b) for found in others for a, b in zip(found, first))


def test_bad_labels(monkeypatch):
    x, y = logits((4000, 10), torch.float32), labels((4000, 10))
    y[[70, 3999]] = 10
    with pytest.raises(IndexError, match="Target 10 at position 70 "):
        crossent.prediction_stats(x, y)
    with pytest.raises(IndexError, match="Target 10 at position 70 "):
        crossent.nll_loss(x.detach(), y)
    monkeypatch.setenv("CROSSENT_CHECK_LABELS", "later")
    loss = crossent.nll_loss(x, y)
    torch.cuda.synchronize()
    assert loss.isnan()
    with pytest.raises(IndexError, match="Target 10 at position 70 "):
        loss.backward()
    loss.backward()
    assert x.grad.isfinite().all()
