"""What one process has to raise is raised in all of them, and nobody waits for ever."""

import pytest
import torch
from processes import Cases, in_processes
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

import crossent.distributed as ours
from crossent.frontends.torch.agreement import together

CASES = Cases()
WEIGHT = torch.ones(3)
ONE_LABEL = torch.tensor([1])
ERRORS = [  # what one process gives, while the others give ONE_LABEL and WEIGHT, and what all have to say
    ({"labels": torch.tensor([0, 9])}, IndexError, "Target 9 at position 1 is out of bounds: .* 0 and 2, or -100"),
    ({"labels": torch.tensor([[0, 1], [-1, 9]])}, IndexError, r"Target -1 at position \(1, 0\) is out of bounds"),
    ({"labels": [ONE_LABEL, torch.tensor([0, 3])]}, IndexError, "Target 3 at position 1"),
    ({"labels": torch.tensor([0.0])}, TypeError, "labels must be a tensor of integers, got torch.float32"),
    ({"labels": None}, TypeError, "labels must be a tensor of integers, got NoneType"),
    ({"labels": 5}, TypeError, "labels must be a tensor of integers, got int"),
    ({"labels": []}, ValueError, "labels must be a tensor or a list of at least one, got an empty list"),
    ({"labels": [1, 2]}, TypeError, "labels must be a tensor of integers, got int"),
    ({"weight": torch.ones(3, 1)}, ValueError, r"weight must have one entry for each class, got shape \(3, 1\)"),
    ({"weight": [1.0, 1.0, 1.0]}, TypeError, "weight must be a tensor, got list"),
    ({"weight": torch.ones(0)}, IndexError, "Target 1 at position 0 is out of bounds"),
    ({"sample_weight": torch.ones(2)}, ValueError, r"sample_weight of shape \(2,\) does not broadcast"),
    ({"sample_weight": 2.0}, TypeError, "sample_weight must be a tensor, got float"),
    ({"labels": [ONE_LABEL], "sample_weight": torch.ones(1)}, TypeError, "sample_weight must be a list where labels"),
    ({"labels": [ONE_LABEL], "sample_weight": [None, None]}, ValueError, "as many parts as labels, 1, got 2"),
    ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    ({"steps": "two"}, TypeError, "steps must be an integer, got 'two'"),
    ({"averaged_over": 0}, ValueError, "averaged_over must be at least 1, got 0"),
    ({"ignore_index": 0.5}, TypeError, "ignore_index must be an integer, got 0.5"),
    ({"labels": torch.ones(1, dtype=torch.int64, device="meta")}, RuntimeError, "NotImplementedError|[Mm]eta"),
]  # fmt: skip


@CASES.add
def every_error_in_one_process(mesh):
    for number, (given, kind, message) in enumerate(ERRORS):
        bad = number % mesh.size()
        arguments = {"labels": ONE_LABEL, "weight": WEIGHT} | (given if mesh.get_rank() == bad else {})
        with pytest.raises(kind, match=f"rank {bad}: .*({message})") as found:
            ours.denominator(**arguments)
        assert not getattr(found.value, "__notes__", [])
        assert ours.denominator(ONE_LABEL).item() == 1.0  # and all go on together


@CASES.add
def labels_that_are_spread(mesh):
    labels = DTensor.from_local(ONE_LABEL, mesh, [Shard(0)])
    with pytest.raises(TypeError, match="^labels must be this process's own, got a DTensor: give labels.to_loc"):
        ours.denominator(labels)  # which all have to raise alike


@CASES.add
def errors_in_several(mesh):
    """All raise that of the lowest rank, with a note of the others, which may be of another kind."""
    of_rank = {1: torch.tensor([7]), 2: torch.tensor([0.5])}
    labels = of_rank.get(mesh.get_rank(), ONE_LABEL)
    with pytest.raises(IndexError, match="rank 1: Target 7") as found:
        ours.denominator(labels, weight=WEIGHT)
    assert found.value.__notes__ == ["rank 2: labels must be a tensor of integers, got torch.float32"]
    assert (found.value.__cause__ is None) == (mesh.get_rank() not in of_rank)


@CASES.add
def one_number_is_sent(mesh):
    with CommDebugMode() as counted:
        ours.denominator([ONE_LABEL, ONE_LABEL], weight=WEIGHT, sample_weight=[None, torch.ones(1)])
    assert counted.get_total_counts() == 1


