"""A loss in another dtype than the input's: `loss_dtype`."""

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from harness import FRONTENDS, TORCH_DTYPES, bits, composite

import crossent
import crossent.nn as nn

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, LABELS = torch.randn(13, 10, generator=GENERATOR), torch.randint(10, (13,), generator=GENERATOR)
MATRIX = torch.randn(10, 10, generator=GENERATOR)
LOSSES = [crossent.cross_entropy, crossent.nll_loss, crossent.linear_cross_entropy]
FLOATS = {"float32": torch.float32, "float64": torch.float64}


def call_of(function, dtype, library="torch"):
    x = LOGITS.to(TORCH_DTYPES[dtype])
    between = (MATRIX.to(x.dtype),) if function is crossent.linear_cross_entropy else ()
    arrays = (x, *between, LABELS)
    return [a.clone() for a in arrays] if library != "numpy" else [a.numpy() for a in arrays]


def exact_of(function, call, reduction):
    """In extended precision, from the numbers that the call has."""
    x, *between, labels = (np.asarray(a.detach().double() if isinstance(a, torch.Tensor) else a, float) for a in call)
    logits = x @ between[0].T if between else x
    name = "nll_loss" if function is crossent.nll_loss else "cross_entropy"
    return np.asarray(getattr(reference, name)(logits, labels.astype(np.int64), reduction=reduction)[0], np.float64)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("function", LOSSES)
def test_the_loss_has_the_dtype_that_was_asked_for(function, dtype, frontend):
    """And the digits of the arithmetic: bfloat16 logits give a loss that was not rounded to bfloat16."""
    if frontend == "numpy" and dtype == "bfloat16":
        pytest.skip("the logits come from PyTorch")
    # On some processors the logits of a head are rounded to bfloat16.
    tolerance = 2e-2 if dtype == "bfloat16" and function is crossent.linear_cross_entropy else 2e-6
    for name, asked in FLOATS.items():
        for reduction in ("mean", "sum", "none"):
            call = call_of(function, dtype, frontend)
            expected = exact_of(function, call, reduction)
            if frontend == "numpy":
                value = function(*call, reduction=reduction, loss_dtype=name)
                assert value.dtype == name and isinstance(value, np.ndarray | np.generic)
                np.testing.assert_allclose(value, expected, rtol=tolerance)
                if reduction != "none":
                    again, gradient = crossent.value_and_grad(function)(*call, reduction=reduction, loss_dtype=name)
                    first = gradient[0] if isinstance(gradient, tuple) else gradient
                    assert again == value and first.dtype == dtype
                continue
            x = call[0].requires_grad_()
            with composite() if frontend == "composite" else torch.enable_grad():
                loss = function(*call, reduction=reduction, loss_dtype=asked)
            loss.backward(torch.ones_like(loss))
            assert loss.dtype is asked and x.grad.dtype is x.dtype
            np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=tolerance)
            plain = x.detach().clone().requires_grad_()
            with composite() if frontend == "composite" else torch.enable_grad():
                loss = function(plain, *call[1:], reduction=reduction)
            loss.backward(torch.ones_like(loss))
            torch.testing.assert_close(x.grad, plain.grad, rtol=1e-2 if x.itemsize == 2 else 1e-5, atol=1e-7)


def test_what_a_log_of_bfloat16_loses():
    """The case that the option is for: three digits of a mean over a vocabulary."""
    x, labels = torch.randn(64, 1000, generator=GENERATOR).bfloat16(), torch.randint(1000, (64,), generator=GENERATOR)
    exact = F.cross_entropy(x.double(), labels)
    rounded, kept = (crossent.cross_entropy(x, labels, loss_dtype=dtype).double() for dtype in (None, torch.float32))
    assert abs(kept - exact) < 1e-6 * exact < abs(rounded - exact)


