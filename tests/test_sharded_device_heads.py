"""Heads and token statistics of classes that are spread over processes, by the contract of devices."""

import torch
from harness import on_unknown_device
from processes import Cases, in_processes
from test_sharded_classes import HEADS, head_of
from test_sharded_tokens import arrays, check
from torch.distributed.tensor import Replicate, Shard

CASES = Cases()


@CASES.add
def heads(mesh):
    with on_unknown_device():
        for name in HEADS:
            head_of(mesh, name, ([Replicate()], [Shard(0)]))
        head_of(mesh, "everything", ([Shard(0)], [Shard(0)]))
        head_of(mesh, "mean", ([Replicate()], [Shard(0)]), torch.bfloat16, bias=False)


@CASES.add
def tokens(mesh):
    with on_unknown_device():
        for classes in (10, 4):
            check(mesh, arrays(classes=classes), softcap=3.0, chunk_bytes=100)
        check(mesh, arrays(rows=(3, 5), classes=200), of_input=[Shard(0)], shift=1, chunk_bytes=2000)
        check(mesh, arrays(torch.bfloat16))


failures, test_processes = in_processes(__name__, CASES, [3])
