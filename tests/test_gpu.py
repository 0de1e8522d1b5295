"""Tensors on a GPU: values, derivatives, errors, memory and what is built on them."""

import contextlib
import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import TORCH_DTYPES, Chunks, check, class_axis
from test_autograd import NAMES, arguments, fresh_compiler, labels_of, logits_of
from test_contract import NLL_OPTIONS, OPTION_SHAPES, OPTIONS, SHAPES, identify, log_probabilities, make
from test_errors import assert_tells
from torch.func import grad, hessian, jacfwd, jvp, vmap
from torch.utils.checkpoint import checkpoint

import crossent
import crossent.nn as nn
from crossent.tools.bench.memory import extra_peak

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def labels_are_checked_at_once(monkeypatch):
    monkeypatch.setenv("CROSSENT_CHECK_LABELS", "now")


DOUBLE = torch.float64
LOSSES = ["cross_entropy", "nll_loss"]


def on_gpu(value):
    """A tensor as a leaf of its own there, a SparseTarget with both of its tensors; anything else as it is."""
    if isinstance(value, crossent.SparseTarget):
        return crossent.SparseTarget(on_gpu(value.classes), on_gpu(value.probs))
    if isinstance(value, torch.Tensor):
        return value.detach().to(DEVICE).requires_grad_(value.requires_grad)
    return value


def logits_there(*shape, **options):
    return on_gpu(logits_of(*shape, **options))


def labels_there(*shape, **options):
    return on_gpu(labels_of(*shape, **options))


# Values and gradients


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_options(dtype, options):
    for shape, dim in OPTION_SHAPES:
        logits, target, keywords = make(shape, dim, **OPTIONS[options])
        check(DEVICE, "cross_entropy", logits, target, dtype=dtype, **keywords)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("options", NLL_OPTIONS)
def test_options_of_nll_loss(dtype, options):
    for shape, dim in OPTION_SHAPES:
        logits, target, keywords = make(shape, dim, **NLL_OPTIONS[options])
        check(DEVICE, "nll_loss", log_probabilities(logits, dim), target, dtype=dtype, **keywords)


@pytest.mark.parametrize("layout", ["contiguous", "strided", "expanded"])
@pytest.mark.parametrize("shape", SHAPES, ids=identify)
def test_shapes_and_layouts(shape, layout):
    logits, target, options = make(*shape, ignored=True)
    axis = class_axis(logits, shape[1])
    for dtype in TORCH_DTYPES:
        check(DEVICE, "cross_entropy", logits, target, dtype=dtype, layout=layout, **options)
        check(DEVICE, "nll_loss", log_probabilities(logits, shape[1]), target, dtype=dtype, layout=layout, **options)
        check(DEVICE, "softmax", logits, dim=axis, dtype=dtype, layout=layout)
        check(DEVICE, "log_softmax", logits, dim=axis, dtype=dtype, layout=layout)


@pytest.mark.parametrize("name", LOSSES)
def test_denominator_on_the_gpu(name):
    logits, target, options = make((13, 10), None, weighted=True, sampled=True)
    check(DEVICE, name, logits, target, denominator=np.array(4.0), dtype="float32", **options)


@pytest.mark.parametrize("name", ["prediction_stats", "linear_token_stats"])
def test_statistics_are_those_of_the_cpu(name):
    logits, labels = logits_of(40, 17, requires_grad=False), labels_of(40, classes=17)
    labels[::3] = -100
    arguments = (logits, labels)
    if name == "linear_token_stats":
        arguments = (logits, logits_of(50, 17, seed=3, requires_grad=False), labels)
    expected = getattr(crossent, name)(*arguments)
    ours = getattr(crossent, name)(*map(on_gpu, arguments))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-12, atol=1e-14)


def test_modules():
    torch.manual_seed(0)
    head, hidden, labels = nn.LinearCrossEntropyLoss(6, 50, bias=True, dtype=DOUBLE), logits_of(8, 6), labels_of(8)
    weighted = nn.CrossEntropyLoss(torch.rand(6, dtype=DOUBLE))
    expected = head(hidden, labels), weighted(hidden, labels)
    ours = head.to(DEVICE)(*map(on_gpu, (hidden, labels))), weighted.to(DEVICE)(*map(on_gpu, (hidden, labels)))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b)


