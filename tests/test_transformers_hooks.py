"""Patched models whose weights are there only while hooks bring them: offloaded, gathered."""

import pytest
import torch
from language_models import assert_same, batch, build, step
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
        assert len(calls) == 1


def test_hooks_that_change_numbers_raise():
    """The head is called with no tensor of hidden states, and answers with none of logits."""
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
