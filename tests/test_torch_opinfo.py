"""PyTorch's own samples of these functions' arguments, run through ours and through PyTorch's."""

import itertools
import warnings

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

import crossent

NAMES = {
    "softmax": crossent.softmax,
    "log_softmax": crossent.log_softmax,
    "nn.functional.nll_loss": crossent.nll_loss,
    "nn.functional.cross_entropy": crossent.cross_entropy,
}
OPS = [op for op in op_db if op.name in NAMES]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
CASES = [
    pytest.param(op, dtype, id=f"{op.name}-{op.variant_test_name}-{str(dtype).removeprefix('torch.')}")
    for op, dtype in itertools.product(OPS, DTYPES)
]
DOUBLES = [pytest.param(op, id=f"{op.name}-{op.variant_test_name}") for op in OPS]


def samples(op, dtype, requires_grad=False):
    for make in (op.sample_inputs, op.reference_inputs):
        yield from make("cpu", dtype, requires_grad=requires_grad)


def doubled(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def tolerance(dtype):
    return {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}


def test_all_four_are_there():
    assert {op.name for op in OPS} == set(NAMES)
    assert len(OPS) == 6


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_forward_and_backward(op, dtype):
    for sample in samples(op, dtype):
        arguments = (sample.input, *sample.args)
        leaves = [[a.clone().requires_grad_() if a is sample.input else a for a in arguments] for _ in range(2)]
        ours = NAMES[op.name](*leaves[0], **sample.kwargs)
        theirs = op.op(*leaves[1], **sample.kwargs)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.device == theirs.device
        kwargs = {key: doubled(value) for key, value in sample.kwargs.items() if key != "dtype"}
        exact_leaves = [doubled(a.detach()) if isinstance(a, torch.Tensor) else a for a in arguments]
        exact_leaves[0].requires_grad_()
        exact = op.op(*exact_leaves, **kwargs)
        # in half precision PyTorch rounds more often than ours: the yardstick is its float64 answer
        torch.testing.assert_close(ours.double(), exact, equal_nan=True, **tolerance(min(ours.dtype, dtype, key=bits)))
        upstream = torch.ones_like(theirs)
        (gradient,) = torch.autograd.grad(ours, leaves[0][0], upstream)
        (exact_gradient,) = torch.autograd.grad(exact, exact_leaves[0], upstream.double())
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), exact_gradient, equal_nan=True, **tolerance(dtype))


def bits(dtype):
    return -torch.finfo(dtype).eps


@pytest.mark.parametrize("op", DOUBLES)
def test_gradcheck(op):
    for sample in op.sample_inputs("cpu", torch.float64, requires_grad=True):
        if sample.kwargs.get("dtype") in (torch.float16, torch.bfloat16, torch.float32):
            continue
        if sample.input.numel() > 200:
            continue
        keywords = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in sample.kwargs.items()}

        def function(x, args=sample.args, keywords=keywords):
            return NAMES[op.name](x, *[a.detach() if isinstance(a, torch.Tensor) else a for a in args], **keywords)

        if torch.isnan(function(sample.input)).any():
            continue
        assert torch.autograd.gradcheck(function, sample.input, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, sample.input, check_fwd_over_rev=True)


@pytest.mark.parametrize("op", DOUBLES)
def test_noncontiguous_inputs(op):
    for sample in op.sample_inputs("cpu", torch.float32):
        other = sample.noncontiguous()
        ours = NAMES[op.name](other.input, *other.args, **other.kwargs)
        theirs = op.op(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("op", DOUBLES)
def test_forward_mode(op):
    for sample in op.sample_inputs("cpu", torch.float64):
        if not sample.input.numel():
            continue
        tangent = torch.rand_like(sample.input)
        results = []
        for function in (NAMES[op.name], op.op):
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(sample.input, tangent)
                out = function(dual, *sample.args, **sample.kwargs)
                results.append(torch.autograd.forward_ad.unpack_dual(out).tangent)
        torch.testing.assert_close(*results, equal_nan=True)


# PyTorch 2.13 lists no error inputs for these operators; `error_inputs` is asked all the same, and these are added:
# the calls that PyTorch's own tests of these functions expect to fail.
BAD_CALLS = {
    "batch sizes": (torch.randn(3, 5), torch.zeros(4, dtype=torch.int64)),
    "labels of two dimensions": (torch.randn(3, 5), torch.zeros(3, 1, dtype=torch.int64)),
    "spatial sizes": (torch.randn(3, 5, 4, 4), torch.zeros(3, 4, 5, dtype=torch.int64)),
    "number of dimensions": (torch.randn(3, 5, 4), torch.zeros(3, dtype=torch.int64)),
    "label too large": (torch.randn(3, 5), torch.tensor([0, 5, 1])),
    "label negative": (torch.randn(3, 5), torch.tensor([0, -1, 1])),
    "weight too short": (torch.randn(3, 5), torch.tensor([0, 1, 2]), torch.ones(4)),
    "weight too long": (torch.randn(3, 5), torch.tensor([0, 1, 2]), torch.ones(6)),
    "weight of two dimensions": (torch.randn(3, 5), torch.tensor([0, 1, 2]), torch.ones(5, 1)),
    "whole numbers": (torch.ones(3, 5, dtype=torch.int64), torch.tensor([0, 1, 2])),
    "float labels": (torch.randn(3, 5), torch.zeros(3)),
    "labels per class": (torch.randn(3, 5), torch.zeros(3, 5, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", ["nn.functional.nll_loss", "nn.functional.cross_entropy"])
@pytest.mark.parametrize("case", BAD_CALLS)
def test_what_pytorch_refuses_is_refused(name, case):
    theirs = next(op.op for op in OPS if op.name == name)
    for function, errors in [
        (theirs, (RuntimeError, ValueError, TypeError, IndexError)),
        (NAMES[name], (ValueError, TypeError, IndexError)),
    ]:
        with pytest.raises(errors):
            function(*BAD_CALLS[case])


@pytest.mark.parametrize("op", DOUBLES)
def test_error_inputs(op):
    if op.error_inputs_func is None:
        return
    for error in op.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises((ValueError, TypeError, IndexError)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            NAMES[op.name](sample.input, *sample.args, **sample.kwargs)
