"""The fused head and the statistics of tokens on a device: on CPU tensors, by the contract of kernels in two stages."""

from threading import Thread

import numpy as np
import pytest
import test_head
import test_head_autograd
import test_tokens as of_tokens
import torch
from harness import Chunks, grouped, on_unknown_device
from test_head import KINDS, OPTIONS, REDUCTIONS, SHAPES, _rms, case_of, check, exact_head, run
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

import crossent
from crossent.frontends.torch import device_filter, device_products, labels, late, modes, nodes, staged, staged_head
from crossent.frontends.torch.device_products import DeviceProducts, multiply
from crossent.frontends.torch.staged import PLAIN_KERNELS

GB = 2**30
DEVICES = [("unknown device", dtype) for dtype in ("float16", "bfloat16", "float32", "float64")]
DEVICES += [("dummy device", "float32"), ("stages", "float32")]


@pytest.mark.parametrize("way", ["unknown device", "dummy device"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_reference_where_labels_are_looked_at_now(kind, way, monkeypatch):
    monkeypatch.setenv("CROSSENT_CHECK_LABELS", "now")
    for reduction in REDUCTIONS:
        case = case_of("(B, T, D)", kind, "everything", "float32", reduction=reduction)
        check(way, case, "float32", options=Chunks(batch_chunk_size=3))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("way", "dtype"), DEVICES)
def test_against_the_reference(way, dtype, kind, option):
    shapes = SHAPES if kind != "sparse" else ["(N, D)", "(B, T, D)"]
    for number, shape in enumerate(shapes):
        reduction = REDUCTIONS[(number + OPTIONS.index(option)) % 3]
        case = case_of(shape, kind, option, dtype, reduction=reduction)
        check(way, case, dtype, options=Chunks(batch_chunk_size=3))


@pytest.mark.parametrize("way", ["triton", "triton at once"])
@pytest.mark.parametrize("kind", KINDS)
def test_on_the_kernels_of_gpus(kind, way):
    """Which Triton's interpreter runs; bfloat16 it cuts off instead of rounding."""
    pytest.importorskip("triton")
    for number, (shape, option) in enumerate([("(N, D)", "plain"), ("(B, T, D)", "everything"), ("(N, D)", "bias")]):
        for dtype in ("float16", "float32"):
            case = case_of(shape, kind, option, dtype, reduction=REDUCTIONS[(number + KINDS.index(kind)) % 3])
            check(way, case, dtype, options=Chunks(batch_chunk_size=5))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_chunks_do_not_matter(dtype, kind, reduction):
    case = case_of((9,), kind, "everything", dtype, classes=37, reduction=reduction)
    accurate = {"options": Chunks(acc_policy="accurate", batch_chunk_size=4)}
    for how in [{}, {"options": Chunks(batch_chunk_size=4)}, accurate, {"chunk_bytes": 1}]:
        check("unknown device", case, dtype, **how)


@pytest.mark.parametrize("leading", [(6,), (2, 2, 6)], ids=str)
@pytest.mark.parametrize("shift", [1, 5, 7])
def test_shift(shift, leading):
    for kind, reduction in zip(KINDS, REDUCTIONS):
        test_head.test_shift("unknown device", shift, leading, reduction, kind)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_targets_that_do_not_count(dtype, reduction):
    for option in ("plain", "everything"):
        test_head.test_ignored_rows_may_hold_anything("unknown device", dtype, reduction, option)
    for how in ("ignored", "weight 0", "no rows", "no rows left by the shift"):
        test_head.test_nothing_counts("unknown device", dtype, 0.1, reduction, how)


def test_many_chunks_in_bfloat16():
    test_head.test_many_chunks_in_bfloat16("unknown device", "mean")


@pytest.fixture
def on_a_device():
    with on_unknown_device():
        yield


ON_A_DEVICE = pytest.mark.usefixtures("on_a_device")


@ON_A_DEVICE
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_graph(reduction):
    """Second backward passes, any upstream gradient, derivatives of derivatives, checkpoints and hooks."""
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        test_head_autograd.test_second_backward(dtype, reduction, 2)
    for upstream in (0.0, -3.0, float("inf")):
        test_head_autograd.test_upstream(reduction, upstream)
    test_head_autograd.test_upstream_of_an_ignored_row_does_not_matter()
    test_head_autograd.test_create_graph(reduction, 2)
    test_head_autograd.test_checkpoint(False, reduction)
    test_head_autograd.test_saved_tensor_hooks(reduction, "sparse")


@ON_A_DEVICE
def test_the_node_is_that_of_the_kernels():
    x, matrix = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3)
    labels = torch.tensor([0, 6, -100, 3, 2])
    assert type(crossent.linear_cross_entropy(x, matrix, labels).grad_fn).__name__ == "_LinearCrossEntropyBackward"
    assert "TokenStats" in type(crossent.linear_token_stats(x, matrix, labels).logprob.grad_fn).__name__


