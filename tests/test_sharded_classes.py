"""Losses whose classes are spread over 1 to 4 processes, unevenly and with empty shards too, beside the reference."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from harness import TORCH_DTYPES, expected, quantise
from processes import DTENSORS_KEEP_GRAPHS, ONE_GRAPH, Cases, collectives, in_processes, of_gradient
from test_contract import NLL_OPTIONS, OPTIONS, class_axis, log_probabilities, make
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

import crossent
from crossent.frontends._products import Products
from crossent.frontends.torch import shards

CASES = Cases()
SHAPES = [((13, 10), None), ((5, 3), None), ((2, 19, 3), None), ((2, 6, 10), -1)]


def check(mesh, name, options, shape, dim, dtype, placements=None):
    """Value and gradient of a case of the contract's grid, spread as `placements` say, else by classes alone."""
    logits, target, keywords = make(shape, dim, **options)
    axis = class_axis(logits, dim)
    logits = log_probabilities(logits, axis) if name == "nll_loss" else logits
    logits, soft = quantise(logits, dtype), target.ndim == logits.ndim
    target = quantise(target, dtype) if soft else target
    rows = target.sum(axis).shape if soft else target.shape
    upstream = np.random.default_rng(3).normal(size=rows if keywords.get("reduction") == "none" else ())
    exact, gradient = expected(name, logits, target, upstream=upstream, **keywords)
    placements = placements or [Shard(axis)] * mesh.ndim
    x = distribute_tensor(torch.as_tensor(logits).to(TORCH_DTYPES[dtype]), mesh, placements).requires_grad_()
    target = torch.as_tensor(target).to(TORCH_DTYPES[dtype]) if soft else torch.as_tensor(target)
    given = {key: torch.as_tensor(value) if isinstance(value, np.ndarray) else value for key, value in keywords.items()}
    loss = getattr(crossent, name)(x, target, **given)
    above = distribute_tensor(torch.as_tensor(upstream).to(loss.dtype), mesh, loss.placements)
    (loss * above).sum().backward()
    assert loss.dtype == x.dtype and x.grad.dtype == x.dtype and x.grad.placements in (x.placements, of_gradient(x))
    eps = torch.finfo(x.dtype).eps
    np.testing.assert_allclose(loss.full_tensor().detach().double(), exact, rtol=40 * eps, atol=40 * eps)
    np.testing.assert_allclose(x.grad.full_tensor().double(), gradient, rtol=40 * eps, atol=40 * eps)


@CASES.add
def every_option(mesh):
    for number, options in enumerate(OPTIONS.values(), mesh.size()):  # each in one dtype for even sizes, one for odd
        check(mesh, "cross_entropy", options, *SHAPES[0], ("float32", "float64")[number % 2])


@CASES.add
def every_shape(mesh):
    for shape, dim in SHAPES:
        for name in ("mean", "everything", "everything none", "soft, everything"):
            for dtype in ("float32", "bfloat16"):
                check(mesh, "cross_entropy", OPTIONS[name], shape, dim, dtype)


@CASES.add
def nll_loss(mesh):
    for shape, dim in SHAPES:
        for options in NLL_OPTIONS.values():
            check(mesh, "nll_loss", options, shape, dim, "float32")


