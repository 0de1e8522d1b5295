"""What is refused, and how the message helps; and that nothing outside the arrays is read or written."""

import re
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from harness import FRONTENDS, bits, composite, gradients_made_in_backward

import crossent

LOSSES = ["cross_entropy", "nll_loss"]


def call(frontend, name, logits, target, *args, **kwargs):
    """The function on NumPy arguments, whatever the frontend."""
    function = getattr(crossent, name)
    if frontend == "numpy":
        return function(logits, target, *args, **kwargs)

    def tensor(value):
        return torch.as_tensor(value) if isinstance(value, np.ndarray) else value

    args = [tensor(a) for a in (logits, target, *args)]
    kwargs = {key: tensor(value) for key, value in kwargs.items()}
    if frontend == "composite":
        with composite():
            return function(*args, **kwargs)
    return function(*args, **kwargs)


def logits_of(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def integers(message):
    return [int(n) for n in re.findall(r"-?\d+", message)]


def assert_tells(error, value, position, classes):
    """The label's value, its position as a run of coordinates, and the valid range (as [0, C) or 0 to C-1)."""
    numbers = integers(str(error.value))
    assert value in numbers, error.value
    coordinates = list(position)
    runs = [numbers[i : i + len(coordinates)] for i in range(len(numbers))]
    assert coordinates in runs, error.value
    assert 0 in numbers and (classes in numbers or classes - 1 in numbers), error.value


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("bad", [13, 14, -1, -99, 2**31 + 5, 2**62, -(2**63), 2**32 + 3, -(2**32) + 3])
def test_bad_label(frontend, name, bad):
    """Also those that would be good when cut to 32 bits, and wherever in the batch they stand."""
    logits = logits_of(77, 13)
    for position in [0, 41, 76]:
        for reduction in ["mean", "none"]:
            labels = np.arange(77) % 13
            labels[position] = bad
            with pytest.raises(IndexError) as error:
                call(frontend, name, logits, labels, reduction=reduction)
            assert_tells(error, bad, [position], 13)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_bad_label_of_a_pixel(frontend, name):
    labels = np.zeros((2, 40, 31), np.int64)
    labels[1, 37, 29] = 777
    with pytest.raises(IndexError) as error:
        call(frontend, name, logits_of(2, 19, 40, 31), labels)
    assert_tells(error, 777, [1, 37, 29], 19)
    with pytest.raises(IndexError) as error:
        call(frontend, name, logits_of(2, 40, 31, 19), labels, dim=-1)
    assert_tells(error, 777, [1, 37, 29], 19)
    with pytest.raises(IndexError) as error:
        call(frontend, name, logits_of(2, 19, 31, 40).swapaxes(2, 3), labels.swapaxes(0, 2).copy().swapaxes(0, 2))
    assert_tells(error, 777, [1, 37, 29], 19)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_first_bad_label_is_named(frontend, name):
    labels = np.zeros(5000, np.int64)
    labels[[60, 700, 4000]] = [21, 22, 23]
    with pytest.raises(IndexError) as error:
        call(frontend, name, logits_of(5000, 11), labels)
    assert_tells(error, 21, [60], 11)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_bad_label_of_one_row(frontend, name):
    with pytest.raises(IndexError) as error:
        call(frontend, name, logits_of(9), np.array(9))
    assert 9 in integers(str(error.value))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_bad_label_with_every_option(frontend, name):
    labels = np.array([0, 1, 2, 30])
    options = {"sample_weight": np.ones(4, np.float32), "denominator": 2.0, "weight": np.ones(5, np.float32)}
    if name == "cross_entropy":
        options |= {"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 0.1}
    with pytest.raises(IndexError) as error:
        call(frontend, name, logits_of(4, 5), labels, **options)
    assert_tells(error, 30, [3], 5)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"])
def test_bad_label_of_every_type(frontend, dtype):
    """A label is widened before it is compared: the largest of each type must not wrap to a class or to -100."""
    top = int(np.iinfo(dtype).max)
    for bad in {top, top - 99, top - 255 if top > 300 else top, 17}:
        labels = np.array([0, 3, bad], dtype)
        with pytest.raises(IndexError) as error:
            call(frontend, "cross_entropy", logits_of(3, 17), labels)
        if bad < 2**63:
            assert_tells(error, bad, [2], 17)
    if dtype.startswith("u"):
        labels = np.array([0, 3, top - 99], dtype)
        with pytest.raises(IndexError):
            call(frontend, "nll_loss", logits_of(3, 17), labels)


def test_ignored_label_needs_no_class():
    for frontend in FRONTENDS:
        for name in LOSSES:
            for index in [-100, 5, 1000, -(2**63), 2**63 - 1]:
                labels = np.array([0, index, 4])
                kept = call(frontend, name, logits_of(3, 5)[[0, 2]], labels[[0, 2]])
                assert np.isclose(call(frontend, name, logits_of(3, 5), labels, ignore_index=index), kept)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_no_classes(frontend, name):
    """Without classes no label is good, and nothing may be read."""
    with pytest.raises((IndexError, ValueError)):
        call(frontend, name, logits_of(3, 0), np.zeros(3, np.int64))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(20000, 7), (2, 7, 100, 100)])
