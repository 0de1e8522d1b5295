"""The kernels of cross entropy on a GPU: every way through them, the same bits in every run, and nothing waited for."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from harness import check
from test_contract import OPTION_SHAPES, OPTIONS, make

import crossent

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

DEVICE = "cuda"
# One tile of several rows, of one, a loop, few long rows in parts, many long ones; classes across memory, few and many.
SHAPES = [
    (4000, 100), (700, 3000), (300, 32768), (2, 33000), (3, 128256), (300, 40001), (5, 19, 33, 35), (2, 1500, 70),
    (1, 1, 5), (7, 1),
]  # fmt: skip
OPTIONS_OF_MANY = {
    "plain": {},
    "everything": {"label_smoothing": 0.1, "softcap": 8.0, "z_loss": 0.01, "weight": True, "sample_weight": True},
}
WAYS = {"two passes": 2**62, "at once": 0}  # the least bytes of logits that are read once


@contextlib.contextmanager
def waiting_for_nothing():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    from crossent.frontends.torch import late, staged
    from crossent.kernels.triton.device import DeviceKernels

    monkeypatch.setitem(staged.KERNELS_OF, DEVICE, DeviceKernels(once_from=WAYS[request.param], note=late.note))
    return request.param


def case(shape, dtype, seed=0, **options):
    """Logits with a confident row, labels of which some are ignored, and options, on the GPU."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    x = 3 * torch.randn(shape, device=DEVICE, generator=generator)
    y = torch.randint(shape[1], shape[:1] + shape[2:], device=DEVICE, generator=generator)
    x.view(shape[0], shape[1], -1)[0, 0, 0] += 20
    y.view(-1)[0] = 0
    y.view(-1)[3::5] = -100
    for name, size in (("weight", shape[1:2]), ("sample_weight", y.shape)):
        if options.get(name):
            options[name] = torch.rand(size, device=DEVICE, generator=generator) + 0.5
    return x.to(dtype).requires_grad_(), y, options


def exact(x, y, label_smoothing=0.0, softcap=None, z_loss=0.0, weight=None, sample_weight=None):
    """The mean and its gradient in float64, by PyTorch's operations."""
    x = x.detach().double().requires_grad_()
    z = x if softcap is None else softcap * torch.tanh(x / softcap)
    w = torch.ones(x.shape[1], device=DEVICE, dtype=torch.float64) if weight is None else weight.double()
    keep = (y != -100).double() * (1.0 if sample_weight is None else sample_weight.double())
    losses = F.cross_entropy(z, y, w, label_smoothing=label_smoothing, reduction="none")
    own = w[y.clamp(min=0)]
    mass = (1 - label_smoothing) * own + label_smoothing * w.sum() / x.shape[1]
    losses = keep * (losses + z_loss * mass * torch.logsumexp(z, 1) ** 2)
    loss = losses.sum() / (keep * own).sum()
    loss.backward()
    return loss.detach(), x.grad


def step(x, y, **options):
    x.grad = None
    loss = crossent.cross_entropy(x, y, **options)
    loss.backward()
    return loss.detach(), x.grad


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options(options, dtype, way):
    for shape, dim in OPTION_SHAPES:
        logits, target, keywords = make(shape, dim, **OPTIONS[options])
        check("cuda", "cross_entropy", logits, target, dtype=dtype, **keywords)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS_OF_MANY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_many_classes(shape, options, dtype, way):
    x, y, options = case(shape, dtype, **OPTIONS_OF_MANY[options])
    (loss, gradient), (exact_loss, exact_gradient) = step(x, y, **options), exact(x, y, **options)
    eps, largest = torch.finfo(dtype).eps, exact_gradient.abs().max().item()
    torch.testing.assert_close(loss.double(), exact_loss, rtol=max(eps, 2e-6), atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=2 * eps, atol=max(eps, 4e-6) * largest)
    assert torch.equal(gradient.movedim(1, -1)[y == -100], torch.zeros_like(gradient.movedim(1, -1)[y == -100]))


@pytest.mark.parametrize("shape", [(300, 3000), (2, 128256), (3000, 10)], ids=str)
def test_the_same_bits_every_time(shape, way):
    x, y, options = case(shape, torch.bfloat16, label_smoothing=0.1, weight=True)
    first, *others = ([part.clone() for part in step(x, y, **options)] for _ in range(20))
    assert all(torch.equal(a, b) for found in others for a, b in zip(found, first))


def test_streams_do_not_meet(way):
    """Losses of two streams at the same time, each with its own count of programs."""
    cases = [case((3000, 3000), torch.bfloat16, seed) for seed in range(2)]
    expected = [[part.clone() for part in step(x, y)] for x, y, _ in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    found = [[], []]
    for _ in range(20):
        for (x, y, _), stream, into in zip(cases, streams, found):
            with torch.cuda.stream(stream):
                into.append([part.clone() for part in step(x, y)])
    torch.cuda.synchronize()
    for of_stream, known in zip(found, expected):
        assert all(torch.equal(a, b) for one in of_stream for a, b in zip(one, known))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS_OF_MANY)
def test_a_step_waits_for_nothing(options, reduction, way, monkeypatch):
    monkeypatch.setenv("CROSSENT_CHECK_LABELS", "later")
    x, y, options = case((70, 300), torch.bfloat16, **OPTIONS_OF_MANY[options])
    upstream = torch.rand(70 if reduction == "none" else (), device=DEVICE, dtype=torch.bfloat16)
    for mode in (contextlib.nullcontext, waiting_for_nothing):  # kernels are compiled first
        with mode():
            for _ in range(3):
                crossent.cross_entropy(x, y, reduction=reduction, **options).backward(upstream)
    assert x.grad.isfinite().all()


def test_a_captured_step(way):
    """What is captured computes with the numbers that are there later."""
    x, y, _ = case((300, 3000), torch.float32)
    step(x, y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(x, y)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    x.grad = None
    with torch.cuda.graph(graph):
        loss = crossent.cross_entropy(x, y)
        (gradient,) = torch.autograd.grad(loss, x)
    for seed in range(3):
        new, labels, _ = case((300, 3000), torch.float32, seed)
        with torch.no_grad():
            x.copy_(new), y.copy_(labels)
        graph.replay()
        for ours, expected in zip((loss, gradient), exact(x, y)):
            torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(300, 3000), (3, 33000), (5, 19, 33, 35)], ids=str)
def test_in_place(shape, dtype):
    """In the memory of the logits."""
    x, y, _ = case(shape, dtype)
    there = x.detach().clone().requires_grad_()
    crossent.cross_entropy(there, y, inplace_backward=True, reduction="sum").backward()
    assert there.grad.data_ptr() == there.data_ptr()
    _, expected = step(x, y, reduction="sum")
    torch.testing.assert_close(there.grad, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_offsets_beyond_32_bits():
    """Logits of more than 2**31 numbers, of which the last rows are right."""
    rows, classes = 70000, 32000
    if torch.cuda.mem_get_info()[0] < 3 * 2 * rows * classes:
        pytest.skip("takes 14 GB of the GPU's memory")
    x = torch.randn(rows, classes, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    y = torch.randint(classes, (rows,), device=DEVICE)
    loss, gradient = step(x, y, reduction="sum")
    last, gradient_of_last = step(x.detach()[-8:].clone().requires_grad_(), y[-8:], reduction="sum")
    torch.testing.assert_close(gradient[-8:], gradient_of_last, rtol=2**-7, atol=1e-6)
    assert loss.isfinite() and last < loss
