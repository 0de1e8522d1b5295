"""What PyTorch's autograd, transforms, compiler and dispatch expect of a function."""

import contextlib
import copy
import functools
import gc
import itertools
import math
import shutil
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from harness import bits, gradients_made_in_backward, waiting_gradient
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import crossent
from crossent.frontends._problem import Problem

pytestmark = pytest.mark.usefixtures("nothing_planned")

NAMES = ["cross_entropy", "nll_loss", "softmax", "log_softmax"]
DOUBLE = torch.float64
BACKENDS = ["eager", "aot_eager"] + ["inductor"] * bool(shutil.which("g++") or shutil.which("clang++"))


def logits_of(*shape, dtype=DOUBLE, seed=0, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_(requires_grad)


def labels_of(*shape, classes=5):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(1))


def arguments(name, labels):
    return (1,) if "softmax" in name else (labels,)


# Derivatives

OPTIONS = {
    "plain": {},
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum"},
    "ignored": {"ignore_index": 2},
    "smoothing": {"label_smoothing": 0.2},
    "softcap": {"softcap": 2.0},
    "z_loss": {"z_loss": 0.1, "ignore_index": 2},
    "denominator": {"denominator": 3.0},
    "everything": {"label_smoothing": 0.2, "softcap": 2.0, "z_loss": 0.1, "denominator": 3.0, "ignore_index": 2},
    "everything none": {"label_smoothing": 0.2, "softcap": 2.0, "z_loss": 0.1, "reduction": "none"},
}
SHAPES = [((3,), None), ((4, 3), None), ((2, 3, 2), None), ((2, 2, 3), -1)]  # the time grows with their squares


def without(shape, dim):
    axis = (1 if len(shape) > 1 else 0) if dim is None else dim % len(shape)
    return shape[:axis] + shape[axis + 1 :]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("soft", [False, True])
def test_derivatives_of_cross_entropy(shape, options, soft):
    """First and second derivatives in everything that has any: logits, soft targets, class and sample weights."""
    options = dict(OPTIONS[options], dim=shape[1])
    shape = shape[0]
    rows = without(shape, options["dim"])
    x = logits_of(*shape)
    target = logits_of(*shape, seed=2).detach().exp().requires_grad_() if soft else labels_of(*rows, classes=3)
    if soft:
        options.pop("ignore_index", None)
    weight = (1 + torch.rand(3, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))).requires_grad_()
    sample_weight = (1 + torch.rand(rows, dtype=DOUBLE, generator=torch.Generator().manual_seed(4))).requires_grad_()

    def loss(x, target, weight, sample_weight):
        return crossent.cross_entropy(x, target, weight, sample_weight=sample_weight, **options)

    along = {"fast_mode": len(shape) > 2}  # one direction of them all instead of each
    for inputs in [(x, target, None, None), (x, target, weight, sample_weight)]:
        assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True, **along)
        assert torch.autograd.gradgradcheck(loss, inputs, check_fwd_over_rev=True, **along)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_derivatives_of_nll_loss(shape, reduction):
    shape, dim = shape
    rows = without(shape, dim)
    weight = (1 + torch.rand(3, dtype=DOUBLE)).requires_grad_()
    sample_weight = (1 + torch.rand(rows, dtype=DOUBLE)).requires_grad_()

    def loss(x, weight, sample_weight):
        target = labels_of(*rows, classes=3)
        return crossent.nll_loss(x, target, weight, reduction=reduction, dim=dim, sample_weight=sample_weight)

    for inputs in [(logits_of(*shape), None, None), (logits_of(*shape), weight, sample_weight)]:
        assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [(), (5,), (4, 5), (2, 5, 3), (2, 40)], ids=str)
def test_derivatives_of_softmax(name, shape):
    for dim in range(-1, len(shape)):

        def function(x, dim=dim):
            return getattr(crossent, name)(x, dim)

        assert torch.autograd.gradcheck(function, logits_of(*shape), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, logits_of(*shape), check_fwd_over_rev=True)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_derivative_in_the_denominator(name):
    def loss(x, denominator):
        return getattr(crossent, name)(x, labels_of(4), denominator=denominator)

    denominator = torch.tensor(3.0, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (logits_of(4, 5), denominator))
    assert torch.autograd.gradgradcheck(loss, (logits_of(4, 5), denominator))


@pytest.mark.parametrize("name", NAMES)
def test_batched_upstream_gradients(name):
    """vmap over the backward pass alone, as `is_grads_batched` and vectorised jacobians do."""
    for options in LOSSES_OF[name]:

        def function(x, options=options):
            return getattr(crossent, name)(x, *arguments(name, labels_of(4, 3)), **options)

        assert torch.autograd.gradcheck(function, logits_of(4, 5, 3), check_batched_grad=True)
        x = logits_of(4, 5, 3)
        vectorised = torch.autograd.functional.jacobian(function, x, vectorize=True)
        torch.testing.assert_close(vectorised, torch.autograd.functional.jacobian(function, x))
        out = function(x)
        upstream = torch.rand(6, *out.shape, dtype=DOUBLE)
        (batched,) = torch.autograd.grad(out, x, upstream, is_grads_batched=True, retain_graph=True)
        loop = [torch.autograd.grad(out, x, u, retain_graph=True)[0] for u in upstream]
        torch.testing.assert_close(batched, torch.stack(loop))


@pytest.mark.parametrize("name", NAMES)
def test_upstream_gradients_stored_with_the_other_sign(name):
    """As PyTorch stores the imaginary part of a conjugate: what lies in memory is not the number."""
    for options in LOSSES_OF[name]:
        x = logits_of(4, 50)
        out = getattr(crossent, name)(x, *arguments(name, labels_of(4, classes=50)), **options)
        upstream = torch.rand(out.shape, dtype=DOUBLE)
        negative = torch._neg_view(-upstream)
        assert negative.is_neg() and torch.equal(negative, upstream)
        found, expected = (torch.autograd.grad(out, x, u, retain_graph=True)[0] for u in (negative, upstream))
        assert torch.equal(found, expected) and not found.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_upstream_gradients_without_memory(name):
    """As forward mode makes zeros."""
    for options in LOSSES_OF[name]:
        x = logits_of(4, 50)
        out = getattr(crossent, name)(x, *arguments(name, labels_of(4, classes=50)), **options)
        (found,) = torch.autograd.grad(out, x, torch._efficientzerotensor(tuple(out.shape), dtype=DOUBLE))
        assert torch.equal(found, torch.zeros(4, 50, dtype=DOUBLE))


def test_batched_upstream_gradients_leave_no_graph():
    x = logits_of(4, 50)
    out = crossent.cross_entropy(x, labels_of(4, classes=50))
    (found,) = torch.autograd.grad(out, x, torch.ones(3, dtype=DOUBLE), is_grads_batched=True)
    assert not found.requires_grad