def test_labels_changed_after_the_forward(name, shape):
    """Behind autograd's back, through memory shared with NumPy: the version counter does not see it."""
    x = torch.as_tensor(logits_of(*shape)).requires_grad_()
    labels = np.zeros(shape[:1] + shape[2:], np.int64)
    with gradients_made_in_backward():
        loss = getattr(crossent, name)(x, torch.from_numpy(labels))
        labels[(-1,) * labels.ndim] = 10**9
        with pytest.raises(IndexError) as error:
            loss.backward()
    assert_tells(error, 10**9, [n - 1 for n in labels.shape], 7)


@pytest.mark.parametrize("options", [{}, {"weight": torch.ones(7)}])
def test_labels_changed_after_the_gradient_was_made(options):
    """The gradient is that of the labels which the forward pass saw; one that is made again reads the new ones."""
    x, labels = torch.as_tensor(logits_of(50, 7)).requires_grad_(), np.zeros(50, np.int64)
    (expected,) = torch.autograd.grad(crossent.cross_entropy(x, torch.from_numpy(labels.copy()), **options), x)
    loss = crossent.cross_entropy(x, torch.from_numpy(labels), **options)
    labels[-1] = 10**9
    loss.backward(retain_graph=True)
    assert torch.equal(x.grad, expected)
    with pytest.raises(IndexError) as error:
        loss.backward()
    assert_tells(error, 10**9, [49], 7)


@pytest.mark.parametrize("name", LOSSES)
def test_numpy_gradient_refuses_bad_labels(name):
    with pytest.raises(IndexError) as error:
        crossent.value_and_grad(getattr(crossent, name))(logits_of(4, 5), np.array([0, 1, 9, 2]))
    assert_tells(error, 9, [2], 5)


