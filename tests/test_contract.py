"""Value and gradient against the reference: every function, frontend, shape, memory layout, dtype and option."""

import contextlib

import numpy as np
import pytest
import reference
import torch
from harness import (
    EPS,
    FRONTENDS,
    LAYOUTS,
    NUMPY_LAYOUTS,
    SOFTMAXES,
    TORCH_DTYPES,
    assert_close,
    check,
    class_axis,
    composite,
    expected,
    largest,
    quantise,
    run,
    to_numpy,
)

import crossent

# class axis first, last and between; class counts on both sides of every vector length; no rows and no pixels
SHAPES = [
    ((1,), None),
    ((10,), None),
    ((1000,), None),
    ((7, 1), None),
    ((9, 2), None),
    ((33, 10), None),
    ((17, 16), None),
    ((8, 17), None),
    ((5, 64), None),
    ((6, 1000), None),
    ((3, 1025), None),
    ((1, 5000), None),
    ((2, 3, 5), None),
    ((2, 19, 4, 6), None),
    ((3, 2, 1, 7, 2), None),
    ((2, 64, 3, 3), None),
    ((1, 17, 40, 33), None),
    ((2, 1000, 7), None),
    ((2, 1, 3), None),
    ((0, 5), None),
    ((0, 5, 3), None),
    ((4, 5, 0), None),
    ((2, 6, 10), -1),
    ((10, 4, 6), 0),
    ((3, 4, 17), 2),
    ((2, 7, 3, 11), -2),
]
DTYPES = {frontend: ["float16", "bfloat16", "float32", "float64"] for frontend in FRONTENDS}
DTYPES["numpy"] = ["float16", "float32", "float64"]
EVERYWHERE = [(frontend, dtype) for frontend in FRONTENDS for dtype in DTYPES[frontend]]
NLL_OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "ignored": {"ignored": True},
    "ignored none": {"ignored": True, "reduction": "none"},
    "class weights": {"weighted": True},
    "class weights, ignored": {"weighted": True, "ignored": True},
    "class weights none": {"weighted": True, "reduction": "none"},
    "sample weights": {"sampled": True},
    "sample weights none": {"sampled": True, "reduction": "none"},
    "both weights": {"sampled": True, "weighted": True, "ignored": True},
    "denominator": {"denominator": 3.5, "ignored": True},
    "denominator sampled": {"denominator": 0.25, "sampled": True},
}
OPTIONS = NLL_OPTIONS | {
    "smoothing": {"label_smoothing": 0.1},
    "smoothing 1": {"label_smoothing": 1.0},
    "smoothing sum": {"label_smoothing": 0.3, "reduction": "sum"},
    "smoothing, class weights": {"label_smoothing": 0.2, "weighted": True, "ignored": True},
    "smoothing, class weights none": {"label_smoothing": 0.2, "weighted": True, "ignored": True, "reduction": "none"},
    "softcap": {"softcap": 5.0},
    "softcap 30": {"softcap": 30, "ignored": True, "reduction": "none"},
    "z_loss": {"z_loss": 0.01, "ignored": True},
    "z_loss none": {"z_loss": 0.1, "weighted": True, "sampled": True, "reduction": "none"},
    "soft": {"soft": True},
    "soft none": {"soft": True, "reduction": "none"},
    "soft weighted": {"soft": True, "weighted": True, "sampled": True},
    "soft smoothing": {"soft": True, "label_smoothing": 0.1, "reduction": "sum"},
    "soft, not a distribution": {"soft": True, "unnormalised": True, "weighted": True},
    "soft, everything": {
        "soft": True,
        "weighted": True,
        "sampled": True,
        "label_smoothing": 0.1,
        "softcap": 4.0,
        "z_loss": 0.02,
        "denominator": 2.0,
    },
    "everything": {
        "weighted": True,
        "sampled": True,
        "ignored": True,
        "label_smoothing": 0.1,
        "softcap": 4.0,
        "z_loss": 0.02,
        "denominator": 2.0,
    },
    "everything none": {
        "weighted": True,
        "sampled": True,
        "ignored": True,
        "label_smoothing": 0.1,
        "softcap": 4.0,
        "z_loss": 0.02,
        "reduction": "none",
    },
}
OPTION_SHAPES = [((10,), None), ((13, 10), None), ((5, 130), None), ((2, 19, 3, 5), None), ((2, 6, 10), -1)]


