"""The matrix products of the fused head, beside float64: every side, edge, stride and storage type."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from crossent.frontends._products import multiply, round_in_place
from crossent.frontends.numpy.losses import NUMPY
from crossent.frontends.torch.arrays import TORCH
from crossent.kernels.cpu import matmul, tile
from crossent.kernels.cpu.processor import (
    FEATURES,
    LIBRARY,
    PAIRS,
    PRODUCTS_OF_BFLOAT16,
    WIDENED,
    products_of_bfloat16,
)

SIDES = (1, 2, 5, 7, 16, 33, 97, 257, 1030)
WAYS = ("written", "added", "rounded")
HAS_PAIRS = PAIRS in PRODUCTS_OF_BFLOAT16
only_pairs = pytest.mark.skipif(not HAS_PAIRS, reason="the processor does not multiply pairs of bfloat16")
AGAINST = {"a b": (False, False), "a.T b": (True, False), "a b.T": (False, True), "a.T b.T": (True, True)}


def matrix(rows, columns, turned, dtype: type = np.float32):
    shape = (columns, rows) if turned else (rows, columns)
    numbers = np.random.default_rng(rows * 1031 + columns).standard_normal(shape).astype(dtype)
    return numbers.T if turned else numbers


def check(rows, columns, depth, kind, adds, dtype, lib=NUMPY, like=lambda a: a):
    turned_a, turned_b = AGAINST[kind]
    wide = np.float64 if dtype == np.float64 else np.float32
    a, b = matrix(rows, depth, turned_a, wide), matrix(depth, columns, turned_b, dtype)
    whole = np.full((rows, columns + 3), np.nan, wide)
    c = whole[:, :columns]
    if adds:
        c[...] = matrix(rows, columns, False, wide)
    exact = np.longdouble if dtype == np.float64 else np.float64
    expected = a.astype(exact) @ b.astype(exact) + (c if adds else 0)
    multiply(lib, like(a), like(b), like(c), adds)
    bound = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64) + 1
    assert (np.abs(c - expected) <= 8 * np.finfo(wide).eps * bound).all()
    assert np.isnan(whole[:, columns:]).all()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SIDES), st.sampled_from(SIDES), st.sampled_from(SIDES), st.sampled_from(list(AGAINST)),
    st.booleans(), st.sampled_from([np.float16, np.float32, np.float64]),
)  # fmt: skip
def test_products(rows, columns, depth, kind, adds, dtype):
    check(rows, columns, depth, kind, adds, dtype)


def pairs(rows, columns, turned, behind=torch.nan):
    """A matrix in bfloat16 with nan behind its rows, which may or may not be whole pairs."""
    if turned:
        return pairs(columns, rows, False, behind).T
    padded = torch.full((rows, columns + 2 + rows % 2), behind, dtype=torch.bfloat16)
    padded[:, :columns] = torch.from_numpy(matrix(rows, columns, False))
    return padded[:, :columns]


def check_pairs(rows, columns, depth, kind, way, padded=False):
    turned_a, turned_b = AGAINST[kind]
    a, b = pairs(rows, depth, turned_a, 0 if padded else torch.nan), pairs(depth, columns, turned_b)
    whole = torch.full((rows, columns + 3), torch.nan, dtype=torch.bfloat16 if way == "rounded" else torch.float32)
    c = whole[:, :columns]
    if way == "added":
        c[...] = torch.from_numpy(matrix(rows, columns, False))
    expected = a.double() @ b.double() + (c if way == "added" else 0)
    multiply(TORCH, a, b, c, way == "added", padded=padded)
    # Twice that of numbers that do not come in pairs: twice as many follow each other in a register.
    error = 16 * np.finfo(np.float32).eps * (a.double().abs() @ b.double().abs() + 1)
    if way == "rounded":
        error += expected.abs() * 2**-8
    assert ((c - expected).abs() <= error).all()
    assert whole[:, columns:].isnan().all()


@only_pairs
@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(SIDES), st.sampled_from(SIDES), st.sampled_from(SIDES), st.sampled_from(list(AGAINST)),
    st.sampled_from(WAYS), st.booleans(),
)  # fmt: skip
def test_products_of_pairs(rows, columns, depth, kind, way, padded):
    check_pairs(rows, columns, depth, kind, way, padded)


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 333])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_rounding_in_place(rows, columns):
    """As PyTorch rounds, nan and what overflows among it; a 0 behind each row, and nothing changed behind that."""
    whole = torch.randn(rows, columns + 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    whole[rows // 2, columns // 2], whole[0, 0], whole[-1, columns - 1] = torch.nan, 3.4e38, -torch.inf
    matrix = whole[:, :columns]
    before, expected = whole.view(torch.bfloat16).clone(), matrix.bfloat16()
    round_in_place(TORCH, matrix)
    after = whole.view(torch.bfloat16)
    torch.testing.assert_close(after[:, :columns], expected, rtol=0, atol=0, equal_nan=True)
    assert (after[:, columns] == 0).all()
    assert torch.equal(after[:, 2 * columns :].view(torch.int16), before[:, 2 * columns :].view(torch.int16))


@pytest.mark.parametrize(
    ("features", "usual", "exact"),
    [
        ("avx2", WIDENED, WIDENED),
        ("avx2 avx512f", WIDENED, WIDENED),
        ("avx2 avx512f avx512bf16", PAIRS, PAIRS),
        ("avx2 avx512f avx512bf16 amx-bf16", LIBRARY, PAIRS),
        ("neon", WIDENED, WIDENED),
        ("neon bf16", LIBRARY, WIDENED),
    ],
)
def test_products_follow_from_the_processors_features(features, usual, exact):
    features = dict.fromkeys(features.split(), True) | {"fma": True, "avx512fp16": False}
    assert products_of_bfloat16(features) == (usual, exact)
    told = {PAIRS: WIDENED}
    assert products_of_bfloat16(features, known=False) == (told.get(usual, usual), told.get(exact, exact))
    assert products_of_bfloat16(FEATURES) == PRODUCTS_OF_BFLOAT16 or "NUMBA_CPU_NAME" in os.environ


@only_pairs
@pytest.mark.parametrize("depth", [768, 5000, 40000])
@pytest.mark.parametrize("kind", AGAINST)
def test_rounded_sums_are_never_cut(kind, depth):
    """Beyond what a panel usually holds, and where all the panels' memory is too little for one."""
    check_pairs(9, 70, depth, kind, "rounded")


