"""What must be true of any implementation: pairs of calls that mean the same, extreme values, and the same bits."""

import contextlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import FRONTENDS, TORCH_DTYPES, bits, check, composite, expected, run, waiting_gradient

import crossent

INF, NAN = math.inf, math.nan


def numbers(*shape, seed=0, scale=3.0):
    return scale * np.random.default_rng(seed).normal(size=shape)


def labels_of(*shape, classes, seed=1):
    return np.random.default_rng(seed).integers(0, classes, shape)


def call(frontend, name, logits, *args, dtype="float64", **kwargs):
    """Value and gradient as float64 NumPy."""
    return run(frontend, name, logits, *args, dtype=dtype, **kwargs)


def same(one, other, rtol=1e-12):
    for a, b in zip(one, other, strict=True):
        if a is not None and b is not None:
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


# The worked example


def test_worked_example():
    """2.1275 five ways."""
    torch.manual_seed(42)
    logits, labels = torch.randn(3, 4), torch.tensor([1, 0, 2])
    log_probabilities = crossent.log_softmax(logits, dim=1)
    five = [
        -torch.log(crossent.softmax(logits, dim=1))[torch.arange(3), labels].mean(),
        -log_probabilities[torch.arange(3), labels].sum() / 3,
        crossent.nll_loss(log_probabilities, labels, reduction="sum") / 3,
        crossent.nll_loss(log_probabilities, labels),
        crossent.cross_entropy(logits, labels),
    ]
    assert [f"{value:.4f}" for value in five] == ["2.1275"] * 5
    assert f"{crossent.cross_entropy(logits, labels, reduction='sum') / 3:.4f}" == "2.1275"
    assert f"{crossent.cross_entropy(logits.numpy(), labels.numpy()):.4f}" == "2.1275"