@CASES.add
def rows_and_classes(mesh):
    """On a mesh of two axes, one for rows and one for classes; and classes over both."""
    if mesh.size() % 2:
        return
    grid = init_device_mesh("cpu", (2, mesh.size() // 2))
    for placements in ([Shard(0), Shard(1)], [Shard(1), Shard(0)], [Replicate(), Shard(1)], [Shard(1), Shard(1)]):
        for name in ("mean", "both weights", "everything none", "soft, everything"):
            check(grid, "cross_entropy", OPTIONS[name], (13, 10), None, "float32", placements)
        for name in ("both weights", "ignored none"):
            check(grid, "nll_loss", NLL_OPTIONS[name], (13, 10), None, "float32", placements)


@CASES.add
def what_is_sent(mesh):
    """Few numbers a row, once, and nothing in the backward pass."""
    x = distribute_tensor(torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), mesh, [Shard(1)])
    everything = {"weight": torch.ones(10), "label_smoothing": 0.1, "z_loss": 0.1, "softcap": 9.0}
    for numbers, options in ((3, {}), (6, everything)):
        with collectives() as forward:
            loss = crossent.cross_entropy(x.requires_grad_(), torch.arange(6), **options)
        with collectives() as backward:
            loss.backward()
        assert forward == [("all_gather_into_tensor", [1, numbers, 6, 1])]
        if of_gradient(x) == x.placements:  # else PyTorch moves it
            assert not backward


@CASES.add
def same_bits_everywhere(mesh):
    x = distribute_tensor(3 * torch.randn(64, 50, generator=torch.Generator().manual_seed(0)), mesh, [Shard(1)])
    loss = crossent.cross_entropy(x, torch.arange(64) % 50, label_smoothing=0.1, reduction="none").to_local()
    parts = [torch.empty_like(loss) for _ in range(mesh.size())]
    distributed.all_gather(parts, loss.contiguous())
    assert all(torch.equal(part, parts[0]) for part in parts)


@CASES.add
def a_bad_label(mesh):
    """Is refused by all."""
    x = distribute_tensor(torch.zeros(4, 10), mesh, [Shard(1)])
    for name in ("cross_entropy", "nll_loss"):
        for bad in (10, -1):
            for reduction in ("mean", "none"):
                with pytest.raises(IndexError, match=f"Target {bad} at position 2 is out of bounds: .* 0 and 9"):
                    getattr(crossent, name)(x, torch.tensor([0, 9, bad, 3]), reduction=reduction)


@CASES.add
def a_bad_label_of_some_rows(mesh):
    """Where rows and classes are spread, those who have the row see it, and all raise it."""
    if mesh.size() != 4:
        return
    grid, labels = init_device_mesh("cpu", (2, 2)), torch.tensor([0, 9, 10, 3])
    x = distribute_tensor(torch.zeros(4, 10), grid, [Shard(0), Shard(1)])
    target = distribute_tensor(labels, grid, [Shard(0), Replicate()])
    hidden = distribute_tensor(torch.zeros(4, 3), grid, [Shard(0), Replicate()])
    matrix = distribute_tensor(torch.zeros(10, 3), grid, [Replicate(), Shard(0)])
    calls = [
        lambda: crossent.linear_token_stats(hidden, matrix, target), lambda: crossent.prediction_stats(x, target),
    ]  # fmt: skip
    for reduction in ("none", "sum", "mean"):
        calls += [
            lambda by=reduction: crossent.cross_entropy(x, target, reduction=by),
            lambda by=reduction: crossent.nll_loss(x, target, reduction=by),
            lambda by=reduction: crossent.linear_cross_entropy(hidden, matrix, target, reduction=by),
        ]
    for call in calls:
        with pytest.raises(IndexError, match="^rank 2: Target 10 at position 0 is out of bounds: .* 0 and 9") as found:
            call()
        assert found.value.__notes__ == [f"rank 3: {str(found.value).removeprefix('rank 2: ')}"]


@CASES.add
def softmaxes(mesh):
    """The results stay spread as the logits are, and so do the gradients."""
    generator = torch.Generator().manual_seed(0)
    for shape, axis in (((13, 10), 1), ((2, 5, 3), 1), ((3, 4, 9), -1)):
        logits = 4 * torch.randn(shape, generator=generator)
        logits.movedim(axis, -1)[0, ..., 0] = 40.0  # nearly certain
        logits.movedim(axis, -1)[1, ..., :2] = 9.0  # two that are the largest
        upstream = torch.randn(shape, generator=generator)
        for function in (crossent.softmax, crossent.log_softmax):
            exact = getattr(torch, function.__name__)
            for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)):
                x = distribute_tensor(logits.to(dtype), mesh, [Shard(axis % len(shape))]).requires_grad_()
                above = distribute_tensor(upstream.to(dtype), mesh, x.placements)
                leaf = logits.to(dtype).double().requires_grad_()
                with collectives() as sent:
                    out = function(x, axis)
                assert [name for name, _ in sent] == ["all_gather_into_tensor"] and out.placements == x.placements
                expected_out = exact(leaf, axis)
                (gradient,) = torch.autograd.grad((out * above).sum(), x, create_graph=True)
                (exact_gradient,) = torch.autograd.grad(
                    (expected_out * upstream.to(dtype).double()).sum(), leaf, create_graph=True
                )
                near = {"rtol": tolerance, "atol": tolerance}
                torch.testing.assert_close(out.full_tensor().detach().double(), expected_out.detach(), **near)
                torch.testing.assert_close(gradient.full_tensor().detach().double(), exact_gradient.detach(), **near)
                if dtype is torch.float64 and DTENSORS_KEEP_GRAPHS:
                    (second,) = torch.autograd.grad((gradient * above).sum(), x)
                    (exact_second,) = torch.autograd.grad((exact_gradient * upstream.double()).sum(), leaf)
                    torch.testing.assert_close(second.full_tensor(), exact_second, **near)
    masked = torch.randn(4, 8, generator=generator)
    masked[:, 3:] = -torch.inf  # all that some processes have
    for function in (crossent.softmax, crossent.log_softmax):
        found = function(distribute_tensor(masked, mesh, [Shard(1)]), 1).full_tensor()
        torch.testing.assert_close(found, getattr(torch, function.__name__)(masked, 1))
    certain = distribute_tensor(torch.tensor([[0.0, 20.0, -1.0]]), mesh, [Shard(1)])
    found = crossent.log_softmax(certain, 1).full_tensor()[0, 1].item()
    assert math.isclose(found, -math.log1p(math.exp(-20) + math.exp(-21)), rel_tol=1e-6)


