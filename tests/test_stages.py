"""The contract of kernels in two stages, on what stands in for devices and array libraries to come."""

import numpy as np
import pytest
import torch
from dummy_device import DummyKernels
from harness import check, expected, in_stages, on_dummy_device, on_unknown_device, quantise
from test_contract import LAYOUTS, OPTION_SHAPES, OPTIONS, SHAPES, identify, make

import crossent
from crossent import _dispatch
from crossent._call import Call
from crossent._options import loss_options
from crossent.frontends import _stages
from crossent.frontends._cpu import CpuKernels
from crossent.frontends.numpy.losses import NUMPY
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.staged import PLAIN_KERNELS
from crossent.kernels import plain

WAYS = ["stages", "unknown device", "dummy device", "dummy library"]
DTYPES = {"stages": ["bfloat16", "float32", "float64"], "dummy library": ["float32", "float64"]}
EVERYWHERE = [(way, dtype) for way in WAYS for dtype in DTYPES.get(way, ["float16", "bfloat16", "float32", "float64"])]


@pytest.fixture(autouse=True)
def dummy_library(monkeypatch):
    import dummy_library

    monkeypatch.setitem(_dispatch._ROUTERS, "array_api_strict", lambda: dummy_library)


@pytest.mark.parametrize(("way", "dtype"), EVERYWHERE)
@pytest.mark.parametrize("options", OPTIONS)
def test_options(way, dtype, options):
    for shape, dim in OPTION_SHAPES:
        logits, target, keywords = make(shape, dim, **OPTIONS[options])
        check(way, "cross_entropy", logits, target, dtype=dtype, **keywords)


@pytest.mark.parametrize(
    ("way", "dtype"), [("stages", "float32"), ("unknown device", "float32"), ("dummy device", "float32")]
)
@pytest.mark.parametrize("shape", SHAPES, ids=identify)
def test_shapes_and_layouts(way, dtype, shape):
    for layout in LAYOUTS:
        logits, target, options = make(*shape, ignored=True)
        check(way, "cross_entropy", logits, target, dtype=dtype, layout=layout, **options)


