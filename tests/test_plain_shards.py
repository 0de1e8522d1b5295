"""Losses of plain tensors, of whose classes each of 2 or 3 processes has a part, beside the reference."""

import datetime
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import TORCH_DTYPES, expected, quantise
from processes import ONE_GRAPH, Cases, collectives, in_processes, start
from test_contract import OPTIONS, class_axis, make
from test_sharded_classes import HEADS, SHAPES, head_case, hessian_product
from torch import distributed
from torch.autograd import forward_ad
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
    sums = ("all_gather_into_tensor", [1, 3 * 6 + 2])
    with collectives() as sent:
        crossent.cross_entropy(x, labels, group=mesh).backward()
    assert sent == [sums]
    with collectives() as sent:
        crossent.cross_entropy(x, labels, group=mesh, first_class=4 * mesh.get_local_rank()).backward()
    assert sent == [("all_gather_into_tensor", [1, 6]), ("all_gather_into_tensor", [1, 3, 6, 1])]
    hidden, matrix = torch.randn(6, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    with collectives() as sent:
        crossent.linear_cross_entropy(hidden, matrix, labels, group=mesh).backward()
    gathered = "all_gather_into_tensor"
    assert sent == [(gathered, [1, 6]), (gathered, [1, 3, 6, 1]), ("all_reduce", [6, 5])]


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


X, LABELS = torch.linspace(-2, 2, 24).reshape(6, 4), torch.arange(6)
HIDDEN, MATRIX = torch.linspace(-1, 1, 18).reshape(6, 3), torch.linspace(-2, 1, 12).reshape(4, 3)
SPARSE = crossent.SparseTarget(LABELS[:, None], torch.ones(6, 1))
OF_LOSS = {"input": X, "target": LABELS, "weight": torch.ones(4)}
OF_HEAD = {"input": HIDDEN, "linear_weight": MATRIX, "target": LABELS, "linear_bias": torch.zeros(4)}
BAD = LABELS.index_fill(0, torch.tensor(2), 99)
WRONG_TARGETS = [  # what one process gives, while the others give what is right, and what all have to say
    ({"target": BAD}, IndexError, "Target 99 at position 2 is out of bounds: .* 0 and "),
    ({"target": LABELS - 1}, IndexError, "Target -1 at position 0 is out of bounds: .* 0 and "),
    ({"target": LABELS[:5]}, ValueError, "target has the wrong shape"),
    ({"target": LABELS.float()}, TypeError, "target holds labels, which must be integers, got torch.float32"),
    ({"target": LABELS.tolist()}, TypeError, "target must be a tensor like input, got list"),
    ({"target": LABELS.to("meta")}, ValueError, "target must be on the device of input, cpu, got meta"),
]
WRONG_OF_LOSS = [
    *WRONG_TARGETS,
    ({"weight": torch.ones(5)}, ValueError, r"weight must have one entry for each of the 4 classes, got shape \(5,\)"),
    ({"weight": torch.ones(4).long()}, TypeError, "weight must be float16, bfloat16, float32 or float64, got"),
    ({"sample_weight": torch.ones(5)}, ValueError, r"sample_weight of shape \(5,\) does not broadcast"),
    ({"denominator": torch.ones(1)}, ValueError, "denominator must be a number or a 0-dimensional array, got 1 axes"),
    ({"input": X.long()}, TypeError, "input must be float16, bfloat16, float32 or float64, got torch.int64"),
]
WRONG_OF_TOKENS = [
    *WRONG_TARGETS,
    ({"linear_weight": MATRIX[:, :2]}, ValueError, "input and linear_weight must have as many features"),
    ({"linear_weight": MATRIX.double()}, TypeError, "linear_weight must have the dtype of input"),
    ({"linear_bias": torch.zeros(5)}, ValueError, r"linear_bias must have shape \(4,\), got \(5,\)"),
]
WRONG_OF_HEAD = [
    *WRONG_OF_TOKENS,
    ({"weight": torch.ones(5)}, ValueError, "weight must have one entry for each of the 4 classes"),
    ({"sample_weight": torch.ones(5)}, ValueError, r"sample_weight of shape \(5,\) does not broadcast"),
]


def raised_in_all(mesh, function, right, wrong):
    for number, (given, kind, message) in enumerate(wrong):
        bad = number % mesh.size()
        for begins in (None, 4 * mesh.get_local_rank()):
            said, arguments = {"group": mesh.get_group(), "first_class": begins}, right
            if mesh.get_rank() == bad:
                arguments = right | given
            with pytest.raises(kind, match=f"^rank {bad}: .*{message}") as found:
                function(**arguments, **said)
            assert not getattr(found.value, "__notes__", []), found.value.__notes__
            with pytest.raises(kind, match=f"^{message}"):  # what all have is told by itself
                function(**right | given, **said)
            assert function(**right, **said) is not None  # and all go on together


@CASES.add
def errors_of_one_process(mesh):
    raised_in_all(mesh, crossent.cross_entropy, OF_LOSS, WRONG_OF_LOSS)
    raised_in_all(mesh, crossent.linear_cross_entropy, OF_HEAD, WRONG_OF_HEAD)
    raised_in_all(mesh, crossent.linear_token_stats, OF_HEAD, WRONG_OF_TOKENS)
    wrong = crossent.SparseTarget(BAD[:, None], torch.ones(6, 1)), crossent.SparseTarget(LABELS, torch.ones(6))
    messages = (
        (IndexError, "Class 99 at position .2, 0. of a SparseTarget"),
        (ValueError, "a SparseTarget's classes and"),
    )
    sparse = [({"target": target}, *message) for target, message in zip(wrong, messages)]
    raised_in_all(mesh, crossent.linear_cross_entropy, OF_HEAD | {"target": SPARSE}, sparse)
    soft = {"input": X, "target": torch.rand(6, 4)}
    wrong = [({"target": torch.rand(6, 5)}, ValueError, "target has the wrong shape")]
    raised_in_all(mesh, crossent.cross_entropy, soft, wrong)
    nothing = {"input": X[:0], "target": LABELS[:0], "weight": torch.ones(4)}
    raised_in_all(mesh, crossent.cross_entropy, nothing, [({"weight": torch.ones(5)}, ValueError, "weight must have")])


@CASES.add
def a_wrong_first_class_in_one_process(mesh):
    """It is sent first, or what is wrong with it is told in its place."""
    first = 4 * mesh.get_local_rank()
    for wrong, kind in ((0.5, TypeError), ("4", TypeError), (2**70, Exception)):
        for call in (lambda **said: crossent.cross_entropy(X, LABELS, **said),
                     lambda **said: crossent.linear_cross_entropy(HIDDEN, MATRIX, LABELS, **said)):  # fmt: skip
            with pytest.raises(kind, match="^rank 1: "):
                call(group=mesh, first_class=wrong if mesh.get_rank() == 1 else first)
            assert call(group=mesh, first_class=first).isfinite()


@CASES.add
def ignored_labels_are_no_error(mesh):
    """Also where they are lower or higher than any class, or count nothing."""
    samples = torch.tensor([1.0, 0, 1, 1, 1, 1])
    labels = torch.tensor([0, 99, -7, 3, 2, 1])
    options = {"ignore_index": -7, "sample_weight": samples}
    for begins in (None, 4 * mesh.get_local_rank()):
        said = {"group": mesh.get_group(), "first_class": begins} | options
        assert crossent.cross_entropy(X, labels, **said).isfinite()
        assert crossent.linear_cross_entropy(HIDDEN, MATRIX, labels, **said).isfinite()


@CASES.add
def other_rows_in_one_process(mesh):
    """A head tells how many targets count before it sends sums; with `first_class` the losses do too."""
    rank, group = mesh.get_local_rank(), mesh.get_group()
    fewer = LABELS.index_fill(0, torch.tensor(2), -100) if rank == 1 else LABELS
    counts = [6, 5, 6][: mesh.size()]
    said = "targets, weights and options must be alike in all processes of group, got "
    with pytest.raises(ValueError, match=re.escape(f"{said}{counts} targets that count, and {[3] * mesh.size()}")):
        crossent.linear_cross_entropy(HIDDEN, MATRIX, fewer, group=group)
    with pytest.raises(ValueError, match=re.escape(f"{said}{counts} targets that count, and {[5] * mesh.size()}")):
        crossent.linear_token_stats(HIDDEN, MATRIX, fewer, group=group, first_class=4 * rank)
    smoothing, numbers = 0.1 * (rank == 1), [3, 5, 3][: mesh.size()]
    with pytest.raises(ValueError, match=re.escape(f"{said}{[6] * mesh.size()} targets that count, and {numbers}")):
        crossent.cross_entropy(X, LABELS, label_smoothing=smoothing, group=group, first_class=4 * rank)
    with pytest.raises(ValueError, match="first_class must be given in all processes of group, or in none"):
        crossent.linear_cross_entropy(HIDDEN, MATRIX, LABELS, group=group, first_class=4 * rank if rank else None)
    weight = torch.ones(4) if rank == 1 else None  # 4 numbers of 3 rows are as much as 3 of 4
    rows = slice(3 if rank == 1 else 4)
    with pytest.raises(ValueError, match=re.escape(f"{said}{[3, 4, 3][: mesh.size()]} numbers to send for each row")):
        crossent.cross_entropy(X[rows], LABELS[rows], weight, group=group)


def functions(mesh, first_class):
    """For a loss, a head and the statistics of rows: of this process, and of the whole in float64; the whole's tensors;
    and the axis of the classes of each, None where it has none.
    """
    said = {"group": mesh.get_group(), "first_class": first_class}
    generator = torch.Generator().manual_seed(0)
    sizes = (6, 12), (6, 3), (12, 3), (12,)
    logits, hidden, matrix, weight = (torch.randn(size, generator=generator).double() for size in sizes)
    labels = torch.tensor([3, -100, 0, 11, 7, 7])

    def exact(logits, weight):
        kept = torch.where(labels == -100, 0.0, weight[labels.clamp(0)])
        nll = -logits.log_softmax(1).gather(1, labels.clamp(0)[:, None])[:, 0]
        return (kept * nll).sum() / kept.sum()

    def exact_entropy(hidden, matrix):
        logp = (hidden @ matrix.T).log_softmax(1)
        return torch.where(labels == -100, 0.0, -(logp.exp() * logp).sum(1)).sum()

    def entropy(hidden, matrix):
        return crossent.linear_token_stats(hidden, matrix, labels, **said).entropy.sum()

    return (
        (lambda x, w: crossent.cross_entropy(x, labels, w, **said), exact, (logits, weight.exp()), (1, 0)),
        (
            lambda h, m: crossent.linear_cross_entropy(h, m, labels, **said),
            lambda h, m: exact(h @ m.T, torch.ones(12).double()),
            (hidden, matrix),
            (None, 0),
        ),
        (entropy, exact_entropy, (hidden, matrix), (None, 0)),
    )


def in_transforms(mesh, ours, exact, tensors, axes, even):
    def cut(of):
        return tuple(t if axis is None else own(mesh, t, axis, even)[0] for t, axis in zip(of, axes))

    def same(found, wanted, batch=0):
        for one, whole_one, axis in zip(found, wanted, axes):
            one = one.detach() if axis is None else whole(mesh, one, axis + batch, whole_one)
            torch.testing.assert_close(one, whole_one.detach())

    def slope_of(function, of, directions):
        return torch.func.jvp(torch.func.grad(function, (0, 1)), of, directions)[1]

    directions = tuple(tensor.flip(0) for tensor in tensors)
    parts, along = cut(tensors), cut(directions)
    exact_gradient = torch.func.grad(exact, (0, 1))(*tensors)
    if mesh.size() == 3 and not even:  # the last has no classes
        with pytest.raises(RuntimeError, match="where a process has no classes, nor made by torch.func: spread them"):
            torch.func.grad(ours, (0, 1))(*parts)
    else:
        same(torch.func.grad(ours, (0, 1))(*parts), exact_gradient)
        _, pullback = torch.func.vjp(ours, *parts)
        same(pullback(torch.ones(()).double()), exact_gradient)
    value, slope = torch.func.jvp(exact, tensors, directions)
    torch.testing.assert_close(torch.func.jvp(ours, parts, along), (value, slope))
    with forward_ad.dual_level():
        found = ours(*(forward_ad.make_dual(part, one) for part, one in zip(parts, along)))
        found = tuple(forward_ad.unpack_dual(found))
    torch.testing.assert_close(found, (value, slope))
    if mesh.size() == 2:
        of_parts, of_whole = (tuple(torch.stack([t, 2 * t, t + 1]) for t in of) for of in (parts, tensors))
        torch.testing.assert_close(torch.vmap(ours)(*of_parts), torch.vmap(exact)(*of_whole))
        gradients = torch.vmap(torch.func.grad(ours, (0, 1)))(*of_parts)
        same(gradients, torch.vmap(torch.func.grad(exact, (0, 1)))(*of_whole), batch=1)
        same(slope_of(ours, parts, along), slope_of(exact, tensors, directions))
        leaves = tuple(part.clone().requires_grad_() for part in parts)
        loss, above = ours(*leaves), torch.tensor([1.0, 2]).double()
        if axes[0] is None:  # whose gradient is sent
            with pytest.raises(RuntimeError, match="is_grads_batched must not be given where classes"):
                torch.autograd.grad(loss, leaves, above, is_grads_batched=True)
        else:
            batched = torch.autograd.grad(loss, leaves, above, is_grads_batched=True)
            same([gradient[1] for gradient in batched], [2 * gradient for gradient in exact_gradient])


@CASES.add
def function_transforms(mesh):
    """torch.func's grad, jvp, vmap and what is made of them, and forward mode, beside the whole in float64."""
    _, first = own(mesh, torch.zeros(12), 0)
    for first_class in (None, first):
        for case in functions(mesh, first_class):
            in_transforms(mesh, *case, even=first_class is None)


@CASES.add
def errors_of_one_process_in_transforms(mesh):
    labels = BAD if mesh.get_rank() == 1 else LABELS
    with pytest.raises(IndexError, match="^rank 1: Target 99 at position 2"):
        torch.func.grad(lambda x: crossent.cross_entropy(x, labels, group=mesh))(X)
    with pytest.raises(IndexError, match="^rank 1: Target 99 at position 2"):
        torch.vmap(lambda x: crossent.cross_entropy(x, labels, group=mesh))(torch.stack([X, X]))
    with pytest.raises(IndexError, match="^rank 1: Target 99 at position 2"):
        torch.func.jvp(lambda h: crossent.linear_cross_entropy(h, MATRIX, labels, group=mesh), (HIDDEN,), (HIDDEN,))


@CASES.add
def plans(mesh):
    x, labels = torch.zeros(4, 5), torch.tensor([0, 1, 2, 3])
    said = f"its classes are spread over {mesh.size()} processes, which send 12 bytes a row, once"
    found = crossent.plan(crossent.cross_entropy, x, labels, group=mesh)
    assert found.path == "kernels in two stages" and said in found.reasons
    first = "each process says first how many classes and targets it has, in 48 bytes"
    assert first not in found.reasons
    assert first in crossent.plan(crossent.cross_entropy, x, labels, group=mesh, first_class=0).reasons
    found = crossent.plan(crossent.linear_cross_entropy, x, torch.zeros(5, 5), labels, group=mesh)
    assert found.path == "kernels" and {first, said, "the gradient of input is the sum of theirs"} <= set(found.reasons)


failures, test_processes = in_processes(__name__, CASES, [2, 3])


def unlike(rank, folder, kind):
    """One of two processes, which have other rows or another dtype; it tells if it gets a number."""
    timeout = datetime.timedelta(seconds=20)
    meeting = {"init_method": f"file://{folder}/meeting", "rank": rank, "world_size": 2}
    distributed.init_process_group("gloo", **meeting, timeout=timeout)
    x, labels = (X[: 6 - rank], LABELS[: 6 - rank]) if kind == "rows" else (X.double() if rank else X, LABELS)
    Path(folder, "called").touch()
    crossent.cross_entropy(x, labels, group=distributed.group.WORLD)
    Path(folder, "number").touch()


@pytest.mark.parametrize("kind", ["rows", pytest.param("dtype", marks=pytest.mark.soak)])
def test_what_is_of_another_size_gives_no_number(kind, tmp_path):
    """An error of PyTorch, or gloo ends the process."""
    with pytest.raises(Exception, match=r"terminated with|[Gg]loo|first_class must be given"):
        start(unlike, (tmp_path, kind), 2)
    assert [path.name for path in tmp_path.iterdir() if path.name != "meeting"] == ["called"]
