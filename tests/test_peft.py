"""Patched models whose output embedding PEFT adapts."""

import copy

import pytest
import torch
from language_models import assert_same, batch, build, step

from crossent.integrations import _logits
from crossent.integrations.transformers import patch, unpatch

peft = pytest.importorskip("peft")

KINDS = {
    "lora": {"target_modules": ["q_proj", "lm_head"]},
    "dora": {"target_modules": ["lm_head"], "use_dora": True},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "elsewhere": {"target_modules": ["q_proj"]},
}


def adapt(model, kind):
    torch.manual_seed(3)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **KINDS[kind]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model.train()


@pytest.fixture
def rows(monkeypatch):
    """How many rows each call of the adapted layer has, of which 4 fit a chunk of logits."""
    monkeypatch.setattr(_logits, "CHUNK_BYTES", 4 * 4 * 67)
    seen = []

    def watch(layer):
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
        return seen

    return watch


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Phi"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients(kind, family, rows):
    theirs = step(adapt(build(family, tie_word_embeddings=False), kind))
    model = patch(adapt(build(family, tie_word_embeddings=False), kind))
    head = model.get_output_embeddings()
    seen = rows(head.lora_A["default"]) if kind == "lora" else [4]
    ours = step(model)
    assert "logits" not in ours[0] and max(seen) == 4
    assert_same(ours, theirs)
    merged = model.merge_and_unload()
    assert "logits" not in merged(**batch())
    assert "logits" in unpatch(merged)(**batch())


@pytest.mark.parametrize("kind", KINDS)
def test_patch_comes_first(kind):
    theirs = step(adapt(build(), kind))
    model = adapt(patch(build()), kind)
    if kind in ("lora", "dora"):
        with pytest.raises(ValueError, match="patch it again"):
            model(**batch())
        patch(model)
    ours = step(model)
    assert "logits" not in ours[0]
    assert_same(ours, theirs)
    assert_same(step(copy.deepcopy(model)), theirs)
    assert "logits" in step(unpatch(model))[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype, rows):
    theirs = step(adapt(build(), "lora").to(dtype))
    model = patch(adapt(build(), "lora").to(dtype))
    ours = step(model)
    assert ours[1].dtype == theirs[1].dtype == torch.float32
    assert_same(ours, theirs, rtol=0.03 if dtype == torch.bfloat16 else 1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.float()
        ours = step(model)
        theirs = step(unpatch(model))
    assert_same(ours, theirs, rtol=0.03)
    with torch.no_grad():
        torch.testing.assert_close(patch(model)(**batch()).loss, unpatch(model)(**batch()).loss)


def test_loss_function_of_ones_own(rows):
    """Its options, a bias, and losses for each row."""

    def loss_function(logits, labels, vocab_size, **kwargs):
        logits = (0.5 * logits + bias)[..., :60].view(-1, 60)
        labels, weight = labels.view(-1) % 60, torch.linspace(0.1, 1, 60)
        smoothed = torch.nn.functional.cross_entropy(logits, labels, weight, ignore_index=3, label_smoothing=0.1)
        each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return smoothed + (each * torch.linspace(0, 1, len(each))).sum()

    bias = torch.linspace(-2, 2, 67).requires_grad_()
    model = adapt(build(), "lora")
    model.get_base_model().loss_function = loss_function
    theirs, expected = step(model), bias.grad
    bias.grad = None
    assert_same(step(patch(model)), theirs)
    torch.testing.assert_close(bias.grad, expected)


@pytest.mark.skipif(torch.__version__ < "2.10", reason="models of transformers 5 cannot be compiled there")
def test_under_torch_compile(rows):
    theirs = step(adapt(build(), "lora"))
    model = patch(adapt(build(), "lora"))
    torch._dynamo.reset()
    assert_same(step(model, call=torch.compile(model, backend="eager")), theirs)


def test_quantised_layers_are_refused():
    class Quantised(torch.nn.Linear):
        def forward(self, input):
            return super().forward(input).round()

    for kind in ("lora", "saved"):
        model = build()
        model.lm_head = Quantised(16, 67)
        with pytest.raises(TypeError, match="or PEFT's of one, got .*Quantised"):
            patch(adapt(model, kind))