def test_first_call_under_fake_tensors():
    """Nothing that is made for all calls to come is fake."""
    script = """
import torch, crossent
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    crossent.cross_entropy(torch.zeros(2, 3, requires_grad=True), torch.zeros(2, dtype=torch.int64)).backward()
loss = crossent.cross_entropy(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
print(type(loss) is torch.Tensor, round(float(loss), 4))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "1.3863"]


def test_weight_gradients_in_float32():
    """In the dtype of each, whatever the dtype of the logits."""
    x, labels = logits_of(6, 5, dtype=torch.float32), labels_of(6)
    weight = (1 + torch.rand(5)).to(torch.bfloat16).requires_grad_()
    sample_weight = torch.rand(6, dtype=DOUBLE, requires_grad=True)
    crossent.cross_entropy(x, labels, weight, sample_weight=sample_weight).backward()
    w, s = weight.detach().double().requires_grad_(), sample_weight.detach().requires_grad_()
    rows = w[labels] * F.cross_entropy(x.detach().double(), labels, reduction="none")
    ((s * rows).sum() / (s * w[labels]).sum()).backward()
    assert weight.grad.dtype == torch.bfloat16 and sample_weight.grad.dtype == DOUBLE and x.grad.dtype == torch.float32
    assert torch.allclose(weight.grad.double(), w.grad, rtol=1e-2, atol=1e-5)
    assert torch.allclose(sample_weight.grad, s.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_second_derivative_in_lower_precision(name, dtype):
    def second(function, dtype):
        x = logits_of(4, 5, dtype=dtype)
        out = function(x, *arguments(name, labels_of(4)))
        (first,) = torch.autograd.grad((out * out).sum(), x, create_graph=True)
        return torch.autograd.grad((first * first).sum(), x)[0]

    ours, exact = second(getattr(crossent, name), dtype), second(getattr(F, name), DOUBLE)
    assert ours.dtype == dtype
    assert torch.allclose(ours.double(), exact, rtol=40 * torch.finfo(dtype).eps, atol=40 * torch.finfo(dtype).eps)


# torch.func


@pytest.mark.parametrize("name", NAMES)
def test_function_transforms(name):
    """The same as PyTorch's function under every transform and pair of transforms."""
    labels = labels_of(4)
    ours, theirs = getattr(crossent, name), getattr(F, name)
    x = logits_of(4, 5, requires_grad=False)
    v = logits_of(4, 5, seed=9, requires_grad=False)

    def scalar(function):
        return lambda x: (function(x, *arguments(name, labels)) ** 2).sum()

    def plain(function):
        return lambda x: function(x, *arguments(name, labels))

    transforms = {
        "grad": lambda f: grad(scalar(f))(x),
        "grad of grad": lambda f: grad(lambda x: (grad(scalar(f))(x) ** 2).sum())(x),
        "jacrev": lambda f: jacrev(plain(f))(x),
        "jacfwd": lambda f: jacfwd(plain(f))(x),
        "hessian": lambda f: hessian(scalar(f))(x),
        "reverse over reverse": lambda f: jacrev(jacrev(scalar(f)))(x),
        "reverse over forward": lambda f: jacrev(jacfwd(scalar(f)))(x),
        "jvp": lambda f: jvp(plain(f), (x,), (v,))[1],
        "jvp of grad": lambda f: jvp(grad(scalar(f)), (x,), (v,))[1],
        "vjp": lambda f: vjp(plain(f), x)[1](plain(f)(v))[0],
    }
    for title, transform in transforms.items():
        torch.testing.assert_close(transform(ours), transform(theirs), msg=lambda m, t=title: f"{t}: {m}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_dims", [(0, 0), (1, 0), (0, None), (2, 1)], ids=str)
def test_vmap(name, in_dims):
    if "softmax" in name:
        in_dims = (in_dims[0], None)
    x, labels = logits_of(3, 4, 5, requires_grad=False), labels_of(3, 4)
    x = x.movedim(0, in_dims[0])
    if in_dims[1] is None:
        labels = labels[0]
    else:
        labels = labels.movedim(0, in_dims[1])
    argument = 1 if "softmax" in name else labels
    ours, theirs = [
        vmap(getattr(module, name), in_dims=in_dims if "softmax" not in name else (in_dims[0], None))(x, argument)
        for module in (crossent, F)
    ]
    torch.testing.assert_close(ours, theirs)

    def squared(function):
        return lambda x, t: function(x, t).pow(2).sum()

    ours, theirs = [
        vmap(grad(squared(getattr(module, name))), in_dims=in_dims)(x, argument) for module in (crossent, F)
    ]
    torch.testing.assert_close(ours, theirs)


def test_vmap_over_labels_and_nested():
    x = logits_of(5, requires_grad=False)
    labels = torch.arange(5)
    ours, theirs = [vmap(m.cross_entropy, in_dims=(None, 0))(x, labels) for m in (crossent, F)]
    torch.testing.assert_close(ours, theirs)
    x, labels = logits_of(2, 3, 5, requires_grad=False), labels_of(2, 3)
    ours, theirs = [vmap(vmap(m.cross_entropy))(x, labels) for m in (crossent, F)]
    torch.testing.assert_close(ours, theirs)


def test_vmap_refuses_bad_labels():
    with pytest.raises(IndexError):
        vmap(crossent.cross_entropy)(logits_of(3, 5, requires_grad=False), torch.tensor([0, 5, 1]))
    with pytest.raises(IndexError):
        grad(crossent.cross_entropy)(logits_of(3, 5, requires_grad=False), torch.tensor([0, 5, 1]))


def test_per_sample_gradients():
    model = torch.nn.Linear(6, 5).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    data, labels = logits_of(7, 6, requires_grad=False), labels_of(7)

    def per_sample(loss):
        def one(parameters, x, y):
            return loss(functional_call(model, parameters, (x[None],)), y[None])

        return vmap(grad(one), in_dims=(None, 0, 0))(parameters, data, labels)

    torch.testing.assert_close(per_sample(crossent.cross_entropy), per_sample(F.cross_entropy))


@pytest.mark.parametrize("options", OPTIONS)
def test_extras_under_transforms(options):
    """A vmapped call equals the loop, for every option."""
    options = OPTIONS[options]
    x, labels = logits_of(3, 4, 5, requires_grad=False), labels_of(3, 4)
    sample_weight = 1 + torch.rand(3, 4, dtype=DOUBLE)

    def loss(x, y, s):
        return crossent.cross_entropy(x, y, sample_weight=s, **options)

    loop = torch.stack([loss(*case) for case in zip(x, labels, sample_weight, strict=True)])
    torch.testing.assert_close(vmap(loss)(x, labels, sample_weight), loop)
    loop = torch.stack([jacrev(loss)(*case) for case in zip(x, labels, sample_weight, strict=True)])
    torch.testing.assert_close(vmap(jacfwd(loss))(x, labels, sample_weight), loop)


CLASS_WEIGHTS = torch.linspace(0.5, 2.0, 5)
ONE_ROW = {
    "cross_entropy": lambda module, x, y, w: module.cross_entropy(x, y, weight=w),
    "sum": lambda module, x, y, w: module.cross_entropy(x, y, weight=w, reduction="sum"),
    "none": lambda module, x, y, w: module.cross_entropy(x, y, weight=w, reduction="none"),
    "soft": lambda module, x, y, w: module.cross_entropy(x, torch.softmax(2 * x.detach(), 0), weight=w),
    "nll_loss": lambda module, x, y, w: module.nll_loss(x.log_softmax(-1), y, weight=w),
    "linear_cross_entropy": lambda module, x, y, w: (
        F.cross_entropy(x @ MATRIX.to(x).t(), y, weight=w)
        if module is F
        else crossent.linear_cross_entropy(x, MATRIX.to(x), y, weight=w)
    ),
}
MATRIX = torch.linspace(-1, 2, 25).reshape(5, 5)