def identify(value):
    if isinstance(value, tuple):
        return "x".join(map(str, value[0])) + ("" if value[1] is None else f"@{value[1]}")
    return str(value)


def make(shape, dim, ignored=False, weighted=False, sampled=False, soft=False, unnormalised=False, **options):
    """Logits, target and keyword arguments. All weights are multiples of 1/8, which every dtype holds."""
    rng = np.random.default_rng(sum(shape) + len(shape))
    logits = 3 * rng.normal(size=shape)
    axis = class_axis(logits, dim)
    classes = shape[axis]
    rest = shape[:axis] + shape[axis + 1 :]
    target = rng.integers(0, classes, rest)
    if soft:
        target = rng.random(shape) * (rng.random(shape) > 0.3)
        if not unnormalised:
            target = target / np.maximum(target.sum(axis, keepdims=True), 1e-3)
    if ignored:
        options["ignore_index"] = -7
        target = np.where(rng.random(rest) < 0.4, -7, target)
        if rest and 0 not in rest:
            target.reshape(-1)[0] = rng.integers(0, classes)
        target = np.asarray(target)
    if weighted:
        options["weight"] = (rng.integers(2, 17, classes) / 8).astype(np.float32)
    if sampled:
        options["sample_weight"] = (rng.integers(0, 9, rest) / 4).astype(np.float32)
        options["sample_weight"].reshape(-1)[:1] = 0.5
    if dim is not None:
        options["dim"] = dim
    return logits, np.asarray(target), options


def log_probabilities(logits, dim):
    if logits.size == 0:
        return logits
    return expected("log_softmax", logits, class_axis(logits, dim))[0].astype(np.float64)


@pytest.mark.parametrize(("frontend", "dtype"), EVERYWHERE)
@pytest.mark.parametrize("shape", SHAPES, ids=identify)
def test_shapes_and_layouts(frontend, dtype, shape):
    for layout in LAYOUTS + NUMPY_LAYOUTS * (frontend == "numpy"):
        for reduction in ["mean", "none"]:
            logits, target, options = make(*shape, reduction=reduction)
            check(frontend, "cross_entropy", logits, target, dtype=dtype, layout=layout, **options)


@pytest.mark.parametrize(("frontend", "dtype"), EVERYWHERE)
@pytest.mark.parametrize("shape", SHAPES, ids=identify)
def test_shapes_and_layouts_of_nll_loss(frontend, dtype, shape):
    for layout in LAYOUTS + NUMPY_LAYOUTS * (frontend == "numpy"):
        logits, target, options = make(*shape, ignored=True)
        logits = log_probabilities(logits, shape[1])
        check(frontend, "nll_loss", logits, target, dtype=dtype, layout=layout, **options)


@pytest.mark.parametrize(("frontend", "dtype"), EVERYWHERE)
@pytest.mark.parametrize("shape", SHAPES, ids=identify)
@pytest.mark.parametrize("name", SOFTMAXES)
def test_shapes_and_layouts_of_softmax(frontend, dtype, shape, name):
    logits = make(*shape)[0]
    dims = range(-1, logits.ndim) if shape[1] is None and logits.size < 5000 else [class_axis(logits, shape[1])]
    for number, layout in enumerate(LAYOUTS + NUMPY_LAYOUTS * (frontend == "numpy"), name == "softmax"):
        every = layout in ("contiguous", "reversed")
        for dim in dims if every else dims[number % 2 :: 2] or dims:  # of the other function the others
            check(frontend, name, logits, dim=dim, dtype=dtype, layout=layout)


@pytest.mark.parametrize(("frontend", "dtype"), EVERYWHERE)
@pytest.mark.parametrize("options", OPTIONS)
def test_options(frontend, dtype, options):
    for shape, dim in OPTION_SHAPES:
        logits, target, keywords = make(shape, dim, **OPTIONS[options])
        for layout in ["contiguous", "reversed"]:
            check(frontend, "cross_entropy", logits, target, dtype=dtype, layout=layout, **keywords)


@pytest.mark.parametrize(("frontend", "dtype"), [case for case in EVERYWHERE if case[0] != "numpy"])
@pytest.mark.parametrize("options", [name for name in OPTIONS if OPTIONS[name].get("soft")])
def test_gradient_of_soft_targets(frontend, dtype, options):
    for shape, dim in OPTION_SHAPES:
        check_gradient_of_soft_target(frontend, dtype, options, shape, dim)


