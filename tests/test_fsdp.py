"""Heads whose weights `fully_shard` has spread over four processes, beside plain PyTorch on the whole batch."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from processes import Cases, failures_of
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils.checkpoint import checkpoint

import crossent
import crossent.nn
from crossent.distributed import denominator

if torch.__version__ < "2.10":
    pytest.skip("fully_shard is for other devices than the CPU there", allow_module_level=True)

from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

PROCESSES = 4
CLASSES, FEATURES = 11, 8  # classes that four processes cannot have alike
CASES = Cases()


class Owning(torch.nn.Module):
    """The head and its loss are one module."""

    def __init__(self, tied=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(CLASSES, FEATURES)
        self.body = torch.nn.Sequential(torch.nn.Linear(FEATURES, FEATURES), torch.nn.Tanh())
        self.head = self.make_head(**options)
        if tied:
            self.matrix().weight = self.embedding.weight

    def make_head(self, **options):
        return crossent.nn.LinearCrossEntropyLoss(FEATURES, CLASSES, bias=True, **options)

    def matrix(self):
        return self.head.linear

    def forward(self, tokens, labels, count):
        return self.head(self.body(self.embedding(tokens)), labels, denominator=count)


class Reading(Owning):
    """The loss is made in the model's forward, which reads the head's weight."""

    def make_head(self):
        return torch.nn.Linear(FEATURES, CLASSES)

    def matrix(self):
        return self.head

    def forward(self, tokens, labels, count):
        hidden = self.body(self.embedding(tokens))
        return crossent.linear_cross_entropy(
            hidden, self.head.weight, labels, linear_bias=self.head.bias, denominator=count
        )


class ByRows(Owning):
    """The chunks of the head are made once more in the backward pass."""

    def make_head(self):
        return super().make_head(reduction="none")

    def forward(self, tokens, labels, count):
        return super().forward(tokens, labels, None).sum() / count


class Checkpointed(Owning):
    def forward(self, tokens, labels, count):
        def loss(hidden):
            return self.head(hidden, labels, denominator=count)

        return checkpoint(loss, self.body(self.embedding(tokens)), use_reentrant=False)


class ByTokens(Reading):
    def forward(self, tokens, labels, count):
        hidden, bias = self.body(self.embedding(tokens)), self.head.bias
        return -crossent.linear_token_stats(hidden, self.head.weight, labels, linear_bias=bias).logprob.sum() / count


def batch(rows):
    """The last process learns from no row, the first from few."""
    generator = torch.Generator().manual_seed(3)
    tokens, labels = torch.randint(CLASSES, (2, rows, 5), generator=generator)
    labels[: rows // 4, 1:] = -100
    labels[-rows // 4 :] = -100
    return tokens, labels


def exact(model, rows):
    """The loss and gradients of the whole batch, in float64."""
    tokens, labels = batch(rows)
    whole = model.double()
    logits = whole.matrix()(whole.body(whole.embedding(tokens)))
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in whole.named_parameters()}


def check(shard, kind=Owning, tied=False, rows=8, tolerance=1e-5, steps=1, number=False, **options):
    """Loss and gradients; returns how often each collective was called, in the forward pass and altogether."""
    model, (tokens, labels) = kind(tied, **options), (tensor.chunk(PROCESSES) for tensor in batch(rows))
    rank = distributed.get_rank()
    shard(model)
    count = denominator(labels[rank])
    count = count.item() if number else count
    for _ in range(steps):  # the second finds what the first left behind
        model.zero_grad()
        with CommDebugMode() as sent:
            loss = model(tokens[rank], labels[rank], count)
            forward = dict(sent.get_comm_counts())
            loss.backward()
    expected, gradients = exact(kind(tied), rows)
    mean = loss.detach().double()
    distributed.all_reduce(mean)
    torch.testing.assert_close(mean / PROCESSES, expected, rtol=tolerance, atol=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad.placements == parameter.placements
        found, gradient = parameter.grad.full_tensor().double(), gradients[name]
        torch.testing.assert_close(found, gradient, rtol=0, atol=tolerance * gradient.abs().max().item())
    return [{str(name).split(".")[-1]: times for name, times in of.items()} for of in (forward, sent.get_comm_counts())]


def units(mesh, *names, **how):
    """`fully_shard` of some submodules and of the model."""

    def shard(model):
        for name in names:
            fully_shard(model.get_submodule(name), mesh=mesh, **how)
        fully_shard(model, mesh=mesh)

    return shard


@CASES.add
def in_the_root(mesh):
    for kind in (Owning, Reading):
        for tied in (False, True):
            forward, all = check(units(mesh, "body"), kind, tied, steps=2)
            assert forward == {"_allgather_base_": 2}  # of the body's weights, and of all others
            assert all == {"_allgather_base_": 3, "_reduce_scatter_base_": 2}  # the body's once more


@CASES.add
def a_unit_of_its_own(mesh):
    for reshard, gathered in ((False, 2), (True, 3)):  # the backward pass needs no weight of a head, but gets it
        forward, all = check(units(mesh, "head", reshard_after_forward=reshard), steps=2)
        assert forward == {"_allgather_base_": 2} and all == {"_allgather_base_": gathered, "_reduce_scatter_base_": 2}


@CASES.add
def weights_that_the_backward_pass_reads(mesh):
    for kind in (ByRows, Checkpointed):
        _, all = check(units(mesh, "head"), kind, steps=2)
        assert all == {"_allgather_base_": 3, "_reduce_scatter_base_": 2}
    check(units(mesh, "body"), ByTokens)


@CASES.add
def a_unit_with_the_embedding(mesh):
    def shard(model):
        fully_shard([model.embedding, model.head], mesh=mesh)
        fully_shard(model, mesh=mesh)

    check(shard, tied=True, steps=2)
    with pytest.raises(ValueError, match="shared"):  # PyTorch says what to do
        check(units(mesh, "head"), tied=True)


@CASES.add
def replicated_over_the_first_axis(mesh):
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    for kind, tied, names in ((Owning, False, ["head"]), (Reading, False, []), (Owning, True, [])):
        _, all = check(units(both, *names, reshard_after_forward=False), kind, tied)
        times = 1 + len(names)
        assert all == {"_allgather_base_": times, "_reduce_scatter_base_": times, "allreduce_": times}


@CASES.add
def in_16_bits(mesh):
    """The loss is in 32 bits, and the count a number, which is not rounded as tensors given to the model are."""
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    check(units(mesh, "head", mp_policy=half), tolerance=0.01, number=True, loss_dtype="float32")
    model, (tokens, labels) = Owning(loss_dtype="float32"), batch(8)
    fully_shard(model, mesh=mesh, mp_policy=half)
    losses = [model(tokens, labels, count).item() for count in (1.0, 257.0)]
    assert abs(losses[0] / losses[1] - 257) < 1e-3
    with pytest.raises(TypeError, match="float of 32 bits, which hold any count, got torch.bfloat16"):  # it is 256 now
        model(tokens, labels, torch.tensor(257.0))


@CASES.add
def outside_of_the_unit(mesh):
    """Nobody gathers the weight, and its full_tensor() would keep the gradient of this process's own rows alone."""
    model = Reading()
    units(mesh, "head")(model)
    with pytest.raises(TypeError, match="linear_weight must be a plain .* or give fully_shard the module"):
        model(*batch(8), 1.0)
    assert model.head.weight.placements == (Shard(0),)


if importlib.util.find_spec("accelerate") and importlib.util.find_spec("transformers"):
    import sharded_models

    CASES.update(sharded_models.CASES)


@pytest.fixture(scope="module")
def failures():
    return failures_of(__name__, PROCESSES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_four_processes(name, failures):
    assert name not in failures, failures.get(name)