@only_pairs
def test_products_of_pairs_for_some_rows():
    numbers = torch.from_numpy(np.random.default_rng(0).permutation(900)[:312])
    a, b = (torch.from_numpy(matrix(*shape, False)).bfloat16() for shape in ((33, 312), (900, 70)))
    results = torch.empty(2, 33, 70)
    multiply(TORCH, a, b, results[0], b_rows=numbers)
    multiply(TORCH, a, b[numbers], results[1])
    assert torch.equal(*results)
    some, whole = torch.ones(312, 70), torch.ones(900, 70)
    for c, rows in ((some, None), (whole, numbers)):
        multiply(TORCH, a.T, b[:33], c, adds=True, c_rows=rows)
    assert torch.equal(whole[numbers], some)
    whole[numbers] = 1
    assert (whole == 1).all()


@only_pairs
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", AGAINST)
def test_threads_and_neighbours_change_no_bit_of_pairs(kind, way):
    turned_a, turned_b = AGAINST[kind]
    a, b = pairs(1200, 300, turned_a), pairs(300, 1100, turned_b)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(torch.ones(1200, 1100, dtype=torch.bfloat16 if way == "rounded" else torch.float32))
            multiply(TORCH, a, b, results[-1], way == "added")
    finally:
        torch.set_num_threads(before)
    some = torch.ones_like(results[0][:7])
    multiply(TORCH, a[5:12], b, some, way == "added")
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert torch.equal(results[0][5:12], some)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("lib", "like"), [(NUMPY, np.asarray), (TORCH, torch.from_numpy)])
def test_products_of_some_rows(lib, like, dtype, adds):
    """Those of b, or those of the product; the others keep what they hold."""
    wide = np.float64 if dtype == np.float64 else np.float32
    numbers = np.random.default_rng(0).permutation(900)[:311]
    a, b = matrix(33, 311, False, wide), matrix(900, 70, False, dtype)
    c, same = np.ones((33, 70), wide), np.ones((33, 70), wide)
    multiply(lib, like(a), like(b), like(c), adds, b_rows=like(numbers))
    multiply(lib, like(a), like(b[numbers]), like(same), adds)
    assert np.array_equal(c, same)
    c = np.ones((33, 70), wide)
    multiply(lib, like(a), like(np.asfortranarray(b)), like(c), adds, b_rows=like(numbers))
    assert np.array_equal(c, same)
    turned, b = matrix(311, 33, True, wide), matrix(33, 70, False, dtype)
    c, same = np.ones((900, 70), wide), np.ones((311, 70), wide)
    multiply(lib, like(turned), like(b), like(c), adds, c_rows=like(numbers))
    multiply(lib, like(turned), like(b), like(same), adds)
    assert np.array_equal(c[numbers], same)
    assert (np.delete(c, numbers, 0) == 1).all()


