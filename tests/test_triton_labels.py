"""The GPU's kernels of nll_loss and prediction_stats, which Triton's interpreter runs on the CPU."""

import itertools

import numpy as np
import pytest
import torch
from harness import EPS, LAYOUTS, TORCH_DTYPES, check, lay_out, on_triton
from test_contract import NLL_OPTIONS, OPTION_SHAPES, SHAPES, identify, log_probabilities, make
from test_prediction_stats import check as check_statistics, eps_of, example
from test_triton import as_on_a_gpu  # noqa: F401 - a fixture

import crossent

pytest.importorskip("triton")

# nll_loss

SHAPE_CASES = list(itertools.product(SHAPES, LAYOUTS, TORCH_DTYPES))
OPTION_CASES = list(itertools.product(NLL_OPTIONS, OPTION_SHAPES, TORCH_DTYPES))


def case_id(case):
    return "-".join(identify(part) if isinstance(part, tuple) else part for part in case)


# Every 23rd and every 7th case has each value of each parameter: they share no factor with the values' numbers.
@pytest.mark.parametrize("case", SHAPE_CASES[::23], ids=case_id)
def test_nll_loss(case):
    check_shape(case)


@pytest.mark.parametrize("case", OPTION_CASES[::7], ids=case_id)
def test_options_of_nll_loss(case):
    check_options(case)


@pytest.mark.soak
@pytest.mark.parametrize("case", SHAPE_CASES, ids=case_id)
def test_nll_loss_everywhere(case):
    check_shape(case)


@pytest.mark.soak
@pytest.mark.parametrize("case", OPTION_CASES, ids=case_id)
def test_all_options_of_nll_loss(case):
    check_options(case)


def check_shape(case):
    shape, layout, dtype = case
    logits, target, options = make(*shape, ignored=True)
    check("triton", "nll_loss", log_probabilities(logits, shape[1]), target, dtype=dtype, layout=layout, **options)


def check_options(case):
    name, (shape, dim), dtype = case
    logits, target, options = make(shape, dim, **NLL_OPTIONS[name])
    check("triton", "nll_loss", log_probabilities(logits, dim), target, dtype=dtype, **options)


def test_nll_loss_of_many_classes():
    """The gradient takes several tiles."""
    for shape, dim in [((3, 9000), None), ((2, 1100, 3), None)]:
        logits, target, options = make(shape, dim, weighted=True)
        check("triton", "nll_loss", log_probabilities(logits, dim), target, dtype="float32", **options)


def log_p(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).log_softmax(1).requires_grad_()


def test_the_way_of_nll_loss():
    x, y = log_p(5, 7).detach().double().requires_grad_(), torch.tensor([0, 6, 3, -100, 2])
    with on_triton():
        assert type(crossent.nll_loss(x, y).grad_fn).__name__ == "_StagedCrossEntropyBackward"
        assert crossent.plan(crossent.nll_loss, x, y).path == "kernels"
        weight = torch.rand(7, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        assert crossent.plan(crossent.nll_loss, x, y, weight).path == "plain operations"
        assert torch.autograd.gradcheck(lambda x: crossent.nll_loss(x, y, reduction="none"), x)
        assert torch.autograd.gradgradcheck(lambda x: crossent.nll_loss(x, y), x)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("bad", [9, -1, 2**40])
@pytest.mark.parametrize("shape", [(4, 9), (2, 9, 3)])
def test_bad_labels_of_nll_loss_are_told_later(shape, bad):
    """Nothing is read with them: the loss is nan, the row's gradient 0, the others' what it is without the row."""
    x, y = log_p(*shape), torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    y.view(-1)[1] = bad
    with on_triton():
        loss = crossent.nll_loss(x, y)
        assert loss.isnan()
        with pytest.raises(IndexError, match=rf"Target {bad} at position .*1\b.* is out of bounds"):
            loss.backward()
        loss.backward()  # it was told once
        gradient, x.grad = x.grad, None
        y.view(-1)[1] = -100
        crossent.nll_loss(x, y).backward()
    assert torch.equal(gradient, x.grad) and x.grad.count_nonzero()


def test_what_does_not_count_is_not_read():
    """Neither other entries, nor those of ignored rows, nor upstream gradients of these, are multiplied by 0."""
    x = torch.full((3, 5), torch.nan)
    x[0, 2], x[2, 4] = -1.0, -3.0
    x.requires_grad_()
    with on_triton():
        losses = crossent.nll_loss(x, torch.tensor([2, -100, 4]), reduction="none")
        losses.backward(torch.tensor([1.0, torch.nan, 2.0]))
    assert losses.tolist() == [1.0, 0.0, 3.0]
    expected = torch.zeros(3, 5)
    expected[0, 2], expected[2, 4] = -1.0, -2.0
    assert torch.equal(x.grad, expected)


# prediction_stats


def statistics(logits, labels, dtype, layout="contiguous", on=on_triton, **keywords):
    x = lay_out(torch.as_tensor(logits).to(TORCH_DTYPES[dtype]), layout, keywords.get("dim")).requires_grad_()
    with on():
        plan = crossent.plan(crossent.prediction_stats, x, torch.as_tensor(labels), **keywords)
        stats = crossent.prediction_stats(x, torch.as_tensor(labels), **keywords)
    assert plan.path == "kernels" and plan.extra_bytes == 0
    assert not any(value.requires_grad for value in stats)
    stats = crossent.PredictionStats(*(value.numpy() for value in stats))
    floats = np.float64 if dtype == "float64" else np.float32
    assert [value.dtype for value in stats] == [floats, np.int64, np.int64, floats, floats]
    assert all(value.shape == labels.shape for value in stats)
    return stats


def in_a_loop():
    """Rows of more than 256 classes take tiles of 64."""
    return on_triton(predictions_at_once=64)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 17, 70, 1025])
