"""Cases for test_fsdp.py: patched models whose weights processes share, by fully_shard and by tensor parallel plans."""

import collections
import os
import shutil
import tempfile

import torch
from language_models import assert_same, batch, build, build_biased, step
from processes import Cases
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crossent.integrations.transformers import patch, unpatch

PROCESSES = 4
CASES = Cases()


class Sent(TorchDispatchMode):
    """By collective, how many numbers each call has, those given and those made."""

    def __init__(self):
        super().__init__()
        self.sizes = collections.defaultdict(list)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        if function.namespace in ("c10d", "_c10d_functional") and name != "_wrap_tensor_autograd":
            tensors = (leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
            self.sizes[name].append(sum(tensor.numel() for tensor in tensors))
        return function(*args, **(kwargs or {}))


def gathered(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def expected(model):
    """Of one process with the whole batch."""
    return step(model, **batch(4))


def spread_step(model, parts=PROCESSES, per_part=1, **options):
    """The second step of a model that has its part of the batch, and what was sent."""
    whole = batch(4)
    own = {name: tensor.chunk(parts)[distributed.get_rank() // per_part] for name, tensor in whole.items()}
    count = (whole["labels"][:, 1:] != -100).sum() / parts  # gradients are averaged
    for _ in range(2):
        with Sent() as sent:
            output, loss, gradients = step(model, **own | {"num_items_in_batch": count} | options)
    loss = gathered(loss).clone()
    distributed.all_reduce(loss)
    found = {name: gathered(gradient) for name, gradient in gradients.items() if gradient.numel()}
    return (output, loss / PROCESSES, found), sent.sizes


def units(mesh, *groups, **how):
    """`fully_shard` of some modules, or of groups of modules, and of the model."""

    def shard(model):
        for group in groups:
            modules = [model.get_submodule(name) for name in group.split()]
            fully_shard(modules if len(modules) > 1 else modules[0], mesh=mesh, **how)
        return fully_shard(model, mesh=mesh)

    return shard


@CASES.add
def models_fully_sharded(mesh):
    """Patched before or after: what is sent is what is sent without the patch."""
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    for family, before, shard in (
        ("Llama", True, units(mesh, "model.layers.0")),
        ("Llama", True, units(mesh, "model.layers.0", "lm_head")),
        ("Phi", False, units(mesh, "lm_head", reshard_after_forward=False)),
        ("Llama", False, units(mesh, "model.norm lm_head", reshard_after_forward=False)),  # one unit
        ("Llama", True, units(both, "lm_head")),
        ("Qwen3", False, units(mesh, "model.layers.0")),  # tied
    ):
        theirs = expected(build(family))
        plain, sent = spread_step(shard(build(family)))
        assert_same(plain, theirs)
        ours, ours_sent = spread_step(shard(patch(build(family))) if before else patch(shard(build(family))))
        assert_same(ours, theirs)
        assert "logits" not in ours[0] and ours_sent == sent


@CASES.add
def models_in_16_bits(mesh):
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for names in ([], ["lm_head"]):
        model = units(mesh, *names, mp_policy=half)(patch(build()))
        assert_same(spread_step(model)[0], expected(build()), 0.03)


@CASES.add
def models_wrapped(mesh):
    def shard(model):
        how = {"device_id": torch.device("cpu"), "use_orig_params": True}
        model.lm_head = FullyShardedDataParallel(model.lm_head, **how)
        return FullyShardedDataParallel(model, **how)

    for share in (shard, torch.nn.parallel.DistributedDataParallel):
        (_, loss, gradients), _ = spread_step(share(patch(build())))
        (_, exact, _), (_, _, theirs) = expected(build()), spread_step(share(build()))[0]
        assert_same((None, loss, gradients), (None, exact, theirs))


@CASES.add
def models_parallelized(mesh):
    """By PyTorch, in any order with the patch, whatever becomes of the logits; no logits are sent."""
    theirs = expected(build())
    for how in ({"output_layouts": Replicate()}, {"use_local_output": False}, {}, {"input_layouts": Shard(0)}):
        for first in (True, False):
            model = patch(build()) if first else build()
            parallelize_module(model.lm_head, mesh, ColwiseParallel(**how))
            if "input_layouts" in how:
                model.model.norm.register_forward_hook(lambda module, inputs, output: own_rows(output, mesh))
            ours, sent = spread_step(patch(model), 1, PROCESSES)
            assert_same(ours, theirs)
            assert model.lm_head.weight.grad.placements == (Shard(0),)
            assert max(sent["all_gather_into_tensor"]) < 4 * 7 * 17
        model.eval()
        if how.get("use_local_output", True):
            unpatch(model)


@CASES.add
def models_parallelized_and_fully_sharded(mesh):
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "classes"))
    theirs = expected(build())
    for group, reshard, how in (
        ("lm_head", True, {"output_layouts": Replicate()}),
        ("lm_head", True, {"use_local_output": False}),
        ("model.norm lm_head", False, {}),  # one unit
    ):
        model = build()
        parallelize_module(model.lm_head, both["classes"], ColwiseParallel(**how))
        ours, _ = spread_step(units(both["data"], group, reshard_after_forward=reshard)(patch(model)), 2, 2)
        assert_same(ours, theirs)


def own_rows(hidden, mesh):
    return DTensor.from_local(hidden, mesh, [Replicate()]).redistribute(placements=[Shard(0)]).to_local()


@CASES.add
def biases_scales_and_fewer_classes(mesh):
    def loss_function(logits, labels, vocab_size, **kwargs):
        logits = -3 * torch.tanh((0.5 * (logits * 0.3 + bias))[..., :60] / 3)
        return torch.nn.functional.cross_entropy(logits.view(-1, 60), labels.view(-1) % 60)

    bias = torch.linspace(-2, 2, 67)
    for model in (build("Phi"), build_biased("BartForConditionalGeneration")):
        if "Phi" in type(model).__name__:
            model.loss_function = loss_function
        theirs = expected(model)
        head = model.get_output_embeddings()
        if head.bias is None:  # tied
            head.weight = torch.nn.Parameter(head.weight.detach().clone())
            theirs = expected(model)
        parallelize_module(head, mesh, ColwiseParallel(output_layouts=Replicate()))
        (_, loss, gradients), _ = spread_step(patch(model), 1, PROCESSES, num_items_in_batch=None)
        assert_same((None, loss, gradients), theirs)


@CASES.add
def plans_of_transformers(mesh):
    """The calls are those of the model without the patch, but that sums of rows are sent in place of logits."""
    from transformers.distributed import DistributedConfig

    os.environ |= {"RANK": str(mesh.get_rank()), "LOCAL_RANK": "0", "WORLD_SIZE": str(PROCESSES)}
    for family, sizes in (("Llama", (2, 2)), ("Qwen3", (2, 2)), ("Gemma2", (4, 1)), ("Llama", (1, 4))):
        parallel, sharded = sizes
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
        theirs, kind = expected(build(family, **heads)), type(build(family))
        names = [tempfile.mkdtemp()] if mesh.get_rank() == 0 else [None]
        distributed.broadcast_object_list(names)
        if mesh.get_rank() == 0:
            build(family, **heads).save_pretrained(names[0])
        distributed.barrier()
        how = DistributedConfig(tp_size=parallel, fsdp_size=sharded)
        model = kind.from_pretrained(names[0], distributed_config=how).train()
        plain, sent = spread_step(model, sharded, parallel)
        assert_same(plain, theirs)
        ours, ours_sent = spread_step(patch(model), sharded, parallel)
        assert_same(ours, theirs)
        assert "logits" not in ours[0] and {name: len(ours_sent[name]) for name in ours_sent} == {
            name: len(sent[name]) for name in sent
        }
        numbers, before = (sum(map(sum, of.values())) for of in (ours_sent, sent))
        assert numbers < before if parallel > 1 else numbers == before
        assert model.eval()(**batch()).logits.shape == (2, 7, 67)
        assert_same(spread_step(unpatch(model).train(), sharded, parallel)[0], theirs)
        shutil.rmtree(names[0], ignore_errors=True)