@CASES.add
def prediction_statistics(mesh):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, 10, 2, generator=generator)
    logits[2, :, 0], logits[3, 4] = 1.5, logits[3, 7]  # ties, over the borders of shards
    logits[4, 3] = 60.0
    labels = torch.randint(10, (12, 2), generator=generator)
    labels[4], labels[5, 1] = 3, -100
    whole = crossent.prediction_stats(logits, labels)
    p, rows = logits.double().softmax(1), labels.clamp(0).unsqueeze(1)
    own = p.gather(1, rows).squeeze(1)
    brier = (p * p).sum(1) - 2 * own + 1
    found = crossent.prediction_stats(distribute_tensor(logits, mesh, [Shard(1)]), labels)
    found = [value.full_tensor() for value in found]
    kept = labels >= 0
    assert torch.equal(found[1], whole.rank) and torch.equal(found[2], whole.prediction)
    torch.testing.assert_close(found[0][kept].double(), own.log()[kept], rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(found[3][kept].double(), p.amax(1)[kept], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[4][kept].double(), brier[kept], rtol=1e-5, atol=1e-9)
    assert all(value[5, 1] in (0, -1) for value in found)
    with collectives() as sent:
        crossent.prediction_stats(distribute_tensor(logits, mesh, [Shard(1)]), labels)
    assert [shape for _, shape in sent] == [[1, 12, 1, 2], [1, 5, 12, 2]]
    few, labels_of_few = logits[:, :5].contiguous(), labels % 5  # the last of four processes has no class
    found = crossent.prediction_stats(distribute_tensor(few, mesh, [Shard(1)]), labels_of_few)
    for one, exact in zip(found, crossent.prediction_stats(few, labels_of_few)):
        torch.testing.assert_close(one.full_tensor(), exact, rtol=1e-5, atol=1e-6)
    with pytest.raises(IndexError, match="Target 10 at position"):
        crossent.prediction_stats(distribute_tensor(logits, mesh, [Shard(1)]), labels.fill_(10))


@CASES.add
def plans_of_classes(mesh):
    x, labels = distribute_tensor(torch.zeros(8, 12), mesh, [Shard(1)]), torch.arange(8)
    said = f"its classes are spread over {mesh.size()} processes, which send {{}} bytes a row, {{}}"
    for name, arguments, sent in (
        ("softmax", (x, 1), said.format(12, "once, and a sum in the backward pass")),
        ("log_softmax", (x, 1), said.format(12, "once, and a sum in the backward pass")),
        ("prediction_stats", (x, labels), said.format(24, "in two parts")),
        ("cross_entropy", (x, labels), said.format(12, "once")),
        ("nll_loss", (x, labels), f"its classes are spread over {mesh.size()} processes, whose losses are added up"),
    ):
        assert sent in crossent.plan(getattr(crossent, name), *arguments).reasons, name


def check_learned(mesh, name, placements, reduction, denominator, smoothing=0.0):
    """The gradients of class weights, sample weights and denominator, plain tensors that all processes have."""
    generator = torch.Generator().manual_seed(0)
    hidden, matrix = (torch.randn(size, generator=generator).double() for size in ((6, 4), (10, 4)))
    labels, weight, samples = torch.arange(6), torch.linspace(0.5, 2, 10).double(), torch.linspace(1, 3, 6).double()
    divisor = [torch.tensor(3.0, dtype=torch.float64)] if denominator else []
    first = (hidden, matrix) if name == "linear_cross_entropy" else (hidden @ matrix.T,)
    if name == "nll_loss":
        first = (first[0].log_softmax(1),)
    exact = [tensor.clone().requires_grad_() for tensor in (*first, weight, samples, *divisor)]
    logits = exact[0] if len(first) == 1 else exact[0] @ exact[1].T
    logp = logits if name == "nll_loss" else logits.log_softmax(1)
    w, s, *d = exact[len(first) :]
    q = w * ((1 - smoothing) * torch.nn.functional.one_hot(labels, 10) + smoothing / 10)
    losses = s * (q * -logp).sum(1)
    value = losses.sum() / (1.0 if reduction == "sum" else d[0] if d else (s * w[labels]).sum())
    value.backward()
    given = [distribute_tensor(t, mesh, p).requires_grad_() for t, p in zip(first, placements)]
    learned = [tensor.clone().requires_grad_() for tensor in (weight, samples, *divisor)]
    options = dict(zip(("weight", "sample_weight", "denominator"), learned))
    options |= {"reduction": reduction} | ({} if name == "nll_loss" else {"label_smoothing": smoothing})
    loss = getattr(crossent, name)(*given, labels, **options)
    loss.backward()
    torch.testing.assert_close(loss.to_local(), value.detach())
    for tensor, leaf in zip((*given, *learned), exact):
        found = tensor.grad.full_tensor() if isinstance(tensor.grad, DTensor) else tensor.grad
        torch.testing.assert_close(found, leaf.grad, msg=f"{name} {reduction} {denominator} {tuple(leaf.shape)}")


@CASES.add
def weights_that_are_learned(mesh):
    """Where classes are spread, rows, or both."""
    grids = [(mesh, [Shard(1)], [Replicate()], [Shard(0)]), (mesh, [Shard(0)], [Shard(0)], [Replicate()])]
    if mesh.size() == 4:
        both = [Shard(0), Shard(1)], [Shard(0), Replicate()], [Replicate(), Shard(0)]
        grids.append((init_device_mesh("cpu", (2, 2)), *both))
    for grid, of_logits, of_hidden, of_matrix in grids:
        for reduction, denominator in (("mean", False), ("mean", True), ("sum", False)):
            check_learned(grid, "cross_entropy", [of_logits], reduction, denominator, 0.1)
            check_learned(grid, "nll_loss", [of_logits], reduction, denominator)
            check_learned(grid, "linear_cross_entropy", [of_hidden, of_matrix], reduction, denominator, 0.1)


@CASES.add
def labels_of_8_bits(mesh):
    """156 is not -100, as PyTorch compares them."""
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    labels = torch.tensor([156, 3, 199])
    for name in ("nll_loss", "cross_entropy"):
        x = distribute_tensor(logits, mesh, [Shard(1)])
        found = getattr(crossent, name)(x, labels.to(torch.uint8), reduction="none").full_tensor()
        torch.testing.assert_close(found, -logits[range(3), labels])
    hidden, matrix = distribute_tensor(torch.eye(3), mesh, [Replicate()]), distribute_tensor(logits.T, mesh, [Shard(0)])
    target = crossent.SparseTarget(labels.to(torch.uint8).unsqueeze(1), torch.ones(3, 1))
    found = crossent.linear_cross_entropy(hidden, matrix, target, reduction="none").full_tensor()
    torch.testing.assert_close(found, -logits[range(3), labels])


@CASES.add
def derivatives_of_derivatives(mesh):
    if not DTENSORS_KEEP_GRAPHS:
        return
    generator = torch.Generator().manual_seed(0)
    logits, direction = (torch.randn(6, 10, generator=generator).double() for _ in range(2))
    labels, hidden = torch.arange(6), torch.randn(6, 4, generator=generator).double()
    x = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(x, labels), x, create_graph=True)
    (exact,) = torch.autograd.grad((gradient * direction).sum(), x)
    x = distribute_tensor(logits, mesh, [Shard(1)]).requires_grad_()
    (gradient,) = torch.autograd.grad(crossent.cross_entropy(x, labels), x, create_graph=True)
    along = distribute_tensor(direction, mesh, [Shard(1)])
    (found,) = torch.autograd.grad((gradient * along).sum(), x)
    torch.testing.assert_close(found.full_tensor(), exact)
    tensors = hidden, logits.T @ hidden
    directions = torch.flip(hidden, (0,)), direction.T @ hidden
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    exact = hessian_product(torch.nn.functional.cross_entropy(leaves[0] @ leaves[1].T, labels), leaves, directions)
    placements = Replicate(), Shard(0)
    given = [distribute_tensor(tensor, mesh, [p]).requires_grad_() for tensor, p in zip(tensors, placements)]
    along = [distribute_tensor(tensor, mesh, [p]) for tensor, p in zip(directions, placements)]
    found = hessian_product(crossent.linear_cross_entropy(*given, labels), given, along)
    for one, wanted in zip(found, exact):
        torch.testing.assert_close(one.full_tensor(), wanted)