# Pairs


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ignored_is_removed(frontend, name, reduction):
    logits, labels = numbers(12, 7), labels_of(12, classes=7)
    kept = np.arange(12) % 3 != 1
    weight = np.linspace(0.5, 2, 7)
    short = call(frontend, name, logits[kept], labels[kept], weight, reduction=reduction)
    ignored = call(frontend, name, logits, np.where(kept, labels, -100), weight, reduction=reduction)
    options = {"sample_weight": kept.astype(float), "reduction": reduction}
    weightless = call(frontend, name, logits, labels, weight, **options)
    for long in (ignored, weightless):
        same((long[0], long[1][kept]), short)
        assert (long[1][~kept] == 0).all()


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_is_one_hot(frontend, reduction, smoothing):
    logits, labels = numbers(6, 7, 4), labels_of(6, 4, classes=7)
    one_hot = np.moveaxis(np.eye(7)[labels], -1, 1)
    options = {"reduction": reduction, "label_smoothing": smoothing, "z_loss": 0.1, "softcap": 5.0}
    same(*[call(frontend, "cross_entropy", logits, target, **options) for target in (labels, one_hot)])


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("soft", [False, True])
def test_smoothing_is_smoothed_probabilities(frontend, soft):
    logits, labels = numbers(12, 7), labels_of(12, classes=7)
    probabilities = np.exp(numbers(12, 7, seed=5)) if soft else np.eye(7)[labels]
    target = probabilities if soft else labels
    smoothed = 0.8 * probabilities + 0.2 / 7
    weight = np.linspace(0.5, 2, 7)
    for reduction in ["sum", "none"]:
        one = call(frontend, "cross_entropy", logits, target, weight, label_smoothing=0.2, reduction=reduction)
        same(one, call(frontend, "cross_entropy", logits, smoothed, weight, reduction=reduction))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_micro_batches_are_the_full_batch(frontend, name):
    logits, labels = numbers(12, 7), labels_of(12, classes=7)
    labels[[0, 1, 2, 3, 7]] = -100
    weight, sample_weight = np.linspace(0.5, 2, 7), np.linspace(0, 3, 12)
    total = float((np.where(labels >= 0, weight[labels % 7], 0) * sample_weight).sum())
    full = call(frontend, name, logits, labels, weight, sample_weight=sample_weight)
    options = [{"sample_weight": sample_weight[i : i + 4], "denominator": total} for i in (0, 4, 8)]
    parts = [call(frontend, name, logits[i : i + 4], labels[i : i + 4], weight, **options[i // 4]) for i in (0, 4, 8)]
    same((sum(p[0] for p in parts), np.concatenate([p[1] for p in parts])), full)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_cross_entropy_is_nll_of_log_softmax(frontend):
    logits, labels = numbers(6, 7, 4), labels_of(6, 4, classes=7)
    labels[0] = -100
    weight = np.linspace(0.5, 2, 7)
    log_probabilities = call(frontend, "log_softmax", logits, 1)[0]
    for reduction in ["none", "mean", "sum"]:
        one = call(frontend, "cross_entropy", logits, labels, weight, reduction=reduction)[0]
        other = call(frontend, "nll_loss", log_probabilities, labels, weight, reduction=reduction)[0]
        same((one,), (other,))
    same((call(frontend, "softmax", logits, 1)[0],), (np.exp(log_probabilities),))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_class_axis_is_a_transpose(frontend, name):
    logits, labels = numbers(3, 4, 7), labels_of(3, 4, classes=7)
    sample_weight = np.linspace(0.5, 2, 12).reshape(3, 4)
    for reduction in ["none", "mean"]:
        options = {"reduction": reduction, "sample_weight": sample_weight}
        value, gradient = call(frontend, name, logits, labels, dim=-1, **options)
        other = call(frontend, name, np.moveaxis(logits, -1, 1), labels, **options)
        same((value, None if gradient is None else np.moveaxis(gradient, -1, 1)), other)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_classes_and_rows_may_be_permuted(frontend):
    logits, labels, weight = numbers(12, 33), labels_of(12, classes=33), np.linspace(0.5, 2, 33)
    classes, rows = np.random.default_rng(2).permutation(33), np.random.default_rng(3).permutation(12)
    inverse = np.argsort(classes)
    options = {"label_smoothing": 0.1, "softcap": 4.0, "z_loss": 0.01}
    value, gradient = call(frontend, "cross_entropy", logits, labels, weight, **options)
    permuted = call(frontend, "cross_entropy", logits[:, classes], inverse[labels], weight[classes], **options)
    same(permuted, (value, gradient[:, classes]))
    same(call(frontend, "cross_entropy", logits[rows], labels[rows], weight, **options), (value, gradient[rows]))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("kind", ["labels", "smoothed", "soft"])
def test_a_multiple_of_all_class_weights_leaves_the_balance(frontend, kind):
    """Between z-loss and the rest: the loss is the multiple too, and the mean over labels the same."""
    logits, labels, weight = numbers(8, 5), labels_of(8, classes=5), np.linspace(0.5, 2, 5)
    target = np.random.default_rng(2).dirichlet(np.ones(5), 8) if kind == "soft" else labels
    options = {"z_loss": 0.3, "label_smoothing": 0.2 if kind == "smoothed" else 0.0}
    for reduction in ("none", "sum", "mean"):
        one, four = (
            call(frontend, "cross_entropy", logits, target, factor * weight, reduction=reduction, **options)
            for factor in (1, 4)
        )
        factor = 1 if reduction == "mean" and kind != "soft" else 4
        same(four, [None if part is None else factor * part for part in one])


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_z_loss_counts_what_the_label_weighs(frontend):
    """By the formula; and how it comes to count all rows alike, as other libraries have it."""
    logits, labels, weight = numbers(8, 5), labels_of(8, classes=5), np.linspace(0.5, 2, 5)
    lse = np.log(np.exp(logits).sum(1))
    w, nll = weight[labels], lse - logits[np.arange(8), labels]
    weighted = call(frontend, "cross_entropy", logits, labels, weight, z_loss=0.3)[0]
    np.testing.assert_allclose(weighted, (w * (nll + 0.3 * lse**2)).sum() / w.sum(), rtol=1e-12)
    alike = [call(frontend, "cross_entropy", logits, labels, z_loss=z_loss)[0] for z_loss in (0.3, 0.0)]
    plain = call(frontend, "cross_entropy", logits, labels, weight)[0]
    expected_loss = (w * nll).sum() / w.sum() + 0.3 * (lse**2).mean()
    np.testing.assert_allclose(plain + alike[0] - alike[1], expected_loss, rtol=1e-12)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_weights_scale(frontend):
    """Sample weights c times as large change no mean and multiply a sum; a weight of 2 is the row twice."""
    logits, labels = numbers(6, 7), labels_of(6, classes=7)
    sample_weight = np.array([1.0, 2, 1, 0, 2, 1])
    twice = np.repeat(np.arange(6), sample_weight.astype(int))
    for name in ["cross_entropy", "nll_loss"]:
        for reduction in ["mean", "sum"]:
            options = {"sample_weight": sample_weight, "reduction": reduction}
            one = call(frontend, name, logits, labels, **options)[0]
            other = call(frontend, name, logits[twice], labels[twice], reduction=reduction)[0]
            five = call(frontend, name, logits, labels, reduction=reduction, sample_weight=5 * sample_weight)[0]
            same((one, five), (other, one if reduction == "mean" else 5 * one))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [1e6, -1e6, 2.0**20])
def test_common_offset(frontend, dtype, offset):
    """Costs nothing that the inputs have not lost: the same inputs less the offset give the same."""
    logits = (numbers(40, 50) + offset).astype(dtype).astype(np.float64)
    labels = labels_of(40, classes=50)
    tolerance = {"float32": 2e-6, "float64": 1e-13}[dtype]
    shifted = (logits - offset).astype(dtype)
    for name, args in [("cross_entropy", (labels,)), ("softmax", (1,)), ("log_softmax", (1,))]:
        far = call(frontend, name, logits, *args, dtype=dtype)
        near = call(frontend, name, shifted, *args, dtype=dtype)
        for one, other in zip(far, near, strict=True):
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_gradient_of_a_row_sums_to_zero(frontend):
    logits, labels = numbers(40, 50), labels_of(40, classes=50)
    for options in [{}, {"label_smoothing": 0.1}, {"ignore_index": 3}]:
        gradient = call(frontend, "cross_entropy", logits, labels, **options)[1]
        assert abs(gradient.sum(1)).max() < 1e-15


# Extreme values


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [2, 10, 40, 1000])
@pytest.mark.parametrize("gap", [20.0, 40.0, 80.0])
def test_confident_rows_keep_their_digits(frontend, dtype, classes, gap):
    """Loss and gradient to 1e-5 relative (in float64 to 1e-13) where the other classes are far below the label."""
    logits = numbers(5, classes, scale=1.0)
    labels = np.array([0, classes - 1, classes // 2, 1, 0])
    logits[np.arange(5), labels] = logits.max(1) + gap
    logits = logits.astype(dtype).astype(np.float64)
    tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype]
    for options in [{}, {"reduction": "sum"}, {"ignore_index": 0}, {"weight": np.linspace(0.5, 2, classes)}]:
        exact = expected("cross_entropy", logits, labels, **options)
        value, gradient = call(frontend, "cross_entropy", logits, labels, dtype=dtype, **options)
        assert abs(value / exact[0] - 1) < tolerance
        kept = labels != options.get("ignore_index")
        assert (abs(gradient[kept] / exact[1][kept] - 1) < tolerance).all() and (gradient[~kept] == 0).all()


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_confident_pixels_keep_their_digits(frontend):
    logits = numbers(2, 5, 6, 7, scale=1.0)
    labels = labels_of(2, 6, 7, classes=5)
    np.put_along_axis(logits, labels[:, None], 80.0, 1)
    logits = logits.astype(np.float32).astype(np.float64)
    exact = expected("cross_entropy", logits, labels)
    value, gradient = call(frontend, "cross_entropy", logits, labels, dtype="float32")
    assert abs(value / exact[0] - 1) < 1e-5
    assert (abs(gradient / exact[1] - 1) < 1e-5).all()


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("extra", [0, 30, 90])
def test_values_that_are_not_finite(frontend, dtype, extra):
    """As in PyTorch: all -inf, +inf and nan give nan; -inf is a class of probability 0; at the label it is inf."""
    rows = np.array(
        [
            [-INF, -INF, -INF, -INF],
            [0, INF, 1, 2],
            [0, 1, INF, INF],
            [0, NAN, 1, 2],
            [NAN, NAN, NAN, NAN],
            [0, -INF, 1, 2],
            [-INF, 0, -INF, -INF],
            [INF, -INF, 0, 0],
            [0, 1, -INF, 2],
        ]
    )
    labels = np.array([0, 1, 0, 0, 1, 0, 1, 0, 2])
    if extra:
        rows = np.concatenate([rows, np.full((len(rows), extra), -INF)], 1)
    x = torch.tensor(rows).requires_grad_()
    for reduction in ["none", "mean", "sum"]:
        theirs = F.cross_entropy(x, torch.tensor(labels), reduction=reduction)
        value, _ = call(frontend, "cross_entropy", rows, labels, dtype=dtype, reduction=reduction)
        np.testing.assert_allclose(value, theirs.detach().numpy(), rtol=2e-3 if dtype == "float16" else 1e-6)
    for row in range(len(rows)):
        one = x[row].detach().requires_grad_()
        theirs = F.cross_entropy(one, torch.tensor(labels)[row])
        (their_gradient,) = torch.autograd.grad(theirs, one)
        value, gradient = call(frontend, "cross_entropy", rows[row], np.array(labels[row]), dtype=dtype)
        np.testing.assert_allclose(value, theirs.item(), rtol=2e-3 if dtype == "float16" else 1e-6)
        if np.isfinite(value) or value == INF:
            np.testing.assert_allclose(gradient, their_gradient.numpy(), rtol=2e-3, atol=1e-6)
        else:
            assert np.isnan(gradient).any()
    for name in ["softmax", "log_softmax"]:
        theirs = getattr(F, name)(x, 1).detach().numpy()
        value, _ = call(frontend, name, rows, 1, dtype=dtype)
        np.testing.assert_allclose(value, theirs, rtol=2e-3 if dtype == "float16" else 1e-6)


# What float16 nan becomes as PyTorch widens it, what 0xff fills memory with, and a bit anywhere in the mantissa.
NANS = {"float32": [0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00001, 0x7F800080, 0xFFC00200]}
NANS["float64"] = [2**63 - 1, 2**64 - 1, 0x7FF8000000000001, 0x7FF0000000000800, 0xFFF8000000001000]


@pytest.mark.parametrize("dtype", NANS)
@pytest.mark.parametrize("classes", [3, 100])
@pytest.mark.parametrize("across", [False, True], ids=["along", "across"])
def test_nan_of_any_bits_is_nan(dtype, classes, across):
    logits = torch.zeros(len(NANS[dtype]), classes, dtype=TORCH_DTYPES[dtype])
    bits(logits)[:, 1] = torch.from_numpy(
        np.array(NANS[dtype], f"uint{8 * logits.itemsize}").view(f"int{8 * logits.itemsize}")
    )
    logits = logits.t().contiguous().t() if across else logits
    logits.requires_grad_()
    for function in (crossent.softmax, crossent.log_softmax):
        out = function(logits, 1)
        assert out.isnan().all() and torch.autograd.grad(out, logits, torch.ones_like(out))[0].isnan().all()
    for label in (0, 1):
        labels = torch.full((len(logits),), label)
        for options in ({}, {"softcap": 30.0}, {"label_smoothing": 0.1}):
            losses = crossent.cross_entropy(logits, labels, reduction="none", **options)
            assert losses.isnan().all() and torch.autograd.grad(losses.sum(), logits)[0].isnan().all()
        stats = crossent.prediction_stats(logits, labels)
        assert all(stat.isnan().all() for stat in (stats.logprob, stats.confidence, stats.brier))
        head = torch.eye(classes, dtype=logits.dtype)
        tokens = crossent.linear_token_stats(logits, head, labels)
        assert all(stat.isnan().all() for stat in (tokens.logprob, tokens.lse, tokens.entropy))
        assert crossent.linear_cross_entropy(logits, head, labels, reduction="none").isnan().all()


@pytest.mark.parametrize("classes", [3, 100])
@pytest.mark.parametrize("across", [False, True], ids=["along", "across"])
@pytest.mark.parametrize("kind", ["labels", "smoothed", "soft", "capped"])
def test_an_upstream_gradient_of_zero_does_not_hide_nan(classes, across, kind):
    """Nor does a denominator of infinity: 0 times nan is nan, as in PyTorch. Unlike there ignored rows get 0."""
    logits, labels = torch.from_numpy(numbers(4, classes)), torch.tensor([0, 1, -100, 2])
    logits[0], logits[2] = NAN, NAN
    logits = logits.t().contiguous().t() if across else logits
    logits.requires_grad_()
    options = {"smoothed": {"label_smoothing": 0.1}, "capped": {"softcap": 30.0}}.get(kind, {})
    target = torch.full(logits.shape, 1.0 / classes, dtype=logits.dtype) if kind == "soft" else labels
    theirs = F.cross_entropy(logits, target, reduction="none", label_smoothing=options.get("label_smoothing", 0.0))
    (theirs,) = torch.autograd.grad(theirs, logits, torch.zeros(4, dtype=logits.dtype))
    theirs[2] = theirs[2] if kind == "soft" else 0.0
    losses = crossent.cross_entropy(logits, target, reduction="none", **options)
    (ours,) = torch.autograd.grad(losses, logits, torch.zeros_like(losses))
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=0, atol=0)
    mean = crossent.cross_entropy(logits, target, denominator=INF, **options)
    torch.testing.assert_close(torch.autograd.grad(mean, logits)[0], theirs, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("classes", [3, 100])
def test_weights_of_classes_that_are_no_label_do_not_count(frontend, classes):
    """Whatever they are, with a softcap too."""
    logits, labels, weight = numbers(4, classes), np.array([0, 1, 1, 0]), np.ones(classes)
    exact = call(frontend, "cross_entropy", logits, labels, softcap=30.0)
    for weight[2] in (0.0, NAN, INF):
        same(call(frontend, "cross_entropy", logits, labels, weight, softcap=30.0), exact)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(8, 5), (8, 50), (8, 100), (2, 5, 4), (2, 50, 4)], ids=str)