SHAPES = [
    ((4, 5), (3,)),
    ((4, 5), (4, 1)),
    ((4, 5), ()),
    ((4, 5), (5,)),
    ((5,), (1,)),
    ((2, 5, 3), (2,)),
    ((2, 5, 3), (2, 4)),
    ((2, 5, 3), (3, 2)),
    ((2, 5, 3, 7), (2, 21)),
    ((2, 5, 3, 7), (2, 7, 3)),
    ((0, 5), (1,)),
]


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("shape", "target"), SHAPES)
def test_shapes_of_labels(frontend, name, shape, target):
    with pytest.raises(ValueError) as error:
        call(frontend, name, logits_of(*shape), np.zeros(target, np.int64))
    message = str(error.value)
    assert str(shape) in message and str(target) in message


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    ("shape", "target"), [((4, 5), (4, 6)), ((4, 5), (3, 5)), ((2, 5, 3), (2, 3, 5)), ((5,), (6,))]
)
def test_shapes_of_soft_targets(frontend, shape, target):
    with pytest.raises(ValueError) as error:
        call(frontend, "cross_entropy", logits_of(*shape), np.ones(target, np.float32))
    message = str(error.value)
    assert str(shape) in message and str(target) in message


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_shapes_of_weights(frontend, name):
    logits, labels = logits_of(4, 5), np.array([0, 1, 2, 3])
    for shape in [(4,), (6,), (1,), (), (5, 1), (4, 5), (0,)]:
        with pytest.raises(ValueError) as error:
            call(frontend, name, logits, labels, np.ones(shape, np.float32))
        assert str(shape) in str(error.value) and "5" in str(error.value)
    for shape in [(5,), (3,), (4, 1), (4, 5), (2, 4), (0,)]:
        with pytest.raises(ValueError) as error:
            call(frontend, name, logits, labels, sample_weight=np.ones(shape, np.float32))
        assert str(shape) in str(error.value) and "(4,)" in str(error.value)
    for shape in [(2,), (4,), (1, 2)]:
        with pytest.raises(ValueError):
            call(frontend, name, logits, labels, denominator=np.ones(shape, np.float32))
    with pytest.raises(
        TypeError, match="denominator must be an integer or a float of 32 bits, .* got (torch.)?float16"
    ):
        call(
            frontend,
            name,
            logits,
            labels,
            denominator=np.float16(3) if frontend == "numpy" else torch.tensor(3.0).half(),
        )


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_logits_without_classes(frontend, name):
    with pytest.raises(ValueError):
        call(frontend, name, np.array(3, np.float32), np.array(0))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dim", [2, -3, 7])
def test_class_axis_out_of_range(frontend, name, dim):
    with pytest.raises((IndexError, ValueError)) as error:
        call(frontend, name, logits_of(4, 5), np.zeros(4, np.int64), dim=dim)
    assert dim in integers(str(error.value))
    with pytest.raises((IndexError, ValueError)) as error:
        crossent.softmax(torch.zeros(4, 5) if frontend != "numpy" else np.zeros((4, 5)), dim)


BAD_OPTIONS = [
    {"reduction": "avg"},
    {"reduction": "Mean"},
    {"reduction": ""},
    {"label_smoothing": -0.1},
    {"label_smoothing": 1.5},
    {"label_smoothing": float("nan")},
    {"label_smoothing": float("inf")},
    {"softcap": 0.0},
    {"softcap": -3.0},
    {"softcap": float("nan")},
    {"z_loss": float("nan")},
    {"z_loss": float("inf")},
]


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_option_out_of_range(frontend, options):
    with pytest.raises(ValueError) as error:
        call(frontend, "cross_entropy", logits_of(4, 5), np.zeros(4, np.int64), **options)
    (name,) = options
    assert name in str(error.value)
    if name == "reduction":
        with pytest.raises(ValueError):
            call(frontend, "nll_loss", logits_of(4, 5), np.zeros(4, np.int64), **options)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": "0.x"}, {"softcap": "a"}, {"z_loss": []}, {"ignore_index": 1.5}, {"ignore_index": "a"}],
    ids=str,
)
def test_option_of_the_wrong_type(frontend, options):
    with pytest.raises(TypeError):
        call(frontend, "cross_entropy", logits_of(4, 5), np.zeros(4, np.int64), **options)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_reduction_of_the_wrong_type(frontend, name):
    for reduction in [None, 1, ["mean"]]:
        with pytest.raises((TypeError, ValueError)):
            call(frontend, name, logits_of(4, 5), np.zeros(4, np.int64), reduction=reduction)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "bool", "complex64", "complex128"])