@pytest.mark.parametrize("name", ONE_ROW)
def test_transforms_of_one_row_with_class_weights(name):
    """A label without an axis is an index that nobody may read; and the dtype stays, in forward mode too."""
    double, labels = logits_of(3, 5, requires_grad=False), torch.tensor([0, 3, 2])

    def ours(x, y):
        return ONE_ROW[name](crossent, x, y, CLASS_WEIGHTS.to(x))

    def theirs(x, y):
        return ONE_ROW[name](F, x, y, CLASS_WEIGHTS.double())

    for x, tolerance in ((double, None), (double.float(), 1e-5)):
        for transform in (lambda f: f, grad, jacrev, jacfwd, hessian):
            batched = vmap(transform(ours))(x, labels)
            right = torch.stack([transform(theirs)(*row) for row in zip(x.double(), labels)])
            assert batched.dtype == x.dtype
            torch.testing.assert_close(batched.double(), right, rtol=tolerance, atol=tolerance)


def with_class_weights(name, module, x, y):
    return ONE_ROW[name](module, x, y, CLASS_WEIGHTS.double())


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", ONE_ROW)
def test_make_fx_with_class_weights(name, mode):
    from torch.fx.experimental.proxy_tensor import make_fx

    rows = [(logits_of(5, seed=seed, requires_grad=False), torch.tensor(label)) for seed, label in enumerate((3, 1))]
    some = [(logits_of(4, 5, seed=seed, requires_grad=False), labels_of(4)) for seed in range(2)]
    for first, second in (rows, some) if name != "soft" else (rows,):
        for transform in (lambda f: f, lambda f: grad(lambda x, y: f(x, y).sum())):
            ours, theirs = [transform(functools.partial(with_class_weights, name, module)) for module in (crossent, F)]
            traced = make_fx(ours, tracing_mode=mode, _allow_non_fake_inputs=True)(*first)
            for case in (first, second):
                torch.testing.assert_close(traced(*case), theirs(*case))


@pytest.mark.parametrize("name", [name for name in ONE_ROW if name != "soft"])
def test_one_row_without_values(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    def check(x, y, w):
        x.requires_grad_()
        found = ONE_ROW[name](crossent, x, y, w)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert found.shape == () and found.dtype == gradient.dtype == x.dtype and gradient.shape == x.shape
        assert found.device == x.device

    tensors = torch.ones(5), torch.tensor(3), CLASS_WEIGHTS
    check(*(tensor.to("meta") for tensor in tensors))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        check(*(mode.from_tensor(tensor) for tensor in tensors))


# The graph


WEIGHTS = {
    "none": {},
    "of classes": {"weight": torch.tensor([1.0, 0.0, 0.5, 2.0, 3.0])},
    "of samples": {"sample_weight": torch.linspace(0, 1, 8)},
    "a denominator": {"denominator": 3.0},
    "no denominator": {"denominator": 0.0},
    "a tiny one": {"denominator": 1e-30},
}


@pytest.mark.parametrize(
    ("reduction", "weights"),
    [("mean", of) for of in WEIGHTS] + [("sum", of) for of in WEIGHTS if "denominator" not in WEIGHTS[of]],
)
@pytest.mark.parametrize("ignored", [0, 3, 8])
@pytest.mark.parametrize("shape", [(8, 5), (8, 100), (2, 5, 4), (8, 65, 1)])
@pytest.mark.parametrize("upstream", [1.0, -0.7, math.inf])
def test_gradient_made_in_forward(shape, ignored, reduction, upstream, weights):
    """Where logits stay in the caches the forward pass makes what the backward pass makes of others."""
    x = logits_of(*shape, dtype=torch.float32)
    labels = labels_of(8).reshape(shape[:1] + shape[2:])
    labels.view(-1)[:ignored] = -100
    options = {"reduction": reduction, **WEIGHTS[weights]}
    if "weight" in options:
        options["weight"] = options["weight"].repeat(shape[1] // 5)
    if "sample_weight" in options:
        options["sample_weight"] = options["sample_weight"].reshape(labels.shape)

    def gradients(made):
        loss = crossent.cross_entropy(x, labels, **options)
        assert (waiting_gradient(loss) is not None) == made
        upstreams = torch.tensor(upstream), torch.tensor(upstream)
        return loss, *(torch.autograd.grad(loss, x, above, retain_graph=True)[0] for above in upstreams)

    # What divides by nothing, or nearly, is left to the backward pass.
    divisor = options.get("denominator", float(reduction == "sum" or ignored < 8 or weights == "none"))
    loss, first, second = gradients(divisor >= 1)
    with gradients_made_in_backward():
        expected_loss, expected, _ = gradients(False)
    assert torch.equal(loss, expected_loss) or loss.isnan() and expected_loss.isnan()
    assert torch.equal(bits(first), bits(second))
    torch.testing.assert_close(first, expected, rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("weight", [None, torch.arange(1.0, 6.0, dtype=torch.float64)])
@pytest.mark.parametrize("shape", [(8, 5), (2, 5, 4)])
def test_gradient_made_in_forward_can_be_differentiated(shape, weight):
    """To the third order, also after an ordinary backward pass has been handed the gradient."""
    labels = labels_of(8).reshape(shape[:1] + shape[2:])
    labels.view(-1)[0] = -100
    found = []
    for module in (crossent, F):
        x = logits_of(*shape)
        loss = module.cross_entropy(x, labels, weight)
        orders = [torch.autograd.grad(loss, x, retain_graph=True)[0]]
        derived = loss * loss
        for _ in range(3):
            (gradient,) = torch.autograd.grad(derived, x, create_graph=True)
            orders.append(gradient)
            derived = gradient.pow(2).sum()
        found.append([*orders, torch.autograd.grad(loss, x)[0]])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"weight": torch.arange(1.0, 6.0)}])
def test_gradient_made_in_forward_is_the_callers(options):
    """A caller may change what is handed out; the next backward pass makes another, of logits that must be the same."""
    leaf, labels = logits_of(8, 5), labels_of(8)
    x = leaf * 1
    loss = crossent.cross_entropy(x, labels, **options)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(second, kept)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x)


@pytest.mark.parametrize("options", [{}, {"weight": torch.arange(1.0, 6.0)}])
def test_gradient_made_in_forward_is_freed(options):
    """With the graph, or by the backward pass while the loss lives on."""
    gc.disable()
    try:
        for backward in (None, {}, {"create_graph": True}):
            x, labels = logits_of(8, 5), labels_of(8)
            loss = crossent.cross_entropy(x, labels, **options)
            alive = weakref.ref(waiting_gradient(loss))
            if backward is None:
                del loss
            else:
                torch.autograd.grad(loss, x, **backward)
            assert alive() is None
    finally:
        gc.enable()