@CASES.add
def nan_is_no_error(mesh):
    nan = torch.full((1,), torch.nan) if mesh.get_rank() == 1 else None
    assert ours.denominator(ONE_LABEL, sample_weight=nan).isnan()


@CASES.add
def groups_of_their_own(mesh):
    """An error stays in its group. A process outside of a group is told so."""
    rank, pair = mesh.get_rank(), distributed.new_group([0, 1])
    labels = torch.tensor([3]) if rank == 1 else ONE_LABEL
    if rank < 2:
        with pytest.raises(IndexError, match="rank 1: Target 3"):
            ours.denominator(labels, weight=WEIGHT, group=pair)
    else:
        with pytest.raises(ValueError, match="group must be one of those that this process belongs to"):
            ours.denominator(labels, group=pair)
    alone = [distributed.new_group([some]) for some in range(mesh.size())][rank]
    if rank == 1:
        with pytest.raises(IndexError, match="^Target 3"):
            ours.denominator(labels, weight=WEIGHT, group=alone)
    else:
        assert ours.denominator(labels, weight=WEIGHT, group=alone).item() == 1.0


@CASES.add
def meshes(mesh):
    """The processes of a mesh, over all its axes, or of one of its axes."""
    shape = (2, 2) if mesh.size() == 4 else (mesh.size(), 1)
    grid, rank = init_device_mesh("cpu", shape, mesh_dim_names=("rows", "sequence")), mesh.get_rank()
    labels = torch.arange(1, rank + 2)  # 1 of the first, 2 of the second
    total = sum(range(1, mesh.size() + 1))
    assert ours.denominator(labels, group=grid, averaged_over=1).item() == total
    assert ours.denominator(labels, group=mesh).item() == total / mesh.size()
    beside = [1 + other for other in range(mesh.size()) if other % shape[1] == rank % shape[1]]
    assert ours.denominator(labels, group=grid["rows"]).item() == sum(beside) / shape[0]
    for bad in range(mesh.size()):
        with pytest.raises(TypeError, match=f"rank {bad}: labels must be a tensor of integers"):
            ours.denominator(labels.double() if rank == bad else labels, group=grid)
    two = DeviceMesh("cpu", [0, 1])
    if rank > 1:
        with pytest.raises(ValueError, match="group must be one of those that this process belongs to"):
            ours.denominator(labels, group=two)
    else:
        assert ours.denominator(labels, group=two).item() == 1.5


@CASES.add
def axes_of_a_mesh(mesh):
    """Sums over several groups in turn: all hear of an error in any corner. Gradients go through."""
    shape = (2, 2) if mesh.size() == 4 else (mesh.size(), 1)
    grid = init_device_mesh("cpu", shape)
    groups = [grid.get_group(0), grid.get_group(1)]

    def reduce(value):
        parts = DTensor.from_local(value, grid, [Partial()] * 2, run_check=False)
        return parts.redistribute(grid, [Replicate()] * 2)

    def raises():
        raise KeyError("a kind that need not travel")

    leaf = torch.ones((), requires_grad=True)
    for bad in range(mesh.size()):
        with pytest.raises(RuntimeError, match=f"rank {bad}: KeyError: 'a kind that need not travel'"):
            together(raises if bad == mesh.get_rank() else leaf.double, reduce, groups, "cpu")
    whole = together(leaf.double, reduce, groups, "cpu")
    whole.backward()
    assert whole.item() == mesh.size() and leaf.grad.item() == 1.0


failures, test_processes = in_processes(__name__, CASES, [3, 4])


def test_one_process_raises_its_own():
    error = ValueError("as it is")

    def part():
        raise error

    with pytest.raises(ValueError, match="^as it is$") as found:
        together(part, None, [], None)
    assert found.value is error


@pytest.mark.parametrize(
    ("backends", "device"), [("cpu:gloo,cuda:gloo", "cpu"), ("cuda:nccl", "cuda"), ("cuda:nccl,cpu:gloo", "cpu")]
)
def test_where_the_number_is_sent_from(backends, device, monkeypatch):
    """It depends on the group alone, so that processes whose labels are in different places send it alike."""
    monkeypatch.setattr(distributed, "get_backend_config", lambda group: backends)
    assert ours._where_to_send(None) == torch.device(device)