def hessian_product(loss, tensors, directions):
    """The derivatives of the loss's derivative along these directions."""
    gradients = torch.autograd.grad(loss, tensors, create_graph=True)
    slopes = [(gradient * direction).sum() for gradient, direction in zip(gradients, directions)]
    return torch.autograd.grad(sum(slopes), tensors)


@CASES.add
def in_a_graph(mesh):
    """`torch.compile` makes one graph of a step."""
    if mesh.size() != 2 or not ONE_GRAPH:
        return
    logits, labels = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    compiled = torch.compile(crossent.cross_entropy, fullgraph=True, backend="aot_eager")
    spread = distribute_tensor(logits, mesh, [Shard(1)]).requires_grad_()
    loss = compiled(spread, labels, label_smoothing=0.1)
    loss.backward()
    leaf = logits.double().requires_grad_()
    exact = torch.nn.functional.cross_entropy(leaf, labels, label_smoothing=0.1)
    exact.backward()
    torch.testing.assert_close(loss.to_local().double(), exact.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(spread.grad.full_tensor().double(), leaf.grad, rtol=1e-5, atol=1e-6)
    with pytest.raises(IndexError, match="Target 10 at position 2"):
        compiled(spread, labels.index_fill(0, torch.tensor(2), 10), label_smoothing=0.1)
    (x, matrix, _), target, _, exact, leaves, _ = head_case("mean", bias=False)
    compiled = torch.compile(crossent.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    given = [distribute_tensor(t, mesh, [p]).requires_grad_() for t, p in ((x, Replicate()), (matrix, Shard(0)))]
    loss = compiled(*given, target)
    loss.backward()
    torch.testing.assert_close(loss.to_local().double(), exact, rtol=1e-6, atol=1e-6)
    for tensor, leaf in zip(given, leaves):
        torch.testing.assert_close(tensor.grad.full_tensor().double(), leaf.grad, rtol=1e-5, atol=1e-6)


@CASES.add
def in_a_checkpoint(mesh):
    """The sums are sent again, and the results are the same bits."""
    x = distribute_tensor(torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), mesh, [Shard(1)])
    labels, kept, again = torch.arange(6), x.detach().requires_grad_(), x.detach().requires_grad_()
    crossent.cross_entropy(2 * kept, labels).backward()
    step = checkpoint(lambda x: crossent.cross_entropy(2 * x, labels), again, use_reentrant=False)
    step.backward()
    assert torch.equal(kept.grad.to_local(), again.grad.to_local())


@CASES.add
def in_place(mesh):
    """The gradient is written over the logits, where the kernels read them in place."""
    x = distribute_tensor(torch.randn(6, 12, generator=torch.Generator().manual_seed(0)), mesh, [Shard(1)])
    labels = torch.arange(6)
    kept = x.detach().clone().requires_grad_()
    crossent.cross_entropy(kept, labels).backward()
    x.requires_grad_()
    crossent.cross_entropy(x, labels, inplace_backward=True).backward()
    assert torch.equal(x.grad.to_local(), kept.grad.to_local())
    if mesh.size() < 5 and not 12 % mesh.size():
        assert x.to_local().data_ptr() == x.grad.to_local().data_ptr()


def exact_head(x, matrix, bias, target, options):
    """In float64, by PyTorch's operations alone; class weights, smoothing, soft targets and z-loss written out."""
    classes, keep, target_of = len(matrix), torch.ones(x.shape[:-1], dtype=torch.float64), target
    z = x @ matrix.T + (0.0 if bias is None else bias)
    if options.get("softcap"):
        z = options["softcap"] * torch.tanh(z / options["softcap"])
    if not target.is_floating_point():
        keep = torch.where(target == -100, 0.0, keep)
        target_of = torch.nn.functional.one_hot(target.clamp(0), classes).double()
    if options.get("shift"):
        z, keep, target_of = z[..., :-1, :], keep[..., 1:], target_of[..., 1:, :]
    smoothing, w = options.get("label_smoothing", 0.0), options.get("weight", torch.ones(classes)).double()
    samples = options.get("sample_weight")
    keep = keep if samples is None else keep * samples
    counts = keep if target.is_floating_point() else keep * (target_of * w).sum(-1)
    q = w * ((1 - smoothing) * target_of + smoothing / classes)
    lse = torch.logsumexp(z, -1)
    losses = keep * (q.sum(-1) * (lse + options.get("z_loss", 0.0) * lse**2) - (q * z).sum(-1))
    reduction = options.get("reduction", "mean")
    return losses if reduction == "none" else losses.sum() / (counts.sum() if reduction == "mean" else 1.0)


HEADS = {
    "mean": {},
    "none": {"reduction": "none"},
    "sum, chunks": {"reduction": "sum", "chunk_bytes": 200},
    "everything": {"weighted": True, "sample_weight": torch.linspace(0.1, 1, 9), "softcap": 5.0,
                   "label_smoothing": 0.1, "z_loss": 0.01},
    "soft": {"soft": True, "label_smoothing": 0.1, "weighted": True},
    "weighted": {"weighted": True},
    "sparse": {"sparse": True},
    "filtered": {"filter_eps": 1e-9},
}  # fmt: skip


def head_case(name, classes=10, dtype=torch.float32, bias=True):
    """Input, weight and bias, the target and options of a head; and in float64 the loss, those three, and a sparse
    target's probabilities, with their gradients, and the upstream gradient.
    """
    generator = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(9, 6, generator=generator), torch.randn(classes, 6, generator=generator)
    b = torch.randn(classes, generator=generator) if bias else None
    labels = torch.randint(classes, (9,), generator=generator)
    labels[:2], options = -100, dict(HEADS[name])
    soft, sparse = options.pop("soft", False), options.pop("sparse", False)
    if options.pop("weighted", False):
        options["weight"] = torch.linspace(0.5, 2, classes)
    target = exact_target = torch.rand(9, classes, generator=generator).softmax(1) if soft else labels
    if sparse:
        of_target, probs = torch.randint(classes, (9, 3), generator=generator), torch.rand(9, 3, generator=generator)
        target, probs = (
            crossent.SparseTarget(of_target, probs.clone().requires_grad_()),
            probs.double().requires_grad_(),
        )
        exact_target = torch.zeros(9, classes).double().scatter_add(1, of_target, probs)
    tensors = [None if t is None else t.to(dtype) for t in (x, matrix, b)]
    leaves = [None if t is None else t.double().requires_grad_() for t in tensors]
    kept = {key: value for key, value in options.items() if key not in ("chunk_bytes", "filter_eps")}
    exact_target = exact_target.double() if exact_target.is_floating_point() else exact_target
    exact = exact_head(*leaves, exact_target, kept)
    above = torch.linspace(1, 2, exact.numel(), dtype=torch.float64).reshape(exact.shape)
    exact.backward(above)
    leaves += [probs] if sparse else []
    return tensors, target, options, exact.detach(), leaves, above


def head_of(mesh, name, placements, dtype=torch.float32, bias=True):
    """Value and gradients of a head whose weight's rows are spread; `placements` are those of input and weight."""
    (x, matrix, b), target, options, exact, leaves, above = head_case(name, dtype=dtype, bias=bias)
    of_input, of_weight = placements
    given = [distribute_tensor(x, mesh, of_input), distribute_tensor(matrix, mesh, of_weight)]
    given = [tensor.requires_grad_() for tensor in given]
    spread_bias = None if b is None else distribute_tensor(b, mesh, of_weight).requires_grad_()
    loss = crossent.linear_cross_entropy(*given, target, linear_bias=spread_bias, **options)
    (loss * distribute_tensor(above.to(loss.dtype), mesh, loss.placements)).sum().backward()
    tolerance = {"rtol": 2e-5, "atol": 2e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 3e-2}
    torch.testing.assert_close(loss.full_tensor().double(), exact, **tolerance)
    for tensor, leaf in zip((*given, spread_bias), leaves):
        if tensor is not None:
            assert tensor.grad.placements in (tensor.placements, of_gradient(tensor)) and tensor.grad.dtype == dtype
            torch.testing.assert_close(tensor.grad.full_tensor().double(), leaf.grad, **tolerance)
    for leaf in leaves[3:]:
        torch.testing.assert_close(target.probs.grad.double(), leaf.grad, **tolerance)


@CASES.add
def heads(mesh):
    """The weight's classes are spread; the input is there as a whole, or its rows are spread over the same axis."""
    for name in HEADS:
        for of_input in ([Replicate()], [Shard(0)]):
            head_of(mesh, name, (of_input, [Shard(0)]))
    head_of(mesh, "mean", ([Replicate()], [Shard(0)]), torch.bfloat16, bias=False)
    if mesh.size() % 2 == 0:
        grid = init_device_mesh("cpu", (2, mesh.size() // 2))
        for name in ("mean", "everything", "none"):
            head_of(grid, name, ([Shard(0), Replicate()], [Replicate(), Shard(0)]))
            head_of(grid, name, ([Replicate(), Shard(0)], [Shard(0), Replicate()]))


@CASES.add
def heads_of_sequences(mesh):
    generator = torch.Generator().manual_seed(3)
    x, matrix = torch.randn(2, 5, 6, generator=generator), torch.randn(10, 6, generator=generator)
    labels, spread = torch.randint(10, (2, 5), generator=generator), distribute_tensor(matrix, mesh, [Shard(0)])
    for placement in (Replicate(), Shard(0), Shard(1)):
        hidden = distribute_tensor(x, mesh, [placement]).requires_grad_()
        loss = crossent.linear_cross_entropy(hidden, spread, labels, shift=1)
        leaf = x.double().requires_grad_()
        exact = exact_head(leaf, matrix.double(), None, labels, {"shift": 1})
        torch.testing.assert_close(loss.full_tensor().double(), exact, rtol=1e-5, atol=1e-5)
        loss.backward()
        exact.backward()
        torch.testing.assert_close(hidden.grad.full_tensor().double(), leaf.grad, rtol=1e-5, atol=1e-6)


@CASES.add
def what_a_head_sends(mesh):
    """Few numbers a row for each chunk, and one sum of the gradient of input."""
    x = distribute_tensor(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), mesh, [Replicate()])
    matrix = distribute_tensor(torch.randn(12, 6, generator=torch.Generator().manual_seed(1)), mesh, [Shard(0)])
    labels, largest = torch.arange(8), -(-12 // mesh.size())
    for rows, chunks in ((8, [8]), (6, [3, 3, 2])):  # of more than one two are there at a time
        with collectives() as forward:
            loss = crossent.linear_cross_entropy(x.requires_grad_(), matrix, labels, chunk_bytes=4 * largest * rows)
        with collectives() as backward:
            loss.backward()
        assert forward == [("all_gather_into_tensor", [1, 3, count, 1]) for count in chunks]
        assert backward == [("all_reduce", [8, 6])] or mesh.size() == 1


@CASES.add
def the_next_product_runs_meanwhile(mesh):
    """A chunk's sums are waited for when the logits of the next are there."""
    x = distribute_tensor(torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), mesh, [Replicate()])
    matrix = distribute_tensor(torch.randn(12, 6, generator=torch.Generator().manual_seed(1)), mesh, [Shard(0)])
    order, make_logits, send = [], Products.logits, shards._sent

    def logits(*arguments):
        order.append("logits")
        make_logits(*arguments)

    def sent(*arguments):
        received = send(*arguments)
        order.append("sent")
        return lambda: (order.append("received"), received())[1]

    with mock.patch.object(Products, "logits", logits), mock.patch.object(shards, "_sent", sent):
        crossent.linear_cross_entropy(x, matrix, torch.arange(9), chunk_bytes=2 * 4 * -(-12 // mesh.size()) * 3)
    assert order == ["logits", "sent", *["logits", "sent", "received"] * 2, "received"]


@CASES.add
def plans_of_heads(mesh):
    x, matrix = torch.zeros(8, 6), torch.zeros(12, 6)
    call = distribute_tensor(x, mesh, [Replicate()]), distribute_tensor(matrix, mesh, [Shard(0)]), torch.arange(8)
    reasons = crossent.plan(crossent.linear_cross_entropy, *call).reasons
    said = f"its classes are spread over {mesh.size()} processes, which send 12 bytes a row, once"
    assert said in reasons and "the gradient of input is the sum of theirs" in reasons


@CASES.add
def refusals_of_heads(mesh):
    x, matrix = torch.zeros(4, 6), torch.zeros(10, 6)
    labels = torch.tensor([0, 9, 10, 3])
    hidden, spread = distribute_tensor(x, mesh, [Replicate()]), distribute_tensor(matrix, mesh, [Shard(0)])
    with pytest.raises(IndexError, match="Target 10 at position 2 is out of bounds: .* 0 and 9"):
        crossent.linear_cross_entropy(hidden, spread, labels)
    with pytest.raises(ValueError, match="or sharded along its classes over one axis of the input's mesh"):
        crossent.linear_cross_entropy(hidden, distribute_tensor(matrix, mesh, [Shard(1)]), labels)


failures, test_processes = in_processes(__name__, CASES, [1, 2, 3, 4])