LAID_OUT = {
    "contiguous": lambda x, labels: (x, labels),
    "columns of a wider matrix": lambda x, labels: (F.pad(x, (0, 1000))[:, :5], labels),
    "transposed": lambda x, labels: (x.t().contiguous().t(), labels),
    "expanded": lambda x, labels: (x[:1].expand(8, 5), labels),
    "every second label": lambda x, labels: (x, labels.repeat_interleave(1000)[::1000]),
}


@pytest.mark.parametrize("options", [{}, {"weight": torch.arange(1.0, 6.0)}, {"denominator": 3.0}])
@pytest.mark.parametrize("shape", [(8, 5), (8, 1500), (2, 5, 4)])
@pytest.mark.parametrize("upstream", [1.0, 0.3])
def test_gradients_made_for_nobody_are_made_no_more(shape, upstream, options):
    """Until one is asked for, which has the bits of those made in forward."""
    if "weight" in options:
        options = {"weight": options["weight"].repeat(shape[1] // 5)}
    x, labels = logits_of(*shape), labels_of(8).reshape(shape[:1] + shape[2:])
    labels.view(-1)[0] = -100
    losses = [crossent.cross_entropy(x, labels, **options) for _ in range(20)]
    assert [waiting_gradient(loss) is not None for loss in losses] == [True] * 8 + [False] * 12
    gradients = [torch.autograd.grad(loss, x, torch.tensor(upstream, dtype=DOUBLE))[0] for loss in losses]
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    assert waiting_gradient(crossent.cross_entropy(x, labels, **options)) is not None


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"), reason="older PyTorch does not say"
)
@pytest.mark.parametrize("layout", LAID_OUT)
@pytest.mark.parametrize("options", [{}, {"weight": torch.arange(1.0, 6.0)}])
def test_no_gradient_waits_beside_what_hooks_put_away(options, layout):
    """As in a checkpoint, which is there to save memory; it is made in backward, with the same bits, of what the hooks
    give back, which may lie otherwise in memory.
    """
    gradients = []
    packed = functools.partial(torch.clone, memory_format=torch.contiguous_format)
    clones = torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor)
    for hooks in (contextlib.nullcontext(), clones):
        leaf, labels = logits_of(8, 5), labels_of(8)
        labels[0] = -100
        x, labels = LAID_OUT[layout](leaf, labels)
        with hooks:
            made = "made in the forward pass" in str(crossent.plan(crossent.cross_entropy, x, labels, **options))
            loss = crossent.cross_entropy(x, labels, **options)
        assert (waiting_gradient(loss) is not None) == made == (not gradients)
        loss.backward(torch.tensor(0.3, dtype=loss.dtype))
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("options", [{}, {"weight": torch.ones(5)}])
def test_checkpoint_of_a_mean_of_nothing(options):
    """A checkpoint makes what was saved once; asked for twice it raises."""
    x, labels = logits_of(8, 5), torch.full((8,), -100)
    checkpoint(lambda x: crossent.cross_entropy(x, labels, **options), x, use_reentrant=False).backward()
    assert not x.grad.any()


def test_upstream_near_the_end_of_float32():
    x, labels = torch.zeros(8, 3, requires_grad=True), torch.full((8,), -100)
    labels[0] = 1
    (gradient,) = torch.autograd.grad(crossent.cross_entropy(x, labels), x, torch.tensor(1e38))
    assert gradient.isfinite().all() and not gradient[1:].any()


@pytest.mark.parametrize("name", NAMES)
def test_second_backward(name):
    x = logits_of(4, 5)
    out = getattr(crossent, name)(x, *arguments(name, labels_of(4))).pow(2).sum()
    (first,) = torch.autograd.grad(out, x, retain_graph=True)
    (second,) = torch.autograd.grad(out, x, retain_graph=True)
    assert torch.equal(first, second) and first.data_ptr() != second.data_ptr()
    out.backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


@pytest.mark.parametrize("name", NAMES)
def test_create_graph(name):
    ours, theirs = logits_of(4, 5), logits_of(4, 5)
    for x, module in [(ours, crossent), (theirs, F)]:
        out = getattr(module, name)(x, *arguments(name, labels_of(4))).pow(2).sum()
        (first,) = torch.autograd.grad(out, x, create_graph=True)
        (first.pow(2).sum() + out).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(name, use_reentrant):
    x, again = logits_of(4, 5), logits_of(4, 5)

    def function(x):
        return getattr(crossent, name)(2 * x, *arguments(name, labels_of(4))).pow(2).sum()

    checkpoint(function, x, use_reentrant=use_reentrant).backward()
    function(again).backward()
    assert torch.equal(x.grad, again.grad)


@pytest.mark.parametrize("name", NAMES)
def test_saved_tensor_hooks(name):
    """Everything of the size of the logits that waits for backward passes through the hooks."""
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.clone()

    x, again = logits_of(40, 50), logits_of(40, 50)
    function = getattr(crossent, name)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function(x, *arguments(name, labels_of(40, classes=50))).pow(2).sum()
    assert packed
    out.backward()
    function(again, *arguments(name, labels_of(40, classes=50))).pow(2).sum().backward()
    assert torch.equal(x.grad, again.grad)
    with torch.autograd.graph.save_on_cpu():
        out = function(again, *arguments(name, labels_of(40, classes=50))).pow(2).sum()
    again.grad = None
    out.backward()
    assert torch.equal(x.grad, again.grad)


