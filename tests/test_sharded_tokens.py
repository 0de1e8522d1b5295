"""linear_token_stats with a weight whose classes are spread over processes, beside float64 on the whole logits."""

import numpy as np
import pytest
import torch
from harness import composite
from processes import DTENSORS_KEEP_GRAPHS, ONE_GRAPH, Cases, collectives, in_processes, of_gradient
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import crossent

CASES = Cases()


def exact(hidden, matrix, bias, labels, shift=0, softcap=None):
    """logprob, lse, entropy and rank, in float64, in sums of positive numbers: small results keep their digits."""
    z = hidden.double() @ matrix.double().T + (0.0 if bias is None else bias.double())
    z = softcap * torch.tanh(z / softcap) if softcap else z
    if shift:
        z, labels = z[..., :-shift, :], labels[..., shift:]
    kept, label = labels != -100, labels.clamp(min=0)[..., None]
    top, at = z.max(-1, keepdim=True)
    e = torch.exp(z - top.detach())
    others = torch.where(torch.nn.functional.one_hot(at[..., 0], z.shape[-1]) == 1, 0.0, e).sum(-1, keepdim=True)
    log_total = torch.log1p(others / e.gather(-1, at))
    log_p = z - top - log_total
    p = torch.exp(log_p)
    values = log_p.gather(-1, label)[..., 0], (top + log_total)[..., 0]
    entropy = -(p * torch.where(p == 0, 0.0, log_p)).sum(-1)
    own, numbers = z.gather(-1, label), torch.arange(z.shape[-1])
    rank = ((z > own) | ((z == own) & (numbers < label))).sum(-1)
    return [torch.where(kept, value, 0.0) for value in (*values, entropy)], torch.where(kept, rank, -1)


def stats_of(mesh, hidden, matrix, bias, labels, of_input=None, of_weight=None, **options):
    """The statistics, and the input, weight and bias that they are made of."""
    of_weight = of_weight or [Shard(0)]
    tensors = (hidden, of_input or [Replicate()]), (matrix, of_weight), (bias, of_weight)
    leaves = [None if t is None else distribute_tensor(t, mesh, to).requires_grad_() for t, to in tensors]
    return crossent.linear_token_stats(*leaves[:2], labels, linear_bias=leaves[2], **options), leaves


def arrays(dtype=torch.float32, rows=(9,), classes=10, features=6, ignored=True):
    generator = torch.Generator().manual_seed(classes)
    sizes = (*rows, features), (classes, features), (classes,)
    tensors = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    labels = torch.randint(classes, rows, generator=generator)
    if ignored:
        labels[..., 1::4] = -100
    return *tensors, labels


def check(mesh, made, wanted=(True, True, True), of_input=None, of_weight=None, **options):
    """Values and gradients, where upstream gradients are given of the results that are `wanted`."""
    *tensors, labels = made
    leaves, dtype = [None if t is None else t.double().requires_grad_() for t in tensors], made[0].dtype
    values, rank = exact(*leaves, labels, **{key: value for key, value in options.items() if key != "chunk_bytes"})
    stats, given = stats_of(mesh, *made, of_input, of_weight, **options)
    eps = 40 * torch.finfo(dtype).eps
    for ours, theirs in zip(stats[:3], values):
        assert ours.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
        torch.testing.assert_close(ours.full_tensor().double(), theirs, rtol=eps, atol=4 * eps)
    if dtype is not torch.bfloat16:
        assert torch.equal(stats.rank.full_tensor(), rank)
    above = [torch.linspace(1 + i, 2, v.numel(), dtype=torch.float64).reshape(v.shape) for i, v in enumerate(values)]
    chosen = [i for i in range(3) if wanted[i]]
    sum((values[i] * above[i]).sum() for i in chosen).backward()
    spread_above = [distribute_tensor(above[i].to(stats[i].dtype), mesh, stats[i].placements) for i in chosen]
    sum((stats[i] * d).sum() for i, d in zip(chosen, spread_above)).backward()
    for tensor, leaf in zip(given, leaves):
        if tensor is not None:
            assert tensor.grad.placements in (tensor.placements, of_gradient(tensor)) and tensor.grad.dtype == dtype
            largest = float(leaf.grad.abs().max())
            found = tensor.grad.full_tensor().double()
            torch.testing.assert_close(found, leaf.grad, rtol=4 * eps, atol=4 * eps * largest)