def test_statistics(dtype, classes):
    logits, labels = example(30 if classes < 1000 else 5, classes, dtype)
    check_statistics(statistics(logits, labels, dtype), logits, labels, eps_of(dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["contiguous", "reversed"])
def test_statistics_in_a_loop(dtype, layout):
    """The label and the largest logit in every part of the row, the classes side by side and across memory."""
    logits, labels = example(6, 330, dtype)
    labels[:6] = 0, 63, 64, 100, 320, 329
    logits[np.arange(6), [329, 63, 320, 0, 64, 5]] = 50
    check_statistics(statistics(logits, labels, dtype, layout, in_a_loop), logits, labels, eps_of(dtype))


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if not layout.startswith("expanded")])
@pytest.mark.parametrize("dim", [None, 0, -1])
def test_layouts_of_statistics(layout, dim):
    shape, axis = (4, 5, 3), 1 if dim is None else dim % 3
    logits = np.random.default_rng(0).standard_normal(shape).astype(np.float32).astype(np.float64)
    rows = np.moveaxis(logits, axis, -1)
    labels = np.random.default_rng(1).integers(shape[axis], size=rows.shape[:-1])
    stats = statistics(logits, labels, "float32", layout, dim=dim)
    flat = crossent.PredictionStats(*(value.reshape(-1) for value in stats))
    check_statistics(flat, rows.reshape(-1, shape[axis]), labels.reshape(-1), EPS["float32"])


