"""Tiny models of transformers, and one training step of them, patched or not."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 67, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "output_router_logits": True}
FAMILIES = {
    "Llama": {},
    "Qwen3": {"tie_word_embeddings": True},
    "Mistral": {},
    "Phi3": {},
    "Phi": {},  # a head with a bias
    "GPT2": {},
    "Gemma2": {"final_logit_softcapping": 0.3, "query_pre_attn_scalar": 8},
    "RecurrentGemma": {"logits_soft_cap": 0.3, "lru_width": 16, "num_hidden_layers": 3},
    "Cohere": {"logit_scale": 0.3},
    "Granite": {"logits_scaling": 0.7},
    "Mixtral": EXPERTS | {"num_local_experts": 4},
    "Qwen3Moe": EXPERTS | {"num_experts": 4},
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "Bart": {"is_decoder": True, "decoder_layers": 1, "decoder_ffn_dim": 24},  # its loss is a CrossEntropyLoss
}
BIASED = {  # encoders with decoders that add `final_logits_bias` to their logits
    "BartForConditionalGeneration": {},
    "MBartForConditionalGeneration": {},
    "PegasusForConditionalGeneration": {},
    "BlenderbotForConditionalGeneration": {},
    "BlenderbotSmallForConditionalGeneration": {},
    "PLBartForConditionalGeneration": {},
    "MarianMTModel": {},
    "LEDForConditionalGeneration": {
        "attention_window": 4, "max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 32
    },
    "BigBirdPegasusForConditionalGeneration": {"attention_type": "original_full"},
    "MvpForConditionalGeneration": {},
}  # fmt: skip


def build(family="Llama", **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | FAMILIES[family] | options)
    names = (f"{family}ForCausalLM", f"{family}LMHeadModel")
    model = next(getattr(transformers, name) for name in names if hasattr(transformers, name))(config)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(10)  # far enough from uniform that a softcap or scale matters
        if head.bias is not None:
            head.bias.normal_()
    return model.train()


def build_biased(name):
    """An encoder with a decoder."""
    sizes = {
        "d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 2,
        "attention_dropout": 0.0, "activation_dropout": 0.0, "forced_eos_token_id": None,
    }  # fmt: skip
    sizes |= {f"{side}_{size}": n for side in ("encoder", "decoder") for size, n in (("layers", 1), ("ffn_dim", 24))}
    kept = {key: SIZES[key] for key in SIZES if key not in ("hidden_size", "head_dim", "num_key_value_heads")}
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**kept | sizes | BIASED[name]))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
        model.final_logits_bias.normal_()
    return model.train()


def batch(rows=2):
    ids = torch.randint(3, 67, (rows, 7), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :3] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def step(model, *args, call=None, **kwargs):
    """The output, the loss and the gradients; `call` is called in the model's place."""
    model.zero_grad()
    call = model if call is None else call
    output = call(*args, **(kwargs if args else batch() | kwargs))
    loss = output[0]
    loss.backward()
    return output, loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs, rtol=1e-5):
    """Losses, and gradients in proportion to their largest."""
    (_, loss, gradients), (_, expected, expected_gradients) = ours, theirs
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=rtol * largest, msg=name)