@CASES.add
def values_and_gradients(mesh):
    """Shards are even, uneven and empty; rows are there as a whole or spread over the same processes."""
    for classes in (10, 5, 4):
        for of_input in ([Replicate()], [Shard(0)]):
            check(mesh, arrays(classes=classes), of_input=of_input)
    check(mesh, arrays(classes=200), softcap=4.0)
    for options in ({"softcap": 3.0}, {"chunk_bytes": 100}, {"softcap": 3.0, "chunk_bytes": 1}):
        check(mesh, arrays(), **options)
    for dtype in (torch.bfloat16, torch.float64):
        hidden, matrix, _, labels = arrays(dtype)
        check(mesh, (hidden, matrix, None, labels), softcap=5.0 if dtype is torch.float64 else None)


@CASES.add
def plain_operations(mesh):
    """As on devices without kernels."""
    with composite():
        for classes in (10, 4):
            check(mesh, arrays(classes=classes), of_input=[Shard(0)])
        check(mesh, arrays(rows=(3, 5), classes=200), softcap=3.0, shift=1, chunk_bytes=2000)


@CASES.add
def chunks_of_plain_operations(mesh):
    """All processes take as many rows at a time, however many classes they have."""
    *tensors, labels = arrays(classes=5)
    _, leaves = stats_of(mesh, *tensors, labels)
    samples = torch.ones(len(labels), requires_grad=True)
    how = {"linear_bias": leaves[2], "sample_weight": samples, "chunk_bytes": 24, "reduction": "none"}
    losses = crossent.linear_cross_entropy(*leaves[:2], labels, **how)
    torch.testing.assert_close(losses.full_tensor().double(), -exact(*tensors, labels)[0][0], rtol=1e-5, atol=1e-6)
    losses.sum().backward()
    torch.testing.assert_close(samples.grad, losses.full_tensor())


@CASES.add
def derivatives_of_derivatives(mesh):
    if not DTENSORS_KEEP_GRAPHS:
        return
    *tensors, labels = arrays(torch.float64, classes=7)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    stats, given = stats_of(mesh, *tensors, labels, chunk_bytes=100)
    found = []
    for values, of in ((stats[:3], given), (exact(*leaves, labels)[0], leaves)):
        total = sum((scale * value).sin().sum() for scale, value in zip((1.0, 0.5, 0.7), values))
        first = torch.autograd.grad(total, of, create_graph=True)
        found.append((*first, *torch.autograd.grad(sum((one * one).sum() for one in first), of)))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-9, atol=1e-9)
    if mesh.size() > 1:
        stats, given = stats_of(mesh, *arrays(classes=1))
        with pytest.raises(RuntimeError, match="cannot be differentiated where a process has no classes"):
            torch.autograd.grad(stats.entropy.sum(), given, create_graph=True)


@CASES.add
def plain_tensors(mesh):
    """Of each process's own classes: as many in all, or from `first_class` on."""
    *tensors, labels = arrays(classes=12)
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    values, rank = exact(*leaves, labels)
    sum(value.sum() for value in values).backward()
    for edges in ([12 * i // mesh.size() for i in range(mesh.size() + 1)], [0, 5, 12, 12, 12][: mesh.size()] + [12]):
        lo, hi = edges[mesh.get_local_rank()], edges[mesh.get_local_rank() + 1]
        given = [tensors[0].clone(), tensors[1][lo:hi].clone(), tensors[2][lo:hi].clone()]
        given = [tensor.requires_grad_() for tensor in given]
        said = {"group": mesh.get_group(), "first_class": lo if edges[1] == 5 else None}
        stats = crossent.linear_token_stats(*given[:2], labels, linear_bias=given[2], **said)
        for ours, theirs in zip(stats[:3], values):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
        assert torch.equal(stats.rank, rank)
        sum(value.sum() for value in stats[:3]).backward()
        exact_gradients = leaves[0].grad, leaves[1].grad[lo:hi], leaves[2].grad[lo:hi]
        for tensor, gradient in zip(given, exact_gradients):
            torch.testing.assert_close(tensor.grad.double(), gradient, rtol=1e-4, atol=1e-5)
        reasons = crossent.plan(crossent.linear_token_stats, *given[:2], labels, **said).reasons
        assert any(reason.endswith("which send 20 bytes a row, in two parts") for reason in reasons), reasons


@CASES.add
def upstream_gradients(mesh):
    for wanted in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)):
        check(mesh, arrays(ignored=False), wanted)


