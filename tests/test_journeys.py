"""How far a call travels: the Python calls inside the library, and how often they go from one of its files to another.

They are counted in the second call, forward and backward, since the first looks things up and compiles.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import crossent

LIBRARY = str(Path(crossent.__file__).parent)


def counted(call):
    """The Python calls in the library's files, and the moves between them."""
    places = []

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(LIBRARY):
            places.append(frame.f_code.co_filename)

    call()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return len(places), sum(a != b for a, b in zip(places, places[1:]))


def plain():
    x, y = torch.randn(32, 10, requires_grad=True), torch.randint(10, (32,))
    return lambda: crossent.cross_entropy(x, y).backward()


def class_weights():
    x, y, w = torch.randn(32, 10, requires_grad=True), torch.randint(10, (32,)), torch.rand(10)
    return lambda: crossent.cross_entropy(x, y, w).backward()


def nll_loss():
    x, y = torch.randn(32, 10).log_softmax(1).requires_grad_(), torch.randint(10, (32,))
    return lambda: crossent.nll_loss(x, y).backward()


def numpy_gradient():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(32, 10)).astype(np.float32), generator.integers(10, size=32)
    differentiated = crossent.value_and_grad(crossent.cross_entropy)
    return lambda: differentiated(x, y)


def head():
    x, w = torch.randn(32, 16, requires_grad=True), torch.randn(10, 16, requires_grad=True)
    y = torch.randint(10, (32,))
    return lambda: crossent.linear_cross_entropy(x, w, y).backward()


@pytest.mark.parametrize(
    ("journey", "calls", "moves"),
    [(plain, 9, 6), (class_weights, 26, 9), (nll_loss, 25, 10), (numpy_gradient, 26, 12), (head, 96, 46)],
)
def test_calls_and_moves(journey, calls, moves):
    found = counted(journey())
    assert found <= (calls, moves) and found[1] <= moves, f"{found[0]} calls, {found[1]} moves between files"
