"""`crossent.explain`: its numbers against the reference and against the functions, for random calls."""

import json
import math
import re
import tracemalloc

import numpy as np
import pytest
import reference
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

import crossent

quick = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
TORCH = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


def values(found, name):
    return next(step.values for step in found.steps if step.name == name)


def to(library, array, dtype=None):
    """The array in a library, floats in `dtype`."""
    if array is None or isinstance(array, (int, float, str)):
        return array
    if isinstance(array, crossent.SparseTarget):
        return crossent.SparseTarget(to(library, array.classes), to(library, array.probs, dtype))
    if library == "numpy":
        return array.astype(dtype) if dtype and array.dtype.kind == "f" else array
    tensor = torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)
    return tensor.to(TORCH[dtype]) if dtype and tensor.is_floating_point() else tensor


def held(array, dtype):
    """The float64 values that the dtype can hold."""
    return torch.as_tensor(array).to(TORCH[dtype]).double().numpy()


@st.composite
def calls(draw, name):
    """logits, target, options, dtype: all options of the two losses."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ndim = draw(st.integers(1, 4))
    shape = draw(st.lists(st.integers(0, 5), min_size=ndim, max_size=ndim))
    dim = draw(st.one_of(st.none(), st.integers(-ndim, ndim - 1)))
    axis = (1 if ndim > 1 else 0) if dim is None else dim % ndim
    classes = shape[axis] = draw(st.sampled_from([1, 2, 4, 6, 7, 30]))
    rest = tuple(shape[:axis] + shape[axis + 1 :])
    dtype = draw(st.sampled_from(list(TORCH)))
    logits = held(rng.normal(size=shape) * draw(st.sampled_from([0.1, 3.0, 30.0])), dtype)
    if draw(st.booleans()):
        logits[rng.random(shape) < 0.1] = rng.choice([np.inf, -np.inf, np.nan, -np.inf])
    options = {"reduction": draw(st.sampled_from(["none", "mean", "sum"]))}
    if dim is not None:
        options["dim"] = dim
    if name == "cross_entropy" and draw(st.booleans()):
        target = held(rng.random(shape) * (rng.random(shape) < 0.7), dtype)
        np.moveaxis(target, axis, -1)[..., -1] = 0.25  # the reference takes a target of nothing for a loss of 0
    else:
        options["ignore_index"] = draw(st.sampled_from([-100, -1, 0, 10**6]))
        target = np.where(rng.random(rest) < 0.2, options["ignore_index"], rng.integers(0, classes, rest))
        target = np.asarray(target, np.int64)
    if draw(st.booleans()):
        options["weight"] = np.append(rng.integers(0, 17, classes - 1), 8) / 8
    if draw(st.booleans()):
        options["sample_weight"] = np.asarray(rng.integers(0, 9, rest) / 4)
    if options["reduction"] == "mean" and draw(st.booleans()):
        options["denominator"] = draw(st.integers(1, 64)) / 4
    if name == "cross_entropy":
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.0, 0.1, 1.0]))
        options["softcap"] = draw(st.sampled_from([None, None, 5.0]))
        options["z_loss"] = draw(st.sampled_from([0.0, 0.0, 0.01]))
    return logits, target, options, dtype


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@quick
@given(data=st.data())
def test_the_pieces_add_up(library, name, data):
    logits, target, options, dtype = data.draw(calls(name))
    if library == "numpy" and dtype == "bfloat16":
        dtype = "float32"
    arrays = [to(library, a, dtype) for a in (logits, target)]
    passed = {key: to(library, value, "float32") for key, value in options.items()}
    rows = range(
        math.prod(np.delete(logits.shape, (1 if logits.ndim > 1 else 0) if "dim" not in options else options["dim"]))
    )
    found = crossent.explain(*arrays, function=getattr(crossent, name), rows=rows, **passed)
    assert all(check.passed for check in found.checks), found.checks
    assert not [f for f in found.findings if f.name == "bad_labels"]

    # by hand against the reference, in float64
    by_hand, exact = np.array(values(found, "loss")), options | {"reduction": "none"}
    exact.pop("denominator", None)
    exact = np.asarray(getattr(reference, name)(logits, target, **exact)[0], np.float64).reshape(-1)
    np.testing.assert_allclose(
        by_hand, exact, rtol=1e-12, atol=1e-12 * (1 + np.abs(logits[np.isfinite(logits)]).max(initial=0))
    )
    value = getattr(crossent, name)(*arrays, **passed)
    if options["reduction"] == "none":
        assert found.result is None
        np.testing.assert_array_equal(found.losses, value.double().numpy() if library == "torch" else value)
    else:
        np.testing.assert_equal(found.result, float(value))
    json.loads(found.to_json())
    assert str(found) and found._repr_html_()


@st.composite
def heads(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    features, classes, kind = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 6, 11])), draw(st.integers(0, 4))
    lead = tuple(draw(st.lists(st.integers(0, 4), max_size=2)))
    out = ()
    if len(lead) == 1 and draw(st.booleans()):
        out = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    options = {"reduction": draw(st.sampled_from(["none", "mean", "sum"]))}
    if lead and not out:
        options["shift"] = draw(st.integers(0, 2))
    x, weight = rng.normal(size=(*lead, features)), rng.normal(size=(classes, *out, features))
    if kind == 0:
        target = rng.random((*lead, classes, *out))
    elif kind == 1 and not out:
        target = crossent.SparseTarget(rng.integers(0, classes, (*lead, 2)), rng.random((*lead, 2)))
    else:
        target = np.asarray(np.where(rng.random((*lead, *out)) < 0.2, -100, rng.integers(0, classes, (*lead, *out))))
    if draw(st.booleans()):
        options["linear_bias"] = rng.normal(size=(classes, *out))
    if draw(st.booleans()):
        options["weight"] = rng.integers(1, 9, classes) / 4
    if draw(st.booleans()):
        options["sample_weight"] = np.asarray(rng.integers(0, 5, (*lead, *out)) / 2)
    options["label_smoothing"] = draw(st.sampled_from([0.0, 0.2]))
    options["softcap"] = draw(st.sampled_from([None, 3.0]))
    options["z_loss"] = draw(st.sampled_from([0.0, 0.01]))
    return x, weight, target, options, draw(st.sampled_from(["float32", "float64", "float16", "bfloat16"]))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@quick
@given(data=st.data())
def test_the_pieces_of_the_head_add_up(library, data):
    x, weight, target, options, dtype = data.draw(heads())
    if library == "numpy" and dtype == "bfloat16":
        dtype = "float32"
    arrays = [to(library, a, dtype) for a in (x, weight, target)]
    passed = {key: to(library, a, dtype if key == "linear_bias" else "float32") for key, a in options.items()}
    found = crossent.explain(*arrays, function=crossent.linear_cross_entropy, **passed)
    assert all(check.passed for check in found.checks), found.checks
    every = crossent.explain(
        *arrays, function=crossent.linear_cross_entropy, rows=range(found.summary["rows"]), **passed
    )
    assert all(check.passed for check in every.checks), every.checks
    assert every.result == found.result or math.isnan(found.result)
    if dtype == "float64":
        passed |= {"reduction": "none"}
        losses = np.asarray(crossent.linear_cross_entropy(*arrays, **passed))
        np.testing.assert_allclose(values(every, "loss"), losses.reshape(-1), rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(found.losses, losses)


FIRST, LABELS = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 1.0], [5.0, 0.0, 0.0]]), np.array([0, 2, 1, 0])
EXAMPLE = """\
cross_entropy: mean 0.8568 over 3 rows of 3 classes, float64
module    crossent.nn.CrossEntropyLoss(weight=weight)(input, target,
sample_weight=sample_weight)
function  crossent.cross_entropy(input, target, weight=weight,
sample_weight=sample_weight)