@CASES.add
def sequences(mesh):
    for of_input in (Replicate(), Shard(0), Shard(1)):
        check(mesh, arrays(rows=(3, 5)), of_input=[of_input], shift=2)


@CASES.add
def rows_over_another_axis(mesh):
    if mesh.size() % 2:
        return
    grid = init_device_mesh("cpu", (2, mesh.size() // 2))
    rows, classes = [Shard(0), Replicate()], [Replicate(), Shard(0)]
    check(grid, arrays(), of_input=rows, of_weight=classes)
    check(grid, arrays(), of_input=rows[::-1], of_weight=classes[::-1])


@CASES.add
def ties(mesh):
    """Of equal logits the earlier class comes first, whichever process has it; ranks by a stable sort."""
    generator = np.random.default_rng(0)
    for classes, softcap, dtype in ((7, None, torch.float32), (150, 3.0, torch.float32), (150, None, torch.bfloat16)):
        matrix = generator.integers(-2, 3, size=(classes, 20)).astype(np.float32)
        matrix[:, 0] = 0
        labels = generator.permutation(np.arange(20) * (classes - 1) // 19)
        expected = (np.argsort(-matrix, 0, kind="stable") == labels).argmax(0)
        given = torch.eye(20).to(dtype), torch.from_numpy(matrix).to(dtype), None, torch.from_numpy(labels)
        rank = stats_of(mesh, *given, softcap=softcap, chunk_bytes=4000)[0].rank
        np.testing.assert_array_equal(rank.full_tensor().numpy(), expected)


@CASES.add
def confident_rows(mesh):
    """The label's logit is far above the others, which are in all shards."""
    classes, generator = 12, torch.Generator().manual_seed(0)
    for gap in (1.0, 10.0, 20.0, 40.0, 80.0):
        matrix = torch.randint(-4, 5, (classes, classes), generator=generator) / 8 + gap * torch.eye(classes)
        given = torch.eye(classes), matrix.T.contiguous(), None, torch.arange(classes)
        stats, (_, weight, _) = stats_of(mesh, *given)
        leaf = given[1].double().requires_grad_()
        values, rank = exact(given[0], leaf, None, given[3])
        for ours, theirs in zip(stats[:3], values):
            torch.testing.assert_close(ours.full_tensor().double(), theirs, rtol=1e-6, atol=0)
        assert torch.equal(stats.rank.full_tensor(), rank)
        stats.logprob.sum().backward()
        own = torch.diagonal(weight.grad.full_tensor()).double()  # 1 - p of the labels
        torch.testing.assert_close(own, -torch.expm1(values[0]).detach(), rtol=1e-5, atol=0)


@CASES.add
def far_apart(mesh):
    """Logits of one shard lie far from those of the others, or far above the first ones of their own."""
    hidden, matrix, bias, labels = arrays(classes=300)
    for at, height in ((0, 300.0), (299, 300.0), (100, 50.0), (149, 70.0), (250, -1e4), (slice(100, 300), -1e4)):
        moved = bias.clone()
        moved[at] += height
        check(mesh, (hidden, matrix, moved, labels))


@CASES.add
def infinite_logits(mesh):
    hidden, matrix, bias, labels = arrays(ignored=False)
    bias[[0, 3, 8, 9]] = -torch.inf
    labels[:2] = torch.tensor([3, 9])
    stats, _ = stats_of(mesh, hidden, matrix, bias, labels)
    values, rank = exact(hidden, matrix, bias, labels)
    for ours, theirs in zip(stats[:3], values):
        torch.testing.assert_close(ours.full_tensor().double(), theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(stats.rank.full_tensor(), rank) and bool((stats.logprob.full_tensor()[:2] == -torch.inf).all())
    bias[7] = torch.nan  # in one shard, and seen by all
    stats, _ = stats_of(mesh, hidden, matrix, bias, labels)
    assert bool(torch.stack([value.full_tensor() for value in stats[:3]]).isnan().all())


@CASES.add
def ignored_rows(mesh):
    """They may hold nan, and may be all."""
    hidden, matrix, bias, labels = arrays()
    hidden[labels == -100] = torch.nan
    for given in (labels, torch.full_like(labels, -100)):
        stats, leaves = stats_of(mesh, hidden, matrix, bias, given)
        whole = [value.full_tensor()[given == -100] for value in stats]
        assert all(bool((value == ignored).all()) for value, ignored in zip(whole, (0, 0, 0, -1)))
        sum(value.sum() for value in stats[:3]).backward()
        gradients = [leaf.grad.full_tensor() for leaf in leaves]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        assert not gradients[0][given == -100].any()


@CASES.add
def what_is_sent(mesh):
    """For each chunk one number a row, then four; in the backward pass the gradient of input."""
    *given, labels = arrays(rows=(8,), classes=12, ignored=False)
    largest = -(-12 // mesh.size())
    for rows in (8, 4):
        with collectives() as sent:
            stats, _ = stats_of(mesh, *given, labels, chunk_bytes=4 * largest * rows)
        own, sums = ("all_gather_into_tensor", [1, rows]), ("all_gather_into_tensor", [1, 4, rows])
        assert sent == [own, sums] * (8 // rows) or mesh.size() == 1, sent
        with collectives() as sent:
            sum(value.sum() for value in stats[:3]).backward()
        assert sent == [("all_reduce", [8, 6])] or mesh.size() == 1, sent


@CASES.add
def same_bits_everywhere(mesh):
    stats, _ = stats_of(mesh, *arrays(rows=(64,), classes=50))
    for value in stats:
        mine = value.to_local().detach().contiguous()
        parts = [torch.empty_like(mine) for _ in range(mesh.size())]
        distributed.all_gather(parts, mine)
        assert all(torch.equal(part, parts[0]) for part in parts)


@CASES.add
def in_a_graph(mesh):
    """`torch.compile` makes one graph of a step."""
    if mesh.size() != 2 or not ONE_GRAPH:  # the compiler takes seconds to load
        return
    hidden, matrix, _, labels = arrays(classes=12)
    expected, leaves = stats_of(mesh, hidden, matrix, None, labels)
    own = leaves[1].to_local().detach().requires_grad_()
    compiled = torch.compile(crossent.linear_token_stats, fullgraph=True, backend="aot_eager")
    found = compiled(hidden, own, labels, group=mesh.get_group())
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs.full_tensor())
    for stats in (found, expected):
        sum(value.sum() for value in stats[:3]).backward()
    torch.testing.assert_close(own.grad, leaves[1].grad.to_local())


@CASES.add
def refusals(mesh):
    hidden, matrix, bias, labels = arrays(ignored=False)
    for bad in (10, -1):
        wrong = labels.clone()
        wrong[2] = bad
        with pytest.raises(IndexError, match=f"Target {bad} at position 2 is out of bounds: .* 0 and 9"):
            stats_of(mesh, hidden, matrix, bias, wrong)


@CASES.add
def plans(mesh):
    hidden, matrix, bias, labels = arrays()
    for dtype, size in ((torch.bfloat16, 4), (torch.float64, 8)):
        _, (x, weight, _) = stats_of(mesh, hidden.to(dtype), matrix.to(dtype), None, labels)
        reasons = crossent.plan(crossent.linear_token_stats, x, weight, labels).reasons
        sent = f"which send {5 * size} bytes a row, in two parts"
        assert f"its classes are spread over {mesh.size()} processes, {sent}" in reasons
        assert "the gradient of input is the sum of theirs" in reasons


failures, test_processes = in_processes(
    __name__, CASES, [pytest.param(1, marks=pytest.mark.soak), 2, 3, pytest.param(4, marks=pytest.mark.soak)]
)