# Errors


@pytest.mark.parametrize("name", LOSSES)
def test_bad_label(name):
    x, labels = logits_there(2, 19, 5, 7, dtype=torch.float32), labels_there(2, 5, 7)
    for bad in [777, 19, -1]:
        labels[1, 3, 6] = bad
        with pytest.raises(IndexError) as error:
            getattr(crossent, name)(x, labels)
        assert_tells(error, bad, [1, 3, 6], 19)
    labels[1, 3, 6] = -100
    assert getattr(crossent, name)(x, labels).isfinite()  # the device goes on


def test_bad_label_of_the_head():
    hidden, weight, labels = logits_there(2, 4, 6), logits_there(50, 6), labels_there(2, 4)
    labels[1, 2] = 50
    for function in (crossent.linear_cross_entropy, crossent.linear_token_stats):
        with pytest.raises(IndexError) as error:
            function(hidden, weight, labels)
        assert_tells(error, 50, [1, 2], 50)
    teacher = crossent.SparseTarget(torch.full((2, 4, 1), 50, device=DEVICE), torch.ones(2, 4, 1, device=DEVICE))
    with pytest.raises(IndexError, match="Class 50 at position"):
        crossent.linear_cross_entropy(hidden, weight, teacher)


def test_bad_labels_are_told_later(monkeypatch):
    """Nothing waits for the device in a step; the error comes at the latest when the device has got there."""
    monkeypatch.setenv("CROSSENT_CHECK_LABELS", "later")
    x, labels = logits_there(8, 19, dtype=torch.float32), labels_there(8)
    labels[3] = 19
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = crossent.cross_entropy(x, labels)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.cuda.synchronize()
    with pytest.raises(IndexError) as error:
        loss.backward()
    assert_tells(error, 19, [3], 19)
    loss.backward()
    assert loss.isnan() and x.grad.isfinite().all() and not x.grad[3].any() and x.grad[4].any()


@pytest.mark.parametrize("elsewhere", ["input", "target", "weight", "sample_weight"])
@pytest.mark.parametrize("name", LOSSES)
def test_tensors_on_two_devices(name, elsewhere):
    call = {
        "input": logits_of(4, 5), "target": labels_of(4), "weight": torch.ones(5), "sample_weight": torch.ones(4),
    }  # fmt: skip
    call = {key: value if key == elsewhere else on_gpu(value) for key, value in call.items()}
    with pytest.raises((RuntimeError, ValueError), match=r"cuda:0.*\bcpu|\bcpu.*cuda:0"):
        getattr(crossent, name)(**call)


@pytest.mark.parametrize("elsewhere", ["input", "linear_weight", "linear_bias", "target", "classes"])
def test_head_on_two_devices(elsewhere):
    target = crossent.SparseTarget(labels_of(4, 2), torch.rand(4, 2)) if elsewhere == "classes" else labels_of(4)
    call = {
        "input": torch.rand(4, 6), "linear_weight": torch.rand(5, 6), "linear_bias": torch.rand(5), "target": target,
    }  # fmt: skip
    call = {key: value if key == elsewhere else on_gpu(value) for key, value in call.items()}
    if elsewhere == "classes":
        call["target"] = crossent.SparseTarget(target.classes, on_gpu(target.probs))
    with pytest.raises((RuntimeError, ValueError), match=r"cuda:0.*\bcpu|\bcpu.*cuda:0"):
        crossent.linear_cross_entropy(**call)


# Derivatives


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "softcap": 2.0, "z_loss": 0.1, "reduction": "none"}])
@pytest.mark.parametrize("soft", [False, True])
def test_derivatives_of_cross_entropy(options, soft):
    target = on_gpu(torch.rand(2, 3, 2, dtype=DOUBLE).requires_grad_()) if soft else labels_there(2, 2, classes=3)
    weight, sample_weight = (1 + torch.rand(n, dtype=DOUBLE, device=DEVICE) for n in (3, 2))

    def loss(x, target, weight, sample_weight):
        return crossent.cross_entropy(x, target, weight, sample_weight=sample_weight, **options)

    inputs = logits_there(2, 3, 2), target, weight.requires_grad_(), sample_weight.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", ["nll_loss", "softmax", "log_softmax"])
