"""The GPU's kernels of softmax and log_softmax, which Triton's interpreter runs on the CPU."""

import itertools
import mmap
from functools import partial

import numpy as np
import pytest
import reference
import torch
from harness import EPS, LAYOUTS, SMALLEST, SOFTMAXES, TORCH_DTYPES, WAYS, check, class_axis, on_triton
from test_confident import assert_digits, confident, exact, place, rows_of
from test_contract import SHAPES, identify, make

import crossent

pytest.importorskip("triton")

LOOPS = {"softmax_at_once": 64, "gradient_at_once": 64}  # entries in a tile, where a program has one slice

CASES = list(itertools.product(SHAPES, LAYOUTS, SOFTMAXES, TORCH_DTYPES))


def case_id(case):
    shape, layout, name, dtype = case
    return f"{identify(shape)}-{layout}-{name}-{dtype}"


@pytest.mark.parametrize("case", CASES[::33], ids=case_id)  # 33 shares no factor with the numbers of parameters
def test_contract(case):
    check_case(case)


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_whole_contract(case):
    check_case(case)


def check_case(case):
    shape, layout, name, dtype = case
    logits = make(*shape)[0]
    check("triton", name, logits, dim=class_axis(logits, shape[1]), dtype=dtype, layout=layout)


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("layout", ["contiguous", "reversed", "strided"])
def test_every_axis(name, layout):
    for dim in range(4):
        check("triton", name, make((2, 3, 5, 4), None)[0], dim=dim, dtype="float32", layout=layout)


@pytest.fixture
def in_a_loop(monkeypatch):
    monkeypatch.setitem(WAYS, "triton", partial(on_triton, **LOOPS))


LOOP_CASES = [(shape, dtype) for shape in [(3, 300), (2, 320)] for dtype in ("bfloat16", "float32", "float64")]


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize(
    ("shape", "dtype"), [*LOOP_CASES, ((3, 301), "bfloat16"), ((3, 301), "float64"), ((2, 70, 5), "float32")], ids=str
)
def test_loops(name, dtype, shape, in_a_loop):
    """Both where the classes lie side by side and across memory, with and without a last tile that is not full, and
    where rows begin anywhere in a line of memory.
    """
    for layout in ("contiguous", "reversed") if shape == (3, 300) else ("contiguous",):
        check("triton", name, make(shape, None)[0], dim=1, dtype=dtype, layout=layout)


@pytest.mark.parametrize("name", SOFTMAXES)
def test_many_classes(name):
    """The loops that there are, of float32."""
    check("triton", name, make((2, 40000), None)[0], dim=1, dtype="float32")


WHERE = [(layout, dtype) for layout in ("last", "inner", "strided") for dtype in ("float16", "float32", "float64")]


@pytest.mark.parametrize(("layout", "dtype", "loop"), [(*case, False) for case in WHERE] + [("last", "float32", True)])
def test_log_softmax_keeps_its_digits(layout, dtype, loop):
    """As tests/test_confident.py has it of the CPU's kernels."""
    eps, smallest = EPS[dtype], SMALLEST[dtype]
    for classes in (300,) if loop else (2, 17, 100):
        logits, top = confident(classes, dtype)
        right, gradient = exact(logits)
        x, dim = place(torch.as_tensor(logits).to(TORCH_DTYPES[dtype]), layout)
        labels = torch.as_tensor(top).reshape(x.shape[:dim] + x.shape[dim + 1 :])
        x.requires_grad_()
        with on_triton(**LOOPS if loop else {}):
            out = crossent.log_softmax(x, dim)
        crossent.nll_loss(out, labels, reduction="sum").backward()
        assert type(out.grad_fn).__name__ == "_SoftmaxOnDeviceBackward"
        assert_digits(rows_of(out, layout), right, 6 * eps, smallest)
        # What backward starts from is rounded: an error of out is one of exp(out) times out.
        digits = (12 + abs(right).max(1, keepdims=True)) * eps
        error = abs(rows_of(x.grad, layout) - gradient) / np.maximum(abs(gradient), smallest / eps)
        assert (error <= digits).all(), (classes, error.max())