@ON_A_DEVICE
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_tokens(dtype, shift, softcap):
    of_tokens.check_values_and_gradients(dtype, shift, softcap, 1000)


@ON_A_DEVICE
def test_rows_of_tokens():
    of_tokens.test_ignored_rows_may_hold_nan()
    of_tokens.test_func_and_one_result_alone()
    of_tokens.test_ties_go_by_class_order(40, 3.0)
    of_tokens.test_confident_rows_keep_their_digits()
    for gap in (1.0, 20.0, 80.0):
        of_tokens.test_results_of_confident_rows(gap, plainly=False)


@ON_A_DEVICE
def test_logits_of_minus_infinity_have_no_gradient():
    weight = torch.tensor([[1.0], [-torch.inf], [0.5]], requires_grad=True)
    stats = crossent.linear_token_stats(torch.ones(2, 1), weight, torch.tensor([0, 2]))
    (gradient,) = torch.autograd.grad(sum(value.sum() for value in stats[:3]), weight)
    assert gradient[1] == 0 and gradient.isfinite().all()


@ON_A_DEVICE
def test_no_copy_of_the_input_waits_for_the_backward_pass():
    x, matrix = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    loss = crossent.linear_cross_entropy(x, matrix, torch.tensor([0, 6, -100, 3, 2]))
    assert loss.grad_fn.made[1].head is None


@ON_A_DEVICE
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled(reduction, monkeypatch):
    """A graph has operators of the same kernels."""
    x, matrix = (torch.randn(*size, 4, requires_grad=True) for size in ((2, 5), (7,)))
    labels, made = torch.arange(10).reshape(2, 5) % 7, []

    def step(x, matrix):
        loss = crossent.linear_cross_entropy(x, matrix, labels, shift=1, reduction=reduction)
        stats = crossent.linear_token_stats(x, matrix, labels, shift=1)
        return loss.square().sum() + (stats.logprob * stats.entropy).sum()

    expected = step(x, matrix)
    expected = expected, *torch.autograd.grad(expected, (x, matrix))
    head_of = staged_head.head_of
    monkeypatch.setattr(staged_head, "head_of", lambda *given: made.append(1) or head_of(*given))
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(x, matrix)
    found = found, *torch.autograd.grad(found, (x, matrix))
    assert len(made) == (4 if reduction == "none" else 3)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs)


# Products and chunks


