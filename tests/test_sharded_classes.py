"""Losses whose classes are spread over 1 to 4 processes, unevenly and with empty shards too, beside the reference."""

import datetime
import json
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import TORCH_DTYPES, expected, quantise
from test_contract import NLL_OPTIONS, OPTIONS, class_axis, log_probabilities, make

import crossent

distributed = pytest.importorskip("torch.distributed")
if not distributed.is_available():
    pytest.skip("this PyTorch has no processes to spread over", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import Replicate, Shard, distribute_tensor  # noqa: E402
from torch.distributed.tensor.debug import CommDebugMode  # noqa: E402

CASES = {}
SHAPES = [((13, 10), None), ((5, 3), None), ((2, 19, 3), None), ((2, 6, 10), -1)]


def case(function):
    CASES[function.__name__] = function
    return function


def check(mesh, name, options, shape, dim, dtype, placements=None):
    """Value and gradient of a case of the contract's grid, spread as `placements` say, else by classes alone."""
    logits, target, keywords = make(shape, dim, **options)
    axis = class_axis(logits, dim)
    logits = log_probabilities(logits, axis) if name == "nll_loss" else logits
    logits, soft = quantise(logits, dtype), target.ndim == logits.ndim
    target = quantise(target, dtype) if soft else target
    rows = target.sum(axis).shape if soft else target.shape
    upstream = np.random.default_rng(3).normal(size=rows if keywords.get("reduction") == "none" else ())
    exact, gradient = expected(name, logits, target, upstream=upstream, **keywords)
    placements = placements or [Shard(axis)] * mesh.ndim
    x = distribute_tensor(torch.as_tensor(logits).to(TORCH_DTYPES[dtype]), mesh, placements).requires_grad_()
    target = torch.as_tensor(target).to(TORCH_DTYPES[dtype]) if soft else torch.as_tensor(target)
    given = {key: torch.as_tensor(value) if isinstance(value, np.ndarray) else value for key, value in keywords.items()}
    loss = getattr(crossent, name)(x, target, **given)
    above = distribute_tensor(torch.as_tensor(upstream).to(loss.dtype), mesh, loss.placements)
    (loss * above).sum().backward()
    assert loss.dtype == x.dtype and x.grad.dtype == x.dtype and x.grad.placements == x.placements
    eps = torch.finfo(x.dtype).eps
    np.testing.assert_allclose(loss.full_tensor().detach().double(), exact, rtol=40 * eps, atol=40 * eps)
    np.testing.assert_allclose(x.grad.full_tensor().double(), gradient, rtol=40 * eps, atol=40 * eps)


@case
def every_option(mesh):
    for options in OPTIONS.values():
        for dtype in ("float32", "float64"):
            check(mesh, "cross_entropy", options, *SHAPES[0], dtype)


@case
def every_shape(mesh):
    for shape, dim in SHAPES:
        for name in ("mean", "everything", "everything none", "soft, everything"):
            for dtype in ("float32", "bfloat16"):
                check(mesh, "cross_entropy", OPTIONS[name], shape, dim, dtype)


@case
def nll_loss(mesh):
    for shape, dim in SHAPES:
        for options in NLL_OPTIONS.values():
            check(mesh, "nll_loss", options, shape, dim, "float32")


@case
def rows_and_classes(mesh):
    """On a mesh of two axes, one for rows and one for classes; and classes over both."""
    if mesh.size() % 2:
        return
    grid = init_device_mesh("cpu", (2, mesh.size() // 2))
    for placements in ([Shard(0), Shard(1)], [Shard(1), Shard(0)], [Replicate(), Shard(1)], [Shard(1), Shard(1)]):
        for name in ("mean", "both weights", "everything none", "soft, everything"):
            check(grid, "cross_entropy", OPTIONS[name], (13, 10), None, "float32", placements)
        for name in ("both weights", "ignored none"):
            check(grid, "nll_loss", NLL_OPTIONS[name], (13, 10), None, "float32", placements)


@case
def collectives(mesh):
    """One of few numbers a row, none in the backward pass."""
    x = distribute_tensor(torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), mesh, [Shard(1)])
    labels = torch.arange(6)
    for options in ({}, {"weight": torch.ones(10), "label_smoothing": 0.1, "z_loss": 0.1, "softcap": 9.0}):
        with CommDebugMode() as forward:
            loss = crossent.cross_entropy(x.requires_grad_(), labels, **options)
        with CommDebugMode() as backward:
            loss.backward()
        counted = {str(key): count for key, count in forward.get_comm_counts().items() if count}
        assert sum(counted.values()) == (mesh.size() > 1) and sum(backward.get_comm_counts().values()) == 0, counted


@case
def same_bits_everywhere(mesh):
    x = distribute_tensor(3 * torch.randn(64, 50, generator=torch.Generator().manual_seed(0)), mesh, [Shard(1)])
    loss = crossent.cross_entropy(x, torch.arange(64) % 50, label_smoothing=0.1, reduction="none").to_local()
    parts = [torch.empty_like(loss) for _ in range(mesh.size())]
    distributed.all_gather(parts, loss.contiguous())
    assert all(torch.equal(part, parts[0]) for part in parts)


@case
def a_bad_label(mesh):
    """Is refused by all."""
    x = distribute_tensor(torch.zeros(4, 10), mesh, [Shard(1)])
    for name in ("cross_entropy", "nll_loss"):
        for bad in (10, -1):
            for reduction in ("mean", "none"):
                with pytest.raises(IndexError, match=f"Target {bad} at position 2 is out of bounds: .* 0 and 9"):
                    getattr(crossent, name)(x, torch.tensor([0, 9, bad, 3]), reduction=reduction)


@case
def refusals(mesh):
    x = distribute_tensor(torch.zeros(4, 10), mesh, [Shard(1)])
    with pytest.raises(ValueError, match="must not require a gradient where input is sharded along its classes"):
        crossent.cross_entropy(x, torch.zeros(4, dtype=torch.int64), torch.ones(10, requires_grad=True))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(crossent.nll_loss(x, torch.zeros(4, dtype=torch.int64)), x, create_graph=True)
    assert gradient.placements == x.placements
    with pytest.raises(RuntimeError, match=r"cannot be differentiated: redistribute input to Replicate\(\)"):
        torch.autograd.grad(crossent.cross_entropy(x, torch.zeros(4, dtype=torch.int64)), x, create_graph=True)


def work(rank, world, folder):
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=timeout)
    mesh, failures = init_device_mesh("cpu", (world,)), {}
    for name, run in CASES.items():
        try:
            run(mesh)
        except BaseException:  # pytest.fail is no Exception
            failures[name] = traceback.format_exc()
        distributed.barrier()
    Path(folder, f"{rank}.json").write_text(json.dumps(failures))
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def failures(request):
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, args=(request.param, folder), nprocs=request.param)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_processes(name, failures):
    assert not any(name in of for of in failures), "\n".join(of.get(name, "") for of in failures)
