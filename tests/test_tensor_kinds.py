"""Arrays that are not just plain memory: subclasses, other devices, nested, copied on write, masks, other dtypes."""

import functools
import inspect
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import bits, check, composite
from torch.utils._pytree import tree_map

import crossent
import crossent.nn as nn
from crossent.kernels import plain as plain_operations

STATS = (crossent.prediction_stats, crossent.linear_token_stats)
LOSSES = (crossent.cross_entropy, crossent.nll_loss, crossent.linear_cross_entropy)


def arguments_of(function, rows=40, classes=50, features=50):
    """All tensors that the function takes, by name."""
    generator = torch.Generator().manual_seed(0)
    known = {
        "input": torch.randn(rows, features, generator=generator),
        "target": torch.randint(classes, (rows,), generator=generator),
        "weight": torch.rand(classes, generator=generator),
        "sample_weight": torch.rand(rows, generator=generator),
        "linear_weight": torch.randn(classes, features, generator=generator),
        "linear_bias": torch.randn(classes, generator=generator),
    }
    return {name: known[name] for name in inspect.signature(function).parameters if name in known}


# Subclasses


class KeepsTheType(torch.Tensor):
    """As torch.Tensor's own protocol has it."""


class CopiesNotes(torch.Tensor):
    """Puts notes on every result, and looks into lists and tuples for more."""

    notes = None

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        parts = list(result) if isinstance(result, Sequence) else [result]
        for part in parts:
            if isinstance(part, cls):
                part.notes = "noted"
        return parts if isinstance(result, Sequence) else result


