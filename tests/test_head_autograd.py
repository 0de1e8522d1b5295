"""What PyTorch's autograd, transforms and hooks expect of the head that is fused with its loss."""

import gc
import itertools
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from harness import EXPORTS, Chunks, bits
from torch.autograd.functional import hvp
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import crossent

DOUBLE = torch.float64
SHAPES = {"(D,)": ((), ()), "(N, D)": ((5,), ()), "(B, T, D)": ((2, 3), ()), "K-dimensional": ((3,), (2,))}
KINDS = ["labels", "probabilities", "sparse"]
CHUNKS = [1, 2, 100]  # a row, a ragged last chunk, and everything at once
OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "everything": {"label_smoothing": 0.2, "softcap": 2.0, "z_loss": 0.1, "denominator": 3.0},
    "everything none": {"label_smoothing": 0.2, "softcap": 2.0, "z_loss": 0.1, "reduction": "none"},
}
REDUCTIONS = ["mean", "sum", "none"]


def random_of(*shape, dtype=DOUBLE, seed=0, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=DOUBLE, generator=generator).to(dtype).requires_grad_(requires_grad)


def labels_of(*shape, classes=5):
    labels = torch.arange(math.prod(shape)) * 3 + 2  # not random, which vmap refuses
    return torch.where(labels % 9 == 5, -100, labels % classes).reshape(shape)


def leaves_of(shape="(N, D)", kind="labels", bias=True, dtype=DOUBLE, classes=5, features=3):
    """input, linear_weight, linear_bias and probabilities, None for those that there are not."""
    leading, out = SHAPES.get(shape, (shape, ()))
    x, matrix = random_of(*leading, features, dtype=dtype), random_of(classes, *out, features, dtype=dtype, seed=2)
    linear_bias = random_of(classes, *out, dtype=dtype, seed=3) if bias else None
    width = {"labels": None, "probabilities": (*leading, classes, *out), "sparse": (*leading, 3)}[kind]
    probs = None if width is None else random_of(*width, dtype=dtype, seed=4).detach().exp().requires_grad_()
    return x, matrix, linear_bias, probs


def target_of(x, matrix, probs, kind):
    classes, *out, _ = matrix.shape
    if kind == "labels":
        return labels_of(*x.shape[:-1], *out, classes=classes)
    if kind == "probabilities":
        return probs
    named = torch.arange(probs.numel()).reshape(probs.shape)
    return crossent.SparseTarget((named // 2 + named % 3) % classes, probs)  # some of them twice


def head(x, matrix, linear_bias=None, probs=None, kind="labels", **options):
    return crossent.linear_cross_entropy(
        x, matrix, target_of(x, matrix, probs, kind), linear_bias=linear_bias, **options
    )


def plain(x, matrix, linear_bias=None, target=None, **options):
    """The same of labels, in PyTorch's own operations."""
    options.pop("options", None)
    target = labels_of(*x.shape[:-1], classes=len(matrix)) if target is None else target
    logits = F.linear(x, matrix, linear_bias).reshape(-1, len(matrix))
    loss = F.cross_entropy(logits, target.reshape(-1), **options)
    return loss.reshape(x.shape[:-1]) if options.get("reduction") == "none" else loss


def weigh(out):
    return (out * torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).reshape(out.shape)).sum()


def grads_of(loss, leaves, **kwargs):
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None and leaf.requires_grad], **kwargs)


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


# Derivatives


