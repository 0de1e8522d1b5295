"""The GPU's kernels of the statistics of labels, which Triton's interpreter runs on the CPU."""

import pytest
import test_tokens as of_tokens
import torch
from harness import on_triton

import crossent

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def by_triton():
    with on_triton():
        yield


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])  # bfloat16 is cut off by the interpreter
def test_values_and_gradients(dtype, shift, softcap):
    of_tokens.check_values_and_gradients(dtype, shift, softcap, 1000)


@pytest.mark.parametrize("classes", [5, 40, 1040])
def test_ties_go_by_class_order(classes):
    of_tokens.test_ties_go_by_class_order(classes, None)


def test_rows():
    of_tokens.test_ignored_rows_may_hold_nan()
    of_tokens.test_func_and_one_result_alone()
    of_tokens.test_confident_rows_keep_their_digits()
    for gap in (1.0, 20.0, 80.0):
        of_tokens.test_results_of_confident_rows(gap, plainly=False)


@pytest.mark.parametrize("classes", [9000, 16384])
def test_many_classes(classes):
    """Rows of several tiles, of which the last may be masked."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(size, 8, generator=generator, requires_grad=True) for size in (4, classes)]
    labels, above = torch.tensor([0, classes - 1, -100, 8200]), torch.rand(3, 4, generator=generator)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    values, rank = of_tokens.exact(*exact, torch.zeros(classes), labels, 0, None)
    stats = crossent.linear_token_stats(*leaves, labels)
    assert torch.equal(stats.rank, rank)
    for ours, theirs in zip(stats[:3], values):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(stats[:3], leaves, list(above))
    for ours, theirs in zip(gradients, torch.autograd.grad(values, exact, list(above.double()))):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
