"""Losses whose classes are spread over 1 to 4 processes, unevenly and with empty shards too, beside the reference."""

import numpy as np
import pytest
import torch
from harness import TORCH_DTYPES, expected, quantise
from processes import Cases, failures_of, of_gradient
from test_contract import NLL_OPTIONS, OPTIONS, class_axis, log_probabilities, make
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import crossent

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
    for options in OPTIONS.values():
        for dtype in ("float32", "float64"):
            check(mesh, "cross_entropy", options, *SHAPES[0], dtype)


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
def collectives(mesh):
    """One of few numbers a row, none in the backward pass."""
    x = distribute_tensor(torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), mesh, [Shard(1)])
    labels = torch.arange(6)
    for options in ({}, {"weight": torch.ones(10), "label_smoothing": 0.1, "z_loss": 0.1, "softcap": 9.0}):
        with CommDebugMode() as forward:
            loss = crossent.cross_entropy(x.requires_grad_(), labels, **options)
        with CommDebugMode() as backward:
            loss.backward()
        counted = {str(key): count for key, count in forward.get_comm_counts().items() if count}
        assert sum(counted.values()) == 1 or mesh.size() == 1, counted
        if of_gradient(x) == x.placements:  # else PyTorch moves it
            assert sum(backward.get_comm_counts().values()) == 0


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
def refusals(mesh):
    x = distribute_tensor(torch.zeros(4, 10), mesh, [Shard(1)])
    with pytest.raises(ValueError, match="must not require a gradient where the classes are sharded"):
        crossent.cross_entropy(x, torch.zeros(4, dtype=torch.int64), torch.ones(10, requires_grad=True))
    labels = torch.zeros(4, dtype=torch.int64)
    compiled = torch.compile(crossent.cross_entropy, backend="eager")  # leaves it to a call outside of the graph
    assert torch.equal(compiled(x, labels).to_local(), crossent.cross_entropy(x, labels).to_local())
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(crossent.nll_loss(x, torch.zeros(4, dtype=torch.int64)), x, create_graph=True)
    assert gradient.placements == x.placements
    with pytest.raises(RuntimeError, match=r"cannot be differentiated: redistribute them to Replicate\(\)"):
        torch.autograd.grad(crossent.cross_entropy(x, torch.zeros(4, dtype=torch.int64)), x, create_graph=True)


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
    "everything": {"weight": torch.linspace(0.5, 2, 10), "sample_weight": torch.linspace(0.1, 1, 9), "softcap": 5.0,
                   "label_smoothing": 0.1, "z_loss": 0.01},
    "soft": {"soft": True, "label_smoothing": 0.1, "weight": torch.linspace(0.5, 2, 10)},
    "sparse": {"sparse": True},
    "filtered": {"filter_eps": 1e-9},
}  # fmt: skip


def head_of(mesh, name, placements, dtype=torch.float32, bias=True):
    """Value and gradients of a head whose weight's rows are spread; `placements` are those of input and weight."""
    generator = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(9, 6, generator=generator), torch.randn(10, 6, generator=generator)
    b = torch.randn(10, generator=generator) if bias else None
    labels = torch.randint(10, (9,), generator=generator)
    labels[:2], options = -100, dict(HEADS[name])
    soft, sparse = options.pop("soft", False), options.pop("sparse", False)
    target = exact_target = torch.rand(9, 10, generator=generator).softmax(1) if soft else labels
    if sparse:
        classes, probs = torch.randint(10, (9, 3), generator=generator), torch.rand(9, 3, generator=generator)
        target = crossent.SparseTarget(classes, probs)
        exact_target = torch.zeros(9, 10).scatter_add(1, classes, probs)
    leaves = [None if t is None else t.to(dtype).double().requires_grad_() for t in (x, matrix, b)]
    kept = {key: value for key, value in options.items() if key not in ("chunk_bytes", "filter_eps")}
    exact_target = exact_target.double() if exact_target.is_floating_point() else exact_target
    exact = exact_head(*leaves, exact_target, kept)
    above = torch.linspace(1, 2, exact.numel(), dtype=torch.float64).reshape(exact.shape)
    exact.backward(above)
    of_input, of_weight = placements
    given = [distribute_tensor(x.to(dtype), mesh, of_input), distribute_tensor(matrix.to(dtype), mesh, of_weight)]
    given = [tensor.requires_grad_() for tensor in given]
    spread_bias = None if b is None else distribute_tensor(b.to(dtype), mesh, of_weight).requires_grad_()
    loss = crossent.linear_cross_entropy(*given, target, linear_bias=spread_bias, **options)
    (loss * distribute_tensor(above.to(loss.dtype), mesh, loss.placements)).sum().backward()
    tolerance = {"rtol": 2e-5, "atol": 2e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 3e-2}
    torch.testing.assert_close(loss.full_tensor().double(), exact.detach(), **tolerance)
    for tensor, leaf in zip((*given, spread_bias), leaves):
        if tensor is not None:
            assert tensor.grad.placements in (tensor.placements, of_gradient(tensor)) and tensor.grad.dtype == dtype
            torch.testing.assert_close(tensor.grad.full_tensor().double(), leaf.grad, **tolerance)


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
def collectives_of_a_head(mesh):
    """One of few numbers a row for each chunk, and one sum of the gradient of input."""
    x = distribute_tensor(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), mesh, [Replicate()])
    matrix = distribute_tensor(torch.randn(12, 6, generator=torch.Generator().manual_seed(1)), mesh, [Shard(0)])
    labels, largest = torch.arange(8), -(-12 // mesh.size())
    for chunks in (1, 2):
        with CommDebugMode() as forward:
            loss = crossent.linear_cross_entropy(
                x.requires_grad_(), matrix, labels, chunk_bytes=4 * largest * 8 // chunks
            )
        with CommDebugMode() as backward:
            loss.backward()
        if mesh.size() > 1:
            assert sum(forward.get_comm_counts().values()) == chunks
            assert sum(backward.get_comm_counts().values()) == 1


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
    with pytest.raises(ValueError, match="linear_weight must be replicated for token statistics"):
        crossent.linear_token_stats(hidden, spread, labels.clamp(max=9))
    with pytest.raises(ValueError, match="or sharded along its classes over one axis of the input's mesh"):
        crossent.linear_cross_entropy(hidden, distribute_tensor(matrix, mesh, [Shard(1)]), labels)
    with pytest.raises(ValueError, match="must not require a gradient where the classes are sharded"):
        crossent.linear_cross_entropy(hidden, spread, labels.clamp(max=9), weight=torch.ones(10, requires_grad=True))


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def failures(request):
    return failures_of(__name__, request.param)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_processes(name, failures):
    assert name not in failures, failures.get(name)
