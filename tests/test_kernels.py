"""The kernels themselves: their hot loops are made of vectors, and their exp, log and tanh are right."""

import platform
import re

import numpy as np
import pytest
import torch
from harness import TORCH_DTYPES, bits, gradients_made_in_backward, new_plans
from numba import njit

import crossent
from crossent.kernels.cpu import (
    across,
    along,
    call as kernel_call,
    compile as kernel_compile,
    math as vector_math,
    scores,
    vector as v,
)
from crossent.kernels.cpu.call import kernel_of
from crossent.kernels.cpu.kernels import LOSS, SCORES

FLOATS = [np.float32, np.float64]


def not_cached(function):
    raise RuntimeError("code from a cache cannot be inspected")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@pytest.mark.parametrize(
    ("fields", "function"),
    [
        (LOSS, along.forward),
        (LOSS, along.backward),
        (LOSS, across.forward),
        (LOSS, across.backward),
        (SCORES, scores.forward),
    ],
)
def test_hot_loops_are_vectors(fields, function, monkeypatch):
    """The polynomial of exp is multiplied and added in registers of at least 256 bits, never one number at a time."""
    monkeypatch.setattr(kernel_compile, "_SourceCache", not_cached)
    kernel = kernel_of.__wrapped__(function, "float32", fields.names)
    fused = re.findall(r"vfn?m(?:add|sub)\d+([ps])s\s+.*%([xyz])mm\d+$", kernel._library.get_asm_str(), re.MULTILINE)
    wide = sum(kind == "p" and register in "yz" for kind, register in fused)
    assert wide > 20 and not any(kind == "s" for kind, _ in fused)


def through(function, x):
    """The values of a vector function over an array whose length is a multiple of all vectors'."""
    out = np.empty_like(x)

    @njit
    def apply(like, source, target, n):
        for j in range(0, n, v.lanes(like)):
            v.store(like, target, j, function(like, v.load(like, source, j)))

    apply(x.dtype.type(0), x.ctypes.data, out.ctypes.data, x.size)
    return out


def in_ulps(values, exact):
    size = np.spacing(abs(exact).astype(values.dtype)).astype(np.longdouble)
    return float((abs(values - exact) / size).max())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("name", "points", "ulps"),
    [
        ("exp", np.linspace(-80, 80, 1 << 14), 1.5),
        ("log", np.logspace(-30, 30, 1 << 14), 2.5),
        ("log1p", np.logspace(-30, 0, 1 << 14), 2.5),
        ("tanh", np.concatenate([-np.logspace(-20, 1, 1 << 13), np.logspace(-20, 1, 1 << 13)]), 5),
    ],
)
def test_vector_functions(dtype, name, points, ulps):
    x = points.astype(dtype)
    exact = getattr(np, name)(x.astype(np.longdouble))
    assert in_ulps(through(getattr(vector_math, name), x), exact) < ulps


@pytest.mark.parametrize("dtype", FLOATS)
def test_vector_functions_at_the_edges(dtype):
    x = np.tile(np.array([np.nan, -np.inf, 0, -1000], dtype), 4)
    assert np.array_equal(through(vector_math.exp, x)[:4], np.array([np.nan, 0, 1, 0], dtype), equal_nan=True)
    x = np.tile(np.array([np.nan, 0, 1, 1], dtype), 4)
    assert np.array_equal(through(vector_math.log, x)[:4], np.array([np.nan, -np.inf, 0, 0], dtype), equal_nan=True)
    x = np.tile(np.array([np.nan, -np.inf, np.inf, 0], dtype), 4)
    assert np.array_equal(through(vector_math.tanh, x)[:4], np.array([np.nan, -1, 1, 0], dtype), equal_nan=True)


@pytest.fixture
def poison(monkeypatch):
    """Scratch memory holds nan, or labels of -1, wherever a kernel has not written."""
    scratch, new_block = kernel_call._scratch, kernel_call._Block.__init__

    def poisoned_scratch(size, threads):
        address, memory = scratch(size, threads)
        memory[:] = 0xFF
        return address, memory

    def poisoned_block(block, size, scratch_size):
        new_block(block, size, scratch_size)
        if block.scratch:
            start = block.scratch - block.address
            block.memory[start:] = b"\xff" * (len(block.memory) - start)

    monkeypatch.setattr(kernel_call, "_scratch", poisoned_scratch)
    monkeypatch.setattr(kernel_call._Block, "__init__", poisoned_block)


WEIGHED = {
    "nothing": {},
    "classes": {"weight": torch.linspace(0.5, 2, 300)},
    "classes, smoothed": {"weight": torch.linspace(0.5, 2, 300), "label_smoothing": 0.1},
    "capped": {"softcap": 5.0, "z_loss": 0.01},
    "samples": {"sample_weight": torch.linspace(0, 1, 5)},
}


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("weighed", WEIGHED)
@pytest.mark.parametrize("shape", [(5, 7), (5, 70), (5, 300), (5, 7, 3, 5), (5, 70, 2, 1)])
def test_nothing_hangs_on_what_scratch_memory_held(request, dtype, weighed, shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(TORCH_DTYPES[dtype])
    labels = torch.arange(logits.numel() // shape[1]).reshape(shape[:1] + shape[2:]) % shape[1]
    labels[1] = -100
    options = dict(WEIGHED[weighed])
    if "weight" in options:
        options["weight"] = options["weight"][: shape[1]]
    if "sample_weight" in options:
        options["sample_weight"] = options["sample_weight"].reshape(-1, *[1] * (labels.ndim - 1))

    def results():
        for target in (labels, logits.softmax(1)):
            for apart in (new_plans, gradients_made_in_backward):
                x = logits.clone().requires_grad_()
                with apart():
                    loss = crossent.cross_entropy(x, target, **options)
                    loss.backward()
                yield from (bits(loss), bits(x.grad))

    expected = list(results())
    request.getfixturevalue("poison")
    assert all(torch.equal(*pair) for pair in zip(results(), expected, strict=True))
