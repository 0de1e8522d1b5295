"""How many kernels a call launches on a GPU: ours, which Triton's interpreter runs here, and PyTorch's."""

import contextlib
from unittest import mock

import pytest
import torch
from harness import on_triton, on_triton_at_once, triton_kernels

import crossent

pytest.importorskip("triton", minversion="3.6")

# What computes nothing, and what is made of other operations.
FREE = {
    "alias", "as_strided", "as_strided_", "detach", "detach_", "empty", "empty_like", "empty_strided", "expand",
    "narrow", "new_empty", "new_empty_strided", "permute", "resize_", "result_type", "select", "set_", "slice",
    "squeeze", "t", "transpose", "unbind", "_unsafe_view", "unsqueeze", "view", "view_as",
}  # fmt: skip
COMPOSITE = {
    "clone", "contiguous", "cross_entropy_loss", "flatten", "full", "log_softmax", "nll_loss", "nll_loss_nd", "ones",
    "ones_like", "reshape", "softmax", "to", "_to_copy", "zeros", "zeros_like",
}  # fmt: skip


def work_of(call):
    """The kernels that it launches. A profiler sees them, which changes no call's way."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def marked(self, *args, **options):
        with torch.profiler.record_function(f"kernel::{self.fn.__name__}"):
            return run(self, *args, **options)

    call()
    with (
        mock.patch.object(InterpretedFunction, "run", marked),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen,
    ):
        call()
    first = [event for event in seen.events() if event.cpu_parent is None]
    return [name for event in first for name in launched(event)]


def launched(event):
    library, _, name = event.name.partition("::")
    if library == "kernel" or (library == "aten" and name not in FREE | COMPOSITE):
        return [name]
    return [] if name in FREE else [found for child in event.cpu_children for found in launched(child)]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The count of programs is kept from launch to launch. The number of a bad row is copied to the host's memory, and
    looked at there: no kernel does that.
    """
    from crossent.frontends.torch import late

    monkeypatch.setattr(late, "_refuse", lambda bad, error, wait: None)
    monkeypatch.setattr(triton_kernels(), "_stream_on", lambda device: 0)


def step(loss, *args, **options):
    """Forward and backward; the upstream gradient is there, which PyTorch makes as it does for any loss."""
    x = args[0].requires_grad_()
    upstream = torch.ones_like(loss(*args, **options).detach())

    def call():
        loss(*args, **options).backward(upstream)
        x.grad = None

    return call


def test_what_is_counted():
    """Operations that compute, once each; not the views and the memory beside them."""
    x = torch.randn(4, 6)
    assert work_of(lambda: x.view(24)[3:].t().detach().expand(2, 21)) == []
    assert work_of(lambda: (x + 1).sum()) == ["add", "sum"]
    assert work_of(lambda: torch.zeros(3).fill_(2)) == ["zero_", "fill_"] or work_of(lambda: torch.zeros(3)) == [
        "fill_"
    ]
    assert len(work_of(lambda: x.double())) == 1
    theirs = work_of(step(torch.nn.functional.cross_entropy, x, torch.tensor([1, 2, 3, 0])))
    assert theirs == ["_log_softmax", "nll_loss_forward", "nll_loss_backward", "_log_softmax_backward_data"]


LOGITS = {"rows": (3, 300), "long rows": (2, 5000), "classes across memory": (2, 19, 40)}


@pytest.mark.parametrize("way", [on_triton, on_triton_at_once])
@pytest.mark.parametrize("shape", LOGITS)
@pytest.mark.parametrize(("reduction", "at_most"), [("mean", 3), ("sum", 3), ("none", 3)])
def test_a_step_of_cross_entropy(reduction, at_most, shape, way, as_on_a_gpu):
    shape = LOGITS[shape]
    x, y = torch.randn(shape), torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    with way():
        found = work_of(step(crossent.cross_entropy, x, y, reduction=reduction))
    assert len(found) <= at_most, found


def test_an_evaluation_of_cross_entropy(as_on_a_gpu):
    x, y = torch.randn(3, 300), torch.zeros(3, dtype=torch.int64)
    with on_triton(), torch.no_grad():
        found = work_of(lambda: crossent.cross_entropy(x, y))
    assert len(found) <= 2, found


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_a_step_of_softmax(name):
    with on_triton():
        assert work_of(step(getattr(crossent, name), torch.randn(3, 300), 1)) == ["forward", "backward"]


def test_a_step_of_nll_loss(as_on_a_gpu):
    x, y = torch.randn(3, 300), torch.zeros(3, dtype=torch.int64)
    with on_triton():
        assert work_of(step(crossent.nll_loss, x, y)) == ["losses_of_labels", "gradients_of_labels"]


def test_statistics_of_predictions(as_on_a_gpu):
    x, y = torch.randn(3, 300), torch.zeros(3, dtype=torch.int64)
    with on_triton():
        assert work_of(lambda: crossent.prediction_stats(x, y)) == ["statistics_of_rows"]


def test_a_step_on_another_device_than_the_current_one(monkeypatch):
    """Its launches are made there, whichever thread and device the backward pass begins with."""
    x, y, on = torch.randn(3, 30, requires_grad=True), torch.zeros(3, dtype=torch.int64), []

    class Current(contextlib.nullcontext):
        def __enter__(self):
            on.append(self.enter_result.index)

        def __exit__(self, *error):
            on.pop()

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: on[-1] if on else 0)
    with on_triton():
        loss = crossent.cross_entropy(x, y)
        gradients, launched = loss.grad_fn.ready.step.gradients, []
        gradients.device = torch.device("cuda", 1)
        find = gradients._find
        gradients._find = lambda *arguments: launched.append(torch.cuda.current_device()) or find(*arguments)
        loss.backward()
    assert launched == [1]
    torch.testing.assert_close(x.grad, torch.autograd.grad(torch.nn.functional.cross_entropy(x, y), x)[0])
