"""Heads and token statistics of classes that are spread over processes, by the contract of devices."""

from unittest import mock

import torch
from harness import grouped, on_unknown_device
from processes import Cases, collectives, in_processes
from test_sharded_classes import HEADS, head_of
from test_sharded_tokens import arrays, check
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import crossent
from crossent.frontends.torch import device_filter, device_products, labels

CASES = Cases()


@CASES.add
def heads(mesh):
    with on_unknown_device():
        for name in HEADS:
            head_of(mesh, name, ([Replicate()], [Shard(0)]))
        with mock.patch.object(device_products, "why_unfiltered", lambda x: None):
            with mock.patch.object(device_filter, "_grouped", side_effect=grouped) as products:
                head_of(mesh, "filtered", ([Replicate()], [Shard(0)]))
        assert products.call_count == 2
        head_of(mesh, "everything", ([Shard(0)], [Shard(0)]))
        head_of(mesh, "mean", ([Replicate()], [Shard(0)]), torch.bfloat16, bias=False)


@CASES.add
def plans(mesh):
    """Nothing is sent for a plan, of class weights either."""
    x, matrix = (torch.zeros(rows, 6, requires_grad=True) for rows in (8, 12))
    spread, weight = distribute_tensor(matrix, mesh, [Shard(0)]), torch.rand(12)
    call = crossent.linear_cross_entropy, distribute_tensor(x, mesh, [Replicate()]), spread, torch.arange(8)
    with on_unknown_device(), collectives() as sent:
        planned = crossent.plan(*call, weight=weight)
    assert planned.path == "kernels in two stages" and not sent
    assert "a chunk takes 1.1 GB at most, the same in all processes" in str(planned)


@CASES.add
def nothing_is_read(mesh):
    """The labels are not looked at, to make the mean's divisor of the class weights of all processes either."""
    x, matrix = (torch.randn(rows, 6, generator=torch.Generator().manual_seed(0)) for rows in (8, 12))
    spread = distribute_tensor(matrix, mesh, [Shard(0)]).requires_grad_()
    with on_unknown_device(), mock.patch.object(labels, "refuse_bad_labels", None):
        crossent.linear_cross_entropy(
            distribute_tensor(x, mesh, [Replicate()]), spread, torch.arange(8), weight=torch.rand(12)
        ).backward()
    assert spread.grad.full_tensor().count_nonzero()


@CASES.add
def tokens(mesh):
    with on_unknown_device():
        for classes in (10, 4):
            check(mesh, arrays(classes=classes), softcap=3.0, chunk_bytes=100)
        check(mesh, arrays(rows=(3, 5), classes=200), of_input=[Shard(0)], shift=1, chunk_bytes=2000)
        check(mesh, arrays(torch.bfloat16))


failures, test_processes = in_processes(__name__, CASES, [3])