@pytest.mark.parametrize("dtype", DTYPES["dummy library"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_the_dummy_library(name, dtype):
    for shape, dim in OPTION_SHAPES:
        check("dummy library", name, make(shape, dim)[0], dim=-1 if dim is None else dim, dtype=dtype)


@pytest.mark.parametrize("way", [in_stages, on_dummy_device, on_unknown_device])
def test_ways(way):
    """The node is that of the stages, it can be differentiated again, and plan tells the way."""
    x = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.tensor([0, 6, 3, -100, 2])
    with way():
        assert type(crossent.cross_entropy(x, y).grad_fn).__name__ == "_StagedCrossEntropyBackward"
        assert crossent.plan(crossent.cross_entropy, x, y).path == "kernels in two stages"
        assert crossent.plan(crossent.nll_loss, x, y).path == "plain operations"
        torch.autograd.gradcheck(lambda x: crossent.cross_entropy(x, y, label_smoothing=0.1), x)
        torch.autograd.gradgradcheck(lambda x: crossent.cross_entropy(x, y, label_smoothing=0.1), x)
        soft = torch.softmax(x.detach(), 1).requires_grad_()
        torch.autograd.gradcheck(lambda x, t: crossent.cross_entropy(x, t, z_loss=0.1, softcap=3.0), (x, soft))


@pytest.mark.parametrize("way", [in_stages, on_dummy_device, on_unknown_device])
@pytest.mark.parametrize("bad", [7, -1, 2**40])
def test_bad_labels(way, bad):
    x, y = torch.zeros(2, 7, 3), torch.zeros(2, 3, dtype=torch.int64)
    y[1, 1] = bad
    with way(), pytest.raises(IndexError, match=rf"Target {bad} at position \(1, 1\) is out of bounds: .* 0 and 6"):
        crossent.cross_entropy(x, y)
    with way():
        assert crossent.cross_entropy(x, y, ignore_index=bad).isfinite()


@pytest.mark.parametrize("way", [in_stages, on_unknown_device])
def test_no_classes_at_all(way):
    """As on the CPU: ignored rows have the loss 0, and there can be no other labels."""
    x, y = torch.zeros(3, 0, requires_grad=True), torch.full((3,), -100)
    with way():
        for reduction, expected in (("none", [0.0, 0.0, 0.0]), ("sum", 0.0), ("mean", torch.nan)):
            loss = crossent.cross_entropy(x, y, reduction=reduction)
            torch.testing.assert_close(loss, torch.tensor(expected), equal_nan=True)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            assert gradient.shape == (3, 0)


@pytest.mark.parametrize("way", [in_stages, on_dummy_device, on_unknown_device])
def test_ignored_rows_have_no_gradient(way):
    x = torch.full((3, 5), torch.nan).requires_grad_()
    with torch.no_grad():
        x[1] = 0.0
    with way():
        loss = crossent.cross_entropy(x, torch.tensor([-100, 2, -100]), reduction="none")
        loss.backward(torch.tensor([torch.nan, 1.0, torch.inf]))
    assert torch.equal(x.grad[[0, 2]], torch.zeros(2, 5)) and x.grad[1].isfinite().all()


@pytest.mark.parametrize("way", WAYS[:3])
def test_far_apart(way):
    """A label far above all others, and far below; exponentials relative to the wrong one would overflow."""
    for distance in (150.0, -150.0):
        logits = np.random.default_rng(0).normal(size=(3, 6))
        logits[:, 2] += distance
        for options in ({}, {"label_smoothing": 0.1, "z_loss": 0.01}):
            check(way, "cross_entropy", logits, np.array([2, 2, 4]), dtype="float32", reduction="none", **options)


@pytest.mark.parametrize("soft", [False, True])
def test_copies(soft):
    """Logits whose classes do not lie side by side are copied for either pass over them, and for the losses not. The
    gradient is written over the copy.
    """
    copies, new = [], []

    class Counting(TORCH):
        @staticmethod
        def contiguous(tensor):
            copies.extend([tensor.shape] if tensor.ndim == 3 and not tensor.is_contiguous() else [])
            return tensor.contiguous()

        @staticmethod
        def empty(layout, like):
            new.append(like.shape)
            return TORCH.empty(layout, like)

    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    target = torch.softmax(x, 1) if soft else torch.tensor([[0, 5, 2, -100], [1, 1, 3, 4]])
    lib, before, leaf = Counting, x.clone(), x.double().requires_grad_()
    device, tensors, call = CpuKernels(lib), (x, target, None, None), Call(loss_options(), 1)
    rows = _stages.rows_of(lib, tensors, call)
    finished = _stages.loss(lib, device, rows, call, target)
    assert len(copies) == 1 and not new
    dx, _ = _stages.gradients(lib, device, rows, finished, torch.tensor(1.0), tensors[:2])
    assert len(copies) == 2 and not new and torch.equal(x, before)
    exact = torch.nn.functional.cross_entropy(leaf, target.double() if soft else target)
    exact.backward()
    torch.testing.assert_close(dx.double(), leaf.grad, rtol=1e-5, atol=1e-7)
    assert finished.loss.item() == pytest.approx(exact.item(), rel=1e-6)


KERNELS = {
    "cpu": (TORCH, CpuKernels(TORCH), torch.as_tensor),
    "cpu, NumPy": (NUMPY, CpuKernels(NUMPY), np.asarray),
    "plain": (TORCH, PLAIN_KERNELS, torch.as_tensor),
    "dummy": (TORCH, DummyKernels(), torch.as_tensor),
}
SHARDS = {"even": [0, 5, 10], "uneven": [0, 1, 2, 9, 10], "with empty ones": [0, 0, 4, 4, 10, 10]}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shards_of_the_classes(kernels, shards, options, dtype):
    """The sums of shards, put together, are those of all classes: each shard finishes with its part of the gradient."""
    check_shards(KERNELS[kernels], SHARDS[shards], options, dtype)


def check_shards(kernels, edges, options, dtype="float32"):
    lib, device, asarray = kernels
    logits, target, keywords = make((13, 10), None, **OPTIONS[options])
    soft, logits = target.ndim == 2, quantise(logits, dtype)
    if not soft and not keywords.get("label_smoothing"):
        logits[2, :5] = -np.inf  # all that a shard has
        target[2] = 7
    logits[3] -= 1000.0
    target = quantise(target, dtype) if soft else target
    upstream = np.ones(13) if keywords.get("reduction") == "none" else np.array(1.0)
    value, gradient = expected("cross_entropy", logits, target, upstream=upstream, **keywords)
    weight, samples, divisor = (keywords.pop(key, None) for key in ["weight", "sample_weight", "denominator"])
    call = Call(loss_options(**keywords), 1, divisor=divisor)

    def shard_of(lo, hi):
        of_target = np.ascontiguousarray(target[:, lo:hi], dtype) if soft else target
        arrays = np.ascontiguousarray(logits[:, lo:hi], dtype), of_target, weight if weight is None else weight[lo:hi]
        return tuple(None if array is None else asarray(array) for array in (*arrays, samples))

    shards = [shard_of(lo, hi) for lo, hi in zip(edges, edges[1:])]
    rows = [_stages.rows_of(lib, shard, call, lo, 10) for shard, lo in zip(shards, edges)]
    whole, gradients = plain.merged(lib.xp, [device.sums(part) for part in rows]), []
    eps = np.finfo(dtype).eps
    for shard, part in zip(shards, rows):
        finished = _stages.loss(lib, device, part, call, shard[1], merge=lambda _: whole)
        np.testing.assert_allclose(np.asarray(finished.loss, np.float64), value, rtol=8 * eps, atol=4000 * eps)
        gradients.append(_stages.gradients(lib, device, part, finished, asarray(upstream), shard[:1])[0])
    largest = max(1.0, float(np.abs(gradient).max()))
    np.testing.assert_allclose(np.concatenate(gradients, axis=1), gradient, rtol=0, atol=4000 * eps * largest)