@pytest.mark.parametrize("adds", [False, True])
def test_products_that_are_added_in_float32(adds, monkeypatch):
    """The same numbers, whether PyTorch can add 16 bits to 32 or not."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).bfloat16() for shape in ((7, 40), (40, 5)))
    before, calls = torch.randn(7, 5, generator=generator), []

    def wide(function):
        def of_16_bits(*matrices, out_dtype=None, out):
            assert out_dtype is torch.float32 and matrices[-1].dtype is torch.bfloat16
            calls.append(function.__name__)
            return function(*(matrix.float() for matrix in matrices), out=out)

        return of_16_bits

    plainly = multiply(a, b, before.clone(), adds)
    for name in ("mm", "addmm"):
        monkeypatch.setattr(torch, name, wide(getattr(torch, name)))
    monkeypatch.setattr(device_products, "_adds_in_float32", lambda device: True)
    assert torch.equal(multiply(a, b, before.clone(), adds), plainly) and calls == ["addmm" if adds else "mm"]
    exact = a.double() @ b.double() + (before.double() if adds else 0)
    torch.testing.assert_close(plainly.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("memory", "whole", "many"), [(16 * 8, 8, 2), (16, 1, 1), (None, 1 / 16, 1 / 16)])
def test_usual_chunks(memory, whole, many):
    """Gigabytes up to which all rows are one chunk, and of a chunk of more rows."""
    x, memory = torch.zeros(1, 1), None if memory is None else memory * GB
    products = DeviceProducts(x, PLAIN_KERNELS, False, memory)
    assert (products.one_chunk_up_to, products.chunk_bytes) == (whole * GB, many * GB)
    products = DeviceProducts(x, PLAIN_KERNELS, False, memory, spread=True)
    assert products.one_chunk_up_to == products.chunk_bytes == GB


@ON_A_DEVICE
def test_plan(monkeypatch):
    """The rows of a chunk, and why; chunks of nearly the same size, so that no small one is left over."""
    x, matrix = (torch.zeros(rows, 8, dtype=torch.bfloat16, requires_grad=True) for rows in (3000, 1000))
    call = crossent.linear_cross_entropy, x, matrix, torch.zeros(3000, dtype=torch.int64)
    sums = "MB are float32 sums for the gradient of linear_weight"
    for memory, rows, chunks, why in [
        (16 * 6_000_000, 3000, 1, "all rows are one chunk, which takes no more than a sixteenth of the device's 0.1"),
        (16 * 5_200_000, 1536, 2, "all rows would take more than a sixteenth of the device's 0.1 GB; a chunk takes"),
        (None, 3000, 1, "a chunk takes 67.1 MB at most"),
    ]:
        monkeypatch.setattr(staged_head, "memory_of", lambda device, memory=memory: memory)
        planned = crossent.plan(*call)
        assert planned.path == "kernels in two stages" and (planned.chunk_rows, planned.chunks) == (rows, chunks)
        assert why in str(planned) and (sums in str(planned)) == (chunks > 1)
        assert planned.extra_bytes > 2 * rows * 1000 + (4 * matrix.numel() if chunks > 1 else 0)
        assert "rounded to bfloat16, which the device multiplies" in str(planned)
    planned = crossent.plan(*call, chunk_bytes=2 * 1000 * 10, filter_eps=0.1)
    assert planned.chunks == 300 and "at most" not in str(planned)
    assert "leaves no class out: that takes PyTorch 2.10 or later, and an NVIDIA GPU of" in str(planned)
    wide = x.detach().float().requires_grad_(), matrix.float()
    planned = crossent.plan(call[0], *wide, call[3], filter_eps=0.1)
    assert "leaves no class out: on a device that takes bfloat16, and features in a multiple of 8" in str(planned)
    monkeypatch.setattr(device_products, "_ends_on_device", lambda device: True)
    for rows, chunks, copies in (3000, 1, 16_000), (1536, 2, 32_000):
        how = call, {"options": Chunks(batch_chunk_size=rows)}
        plain, planned = (crossent.plan(*how[0], filter_eps=eps, **how[1]) for eps in (0.0, 0.1))
        assert planned.chunks == chunks and f"{copies / 1e6:.1f} MB are copies of linear_weight or" in str(planned)
        assert planned.extra_bytes - plain.extra_bytes == 2 * rows * 1000 + copies
    tokens = crossent.plan(crossent.linear_token_stats, *call[1:], chunk_bytes=2**20)
    assert tokens.chunk_rows < 2**20 // (2 * 1000) // 8 and "makes the logits again" in str(tokens)


# Leaving out of the gradients


@ON_A_DEVICE
def test_a_filter_leaves_nothing_out():
    leaves = [torch.randn(rows, 6, dtype=torch.float64, requires_grad=True) for rows in (20, 200)]
    losses = [crossent.linear_cross_entropy(*leaves, torch.arange(20), filter_eps=eps) for eps in (0.0, 0.5)]
    expected, filtered = (torch.autograd.grad(loss, leaves) for loss in losses)
    assert all(torch.equal(a, b) for a, b in zip(expected, filtered))


@pytest.fixture
def chosen(monkeypatch):
    """On a device where classes are left out: how many took part in each product."""
    ends = []
    monkeypatch.setattr(device_products, "why_unfiltered", lambda x: None)
    monkeypatch.setattr(device_filter, "_grouped", lambda *given: ends.append(int(given[2])) or grouped(*given))
    with on_unknown_device():
        yield ends


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="PyTorch 2.10 and later")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_that_end_where_the_device_says(dtype):
    a, b = torch.randn(24, 40).to(dtype), torch.randn(40, 16).to(dtype)
    for end in torch.tensor([[8], [24]], dtype=torch.int32):
        ours, theirs = (product(a, b[None], end)[:end] for product in (device_filter._grouped, grouped))
        torch.testing.assert_close(ours, theirs)
        ours, theirs = (product(a, b[:40], end) for product in (device_filter._grouped, grouped))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="PyTorch 2.10 and later")
def test_a_filter_of_an_input_whose_features_are_apart_in_memory(monkeypatch):
    """PyTorch's own product takes rows that begin at lines alone; here those of the input lie twelve numbers apart."""
    monkeypatch.setattr(device_products, "_ends_on_device", lambda device: True)
    x, matrix = torch.randn(16, 12).bfloat16().t(), torch.randn(200, 16).bfloat16()
    gradients = []
    for given in (x, x.contiguous()):
        leaves = given.detach().requires_grad_(), matrix.detach().requires_grad_()
        with on_unknown_device():
            loss = crossent.linear_cross_entropy(*leaves, torch.arange(12), filter_eps=1e-3)
        gradients.append(torch.autograd.grad(loss, leaves))
    for ours, expected in zip(*gradients):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("classes", "share", "reduction"),
    [(200, 0.4, "mean"), (203, 0.4, "none"), (7, 0.4, "sum"), (64, 0.0, "mean"), (64, 1.0, "none")],
)
@pytest.mark.parametrize("chunk", [5, 12])
def test_a_filter(chunk, classes, share, reduction, chosen):
    """The bound that the docstring gives, with the classes that it says each chunk leaves out, but for those that fill
    up a line of memory; in their place what their sums over parts of the vocabulary span.
    """
    case = case_of((12,), "labels", "bias", classes=classes, features=16, reduction=reduction)
    factor = np.full(12, 1 / 12 if reduction == "mean" else 1.0)
    upstream = np.random.default_rng(5).normal(size=12) if reduction == "none" else 1.0
    dlogits = np.asarray(exact_head(**case | {"reduction": "sum"})[2], np.float64)
    eps = float(np.quantile(_rms(dlogits[:chunk]), share)) if share < 1 else 0.99
    how = {"dtype": "float64", "upstream": upstream, "options": Chunks(batch_chunk_size=chunk)}
    loss, exact = run("unknown device", **case, **how)
    assert not chosen
    filtered_loss, (dx, dweight, dbias, _) = run("unknown device", **case, filter_eps=eps, **how)
    assert np.array_equal(filtered_loss, loss)
    np.testing.assert_allclose(dbias, exact[2], rtol=1e-12, atol=1e-15)
    expected, ends = np.zeros_like(dweight), []
    for lo in range(0, 12, chunk):
        part = slice(lo, lo + chunk)
        left_out = _rms(dlogits[part]) <= eps
        numbers = np.flatnonzero(~left_out)
        ends += 2 * [max(2, len(numbers) + len(numbers) % 2)]  # a line of 16 bytes holds two numbers
        left_out[np.flatnonzero(left_out)[: ends[-1] - len(numbers)]] = False
        small = np.where(left_out, dlogits[part], 0) * (factor * upstream)[part, None]
        edges = [-(-i * classes // 8) for i in range(min(8, classes))]
        basis, sizes, _ = np.linalg.svd(np.add.reduceat(small, np.unique(edges), axis=1), full_matrices=False)
        span = basis[:, sizes > 1e-12]
        replaced = span @ (span.T @ small)
        bound = eps * (small.shape[0] * left_out.sum()) ** 0.5 * np.abs((factor * upstream)[part]).max()
        assert np.linalg.norm(replaced - small) <= bound
        remaining = dlogits[part] * (factor * upstream)[part, None] - small + replaced
        np.testing.assert_allclose(dx[part], remaining @ case["matrix"], rtol=1e-8, atol=1e-11)
        expected += remaining.T @ case["x"][part]
    assert chosen == ends
    np.testing.assert_allclose(dweight, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_of_every_class(kind, chosen):
    """Of every kind of head, in whatever dtype: then the gradients are what they are without."""
    for dtype, shape, option in [
        ("float64", "(N, D)", "everything"),
        ("bfloat16", "(B, T, D)", "everything"),
        ("float16", (9,), "bias"),
    ]:
        for number, reduction in enumerate(REDUCTIONS):
            case = case_of(shape, kind, option, dtype, classes=13, reduction=reduction)
            accurate = {"acc_policy": "accurate"} if number == 1 else {}
            how = {"filter_eps": 1e-30, "options": Chunks(batch_chunk_size=5, **accurate)}
            check("unknown device", case, dtype, **how)
    assert chosen


def test_what_a_filter_does_not_depend_on(chosen):
    test_head.test_filter_of_everything_and_of_frozen_parts()
    for rows, kinds in (1, 1), (40, 2):
        test_head.test_a_filter_of_few_different_rows("torch", rows, kinds)
    for dtype in ("bfloat16", "float32"):
        test_head.test_filter_is_by_the_derivative_of_each_rows_loss(dtype)
    for denominator in (1e-20, 1e24):
        test_head.test_a_filter_does_not_depend_on_the_scale(denominator, 99)
    assert len(chosen) > 20


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_filter_of_shifted_labels_and_in_a_graph(reduction, chosen):
    """With what it leaves out where all rows are alike: then nothing is missing."""
    x = torch.randn(1, 1, 6).expand(3, 4, 6).clone().requires_grad_()
    matrix, labels = torch.randn(90, 6, requires_grad=True), torch.zeros(3, 4, dtype=torch.int64)

    def step(x, matrix, eps):
        loss = crossent.linear_cross_entropy(x, matrix, labels, shift=2, reduction=reduction, filter_eps=eps)
        return loss.square().sum()

    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        exact, ours = (torch.autograd.grad(function(x, matrix, eps), (x, matrix)) for eps in (0.0, 0.05))
        assert max(chosen) < 90 and chosen.clear() is None
        for a, b in zip(ours, exact):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_filter_leaves_what_is_not_finite_to_be_seen(chosen):
    for where in ("hidden", "denominator"):
        test_head.test_a_filter_leaves_what_is_not_finite_to_be_seen("torch", where)
    test_head.test_a_filter_under_an_infinite_upstream_gradient()
    assert chosen.pop() == 12  # all of 10, filled up
    leaves = [torch.randn(size, 4, requires_grad=True) for size in (8, 64)]
    probs, upstream = torch.full((8, 64), 1 / 64), torch.ones(8)
    for array in (probs, upstream):
        array[5], before = torch.inf, array[5].clone()
        loss = crossent.linear_cross_entropy(*leaves, probs, reduction="none", filter_eps=0.9)
        dx, dweight = torch.autograd.grad(loss, leaves, upstream)
        assert dx.isfinite().all(1).tolist() == [row != 5 for row in range(8)]
        assert not dweight.isfinite().any() and chosen[-1] == 64
        array[5] = before


# Bad labels


@pytest.fixture
def late_errors(monkeypatch):
    """As if the host had to wait for what is in a tensor."""
    monkeypatch.setattr(late, "is_late", lambda tensor: True)
    monkeypatch.setattr(late, "_late", late._Late())
    with on_unknown_device():
        yield late._late


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shift", [0, 1])
def test_a_bad_label_is_told_later(shift, reduction, late_errors):
    """Its loss is nan and its gradient 0; the other rows have the gradients that they have without it."""
    x, matrix = (torch.randn(*size, 4, dtype=torch.float64, requires_grad=True) for size in ((2, 5), (7,)))
    weight, tokens = torch.rand(7), torch.arange(10).reshape(2, 5) % 7
    options = {"shift": shift, "weight": weight, "reduction": reduction, "options": Chunks(batch_chunk_size=4)}
    tokens[1, 2] = bad = 2**40
    loss = crossent.linear_cross_entropy(x, matrix, tokens, **options)
    if reduction == "none":
        assert loss.isnan().sum() == 1 and loss[1, 2 - shift].isnan()
    else:
        assert loss.isnan()
    with pytest.raises(IndexError, match=rf"Target {bad} at position \(1, 2\) .* between 0 and 6"):
        loss.sum().backward()
    gradients = torch.autograd.grad(loss.sum(), (x, matrix))  # it was told once
    tokens[1, 2] = -100
    expected = torch.autograd.grad(crossent.linear_cross_entropy(x, matrix, tokens, **options).sum(), (x, matrix))
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected)) and expected[1].count_nonzero()


def test_a_bad_class_of_a_sparse_target_is_told_later(late_errors):
    x, matrix = (torch.randn(size, 4, dtype=torch.float64, requires_grad=True) for size in (5, 7))
    classes, probs = torch.arange(10).reshape(5, 2) % 7, torch.rand(5, 2, dtype=torch.float64)
    classes[3, 1] = -2
    losses = crossent.linear_cross_entropy(x, matrix, crossent.SparseTarget(classes, probs), reduction="none")
    assert losses.isnan().tolist() == [False, False, False, True, False]
    with pytest.raises(IndexError, match=r"Class -2 at position \(3, 1\)"):
        losses.sum().backward()
    gradient, _ = torch.autograd.grad(losses.sum(), (x, matrix))
    assert gradient.isfinite().all() and (gradient[3] == 0).all() and gradient[2].count_nonzero()


@pytest.mark.parametrize(("dtype", "bad"), [(torch.int64, -9), (torch.uint16, 9), (torch.uint64, 2**64 - 9)])
def test_labels_that_were_overwritten_and_let_go(dtype, bad, late_errors):
    """The error has the label that was bad. No tensor is kept for it."""
    x, matrix = (torch.randn(size, 4, requires_grad=True) for size in (5, 7))
    labels = torch.tensor([0, bad, 2, 3, 4], dtype=dtype)
    crossent.linear_cross_entropy(x, matrix, labels)
    labels.copy_(torch.tensor([0, 5, 2, 3, 4]).to(dtype))
    with pytest.raises(IndexError, match=f"Target {bad} at position 1 "):
        late_errors.look()
    crossent.linear_cross_entropy(x, matrix, labels)
    kept = [error for notes in late_errors.notes.values() for _, error in filter(None, notes.meaning)]
    assert kept and not any(isinstance(value, torch.Tensor) for error in kept for value in error.args)


def test_a_bad_label_of_a_token_is_told_later(late_errors):
    x, matrix = (torch.randn(size, 4, requires_grad=True) for size in (5, 7))
    stats = crossent.linear_token_stats(x, matrix, torch.tensor([0, 6, 7, -100, 3]))
    for some in stats[:3]:
        assert some.isnan().tolist() == [False, False, True, False, False]
    assert stats.rank[2:4].tolist() == [-1, -1]
    with pytest.raises(IndexError, match=r"Target 7 at position 2 "):
        stats.logprob.sum().backward()
    gradient, of_weight = torch.autograd.grad(stats.logprob.sum(), (x, matrix))
    assert (gradient[2:4] == 0).all() and of_weight.isfinite().all() and gradient[4].count_nonzero()


def test_bad_labels_are_told_at_once_where_nothing_is_differentiated(late_errors):
    with pytest.raises(IndexError, match="Target 7 at position 1 "):
        crossent.linear_cross_entropy(torch.zeros(2, 4), torch.zeros(7, 4), torch.tensor([0, 7]))
    with pytest.raises(IndexError, match="Target 7 at position 1 "):
        crossent.linear_token_stats(torch.zeros(2, 4), torch.zeros(7, 4), torch.tensor([0, 7]))


def test_bad_labels_are_told_later_in_compiled_code(late_errors):
    """In evaluation too."""
    arrays = torch.zeros(2, 4), torch.zeros(7, 4), torch.tensor([0, 7])
    for function in (crossent.linear_cross_entropy, lambda *given: crossent.linear_token_stats(*given).logprob.sum()):
        with torch.no_grad():
            assert torch.compile(function, fullgraph=True, backend="aot_eager")(*arrays).isnan()
        with pytest.raises(IndexError, match="Target 7 at position 1 "):
            late.look()


# Ignored rows, where the host waits for the labels anyway


@pytest.fixture
def computed(monkeypatch):
    """On a device: the rows of each product that makes logits."""
    rows, logits = [], DeviceProducts.logits
    monkeypatch.setattr(DeviceProducts, "logits", lambda self, x, *rest: rows.append(len(x)) or logits(self, x, *rest))
    with on_unknown_device():
        yield rows


def results_of(call, leaves, when, computed, monkeypatch):
    """Results and the gradients of two backward passes, the labels looked at `when`; the rows forward, and in all."""
    monkeypatch.setenv("CROSSENT_CHECK_LABELS", when)
    computed.clear()
    results = list(call(*leaves))
    forward, differentiated = sum(computed), results[:3]
    above = [torch.linspace(1, 2, result.numel()).reshape(result.shape).to(result.dtype) for result in differentiated]
    for _ in range(2):
        results += torch.autograd.grad(differentiated, leaves, above, retain_graph=True)
    return results, forward, sum(computed)


@pytest.mark.parametrize("ignored", [0, 10, 24])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("function", [*REDUCTIONS, "sparse", "filtered", "tokens"])
def test_ignored_rows_are_left_out_where_the_host_waits(function, shift, ignored, computed, monkeypatch):
    """In backward passes too; the numbers are those of all rows."""
    dtype = {"tokens": torch.float32, "filtered": torch.bfloat16}.get(function, torch.float64)
    leaves = [torch.randn(*size, 6).to(dtype).requires_grad_() for size in ((3, 8), (11,))]
    counts, labels = torch.arange(24).reshape(3, 8) >= ignored, torch.randint(11, (3, 8))
    how = {"shift": shift, "options": Chunks(batch_chunk_size=5)}
    if function == "filtered":
        monkeypatch.setattr(device_products, "why_unfiltered", lambda x: None)
        monkeypatch.setattr(device_filter, "_grouped", grouped)
        how["filter_eps"] = 1e-30
    if function == "sparse":
        labels = crossent.SparseTarget(torch.randint(11, (3, 8, 2)), torch.rand(3, 8, 2, dtype=dtype))
        how["sample_weight"] = counts.double()
    else:
        labels = torch.where(counts, labels, -100)

    def call(x, matrix):
        if function == "tokens":
            return crossent.linear_token_stats(x, matrix, labels, shift=shift)
        reduction = function if function in REDUCTIONS else "mean"
        return (crossent.linear_cross_entropy(x, matrix, labels, reduction=reduction, **how),)

    tolerance = {"rtol": 0.05, "atol": 0.01} if dtype is torch.bfloat16 else {}
    later, now = (results_of(call, leaves, when, computed, monkeypatch) for when in ("later", "now"))
    for a, b in zip(now[0], later[0], strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, **tolerance)
    count = int(counts[:, shift:].sum())
    assert later[1] == 24 and now[1] == count and now[2] * 24 == later[2] * count
    monkeypatch.delenv("CROSSENT_CHECK_LABELS")
    computed.clear()
    with torch.no_grad():
        call(*leaves)
    assert sum(computed) == count


def test_where_rows_are_not_counted(computed, monkeypatch):
    """In training by default, in compiled code and in a graph that is being captured."""
    leaves = [torch.randn(size, 6, requires_grad=True) for size in (8, 11)]
    labels = torch.tensor([3, -100, 2, -100, -100, 5, 6, -100])

    def step(x, matrix):
        return crossent.linear_cross_entropy(x, matrix, labels), *crossent.linear_token_stats(x, matrix, labels)

    step(*leaves)
    monkeypatch.setenv("CROSSENT_CHECK_LABELS", "now")
    torch.compile(step, fullgraph=True, backend="aot_eager")(*leaves)
    monkeypatch.setattr(late, "is_captured", lambda device: True)
    step(*leaves)
    assert computed == [8] * 6


def test_bad_labels_where_rows_are_counted(late_errors, computed, monkeypatch):
    """They are told at once, and are no reason to wait for twice."""
    leaves, labels = [torch.randn(size, 4, requires_grad=True) for size in (5, 7)], torch.tensor([0, -100, 2, 7, -100])
    monkeypatch.setenv("CROSSENT_CHECK_LABELS", "now")
    noted, left = [], late.left
    monkeypatch.setattr(late, "left", lambda bad, error: noted.append(bad) or left(bad, error))
    monkeypatch.setattr(late, "_refuse", None)
    for function in (crossent.linear_cross_entropy, crossent.linear_token_stats):
        with pytest.raises(IndexError, match="Target 7 at position 3 "):
            function(*leaves, labels)
    assert len(noted) == 2 and not computed
    classes = crossent.SparseTarget(torch.tensor([[1], [2], [9], [0], [1]]), torch.ones(5, 1))
    with pytest.raises(IndexError, match=r"Class 9 at position \(2, 0\)"):
        crossent.linear_cross_entropy(*leaves, classes)


def test_no_other_thread_is_told_of_labels_that_are_looked_at_now(late_errors, monkeypatch):
    """Even if one looks for errors while this call waits."""
    told, read = [], staged_head._read

    def look():
        try:
            late.look()
        except IndexError as error:
            told.append(error)

    def waiting(counted):
        count = read(counted)
        thread = Thread(target=look)
        thread.start()
        thread.join()
        return count

    monkeypatch.setattr(staged_head, "_read", waiting)
    with torch.no_grad(), pytest.raises(IndexError, match="Target 7 at position 1"):
        crossent.linear_cross_entropy(torch.zeros(2, 4), torch.zeros(7, 4), torch.tensor([0, 7]))
    assert not told


@ON_A_DEVICE
def test_plan_says_whether_rows_are_counted(monkeypatch):
    x, matrix, labels = torch.zeros(9, 4, requires_grad=True), torch.zeros(7, 4), torch.tensor([1] * 5 + [-100] * 4)
    call = crossent.linear_cross_entropy, x, matrix, labels
    assert "all rows are computed, with zeros for those that do not count" in str(crossent.plan(*call))
    monkeypatch.setenv("CROSSENT_CHECK_LABELS", "now")
    planned = crossent.plan(*call, chunk_bytes=56)
    assert "5 of 9 rows count, and only these" in str(planned) and "waits for the labels anyway" in str(planned)
    assert (planned.chunk_rows, planned.chunks) == (2, 3)


# Nothing is read back


@pytest.fixture
def without_numbers(monkeypatch):
    """Tensors hold no numbers, as if the device had not come to them yet: whoever asks for one gets an error."""
    for where, name, value in [
        (modes, "dispatch_modes", lambda: 0),
        (nodes, "needs_composite", lambda gradient: False),
        (staged, "ORDINARY", (FakeTensor, torch.nn.Parameter)),
        (late, "look", lambda: None),
        (late, "refuse", lambda bad, error: None),
        (late, "refuse_outside_training", lambda bad, error: None),
        (late, "waits", lambda training: False),
        (labels, "concrete", None),
    ]:
        monkeypatch.setattr(where, name, value)
    with on_unknown_device():
        yield FakeTensorMode()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("option", ["plain", "everything", "shift", "filter"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read(kind, option, reduction, without_numbers, monkeypatch):
    """In forward, in backward and in a second backward pass, whatever comes from above."""
    case = case_of((3, 8), kind, option, reduction=reduction, features=8)
    filters = option == "filter" and hasattr(torch.nn.functional, "grouped_mm")
    if filters:
        monkeypatch.setattr(device_products, "why_unfiltered", lambda x: None)
    case |= {"shift": {"shift": 2}, "filter": {"filter_eps": 0.1}}.get(option, {})

    def fake(value, dtype=None):
        """A tensor of the array's shape, or of a number's."""
        if isinstance(value, crossent.SparseTarget):
            return crossent.SparseTarget(fake(value.classes), fake(value.probs, dtype))
        if not isinstance(value, np.ndarray):
            return value
        labels = value.dtype.kind == "i"
        tensor = torch.empty(value.shape, dtype=torch.int64 if labels else dtype or torch.float32)
        return tensor if dtype is None or labels else tensor.requires_grad_()

    with without_numbers:
        if "denominator" in case:
            case["denominator"] = torch.empty(())
        dtype = [torch.float16, torch.bfloat16, torch.float32][REDUCTIONS.index(reduction) - KINDS.index(kind)]
        dtype = torch.bfloat16 if filters else dtype
        in_dtype = {"x", "matrix", "target", "linear_bias"}
        given = {name: fake(value, dtype if name in in_dtype else None) for name, value in case.items()}
        x, matrix, target = (given.pop(name) for name in ("x", "matrix", "target"))
        leaves = [x, matrix, getattr(target, "probs", target), given.get("linear_bias")]
        leaves = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        for rows in (24, 13):
            how = given | {"options": Chunks(batch_chunk_size=rows)}
            loss = crossent.linear_cross_entropy(x, matrix, target, **how)
            assert type(loss.grad_fn).__name__ == "_LinearCrossEntropyBackward"
            for _ in range(2 if rows == 24 else 1):
                gradients = torch.autograd.grad(loss, leaves, torch.empty_like(loss), retain_graph=True)
                assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(gradients, leaves))
        with torch.no_grad():
            crossent.linear_cross_entropy(x, matrix, target, **how)


@pytest.mark.parametrize("shift", [0, 2])
def test_nothing_is_read_of_tokens(shift, without_numbers):
    with without_numbers:
        leaves = [torch.empty(size, 6, requires_grad=True) for size in (24, 11)]
        x, labels = leaves[0].reshape(3, 8, 6), torch.empty(3, 8, dtype=torch.int64)
        stats = crossent.linear_token_stats(x, leaves[1], labels, shift=shift, chunk_bytes=1000)
        torch.autograd.grad(stats[:3], leaves, [torch.empty_like(some) for some in stats[:3]])


def test_a_number_cannot_be_read(without_numbers):
    """Else the tests above would show nothing."""
    with without_numbers, pytest.raises(DataDependentOutputException):
        float(torch.zeros(()))
    with without_numbers, pytest.raises(DynamicOutputShapeException):
        torch.argwhere(torch.zeros(3))
