"""Losses of plain tensors, of whose classes each of 2 or 3 processes has a part, beside the reference."""

import numpy as np
import pytest
import torch
from harness import TORCH_DTYPES, expected, quantise
from processes import ONE_GRAPH, Cases, collectives, in_processes
from test_contract import OPTIONS, class_axis, make
from test_sharded_classes import HEADS, SHAPES, head_case, hessian_product
from torch import distributed
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import crossent

CASES = Cases()


def cuts(classes, processes):
    """Where the processes' classes begin and end: uneven, and the last has none if there are three."""
    firsts = [0, 1 + classes // 3, classes, classes][: processes + 1]
    return [*firsts[:processes], classes]


def own(mesh, tensor, axis, even=False):
    """This process's part of a tensor along the classes, and the number of its first class."""
    classes, rank = tensor.shape[axis], mesh.get_local_rank()
    edges = [classes * part // mesh.size() for part in range(mesh.size() + 1)] if even else cuts(classes, mesh.size())
    return tensor.narrow(axis, edges[rank], edges[rank + 1] - edges[rank]).clone(), edges[rank]


def whole(mesh, part, axis, like):
    """The tensor of which every process has its part."""
    parts = [None] * mesh.size()
    distributed.all_gather_object(parts, part.detach())
    found = torch.cat(parts, axis)
    assert found.shape == like.shape
    return found


def check(mesh, options, shape, dim, dtype, even=False, compiled=None, **more):
    logits, target, keywords = make(shape, dim, **options)
    axis, keywords = class_axis(logits, dim), keywords | more
    logits, soft = quantise(logits, dtype), target.ndim == logits.ndim
    target = quantise(target, dtype) if soft else target
    rows = target.sum(axis).shape if soft else target.shape
    upstream = np.random.default_rng(3).normal(size=rows if keywords.get("reduction") == "none" else ())
    exact, gradient = expected("cross_entropy", logits, target, upstream=upstream, **keywords)
    x, first = own(mesh, torch.as_tensor(logits).to(TORCH_DTYPES[dtype]), axis, even)
    given = {key: torch.as_tensor(value) if isinstance(value, np.ndarray) else value for key, value in keywords.items()}
    if "weight" in given:
        given["weight"], _ = own(mesh, given["weight"], 0, even)
    target = torch.as_tensor(target)
    target = own(mesh, target.to(x.dtype), axis, even)[0] if soft else target
    x.requires_grad_()
    function = compiled or crossent.cross_entropy
    loss = function(x, target, group=mesh.get_group(), first_class=None if even else first, **given)
    (loss * torch.as_tensor(upstream).to(loss.dtype)).sum().backward()
    eps = torch.finfo(x.dtype).eps
    np.testing.assert_allclose(loss.detach().double(), exact, rtol=40 * eps, atol=40 * eps)
    found = whole(mesh, x.grad, axis, torch.as_tensor(logits))
    np.testing.assert_allclose(found.double(), gradient, rtol=40 * eps, atol=40 * eps)


@CASES.add
def every_option(mesh):
    for options in OPTIONS.values():
        check(mesh, options, *SHAPES[0], "float32")
        check(mesh, options, (13, 12), None, "float64", even=True)


@CASES.add
def every_shape(mesh):
    for shape, dim in SHAPES:
        for name in ("everything", "everything none", "soft, everything"):
            check(mesh, OPTIONS[name], shape, dim, "bfloat16")


@CASES.add
def no_rows(mesh):
    """In any process, where none says how many classes there are."""
    for name in ("sum", "none", "soft none"):
        check(mesh, OPTIONS[name], (0, 6), None, "float32", even=True)


@CASES.add
def in_a_graph(mesh):
    """`torch.compile` makes one graph of a step."""
    if mesh.size() == 2 and ONE_GRAPH:
        compiled = torch.compile(crossent.cross_entropy, fullgraph=True, backend="aot_eager")
        check(mesh, OPTIONS["everything"], (13, 12), None, "float32", even=True, compiled=compiled)
        (x, matrix, _), target, _, exact, leaves, _ = head_case("mean", 12, bias=False)
        (part, _), x = own(mesh, matrix, 0, even=True), x.clone().requires_grad_()
        compiled = torch.compile(crossent.linear_cross_entropy, fullgraph=True, backend="aot_eager")
        loss = compiled(x, part.requires_grad_(), target, group=mesh.get_group())
        loss.backward()
        torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
        for found, leaf in zip((x.grad, whole(mesh, part.grad, 0, matrix)), leaves):
            torch.testing.assert_close(found.double(), leaf.grad, rtol=1e-5, atol=1e-6)


@CASES.add
def what_is_sent(mesh):
    """The count of the classes is sent with the sums; where they begin, before them."""
    x, labels = torch.randn(6, 4, requires_grad=True), torch.arange(6) % 4
    sums = ("all_gather_into_tensor", [1, 3 * 6 + 1])
    with collectives() as sent:
        crossent.cross_entropy(x, labels, group=mesh).backward()
    assert sent == [sums]
    with collectives() as sent:
        crossent.cross_entropy(x, labels, group=mesh, first_class=4 * mesh.get_local_rank()).backward()
    assert sent == [("all_gather_into_tensor", [1, 2]), ("all_gather_into_tensor", [1, 3, 6, 1])]
    hidden, matrix = torch.randn(6, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    with collectives() as sent:
        crossent.linear_cross_entropy(hidden, matrix, labels, group=mesh).backward()
    gathered = "all_gather_into_tensor"
    assert sent == [(gathered, [1, 1]), (gathered, [1, 3, 6, 1]), ("all_reduce", [6, 5])]


@CASES.add
def heads(mesh):
    for name in HEADS:
        for even in (False, True):
            (x, matrix, bias), target, options, exact, leaves, above = head_case(name, classes=12)
            x, (matrix, first), (bias, _) = (
                x.clone().requires_grad_(),
                own(mesh, matrix, 0, even),
                own(mesh, bias, 0, even),
            )
            for tensor in (matrix, bias):
                tensor.requires_grad_()
            if "weight" in options:
                options["weight"], _ = own(mesh, options["weight"], 0, even)
            if isinstance(target, torch.Tensor) and target.is_floating_point():
                target, _ = own(mesh, target, 1, even)
            loss = crossent.linear_cross_entropy(
                x, matrix, target, linear_bias=bias, group=mesh, first_class=None if even else first, **options
            )
            (loss * above.float()).sum().backward()
            torch.testing.assert_close(loss.double(), exact.detach(), rtol=2e-5, atol=2e-5)
            found = x.grad, whole(mesh, matrix.grad, 0, leaves[1]), whole(mesh, bias.grad, 0, leaves[2])
            if isinstance(target, crossent.SparseTarget):
                found = *found, target.probs.grad
            for gradient, leaf in zip(found, leaves, strict=True):
                torch.testing.assert_close(gradient.double(), leaf.grad, rtol=2e-5, atol=2e-5)


@CASES.add
def weights_of_a_head_that_are_learned(mesh):
    """In plain operations, with a process that has no classes."""
    generator = torch.Generator().manual_seed(0)
    hidden, matrix, weight = (torch.rand(size, generator=generator).double() for size in ((6, 4), (12, 4), (12,)))
    labels = torch.arange(6)
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, matrix, weight)]
    of_labels = leaves[2][labels]
    exact = (of_labels * -(leaves[0] @ leaves[1].T).log_softmax(1)[labels, labels]).sum() / of_labels.sum()
    exact.backward()
    (of_matrix, first), (of_weight, _) = own(mesh, matrix, 0), own(mesh, weight, 0)
    given = [tensor.clone().requires_grad_() for tensor in (hidden, of_matrix, of_weight)]
    loss = crossent.linear_cross_entropy(
        *given[:2], labels, weight=given[2], group=mesh, first_class=first, chunk_bytes=8 * 12 * 2
    )
    loss.backward()
    torch.testing.assert_close(loss, exact)
    found = given[0].grad, whole(mesh, given[1].grad, 0, matrix), whole(mesh, given[2].grad, 0, weight)
    for one, leaf in zip(found, leaves):
        torch.testing.assert_close(one, leaf.grad)


@CASES.add
def derivatives_of_derivatives(mesh):
    """By input, weight and class weights; each process differentiates the slope along what it has."""
    generator = torch.Generator().manual_seed(0)
    hidden, matrix, weight = (torch.rand(size, generator=generator).double() for size in ((6, 4), (12, 4), (12,)))
    labels, directions = torch.arange(6), [tensor.flip(0) for tensor in (hidden, matrix, weight)]
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, matrix, weight)]
    of_labels = leaves[2][labels]
    losses = -(leaves[0] @ leaves[1].T).log_softmax(1)[labels, labels]
    exact = hessian_product((of_labels * losses).sum() / of_labels.sum(), leaves, directions)
    parts, along = [hidden.clone()], [directions[0]]
    for tensor, direction in zip((matrix, weight), directions[1:]):
        part, first = own(mesh, tensor, 0)
        parts.append(part)
        along.append(own(mesh, direction, 0)[0])
    given = [tensor.requires_grad_() for tensor in parts]
    loss = crossent.linear_cross_entropy(*given[:2], labels, weight=given[2], group=mesh, first_class=first)
    if mesh.size() == 3:  # the last has no classes
        with pytest.raises(RuntimeError, match="cannot be differentiated where a process has no classes"):
            hessian_product(loss, given, along)
        return
    found = hessian_product(loss, given, along)
    for one, wanted in zip((found[0], whole(mesh, found[1], 0, matrix), whole(mesh, found[2], 0, weight)), exact):
        torch.testing.assert_close(one, wanted)