@pytest.mark.parametrize("name", NAMES)
def test_anomaly_mode(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mode = torch.autograd.detect_anomaly()
    with mode:
        x = logits_of(4, 5)
        getattr(crossent, name)(x, *arguments(name, labels_of(4))).pow(2).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("what", ["logits", "labels", "soft target", "weight", "sample_weight"])
def test_change_between_forward_and_backward_raises(what):
    leaf = logits_of(4, 5)
    x = leaf * 1
    labels, weight = labels_of(4), torch.rand(5, dtype=DOUBLE)
    soft, sample_weight = torch.rand(4, 5, dtype=DOUBLE), torch.rand(4, dtype=DOUBLE)
    target = soft if what == "soft target" else labels
    loss = crossent.cross_entropy(x, target, weight, sample_weight=sample_weight)
    saved = {"logits": x, "labels": labels, "soft target": soft, "weight": weight, "sample_weight": sample_weight}
    with torch.no_grad():
        saved[what].mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", ["nll_loss", "softmax", "log_softmax"])
def test_change_of_what_the_others_save_raises(name):
    x = logits_of(4, 50) * 1
    labels = labels_of(4)
    out = getattr(crossent, name)(x, *arguments(name, labels))
    with torch.no_grad():
        (labels if name == "nll_loss" else out).mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_change_of_the_logits_after_softmax_is_fine():
    """The result is all that backward needs, as in PyTorch."""
    for name in ["softmax", "log_softmax"]:
        leaf = logits_of(4, 50)
        x = leaf * 1
        out = getattr(crossent, name)(x, 1)
        with torch.no_grad():
            x.zero_()
        out.pow(2).sum().backward()
        again = logits_of(4, 50)
        getattr(crossent, name)(again, 1).pow(2).sum().backward()
        assert torch.equal(leaf.grad, again.grad)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_differentiate(name):
    x = logits_of(4, 5, requires_grad=False)
    assert getattr(crossent, name)(x, *arguments(name, labels_of(4))).grad_fn is None
    with torch.no_grad():
        assert not getattr(crossent, name)(logits_of(4, 5), *arguments(name, labels_of(4))).requires_grad
    with torch.inference_mode():
        inside = torch.randn(4, 5)
        assert getattr(crossent, name)(inside, *arguments(name, labels_of(4))).is_inference()


def test_only_needed_gradients():
    labels = labels_of(4)
    soft = torch.rand(4, 5, dtype=DOUBLE)
    for needed in itertools.product([False, True], repeat=2):
        x = logits_of(4, 5, requires_grad=needed[0])
        target = soft.clone().requires_grad_(needed[1])
        if not any(needed):
            continue
        crossent.cross_entropy(x, target).backward()
        y, other = logits_of(4, 5), soft.clone().requires_grad_()
        F.cross_entropy(y, other).backward()
        for tensor, reference, wanted in [(x, y, needed[0]), (target, other, needed[1])]:
            assert (tensor.grad is not None) == wanted
            if wanted:
                torch.testing.assert_close(tensor.grad, reference.grad)
    weight = torch.rand(5, dtype=DOUBLE, requires_grad=True)
    loss = crossent.cross_entropy(logits_of(4, 5, requires_grad=False), labels, weight)
    (gradient,) = torch.autograd.grad(loss, weight)
    other = weight.detach().requires_grad_()
    rows = F.cross_entropy(logits_of(4, 5, requires_grad=False), labels, reduction="none")
    (expected,) = torch.autograd.grad((other[labels] * rows).sum() / other[labels].sum(), other)
    torch.testing.assert_close(gradient, expected)


def test_one_gradient_of_two():
    """autograd.grad for one input leaves the other's gradient alone."""
    x, target = logits_of(4, 5), torch.rand(4, 5, dtype=DOUBLE).requires_grad_()
    loss = crossent.cross_entropy(x, target)
    both = torch.autograd.grad(loss, (x, target), retain_graph=True)
    assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], both[0])
    assert torch.equal(torch.autograd.grad(loss, target)[0], both[1])


