"""`crossent.plan` tells what the call then does."""

import numpy as np
import pytest
import torch
from harness import Chunks, new_plans, waiting_gradient

import crossent
from crossent.frontends.torch import dtypes, products
from crossent.kernels.cpu.call import Launcher
from crossent.kernels.cpu.processor import LIBRARY, PAIRS, PRODUCTS_OF_BFLOAT16, WIDENED

pytestmark = pytest.mark.usefixtures("nothing_planned")

LOGITS, LABELS = torch.randn(6, 7), torch.tensor([0, 1, 2, 3, 4, 5])
HIDDEN, WEIGHT, TOKENS = torch.randn(2, 5, 4), torch.randn(50, 4, requires_grad=True), torch.randint(50, (2, 5))
LOSSES = [(crossent.cross_entropy, LOGITS, LABELS), (crossent.nll_loss, LOGITS, LABELS)]
HEADS = [(crossent.linear_cross_entropy, HIDDEN, WEIGHT, TOKENS), (crossent.linear_token_stats, HIDDEN, WEIGHT, TOKENS)]


def calls_of_kernels(monkeypatch, call):
    """How often the call, and its backward pass, go to a kernel."""
    count, run = [0], Launcher.run

    def counted(*args):
        count[0] += 1
        return run(*args)

    monkeypatch.setattr(Launcher, "run", counted)
    with new_plans():
        call()
    return count[0]


@pytest.mark.parametrize(
    ("call", "options", "path"),
    [
        *[(call, {}, "kernels") for call in LOSSES],
        (LOSSES[0], {"weight": torch.rand(7)}, "kernels"),
        (LOSSES[0], {"weight": torch.rand(7, requires_grad=True)}, "plain operations"),
        ((crossent.cross_entropy, LOGITS.t(), torch.arange(6).repeat(7)[:7] % 6), {}, "kernels"),
        ((crossent.cross_entropy, LOGITS.to("meta"), LABELS.to("meta")), {}, "plain operations"),
        ((crossent.softmax, LOGITS, 1), {}, "kernels"),
        ((crossent.softmax, LOGITS.clone().requires_grad_(), 1), {}, "PyTorch's own"),
        ((crossent.log_softmax, LOGITS.clone().requires_grad_(), 1), {}, "kernels"),
        ((crossent.log_softmax, torch.randn(3, 100), 1), {}, "kernels"),
        ((crossent.softmax, LOGITS, 0), {}, "kernels"),
        ((crossent.prediction_stats, LOGITS, LABELS), {}, "kernels"),
        ((crossent.prediction_stats, LOGITS.to("meta"), LABELS.to("meta")), {}, "plain operations"),
        (HEADS[0], {}, "kernels"),
        (HEADS[0], {"sample_weight": torch.rand(2, 5, requires_grad=True)}, "plain operations"),
    ],
)
def test_path(call, options, path, monkeypatch):
    planned = crossent.plan(*call, **options)
    assert planned.path == path and planned.function == call[0].__name__ and planned.reasons is not None
    if call[1].device.type == "cpu":
        kernels = calls_of_kernels(monkeypatch, lambda: call[0](*call[1:], **options))
        assert (kernels > 0) == (path == "kernels")


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, True),
        ({"weight": torch.rand(7)}, True),
        ({"denominator": 2.0}, True),
        ({"reduction": "none"}, False),
        ({"inplace_backward": True}, False),
    ],
)
@pytest.mark.parametrize("rows", [10, 2**23 // 7 + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_says_where_the_gradient_is_made(rows, dtype, options, made):
    logits, labels = torch.zeros(rows, 7, requires_grad=True, dtype=dtype), torch.zeros(rows, dtype=torch.int64)
    planned = crossent.plan(crossent.cross_entropy, logits, labels, **options)
    loss = crossent.cross_entropy(logits, labels, **options)
    made = made and rows == 10
    assert (waiting_gradient(loss) is not None) == made == ("made in the forward pass" in str(planned))


@pytest.mark.parametrize(
    ("shape", "made"), [((1024, 1024), True), ((1024, 1025), False), ((900, 1025), True), ((4, 1025, 16, 16), True)]
)
def test_says_where_the_gradient_of_long_rows_is_made(shape, made):
    """In a pass of its own, if they are many and lie along memory."""
    logits, labels = torch.zeros(shape, requires_grad=True), torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    planned, loss = crossent.plan(crossent.cross_entropy, logits, labels), crossent.cross_entropy(logits, labels)
    assert (waiting_gradient(loss) is not None) == made == ("made in the forward pass" in str(planned))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_says_where_the_gradient_is_made_of_what_is_copied(dtype):
    logits, labels = torch.randn(4, 14, dtype=dtype)[:, ::2].requires_grad_(), torch.zeros(4, dtype=torch.int32)
    planned = crossent.plan(crossent.cross_entropy, logits, labels)
    made = waiting_gradient(crossent.cross_entropy(logits, labels)) is not None
    assert "copied" in str(planned) and made == (dtype is torch.float32) == ("made in the forward pass" in str(planned))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # which meets the targets' in float32
@pytest.mark.parametrize("wanted", [False, True])
def test_says_where_the_gradient_of_soft_targets_is_made(wanted, dtype):
    logits, target = torch.randn(3, 7, requires_grad=True, dtype=dtype), torch.rand(3, 7, requires_grad=wanted)
    planned = crossent.plan(crossent.cross_entropy, logits, target)
    loss = crossent.cross_entropy(logits, target)
    assert (waiting_gradient(loss) is None) == wanted == ("made in the forward pass" not in str(planned))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((64, 5), "rows of so few classes are computed several at a time"),
        ((8, 1000), "each row is computed by itself"),
        ((2, 7, 30), "neighbouring rows lie side by side in memory"),
    ],
)
def test_says_how_rows_are_computed(shape, said):
    labels = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    reasons = crossent.plan(crossent.cross_entropy, torch.zeros(shape), labels).reasons
    assert [said in reason for reason in reasons] == [True]
    reasons = crossent.plan(crossent.nll_loss, torch.zeros(shape), labels).reasons
    assert reasons == ("only the label's number is read of each row",)