@CASES.add
def in_place(mesh):
    """Nothing is written over logits that lie in memory once for several rows, or are another tensor's too."""
    labels, row = torch.arange(4), torch.randn(1, 4, generator=torch.Generator().manual_seed(mesh.get_rank()))
    for logits_of in (lambda tensor: tensor.expand(4, -1), lambda tensor: torch._lazy_clone(tensor.repeat(4, 1))):
        kept, written = row.clone().requires_grad_(), row.clone().requires_grad_()
        crossent.cross_entropy(logits_of(kept), labels, group=mesh).backward()
        crossent.cross_entropy(logits_of(written), labels, inplace_backward=True, group=mesh).backward()
        assert torch.equal(kept.grad, written.grad)
    source = row.repeat(4, 1)
    shared = torch._lazy_clone(source).requires_grad_()
    crossent.cross_entropy(shared, labels, inplace_backward=True, group=mesh).backward()
    assert torch.equal(source, row.repeat(4, 1))


@CASES.add
def refusals(mesh):
    x, labels, rank = torch.zeros(4, 5), torch.tensor([0, 1, 2, 3]), mesh.get_local_rank()
    group = mesh.get_group()
    with pytest.raises(
        ValueError, match="must be given where the processes of group have different numbers of classes"
    ):
        crossent.cross_entropy(x[:, : 5 - rank], labels, group=group)
    for options in ({}, {"chunk_bytes": 40}):  # which would make other chunks in each
        with pytest.raises(
            ValueError, match="where the processes of group have different numbers of classes, got .5, 4"
        ):
            crossent.linear_cross_entropy(x, torch.zeros(5 - rank, 5), labels + 8, group=group, **options)
    with pytest.raises(ValueError, match="must leave no class out and have none twice, got 5 from 0 on, 5 from 4 on"):
        crossent.cross_entropy(x, labels, group=group, first_class=4 * rank)
    with pytest.raises(ValueError, match="first_class must not be given without group, got 5"):
        crossent.cross_entropy(x, labels, first_class=5)
    with pytest.raises(TypeError, match="group must be a process group or a mesh of one axis, got 3"):
        crossent.cross_entropy(x, labels, group=3)
    with pytest.raises(TypeError, match="group must not be given for arrays that are no tensors of PyTorch"):
        crossent.cross_entropy(x.numpy(), labels.numpy(), group=group)
    with pytest.raises(TypeError, match="group must not be given for DTensors"):
        crossent.cross_entropy(distribute_tensor(x, mesh, [Shard(1)]), labels, group=group)
    with pytest.raises(TypeError, match="group must not be given for DTensors"):
        hidden = distribute_tensor(torch.zeros(4, 2), mesh, [Replicate()])
        crossent.linear_cross_entropy(hidden, torch.zeros(5, 2), labels, group=group)
    last = 5 * mesh.size()
    with pytest.raises(IndexError, match=f"Target {last} at position 1 is out of bounds: .* 0 and {last - 1}"):
        crossent.cross_entropy(x, torch.tensor([0, last, 1, 2]), group=group)
    with pytest.raises(IndexError, match=f"Target {last} at position 1 is out of bounds: .* 0 and {last - 1}"):
        crossent.linear_cross_entropy(x, torch.zeros(5, 5), torch.tensor([0, last, 1, 2]), group=group)
    sparse = crossent.SparseTarget(torch.full((4, 1), last), torch.ones(4, 1))
    with pytest.raises(IndexError, match=f"Class {last} at position .* is out of bounds"):
        crossent.linear_cross_entropy(x, torch.zeros(5, 5), sparse, group=group)


@CASES.add
def plans(mesh):
    x, labels = torch.zeros(4, 5), torch.tensor([0, 1, 2, 3])
    said = f"its classes are spread over {mesh.size()} processes, which send 12 bytes a row, once"
    found = crossent.plan(crossent.cross_entropy, x, labels, group=mesh)
    assert found.path == "kernels in two stages" and said in found.reasons
    found = crossent.plan(crossent.linear_cross_entropy, x, torch.zeros(5, 5), labels, group=mesh)
    assert found.path == "kernels" and {said, "the gradient of input is the sum of theirs"} <= set(found.reasons)


failures, test_processes = in_processes(__name__, CASES, [2, 3])
