"""Random shapes, places in memory, dtypes, options and extreme values against the reference."""

import os

import numpy as np
import pytest
import torch
from harness import FRONTENDS, SOFTMAXES, check
from hypothesis import HealthCheck, given, settings, strategies as st

EXTREME = [0.0, -0.0, 1.0, -80.0, 80.0, 1e-30, -1e4, 1e4, -np.inf]
BROKEN = [np.inf, np.nan]

quick = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
soak = settings(
    max_examples=int(os.environ.get("CROSSENT_SOAK_EXAMPLES", 20_000)),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def layouts(draw, ndim, frontend):
    """The axes in any order in memory, with gaps of nan between the elements, and backwards in NumPy."""
    order = draw(st.permutations(range(ndim)))
    steps = draw(st.lists(st.integers(1, 3), min_size=ndim, max_size=ndim))
    margins = draw(st.lists(st.integers(0, 2), min_size=ndim, max_size=ndim))
    backwards = draw(st.lists(st.booleans(), min_size=ndim, max_size=ndim)) if frontend == "numpy" else [False] * ndim

    def arrange(x):
        shape = [x.shape[axis] for axis in order]
        buffer = torch.full(
            [m + n * s for m, n, s in zip(margins, shape, steps, strict=True)], torch.nan, dtype=x.dtype
        )
        cut = [slice(m, m + n * s, s) for m, n, s in zip(margins, shape, steps, strict=True)]
        view = buffer[tuple(cut)].permute([order.index(axis) for axis in range(ndim)])
        flips = [axis for axis in range(ndim) if backwards[axis]]
        view.copy_(x.flip(flips))
        return view

    if frontend != "numpy":
        return arrange

    def arrange_numpy(x):
        laid = arrange(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        return laid[tuple(slice(None, None, -1 if flip else 1) for flip in backwards)]

    return arrange_numpy


@st.composite
def arrays(draw, shape, broken):
    """Normal numbers with a few extreme ones among them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.normal(size=shape) * draw(st.sampled_from([0.1, 3.0, 30.0]))
    if values.size and draw(st.booleans()):
        places = rng.random(shape) < draw(st.sampled_from([0.05, 0.5, 1.0]))
        values[places] = rng.choice(EXTREME + BROKEN * broken, places.sum())
    return values


@st.composite
def losses(draw, frontend, name):
    ndim = draw(st.integers(1, 4))
    shape = draw(st.lists(st.integers(0, 6), min_size=ndim, max_size=ndim))
    dim = draw(st.one_of(st.none(), st.integers(-ndim, ndim - 1)))
    axis = (1 if ndim > 1 else 0) if dim is None else dim % ndim
    shape[axis] = draw(st.one_of(st.integers(1, 9), st.integers(10, 70), st.just(257)))
    classes, rest = shape[axis], tuple(shape[:axis] + shape[axis + 1 :])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = draw(arrays(tuple(shape), broken=name == "cross_entropy"))
    options = {"reduction": draw(st.sampled_from(["none", "mean", "sum"]))}
    if dim is not None:
        options["dim"] = dim
    soft = name == "cross_entropy" and draw(st.booleans())
    if soft:
        target = rng.random(shape) * (rng.random(shape) < draw(st.sampled_from([0.3, 1.0])))
    else:
        labels = rng.integers(0, classes, rest)
        ignore_index = draw(st.sampled_from([-100, -1, 0, classes - 1, 10**12]))
        labels = np.where(rng.random(rest) < draw(st.sampled_from([0.0, 0.3, 1.0])), ignore_index, labels)
        options["ignore_index"] = ignore_index
        kind = draw(st.sampled_from(["int64", "int32", "int8", "uint8"]))
        fits = np.iinfo(kind).min <= ignore_index <= np.iinfo(kind).max and classes <= np.iinfo(kind).max
        target = np.asarray(labels, kind if fits else "int64")
    if draw(st.booleans()):
        options["weight"] = (rng.integers(0, 17, classes) / 8).astype(np.float32)
    if draw(st.booleans()):
        options["sample_weight"] = np.asarray(rng.integers(0, 9, rest) / 4, np.float32)
    if options["reduction"] == "mean" and draw(st.booleans()):
        options["denominator"] = draw(st.integers(1, 64)) / 4
    if name == "cross_entropy":
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0]))
        options["softcap"] = draw(st.sampled_from([None, None, 2.0, 30.0]))
        options["z_loss"] = draw(st.sampled_from([0.0, 0.0, 1e-4, 0.1]))
    dtypes = ["float16", "float32", "float64"] + ["bfloat16"] * (frontend != "numpy")
    return logits, target, options, draw(st.sampled_from(dtypes)), draw(layouts(ndim, frontend))


def check_loss(frontend, name, case):
    logits, target, options, dtype, layout = case
    check(frontend, name, logits, target, dtype=dtype, layout=layout, ulps=16, **options)


@st.composite
def softmaxes(draw, frontend):
    ndim = draw(st.integers(1, 4))
    shape = draw(st.lists(st.integers(0, 6), min_size=ndim, max_size=ndim))
    dim = draw(st.integers(-ndim, ndim - 1))
    shape[dim] = draw(st.one_of(st.integers(1, 9), st.integers(10, 70), st.just(257)))
    logits = draw(arrays(tuple(shape), broken=True))
    dtypes = ["float16", "float32", "float64"] + ["bfloat16"] * (frontend != "numpy")
    return logits, dim, draw(st.sampled_from(dtypes)), draw(layouts(ndim, frontend))


def check_softmax(frontend, name, case):
    logits, dim, dtype, layout = case
    check(frontend, name, logits, dim=dim, dtype=dtype, layout=layout, ulps=16)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@quick
@given(data=st.data())
def test_losses(frontend, name, data):
    check_loss(frontend, name, data.draw(losses(frontend, name)))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", SOFTMAXES)
@quick
@given(data=st.data())
def test_softmaxes(frontend, name, data):
    check_softmax(frontend, name, data.draw(softmaxes(frontend)))


@pytest.mark.soak
@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@soak
@given(data=st.data())
def test_many_losses(frontend, name, data):
    check_loss(frontend, name, data.draw(losses(frontend, name)))


@pytest.mark.soak
@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", SOFTMAXES)
@soak
@given(data=st.data())
def test_many_softmaxes(frontend, name, data):
    check_softmax(frontend, name, data.draw(softmaxes(frontend)))
