"""The grid of losses whose classes are spread, at large: every option, shape and dtype in 1 to 4 processes."""

import traceback

import pytest
import test_plain_shards as plain_shards
import test_sharded_classes as sharded
import torch
from processes import Cases, in_processes
from test_contract import NLL_OPTIONS, OPTION_SHAPES, OPTIONS, SHAPES, class_axis
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

CASES = Cases()
DTYPES = "float16", "bfloat16", "float32", "float64"
EVERY_SHAPE = [*SHAPES, *OPTION_SHAPES[1:4]]


def all_of(settings, check, mesh):
    """Check all, and tell of all that fail. They fail alike in every process, or not at all."""
    failed = []
    for setting in settings:
        try:
            check(mesh, *setting)
        except AssertionError:
            failed.append(f"{setting}: {traceback.format_exc()}")
    assert not failed, f"{len(failed)} of {len(settings)}, " + "\n".join(failed[:3])


def of_shapes(options, *before):
    """One number as the sample weight of a single row is none of these: it is no array."""
    return [
        (*before, one, *shape, dtype)
        for shape in EVERY_SHAPE
        for one in options.values()
        for dtype in DTYPES
        if len(shape[0]) > 1 or "sampled" not in one
    ]


@CASES.add
def cross_entropy(mesh):
    all_of(of_shapes(OPTIONS, "cross_entropy"), sharded.check, mesh)


@CASES.add
def nll_loss(mesh):
    all_of(of_shapes(NLL_OPTIONS, "nll_loss"), sharded.check, mesh)


@CASES.add
def rows_and_classes(mesh):
    """Every way to spread an input of three axes over a mesh of two."""
    grids = [init_device_mesh("cpu", (mesh.size(), 1))]
    if mesh.size() % 2 == 0:
        grids.append(init_device_mesh("cpu", (2, mesh.size() // 2)))
    spread = [Replicate(), Shard(0), Shard(1), Shard(2)]
    settings = []
    for shape, dim in (((2, 19, 3), None), ((3, 4, 17), 2)):
        axis = class_axis(torch.empty(shape), dim)
        ways = [[one, other] for one in spread for other in spread if Shard(axis) in (one, other)]
        settings += [
            ("cross_entropy", one, shape, dim, dtype, way)
            for one in OPTIONS.values()
            for dtype in DTYPES[2:]
            for way in ways
        ]
    for grid in grids:
        all_of(settings, sharded.check, grid)


@CASES.add
def heads(mesh):
    ways = [[Replicate()], [Shard(0)]]
    settings = [
        (name, (way, [Shard(0)]), dtype, bias)
        for name in sharded.HEADS
        for way in ways
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
        for bias in (False, True)
    ]
    all_of(settings, sharded.head_of, mesh)


@CASES.add
def plain_tensors(mesh):
    settings = [
        (*setting, even)
        for setting in of_shapes(OPTIONS)
        for even in (False, True)
        if not even or setting[1][class_axis(torch.empty(setting[1]), setting[2])] % mesh.size() == 0
    ]
    all_of(settings, plain_shards.check, mesh)


failures, test_processes = in_processes(
    __name__, CASES, [pytest.param(count, marks=pytest.mark.soak) for count in (1, 2, 3, 4)]
)