def test_dtype_of_logits(frontend, name, dtype):
    with pytest.raises(TypeError) as error:
        call(frontend, name, np.ones((4, 5), dtype), np.zeros(4, np.int64))
    assert dtype in str(error.value)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["bool", "complex64", "float32", "float64", "float16"])
def test_dtype_of_labels(frontend, name, dtype):
    with pytest.raises(TypeError) as error:
        call(frontend, name, logits_of(4, 5), np.zeros(4, dtype))
    assert dtype in str(error.value)
    if dtype.startswith("float") and name == "nll_loss":
        with pytest.raises((TypeError, ValueError)):
            call(frontend, name, logits_of(4, 5), np.ones((4, 5), dtype))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 5, 3)])
@pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "complex64"])
def test_dtype_of_soft_targets(frontend, shape, dtype):
    with pytest.raises(TypeError) as error:
        call(frontend, "cross_entropy", logits_of(*shape), np.ones(shape, dtype))
    assert dtype in str(error.value)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("dtype", ["bool", "complex64"])
def test_dtype_of_weights(frontend, dtype):
    with pytest.raises(TypeError):
        call(frontend, "cross_entropy", logits_of(4, 5), np.zeros(4, np.int64), np.ones(5, dtype))
    with pytest.raises(TypeError):
        call(frontend, "cross_entropy", logits_of(4, 5), np.zeros(4, np.int64), sample_weight=np.ones(4, "complex64"))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_dtype_of_softmax(name):
    """Whole numbers have no softmax unless a floating-point dtype is asked for."""
    function = getattr(crossent, name)
    for dtype in [torch.int64, torch.uint8, torch.bool]:
        with pytest.raises(TypeError):
            function(torch.ones(3, 4).to(dtype), 1)
        with pytest.raises(TypeError):
            function(torch.ones(3, 4).to(dtype).numpy(), 1)
    for dtype in [torch.int64, torch.bool]:
        with pytest.raises(TypeError):
            function(torch.ones(3, 4), 1, dtype=dtype)
    with pytest.raises(TypeError):
        function(np.ones((3, 4)), 1, dtype=np.int64)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", *LOSSES])
def test_not_an_array(name):
    args = (0,) if "softmax" in name else (np.array([0]),)
    for thing in [[[1.0, 2.0]], 3.0, None, "logits", object()]:
        with pytest.raises(TypeError):
            getattr(crossent, name)(thing, *args)


@pytest.mark.parametrize("name", LOSSES)
def test_target_of_another_library(name):
    """A NumPy target with torch logits and the reverse: an error that says so, never a wrong number."""
    function = getattr(crossent, name)
    for logits, target in [(torch.zeros(4, 5), [0, 1, 2, 3]), (np.zeros((4, 5)), torch.zeros(4, dtype=torch.int64))]:
        try:
            value = function(logits, target)
        except TypeError:
            continue
        expected = np.log(5.0) if name == "cross_entropy" else 0.0
        assert abs(float(value) - expected) < 1e-6
    with pytest.raises(TypeError):
        function(torch.zeros(4, 5), None)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_refusals_leave_the_inputs_alone(frontend):
    logits, labels = logits_of(40, 5), np.zeros(40, np.int64)
    labels[39] = 5
    before = logits.tobytes(), labels.tobytes()
    with pytest.raises(IndexError):
        call(frontend, "cross_entropy", logits, labels)
    assert (logits.tobytes(), labels.tobytes()) == before


# Around the arrays


