"""Losses over processes with NCCL: one GPU in a world of one process, which makes every collective all the same."""

import numpy as np
import pytest
import torch
from harness import TORCH_DTYPES, expected, quantise
from test_contract import OPTIONS, make

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)
if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
    pytest.skip("this PyTorch has no NCCL", allow_module_level=True)

from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import crossent
import crossent.distributed as ours

DEVICE = "cuda"
PLACEMENTS = {"classes": Shard(1), "rows": Shard(0), "whole": Replicate()}


@pytest.fixture(scope="module")
def mesh():
    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh(DEVICE, (1,))
    distributed.destroy_process_group()


def there(value):
    return torch.as_tensor(value, device=DEVICE) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spread", [*PLACEMENTS, "plain tensors"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options(mesh, options, spread, dtype):
    logits, target, keywords = make((13, 10), None, **OPTIONS[options])
    soft = target.ndim == logits.ndim
    logits, target = quantise(logits, dtype), quantise(target, dtype) if soft else target
    upstream = np.ones(13) if keywords.get("reduction") == "none" else np.array(1.0)
    exact, gradient = expected("cross_entropy", logits, target, upstream=upstream, **keywords)
    x = there(logits).to(TORCH_DTYPES[dtype])
    given = {name: there(value) for name, value in keywords.items()}
    if spread == "plain tensors":
        given |= {"group": mesh.get_group()}
    else:
        x = distribute_tensor(x, mesh, [PLACEMENTS[spread]])
    x.requires_grad_()
    loss = crossent.cross_entropy(x, there(target).to(x.dtype) if soft else there(target), **given)
    loss.sum().backward()
    found = [one.full_tensor() if hasattr(one, "full_tensor") else one for one in (loss.detach(), x.grad)]
    eps = torch.finfo(x.dtype).eps
    for one, wanted in zip(found, (exact, gradient)):
        assert one.is_cuda
        np.testing.assert_allclose(one.double().cpu(), wanted, rtol=40 * eps, atol=40 * eps)


def test_a_head_whose_rows_are_spread(mesh):
    generator = torch.Generator().manual_seed(0)
    hidden, matrix = torch.randn(9, 6, generator=generator), torch.randn(10, 6, generator=generator)
    labels, leaf = torch.arange(9) % 10, hidden.double().requires_grad_()
    exact = torch.nn.functional.cross_entropy(leaf @ matrix.double().T, labels)
    exact.backward()
    x = distribute_tensor(hidden.to(DEVICE), mesh, [Shard(0)]).requires_grad_()
    loss = crossent.linear_cross_entropy(
        x, distribute_tensor(matrix.to(DEVICE), mesh, [Replicate()]), labels.to(DEVICE)
    )
    loss.backward()
    torch.testing.assert_close(loss.full_tensor().double().cpu(), exact.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.full_tensor().double().cpu(), leaf.grad, rtol=1e-4, atol=1e-5)


def test_bad_labels(mesh):
    labels = torch.tensor([0, 9, 12, 3], device=DEVICE)
    for placement in PLACEMENTS.values():
        x = distribute_tensor(torch.zeros(4, 10, device=DEVICE), mesh, [placement])
        with pytest.raises(IndexError, match="Target 12 at position 2 is out of bounds: .* 0 and 9"):
            crossent.cross_entropy(x, labels)


@pytest.mark.parametrize("device", [DEVICE, "cpu"])
def test_denominator(mesh, device):
    """Labels on the CPU are counted there: the number is sent by the GPU, which NCCL needs."""
    labels, weight = torch.tensor([0, 2, -100], device=device), torch.tensor([0.5, 1.0, 2.0], device=device)
    found = ours.denominator(labels, weight=weight)
    assert found.item() == 2.5 and found.device.type == device
    with pytest.raises(IndexError, match="Target 3 at position 0"):
        ours.denominator(labels + 3, weight=weight)