def test_undefined_and_zero_upstream():
    x = logits_of(4, 5)
    out = crossent.cross_entropy(x, labels_of(4))
    assert (torch.autograd.grad(out, x, torch.zeros((), dtype=DOUBLE))[0] == 0).all()

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dout):
            return None

    for name in NAMES:
        x = logits_of(4, 5)
        out = Cut.apply(getattr(crossent, name)(x, *arguments(name, labels_of(4)))).sum()
        gradient = torch.autograd.grad(out, x, allow_unused=True)[0]
        assert gradient is None or (gradient == 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backward", ["none", "once", "create_graph"])
def test_memory_is_freed_without_the_collector(name, backward):
    labels, x = labels_of(4), logits_of(4, 50, dtype=torch.float32)
    gc.collect()
    gc.disable()
    try:
        out = getattr(crossent, name)(x, *arguments(name, labels))
        loss = out.pow(2).sum()
        if backward == "once":
            loss.backward()
        elif backward == "create_graph":
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
            del gradient
        alive = [weakref.ref(t) for t in (x, labels, out, loss)] + [weakref.ref(out.grad_fn)]
        del x, labels, out, loss
        assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", NAMES)
def test_graph_is_freed_by_backward(name):
    """What was saved goes with the backward pass, while the loss itself lives on."""
    leaf, labels = logits_of(4, 50), labels_of(4)
    x = leaf * 1
    out = getattr(crossent, name)(x, *arguments(name, labels))
    loss = out.pow(2).sum()
    alive = weakref.ref(x)
    del x
    loss.backward()
    assert alive() is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_never_written(name, dtype):
    x, labels = logits_of(40, 50, dtype=dtype), labels_of(40, classes=50)
    weight, sample_weight = torch.rand(50).to(dtype), torch.rand(40)
    soft = torch.rand(40, 50).to(dtype).requires_grad_()
    inputs = [x, labels, weight, sample_weight, soft]
    before = [bits(t).clone() for t in inputs]
    function = getattr(crossent, name)
    if "softmax" in name:
        function(x, 1).sum().backward()
    else:
        function(x, labels, weight, sample_weight=sample_weight).backward()
    if name == "cross_entropy":
        function(x, soft, weight, sample_weight=sample_weight).backward()
        function(x, labels, weight, softcap=2.0, label_smoothing=0.1, reduction="none").sum().backward()
    assert all(torch.equal(bits(t), b) for t, b in zip(inputs, before, strict=True))
    upstream = torch.rand_like(function(x, *arguments(name, labels)))
    kept = upstream.clone()
    torch.autograd.grad(function(x, *arguments(name, labels)), x, upstream)
    assert torch.equal(upstream, kept)


# The gradient over the logits


@pytest.mark.parametrize("shape", [(40, 50), (2, 19, 30, 3), (7,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("soft", [False, True])
def test_inplace_backward(shape, dtype, soft):
    leaf, plain = logits_of(*shape, dtype=dtype), logits_of(*shape, dtype=dtype)
    classes = shape[1] if len(shape) > 1 else shape[0]
    target = torch.rand(shape).to(dtype) if soft else labels_of(*without(shape, None), classes=classes)
    x = leaf * 1
    seen = []
    x.register_hook(seen.append)
    loss = crossent.cross_entropy(x, target, inplace_backward=True)
    expected = crossent.cross_entropy(plain * 1, target)
    assert torch.equal(loss, expected)
    address = x.data_ptr()
    loss.backward()
    expected.backward()
    assert torch.equal(leaf.grad, plain.grad)
    assert seen[0].data_ptr() == address
    assert torch.equal(x.detach(), seen[0])


def test_inplace_backward_of_a_layer():
    """The common case: the logits come from a linear layer, which does not need them for its own gradient."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 50) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    data, labels = torch.randn(20, 8), labels_of(20, classes=50)
    for layer, inplace in zip(layers, [True, False], strict=True):
        crossent.cross_entropy(layer(data), labels, inplace_backward=inplace).backward()
    assert torch.equal(layers[0].weight.grad, layers[1].weight.grad)
    assert torch.equal(layers[0].bias.grad, layers[1].bias.grad)


def test_inplace_backward_of_a_leaf():
    x, plain = logits_of(4, 5), logits_of(4, 5)
    crossent.cross_entropy(x, labels_of(4), inplace_backward=True).backward()
    crossent.cross_entropy(plain, labels_of(4)).backward()
    assert torch.equal(x.grad, plain.grad)


def test_other_uses_of_overwritten_logits_raise():
    """Whichever operation needs the logits after they are gone: saved before, or computed a second time."""
    labels = labels_of(4)
    x = logits_of(4, 5) * 1
    other = x.exp().sum() + (x * x).sum()
    crossent.cross_entropy(x, labels, inplace_backward=True).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()

    x = logits_of(4, 5) * 1
    loss = crossent.cross_entropy(x, labels, inplace_backward=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        loss.backward()

    x = logits_of(4, 5) * 1
    first = crossent.cross_entropy(x, labels, inplace_backward=True)
    second = crossent.cross_entropy(x, labels)
    first.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        second.backward()

    # in one sum the engine may happen to take the other loss first, which is right as well
    for flags in [(True, False), (False, True), (True, True)]:
        leaf, plain = logits_of(4, 5), logits_of(4, 5)
        x = leaf * 1
        losses = [crossent.cross_entropy(x, labels, inplace_backward=flag) for flag in flags]
        (2 * F.cross_entropy(plain, labels)).backward()
        with contextlib.suppress(RuntimeError):
            sum(losses).backward()
            torch.testing.assert_close(leaf.grad, plain.grad)


def test_inplace_backward_keeps_second_derivatives_right():
    """create_graph needs the logits again: either they are kept and the numbers are right, or it is refused."""
    x, plain, labels = logits_of(4, 5), logits_of(4, 5), labels_of(4)
    (expected,) = torch.autograd.grad(F.cross_entropy(plain, labels), plain, create_graph=True)
    (expected,) = torch.autograd.grad(expected.pow(2).sum(), plain)
    try:
        (first,) = torch.autograd.grad(crossent.cross_entropy(x, labels, inplace_backward=True), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    except RuntimeError:
        return
    torch.testing.assert_close(second, expected)


def test_inplace_backward_of_logits_that_repeat():
    """Rows that share their memory cannot hold a gradient each."""
    row = logits_of(1, 5)
    x = row.expand(4, 5)
    labels = torch.tensor([0, 1, 2, 2])
    plain = logits_of(1, 5)
    crossent.cross_entropy(plain.expand(4, 5), labels).backward()
    try:
        crossent.cross_entropy(x, labels, inplace_backward=True).backward()
    except (RuntimeError, ValueError):
        return
    torch.testing.assert_close(row.grad, plain.grad)


def test_inplace_backward_without_gradient_writes_nothing():
    x = logits_of(4, 5, requires_grad=False)
    before = x.clone()
    crossent.cross_entropy(x, labels_of(4), inplace_backward=True)
    with torch.no_grad():
        crossent.cross_entropy(x, labels_of(4), inplace_backward=True)
    target = torch.rand(4, 5, dtype=DOUBLE, requires_grad=True)
    crossent.cross_entropy(x, target, inplace_backward=True).backward()
    assert torch.equal(x, before)


# Compilers, tensors without data, subclasses


@contextlib.contextmanager
def fresh_compiler():
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


COMPILED = {
    "cross_entropy": lambda x, y: crossent.cross_entropy(x, y),
    "ignored": lambda x, y: crossent.cross_entropy(x, y, ignore_index=1, reduction="sum"),
    "options": lambda x, y: crossent.cross_entropy(
        x, y, label_smoothing=0.1, softcap=5.0, z_loss=0.01, reduction="none"
    ).sum(),
    "soft": lambda x, y: crossent.cross_entropy(x, F.one_hot(y, x.shape[1]).to(x.dtype) * 0.5),
    "weighted": lambda x, y: crossent.cross_entropy(
        x, y, torch.linspace(1, 2, x.shape[1]), sample_weight=torch.linspace(1, 2, x.shape[0]), denominator=3.0
    ),
    "nll_loss": lambda x, y: crossent.nll_loss(x, y),
    "softmax": lambda x, y: crossent.softmax(x, 1).pow(2).sum(),
    "log_softmax": lambda x, y: crossent.log_softmax(x, 1).pow(2).sum(),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", COMPILED)
def test_compile(name, backend):
    """In one graph, static and dynamic, value and gradient as without."""
    long = backend == "inductor" and name != "cross_entropy"  # a C++ compiler's work, the same again for fixed sizes
    check_compiled(COMPILED[name], backend, [True] if long else [False, True])


@pytest.mark.soak
@pytest.mark.parametrize("name", COMPILED)
def test_compile_of_fixed_sizes(name):
    check_compiled(COMPILED[name], BACKENDS[-1], [False])


def check_compiled(function, backend, dynamics):
    for dynamic in dynamics:
        with fresh_compiler():
            compiled = torch.compile(lambda x, y: function(2 * x, y), fullgraph=True, dynamic=dynamic, backend=backend)
            for rows in [6, 9, 11] if dynamic else [6]:
                x, y = [logits_of(rows, 40, dtype=torch.float32, seed=rows) for _ in range(2)]
                labels = labels_of(rows, classes=40)
                out, expected = compiled(x, labels), function(2 * y, labels)
                torch.testing.assert_close(out, expected)
                out.backward()
                expected.backward()
                # Numbers of the gradient may be small differences of large ones: their errors are those of the large.
                atol = 1e-6 * max(1.0, float(y.grad.abs().max()))
                torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=atol)
                with torch.no_grad():
                    torch.testing.assert_close(compiled(x, labels), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_compiled_code_refuses_bad_labels(name, backend):
    function = getattr(crossent, name)
    with fresh_compiler():
        compiled = torch.compile(lambda x, y: function(2 * x, y), fullgraph=True, backend=backend)
        x, labels = logits_of(6, 40, dtype=torch.float32), labels_of(6, classes=40)
        compiled(x, labels).backward()
        labels[4] = 40
        with pytest.raises(IndexError, match=r"40 .* 4\b"):
            compiled(x, labels).backward()
        with torch.no_grad(), pytest.raises(IndexError):
            compiled(x, labels)


@pytest.mark.parametrize("wanted", ["input", "target", "both", "labels"])
def test_compiled_code_makes_the_gradients_that_are_wanted(wanted, monkeypatch):
    """And no others: labels have none, and nothing is written in its place."""
    of_target, make = [], Problem.backward

    def noted(problem, stats, dloss, scale, dx, want_target):
        of_target.append(want_target)
        return make(problem, stats, dloss, scale, dx, want_target)

    logits, target = torch.randn(7, 130), torch.rand(7, 130)
    if wanted == "labels":
        target = labels_of(7, classes=130)
    differentiated = [logits] * (wanted != "target") + [target] * (wanted in ("target", "both"))
    for tensor in differentiated:
        tensor.requires_grad_()
    exact = torch.autograd.grad(F.cross_entropy(logits, target, label_smoothing=0.1), differentiated)
    monkeypatch.setattr(Problem, "backward", noted)
    with fresh_compiler():
        compiled = torch.compile(crossent.cross_entropy, fullgraph=True, backend="eager")
        ours = torch.autograd.grad(compiled(logits, target, label_smoothing=0.1), differentiated)
    torch.testing.assert_close(ours, exact)
    assert of_target == [wanted in ("target", "both")]


def test_compiled_code_gives_ignored_rows_zeros_for_an_infinite_upstream():
    with fresh_compiler():
        compiled = torch.compile(crossent.cross_entropy, fullgraph=True, backend="aot_eager")
        x, labels = logits_of(6, 40, dtype=torch.float32), torch.full((6,), -100)
        compiled(x, labels).backward(torch.tensor(math.inf))
    assert not x.grad.any()


def test_sample_weights_that_come_after_a_graph_was_made_for_any_size():
    """By then the size of the labels varies, and that of the weights does not."""
    weight = torch.linspace(1, 2, 40, requires_grad=True)  # learned, so that the loss is made of plain operations
    with fresh_compiler():
        compiled = torch.compile(crossent.cross_entropy, fullgraph=True, backend="aot_eager")
        for rows in (6, 13, 17):
            x, labels = logits_of(rows, 40, dtype=torch.float32), labels_of(rows, classes=40)
            given = {} if rows == 6 else {"sample_weight": torch.linspace(0, 1, rows)}
            torch.testing.assert_close(
                compiled(x, labels, weight, **given), crossent.cross_entropy(x, labels, weight, **given)
            )


TRANSFORMED = {
    "cross_entropy": lambda x, y: crossent.cross_entropy(x, y),
    "none": lambda x, y: crossent.cross_entropy(x, y, reduction="none").sum(),
    "nll_loss": lambda x, y: crossent.nll_loss(x, y),
    "softmax": lambda x, y: crossent.softmax(x.expand(5000, *x.shape), 2).pow(2).sum(),
    "linear_cross_entropy": lambda x, y: crossent.linear_cross_entropy(x, x.detach().roll(1, 0), y % 6),
    "linear_token_stats": lambda x, y: crossent.linear_token_stats(x, x.detach().roll(1, 0), y % 6).logprob.sum(),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_compiled_function_transforms(name):
    function, x, labels = TRANSFORMED[name], logits_of(6, 40).detach(), labels_of(6, classes=40)
    transforms = {
        "grad": lambda x: grad(function)(x, labels),
        "jvp": lambda x: jvp(lambda x: function(x, labels), (x,), (x,))[1],
        "vmap of grad": lambda x: vmap(grad(function), (0, None))(torch.stack([x, 2 * x]), labels),
    }
    for transform, transformed in transforms.items():
        with fresh_compiler():
            compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(
            compiled, transformed(x), msg=lambda text, transform=transform: f"{transform}: {text}"
        )


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_compiled_code_with_gradients_of_weights_refuses_bad_labels(name):
    """Which are plain operations, of which the compiler sees every one."""
    with fresh_compiler():
        compiled = torch.compile(getattr(crossent, name), fullgraph=True, backend="aot_eager")
        x, labels, weight = logits_of(6, 40), labels_of(6, classes=40), torch.rand(40, dtype=torch.float64)
        weight.requires_grad_()
        torch.testing.assert_close(compiled(x, labels, weight), getattr(crossent, name)(x, labels, weight))
        labels[4] = -100
        compiled(x, labels, weight).backward()
        labels[4] = 40
        with pytest.raises(IndexError, match=r"40 .* 4\b"):
            compiled(x, labels, weight)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(
    ("shape", "order"), [((300, 1000), (0, 1)), ((2, 19, 99, 99), (0, 1, 2, 3)), ((600, 500), (1, 0))]
)
def test_compiled_softmax_of_much(name, shape, order):
    """Large enough for the kernels, which give the bits that they give without the compiler, in the input's strides."""
    function = getattr(crossent, name)
    x = torch.randn(shape).permute(order).requires_grad_()
    with fresh_compiler(), torch._inductor.config.patch(fx_graph_cache=False):  # which may have other copies
        compiled = torch.compile(lambda x: function(x, 1), fullgraph=True, backend=BACKENDS[-1])
        out, plain = compiled(x), function(x, 1)
        dout = torch.randn_like(out)
        assert torch.equal(out, plain) and out.stride() == x.stride()
        assert torch.equal(torch.autograd.grad(out, x, dout)[0], torch.autograd.grad(plain, x, dout)[0])


def test_compiled_training_step():
    """A model and its loss in one graph, with class axis in the middle and a gradient for the parameters."""
    torch.manual_seed(0)
    model = torch.nn.Conv1d(3, 7, 1)
    data, labels = torch.randn(2, 3, 11), labels_of(2, 11, classes=7)
    with fresh_compiler():
        step = torch.compile(lambda d, y: crossent.cross_entropy(model(d), y), fullgraph=True, backend=BACKENDS[-1])
        step(data, labels).backward()
    gradient = model.weight.grad.clone()
    model.zero_grad()
    F.cross_entropy(model(data), labels).backward()
    torch.testing.assert_close(gradient, model.weight.grad, rtol=1e-4, atol=1e-6)


def test_compiled_options_may_change():
    """A number that differs from call to call is one to the compiled code too."""
    x, labels = logits_of(6, 40, dtype=torch.float32), labels_of(6, classes=40)
    with fresh_compiler():
        compiled = torch.compile(crossent.cross_entropy, fullgraph=True, backend=BACKENDS[0])
        for some in (1, 2, 3):
            options = {"ignore_index": int(labels[some]), "label_smoothing": some / 10, "z_loss": some / 5}
            torch.testing.assert_close(compiled(x, labels, **options), crossent.cross_entropy(x, labels, **options))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_compiled_softmax_of_a_number(name):
    number = torch.tensor(2.0)
    for dim in (0, -1):
        with fresh_compiler():
            compiled = torch.compile(
                lambda x, dim=dim: getattr(crossent, name)(x, dim), fullgraph=True, backend="eager"
            )
            torch.testing.assert_close(compiled(number), getattr(F, name)(number, 0))


LOSSES_OF = {
    "cross_entropy": [{}, {"reduction": "none"}, {"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 0.1}],
    "nll_loss": [{}, {"reduction": "none"}],
    "softmax": [{}],
    "log_softmax": [{}],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_meta_tensors(name, dtype):
    for options in LOSSES_OF[name]:
        x = torch.empty(6, 5, 3, dtype=dtype, device="meta", requires_grad=True)
        labels = torch.empty(6, 3, dtype=torch.int64, device="meta")
        out = getattr(crossent, name)(x, *arguments(name, labels), **options)
        real = getattr(crossent, name)(torch.ones(6, 5, 3, dtype=dtype), *arguments(name, labels_of(6, 3)), **options)
        assert out.device.type == "meta" and out.shape == real.shape and out.dtype == real.dtype
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert gradient.device.type == "meta" and gradient.shape == x.shape and gradient.dtype == x.dtype


@pytest.mark.parametrize("name", NAMES)
def test_fake_tensors(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for options in LOSSES_OF[name]:
        with FakeTensorMode():
            x, labels = torch.randn(6, 5, 3, requires_grad=True), torch.randint(5, (6, 3))
            out = getattr(crossent, name)(x, *arguments(name, labels), **options)
            (gradient,) = torch.autograd.grad(out.sum(), x)
        real = getattr(crossent, name)(torch.ones(6, 5, 3), *arguments(name, labels_of(6, 3)), **options)
        assert out.shape == real.shape and out.dtype == real.dtype and gradient.shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_subclasses(name):
    class Plain(torch.Tensor):
        pass

    x = logits_of(4, 5, requires_grad=False)
    out = getattr(crossent, name)(x.as_subclass(Plain), *arguments(name, labels_of(4)))
    assert type(out) is Plain
    torch.testing.assert_close(out.as_subclass(torch.Tensor), getattr(F, name)(x, *arguments(name, labels_of(4))))
    leaf = logits_of(4, 5, requires_grad=False).as_subclass(Plain).requires_grad_()
    getattr(crossent, name)(leaf, *arguments(name, labels_of(4))).sum().backward()
    assert leaf.grad.shape == leaf.shape
    parameter = torch.nn.Parameter(x.clone())
    getattr(crossent, name)(parameter, *arguments(name, labels_of(4))).sum().backward()
    torch.testing.assert_close(parameter.grad, leaf.grad.as_subclass(torch.Tensor))


@pytest.mark.parametrize("name", NAMES)
def test_torch_function_override(name):
    """A type that is no tensor but speaks the protocol gets the call, with its arguments."""
    calls = []

    class Duck:
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            calls.append((function, types, args, kwargs))
            return "quack"

    duck, labels = Duck(), labels_of(4)
    assert getattr(crossent, name)(duck, *arguments(name, labels)) == "quack"
    function, types, args, kwargs = calls[0]
    assert function.__name__ == name and Duck in types
    assert duck in args or duck in (kwargs or {}).values()
    if "softmax" not in name:
        assert (
            getattr(crossent, name)(logits_of(4, 5), duck, label_smoothing=0.25) == "quack"
            if (name == "cross_entropy")
            else getattr(crossent, name)(logits_of(4, 5), duck) == "quack"
        )
        function, types, args, kwargs = calls[1]
        assert function.__name__ == name
        if name == "cross_entropy":
            assert 0.25 in (*args[3:], *(kwargs or {}).values())


def test_torch_function_mode_sees_the_call():
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    x = logits_of(4, 5)
    with Watch():
        out = crossent.cross_entropy(x, labels_of(4))
    assert "cross_entropy" in seen
    torch.testing.assert_close(out, F.cross_entropy(x, labels_of(4)))


@pytest.mark.parametrize("name", NAMES)
def test_export(name):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(6, 40)

        def forward(self, x, labels):
            return getattr(crossent, name)(self.linear(x), *arguments(name, labels))

    model = Model()
    x, labels = torch.randn(8, 6), labels_of(8, classes=40)
    rows = torch.export.Dim("rows", min=2, max=64)
    shapes = {"x": {0: rows}, "labels": {0: rows}}
    for dynamic in [None, shapes]:
        program = torch.export.export(model, (x, labels), dynamic_shapes=dynamic)
        torch.testing.assert_close(program.module()(x, labels), model(x, labels))
    torch.testing.assert_close(program.module()(x[:5], labels[:5]), model(x[:5], labels[:5]))


AUTOCAST = list(itertools.product(NAMES, [torch.float16, torch.bfloat16, torch.float32, torch.float64]))


@pytest.mark.parametrize(("name", "dtype"), AUTOCAST)
@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_autocast_dtypes(name, dtype, lower):
    """The results and gradients have the dtypes of PyTorch's own functions under autocast."""
    results = []
    for module in (crossent, F):
        x = logits_of(4, 5, dtype=dtype)
        with torch.autocast("cpu", dtype=lower):
            try:
                out = getattr(module, name)(x, *arguments(name, labels_of(4)))
            except RuntimeError as error:
                assert module is F, error
                return
        (gradient,) = torch.autograd.grad(out.sum(), x)
        results.append((out, gradient))
    (ours, our_gradient), (theirs, their_gradient) = results
    assert ours.dtype == theirs.dtype and our_gradient.dtype == their_gradient.dtype
    tolerance = 4 * torch.finfo(theirs.dtype).eps
    assert torch.allclose(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)
    with torch.autocast("cpu", dtype=lower, enabled=False):
        x = logits_of(4, 5, dtype=dtype)
        assert getattr(crossent, name)(x, *arguments(name, labels_of(4))).dtype == dtype


@pytest.mark.parametrize("soft", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_soft_targets_of_another_dtype(dtype, soft, autocast):
    results = []
    for module in (crossent, F):
        x, target = logits_of(4, 5, dtype=dtype), torch.full((4, 5), 0.25, dtype=soft, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = module.cross_entropy(x, target)
        out.backward()
        results.append((out, x.grad, target.grad))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        tolerance = 4 * max(torch.finfo(d).eps for d in (dtype, soft, torch.bfloat16 if autocast else dtype))
        assert torch.allclose(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)


def test_autocast_in_a_model():
    torch.manual_seed(0)
    model, data, labels = torch.nn.Linear(8, 50), torch.randn(20, 8), labels_of(20, classes=50)
    gradients = []
    for module in (crossent, F):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = module.cross_entropy(model(data), labels)
        loss.backward()
        gradients.append(model.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=2e-2, atol=1e-4)


def test_deepcopy_of_the_graph_inputs():
    x = logits_of(4, 5)
    again = copy.deepcopy(x)
    crossent.cross_entropy(x, labels_of(4)).backward()
    crossent.cross_entropy(again, labels_of(4)).backward()
    assert torch.equal(x.grad, again.grad)


def test_gradient_accumulates():
    x = logits_of(4, 5)
    for _ in range(3):
        crossent.cross_entropy(x, labels_of(4)).backward()
    once = logits_of(4, 5)
    crossent.cross_entropy(once, labels_of(4)).backward()
    torch.testing.assert_close(x.grad, 3 * once.grad)


def test_hooks_see_the_gradient():
    x = logits_of(4, 5)
    seen = []
    x.register_hook(lambda g: seen.append(g.clone()) or 2 * g)
    crossent.cross_entropy(x, labels_of(4)).backward()
    torch.testing.assert_close(x.grad, 2 * seen[0])


def test_numpy_and_torch_agree_to_the_bit():
    """One set of kernels below both."""
    for dtype in [torch.float16, torch.float32, torch.float64]:
        x, labels = logits_of(40, 50, dtype=dtype), labels_of(40, classes=50)
        loss = crossent.cross_entropy(x, labels)
        (gradient,) = torch.autograd.grad(loss, x)
        value, dlogits = crossent.value_and_grad(crossent.cross_entropy)(x.detach().numpy(), labels.numpy())
        assert value == loss.item() and (dlogits == gradient.numpy()).all()
        value, dlogits = crossent.value_and_grad(crossent.cross_entropy)(x.detach(), labels)
        assert torch.equal(value, loss) and torch.equal(dlogits, gradient)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "linear_cross_entropy"])
def test_a_denominator_whose_gradient_nobody_wants_keeps_its_digits(name):
    logits, labels = torch.randn(5, 7, dtype=torch.float64), torch.arange(5)
    denominator = torch.tensor(7.0, requires_grad=True)
    arguments = (logits, torch.eye(7, dtype=torch.float64), labels) if "linear" in name else (logits, labels)
    with torch.no_grad():
        loss = getattr(crossent, name)(*arguments, denominator=denominator)
    found = loss.item(), getattr(crossent, name)(*arguments, reduction="sum").item() / 7
    assert loss.dtype == torch.float64 and found[0] == pytest.approx(found[1], rel=1e-15)


def test_what_fails_is_tried_once():
    """Also where the short way has been asked before: the error has no other behind it."""
    with torch.inference_mode():
        labels = torch.arange(5)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward") as raised:
            crossent.cross_entropy(torch.randn(5, 7).to(dtype).requires_grad_(), labels)
        assert raised.value.__context__ is None