row 0   label y = 0   loss = 0.8152
  class                        y=0        1        2
  x                         2.0000   1.0000        0
  e = exp(x - max x)        1.0000   0.3679   0.1353
  sum e = 1.5032   lse = max x + log sum e = 2.4076
  p = e / sum e             0.6652   0.2447   0.0900
  log p = x - lse          -0.4076  -1.4076  -2.4076
  -w[y] log p[y]            0.4076
  w[y] = 1.0000   s = 2.0000   loss = s (-w[y] log p[y]) = 0.8152
  d = w[y] (p - [c = y])   -0.3348   0.2447   0.0900
  g = s d / 3.5            -0.1913   0.1398   0.0514
  one step, x - g: loss = 0.6301

row 1   label y = 2   loss = 1.0849
  class                          0        1      y=2
  x                              0   3.0000   1.0000
  e = exp(x - max x)        0.0498   1.0000   0.1353
  sum e = 1.1851   lse = max x + log sum e = 3.1698
  p = e / sum e             0.0420   0.8438   0.1142
  log p = x - lse          -3.1698  -0.1698  -2.1698
  -w[y] log p[y]                              1.0849
  w[y] = 0.5000   s = 1.0000   loss = s (-w[y] log p[y]) = 1.0849
  d = w[y] (p - [c = y])    0.0210   0.4219  -0.4429
  g = s d / 3.5             0.0060   0.1205  -0.1265
  one step, x - g: loss = 0.9796

