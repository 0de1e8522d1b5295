"""Patched models whose weights are there only while hooks bring them: offloaded, gathered, sharded."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from language_models import assert_same, batch, build, step
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from crossent.integrations.transformers import patch

accelerate = pytest.importorskip("accelerate")


def step_of_embeddings(model, embeddings):
    """The loss, and the gradient of what the model is given: offloaded weights get none, patched or not."""
    inputs = batch()
    del inputs["input_ids"]
    embeddings = embeddings.clone().requires_grad_()
    loss = model(inputs_embeds=embeddings, **inputs).loss
    loss.backward()
    return loss.detach(), embeddings.grad


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Phi"])  # the second is tied, the third has a bias
def test_offloaded_weights(family, offload, tmp_path):
    batches = torch.randn(2, 2, 7, 16, generator=torch.Generator().manual_seed(0))
    plain = build(family)
    model = patch(build(family))
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    for embeddings in batches:  # the second finds what the first left behind
        assert model.get_output_embeddings().weight.is_meta
        loss, gradient = step_of_embeddings(model.train(), embeddings)
        expected, expected_gradient = step_of_embeddings(plain, embeddings)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def gather_only_while_running(module):
    """As ZeRO's third stage does: parameters are empty but in the module's forward, and from its backward on."""
    whole = {name: parameter.data for name, parameter in module.named_parameters(recurse=False)}
    calls = []

    def fill(*_):
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = whole[name]

    def drop(module, inputs, output):
        calls.append(inputs)
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.new_empty(0)
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(fill)

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(drop)
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.new_empty(0)
    return calls


@pytest.mark.parametrize("family", ["Llama", "Phi", "Gemma2"])
def test_weights_that_hooks_gather(family):
    untied = {"tie_word_embeddings": False}
    theirs = step(build(family, **untied))
    for model in (build(family, **untied), patch(build(family, **untied))):
        head = model.get_output_embeddings()
        calls = gather_only_while_running(head)
        assert head.weight.numel() == 0
        assert_same(step(model), theirs)
        assert len(calls) == (1 if model.lm_head.__class__ is torch.nn.Linear else 2)


def test_hooks_that_change_numbers_raise():
    """The second time the head is given no tensor of hidden states, and answers with none of logits."""
    model = patch(build())
    for register, hook in (
        (model.lm_head.register_forward_pre_hook, lambda module, inputs: (inputs[0] + 1,)),
        (model.lm_head.register_forward_hook, lambda module, inputs, output: output * 2),
    ):
        handle = register(hook)
        with pytest.raises(TypeError, match="unsupported operand"):
            model(**batch())
        handle.remove()
    assert torch.isfinite(model(**batch()).loss)


def sharded_step(make, rank, shard):
    model = shard(make())
    inputs = {name: tensor[rank : rank + 1] for name, tensor in batch().items()}
    for _ in range(2):
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
    here = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.numel()}
    whole = {
        name: gradient.full_tensor() if isinstance(gradient, DTensor) else gradient for name, gradient in here.items()
    }
    return None, loss.detach(), whole


def in_a_process(rank, folder):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def by_units(*units, **how):
        def shard(model):
            for unit in (*model.model.layers, *units):
                fully_shard(model.get_submodule(unit) if isinstance(unit, str) else unit, mesh=mesh, **how)
            return fully_shard(model, mesh=mesh, **how)

        return shard

    def wrapped(model):
        from torch.distributed.fsdp import FullyShardedDataParallel as Wrapper

        how = {"device_id": torch.device("cpu"), "use_orig_params": True}
        model.lm_head = Wrapper(model.lm_head, **how)
        return Wrapper(model, **how)

    half = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}
    cases = {
        "its own unit": (by_units("lm_head"), 1e-5),
        "in the root's unit": (by_units(), 1e-5),
        "its own unit, in 16 bits": (by_units("lm_head", **half), 0.03),
        "wrapped": (wrapped, 1e-5),
        "not sharded": (torch.nn.parallel.DistributedDataParallel, 1e-5),
    }
    for shard, tolerance in cases.values():
        theirs = sharded_step(build, rank, shard)
        assert_same(sharded_step(lambda: patch(build()), rank, shard), theirs, tolerance)
    Path(folder, f"done{rank}").write_text(", ".join(cases))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.skipif(torch.__version__ < "2.10", reason="fully_shard is for other devices than the CPU there")
def test_sharded_weights():
    """In two processes, with the head as a unit of fully_shard and in the root's."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(in_a_process, (folder,), nprocs=2)
        for rank in range(2):
            assert Path(folder, f"done{rank}").read_text().startswith("its own unit, in the root's unit")