def test_ignored_rows_are_exactly_zero(frontend, dtype, shape):
    """Whatever stands in their logits, and the others are not touched by it."""
    clean, labels = numbers(*shape), labels_of(*shape[:1], *shape[2:], classes=shape[1])
    removed = np.arange(labels.size).reshape(labels.shape) % 2 == 1
    for poison in [NAN, INF, -INF, 6e4]:
        logits = np.where(np.expand_dims(removed, 1), poison, clean)
        for options in [
            {},
            {"label_smoothing": 0.1},
            {"z_loss": 0.1},
            {"softcap": 3.0},
            {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0, "weight": np.linspace(1, 2, shape[1])},
        ]:
            for way in ["ignore_index", "sample_weight"]:
                for reduction in ["mean", "sum"]:
                    keywords, target = dict(options, reduction=reduction), labels
                    if way == "ignore_index":
                        target = np.where(removed, -100, labels)
                    else:
                        keywords["sample_weight"] = (~removed).astype(np.float32)
                    value, gradient = call(frontend, "cross_entropy", logits, target, dtype=dtype, **keywords)
                    pure = call(frontend, "cross_entropy", clean, target, dtype=dtype, **keywords)
                    assert np.isfinite(value) and value == pure[0], (poison, way, keywords)
                    assert (np.moveaxis(gradient, 1, -1)[removed] == 0).all(), (poison, way, keywords)
                    assert (gradient == pure[1]).all(), (poison, way, keywords)
        for reduction in ["mean", "none"]:
            target = np.where(removed, -100, labels)
            value, gradient = call(frontend, "nll_loss", logits, target, dtype=dtype, reduction=reduction)
            assert np.isfinite(value).all()
            assert gradient is None or (np.moveaxis(gradient, 1, -1)[removed] == 0).all()


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_soft_rows_of_weight_zero_are_exactly_zero(frontend):
    clean, target = numbers(6, 5), np.exp(numbers(6, 5, seed=3, scale=1.0))
    sample_weight = np.array([1.0, 0, 2, 0, 1, 1])
    for poison in [NAN, INF, -INF]:
        logits = np.where(sample_weight[:, None] == 0, poison, clean)
        for options in [{}, {"label_smoothing": 0.1, "z_loss": 0.1}]:
            keywords = {"sample_weight": sample_weight, **options}
            value, gradient = call(frontend, "cross_entropy", logits, target, **keywords)
            pure = call(frontend, "cross_entropy", clean, target, **keywords)
            assert value == pure[0] and (gradient == pure[1]).all()


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_class_of_weight_zero(frontend):
    """A row whose label has class weight 0 contributes nothing, even where the label's logit is -inf."""
    for poison in [0.0, 50.0, -INF]:
        logits, labels, weight = numbers(4, 5), np.array([0, 3, 1, 2]), np.array([1.0, 2, 1, 0, 1])
        logits[1, 3] = poison
        value, gradient = call(frontend, "cross_entropy", logits, labels, weight)
        keep = [0, 2, 3]
        same((value, gradient[keep]), call(frontend, "cross_entropy", logits[keep], labels[keep], weight))
        assert (gradient[1] == 0).all()


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("row", [[NAN, 0, 0], [0, 0, NAN], [INF, 0, 0], [0, 0, INF], [-INF] * 3])
def test_class_of_weight_zero_in_a_row_that_is_lost(frontend, row):
    """As in PyTorch the loss and the gradient are nan, and so are a loss of what log_softmax makes of the row."""
    logits, labels, weight = np.array([row, [0.5, 1, 2]]), np.array([0, 1]), np.array([0.0, 1, 1])
    for options in [{}, {"label_smoothing": 0.1}]:
        losses, _ = call(frontend, "cross_entropy", logits, labels, weight, reduction="none", **options)
        assert np.isnan(losses[0]) and np.isfinite(losses[1])
        _, gradient = call(frontend, "cross_entropy", logits, labels, weight, reduction="sum", **options)
        assert np.isnan(gradient[0]).all() and np.isfinite(gradient[1]).all()
    log_p = call(frontend, "log_softmax", logits, 1)[0]
    assert np.isnan(call(frontend, "nll_loss", log_p, labels, weight, reduction="none")[0][0])


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "linear_cross_entropy"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_derivative_by_a_class_weight_of_zero(name, reduction):
    """It is what the loss gains per weight, as in PyTorch where that defines it."""
    logits, labels = torch.from_numpy(numbers(4, 3)), torch.tensor([0, 1, 0, 2])
    head = (torch.eye(3, dtype=torch.float64),) if name == "linear_cross_entropy" else ()
    for smoothing in [0.0, 0.1] if name != "nll_loss" else [None]:
        options = {"reduction": reduction} | ({} if smoothing is None else {"label_smoothing": smoothing})

        def loss(weight, options=options):
            return getattr(crossent, name)(logits, *head, labels, weight=weight, **options)

        weight = torch.tensor([0.0, 1, 2], dtype=torch.float64, requires_grad=True)
        loss(weight).backward()
        steps = 1e-6 * torch.eye(3, dtype=torch.float64)
        exact = [(loss(weight.detach() + step) - loss(weight.detach() - step)) / 2e-6 for step in steps]
        torch.testing.assert_close(weight.grad, torch.stack(exact), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("classes", [4, 40, 100])
def test_probability_zero_at_minus_infinity(frontend, classes):
    logits = numbers(6, classes)
    target = np.exp(numbers(6, classes, seed=3, scale=1.0))
    masked = np.arange(classes) % 3 == 1
    logits[:, masked], target[:, masked] = -INF, 0
    value, gradient = call(frontend, "cross_entropy", logits, target)
    short = call(frontend, "cross_entropy", logits[:, ~masked], target[:, ~masked])
    same((value, gradient[:, ~masked]), short)
    assert (gradient[:, masked] == 0).all()
    target[2, 1] = 0.5
    assert call(frontend, "cross_entropy", logits, target)[0] == INF


@pytest.mark.parametrize("mode", [contextlib.nullcontext, composite], ids=["kernels", "composite"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_derivative_by_a_probability_of_zero_at_minus_infinity(mode, smoothing):
    """It is infinite, as in PyTorch, in every way that the call can take; second derivatives are still numbers."""
    logits = torch.tensor([[-INF, 1.0, 2.0], [0.5, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.0, 0.4, 0.6], [0.0, 0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    weight, head = torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    options = {"weight": weight, "label_smoothing": smoothing, "reduction": "sum"}
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits, target, **options), target)
    with mode():
        ours = torch.autograd.grad(crossent.cross_entropy(logits, target, **options), (logits, target))
        bias = torch.tensor([-INF, 0.0, 0.0], dtype=torch.float64)
        hidden = logits.detach().nan_to_num(neginf=0.0)
        loss = crossent.linear_cross_entropy(hidden, head, target, linear_bias=bias, **options)
        (of_head,) = torch.autograd.grad(loss, target)
    torch.testing.assert_close(ours[1], theirs)
    assert (of_head[:, 0] == INF).all() and torch.isfinite(of_head[:, 1:]).all() and torch.isfinite(ours[0]).all()
    (dx,) = torch.autograd.grad(crossent.cross_entropy(logits, target, **options), logits, create_graph=True)
    assert all(torch.isfinite(second).all() for second in torch.autograd.grad(dx.square().sum(), (logits, target)))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_class_weight_zero_at_minus_infinity(frontend):
    """Class weight 0 makes q 0 too: also where label smoothing reaches the class."""
    logits, labels = numbers(6, 5), np.array([0, 2, 3, 4, 0, 2])
    logits[:, 1] = -INF
    weight = np.array([1.0, 0, 2, 1, 1])
    value, _ = call(frontend, "cross_entropy", logits, labels, weight, label_smoothing=0.1)
    exact = expected("cross_entropy", logits, labels, weight, label_smoothing=0.1)[0]
    assert np.isfinite(exact) and abs(value - exact) < 1e-12


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("classes", [4, 40, 100])
def test_smoothing_with_minus_infinity_is_infinite(frontend, classes):
    logits, labels = numbers(6, classes), labels_of(6, classes=classes)
    logits[2, (labels[2] + 1) % classes] = -INF
    for reduction in ["mean", "sum", "none"]:
        options = {"label_smoothing": 0.1, "reduction": reduction}
        value, _ = call(frontend, "cross_entropy", logits, labels, **options)
        exact = expected("cross_entropy", logits, labels, **options)[0].astype(float)
        np.testing.assert_allclose(value, exact, rtol=1e-12)
        assert np.isinf(np.ravel(value)[2 % np.size(value)])


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_largest_and_smallest_numbers(frontend, dtype):
    top = float(np.finfo(dtype).max)
    tiny = float(np.finfo(dtype).smallest_subnormal)
    logits = np.array([[top, -top, 0, 1], [top, top, 0, 1], [tiny, -tiny, 0, tiny], [-top, -top, -top, -top]])
    labels = np.array([0, 1, 2, 3])
    exact = expected("cross_entropy", logits, labels, reduction="none", upstream=np.ones(4))
    value, _ = call(frontend, "cross_entropy", logits, labels, dtype=dtype, reduction="none")
    np.testing.assert_allclose(value, exact[0].astype(float), rtol=1e-3 if dtype == "float16" else 1e-6)
    for row in range(4):
        gradient = call(frontend, "cross_entropy", logits[row], np.array(labels[row]), dtype=dtype)[1]
        np.testing.assert_allclose(gradient, exact[1][row].astype(float), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_softcap_tames_infinity(frontend):
    """tanh(inf) is 1: a capped logit is finite, and moves no more."""
    logits, labels = np.array([[INF, 0, -INF, 1]]), np.array([0])
    value, gradient = call(frontend, "cross_entropy", logits, labels, softcap=5.0)
    exact = expected("cross_entropy", logits, labels, softcap=5.0)
    assert abs(value - exact[0]) < 1e-13
    np.testing.assert_allclose(gradient, exact[1].astype(float), atol=1e-14)


# Sizes


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_mean_over_many_rows(frontend, dtype):
    """A sum of 70,000 losses of about 2 does not fit float16, and bfloat16 would stop counting at 256."""
    if frontend == "numpy" and dtype == "bfloat16":
        pytest.skip("NumPy has no bfloat16")
    logits, labels = numbers(70_000, 10), labels_of(70_000, classes=10)
    check(frontend, "cross_entropy", logits, labels, dtype=dtype)
    logits = -np.abs(logits)
    check(frontend, "nll_loss", logits, labels, dtype=dtype)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (4, 5, 0), (0, 5, 0, 3)], ids=str)
def test_empty_batches(frontend, name, shape):
    logits, labels = np.zeros(shape), np.zeros(shape[:1] + shape[2:], np.int64)
    value, gradient = call(frontend, name, logits, labels)
    assert np.isnan(value) and gradient.shape == shape
    value, gradient = call(frontend, name, logits, labels, reduction="sum")
    assert value == 0 and gradient.shape == shape
    value, _ = call(frontend, name, logits, labels, reduction="none")
    assert value.shape == labels.shape
    value, _ = call(frontend, name, logits, labels, denominator=4.0)
    assert value == 0
    if name == "cross_entropy":
        assert np.isnan(call(frontend, name, logits, np.zeros(shape))[0])
        assert np.isnan(call(frontend, name, logits, labels, label_smoothing=0.1, z_loss=0.1, softcap=2.0)[0])


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_zero_total_weight(frontend, name):
    """0 / 0 as in PyTorch, no gradient for what is ignored, and the denominator gives a defined answer."""
    logits = numbers(4, 5)
    ignored, labels = np.full(4, -100), np.array([0, 1, 2, 3])
    for target, options in [(ignored, {}), (labels, {"sample_weight": np.zeros(4)})]:
        value, gradient = call(frontend, name, logits, target, **options)
        assert np.isnan(value) and (gradient == 0).all()
        value, gradient = call(frontend, name, logits, target, reduction="sum", **options)
        assert value == 0 and (gradient == 0).all()
        value, gradient = call(frontend, name, logits, target, denominator=7.0, **options)
        assert value == 0 and (gradient == 0).all()
        assert (call(frontend, name, logits, target, reduction="none", **options)[0] == 0).all()
    assert np.isnan(call(frontend, name, logits, labels, np.zeros(5))[0])


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("shape", [(4, 5), (40,), (100,), (2, 5, 3), (2, 40, 3)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_zero_total_weight_with_every_option(frontend, shape, dtype):
    logits, labels = numbers(*shape), np.full(shape[:1] * (len(shape) > 1) + shape[2:], -100)
    for options in [
        {"label_smoothing": 0.1},
        {"softcap": 3.0},
        {"z_loss": 0.1},
        {"weight": np.linspace(1, 2, shape[1] if len(shape) > 1 else shape[0])},
    ]:
        value, gradient = call(frontend, "cross_entropy", logits, labels, dtype=dtype, **options)
        assert np.isnan(value) and (gradient == 0).all(), options


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_one_class(frontend):
    value, gradient = call(frontend, "cross_entropy", numbers(4, 1), np.zeros(4, np.int64), dtype="float32")
    assert value == 0 and (gradient == 0).all()
    assert (call(frontend, "softmax", numbers(4, 1), 1, dtype="float32")[0] == 1).all()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_labels_of_every_integer_type(dtype):
    logits = torch.tensor(numbers(50, 100))
    labels = np.arange(50).astype(dtype)
    exact = crossent.cross_entropy(logits, torch.arange(50))
    for name in ["cross_entropy", "nll_loss"]:
        exact = getattr(crossent, name)(logits, torch.arange(50))
        assert torch.equal(getattr(crossent, name)(logits, torch.tensor(labels)), exact)
        with composite():
            composed = getattr(crossent, name)(logits, torch.tensor(labels))
            torch.testing.assert_close(composed, exact, rtol=1e-12, atol=0)
        for order in ["=", ">", "<"]:
            array = labels.astype(np.dtype(dtype).newbyteorder(order))
            assert getattr(crossent, name)(logits.numpy(), array) == exact.item()
            assert getattr(crossent, name)(logits.numpy(), array[::-1].copy()[::-1]) == exact.item()
    if not dtype.startswith("u"):
        labels[:10] = -100
        assert torch.equal(
            crossent.cross_entropy(logits, torch.tensor(labels)),
            crossent.cross_entropy(logits[10:], torch.arange(10, 50)),
        )
    else:
        labels[:10] = 250
        value = crossent.cross_entropy(logits, torch.tensor(labels), ignore_index=250)
        assert torch.equal(value, crossent.cross_entropy(logits[10:], torch.arange(10, 50)))


def test_labels_in_int8_reach_classes_beyond_int8():
    """156 in uint8 is a class; -100 in int8 has the same bits and is not."""
    logits = torch.tensor(numbers(3, 200))
    value = crossent.cross_entropy(logits, torch.tensor([156, 1, 2], dtype=torch.uint8))
    assert torch.equal(value, crossent.cross_entropy(logits, torch.tensor([156, 1, 2])))


# The same bits

DETERMINISM = [
    ("cross_entropy", (64, 1000), {}),
    ("cross_entropy", (300, 10), {}),
    ("cross_entropy", (33, 4099), {"label_smoothing": 0.1, "weighted": True}),
    ("cross_entropy", (8, 19, 31, 17), {}),
    ("cross_entropy", (8, 19, 31, 17), {"label_smoothing": 0.1, "softcap": 5.0, "z_loss": 0.01}),
    ("cross_entropy", (64, 1000), {"soft": True}),
    ("cross_entropy", (5, 70_000), {}),
    ("cross_entropy", (20_000, 3), {}),
    ("nll_loss", (20_000, 3), {"weighted": True}),
    ("nll_loss", (8, 19, 31, 17), {}),
    ("softmax", (64, 1000), {}),
    ("log_softmax", (64, 1000), {}),
    ("softmax", (8, 19, 31, 17), {}),
    ("log_softmax", (5, 70_000), {}),
]


def determinism_case(name, shape, options, dtype):
    options = dict(options)
    logits = torch.tensor(numbers(*shape)).to(TORCH_DTYPES[dtype])
    labels = torch.tensor(labels_of(*shape[:1], *shape[2:], classes=shape[1]))
    target = torch.rand(shape, generator=torch.Generator().manual_seed(3)).to(logits.dtype)
    target = target if options.pop("soft", False) else labels
    if options.pop("weighted", False):
        options["weight"] = torch.linspace(0.5, 2, shape[1])
    return logits, 1 if "softmax" in name else target, options


def value_and_gradient(name, logits, target, **options):
    x = logits.detach().requires_grad_()
    out = getattr(crossent, name)(x, target, **options)
    upstream = torch.ones_like(out) if out.ndim == 0 else out.detach().abs()
    return out.detach(), torch.autograd.grad(out, x, upstream)[0]


def equal_bits(one, other):
    return all(torch.equal(bits(a), bits(b)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("case", DETERMINISM, ids=str)
def test_same_bits_for_any_number_of_threads(case, dtype):
    name, shape, options = case
    logits, target, options = determinism_case(name, shape, options, dtype)
    before = torch.get_num_threads()
    reductions = ["mean", "none"] if "softmax" not in name else [None]
    try:
        for reduction in reductions:
            keywords = options if reduction is None else dict(options, reduction=reduction)
            results = []
            for threads in [1, 2, 3, 5, 2, 1]:
                torch.set_num_threads(threads)
                results.append(value_and_gradient(name, logits, target, **keywords))
            assert all(equal_bits(results[0], other) for other in results)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("case", DETERMINISM, ids=str)
def test_a_row_has_the_same_bits_in_any_batch(case, dtype):
    name, shape, options = case
    logits, target, options = determinism_case(name, shape, options, dtype)
    if "softmax" not in name:
        options["reduction"] = "none"
    whole = value_and_gradient(name, logits, target, **options)
    rng = np.random.default_rng(0)
    for rows in [slice(0, 1), slice(1, 2), slice(shape[0] - 1, None), slice(1, 4), slice(0, shape[0] // 2)]:
        part = target[rows] if isinstance(target, torch.Tensor) else target
        assert equal_bits(value_and_gradient(name, logits[rows], part, **options), [w[rows] for w in whole])
        clone = part.clone() if isinstance(target, torch.Tensor) else target
        assert equal_bits(value_and_gradient(name, logits[rows].clone(), clone, **options), [w[rows] for w in whole])
    shuffled = torch.tensor(rng.permutation(shape[0]))
    part = target[shuffled] if isinstance(target, torch.Tensor) else target
    assert equal_bits(value_and_gradient(name, logits[shuffled], part, **options), [w[shuffled] for w in whole])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("case", [case for case in DETERMINISM if len(case[1]) == 4], ids=str)
def test_a_pixel_has_the_same_bits_in_any_image(case, dtype):
    """In crops of every size, as long as the classes of a pixel stay apart in memory."""
    name, shape, options = case
    logits, target, options = determinism_case(name, shape, options, dtype)
    if "softmax" not in name:
        options["reduction"] = "none"
    whole = value_and_gradient(name, logits, target, **options)
    for rows, columns in [((0, 1), (0, 2)), ((17, 20), (5, 6)), ((30, 31), (0, 17)), ((3, 19), (1, 16))]:
        cut = (..., slice(*rows), slice(*columns))
        part = target[cut] if isinstance(target, torch.Tensor) else target
        assert equal_bits(value_and_gradient(name, logits[cut], part, **options), [w[cut] for w in whole])
        clone = part.clone() if isinstance(target, torch.Tensor) else target
        assert equal_bits(value_and_gradient(name, logits[cut].clone(), clone, **options), [w[cut] for w in whole])


@pytest.mark.parametrize("shape", [(40, 10), (40, 100), (1, 10, 40)], ids=str)
@pytest.mark.parametrize("outlier", [1e30, -1e30, INF, NAN])
def test_a_row_has_the_same_bits_beside_an_outlier(shape, outlier):
    """Rows that are computed together do not share what is done for a difficult one."""
    name, options = "cross_entropy", {"reduction": "none"}
    logits, labels, _ = determinism_case(name, shape, {}, "float32")
    whole = value_and_gradient(name, logits, labels, **options)
    logits, others = logits.clone().movedim(1, -1), torch.arange(40) != 17
    logits[..., 17, 3] = outlier
    beside = value_and_gradient(name, logits.movedim(-1, 1).contiguous(), labels, **options)
    rows = [[tensors[0][..., others], tensors[1].movedim(1, -1)[..., others, :]] for tensors in (whole, beside)]
    assert equal_bits(*rows)


@pytest.mark.parametrize("case", DETERMINISM, ids=str)
def test_no_gradient_wanted_changes_no_bit(case):
    name, shape, options = case
    logits, target, options = determinism_case(name, shape, options, "float32")
    with_gradient = value_and_gradient(name, logits, target, **options)[0]
    assert torch.equal(getattr(crossent, name)(logits, target, **options), with_gradient)


@pytest.mark.parametrize("case", DETERMINISM, ids=str)
def test_same_bits_from_numpy(case):
    name, shape, options = case
    logits, target, options = determinism_case(name, shape, options, "float32")
    arrays = {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    argument = target.numpy() if isinstance(target, torch.Tensor) else target
    ours = np.asarray(getattr(crossent, name)(logits.numpy(), argument, **arrays))
    assert ours.tobytes() == getattr(crossent, name)(logits, target, **options).numpy().tobytes()


# Memory that several logits share, or that is read with another sign


@pytest.mark.parametrize("strides", [(1, 1), (0, 1), (1, 0)])
@pytest.mark.parametrize("classes", [5, 70])
@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_windows_that_slide_over_each_other(library, classes, strides):
    source = numbers(classes + 8).astype(np.float32)
    windows = np.lib.stride_tricks.as_strided(source, (8, classes), [4 * stride for stride in strides])
    labels = labels_of(8, classes=classes)
    if library == "numpy":
        gradient = crossent.value_and_grad(crossent.cross_entropy)(windows, labels)[1]
    else:
        x = torch.from_numpy(source).as_strided((8, classes), strides).requires_grad_()
        (gradient,) = torch.autograd.grad(crossent.cross_entropy(x, torch.from_numpy(labels)), x)
    x = torch.tensor(np.ascontiguousarray(windows), requires_grad=True)
    (theirs,) = torch.autograd.grad(F.cross_entropy(x, torch.from_numpy(labels)), x)
    np.testing.assert_allclose(np.asarray(gradient), theirs.numpy(), atol=1e-7)


@pytest.mark.parametrize("name", ["cross_entropy", "softmax", "log_softmax"])
def test_negative_views(name):
    x = torch.complex(torch.zeros(4, 40), torch.from_numpy(numbers(4, 40)).float()).conj().imag
    assert x.is_neg()
    arguments = (torch.tensor([0, 1, 2, 0]),) if name == "cross_entropy" else (1,)
    for leaf in (x, x.detach().requires_grad_()):
        ours, theirs = getattr(crossent, name)(leaf, *arguments), getattr(F, name)(leaf, *arguments)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("nothing_planned")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [5, 65, 1024, 1500, 5000])
def test_a_gradient_has_the_same_bits_in_any_batch(classes, weighted):
    """Whether it is made in the forward pass, of logits that stay in the caches, or in the backward pass, of others."""
    rows = 2**23 // classes + 1
    logits, labels = torch.randn(rows, classes), torch.randint(classes, (rows,))
    weight = torch.rand(classes) if weighted else None

    def gradient(n):
        x = logits[:n].clone().requires_grad_()
        loss = crossent.cross_entropy(x, labels[:n], weight, reduction="sum")
        assert (waiting_gradient(loss) is None) == (n == rows)
        loss.backward()
        return x.grad

    assert torch.equal(gradient(rows)[:20], gradient(20))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("options", [{"sample_weight": np.full(40, 1e-36, np.float32)}, {"denominator": 1e-33}])
def test_tiny_weights_cost_no_digits(frontend, options):
    """What divides a mean does so before its gradient is rounded."""
    logits, labels = np.random.default_rng(0).normal(0, 4, (40, 70)).astype(np.float32), np.arange(40) % 70
    _, gradient = call(frontend, "cross_entropy", logits, labels, dtype="float32", **options)
    p = np.exp(logits - np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True))
    exact = (p - np.eye(70)[labels]) / (40 if "sample_weight" in options else 1e-33)
    np.testing.assert_allclose(gradient, exact, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:overflow")  # of the loss, in NumPy
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_ignored_rows_get_zeros_whatever_divides(frontend):
    labels = np.array([0, -100, 1])
    _, gradient = call(frontend, "cross_entropy", np.zeros((3, 5)), labels, dtype="float32", denominator=1e-39)
    assert not gradient[1].any()


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("shape", [(3, 0), (2, 0, 5)])
def test_no_classes_and_every_label_ignored(frontend, shape):
    labels = np.full((shape[0], *shape[2:]), -100)
    value, gradient = call(frontend, "cross_entropy", np.zeros(shape), labels, dtype="float32", reduction="sum")
    assert value == 0 and gradient.shape == shape


@pytest.mark.parametrize("classes", [5, 70])
def test_sums_over_rows_lose_nothing_to_large_ones_that_cancel(classes):
    x, labels = torch.zeros(3, classes), torch.zeros(3, dtype=torch.int64)
    weights = torch.tensor([2.0**25, -(2.0**25), 1.0])
    torch.testing.assert_close(
        crossent.cross_entropy(x, labels, sample_weight=weights), torch.tensor(classes).log(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("sample_weight", [None, torch.ones(4)])
def test_a_sum_beyond_float32_is_infinite(sample_weight):
    x, labels = torch.zeros(4, 70), torch.zeros(4, dtype=torch.int64)
    x[:, 0] = -3e38
    assert crossent.cross_entropy(x, labels, sample_weight=sample_weight, reduction="sum") == math.inf