def test_derivatives_of_the_others(name):
    labels = labels_there(4, classes=3)

    def function(x):
        return getattr(crossent, name)(x, *arguments(name, labels))

    assert torch.autograd.gradcheck(function, logits_there(4, 3), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, logits_there(4, 3))


@pytest.mark.parametrize("name", NAMES)
def test_function_transforms(name):
    """The same as PyTorch's function."""
    x, v = (logits_there(3, 4, 5, seed=seed, requires_grad=False) for seed in (0, 9))
    labels = labels_there(4)

    def squares(function):
        return lambda x: (function(x, *arguments(name, labels)) ** 2).sum()

    transforms = {
        "vmap of grad": lambda f: vmap(grad(f))(x),
        "hessian": lambda f: hessian(f)(x[0]),
        "jacfwd": lambda f: jacfwd(f)(x[0]),
        "jvp of grad": lambda f: jvp(grad(f), (x[0],), (v[0],))[1],
    }
    ours, theirs = squares(getattr(crossent, name)), squares(getattr(F, name))
    for title, transform in transforms.items():
        torch.testing.assert_close(transform(ours), transform(theirs), msg=lambda m, t=title: f"{t}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_graph(name):
    """A second backward pass, one that is differentiated, and a checkpoint."""

    def function(x):
        return getattr(crossent, name)(2 * x, *arguments(name, labels_there(4))).pow(2).sum()

    x = logits_there(4, 5)
    out = function(x)
    expected, again = (torch.autograd.grad(out, x, retain_graph=True)[0] for _ in range(2))
    (differentiable,) = torch.autograd.grad(out, x, create_graph=True)
    out.backward()
    checkpoint(function, leaf := logits_there(4, 5), use_reentrant=False).backward()
    for gradient in (again, differentiable, x.grad, leaf.grad):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


def test_inplace_backward_writes_nothing():
    x = logits_there(4, 5)
    before = x.detach().clone()
    crossent.cross_entropy(x, labels_there(4), inplace_backward=True).backward()
    assert torch.equal(x, before) and x.grad.any()


@pytest.mark.parametrize("what", ["x", "labels", "soft", "weight", "sample_weight"])
@pytest.mark.parametrize("name", LOSSES)
def test_change_between_forward_and_backward(name, what):
    """It is refused, or changes nothing."""
    saved = {
        "labels": labels_there(4), "soft": logits_there(4, 50, seed=2, requires_grad=False).exp(),
        "weight": torch.linspace(1, 2, 50, device=DEVICE), "sample_weight": torch.linspace(1, 2, 4, device=DEVICE),
    }  # fmt: skip

    def loss(x, labels, soft, **weights):
        target = soft if what == "soft" and name == "cross_entropy" else labels
        return getattr(crossent, name)(x, target, **weights)

    leaf = logits_there(4, 50)
    (expected,) = torch.autograd.grad(loss(leaf, **saved), leaf)
    saved["x"] = leaf * 1
    out = loss(**saved)
    with torch.no_grad():
        saved[what].zero_()
    with contextlib.suppress(RuntimeError):
        torch.testing.assert_close(torch.autograd.grad(out, leaf)[0], expected)


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", TORCH_DTYPES.values())
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name, dtype, lower):
    """Dtypes of results and gradients are those of PyTorch's own functions, which round 16 bits on the way."""
    results = []
    for module in (crossent, F):
        x = logits_there(4, 50, dtype=dtype)
        with torch.autocast(DEVICE, dtype=lower):
            out = getattr(module, name)(x, *arguments(name, labels_there(4)))
        results.append((out, *torch.autograd.grad(out.sum(), x)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def value_and_gradient(function, x, *args):
    out = function(x, *args)
    return out.detach(), torch.autograd.grad(out, x)[0]


COMPILED = {
    "cross_entropy": {},
    "everything": {"label_smoothing": 0.1, "softcap": 5.0, "z_loss": 0.01, "denominator": 3.0, "ignore_index": 2},
}


@pytest.mark.parametrize("options", COMPILED)
def test_compile(options):
    def loss(x, y):
        return crossent.cross_entropy(2 * x, y, **COMPILED[options])

    x, labels = logits_there(64, 50), labels_there(64)
    expected, expected_gradient = value_and_gradient(loss, x, labels)
    with fresh_compiler():
        compiled = torch.compile(loss, fullgraph=True)
        out, gradient = value_and_gradient(compiled, x, labels)
        labels[3] = 50
        assert compiled(x, labels).isnan(), "a bad label cannot be refused there, but is seen"
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_cuda_graph():
    """What is captured computes with the values that the tensors have later."""
    x, labels = logits_there(64, 50), labels_there(64)
    with torch.cuda.stream(torch.cuda.Stream()):
        value_and_gradient(crossent.cross_entropy, x, labels)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = value_and_gradient(crossent.cross_entropy, x, labels)
    with torch.no_grad():
        x.copy_(x.flip(0)), labels.copy_(labels.roll(7))
    graph.replay()
    for a, b in zip(captured, value_and_gradient(F.cross_entropy, x, labels), strict=True):
        torch.testing.assert_close(a, b)
    labels[3] = 50
    graph.replay()
    assert captured[0].isnan()


def test_cuda_graph_of_the_head():
    """Bad classes, which nobody looks at during a capture, make the loss nan, and are not read with."""
    hidden, weight, probs = logits_there(64, 8), logits_there(50, 8, seed=1), torch.rand(64, 3, device=DEVICE)
    classes = torch.arange(192, device=DEVICE).reshape(64, 3) % 50

    def head(x):
        return crossent.linear_cross_entropy(x, weight, crossent.SparseTarget(classes, probs))

    expected = value_and_gradient(head, hidden)
    with torch.cuda.stream(torch.cuda.Stream()):
        value_and_gradient(head, hidden)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = value_and_gradient(head, hidden)
    graph.replay()
    for a, b in zip(captured, expected, strict=True):
        torch.testing.assert_close(a, b)
    classes[3, 1] = 50
    graph.replay()
    assert captured[0].isnan()


# The fused head


HEADS = {
    "plain": {},
    "ignored": {"ignore_index": 3},
    "none": {"reduction": "none", "ignore_index": 3},
    "bias": {"linear_bias": True, "reduction": "sum"},
    "smoothing": {"label_smoothing": 0.1, "ignore_index": 3, "linear_bias": True},
    "shift": {"shift": 2, "ignore_index": 3},
    "shift none": {"shift": 2, "reduction": "none"},
    "everything": {"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 0.02, "denominator": 5.0, "weighted": True},
    "probabilities": {"target": "probabilities"},
    "sparse": {"target": "sparse", "shift": 1, "linear_bias": True},
    "sparse none": {"target": "sparse", "reduction": "none", "softcap": 3.0},
}


def head_case(rows=(3, 7), classes=50, features=6, target="labels", linear_bias=False, weighted=False, **options):
    """Arguments in float64 on the CPU."""
    case = {"input": logits_of(*rows, features), "linear_weight": logits_of(classes, features, seed=1)}
    case["target"] = labels_of(*rows)
    if target == "probabilities":
        case["target"] = logits_of(*rows, classes, seed=2).detach().exp().requires_grad_()
    elif target == "sparse":
        probs = logits_of(*rows, 4, seed=2).detach().exp().requires_grad_()
        case["target"] = crossent.SparseTarget(labels_of(*rows, 4, classes=classes), probs)
    if linear_bias:
        case["linear_bias"] = logits_of(classes, seed=3)
    if weighted:
        case |= {"weight": torch.linspace(0.5, 2, classes), "sample_weight": torch.linspace(0, 2, rows[-1])}
    return case | options


def leaves_of(case):
    tensors = [getattr(value, "probs", value) for value in case.values()]
    return [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]


def head_results(case, **how):
    """The loss and its gradients, of each loss where there are many."""
    loss = crossent.linear_cross_entropy(**case, **how)
    upstream = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype, device=loss.device).reshape(loss.shape)
    return loss.detach(), *torch.autograd.grad(loss, leaves_of(case), upstream)


def assert_same(ours, expected, **tolerances):
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, **tolerances)


@pytest.mark.parametrize("options", HEADS)
def test_head_is_that_of_the_cpu(options):
    case = head_case(**HEADS[options])
    there = {key: on_gpu(value) for key, value in case.items()}
    for chunk_bytes in [1, 4 * 8 * 50, 2**26]:
        ours, expected = (head_results(tensors, chunk_bytes=chunk_bytes) for tensors in (there, case))
        assert_same(ours, expected, rtol=1e-11, atol=1e-13)


def test_derivatives_of_the_head():
    labels = labels_there(4)

    def loss(x, weight, bias):
        return crossent.linear_cross_entropy(x, weight, labels, linear_bias=bias, chunk_bytes=1, z_loss=0.1)

    inputs = logits_there(4, 2), logits_there(5, 2, seed=1), logits_there(5, seed=2)
    assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, inputs)
    ours = grad(lambda x: loss(x, *inputs[1:]))(inputs[0])
    torch.testing.assert_close(ours, torch.autograd.grad(loss(*inputs), inputs[0])[0])