@pytest.mark.parametrize(("layout", "loop"), [("last", False), ("inner", False), ("last", True)])
def test_equal_maxima_and_what_is_not_finite(layout, loop):
    inf, nan = np.inf, np.nan
    logits = np.full((10, 300), -100.0, np.float32)
    logits[0, [3, 30]], logits[1], logits[2, 299] = 2, 7, 5
    logits[3, :], logits[3, 8] = -inf, 1
    logits[4], logits[5, 2], logits[6, 2], logits[7, [2, 5]] = -inf, nan, inf, inf
    logits[8, [0, 1]] = 0, -1e-6  # which rounds to 1 once it is exp
    logits[9] = nan
    for name in SOFTMAXES:
        right = getattr(reference, name)(logits.astype(np.float64), 1)[0].astype(np.float64)
        x, dim = place(torch.from_numpy(logits), layout)
        with on_triton(**LOOPS if loop else {}):
            found = rows_of(getattr(crossent, name)(x, dim), layout)
        assert np.isnan(found[[4, 5, 6, 7, 9]]).all()
        np.testing.assert_allclose(found[[0, 1, 2, 3, 8]], right[[0, 1, 2, 3, 8]], 1e-6, 1e-37)


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("upstream", ["one number", "transposed", "strided"])
def test_layout_of_the_upstream_gradient(name, upstream):
    """Also against the formula."""
    logits = make((3, 7, 4, 5), None)[0].astype(np.float32)
    up = np.random.default_rng(0).normal(size=logits.shape).astype(np.float32)
    up = {"one number": np.full_like(up, 0.5), "transposed": up, "strided": up}[upstream]
    above = torch.as_tensor(up)
    if upstream == "one number":
        above = torch.full((1,), 0.5).expand(up.shape)
    elif upstream == "transposed":
        above = above.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    else:
        above = torch.repeat_interleave(above, 2, -1)[..., ::2]
    x = torch.as_tensor(logits).requires_grad_()
    with on_triton():
        (found,) = torch.autograd.grad(getattr(crossent, name)(x, 1), x, above)
    expected = getattr(reference, name)(logits.astype(np.float64), 1, up.astype(np.float64))[1]
    np.testing.assert_allclose(found, expected.astype(np.float64), 0, 4e-6)


@pytest.mark.parametrize("name", SOFTMAXES)
def test_derivatives(name):
    """Those of derivatives, of batches of upstream gradients and of transforms are made in plain operations."""
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    function, native = (lambda x: getattr(crossent, name)(x, 1)), (lambda x: getattr(torch, name)(x, 1))
    with on_triton():
        assert type(function(x).grad_fn).__name__ == "_SoftmaxOnDeviceBackward"
        assert torch.autograd.gradcheck(function, x, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, x)
        ours = torch.func.vmap(torch.func.grad(lambda x: (getattr(crossent, name)(x, 0) ** 2).sum()))(x)
    theirs = torch.autograd.grad((native(x) ** 2).sum(), x)[0]
    torch.testing.assert_close(ours, theirs)


def test_small_inputs_are_left_to_pytorch():
    x = torch.randn(32, 10).requires_grad_()
    with on_triton():
        assert crossent.plan(crossent.softmax, x, 1).path == "kernels"
    with on_triton(softmax_from=x.nbytes + 1):
        plan = crossent.plan(crossent.softmax, x, 1)
        assert plan.path == "PyTorch's own" and "1,280 bytes" in plan.reasons[0]
        assert type(crossent.softmax(x, 1).grad_fn).__name__ == "SoftmaxBackward0"


@pytest.mark.parametrize("strides", [(2**30, 1), (1, 2**30)])
def test_places_beyond_32_bits(strides):
    """In memory of which nearly all is never touched."""
    memory = mmap.mmap(-1, 2 * (3 * 2**30 + 64))
    x = torch.frombuffer(memory, dtype=torch.bfloat16).as_strided((4, 4), strides)
    x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    labels, exact = torch.tensor([0, 3, 1, 2]), x.double()
    with on_triton():
        p, stats = crossent.softmax(x, 1), crossent.prediction_stats(x, labels)
        losses = [getattr(crossent, name)(x, labels) for name in ("cross_entropy", "nll_loss")]
    torch.testing.assert_close(p.double(), torch.softmax(exact, 1), rtol=0.01, atol=0)
    assert torch.equal(stats.prediction, exact.argmax(1))
    for ours, name in zip(losses, ("cross_entropy", "nll_loss")):
        torch.testing.assert_close(ours.double(), getattr(torch.nn.functional, name)(exact, labels), rtol=0.01, atol=0)


@pytest.mark.parametrize("name", SOFTMAXES)
def test_compiled(name):
    """The operators that a compiled call becomes have the kernels behind them."""
    x = torch.randn(3, 25000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    up, results = torch.randn(3, 25000, generator=torch.Generator().manual_seed(1)), []
    function = torch.compile(lambda x: getattr(crossent, name)(x, 1), backend="aot_eager", fullgraph=True)
    for call in (function, lambda x: getattr(crossent, name)(x, 1)):
        with on_triton():
            out = call(x)
        with on_triton():
            results.append((out, *torch.autograd.grad(out, x, up)))
    for ours, eager in zip(*results):
        assert torch.equal(ours, eager)