@pytest.mark.parametrize("on", [on_triton, in_a_loop])
@pytest.mark.parametrize("classes", [3, 70, 300])
def test_many_ties(on, classes):
    """Ranks by a stable sort; the first of equal logits is the prediction."""
    generator = np.random.default_rng(classes)
    labels = generator.permutation(np.arange(20) * (classes - 1) // 19)
    logits = generator.integers(-2, 3, size=(20, classes)).astype(np.float64)
    logits[3], logits[4] = -0.0, -np.inf
    logits[5, ::2], logits[6, labels[6]] = -np.inf, -np.inf
    stats = statistics(logits, labels, "float32", on=on)
    order = np.lexsort((np.broadcast_to(np.arange(classes), logits.shape), -logits), axis=1)
    np.testing.assert_array_equal(stats.rank, (order == labels[:, None]).argmax(1))
    np.testing.assert_array_equal(stats.prediction, order[:, 0])


@pytest.mark.parametrize("on", [on_triton, in_a_loop])
def test_confident_rows_and_large_logits_late_in_the_row(on):
    logits = np.zeros((4, 300))
    logits[:3, 20] = [30, 60, 80]
    logits[3, 290:] = 1e4 + np.arange(10)
    labels = np.array([20, 20, 20, 295])
    check_statistics(statistics(logits, labels, "float32", on=on), logits, labels, EPS["float32"])


@pytest.mark.parametrize("on", [on_triton, in_a_loop])
def test_infinities_nan_and_ignored_rows(on):
    logits, labels = np.zeros((6, 300)), np.full(6, 3)
    logits[0, 3] = -np.inf  # the label cannot be
    logits[1, 4] = -np.inf  # another cannot be
    logits[2, 170], logits[3, 3], logits[4], logits[5] = np.nan, np.inf, -np.inf, np.nan
    labels[5] = -7
    stats = statistics(logits, labels, "float32", on=on, ignore_index=-7)
    assert stats.logprob[0] == -np.inf and stats.rank[0] == 299
    np.testing.assert_allclose(stats.brier[0], 1 + 1 / 299, 1e-6)
    np.testing.assert_allclose(stats.logprob[1], -np.log(299), 1e-6)
    for values in (stats.logprob, stats.confidence, stats.brier):
        assert np.isnan(values[2:5]).all()
    assert [value[5] for value in stats] == [0, -1, -1, 0, 0]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_bad_labels_of_statistics(monkeypatch):
    """They are told at once where the host may wait, as it may outside of training, and else by the next call."""
    logits, labels = example(300, 9, "float32")
    x, y = torch.as_tensor(logits).float(), torch.as_tensor(labels)
    y[[70, 299]], y[3] = torch.tensor([9, 2**40]), -100
    with on_triton():
        with pytest.raises(IndexError, match="Target 9 at position 70 is out of bounds"):
            crossent.prediction_stats(x, y)
        monkeypatch.setenv("CROSSENT_CHECK_LABELS", "later")
        stats = crossent.prediction_stats(x, y)
        good = [row for row in range(300) if row not in (70, 299)]
        assert stats.rank[[70, 299]].tolist() == [-1, -1] and all(one[[70, 299]].isnan().all() for one in stats[::3])
        y = torch.where(y >= 9, 0, y)
        with pytest.raises(IndexError, match="Target 9 at position 70 is out of bounds"):
            crossent.prediction_stats(x, y)
        for ours, alone in zip(stats, crossent.prediction_stats(x, y), strict=True):
            assert torch.equal(ours[good], alone[good])


def test_no_classes_and_no_rows():
    with on_triton():
        assert all(len(value) == 0 for value in crossent.prediction_stats(torch.zeros(0, 3), torch.zeros(0).long()))
        stats = crossent.prediction_stats(torch.zeros(2, 0), torch.full((2,), -100))
        assert [value.tolist() for value in stats] == [[0, 0], [-1, -1], [-1, -1], [0, 0], [0, 0]]
        with pytest.raises(IndexError, match="Target 0 at position 0"):
            crossent.prediction_stats(torch.zeros(2, 0), torch.zeros(2).long())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_nll_loss(reduction):
    x, y, results = log_p(7, 30), torch.tensor([0, 3, -100, 2, 29, 1, 1]), []
    function = torch.compile(crossent.nll_loss, backend="aot_eager", fullgraph=True)
    for call in (function, crossent.nll_loss):
        with on_triton():
            out = call(x, y, reduction=reduction)
            results.append((out, *torch.autograd.grad(out.sum(), x)))
    for ours, eager in zip(*results):
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("on", [on_triton, in_a_loop])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_class_of_weight_zero(on, name):
    """It takes away a label's logit of -inf, but not nan: that is PyTorch's loss."""
    logits, labels, weight = torch.zeros(4, 300), torch.tensor([3, 3, 3, 5]), torch.ones(300)
    weight[3], logits[0, 3], logits[1, 3], logits[2, 3] = 0, -torch.inf, torch.nan, torch.inf
    with on():
        losses = getattr(crossent, name)(logits.requires_grad_(), labels, weight, reduction="none")
        losses.sum().backward()
    exact = getattr(torch.nn.functional, name)(logits.detach(), labels, weight, reduction="none")
    assert losses[0] == 0 and (logits.grad[0] == 0).all()
    torch.testing.assert_close(losses[1:], exact[1:], equal_nan=True)