@pytest.mark.parametrize("kind", AGAINST)
def test_pytorch_has_the_same_bits(kind):
    results = []
    for lib, like in ((NUMPY, lambda a: a), (TORCH, torch.from_numpy)):
        turned_a, turned_b = AGAINST[kind]
        c = np.empty((70, 300), np.float32)
        multiply(lib, like(matrix(70, 600, turned_a)), like(matrix(600, 300, turned_b)), like(c))
        results.append(c)
    assert np.array_equal(*results)


@pytest.mark.parametrize("kind", AGAINST)
def test_threads_and_neighbours_change_no_bit(kind):
    a, b = matrix(1200, 300, AGAINST[kind][0]), matrix(300, 1100, AGAINST[kind][1])
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            c = torch.empty(1200, 1100)
            multiply(TORCH, torch.from_numpy(a), torch.from_numpy(b), c)
            results.append(c)
    finally:
        torch.set_num_threads(before)
    some = torch.empty(7, 1100)
    multiply(TORCH, torch.from_numpy(a)[5:12], torch.from_numpy(b), some)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert torch.equal(results[0][5:12], some)


def test_bfloat16_is_widened_exactly():
    a, b = torch.from_numpy(matrix(40, 90, False)), torch.from_numpy(matrix(90, 50, True)).bfloat16()
    results = torch.empty(2, 40, 50)
    multiply(TORCH, a, b, results[0])
    multiply(TORCH, a, b.float(), results[1])
    assert torch.equal(*results)


def test_any_strides():
    a, b, c = matrix(18, 40, False), matrix(80, 30, False), np.empty((9, 15), np.float32)
    multiply(NUMPY, a[::-2], b[::2, ::2], c)
    np.testing.assert_allclose(c, a[::-2] @ b[::2, ::2], rtol=1e-5, atol=1e-5)


def test_nothing_to_sum():
    c = np.ones((3, 4), np.float32)
    multiply(NUMPY, np.empty((3, 0), np.float32), np.empty((0, 4), np.float32), c, adds=True)
    assert (c == 1).all()
    multiply(NUMPY, np.empty((3, 0), np.float32), np.empty((0, 4), np.float32), c)
    assert (c == 0).all()
    multiply(NUMPY, np.empty((0, 5), np.float32), np.empty((5, 4), np.float32), np.empty((0, 4), np.float32))


def test_rows_that_are_not_there_are_not_read():
    """A row beside the block is nan: what is computed for it goes nowhere."""
    a = matrix(13, 40, False)
    a[11:] = np.nan
    c, b = np.empty((11, 20), np.float32), matrix(40, 20, False)
    multiply(NUMPY, a[:11], b, c)
    np.testing.assert_allclose(c, a[:11] @ b, rtol=1e-5, atol=1e-5)


OTHER_TILE = """
import crossent.kernels.cpu.tile as tile
tile.HEIGHT, tile.VECTORS = {shape}
from tests.test_products import AGAINST, HAS_PAIRS, SIDES, WAYS, check, check_pairs
import numpy as np
for rows, columns, depth in zip(SIDES, SIDES[3:] + SIDES[:3], SIDES[5:] + SIDES[:5]):
    for kind in AGAINST:
        check(rows, columns, depth, kind, True, np.float32)
        check(rows, columns, depth, kind, False, np.float16)
        for way in WAYS[: 3 * HAS_PAIRS]:
            check_pairs(rows, columns, depth, kind, way)
"""


def test_the_other_tile(tmp_path):
    """Of processors that have 32 registers of 512 bits, or have not."""
    shape = (6, 1) if tile.HEIGHT == 8 else (8, 2)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", OTHER_TILE.format(shape=shape)], check=True, env=environment)


def test_a_block_is_whole_tiles():
    assert matmul.ROWS % tile.HEIGHT == 0