def embedded(array, fill):
    """A view with the values of `array` in the middle of a larger tensor full of `fill`."""
    array = torch.as_tensor(array)
    around = torch.full([n + 6 for n in array.shape], fill, dtype=array.dtype)
    view = around[tuple(slice(3, 3 + n) for n in array.shape)]
    view.copy_(array)
    return around, view


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 1000), (2, 19, 3, 9), (2, 5, 17, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_neighbours_are_neither_read_nor_written(name, shape, dtype):
    nan = float("nan")
    logits = torch.as_tensor(logits_of(*shape)).to(dtype)
    labels = torch.arange(logits[:, 0].numel()).reshape(logits[:, 0].shape) % shape[1]
    around, x = embedded(logits, nan)
    label_around, y = embedded(labels, 10**12)
    weight_around, w = embedded(torch.linspace(1, 2, shape[1]).to(dtype), nan)
    sample_around, s = embedded(torch.linspace(1, 2, labels.numel()).reshape(labels.shape).to(dtype), nan)
    everything = [around, label_around, weight_around, sample_around]
    before = [bits(t).clone() for t in everything]
    args, kwargs = ((1,), {}) if "softmax" in name else ((y, w), {"sample_weight": s})
    plain_args = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    plain_kwargs = {key: value.clone() for key, value in kwargs.items()}
    results = []
    for leaf, a, k in [(x, args, kwargs), (logits, plain_args, plain_kwargs)]:
        leaf = leaf.detach().requires_grad_()
        out = getattr(crossent, name)(leaf, *a, **k)
        up_around, up = embedded(torch.ones_like(out), nan)
        results += [out.detach(), torch.autograd.grad(out, leaf, up)[0]]
    assert torch.isfinite(results[0]).all() and torch.isfinite(results[1]).all()
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    assert all(torch.equal(bits(t), b) for t, b in zip(everything, before, strict=True))


@pytest.mark.parametrize("shape", [(5, 7), (3, 1000), (2, 19, 3, 9), (2, 5, 17, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_inplace_gradient_stays_in_its_rows(shape, dtype):
    logits = torch.as_tensor(logits_of(*shape)).to(dtype)
    labels = torch.arange(logits[:, 0].numel()).reshape(logits[:, 0].shape) % shape[1]
    around, x = embedded(logits, 1234.0)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(crossent.cross_entropy(x, labels, inplace_backward=True), x)
    plain = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(crossent.cross_entropy(plain, labels), plain)
    assert torch.equal(gradient, expected)
    outside = torch.ones(around.shape, dtype=torch.bool)
    outside[tuple(slice(3, 3 + n) for n in shape)] = False
    assert (around[outside] == 1234.0).all()


GUARDED = """
import ctypes, mmap, itertools
import numpy as np, torch, crossent

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def guarded(array, at_end):
    "A copy that begins or ends where memory does: one byte further is a segmentation fault."
    pages = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    start = libc.mmap(None, pages + 2 * mmap.PAGESIZE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert start not in (None, 2**64 - 1)
    assert libc.mprotect(start + mmap.PAGESIZE, pages, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    address = start + mmap.PAGESIZE + (pages - array.nbytes if at_end else 0)
    buffer = (ctypes.c_char * array.nbytes).from_address(address)
    copy = np.frombuffer(buffer, array.dtype).reshape(array.shape)
    copy[...] = array
    return copy

rng = np.random.default_rng(0)
for shape, dtype, at_end in itertools.product(
    [(5,), (3, 7), (4, 16), (3, 1025), (70, 3), (2, 19, 3, 5), (2, 3, 33), (1, 6, 64)], DTYPES, [False, True]
):
    axis = 1 if len(shape) > 1 else 0
    logits = rng.normal(size=shape)
    rest = shape[:axis] + shape[axis + 1:]
    labels = guarded(np.asarray(rng.integers(0, shape[axis], rest)), at_end)
    weight = guarded(rng.random(shape[axis]).astype(np.float32), at_end)
    if dtype == "bfloat16":
        words = torch.as_tensor(logits).bfloat16().view(torch.int16).numpy()
        x = torch.from_numpy(guarded(words, at_end)).view(torch.bfloat16)
    else:
        array = guarded(logits.astype(dtype), at_end)
        x = torch.from_numpy(array)
        crossent.value_and_grad(crossent.cross_entropy)(array, labels, weight)
        crossent.softmax(array, axis)
    t = torch.from_numpy(labels)
    soft = torch.from_numpy(guarded(rng.random(shape).astype(dtype.replace("bfloat16", "float32")), at_end))
    soft = soft.to(x.dtype)
    for name, target, options in [
        ("cross_entropy", t, {}), ("cross_entropy", t, {"label_smoothing": 0.1, "weight": torch.from_numpy(weight)}),
        ("cross_entropy", soft, {}), ("nll_loss", t, {}), ("softmax", axis, {}), ("log_softmax", axis, {}),
        ("cross_entropy", t, {"inplace_backward": True}),
    ]:
        leaf = x.detach().requires_grad_()
        getattr(crossent, name)(leaf, target, **options).sum().backward()
print("no fault")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect through the C library")
def test_memory_that_ends_with_the_array():
    script = textwrap.dedent(GUARDED).replace("DTYPES", repr(["float16", "bfloat16", "float32", "float64"]))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout == "no fault\n", f"exit status {done.returncode}: {done.stderr}"


def test_deprecated_arguments_warn_and_mean_what_they_meant():
    x, y = torch.as_tensor(logits_of(4, 5)), torch.tensor([0, 1, 2, 3])
    for name in LOSSES:
        for size_average in [None, True, False]:
            for reduce in [None, True, False]:
                if size_average is None and reduce is None:
                    continue
                with pytest.warns(UserWarning, match="reduction='") as theirs:
                    expected = getattr(torch.nn.functional, name)(x, y, size_average=size_average, reduce=reduce)
                with pytest.warns(UserWarning, match="reduction='") as ours:
                    value = getattr(crossent, name)(x, y, size_average=size_average, reduce=reduce)
                assert torch.allclose(value, expected)
                said = [re.search("reduction='(.*?)'", str(w[0].message))[1] for w in (theirs, ours)]
                assert said[0] == said[1] and ours[0].filename == __file__
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    positional = getattr(crossent, name)(x, y, None, size_average, -100, reduce)
                assert torch.equal(positional, value)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4), (2, 3, 4, 5)])
def test_default_dim_warns(name, shape):
    x = torch.as_tensor(logits_of(*shape))
    with pytest.warns(UserWarning, match="Implicit dimension choice") as theirs:
        expected = getattr(torch.nn.functional, name)(x)
    with pytest.warns(UserWarning, match="Implicit dimension choice") as ours:
        value = getattr(crossent, name)(x)
    assert torch.allclose(value, expected)
    assert str(ours[0].message) == str(theirs[0].message)
    assert ours[0].filename == theirs[0].filename == __file__
    with pytest.warns(UserWarning, match="Implicit dimension choice") as ours:
        array = getattr(crossent, name)(np.asarray(x.numpy()))
    assert ours[0].filename == __file__
    np.testing.assert_allclose(array, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_what_equals_an_axis_but_is_none():
    """Also once the axis has been used."""
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    for extras in ({}, {"sample_weight": torch.ones(2)}):
        crossent.cross_entropy(logits, labels, dim=1, **extras)
        for dim in (True, 1.0, torch.tensor([1, 0]), np.array([1, 0])):
            with pytest.raises(TypeError, match="dim must be an integer"):
                crossent.cross_entropy(logits, labels, dim=dim, **extras)
    for several in (torch.tensor([1, 0]), np.array([1, 0])):
        with pytest.raises(TypeError, match="ignore_index must be an integer, got"):
            crossent.cross_entropy(logits, labels, ignore_index=several)


@pytest.mark.parametrize("sparse", [0, 1])
def test_sparse_tensors(sparse):
    arrays = [torch.ones(2, 3), torch.ones(2, dtype=torch.int64)]
    arrays[sparse] = arrays[sparse].to_sparse()
    with pytest.raises(TypeError, match="must be a dense tensor"):
        crossent.cross_entropy(*arrays)