def test_transforms_count():
    def planned(logits):
        plans.append(crossent.plan(crossent.cross_entropy, logits, LABELS))
        return logits.sum()

    plans = []
    torch.func.grad(planned)(LOGITS)
    assert plans[0].path == "plain operations" and "transform" in str(plans[0])


@pytest.mark.parametrize(
    ("dtype", "arithmetic"),
    [(torch.float16, "float32"), (torch.bfloat16, "float32"), (torch.float32, "float32"), (torch.float64, "float64")],
)
def test_arithmetic(dtype, arithmetic):
    assert crossent.plan(crossent.cross_entropy, LOGITS.to(dtype), LABELS).arithmetic == arithmetic


def test_copies_are_named():
    planned = crossent.plan(
        crossent.cross_entropy, torch.randn(4, 3, 8)[:, :, ::2], torch.zeros(4, 4, dtype=torch.int64)
    )
    assert "input is copied" in str(planned) and planned.extra_bytes >= 4 * 3 * 4 * 4
    planned = crossent.plan(crossent.cross_entropy, LOGITS, LABELS.to(torch.int32))
    assert "target is copied" in str(planned)


@pytest.mark.parametrize("call", HEADS)
@pytest.mark.parametrize("shift", [0, 1])
def test_chunks(call, shift):
    planned = crossent.plan(*call, shift=shift, chunk_bytes=3 * 4 * 50)
    rows = 10 - 2 * shift
    assert planned.chunk_rows == 3 and planned.chunks == -(-rows // 3) and planned.extra_bytes == 3 * 4 * 50
    assert f"{rows} of 10 rows count" in str(planned)


def test_chunks_of_plain_operations():
    weights = torch.rand(2, 5, requires_grad=True)

    def planned(hidden):
        call = crossent.linear_cross_entropy, hidden, WEIGHT, TOKENS
        plans.append(crossent.plan(*call, sample_weight=weights, chunk_bytes=3 * 4 * 50))
        return hidden.sum()

    plans = []
    planned(HIDDEN)
    torch.func.grad(planned)(HIDDEN)
    assert [(plan.path, plan.chunk_rows, plan.chunks) for plan in plans] == [
        ("plain operations", 3, 4), ("plain operations", 10, 1),
    ]  # fmt: skip
    beside = WEIGHT.nbytes + HIDDEN.nbytes  # a product of all chunks, and a copy
    assert plans[0].extra_bytes == 6 * 3 * 4 * 50 + beside < plans[1].extra_bytes


def test_float32_sums_are_named():
    planned = crossent.plan(crossent.linear_cross_entropy, HIDDEN.bfloat16(), WEIGHT.bfloat16(), TOKENS)
    logit = 2 if PRODUCTS_OF_BFLOAT16[0] == LIBRARY else 4
    assert planned.extra_bytes == 10 * logit * 50 + 4 * WEIGHT.numel() and "float32 sums" in str(planned)


@pytest.mark.parametrize("how", ["usual", "accurate", "acc_dtype", "statistics"])
@pytest.mark.parametrize("kind", ["pairs", "library", "widened", "float16"])
def test_precision_of_16_bits_is_named(kind, how, monkeypatch):
    """As the processor's kind and the options decide."""
    exact = {"pairs": PAIRS, "library": WIDENED, "widened": WIDENED, "float16": PAIRS}[kind]
    ways = LIBRARY if kind == "library" else exact, exact
    monkeypatch.setattr(products, "PRODUCTS_OF_BFLOAT16", ways)
    dtype = torch.float16 if kind == "float16" else torch.bfloat16
    options = {"accurate": {"acc_policy": "accurate"}, "acc_dtype": {"acc_dtype": torch.float32}}.get(how)
    function = crossent.linear_token_stats if how == "statistics" else crossent.linear_cross_entropy
    more = {} if options is None else {"options": Chunks(**options)}
    said = str(crossent.plan(function, HIDDEN.to(dtype), WEIGHT.to(dtype), TOKENS, **more))
    if kind == "library" and how == "usual":
        assert "logits and their gradient are rounded to bfloat16" in said
    elif kind == "pairs":
        assert "logits are float32; their gradient is rounded" in said
    else:
        assert "logits and their gradient are float32" in said


@pytest.mark.parametrize(("features", "copied"), [(4, 0), (5, 2 * 100 * 6)])
def test_a_weight_that_is_copied_for_pairs_counts(features, copied, monkeypatch):
    monkeypatch.setattr(products, "PRODUCTS_OF_BFLOAT16", (PAIRS, PAIRS))
    x, matrix = (torch.zeros(rows, features, dtype=torch.bfloat16) for rows in (8, 100))
    planned = crossent.plan(crossent.linear_cross_entropy, x, matrix, torch.zeros(8, dtype=torch.int64))
    assert planned.extra_bytes == 4 * 8 * 100 + copied and ("copy of linear_weight" in str(planned)) == bool(copied)


@pytest.mark.parametrize(("dtype", "arrays"), [(torch.float32, 1), (torch.float16, 2)])
def test_probabilities_that_are_widened_count(dtype, arrays):
    x, matrix, target = torch.zeros(8, 4).to(dtype), torch.zeros(100, 4).to(dtype), torch.zeros(8, 100).to(dtype)
    planned = crossent.plan(crossent.linear_cross_entropy, x, matrix, target, chunk_bytes=4 * 400)
    assert planned.chunk_rows == 4 // arrays and planned.extra_bytes == 4 * 400


def test_numpy():
    planned = crossent.plan(crossent.cross_entropy, LOGITS.numpy(), LABELS.numpy())
    assert planned.path == "kernels"
    planned = crossent.plan(crossent.linear_cross_entropy, np.zeros((3, 4)), np.zeros((5, 4)), np.zeros(3, np.int64))
    assert planned.arithmetic == "float64" and planned.chunks == 1
    assert crossent.plan(crossent.softmax, LOGITS.numpy(), 1).path == "kernels"


def test_errors_are_those_of_the_call():
    with pytest.raises(ValueError, match="wrong shape"):
        crossent.plan(crossent.cross_entropy, LOGITS, LABELS[:3])
    with pytest.raises(ValueError, match="reduction"):
        crossent.plan(crossent.cross_entropy, LOGITS, LABELS, reduction="some")
    with pytest.raises(TypeError, match="function must be one of"):
        crossent.plan(torch.nn.functional.cross_entropy, LOGITS, LABELS)
    with pytest.raises(TypeError, match="missing"):
        crossent.plan(crossent.cross_entropy, LOGITS)
    sums = {"options": Chunks(acc_dtype=torch.float64)}
    for function in (crossent.linear_cross_entropy, lambda *args, **how: crossent.plan(*HEADS[0][:1], *args, **how)):
        with pytest.raises(ValueError, match="options.acc_dtype"):
            function(HIDDEN.bfloat16(), WEIGHT.bfloat16(), TOKENS, **sums)
        assert function(HIDDEN.double(), WEIGHT.double(), TOKENS, **sums)


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize(
    ("shape", "dim", "copied"), [((6, 7), None, False), ((2, 7, 3), None, True), ((2, 3, 7), -1, False)]
)
def test_copies_of_predictions(library, shape, dim, copied):
    logits = np.zeros(shape, np.float32)
    labels = np.zeros(np.delete(shape, 1 if dim is None else dim), np.int64)
    if library == "torch":
        logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
    assert crossent.plan(crossent.prediction_stats, logits, labels, dim=dim).extra_bytes == 168 * copied


def test_probabilities_of_another_dtype_are_not_converted(monkeypatch):
    def refuse(*_):
        raise AssertionError("converted")

    monkeypatch.setattr(dtypes, "in_common_dtype", refuse)
    logits = torch.zeros(4, 5, dtype=torch.bfloat16, requires_grad=True)
    assert crossent.plan(crossent.cross_entropy, logits, torch.zeros(4, 5)).path == "kernels"
