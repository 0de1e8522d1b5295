"""prediction_stats: values against float64 formulas, every layout and path, ties, headroom, ignored rows, errors."""

import contextlib

import numpy as np
import pytest
import torch
from harness import EPS, FRONTENDS, LAYOUTS, NUMPY_LAYOUTS, TORCH_DTYPES, composite, lay_out, lay_out_numpy, quantise
from hypothesis import given, settings, strategies as st

import crossent


def exact(logits, labels):
    """Of rows of float64, by way of all probabilities; a probability near 1 from the others."""
    rows = np.arange(len(labels))
    p = np.exp(logits - logits.max(1, keepdims=True))
    log_total = np.log(p.sum(1))
    p /= p.sum(1, keepdims=True)
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], 0, p).sum(1)
    far = logits[rows, labels] - logits.max(1) - log_total
    logprob = np.where(others < 0.5, np.log1p(-np.minimum(others, 0.5)), far)
    t = np.eye(logits.shape[1])[labels]
    missing = np.where(t == 1, -np.expm1(logprob)[:, None], p)
    rank = np.argsort(np.argsort(-logits, 1, kind="stable"), 1)[rows, labels]
    return logprob, rank, logits.argmax(1), p.max(1), (missing**2).sum(1)


def call(frontend, logits, labels, dtype, layout="contiguous", **keywords):
    """The results as arrays, after checking their kinds."""
    if frontend == "numpy":
        x = lay_out_numpy(logits.astype(dtype), layout, keywords.get("dim"))
        stats = crossent.prediction_stats(x, labels, **keywords)
    else:
        x = lay_out(torch.as_tensor(logits).to(TORCH_DTYPES[dtype]), layout, keywords.get("dim")).requires_grad_()
        with composite() if frontend == "composite" else contextlib.nullcontext():
            stats = crossent.prediction_stats(x, torch.as_tensor(labels), **keywords)
        assert not any(value.requires_grad for value in stats)
        stats = crossent.PredictionStats(*(value.numpy() for value in stats))
    floats = np.float64 if dtype == "float64" else np.float32
    assert [value.dtype for value in stats] == [floats, np.int64, np.int64, floats, floats]
    assert all(value.shape == labels.shape for value in stats)
    return stats


def check(stats, logits, labels, eps):
    expected = exact(logits, labels)
    for name, ours, theirs in zip(stats._fields, stats, expected):
        if name in ("rank", "prediction"):
            np.testing.assert_array_equal(ours, theirs, name)
        else:
            least = 1e-37 if ours.dtype == np.float32 else 1e-300  # subnormal numbers have fewer digits
            np.testing.assert_allclose(ours, theirs, 40 * eps, 40 * eps if name == "logprob" else least, err_msg=name)


def example(rows, classes, dtype, scale=3.0, seed=0):
    generator = np.random.default_rng(seed)
    logits = quantise(scale * generator.standard_normal((rows, classes)), dtype)
    return logits, generator.integers(classes, size=rows)


def eps_of(dtype):
    """Of the arithmetic."""
    return EPS["float64" if dtype == "float64" else "float32"]


@pytest.mark.parametrize(
    ("frontend", "dtype"),
    [(f, d) for f in FRONTENDS for d in TORCH_DTYPES if (f, d) != ("numpy", "bfloat16")],
)
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 70, 1023, 1024, 1025, 2100])
def test_values(frontend, dtype, classes):
    check_values(frontend, dtype, classes)