@pytest.mark.parametrize("rows", CHUNKS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives(shape, kind, options, rows):
    """First and second, in reverse and forward mode, in everything that has any."""
    if shape != "(N, D)" and rows != 2:
        pytest.skip("these chunks are tried on one shape")
    if kind == "sparse" and SHAPES[shape][1]:
        pytest.skip("a SparseTarget has no K-dimensional loss")
    options = OPTIONS[options] | {"options": Chunks(batch_chunk_size=rows), "kind": kind}
    if shape == "(B, T, D)":
        options |= {"shift": 1}

    def loss(*leaves):
        return head(*leaves, **options)

    leaves = leaves_of(shape, kind)
    assert torch.autograd.gradcheck(loss, leaves, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, leaves, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_of_the_derivatives(kind, reduction):
    """Without the random projections of the quick check."""
    options = {"options": Chunks(batch_chunk_size=2), "kind": kind, "reduction": reduction}
    leaves = leaves_of("(N, D)", kind)
    assert torch.autograd.gradcheck(lambda *leaves: head(*leaves, **options), leaves)
    assert torch.autograd.gradgradcheck(lambda *leaves: head(*leaves, **options), leaves)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_in_weights(reduction):
    x, matrix, linear_bias, _ = leaves_of()
    weight = (1 + torch.rand(5, dtype=DOUBLE)).requires_grad_()
    sample_weight = (1 + torch.rand(5, dtype=DOUBLE)).requires_grad_()
    denominator = torch.tensor(3.0, dtype=DOUBLE, requires_grad=True) if reduction == "mean" else None
    for rows in CHUNKS:

        def loss(x, matrix, linear_bias, weight, sample_weight, denominator, rows=rows):
            return head(
                x, matrix, linear_bias, weight=weight, sample_weight=sample_weight, denominator=denominator,
                reduction=reduction, options=Chunks(batch_chunk_size=rows),
            )  # fmt: skip

        for weights in [(weight, None, None), (weight, sample_weight, denominator)]:
            inputs = (x, matrix, linear_bias, *weights)
            assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True, fast_mode=True)
            assert torch.autograd.gradgradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_second_derivative_in_lower_precision(dtype):
    def second(function, dtype):
        leaves = leaves_of(dtype=dtype)[:3]
        first = grads_of(function(*leaves), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)

    exact = second(plain, DOUBLE)
    for rows in CHUNKS:
        ours = second(lambda *leaves, rows=rows: head(*leaves, options=Chunks(batch_chunk_size=rows)), dtype)
        for mine, right in zip(ours, exact, strict=True):
            assert mine.dtype == dtype
            tolerance = 40 * torch.finfo(dtype).eps
            torch.testing.assert_close(mine.double(), right, rtol=tolerance, atol=tolerance)


# torch.func


@pytest.mark.parametrize("rows", CHUNKS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_function_transforms(reduction, rows):
    leaves = [leaf.detach() for leaf in leaves_of()[:3]]
    tangents = [random_of(*leaf.shape, seed=9, requires_grad=False) for leaf in leaves]
    numbers = (0, 1, 2)
    transforms = {
        "grad": lambda f: grad(lambda *a: weigh(f(*a)), numbers)(*leaves),
        "jacrev": lambda f: jacrev(f, numbers)(*leaves),
        "jacfwd": lambda f: jacfwd(f, numbers)(*leaves),
        "hessian": lambda f: [h for row in hessian(lambda *a: weigh(f(*a)), numbers)(*leaves) for h in row],
        "reverse over reverse": lambda f: jacrev(jacrev(lambda x: weigh(f(x, *leaves[1:]))))(leaves[0]),
        "jvp": lambda f: jvp(f, tuple(leaves), tuple(tangents))[1],
        "jvp of grad": lambda f: jvp(grad(lambda *a: weigh(f(*a)), numbers), tuple(leaves), tuple(tangents))[1],
        "vjp": lambda f: vjp(f, *leaves)[1](f(*leaves)),
        "hvp of autograd": lambda f: hvp(lambda *a: weigh(f(*a)), tuple(leaves), tuple(tangents))[1],
    }
    options = {"reduction": reduction, "options": Chunks(batch_chunk_size=rows)}
    for title, transform in transforms.items():
        ours = transform(lambda *a: head(*a, **options))
        theirs = transform(lambda *a: plain(*a, **options))
        torch.testing.assert_close(ours, theirs, msg=lambda m, t=title: f"{t}: {m}")


@pytest.mark.parametrize("in_dims", list(itertools.product([0, 1, None], [0, None], [0, None])), ids=str)
def test_vmap(in_dims):
    """Over a batch of inputs, of heads, of targets, and of all."""
    if in_dims == (None, None, None):
        pytest.skip("nothing to map over")
    x, matrix, labels = random_of(4, 6, 3).detach(), random_of(4, 5, 3, seed=2).detach(), labels_of(4, 6)
    arguments = [
        a[0] if dim is None else a.movedim(0, dim) for a, dim in zip((x, matrix, labels), in_dims, strict=True)
    ]
    for reduction in REDUCTIONS:

        def ours(x, w, y, reduction=reduction):
            return crossent.linear_cross_entropy(x, w, y, reduction=reduction, chunk_bytes=1)

        def theirs(x, w, y, reduction=reduction):
            return F.cross_entropy(x @ w.T, y, reduction=reduction)

        for wrap in (lambda f: f, lambda f: jacrev(f, (0, 1)), lambda f: grad(lambda *a: weigh(f(*a)), (0, 1))):
            results = [vmap(wrap(f), in_dims)(*arguments) for f in (ours, theirs)]
            torch.testing.assert_close(*results)


def test_per_sample_gradients():
    model = torch.nn.Linear(3, 5).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    data, labels = random_of(7, 3).detach(), torch.arange(7) % 5

    class Head(torch.nn.Module):
        def __init__(self, fused):
            super().__init__()
            self.weight, self.bias, self.fused = model.weight, model.bias, fused

        def forward(self, x, y):
            if self.fused:
                return crossent.linear_cross_entropy(x, self.weight, y, linear_bias=self.bias)
            return F.cross_entropy(F.linear(x, self.weight, self.bias), y)

    results = []
    for fused in (True, False):

        def one(parameters, x, y, fused=fused):
            return functional_call(Head(fused), parameters, (x[None], y[None]))

        results.append(vmap(grad(one), (None, 0, 0))(parameters, data, labels))
    torch.testing.assert_close(*results)


def test_transforms_refuse_bad_labels():
    x, matrix = random_of(3, 4).detach(), random_of(5, 4).detach()
    for transform in (vmap(crossent.linear_cross_entropy, (0, None, 0)), grad(crossent.linear_cross_entropy)):
        with pytest.raises(IndexError):
            transform(x, matrix, torch.tensor([0, 5, 1]))


# The graph


@pytest.mark.parametrize("rows", CHUNKS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
def test_second_backward(dtype, reduction, rows):
    """Made again, the gradients are the same, in new memory, also when what comes from above is another number."""
    leaves = leaves_of((7,), dtype=dtype)[:3]
    out = head(*leaves, reduction=reduction, options=Chunks(batch_chunk_size=rows))
    upstream = torch.linspace(0.5, 1.5, out.numel()).reshape(out.shape).to(out.dtype)
    first = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    doubled = torch.autograd.grad(out, leaves, 2 * upstream)
    for a, b, c, d in zip(first, second, doubled, kept, strict=True):
        assert torch.equal(a, b) and torch.equal(a, d) and a.data_ptr() != b.data_ptr()
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(c, 2 * a, rtol=tolerance, atol=tolerance)
    with pytest.raises(RuntimeError, match="second time"):
        out.backward(upstream)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("upstream", [0.0, -3.0, 1e-3, 2.0**16, float("inf")])
def test_upstream(reduction, upstream):
    """Any number from above, also one for each row, with any strides."""
    leaves, others = leaves_of((7,))[:3], leaves_of((7,))[:3]
    results = []
    for function, arguments in ((head, leaves), (plain, others)):
        out = function(*arguments, reduction=reduction)
        shape = out.shape
        ups = [torch.full(shape, upstream, dtype=DOUBLE), torch.tensor(upstream, dtype=DOUBLE).expand(shape)]
        if reduction == "none":
            ups += [torch.linspace(-upstream, upstream, 14, dtype=DOUBLE)[::2]] if upstream < 1e9 else []
        results.append([torch.autograd.grad(out, arguments, up, retain_graph=True) for up in ups])
    for ours, theirs in zip(*results, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            finite = other.isfinite()
            torch.testing.assert_close(mine[finite], other[finite])
            assert not mine[~finite].isfinite().any()


def test_upstream_of_an_ignored_row_does_not_matter():
    leaves = leaves_of((7,))[:3]
    out = head(*leaves, reduction="none")
    ignored = labels_of(7) == -100
    some = torch.where(ignored, torch.nan, torch.linspace(1, 2, 7, dtype=DOUBLE))
    results = [torch.autograd.grad(out, leaves, up, retain_graph=True) for up in (some, some.nan_to_num(0.0))]
    assert_same(*results)
    assert (results[0][0][ignored] == 0).all()


@pytest.mark.parametrize("rows", CHUNKS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_create_graph(reduction, rows):
    results = []
    for function in (head, plain):
        leaves = leaves_of((7,))[:3]
        loss = weigh(function(*leaves, reduction=reduction, options=Chunks(batch_chunk_size=rows))).pow(2)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        (sum(g.pow(2).sum() for g in first) + loss).backward()
        results.append([leaf.grad for leaf in leaves])
    assert_same(*results)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant, reduction):
    results = []
    for wrap in (lambda f, *a: checkpoint(f, *a, use_reentrant=use_reentrant), lambda f, *a: f(*a)):
        leaves = leaves_of((7,))[:3]
        wrap(lambda *a: weigh(head(2 * a[0], *a[1:], reduction=reduction, chunk_bytes=1)), *leaves).backward()
        results.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_saved_tensor_hooks(reduction, kind):
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.clone()

    leaves = leaves_of((7,), kind)
    options = {"kind": kind, "reduction": reduction, "chunk_bytes": 1}
    expected = grads_of(weigh(head(*leaves, **options)), leaves)
    for hooks in (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autograd.graph.save_on_cpu(),
    ):
        with hooks:
            out = weigh(head(*leaves, **options))
        assert all(torch.equal(a, b) for a, b in zip(grads_of(out, leaves), expected, strict=True))
    assert packed


SAVED = [
    "input",
    "linear_weight",
    "linear_bias",
    "labels",
    "probabilities",
    "sparse classes",
    "weight",
    "sample_weight",
]


@pytest.mark.parametrize("what", SAVED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_change_between_forward_and_backward_raises(reduction, what):
    """Also where the gradients have been made: a second backward would make them of other numbers."""
    kind = {"probabilities": "probabilities", "sparse classes": "sparse"}.get(what, "labels")
    leaves = leaves_of((7,), kind)
    x, matrix, linear_bias, probs = [None if leaf is None else leaf * 1 for leaf in leaves]
    target = target_of(x, matrix, probs, kind)
    weight, sample_weight = torch.rand(5, dtype=DOUBLE), torch.rand(7, dtype=DOUBLE)
    loss = crossent.linear_cross_entropy(
        x, matrix, target, linear_bias=linear_bias, weight=weight, sample_weight=sample_weight, reduction=reduction
    )
    changed = {
        "input": x, "linear_weight": matrix, "linear_bias": linear_bias, "labels": target, "probabilities": probs,
        "sparse classes": getattr(target, "classes", None), "weight": weight, "sample_weight": sample_weight,
    }[what]  # fmt: skip
    with torch.no_grad():
        changed.mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_only_needed_gradients(reduction, kind):
    """What is frozen gets none, and takes none from the others."""
    options = {"kind": kind, "reduction": reduction, "chunk_bytes": 1}
    leaves = leaves_of((7,), kind)
    expected = iter(grads_of(weigh(head(*leaves, **options)), leaves))
    expected = [None if leaf is None else next(expected) for leaf in leaves]
    for needed in itertools.product([False, True], repeat=4):
        some = [None if a is None else a.detach().requires_grad_(n) for a, n in zip(leaves, needed, strict=True)]
        out = head(*some, **options)
        assert out.requires_grad == any(a is not None and a.requires_grad for a in some)
        if out.requires_grad:
            weigh(out).backward()
        for leaf, gradient, wanted in zip(some, expected, needed, strict=True):
            if leaf is not None:
                assert (leaf.grad is not None) == wanted
                assert not wanted or torch.allclose(leaf.grad, gradient, rtol=1e-12, atol=1e-14)


def test_one_gradient_of_several():
    for reduction in REDUCTIONS:
        leaves = leaves_of((7,), "probabilities")
        out = weigh(head(*leaves, kind="probabilities", reduction=reduction))
        every = torch.autograd.grad(out, leaves, retain_graph=True)
        for leaf, gradient in zip(leaves, every, strict=True):
            assert torch.equal(torch.autograd.grad(out, leaf, retain_graph=True)[0], gradient)


def test_nothing_to_differentiate():
    leaves = leaves_of((7,))[:3]
    frozen = [leaf.detach() for leaf in leaves]
    assert head(*frozen).grad_fn is None
    with torch.no_grad():
        assert not head(*leaves).requires_grad
    with torch.inference_mode():
        assert head(*[leaf.clone() for leaf in frozen]).is_inference()
    assert torch.equal(head(*frozen), head(*leaves))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, DOUBLE])
def test_tied_embeddings(reduction, dtype):
    """The head's weight is what the hidden states were looked up in."""
    tokens = torch.tensor([[0, 3, 1, 4, 2], [2, 2, 4, 0, 1]])
    results = []
    for fused, precision in ((True, dtype), (False, DOUBLE)):
        table = random_of(5, 8, dtype=dtype).detach().to(precision).requires_grad_()
        hidden = F.embedding(tokens, table).tanh()
        if fused:
            out = crossent.linear_cross_entropy(hidden, table, tokens, shift=1, reduction=reduction, chunk_bytes=1)
        else:
            out = plain(hidden[:, :-1], table, target=tokens[:, 1:], reduction=reduction)
        weigh(out).backward()
        results.append(table.grad.double())
    tolerance = 8 * torch.finfo(dtype).eps * results[1].abs().max().item()
    torch.testing.assert_close(*results, rtol=0, atol=max(tolerance, 1e-12))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_accumulate(reduction):
    """Into a `.grad` that is there, which keeps its memory, also when the next step's memory is used again."""
    leaves = leaves_of((7,), dtype=torch.float32, classes=2048, features=300)[:3]
    once = torch.autograd.grad(weigh(head(*leaves, reduction=reduction)), leaves)
    before = [torch.full_like(leaf, 0.5) for leaf in leaves]
    for leaf, start in zip(leaves, before, strict=True):
        leaf.grad = start
    for _ in range(3):
        weigh(head(*leaves, reduction=reduction)).backward()
    for leaf, start, gradient in zip(leaves, before, once, strict=True):
        assert leaf.grad is start
        torch.testing.assert_close(leaf.grad, 0.5 + 3 * gradient)


def test_hooks_see_the_gradient():
    leaves = leaves_of((7,))[:3]
    seen = [[], [], []]
    for leaf, list_ in zip(leaves, seen, strict=True):
        leaf.register_hook(lambda g, list_=list_: list_.append(g.clone()) or 2 * g)
    head(*leaves).backward()
    for leaf, (gradient,) in zip(leaves, seen, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * gradient)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backward", ["none", "once", "create_graph"])
def test_memory_is_freed_without_the_collector(reduction, backward):
    leaves = list(leaves_of((7,), "probabilities", dtype=torch.float32))
    gc.collect()
    gc.disable()
    try:
        out = head(*leaves, kind="probabilities", reduction=reduction, chunk_bytes=1)
        loss = weigh(out)
        if backward == "once":
            loss.backward()
        elif backward == "create_graph":
            gradients = torch.autograd.grad(loss, leaves, create_graph=True)
            del gradients
        alive = [weakref.ref(t) for t in (*leaves, out, loss, out.grad_fn)]
        del leaves, out, loss
        assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


def test_graph_is_freed_by_backward():
    """What was saved and what was made goes with the backward pass, while the loss itself lives on."""
    leaves = leaves_of((7,))[:3]
    inputs = [leaf * 1 for leaf in leaves]
    out = head(*inputs)
    alive = [weakref.ref(t) for t in inputs]
    del inputs
    out.backward()
    assert [ref() for ref in alive] == [None] * 3


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_autocast(lower, dtype, reduction):
    """The layer in the lower dtype, the loss in float32, and gradients in the parameters' own, as in PyTorch."""
    results = []
    for function in (head, plain):
        leaves = leaves_of((7,), dtype=dtype)[:3]
        with torch.autocast("cpu", dtype=lower):
            out = function(*leaves, reduction=reduction)
        results.append([out, *torch.autograd.grad(weigh(out), leaves)])
    tolerance = 8 * torch.finfo(lower if dtype != DOUBLE else DOUBLE).eps
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    with torch.autocast("cpu", dtype=lower, enabled=False):
        assert head(*leaves).dtype == dtype


def test_autocast_in_a_model():
    """A layer in bfloat16 before a head whose parameters are in float32."""
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        body, last = torch.nn.Linear(8, 16), torch.nn.Linear(16, 50)
        data, labels = torch.randn(20, 8), torch.arange(20)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = body(data)
            if fused:
                loss = crossent.linear_cross_entropy(hidden, last.weight, labels, linear_bias=last.bias)
            else:
                loss = F.cross_entropy(last(hidden), labels)
        loss.backward()
        results.append([p.grad for p in (*body.parameters(), *last.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_inputs_are_never_written(dtype, kind):
    leaves = leaves_of((7,), kind, dtype=dtype)
    before = [None if leaf is None else bits(leaf).clone() for leaf in leaves]
    for options in ({}, {"reduction": "none"}, {"filter_eps": 0.01}, {"softcap": 2.0, "label_smoothing": 0.1}):
        out = head(*leaves, kind=kind, chunk_bytes=1, **options)
        upstream = torch.rand_like(out)
        kept = upstream.clone()
        for _ in range(2):
            grads_of(out, leaves, grad_outputs=upstream, retain_graph=True)
        assert torch.equal(upstream, kept)
    assert all(a is None or torch.equal(bits(a), b) for a, b in zip(leaves, before, strict=True))


def test_torch_function_override():
    """A type that is no tensor but speaks the protocol gets the call, with its arguments."""
    calls = []

    class Duck:
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            calls.append((function, args, kwargs))
            return "quack"

    x, matrix, labels = random_of(4, 3), random_of(5, 3), labels_of(4)
    for arguments in [(Duck(), matrix, labels), (x, Duck(), labels), (x, matrix, Duck())]:
        assert crossent.linear_cross_entropy(*arguments, softcap=3.5, shift=1) == "quack"
        function, args, kwargs = calls.pop()
        assert function.__name__ == "linear_cross_entropy"
        assert all(any(a is b for b in (*args, *kwargs.values())) for a in arguments)
        assert kwargs["softcap"] == 3.5 and kwargs["shift"] == 1
    assert crossent.linear_cross_entropy(x, matrix, labels, linear_bias=Duck()) == "quack"


def test_options_pass_through_the_torch_function_protocol():
    """Called again by a mode or a subclass, with the chunks that the caller asked for."""
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if getattr(function, "__name__", "") == "linear_cross_entropy":
                seen.append(kwargs)
            return function(*args, **(kwargs or {}))

    leaves = leaves_of((7,))[:3]
    with Watch():
        out = head(*leaves, options=Chunks(batch_chunk_size=2))
    assert len(seen) == 1 and getattr(seen[0].get("options"), "batch_chunk_size", None) == 2
    torch.testing.assert_close(out, head(*leaves))


def test_subclasses():
    class Plain(torch.Tensor):
        pass

    x, matrix, linear_bias, _ = leaves_of((7,))
    out = head(x.detach().as_subclass(Plain), matrix.detach(), linear_bias.detach())
    assert type(out) is Plain
    torch.testing.assert_close(out.as_subclass(torch.Tensor), head(x, matrix, linear_bias).detach())
    parameter = torch.nn.Parameter(matrix.detach().clone())
    head(x, parameter, linear_bias).backward()
    torch.testing.assert_close(parameter.grad, torch.autograd.grad(head(x, matrix, linear_bias), matrix)[0])


class Classifier(torch.nn.Module):
    """A layer, and what a function of the head makes of its output."""

    def __init__(self, head):
        super().__init__()
        self.linear, self.head = torch.nn.Linear(6, 6), head
        self.weight, self.bias = torch.nn.Parameter(torch.randn(40, 6)), torch.nn.Parameter(torch.randn(40))

    def forward(self, x, labels):
        return self.head(self.linear(x), self.weight, labels, self.bias)


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.loss = torch.nn.Linear(6, 6), crossent.nn.LinearCrossEntropyLoss(6, 40)

    def forward(self, x, labels):
        return self.loss(self.linear(x), labels)


def sparse_loss(x, matrix, labels, linear_bias):
    classes = torch.stack([labels.clamp(min=0), (labels + 1).remainder(40)], -1)
    target = crossent.SparseTarget(classes, torch.full_like(classes, 0.5, dtype=x.dtype))
    return crossent.linear_cross_entropy(x, matrix, target, linear_bias=linear_bias)


TRACED = {
    "loss": lambda x, matrix, y, bias: crossent.linear_cross_entropy(x, matrix, y, linear_bias=bias, chunk_bytes=400),
    "none": lambda x, matrix, y, bias: crossent.linear_cross_entropy(
        x[None], matrix, y[None], linear_bias=bias, reduction="none", shift=1
    ),
    "everything": lambda x, matrix, y, bias: crossent.linear_cross_entropy(
        x, matrix, y, linear_bias=bias, weight=torch.linspace(1, 2, 40), sample_weight=torch.ones(x.shape[0]),
        **OPTIONS["everything"],
    ),
    "sparse": sparse_loss,
    "tokens": lambda x, matrix, y, bias: crossent.linear_token_stats(x, matrix, y, linear_bias=bias, chunk_bytes=400),
    "shifted tokens": lambda x, matrix, y, bias: crossent.linear_token_stats(
        x[None], matrix, y[None], linear_bias=bias, softcap=3.0, shift=1
    ),
}  # fmt: skip
MODELS = {name: lambda head=head: Classifier(head) for name, head in TRACED.items()} | {"module": Module}


def agree(traced, model, x, labels):
    """Results and gradients."""
    found = []
    for function in (traced, model):
        out = function(x, labels)
        out = (out,) if isinstance(out, torch.Tensor) else tuple(out)
        weighted = sum((i + 1) * part.sum() for i, part in enumerate(out) if part.requires_grad)
        parameters = [parameter for _, parameter in sorted(function.named_parameters())]
        found.append((out, torch.autograd.grad(weighted, parameters, allow_unused=True)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("name", MODELS)
@EXPORTS
def test_export(name, enabled, dynamic):
    """One operator, for any number of rows, with its derivative also where none was wanted when exporting."""
    torch.manual_seed(0)
    model, rows = MODELS[name](), torch.export.Dim("rows", min=3, max=64)
    x, labels = torch.randn(8, 6), labels_of(8, classes=40)
    with torch.set_grad_enabled(enabled):
        program = torch.export.export(
            model, (x, labels), dynamic_shapes={"x": {0: rows}, "labels": {0: rows}} if dynamic else None
        )
    operators = [str(node.target) for node in program.graph.nodes if "crossent" in str(node.target)]
    assert operators == ["crossent.tokens.default" if "tokens" in name else "crossent.head.default"]
    agree(program.module(), model, x, labels)
    if dynamic:
        for count in (3, 30):
            agree(program.module(), model, torch.randn(count, 6), labels_of(count, classes=40))


@EXPORTS
def test_exported_head_refuses_bad_labels():
    x, labels = torch.randn(8, 6), labels_of(8, classes=40)
    for name in ("loss", "tokens"):
        program = torch.export.export(MODELS[name](), (x, labels)).module()
        with pytest.raises(IndexError, match=r"40 .* 4\b"):
            program(x, labels.index_fill(0, torch.tensor([4]), 40))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_compile(name, dynamic):
    torch.manual_seed(0)
    model = MODELS[name]()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for count in [8, 5, 30] if dynamic else [8]:
        x, labels = torch.randn(count, 6), labels_of(count, classes=40)
        agree(compiled, model, x, labels)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, labels), model(x, labels))
    torch._dynamo.reset()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_operators_are_as_announced(reduction):
    """Shapes, derivative and no aliases, by PyTorch's own checks."""
    from crossent.frontends.torch import compiled  # noqa: F401 - defines them

    x, matrix, bias, _ = leaves_of(dtype=torch.float32)
    labels = labels_of(5)
    loss = 1, 2**20, None, 0.0, False, reduction, -100, 0.1, None, 0.0
    of_tokens = 1, 2**20, None, 0.0, True, "mean", -100, 0.0, 3.0, 0.0
    torch.library.opcheck(torch.ops.crossent.head, (x, matrix, bias, labels, None, None, None, [False] * 4, *loss))
    torch.library.opcheck(torch.ops.crossent.tokens, (x, matrix, bias, labels, *of_tokens))


# Gradients for weights, which plain operations make chunk by chunk


def weighted(x, matrix, labels, sample_weight, **options):
    return crossent.linear_cross_entropy(x, matrix, labels, sample_weight=sample_weight, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_with_a_gradient_in_bfloat16(reduction):
    """Products and the sums over chunks are in float32."""
    narrow = [random_of(*shape, dtype=torch.bfloat16, seed=n) for n, shape in enumerate([(512, 16), (64, 16)])]
    labels = labels_of(512, classes=64)

    def gradients(dtype, chunk_bytes):
        leaves = [a.detach().to(dtype).requires_grad_() for a in narrow]
        sample_weight = torch.linspace(0, 2, 512, dtype=DOUBLE, requires_grad=True)
        loss = weighted(*leaves, labels, sample_weight, reduction=reduction, chunk_bytes=chunk_bytes)
        return torch.autograd.grad(loss.sum(), (*leaves, sample_weight))

    exact = gradients(DOUBLE, 2**30)
    one, many = (
        [float((a - b).square().mean().sqrt() / b.square().mean().sqrt()) for a, b in zip(found, exact)]
        for found in (gradients(torch.bfloat16, size) for size in (2**30, 1))
    )
    assert max(one) < 0.003 and all(b <= 1.5 * a for a, b in zip(one, many)), (one, many)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_with_a_gradient_compiled(reduction):
    x, matrix, sample_weight = random_of(12, 6), random_of(40, 6, seed=1), random_of(12, seed=2)

    def loss(x, matrix, labels, sample_weight):
        return weighted(x, matrix, labels, sample_weight, reduction=reduction, chunk_bytes=8 * 40 * 5).sum()

    torch._dynamo.reset()
    compiled, labels = torch.compile(loss, fullgraph=True, backend="aot_eager"), labels_of(12, classes=40)
    ours, expected = (
        torch.autograd.grad(function(x, matrix, labels, sample_weight), (x, matrix, sample_weight))
        for function in (compiled, loss)
    )
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b)
    labels[3] = 40
    with pytest.raises(IndexError, match=r"40 .* 3\b"):
        compiled(x, matrix, labels, sample_weight)
    torch._dynamo.reset()


def test_weights_with_a_gradient_compiled_for_a_bad_class():
    """It cannot be refused there: the loss is nan, and nothing is read with it."""
    x, matrix, sample_weight = random_of(12, 6), random_of(40, 6, seed=1), random_of(12, seed=2)
    classes, probs = torch.arange(36).reshape(12, 3), torch.rand(12, 3, dtype=DOUBLE)

    def loss(classes):
        return weighted(x, matrix, crossent.SparseTarget(classes, probs), sample_weight)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(classes), loss(classes))
    for bad in (-1, 40):
        classes[3, 1] = bad
        assert compiled(classes).isnan()
    torch._dynamo.reset()