class LosesTheType(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if not all(issubclass(cls, kind) for kind in types):
            return NotImplemented
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


class WrapsByHand(torch.Tensor):
    """Makes tuples of the kind that it got, from one iterable."""

    @classmethod
    def wrapped(cls, value):
        if isinstance(value, (tuple, list)):
            return type(value)(cls.wrapped(part) for part in value)
        return value.as_subclass(cls) if isinstance(value, torch.Tensor) and not isinstance(value, cls) else value

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return cls.wrapped(function(*args, **(kwargs or {})))


class TakesNoPart(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl


SUBCLASSES = [KeepsTheType, CopiesNotes, LosesTheType, WrapsByHand, TakesNoPart]
CALLS = {
    "cross_entropy": (crossent.cross_entropy, F.cross_entropy, ("target",), {}),
    "none": (crossent.cross_entropy, F.cross_entropy, ("target",), {"reduction": "none", "label_smoothing": 0.1}),
    "weighted": (crossent.cross_entropy, F.cross_entropy, ("target", "weight"), {}),
    "nll_loss": (crossent.nll_loss, F.nll_loss, ("target",), {}),
    "softmax": (crossent.softmax, F.softmax, (), {"dim": 1}),
    "short softmax": (crossent.softmax, F.softmax, (), {"dim": 1}),
    "log_softmax": (crossent.log_softmax, F.log_softmax, (), {"dim": 0}),
}
if hasattr(F, "linear_cross_entropy"):
    CALLS["head"] = crossent.linear_cross_entropy, F.linear_cross_entropy, ("linear_weight", "target"), {}


@pytest.fixture
def no_plain_operations(monkeypatch):
    for name in ("row_losses", "picked_losses", "prediction_stats", "token_stats"):
        monkeypatch.delattr(plain_operations, name)


@pytest.mark.parametrize("kind", SUBCLASSES)
@pytest.mark.parametrize("name", CALLS)
def test_subclasses_of_plain_memory(name, kind, no_plain_operations):
    """The kernels compute, to the last bit as of plain tensors, and the types are those that torch's functions give."""
    function, of_torch, others, options = CALLS[name]
    found = arguments_of(function if others else crossent.cross_entropy)
    x = found["input"][:, :7].contiguous() if name == "short softmax" else found["input"]
    others = [found[other] for other in others]
    plain, ours, theirs = (x.clone().requires_grad_() for _ in range(3))
    ours, theirs = ours.detach().as_subclass(kind).requires_grad_(), theirs.detach().as_subclass(kind).requires_grad_()
    expected, result, of_theirs = (
        call(logits, *others, **options) for call, logits in ((function, plain), (function, ours), (of_torch, theirs))
    )
    for loss in (expected, result, of_theirs):
        loss.square().sum().backward()
    assert type(result) is type(of_theirs) and type(ours.grad) is type(theirs.grad)
    assert getattr(result, "notes", None) == getattr(of_theirs, "notes", None)
    pairs = ((result, expected, of_theirs), (ours.grad, plain.grad, theirs.grad))
    for tensor, same, close in pairs:
        tensor, close = tensor.detach().as_subclass(torch.Tensor), close.detach().as_subclass(torch.Tensor)
        assert torch.equal(bits(tensor), bits(same))
        torch.testing.assert_close(tensor, close, rtol=1e-4, atol=1e-6)
    if name != "short softmax":
        assert crossent.plan(function, ours, *others, **options).path == "kernels"


@pytest.mark.parametrize("kind", SUBCLASSES)
@pytest.mark.parametrize("function", STATS)
def test_results_with_names_of_a_subclass(function, kind, no_plain_operations):
    found = arguments_of(function)
    of_torch = torch.max(found["input"].as_subclass(kind), 1)[0]
    stats = function(**found | {"input": found["input"].as_subclass(kind)})
    expected = function(**found)
    assert type(stats) is type(expected) and {type(value) for value in stats} == {type(of_torch)}
    for value, same in zip(stats, expected):
        assert torch.equal(bits(value.as_subclass(torch.Tensor)), bits(same))


def test_results_with_names_are_made_like_torchs():
    for kind, size in ((crossent.PredictionStats, 5), (crossent.TokenStats, 4)):
        numbers = tuple(range(size))
        assert kind(*numbers) == kind(iter(numbers)) == kind(**dict(zip(kind._fields, numbers))) == numbers
        assert type(kind(numbers)) is kind
        with pytest.raises(TypeError):
            kind(numbers[:-1])


def test_other_arguments_may_be_of_the_subclass(no_plain_operations):
    """Labels and weights, and a module's parameters."""
    for function in (*LOSSES, crossent.linear_token_stats):
        found = arguments_of(function)
        results = function(**{name: value.as_subclass(KeepsTheType) for name, value in found.items()})
        expected = function(**found)
        for value, same in zip(results, expected) if isinstance(expected, tuple) else [(results, expected)]:
            assert type(value) is KeepsTheType and torch.equal(value.as_subclass(torch.Tensor), same)
    module = nn.CrossEntropyLoss(weight=torch.rand(50).as_subclass(KeepsTheType))
    assert type(module(found["input"], found["target"])) is KeepsTheType
    gradient = crossent.value_and_grad(crossent.cross_entropy)(
        found["input"].as_subclass(KeepsTheType), found["target"]
    )
    assert torch.equal(
        gradient[1].as_subclass(torch.Tensor),
        crossent.value_and_grad(crossent.cross_entropy)(found["input"], found["target"])[1],
    )


@functools.cache
def compiles_subclasses():
    """Not with PyTorch 2.6, where x + 1 breaks the graph."""
    try:
        torch.compile(lambda x: x + 1, backend="eager", fullgraph=True)(torch.ones(1).as_subclass(KeepsTheType))
    except torch._dynamo.exc.Unsupported:
        return False
    return True


@pytest.mark.parametrize("name", CALLS)
def test_subclasses_under_a_compiler(name):
    """In one graph where PyTorch has any for a subclass, with the type that its own function gives."""
    function, of_torch, others, options = CALLS[name]
    found = arguments_of(function if others else crossent.cross_entropy)
    x, others = found["input"].as_subclass(KeepsTheType), [found[other] for other in others]
    kinds = []
    for call in (function, of_torch):
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda *args, call=call: call(*args, **options),
            backend="eager",
            fullgraph=call is function and compiles_subclasses(),
        )
        result = compiled(x, *others)
        kinds.append(type(result))
        expected = call(found["input"], *others, **options)
        torch.testing.assert_close(result.as_subclass(torch.Tensor), expected, rtol=1e-4, atol=1e-6)
    assert kinds[0] is kinds[1]


class Logged(torch.Tensor):
    """Has operations of its own, and no memory."""

    operations = []

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        cls.operations.append(operation)
        args, kwargs = tree_map(lambda a: a.inner if isinstance(a, cls) else a, (args, kwargs or {}))
        return operation(*args, **kwargs)


@pytest.mark.parametrize("name", [name for name in CALLS if "softmax" not in name])
def test_subclasses_with_operations_of_their_own(name):
    """Get these, and no kernel reads memory that they do not have."""
    function, _, others, options = CALLS[name]
    found = arguments_of(function)
    others = [found[other] for other in others]
    Logged.operations.clear()
    result = function(Logged(found["input"]), *others, **options)
    assert Logged.operations
    torch.testing.assert_close(result, function(found["input"], *others, **options))
    assert crossent.plan(crossent.cross_entropy, Logged(found["input"]), found["target"]).path == "plain operations"


# Devices


@pytest.mark.parametrize("function", [*LOSSES, *STATS])
def test_tensors_on_two_devices(function):
    """Whichever is elsewhere, in plain operations too: the meta device has shapes alone, and no numbers."""
    found = arguments_of(function)
    for name in found:
        call = found | {name: found[name].to("meta")}
        ways = [lambda: function(**call), lambda: crossent.plan(function, **call)]  # noqa: B023
        if function in LOSSES:
            ways.append(lambda: crossent.explain(function=function, **call))  # noqa: B023
            ways.append(lambda: crossent.value_and_grad(function)(call.pop("input"), **call))  # noqa: B023
        for way in ways:
            with pytest.raises(ValueError) as error:
                way()
            named, device = ("linear_weight", "cpu") if "linear_weight" in found else ("target", "cpu")
            named, device = (named, device) if name == "input" else (name, "meta")
            other = "meta" if name == "input" else "cpu"
            assert str(error.value) == f"{named} must be on the device of input, {other}, got {device}"
        with composite(), pytest.raises(ValueError, match="must be on the device of input"):
            function(**found | {name: found[name].to("meta")})


def test_sparse_target_on_two_devices():
    found = arguments_of(crossent.linear_cross_entropy)
    classes, probs = found["target"][:, None], torch.ones(40, 1)
    for target in (crossent.SparseTarget(classes.to("meta"), probs), crossent.SparseTarget(classes, probs.to("meta"))):
        with pytest.raises(ValueError, match=r"must be on the device of input, cpu, got meta"):
            crossent.linear_cross_entropy(found["input"], found["linear_weight"], target)


def test_modules_with_weights_elsewhere():
    found = arguments_of(crossent.linear_cross_entropy)
    for module in (nn.CrossEntropyLoss, nn.NLLLoss):
        with pytest.raises(ValueError, match="weight must be on the device of input, cpu, got meta"):
            module(weight=found["weight"].to("meta"))(found["input"], found["target"])
    with pytest.raises(ValueError, match="linear_weight must be on the device of input, cpu, got meta"):
        nn.LinearCrossEntropyLoss(50, 50, device="meta")(found["input"], found["target"])


def test_denominator_on_another_device():
    """A number is read from wherever it is, but not from where there is none."""
    for function in LOSSES:
        found = arguments_of(function)
        with pytest.raises(ValueError, match="denominator must be on the device of input, cpu, got meta"):
            function(**found, denominator=torch.tensor(3.0, device="meta"))
        there = {name: value.to("meta") for name, value in found.items()}
        for device in ("cpu", "meta"):
            assert function(**there, denominator=torch.tensor(3.0, device=device)).is_meta


# Nested tensors

LAYOUTS = [torch.strided, torch.jagged]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("function", [*LOSSES, *STATS])
def test_nested_tensors(function, layout):
    nested = torch.nested.nested_tensor([torch.rand(2, 50), torch.rand(3, 50)], layout=layout)
    found = arguments_of(function)
    for name in found:
        call = found | {name: nested}
        ways = [lambda: function(**call), lambda: crossent.plan(function, **call)]  # noqa: B023
        if function in LOSSES:
            ways.append(lambda: crossent.explain(function=function, **call))  # noqa: B023
        for way in ways:
            with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got a nested one"):
                way()
    labels = torch.nested.nested_tensor([torch.tensor([0, 1]), torch.tensor([0, 1, 2])], layout=layout)
    with pytest.raises(TypeError, match="input must be a dense tensor, got a nested one"):
        crossent.cross_entropy(nested, labels, dim=-1)
    with pytest.raises(TypeError, match="target must be a dense tensor, got a nested one"):
        crossent.cross_entropy(found["input"], labels)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_of_nested_tensors(layout):
    """PyTorch has these, but for log_softmax of strided ones."""
    parts = [torch.rand(2, 5), torch.rand(3, 5)]
    nested = torch.nested.nested_tensor(parts, layout=layout)
    for call in (crossent.softmax, nn.Softmax(dim=-1)):
        result = call(nested, -1) if call is crossent.softmax else call(nested)
        for row, part in zip(result.unbind(), parts):
            torch.testing.assert_close(row, F.softmax(part, -1))
    assert crossent.plan(crossent.softmax, nested, -1).path == "PyTorch's own"
    if layout is torch.jagged:
        try:
            torch.log_softmax(nested, -1)
        except NotImplementedError:
            pytest.skip("this PyTorch has no log_softmax of jagged tensors")
        for row, part in zip(crossent.log_softmax(nested, -1).unbind(), parts):
            torch.testing.assert_close(row, F.log_softmax(part, -1))
        return
    for way in (lambda: crossent.log_softmax(nested, -1), lambda: crossent.plan(crossent.log_softmax, nested, -1)):
        with pytest.raises(TypeError, match="input must be a dense tensor, got a nested one"):
            way()


# Copy on write

copied_on_write = pytest.mark.skipif(
    not hasattr(torch.Tensor, "const_data_ptr"), reason="this PyTorch gives no address without copying"
)
is_copied_on_write = torch._C._is_cow_tensor
READERS = {
    "cross_entropy": (crossent.cross_entropy, ("input", "target")),
    "weighted": (crossent.cross_entropy, ("input", "target", "weight", "sample_weight")),
    "soft": (crossent.cross_entropy, ("input", "probabilities")),
    "nll_loss": (crossent.nll_loss, ("input", "target", "weight")),
    "softmax": (lambda input: crossent.softmax(input, 1), ("input",)),
    "log_softmax": (lambda input: crossent.log_softmax(input, 0), ("input",)),
    "head": (crossent.linear_cross_entropy, ("input", "linear_weight", "target", "linear_bias", "sample_weight")),
    "soft head": (crossent.linear_cross_entropy, ("input", "linear_weight", "probabilities")),
    "tokens": (lambda **found: crossent.linear_token_stats(**found).lse, ("input", "linear_weight", "target")),
    "predictions": (lambda **found: crossent.prediction_stats(**found).logprob, ("input", "target")),
    "across": (lambda **found: crossent.prediction_stats(**found, dim=0).logprob, ("input", "target")),
}


@copied_on_write
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", READERS)
def test_reading_copies_nothing(name, dtype):
    """Forward and backward; nor does what is written change the tensor that shares the memory."""
    function, names = READERS[name]
    known = arguments_of(crossent.linear_cross_entropy, 50) | {"probabilities": torch.rand(50, 50)}
    floats = ("input", "linear_weight", "linear_bias", "probabilities")
    found = {argument: known[argument].to(dtype if argument in floats else None) for argument in names}
    for reductions in (
        [{}] if name in ("softmax", "log_softmax", "tokens", "predictions", "across") else [{}, {"reduction": "none"}]
    ):
        lazy = {argument: torch._lazy_clone(value) for argument, value in found.items()}
        for argument in floats:
            if argument in lazy:
                lazy[argument].requires_grad_()
        targets = {"target": lazy.pop("probabilities")} if "probabilities" in lazy else {}
        before = {argument: bits(value).clone() for argument, value in found.items()}
        result = function(**lazy | targets, **reductions)
        if result.requires_grad:
            result.sum().backward()
        assert all(map(is_copied_on_write, [*lazy.values(), *targets.values()]))
        assert all(torch.equal(bits(value), before[argument]) for argument, value in found.items())


@copied_on_write
def test_explaining_copies_no_whole_tensor():
    for function in LOSSES:
        lazy = {argument: torch._lazy_clone(value) for argument, value in arguments_of(function).items()}
        crossent.explain(function=function, **lazy)
        assert all(map(is_copied_on_write, lazy.values()))


@copied_on_write
def test_writing_in_place_copies_first():
    found = arguments_of(crossent.cross_entropy)
    x, before = found["input"], found["input"].clone()
    leaf = x.clone().requires_grad_()
    F.cross_entropy(leaf, found["target"]).backward()
    lazy = torch._lazy_clone(x).requires_grad_()
    crossent.cross_entropy(lazy, found["target"], inplace_backward=True).backward()
    assert torch.equal(x, before) and lazy.grad.data_ptr() == lazy.data_ptr() != x.data_ptr()
    torch.testing.assert_close(lazy.grad, leaf.grad)


# Masks


@pytest.mark.parametrize("function", LOSSES)
def test_a_mask_as_sample_weight(function):
    """True counts and False does not, in every way to a loss; of a sequence the mask may be broadcast."""
    found = arguments_of(function)
    del found["sample_weight"]
    mask = torch.rand(40) > 0.4
    rows = {name: value[mask] for name, value in found.items() if name in ("input", "target")}
    kept = found | rows
    if function is crossent.linear_cross_entropy:
        logits = F.linear(kept["input"], kept["linear_weight"], kept["linear_bias"])
        expected = F.cross_entropy(logits.double(), kept["target"], kept["weight"].double())
    else:
        of_torch = getattr(F, function.__name__)
        expected = of_torch(kept["input"].double(), kept["target"], kept["weight"].double())

    def close(value):
        torch.testing.assert_close(torch.as_tensor(value).detach().double(), expected.double(), rtol=1e-5, atol=0.0)

    close(function(**found, sample_weight=mask))
    with composite():
        close(function(**found, sample_weight=mask))
    close(torch.compile(function, backend="eager", fullgraph=True)(**found, sample_weight=mask))
    leaf = found["input"].clone().requires_grad_()
    close(function(**found | {"input": leaf}, sample_weight=mask))
    function(**found | {"input": leaf}, sample_weight=mask).backward()
    assert not leaf.grad[~mask].any() and leaf.grad[mask].any(1).all()
    arrays = {name: value.numpy() for name, value in found.items()}
    close(function(**arrays, sample_weight=mask.numpy()))
    input = arrays.pop("input")
    close(crossent.value_and_grad(function)(input, **arrays, sample_weight=mask.numpy())[0])
    close(crossent.explain(function=function, **found, sample_weight=mask).result)
    explained = crossent.explain(function=function, input=input, **arrays, sample_weight=mask.numpy())
    close(explained.result)
    assert all(check.passed for check in explained.checks) and explained.summary["counted"] == int(mask.sum())
    assert crossent.plan(function, **found, sample_weight=mask).path == "kernels"
    assert crossent.plan(function, input, **arrays, sample_weight=mask.numpy()).path == "kernels"


def test_a_mask_in_modules_and_for_sequences():
    x, labels, mask = torch.randn(4, 6, 10), torch.randint(10, (4, 6)), torch.tensor([True, False, True, True])
    expected = F.cross_entropy(x[mask].movedim(-1, 1), labels[mask])
    head = nn.LinearCrossEntropyLoss(10, 10)
    torch.nn.init.eye_(head.linear.weight)
    for value in (
        nn.CrossEntropyLoss(dim=-1)(x, labels, sample_weight=mask[:, None]),
        nn.NLLLoss(dim=-1)(x.log_softmax(-1), labels, sample_weight=mask[:, None]),
        head(x, labels, sample_weight=mask[:, None]),
        crossent.cross_entropy(x.numpy(), labels.numpy(), dim=-1, sample_weight=mask[:, None].numpy()),
    ):
        torch.testing.assert_close(torch.as_tensor(value), expected)
    shifted = nn.LinearCrossEntropyLoss(10, 10, shift=1)
    shifted.linear.weight = head.linear.weight
    value = shifted(x, labels, sample_weight=mask[:, None])
    torch.testing.assert_close(value, F.cross_entropy(x[mask, :-1].movedim(-1, 1), labels[mask, 1:]))


def test_sample_weights_of_other_kinds():
    found = arguments_of(crossent.linear_cross_entropy)
    for weights in (torch.ones(40, dtype=torch.complex64), np.ones(40, complex)):
        arrays = found if isinstance(weights, torch.Tensor) else {name: a.numpy() for name, a in found.items()}
        for function in LOSSES:
            call = {name: arrays[name] for name in arguments_of(function)}
            with pytest.raises(TypeError, match="sample_weight must hold floats, integers or booleans, got .*complex"):
                function(**call | {"sample_weight": weights})


# NumPy's bfloat16


def bfloat16_of(tensor):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return tensor.float().numpy().astype(ml_dtypes.bfloat16) if tensor.is_floating_point() else tensor.numpy()


@pytest.mark.parametrize("layout", ["negative", "readonly", "unaligned"])
def test_bfloat16_of_numpy(layout):
    """The result and its gradient are in it, rounded once."""
    pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(13, 10))
    for name, target in (("cross_entropy", rng.integers(0, 10, 13)), ("cross_entropy", rng.random((13, 10)))):
        for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.1, "z_loss": 0.02, "softcap": 4.0}):
            check("numpy", name, x, target, dtype="bfloat16", layout=layout, **options)
    check("numpy", "nll_loss", x, rng.integers(0, 10, 13), dtype="bfloat16", layout=layout)
    for name in ("softmax", "log_softmax"):
        for dim in (0, 1):
            check("numpy", name, x, dim=dim, dtype="bfloat16", layout=layout)