def check_values(frontend, dtype, classes):
    logits, labels = example(60, classes, dtype)
    check(call(frontend, logits, labels, dtype), logits, labels, eps_of(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_place_of_label_and_largest(dtype):
    """Each in every vector, block and tail."""
    for classes in (5, 40, 1030, 1100):
        places = sorted({0, 1, 15, 16, classes // 2, 1023, 1024, 1029, classes - 2, classes - 1} & set(range(classes)))
        pairs = [(label, largest) for label in places for largest in places]
        logits, _ = example(len(pairs), classes, dtype)
        labels = np.array([label for label, _ in pairs])
        for row, (_, largest) in enumerate(pairs):
            logits[row, largest] = 50
        check(call("numpy", logits, labels, dtype), logits, labels, eps_of(dtype))


@pytest.mark.parametrize(
    ("frontend", "layout"),
    [
        *((f, layout) for f in FRONTENDS for layout in LAYOUTS if not layout.startswith("expanded")),
        *(("numpy", layout) for layout in NUMPY_LAYOUTS),
    ],
)
@pytest.mark.parametrize("dim", [None, 0, -1])
def test_layouts(frontend, layout, dim):
    shape, axis = (4, 5, 3), 1 if dim is None else dim % 3
    logits = np.random.default_rng(0).standard_normal(shape).astype(np.float32).astype(np.float64)
    rows = np.moveaxis(logits, axis, -1)
    labels = np.random.default_rng(1).integers(shape[axis], size=rows.shape[:-1])
    stats = call(frontend, logits, labels, "float32", layout, dim=dim)
    flat = crossent.PredictionStats(*(value.reshape(-1) for value in stats))
    check(flat, rows.reshape(-1, shape[axis]), labels.reshape(-1), EPS["float32"])


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_one_row_and_none(frontend):
    stats = call(frontend, np.array([1.0, 3.0, 2.0]), np.array(2), "float32")
    assert stats.rank.item() == 1 and stats.prediction.item() == 1
    call(frontend, np.zeros((0, 3)), np.zeros(0, np.int64), "float32")


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_ties(frontend):
    """The first of equal logits is the prediction, and ranks before the others."""
    logits = np.zeros((2, 40))
    logits[1, [18, 33]] = 1
    stats = call(frontend, np.repeat(logits, 2, 0), np.array([7, 39, 33, 0]), "float32")
    assert stats.prediction.tolist() == [0, 0, 18, 18] and stats.rank.tolist() == [7, 39, 1, 2]


@pytest.mark.parametrize(
    ("frontend", "dtype"),
    [(f, d) for f in FRONTENDS for d in TORCH_DTYPES if (f, d) != ("numpy", "bfloat16")],
)
@pytest.mark.parametrize("classes", [3, 16, 17, 70, 1040, 2100])
def test_many_ties(frontend, dtype, classes):
    """Ranks by a stable sort, with the label in every part of a row and of a vector."""
    generator = np.random.default_rng(classes)
    labels = generator.permutation(np.arange(60) * (classes - 1) // 59)
    logits = generator.integers(-2, 3, size=(60, classes)).astype(np.float64)
    logits[3], logits[4] = -0.0, -np.inf
    logits[5, ::2], logits[6, labels[6]] = -np.inf, -np.inf
    stats = call(frontend, logits, labels, dtype)
    order = np.lexsort((np.broadcast_to(np.arange(classes), logits.shape), -logits), axis=1)
    np.testing.assert_array_equal(stats.rank, (order == labels[:, None]).argmax(1))
    np.testing.assert_array_equal(stats.prediction, order[:, 0])


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_logits_that_are_equal_only_beside_a_much_larger_one(frontend):
    logits = np.zeros((1, 40))
    logits[0, :3] = 1e8, 0.25, 0.5
    stats = call(frontend, np.repeat(logits, 3, 0), np.array([1, 2, 3]), "float32")
    assert stats.rank.tolist() == [2, 1, 3]


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("rise", [29.0, 31.0, 80.0, 1e4])
def test_large_logits_late_in_the_row(frontend, rise):
    """Behind those that the first guess of the maximum is made of; squares must not overflow."""
    logits, labels = example(8, 3000, "float32")
    logits[:, 2000:] = quantise(logits[:, 2000:] + rise, "float32")
    labels[:4] = 3
    labels[4:] = 2500
    check(call(frontend, logits, labels, "float32"), logits, labels, EPS["float32"])


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_confident_rows_keep_their_digits(frontend):
    logits = np.zeros((3, 50))
    logits[:, 20] = [30, 60, 80]
    check(call(frontend, logits, np.full(3, 20), "float32"), logits, np.full(3, 20), EPS["float32"])


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_infinities_and_nan(frontend):
    logits = np.zeros((5, 20))
    logits[0, 3] = -np.inf  # the label cannot be
    logits[1, 4] = -np.inf  # another cannot be
    logits[2, 17], logits[3, 3], logits[4] = np.nan, np.inf, -np.inf
    stats = call(frontend, logits, np.full(5, 3), "float32")
    assert stats.logprob[0] == -np.inf and stats.rank[0] == 19
    np.testing.assert_allclose(stats.brier[0], 1 + 1 / 19, 1e-6)
    np.testing.assert_allclose(stats.logprob[1], -np.log(19), 1e-6)
    for values in (stats.logprob, stats.confidence, stats.brier):
        assert np.isnan(values[2:]).all()


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_ignored_rows(frontend):
    logits, labels = example(6, 9, "float32")
    logits[2], labels[2] = np.nan, 7
    labels[labels == 7] = 6
    labels[2] = 7
    stats = call(frontend, logits, labels, "float32", ignore_index=7)
    assert [value[2] for value in stats] == [0, -1, -1, 0, 0]
    kept = labels != 7
    rest = crossent.PredictionStats(*(value[kept] for value in stats))
    check(rest, logits[kept], labels[kept], EPS["float32"])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 130), st.floats(0.01, 30), st.integers(0, 2**32))
def test_any_rows(rows, classes, scale, seed):
    logits, labels = example(rows, classes, "float32", scale, seed)
    check(call("numpy", logits, labels, "float32"), logits, labels, 4 * EPS["float32"])


def test_rows_do_not_depend_on_each_other():
    logits, labels = example(3000, 100, "float32")
    whole = crossent.prediction_stats(logits.astype(np.float32), labels)
    for lo in range(0, 3000, 700):
        part = crossent.prediction_stats(logits[lo : lo + 700].astype(np.float32), labels[lo : lo + 700])
        for all_rows, some in zip(whole, part):
            assert all_rows[lo : lo + 700].tobytes() == some.tobytes()


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_errors(frontend):
    logits, labels = np.zeros((3, 4)), np.array([0, 4, 1])
    with pytest.raises(IndexError, match="Target 4 at position 1 is out of bounds: labels must be between 0 and 3"):
        call(frontend, logits, labels, "float32")
    with pytest.raises(ValueError, match="target has the wrong shape"):
        call(frontend, logits, labels[:2], "float32")
    with pytest.raises(TypeError, match="labels, which must be integers"):
        call(frontend, logits, labels.astype(np.float64), "float32")
    with pytest.raises(IndexError, match="dim must be between"):
        call(frontend, logits, labels, "float32", dim=2)
    with pytest.raises(TypeError, match="ignore_index must be an integer"):
        call(frontend, logits, labels, "float32", ignore_index=0.5)
    x = np.zeros((2, 3), np.int32) if frontend == "numpy" else torch.zeros(2, 3, dtype=torch.int32)
    y = np.zeros(2, np.int64) if frontend == "numpy" else torch.zeros(2, dtype=torch.int64)
    with composite() if frontend == "composite" else contextlib.nullcontext():
        with pytest.raises(TypeError, match="input must be float16, bfloat16, float32 or float64"):
            crossent.prediction_stats(x, y)
    with pytest.raises(TypeError, match="PyTorch tensor or a NumPy array"):
        crossent.prediction_stats([[1.0]], [0])


def test_labels_of_every_integer_type():
    logits, labels = example(20, 9, "float32")
    expected = crossent.prediction_stats(logits, labels)
    for dtype in "bBhHiIlLqQ":
        for ours, theirs in zip(crossent.prediction_stats(logits, labels.astype(dtype)), expected):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(IndexError, match=f"Target {2**64 - 1} at position 1"):
        crossent.prediction_stats(np.zeros((2, 3)), np.array([0, 2**64 - 1], np.uint64))


def test_subclasses_take_the_call_over():
    class Mine(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return function.__name__, kwargs, 0, 0, 0

    logits = torch.zeros(2, 3).as_subclass(Mine)
    taken = crossent.prediction_stats(logits, torch.tensor([0, 1]), ignore_index=1)
    assert taken[:2] == ("prediction_stats", {"dim": None, "ignore_index": 1})


def test_compiled():
    logits, labels = example(10, 20, "float32")
    x, y = torch.as_tensor(logits, dtype=torch.float32), torch.as_tensor(labels)
    compiled = torch.compile(crossent.prediction_stats, backend="eager", fullgraph=True)(x, y)
    check(crossent.PredictionStats(*(value.numpy() for value in compiled)), logits, labels, EPS["float32"])
