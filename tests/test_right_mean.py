"""`crossent.distributed.denominator` in two processes, under those who average gradients, beside one whole batch."""

import pytest
import torch
import torch.nn.functional as F
from processes import Cases, failures_of
from torch import distributed

import crossent
import crossent.distributed as ours

PROCESSES = 2
CASES = Cases()


def batch(rows=12):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (rows,), generator=generator)
    labels[: rows // 2 - 1] = -100  # the first process learns from one row only
    return torch.randn(rows, 5, generator=generator), labels


def model():
    torch.manual_seed(1)
    return torch.nn.Linear(5, 7)


def exact_gradient(x, labels, weight=None, sample_weight=None):
    whole = model().double()
    losses = F.cross_entropy(whole(x.double()), labels, None if weight is None else weight.double(), reduction="none")
    counts = torch.where(labels == -100, 0.0, 1.0 if weight is None else weight.double()[labels.clamp(0)])
    if sample_weight is not None:
        losses, counts = losses * sample_weight, counts * sample_weight
    (losses.sum() / counts.sum()).backward()
    return whole.weight.grad


def close(found, exact):
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-7)


def mine(*tensors):
    return [tensor.chunk(PROCESSES)[distributed.get_rank()] for tensor in tensors]


@CASES.add
def distributed_data_parallel(mesh):
    x, labels = batch()
    weight, samples = torch.linspace(0.5, 2, 7), torch.linspace(0.1, 1, 12)
    for given in ({}, {"weight": weight}, {"weight": weight, "sample_weight": samples}):
        net = torch.nn.parallel.DistributedDataParallel(model())
        part, own, own_samples = mine(x, labels, samples)
        own_given = given | ({"sample_weight": own_samples} if "sample_weight" in given else {})
        count = ours.denominator(own, **own_given)
        crossent.cross_entropy(net(part), own, **own_given, denominator=count).backward()
        close(net.module.weight.grad, exact_gradient(x, labels, **given))


@CASES.add
def accumulation_steps(mesh):
    """Gradients that are added up, and those of a trainer that divides the loss by the number of steps."""
    x, labels = batch()
    (part, own), steps = mine(x, labels), 3
    for divided in (1, steps):
        net = torch.nn.parallel.DistributedDataParallel(model())
        count = ours.denominator(list(own.chunk(steps)), steps=divided)
        for some, some_labels in zip(part.chunk(steps), own.chunk(steps)):
            (crossent.cross_entropy(net(some), some_labels, denominator=count) / divided).backward()
        close(net.module.weight.grad, exact_gradient(x, labels))


@CASES.add
def fully_sharded(mesh):
    if torch.__version__ < "2.10":  # for other devices than the CPU there
        return
    from torch.distributed.fsdp import fully_shard

    x, labels = batch()
    (part, own), net = mine(x, labels), model()
    fully_shard(net)
    crossent.cross_entropy(net(part), own, denominator=ours.denominator(own)).backward()
    close(net.weight.grad.full_tensor(), exact_gradient(x, labels))


@CASES.add
def gradients_that_are_added_up(mesh):
    x, labels = batch()
    (part, own), net = mine(x, labels), model()
    crossent.cross_entropy(net(part), own, denominator=ours.denominator(own, averaged_over=1)).backward()
    distributed.all_reduce(net.weight.grad)
    close(net.weight.grad, exact_gradient(x, labels))


@CASES.add
def empty_and_ignored(mesh):
    """A process without rows, or without targets; and nobody has any."""
    rank = mesh.get_rank()
    labels = torch.tensor([1, 2, 3]) if rank else torch.zeros(0, dtype=torch.int64)
    assert ours.denominator(labels).item() == 1.5
    assert ours.denominator(torch.tensor([1, -100, 3]) if rank else torch.tensor([-100])).item() == 1.0
    nothing = torch.tensor([-100, -100])
    assert ours.denominator(nothing).item() == 1.0
    assert crossent.cross_entropy(torch.zeros(2, 3), nothing, denominator=ours.denominator(nothing)) == 0.0


@CASES.add
def a_group_of_its_own(mesh):
    alone = [distributed.new_group([rank]) for rank in range(PROCESSES)][mesh.get_rank()]
    assert ours.denominator(torch.tensor([1, -100, 3]), group=alone).item() == 2.0


def test_labels_of_8_bits():
    """156 is not -100, as PyTorch compares them."""
    assert ours.denominator(torch.tensor([156, 3, 199], dtype=torch.uint8)) == 3


@pytest.fixture(scope="module")
def failures():
    return failures_of(__name__, PROCESSES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_two_processes(name, failures):
    assert name not in failures, failures.get(name)


def test_one_process():
    labels = torch.tensor([[0, 2, -100], [1, 1, 5]])
    assert ours.denominator(labels).item() == 5.0 and ours.denominator(labels, 5).item() == 5.0
    assert ours.denominator(labels.to(torch.uint8), 2).item() == 5.0
    weight = torch.tensor([1.0, 2.0, 4.0, 0.0, 0.0, 8.0])
    assert ours.denominator(labels, weight=weight).item() == 17.0
    mask = torch.tensor([True, True, False])
    assert ours.denominator(labels, sample_weight=mask).item() == 4.0
    assert ours.denominator([labels, labels], sample_weight=[mask, None], steps=2).item() == 4.5


def test_errors():
    labels = torch.tensor([0, 2])
    for call, message in [
        (lambda: ours.denominator(labels.float()), "labels must be a tensor of integers, got torch.float32"),
        (lambda: ours.denominator([0, 2]), "labels must be a tensor of integers, got int"),
        (lambda: ours.denominator(labels, steps="two"), "steps must be an integer, got 'two'"),
    ]:
        with pytest.raises(TypeError, match=message):
            call()
    for call, message in [
        (lambda: ours.denominator([]), "labels must be a tensor or a list of at least one, got an empty list"),
        (lambda: ours.denominator([labels], sample_weight=[None, None]), "as many parts as labels, 1, got 2"),
        (lambda: ours.denominator(labels, sample_weight=torch.ones(3)), r"of shape \(3,\) does not broadcast"),
        (lambda: ours.denominator(labels, weight=torch.ones(3, 1)), r"one entry for each class, got shape \(3, 1\)"),
        (lambda: ours.denominator(labels, steps=0), "steps must be at least 1, got 0"),
        (lambda: ours.denominator(labels, averaged_over=0), "averaged_over must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