def test_bfloat16_of_numpy_elsewhere():
    """The head in float32; statistics, explanations and plans; beside other types."""
    found = arguments_of(crossent.linear_cross_entropy)
    del found["weight"]
    rounded = {name: value.bfloat16().double() if value.is_floating_point() else value for name, value in found.items()}
    arrays = {name: bfloat16_of(value) for name, value in found.items()}
    dtype = arrays["input"].dtype
    logits = F.linear(rounded["input"], rounded["linear_weight"], rounded["linear_bias"])
    losses = F.cross_entropy(logits, rounded["target"], reduction="none") * rounded["sample_weight"]
    value, gradients = crossent.value_and_grad(crossent.linear_cross_entropy)(
        arrays["input"], arrays["linear_weight"], arrays["target"], linear_bias=arrays["linear_bias"],
        sample_weight=arrays["sample_weight"],
    )  # fmt: skip
    assert value.dtype == dtype and [gradient.dtype for gradient in gradients] == [dtype] * 3
    np.testing.assert_allclose(float(value), float(losses.sum() / rounded["sample_weight"].sum()), rtol=2**-8)
    call = arrays["input"], arrays["linear_weight"], arrays["target"]
    stats = crossent.linear_token_stats(*call, linear_bias=arrays["linear_bias"])
    np.testing.assert_allclose(stats.lse, logits.logsumexp(1).numpy(), rtol=1e-5)
    stats = crossent.prediction_stats(*call[::2])
    expected = -F.cross_entropy(rounded["input"], rounded["target"], reduction="none")
    np.testing.assert_allclose(stats.logprob, expected.numpy(), rtol=1e-5)
    explained = crossent.explain(*call[::2])
    assert explained.dtype == "bfloat16" and all(check.passed for check in explained.checks)
    assert crossent.plan(crossent.cross_entropy, *call[::2]).path == "kernels"
    for other, common in ((np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
        probabilities = np.full((40, 50), 0.02, other)
        value = crossent.cross_entropy(call[0], probabilities)
        assert value.dtype == common
        of_torch = F.cross_entropy(rounded["input"], torch.from_numpy(probabilities).double())
        np.testing.assert_allclose(value, float(of_torch), rtol=1e-6)
    assert crossent.softmax(call[0], 1, dtype=np.float32).dtype == np.float32
    assert crossent.softmax(np.zeros(3), 0, dtype=dtype).dtype == dtype