def test_graph_of_the_head():
    """Second and differentiated backward passes, several at once, a checkpoint, and what was changed in between."""
    case = {key: on_gpu(value) for key, value in head_case((7,), linear_bias=True, reduction="none").items()}
    leaves, case["chunk_bytes"] = leaves_of(case), 8 * 3 * 50

    def loss():
        return crossent.linear_cross_entropy(**case)

    out, upstream = loss(), torch.linspace(1, 2, 7, dtype=DOUBLE, device=DEVICE)
    gradients = [torch.autograd.grad(out, leaves, upstream, retain_graph=True) for _ in range(2)]
    gradients.append(torch.autograd.grad(out, leaves, upstream, create_graph=True))
    both = torch.stack([upstream, 0 * upstream])
    batched = torch.autograd.grad(out, leaves, both, is_grads_batched=True, retain_graph=True)
    gradients.append([gradient[0] for gradient in batched])
    gradients.append(torch.autograd.grad(checkpoint(loss, use_reentrant=False), leaves, upstream))
    for found in gradients[1:]:
        for a, b in zip(found, gradients[0], strict=True):
            torch.testing.assert_close(a, b)
    with torch.no_grad():
        case["linear_weight"].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out, leaves, upstream)


def test_compiled_head():
    case = {
        key: on_gpu(value) for key, value in head_case(linear_bias=True, z_loss=0.1, chunk_bytes=8 * 8 * 50).items()
    }
    leaves = leaves_of(case)
    with fresh_compiler():
        loss = torch.compile(lambda case: crossent.linear_cross_entropy(**case), fullgraph=True)(case)
        ours = loss.detach(), *torch.autograd.grad(loss, leaves)
    for a, b in zip(ours, head_results(case), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shift", [0, 2])
def test_token_stats_are_those_of_the_cpu(shift):
    case = head_case(linear_bias=True)
    options = {"shift": shift, "ignore_index": 3, "softcap": 4.0, "chunk_bytes": 4 * 8 * 50}

    def results(case):
        *floats, rank = crossent.linear_token_stats(**case, **options)
        total = sum(factor * value.sum() for factor, value in enumerate(floats, 1))
        return *floats, rank, *torch.autograd.grad(total, leaves_of(case))

    there = {key: on_gpu(value) for key, value in case.items()}
    assert_same(results(there), results(case), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("options", HEADS)
def test_a_step_of_the_head_waits_for_nothing(options, monkeypatch):
    """With every option; and the gradient of the weight is the same bits every time."""
    monkeypatch.delenv("CROSSENT_CHECK_LABELS")
    case = {key: on_gpu(value) for key, value in head_case(**HEADS[options]).items()}
    case["options"], found = Chunks(batch_chunk_size=3), []
    head_results(case)  # libraries are loaded and kernels compiled
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += [head_results(case) for _ in range(2)]
        crossent.linear_token_stats(logits_there(6, 7), logits_there(50, 7), labels_there(6)).logprob.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("function", [crossent.linear_cross_entropy, crossent.linear_token_stats])
def test_rows_that_count_are_counted_with_one_wait(function):
    """The labels are looked at now."""
    leaves, labels = [logits_there(6, 7), logits_there(50, 7)], labels_there(6)
    labels[2:] = -100
    function(*leaves, labels)  # kernels are compiled
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function(*leaves, labels)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert sum("synchroniz" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("adds", [False, True])
def test_products_of_16_bits_are_added_in_float32(adds, dtype):
    from crossent.frontends.torch.device_products import multiply

    a, b = logits_there(64, 500, dtype=dtype).detach(), logits_there(500, 96, dtype=dtype, seed=1).detach()
    total = logits_there(64, 96, dtype=torch.float32, seed=2).detach()
    exact = a.double() @ b.double() + (total.double() if adds else 0)
    torch.testing.assert_close(multiply(a, b, total, adds).double(), exact, rtol=1e-5, atol=1e-4)


def errors(ours, exact):
    """Root mean squares, in proportion."""
    pairs = zip(ours, exact, strict=True)
    return [float((a.cpu().double() - b).square().mean().sqrt() / b.square().mean().sqrt()) for a, b in pairs]


def in_bfloat16(case):
    def narrow(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().bfloat16().requires_grad_(value.requires_grad)
        return value

    return {key: narrow(value) for key, value in case.items()}


def widened(case):
    return {
        key: value.detach().double().requires_grad_() if getattr(value, "dtype", None) is torch.bfloat16 else value
        for key, value in case.items()
    }


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_head_in_bfloat16(reduction):
    """Close to float64, and no farther from it when every row is a chunk of its own: the sums are in float32."""
    case = in_bfloat16(head_case((512,), 64, 16, linear_bias=True, reduction=reduction))
    exact = head_results(widened(case))
    there = {key: on_gpu(value) for key, value in case.items()}
    one, many = (errors(head_results(there, chunk_bytes=size), exact) for size in (2**26, 1))
    for name, a, b in zip(("loss", "input", "linear_weight", "linear_bias"), one, many, strict=True):
        assert a < 0.01 and b <= 1.5 * a + 2**-11, f"{name}: error {b:.3g} of many chunks, {a:.3g} of one"


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("rows", [128, 512])
def test_filter_of_the_head(rows, reduction, monkeypatch):
    """Nothing is waited for, and what is left out makes no larger error than its bound."""
    monkeypatch.delenv("CROSSENT_CHECK_LABELS")
    if torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("there PyTorch reads on the host where a grouped product ends")
    case = in_bfloat16(head_case((512,), 1003, 64, reduction=reduction))
    exact, how = head_results(widened(case)), {"options": Chunks(batch_chunk_size=rows)}
    there = {key: on_gpu(value) for key, value in case.items()}
    plain = head_results(there, **how)
    head_results(there, filter_eps=1e-3, **how)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        nothing, some, again = (head_results(there, filter_eps=eps, **how) for eps in (1e-30, 1e-3, 1e-3))
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(torch.equal(a, b) for a, b in zip(some, again)) and not torch.equal(some[1], plain[1])
    for a, b in zip(errors(nothing, exact), errors(plain, exact), strict=True):
        assert a <= 1.5 * b + 2**-11
    bound = 1e-3 * (512 * 1003) ** 0.5 * (1 / 512 if reduction == "mean" else 2)  # the upstream gradients are below 2
    for ours, theirs, factor in zip(some[1:], plain[1:], (case["linear_weight"], case["input"])):
        rounded = 2**-6 * theirs.double().norm().item()
        assert (ours.double() - theirs.double()).norm() <= bound * factor.double().norm() + rounded


def test_head_under_autocast():
    case = head_case(linear_bias=True)
    exact = head_results(case)
    single = {key: value.float() if value.is_floating_point() else value for key, value in case.items()}
    single = {key: on_gpu(value.requires_grad_(value.is_floating_point())) for key, value in single.items()}
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss = crossent.linear_cross_entropy(**single, chunk_bytes=4 * 8 * 50)
    ours = loss.detach(), *torch.autograd.grad(loss, leaves_of(single))
    assert all(value.dtype is torch.float32 for value in ours)
    assert max(errors(ours, exact)) < 0.02


# Memory


def planned_and_extra(function, *tensors, **options):
    """Bytes of a call with its backward pass beside arguments and gradients, as planned and as they are."""
    leaves = [tensor for tensor in tensors if tensor.requires_grad]

    def step():
        found = function(*tensors, **options)
        torch.autograd.grad((found if isinstance(found, torch.Tensor) else found.logprob).sum(), leaves)

    gradients = sum(leaf.nbytes for leaf in leaves)
    return crossent.plan(function, *tensors, **options).extra_bytes, extra_peak(step, DEVICE) - gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("features", [16, 256, 2048])
@pytest.mark.parametrize("function", [crossent.linear_cross_entropy, crossent.linear_token_stats])
def test_memory_of_the_head(function, features, dtype):
    """A few chunks, of 32, a copy of the input, and a product or a sum beside the weight's gradient."""
    chunk, classes = 2**24, 2**15
    hidden, weight = (logits_there(n, features, dtype=dtype) for n in (4096, classes))
    planned, extra = planned_and_extra(function, hidden, weight, labels_there(4096), chunk_bytes=chunk)
    assert extra <= planned <= 8 * chunk + hidden.nbytes + 4 * weight.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_of_the_loss(dtype):
    planned, extra = planned_and_extra(
        crossent.cross_entropy, logits_there(2048, 4096, dtype=dtype), labels_there(2048)
    )
    assert extra <= planned


# What is built on the losses


def test_plan():
    x, labels, weight = logits_there(6, 7), labels_there(6), logits_there(50, 7)
    calls = {
        crossent.cross_entropy: (x, labels), crossent.nll_loss: (x, labels), crossent.prediction_stats: (x, labels),
        crossent.linear_cross_entropy: (x, weight, labels), crossent.linear_token_stats: (x, weight, labels),
    }  # fmt: skip
    for function, call in calls.items():
        planned = crossent.plan(function, *call)
        alone = function in (crossent.nll_loss, crossent.prediction_stats)
        assert planned.path == ("kernels" if alone else "kernels in two stages")
    for function in (crossent.softmax, crossent.log_softmax):
        assert crossent.plan(function, x, 1).path == "PyTorch's own"
        assert crossent.plan(function, logits_there(512, 512), 1).path == "kernels"


@pytest.mark.parametrize("function", [crossent.cross_entropy, crossent.nll_loss, crossent.linear_cross_entropy])
def test_explain(function):
    x, labels, weight = logits_of(6, 7), labels_of(6), logits_of(50, 7)
    labels[2] = -100
    call = (x, weight, labels) if function is crossent.linear_cross_entropy else (x, labels)
    expected = crossent.explain(*call, function=function)
    ours = crossent.explain(*map(on_gpu, call), function=function)
    on_gpu_by = "kernels" if function is crossent.nll_loss else "kernels in two stages"
    assert ours.plan.path == on_gpu_by and all(check.passed for check in ours.checks)
    np.testing.assert_allclose(ours.losses, expected.losses, rtol=1e-12)
    assert [finding.sentence for finding in ours.findings] == [finding.sentence for finding in expected.findings]


def test_value_and_grad():
    x, labels = logits_of(6, 7, requires_grad=False), labels_of(6)
    function = crossent.value_and_grad(crossent.cross_entropy)
    assert_same(function(on_gpu(x), on_gpu(labels)), function(x, labels))


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_patched_model(family):
    """A causal model of transformers has the loss and the gradients that it has without the fused head."""
    models = pytest.importorskip("test_transformers")
    batch = {key: on_gpu(value) for key, value in models.batch().items()}
    model = models.build(family).to(DEVICE)
    theirs = models.step(model, **batch)
    ours = models.step(models.patch(model), **batch)
    assert ours[0].logits is None
    models.assert_same(ours, theirs)


def test_bench(monkeypatch):
    cli, testing = pytest.importorskip("crossent.tools.commands"), pytest.importorskip("typer.testing")
    runner = pytest.importorskip("crossent.tools.bench.runner")
    in_turn = {"eager": runner.RIVALS["eager"]}
    monkeypatch.setattr(runner.run, "__defaults__", (in_turn, runner.in_a_process))
    arguments = ["bench", "--device", DEVICE, "--head", "64x8x50", "--rounds", "2", "--json"]
    result = testing.CliRunner().invoke(cli._application(), arguments)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    rows = found["results"]
    assert found["machine"]["gpu"] == torch.cuda.get_device_name()
    assert [(row["rival"], row["mode"]) for row in rows] == [("eager", "evaluation"), ("eager", "step")]
    for row in rows:
        assert row["seconds"] > 0 and row["ours"] > 0 and row["our_bytes"] > 0, row