def check_gradient_of_soft_target(frontend, dtype, options, shape, dim):
    logits, target, keywords = make(shape, dim, **OPTIONS[options])
    logits, target = quantise(logits, dtype), quantise(target, dtype)
    with composite() if frontend == "composite" else contextlib.nullcontext():
        t = torch.as_tensor(target).to(TORCH_DTYPES[dtype]).requires_grad_()
        tensors = {key: torch.as_tensor(v) if "weight" in key else v for key, v in keywords.items()}
        value = crossent.cross_entropy(torch.as_tensor(logits).to(t.dtype), t, **tensors)
        (gradient,) = torch.autograd.grad(value.sum(), t)
    exact = reference.soft_target_gradient(logits, target, **keywords)
    assert gradient.dtype == t.dtype
    assert_close(to_numpy(gradient), exact, dtype, np.maximum(abs(exact), largest(exact)))


@pytest.mark.parametrize(("frontend", "dtype"), EVERYWHERE)
@pytest.mark.parametrize("options", NLL_OPTIONS)
def test_options_of_nll_loss(frontend, dtype, options):
    for shape, dim in OPTION_SHAPES:
        logits, target, keywords = make(shape, dim, **NLL_OPTIONS[options])
        logits = log_probabilities(logits, dim)
        for layout in ["contiguous", "reversed"]:
            check(frontend, "nll_loss", logits, target, dtype=dtype, layout=layout, **keywords)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_ignore_index_may_be_a_class(frontend):
    for ignore_index in [0, 3, 9, 10, 2**40, -(2**62)]:
        logits, target, _ = make((13, 10), None)
        target[2] = ignore_index
        for name in ["cross_entropy", "nll_loss"]:
            check(frontend, name, logits, target, ignore_index=ignore_index, dtype="float32")


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("layout", ["reversed", "strided", "negative", "scalar"])
def test_layout_of_target_and_weights(frontend, layout):
    """Targets, class weights and sample weights lie in memory as they please, and sample weights are broadcast."""
    for soft in [False, True]:
        logits, target, options = make((3, 7, 4, 5), None, weighted=True, sampled=True, soft=soft)
        exact = expected("cross_entropy", logits, target, **options)[0]

        def elsewhere(array):
            if layout == "negative":
                return array[(slice(None, None, -1),) * array.ndim].copy()[(slice(None, None, -1),) * array.ndim]
            if layout == "strided":
                return np.repeat(array, 2, -1)[..., ::2]
            return np.asarray(array, order="F") if layout == "reversed" else array

        weight, sample_weight = elsewhere(options["weight"]), elsewhere(options["sample_weight"])
        if layout == "scalar":
            sample_weight = np.array(0.5, np.float32)
            exact = expected("cross_entropy", logits, target, options["weight"], sample_weight=sample_weight)[0]
        target = target.astype(np.float32) if soft else target
        arrays = [logits.astype(np.float32), elsewhere(target), weight, sample_weight]
        if frontend == "numpy":
            got = crossent.cross_entropy(*arrays[:3], sample_weight=sample_weight)
        else:
            if layout == "negative":
                pytest.skip("torch has no negative strides")
            x, t, w, s = [torch.as_tensor(a) for a in arrays]
            got = run(frontend, "cross_entropy", logits, t, w, sample_weight=s, dtype="float32")[0]
        assert abs(to_numpy(got) - exact) < 1e-5


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_sample_weight_broadcasts(frontend):
    logits, target, _ = make((3, 7, 4, 5), None)
    for shape in [(), (1,), (5,), (4, 1), (3, 1, 1), (1, 4, 5), (3, 4, 5)]:
        sample_weight = (np.arange(1, 1 + int(np.prod(shape))) / 8).astype(np.float32).reshape(shape)
        for reduction in ["none", "mean", "sum"]:
            options = {"sample_weight": sample_weight, "reduction": reduction}
            check(frontend, "cross_entropy", logits, target, dtype="float64", **options)
            check(frontend, "nll_loss", logits, target, dtype="float64", **options)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_dtypes_of_weights(frontend):
    """Class and sample weights may be of another float type than the logits; the logits' type is the result's."""
    logits, target, options = make((13, 10), None, weighted=True, sampled=True)
    for dtype in DTYPES[frontend]:
        for other in ["float16", "float32", "float64"]:
            arrays = {key: options[key].astype(other) for key in ["weight", "sample_weight"]}
            check(frontend, "cross_entropy", logits, target, dtype=dtype, **arrays)
            check(frontend, "nll_loss", logits, target, dtype=dtype, **arrays)
        if frontend != "numpy":
            tensors = {key: torch.as_tensor(options[key]).bfloat16() for key in ["weight", "sample_weight"]}
            value, _ = run(frontend, "cross_entropy", quantise(logits, dtype), target, dtype=dtype, **tensors)
            exact = expected("cross_entropy", quantise(logits, dtype), target, **options)[0]
            assert abs(value - exact) <= 4 * EPS[dtype] * abs(exact)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_denominator_may_be_an_array(frontend):
    logits, target, _ = make((13, 10), None)
    for denominator in [4, 4.0, np.float32(4), np.array(4.0), np.array(4)]:
        for name in ["cross_entropy", "nll_loss"]:
            check(frontend, name, logits, target, denominator=denominator, dtype="float32")


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_casts_first(name):
    """`dtype` is what the input is cast to before the operation, whole numbers included."""
    function = getattr(torch.nn.functional, name)
    for source in [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.uint8, torch.bool]:
        x = (4 * torch.randn(5, 9, generator=torch.Generator().manual_seed(0))).to(source)
        for dtype in [torch.float16, torch.bfloat16, torch.float32, torch.float64]:
            ours, theirs = getattr(crossent, name)(x, 1, dtype=dtype), function(x.to(dtype).double(), 1)
            assert ours.dtype == dtype
            assert torch.allclose(ours.double(), theirs, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
        if source not in (torch.bfloat16,):
            ours = getattr(crossent, name)(x.numpy(), 1, dtype=np.float64)
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, function(x, 1, dtype=torch.float64).numpy(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_softmax_of_a_number(frontend, name):
    """A 0-d array is one class, as in PyTorch."""
    for dim in [0, -1]:
        if frontend == "numpy":
            value = getattr(crossent, name)(np.float32(3), dim)
        else:
            value = run(frontend, name, np.array(3.0), dim, dtype="float32", upstream=1.0)[0]
        assert np.shape(value) == () and value == (name == "softmax")


@pytest.mark.parametrize("upstream", ["one number", "transposed", "strided"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_layout_of_the_upstream_gradient(dtype, upstream):
    logits, target, _ = make((3, 7, 4, 5), None, reduction="none")
    for name in ["cross_entropy", "nll_loss", *SOFTMAXES]:
        args = (1,) if name in SOFTMAXES else (torch.as_tensor(target),)
        options = {} if name in SOFTMAXES else {"reduction": "none"}
        x = torch.as_tensor(logits).to(getattr(torch, dtype)).requires_grad_()
        out = getattr(crossent, name)(x, *args, **options)
        up = torch.full((1,), 0.5).to(out.dtype).expand(out.shape)
        if upstream != "one number":
            up = torch.randn(out.shape).to(out.dtype)
            order = tuple(reversed(range(up.ndim)))
            strided = torch.repeat_interleave(up, 2, -1)[..., ::2]
            up = up.permute(order).contiguous().permute(order) if upstream == "transposed" else strided
        exact = torch.autograd.grad(out, x, up.contiguous(), retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(out, x, up)[0], exact)


@pytest.mark.parametrize("frontend", ["torch", "composite"])
def test_no_worse_than_pytorch(frontend):
    """The largest float32 error over many rows, in value and gradient, beside that of PyTorch itself."""
    rng = np.random.default_rng(0)
    for shape in [(200, 10), (100, 1000), (2, 19, 30, 20), (4, 20000)]:
        logits = quantise(4 * rng.normal(size=shape), "float32")
        target = rng.integers(0, shape[1], shape[:1] + shape[2:])
        for name in ["cross_entropy", *SOFTMAXES]:
            args, options = ((1,), {}) if name in SOFTMAXES else ((target,), {"reduction": "none"})
            upstream = 1.0
            if name in SOFTMAXES:
                upstream = quantise(rng.normal(size=shape), "float32")
            exact = expected(name, logits, *args, upstream=upstream, **options)
            ours = run(frontend, name, logits, *args, dtype="float32", upstream=upstream, **options)
            theirs = run("pytorch", name, logits, *args, dtype="float32", upstream=upstream, **options)
            for part in range(2):
                bound = max(largest(theirs[part] - exact[part]), 4 * EPS["float32"] * largest(exact[part]))
                assert largest(ours[part] - exact[part]) <= bound, (name, shape, ["value", "gradient"][part])