row 2   label y = 1   loss = 1.0986
  class                          0      y=1        2
  x                         1.0000   1.0000   1.0000
  e = exp(x - max x)        1.0000   1.0000   1.0000
  sum e = 3.0000   lse = max x + log sum e = 2.0986
  p = e / sum e             0.3333   0.3333   0.3333
  log p = x - lse          -1.0986  -1.0986  -1.0986
  -w[y] log p[y]                     1.0986
  w[y] = 1.0000   s = 1.0000   loss = s (-w[y] log p[y]) = 1.0986
  d = w[y] (p - [c = y])    0.3333  -0.6667   0.3333
  g = s d / 3.5             0.0952  -0.1905   0.0952
  one step, x - g: loss = 0.9175

row 3   label y = 0   ignored
  class                          0        1        2
  x                         5.0000        0        0
  e = exp(x - max x)        1.0000   0.0067   0.0067
  sum e = 1.0135   lse = max x + log sum e = 5.0134
  p = e / sum e             0.9867   0.0066   0.0066
  log p = x - lse          -0.0134  -5.0134  -5.0134

mean = sum of the losses / sum of s w[y] = 2.99875 / 3.5 = 0.8568
Knowing nothing costs log 3 = 1.0986 a row, knowing how often each class occurs
0.9557; these rows cost 0.8568.
"""


def test_text():
    found = crossent.explain(FIRST, LABELS, np.array([1, 1, 0.5]), sample_weight=np.array([2.0, 1, 1, 0]))
    assert str(found).startswith(EXAMPLE), str(found)
    assert max(map(len, str(found).splitlines())) <= 80


def test_rows():
    def positions(*args, **kwargs):
        return [row.position for row in crossent.explain(*args, **kwargs).rows]

    logits, labels = np.zeros((40, 3), np.float32), np.zeros(40, np.int64)
    logits[7, 0], logits[[20, 31], 0], logits[4] = 9.0, [-9.0, -5.0], np.nan
    labels[2] = 3
    assert positions(logits, labels) == [2, 4, 7, 20]
    assert positions(logits, labels, rows=[-1, 5]) == [39, 5]
    assert positions(logits.reshape(4, 10, 3), labels.reshape(4, 10), dim=-1) == [(0, 2), (0, 4), (0, 7), (2, 0)]
    assert positions(logits.reshape(4, 10, 3), labels.reshape(4, 10), dim=2, rows=[(-1, 3), 12]) == [(3, 3), (1, 2)]
    assert positions(logits[0], labels[0]) == [0]
    assert positions(logits[:0], labels[:0]) == []
    assert positions(logits, labels * 0 - 100) == [0]


def test_classes():
    logits = np.arange(200.0).reshape(2, 100) % 100
    logits[1, 40] = np.nan
    found = crossent.explain(logits, np.array([17, 3]))
    assert [row.classes for row in found.rows] == [(17, 96, 97, 98, 99), (3, 40, 97, 98, 99)]
    step = next(step for step in found.steps if step.name == "softmax")
    np.testing.assert_allclose(sum(step.values[0]) + step.others[0], 1.0)
    target = np.zeros((2, 100))
    target[:, [5, 50]] = 0.5
    assert crossent.explain(logits, target).rows[0].classes == (0, 5, 50, 98, 99)


def test_bad_labels_are_left_out():
    labels = np.array([0, 7, 1, -1])
    found = crossent.explain(FIRST, labels)
    assert found.result == crossent.cross_entropy(FIRST[[0, 2]], labels[[0, 2]])
    assert [row.state for row in found.rows] == ["counts", "bad label", "counts", "bad label"]
    assert found.summary["bad_labels"] == 2 and found.summary["counted"] == 2
    np.testing.assert_array_equal(labels, [0, 7, 1, -1])
    unsigned = crossent.explain(torch.tensor(FIRST), torch.tensor([0, 200, 1, 2], dtype=torch.uint8))
    assert unsigned.findings[0].name == "bad_labels" and unsigned.findings[0].rows == (1,)
    hidden = np.ones((2, 3, 4), np.float32)
    shifted = crossent.explain(
        hidden,
        np.ones((5, 4), np.float32),
        np.array([[9, 1, 2], [0, 9, 1]]),
        function=crossent.linear_cross_entropy,
        shift=1,
    )
    assert shifted.findings[0].rows == ((1, 0),) and shifted.summary["rows"] == 4


def test_byte_order_and_strides():
    swapped = crossent.explain(FIRST.astype(">f4")[::-1], LABELS[::-1].astype(">i4"))
    plain = crossent.explain(FIRST.astype(np.float32)[::-1].copy(), LABELS[::-1].copy())
    assert swapped.to_dict() == plain.to_dict() | {"plan": swapped.to_dict()["plan"]} and swapped.dtype == "float32"


def test_products_of_the_head_that_overflow():
    hidden, weight = np.full((2, 4), 1e30, np.float32), np.full((3, 4), 1e30, np.float32)
    with np.errstate(over="ignore"):
        found = crossent.explain(hidden, weight, np.array([0, 1]), function=crossent.linear_cross_entropy)
    (finding,) = found.findings
    assert finding.name == "infinite_logits" and "products are too large for float32" in finding.sentence
    assert not all(check.passed for check in found.checks)  # by hand, in float64, there is a loss


def test_a_target_of_nothing_has_no_loss_without_a_normaliser():
    found = crossent.explain(np.array([[np.nan, 0.0], [1.0, 2.0]]), np.zeros((2, 2)))
    assert all(check.passed for check in found.checks)
    np.testing.assert_array_equal(values(found, "loss"), [np.nan, 0.0])


def test_bad_labels_of_weight_0_are_ignored():
    logits, labels = np.zeros((20, 20)), np.arange(20)
    labels[3] = 99
    found = crossent.explain(logits, labels, sample_weight=(np.arange(20) != 3).astype(float))
    assert not found.faulty and found.rows[0].state == "counts" and found.summary["ignored"] == 1


def test_summary():
    logits, labels = FIRST.copy(), np.array([0, 2, -100, 1])
    logits[3, 1] = -np.inf
    found = crossent.explain(logits, labels)
    losses = crossent.cross_entropy(FIRST[:2], labels[:2], reduction="none")
    assert found.summary == {
        "rows": 4, "counted": 3, "ignored": 1, "bad_labels": 0, "not_finite": 1, "smallest": losses.min(),
        "median": np.median(losses), "mean": losses.mean(), "largest": losses.max(), "accuracy": 1 / 3,
    }  # fmt: skip


def test_what_autograd_records_is_left_alone():
    logits = torch.tensor(FIRST, requires_grad=True)
    found = crossent.explain(logits, torch.tensor(LABELS), inplace_backward=True)
    assert logits.grad is None and found.plan.reasons and "written over" in str(found.plan)
    np.testing.assert_array_equal(logits.detach(), FIRST)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((FIRST, LABELS[:3]), {}, ValueError, "wrong shape"),
        ((FIRST.astype(int), LABELS), {}, TypeError, "float16"),
        ((dict(enumerate(FIRST)), LABELS), {}, TypeError, "dict"),
        ((FIRST, LABELS), {"dim": 2}, IndexError, "dim"),
        ((FIRST, LABELS), {"label_smoothing": 2.0}, ValueError, "label_smoothing"),
        ((FIRST, LABELS), {"reduction": "max"}, ValueError, "reduction"),
        ((FIRST, LABELS), {"function": crossent.softmax}, TypeError, "function must be one of cross_entropy, nll_loss"),
        ((FIRST,), {}, TypeError, "target"),
        ((FIRST, LABELS), {"rows": [4]}, IndexError, "rows must be between -4 and 3, got 4"),
        ((FIRST, LABELS), {"rows": [(0, 0)]}, IndexError, "rows"),
        ((FIRST, LABELS), {"rows": ["first"]}, TypeError, "rows must hold"),
        ((FIRST[:, :0], LABELS * 0 - 100), {}, ValueError, "class"),
        ((FIRST, LABELS + 5), {"dim": 5}, IndexError, "dim"),
    ],
)
def test_errors(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        crossent.explain(*args, **kwargs)


def test_deprecated_arguments_warn_at_the_caller():
    with pytest.warns(UserWarning, match="deprecated") as caught:
        found = crossent.explain(FIRST, LABELS, size_average=False)
    assert found.reduction == "sum" and len(caught) == 1 and caught[0].filename == __file__


def test_dict_and_json():
    logits = FIRST.copy()
    logits[1, 2] = -np.inf
    found = crossent.explain(logits, LABELS)
    parsed = json.loads(found.to_json())
    assert parsed == json.loads(json.dumps(found.to_dict()))
    assert (
        parsed["result"] == "inf"
        and parsed["rows"][1]["loss"] == "inf"
        and parsed["steps"][0]["values"][1][2] == "-inf"
    )
    assert parsed["findings"][0]["rows"] == [1] and parsed["plan"]["path"] == "kernels"
    assert set(parsed) == {f for f in found.__dataclass_fields__ if f not in ("losses", "given")}
    assert repr(found) == "<Explanation of cross_entropy: 4 rows, 3 classes, 1 finding>"


def test_html():
    found = crossent.explain(FIRST, LABELS + 1, softcap=5.0)
    page, fragment = found.to_html(), found._repr_html_()
    assert page.startswith("<!DOCTYPE html>") and fragment[fragment.index("<caption>") :] in page
    for outside in ("https:", "src=", "url(", "<link rel=stylesheet"):
        assert outside not in page
    assert "error" in page and "cross_entropy: mean" in page


@pytest.mark.parametrize("rows", [3, 200])
def test_plot(rows, tmp_path):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(rows, 4)), rng.integers(0, 4, rows)
    logits[1, labels[1]] = -np.inf
    found = crossent.explain(logits, labels)
    figure = found.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    left, middle, right = figure.axes
    assert [len(axes.patches) for axes in (left, middle)] == [len(found.rows)] * 2  # the picked entries
    picked = [(round(p.get_x() + 0.47), round(p.get_y() + 0.46)) for p in left.patches]
    assert picked == [(row.label, i) for i, row in enumerate(found.rows)]
    shown = [text.get_text() for text in middle.texts]
    assert any(shown) and "loss" in right.get_title()
    assert len(crossent.explain(logits - 9, labels, function=crossent.nll_loss).plot().axes) == 2


def test_a_plot_counts_rows_in_whole_numbers_and_says_names_alone():
    names = [f"category {c}" for c in range(12)]
    figure = crossent.explain(np.eye(20, 12), np.arange(20) % 12, names=names).plot()
    figure.draw_without_rendering()
    left, _, right = figure.axes
    ticks = [label.get_text() for label in right.get_yticklabels()]
    assert ticks and all(re.fullmatch(r"−?\d+", tick) for tick in ticks), ticks
    assert "1.0000\ncategory 0" in [text.get_text() for text in left.texts]


@pytest.mark.parametrize("rows", [6, 60])
@pytest.mark.parametrize("bad", [-1e6, -np.inf])
def test_losses_far_from_the_others_leave_them_room(rows, bad):
    """The median loss is seen: more than a twentieth of the axis."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(rows, 4)), rng.integers(0, 4, rows)
    logits[1, labels[1]] = bad
    found = crossent.explain(logits, labels)
    figure = found.plot()
    figure.draw_without_rendering()
    left, _, right = figure.axes
    median = float(np.median(found.losses))
    place = right.transAxes.inverted().transform(right.transData.transform((median, median)))
    assert place[0 if rows == 6 else 1] > 0.05
    if rows == 6:
        hatched = [bar for bar in right.patches if bar.get_hatch()]
        assert len(hatched) == (bad == -np.inf) and all(bar.get_width() == 1.0 for bar in hatched)
    image = left.images[0]
    assert image.norm.vmin >= image.norm.vmax - 40.0  # a mask does not take all colours


def test_print(capsys):
    found = crossent.explain(FIRST, LABELS)
    found.print()
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert [line.rstrip() for line in printed.rstrip("\n").splitlines()] == str(found).splitlines()


def test_memory():
    logits, labels = np.zeros((2000, 5000), np.float32), np.arange(2000)
    crossent.explain(logits[:8], labels[:8])
    tracemalloc.start()
    crossent.explain(logits, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < logits.nbytes / 5
