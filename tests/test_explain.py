"""`crossent.explain`: its numbers against the reference and against the functions, for random calls."""

import json
import math

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
    else:
        options["ignore_index"] = draw(st.sampled_from([-100, -1, 0, 10**6]))
        target = np.where(rng.random(rest) < 0.2, options["ignore_index"], rng.integers(0, classes, rest))
        target = np.asarray(target, np.int64)
    if draw(st.booleans()):
        options["weight"] = rng.integers(0, 17, classes) / 8
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
