"""The kernels themselves: their hot loops are made of vectors, and their exp, log and tanh are right."""

import platform
import re

import numpy as np
import pytest
from numba import njit

from crossent.kernels import _compile, _inner, _last, _math, _scores, _simd
from crossent.kernels._call import kernel_of
from crossent.kernels.numba import LOSS, SCORES

FLOATS = [np.float32, np.float64]


def not_cached(function):
    raise RuntimeError("code from a cache cannot be inspected")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@pytest.mark.parametrize(
    ("fields", "function"),
    [
        (LOSS, _last.forward),
        (LOSS, _last.backward),
        (LOSS, _inner.forward),
        (LOSS, _inner.backward),
        (SCORES, _scores.forward),
    ],
)
def test_hot_loops_are_vectors(fields, function, monkeypatch):
    """The polynomial of exp is multiplied and added in registers of at least 256 bits, never one number at a time."""
    monkeypatch.setattr(_compile, "_SourceCache", not_cached)
    kernel = kernel_of.__wrapped__(function, "float32", fields.names)
    fused = re.findall(r"vfn?m(?:add|sub)\d+([ps])s\s+.*%([xyz])mm\d+$", kernel._library.get_asm_str(), re.MULTILINE)
    wide = sum(kind == "p" and register in "yz" for kind, register in fused)
    assert wide > 20 and not any(kind == "s" for kind, _ in fused)


def through(function, x):
    """The values of a vector function over an array whose length is a multiple of all vectors'."""
    out = np.empty_like(x)

    @njit
    def apply(like, source, target, n):
        for j in range(0, n, _simd.lanes(like)):
            _simd.store(like, target, j, function(like, _simd.load(like, source, j)))

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
    assert in_ulps(through(getattr(_math, name), x), exact) < ulps


@pytest.mark.parametrize("dtype", FLOATS)
def test_vector_functions_at_the_edges(dtype):
    x = np.tile(np.array([np.nan, -np.inf, 0, -1000], dtype), 4)
    assert np.array_equal(through(_math.exp, x)[:4], np.array([np.nan, 0, 1, 0], dtype), equal_nan=True)
    x = np.tile(np.array([np.nan, 0, 1, 1], dtype), 4)
    assert np.array_equal(through(_math.log, x)[:4], np.array([np.nan, -np.inf, 0, 0], dtype), equal_nan=True)
    x = np.tile(np.array([np.nan, -np.inf, np.inf, 0], dtype), 4)
    assert np.array_equal(through(_math.tanh, x)[:4], np.array([np.nan, -1, 1, 0], dtype), equal_nan=True)