@pytest.mark.parametrize("function", LOSSES)
def test_every_way_to_a_loss(function):
    """Compiled, in a module, planned, explained, under autocast, with soft targets, and by the same kernels."""
    call = call_of(function, "bfloat16")
    loss = function(*call, loss_dtype=torch.float32)
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert compiled(*call, loss_dtype=torch.float32).dtype is torch.float32
    torch.testing.assert_close(compiled(*call, loss_dtype=torch.float32), loss, rtol=1e-6, atol=0.0)
    plans = [crossent.plan(function, *call, loss_dtype=dtype) for dtype in (None, torch.float32)]
    assert plans[0] == plans[1] and plans[0].path == "kernels"
    explained = crossent.explain(*call, function=function, loss_dtype=torch.float32)
    assert explained.result == float(loss) and all(check.passed for check in explained.checks)
    with torch.autocast("cpu", torch.bfloat16):
        assert function(*call).dtype is torch.float32
        assert function(*call, loss_dtype=torch.float64).dtype is torch.float64
    # Of full precision the quickest way is taken all the same.
    full = call_of(function, "float32")
    assert torch.equal(bits(function(*full, loss_dtype=torch.float32)), bits(function(*full)))
    assert function(*(a.to("meta") for a in call), loss_dtype=torch.float32).dtype is torch.float32


def test_modules():
    x, labels = LOGITS.bfloat16(), LABELS
    head = nn.LinearCrossEntropyLoss(10, 10, dtype=torch.bfloat16, loss_dtype=torch.float32)
    for module in (nn.CrossEntropyLoss(loss_dtype=torch.float32), nn.NLLLoss(loss_dtype=torch.float32), head):
        assert module(x, labels).dtype is torch.float32 and "loss_dtype=torch.float32" in repr(module)
    assert head.linear.weight.dtype is torch.bfloat16
    assert nn.CrossEntropyLoss()(x, labels).dtype is torch.bfloat16 and "loss_dtype" not in repr(nn.CrossEntropyLoss())
    old = nn.CrossEntropyLoss()
    del old.__dict__["loss_dtype"]  # as one that was pickled before there was the option
    assert old(x, labels).dtype is torch.bfloat16
    for kind in (nn.CrossEntropyLoss, nn.NLLLoss, lambda **options: nn.LinearCrossEntropyLoss(10, 10, **options)):
        with pytest.raises(TypeError, match="loss_dtype must be float32, float64 or None"):
            kind(loss_dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_traced_and_scripted(kind):
    """A trace keeps the dtype; TorchScript has none to give, and does not leave it out in silence."""
    x, other = LOGITS.bfloat16(), (2 * LOGITS).bfloat16()
    module = kind(loss_dtype=torch.float32)
    traced = torch.jit.trace(module, (x, LABELS), check_trace=False)
    assert traced(other, LABELS).dtype is torch.float32
    torch.testing.assert_close(traced(other, LABELS), module(other, LABELS), rtol=1e-5, atol=0.0)
    with pytest.raises(ValueError, match="loss_dtype=torch.float32 cannot be scripted"):
        torch.jit.script(module)
    per_row = torch.func.vmap(lambda row, label: module(row, label))(x, LABELS)
    assert per_row.dtype is torch.float32
    torch.testing.assert_close(per_row.mean(), module(x, LABELS), rtol=1e-5, atol=0.0)


def test_promoted_probabilities():
    """The caller's choice counts after logits and probabilities have met in a wider type."""
    x, probabilities = LOGITS.bfloat16(), torch.full((13, 10), 0.1, dtype=torch.float64)
    exact = F.cross_entropy(x.double(), probabilities)
    for asked, dtype in ((None, torch.float64), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        loss = crossent.cross_entropy(x, probabilities, loss_dtype=asked)
        assert loss.dtype is dtype
        torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0.0)
        value = crossent.cross_entropy(
            x.float().numpy(), probabilities.numpy(), loss_dtype=asked and str(asked).removeprefix("torch.")
        )
        assert value.dtype == str(dtype).removeprefix("torch.")


def test_names_of_the_dtype():
    x, array = LOGITS.bfloat16(), LOGITS.numpy()
    for asked in (torch.float64, np.float64, np.dtype("float64"), "float64"):
        assert crossent.cross_entropy(x, LABELS, loss_dtype=asked).dtype is torch.float64
        assert crossent.cross_entropy(array, LABELS.numpy(), loss_dtype=asked).dtype == np.float64
    for wrong in (torch.float16, torch.int64, np.int32, "f4", float, 32):
        for function in LOSSES:
            with pytest.raises(TypeError, match="loss_dtype must be float32, float64 or None, got"):
                function(*call_of(function, "float32"), loss_dtype=wrong)


def test_overrides_are_told():
    class Mine(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return kwargs["loss_dtype"]

    for function in LOSSES:
        x, *others = call_of(function, "float32")
        assert function(x.as_subclass(Mine), *others, loss_dtype=torch.float64) == "float64"
        assert function(x.as_subclass(Mine), *others) is None
