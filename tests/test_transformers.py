"""Models of transformers with the fused head: the same loss and gradients as without, and no logits."""

import copy
import os
import pickle

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from crossent.integrations.transformers import patch, unpatch  # noqa: E402

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


def batch(rows=2):
    ids = torch.randint(3, 67, (rows, 7), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :3] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def step(model, *args, **kwargs):
    model.zero_grad()
    output = model(*args, **(kwargs if args else batch() | kwargs))
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


@pytest.fixture
def products(monkeypatch):
    """The weights that torch.nn.functional.linear has multiplied with."""
    seen, linear = [], torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, weight, bias=None: seen.append(weight) or linear(x, weight, bias)
    )
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients(family, products):
    model = build(family)
    theirs = step(model)
    head = model.get_output_embeddings()
    assert any(weight is head.weight for weight in products)
    products.clear()
    ours = step(patch(model))
    assert not any(weight is head.weight for weight in products)
    assert_same(ours, theirs)
    assert ours[0].logits is None and "logits" not in ours[0]
    assert type(ours[0]) is type(theirs[0])
    if "output_router_logits" in FAMILIES[family]:
        torch.testing.assert_close(ours[0].aux_loss, theirs[0].aux_loss)
        assert theirs[1] > theirs[0].aux_loss * model.router_aux_loss_coef > 0


SHIFTED = torch.randint(0, 67, (2, 7), generator=torch.Generator().manual_seed(2))
SHIFTED[1, 2:5] = 9


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_items_in_batch": 5},
        {"num_items_in_batch": torch.tensor(5)},
        {"num_items_in_batch": torch.tensor([5])},
        {"ignore_index": 9, "labels": SHIFTED},
        {"shift_labels": SHIFTED},
        {"shift_labels": SHIFTED, "ignore_index": 9, "num_items_in_batch": torch.tensor(7)},
        {"labels": torch.full((2, 7), -100)},
        {"labels": torch.full((2, 7), -100), "num_items_in_batch": torch.tensor(7)},
    ],
    ids=str,
)
def test_keywords_of_the_loss_function(kwargs):
    def loss(model):
        return model(**batch() | kwargs).loss

    model = build()
    expected = loss(model)
    torch.testing.assert_close(loss(patch(model)), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Granite"])
def test_dtypes(family, dtype):
    model = build(family).to(dtype)
    theirs = step(model)
    ours = step(patch(model))
    assert ours[1].dtype == theirs[1].dtype == torch.float32
    assert_same(ours, theirs, rtol=0.03 if dtype == torch.bfloat16 else 1e-5)


def test_autocast():
    model = build("Gemma2")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = step(model)
        ours = step(patch(model))
    assert ours[1].dtype == theirs[1].dtype == torch.float32
    assert_same(ours, theirs, rtol=0.03)


def test_frozen_head_and_gradient_checkpointing():
    model = build()
    model.lm_head.requires_grad_(False)
    model.gradient_checkpointing_enable()
    theirs = step(model)
    assert "lm_head.weight" not in theirs[2]
    assert_same(step(patch(model)), theirs)


def test_everything_else_is_as_before():
    model, inputs = build(), batch()
    without = {name: value for name, value in inputs.items() if name != "labels"}
    cases = [(True, without), (False, inputs), (False, without)]

    def outputs():
        for training, kwargs in cases:
            yield model.train(training)(**kwargs)

    theirs = list(outputs())
    tokens = model.generate(**without, max_new_tokens=4, do_sample=False)
    patch(model)
    for ours, expected in zip(outputs(), theirs, strict=True):
        assert torch.equal(ours.logits, expected.logits)
        assert ours.keys() == expected.keys() and ours.loss == expected.loss
    assert torch.equal(model.generate(**without, max_new_tokens=4, do_sample=False), tokens)


def test_ways_to_call():
    model = build()
    theirs, inputs = step(model), batch()
    patch(model)
    named = step(model, return_dict=False)
    assert isinstance(named[0], tuple) and not any(type(value).__name__ == "_Logits" for value in named[0])
    assert_same(named, theirs)
    by_position = [inputs["input_ids"], inputs["attention_mask"], None, None, None, inputs["labels"]]
    assert_same(step(model, *by_position), theirs)
    with torch.no_grad():
        assert model(**inputs).logits is None


def test_own_loss_function():
    """Whatever the model's loss function does with cross entropy."""

    def loss_function(logits, labels, vocab_size, **kwargs):
        logits = 2 * torch.nn.functional.tanh(logits[:, :-1].to("cpu", torch.float32) * 3 / 7)
        wanted = labels[:, 1:] != -100
        loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits[wanted], labels[:, 1:][wanted])
        kept = logits[..., 1:, :60].contiguous()
        assert kept.shape == kept.size() == (2, 5, 60) and kept.size(-1) == 60
        losses = torch.nn.functional.cross_entropy(
            kept.view(-1, kept.shape[-1]), labels[:, 2:].reshape(-1) % 60, torch.linspace(0, 1, 60), reduction="none"
        )
        return loss + losses.sum() / 4

    model = build()
    model.loss_function = loss_function
    theirs = step(model)
    assert_same(step(patch(model)), theirs)


@pytest.mark.parametrize(
    "operation",
    [
        lambda logits: logits.log_softmax(-1),
        lambda logits: torch.nn.functional.log_softmax(logits, -1),
        lambda logits: torch.nn.functional.cross_entropy(logits, torch.zeros(2, 67, dtype=torch.long)),
        lambda logits: torch.nn.functional.cross_entropy(logits.view(-1, 67), SHIFTED.view(-1), size_average=False),
        lambda logits: torch.tanh(torch.tanh(logits)),
        lambda logits: logits * torch.ones(67),
        lambda logits: torch.ones(67) + logits,
        lambda logits: logits + 1.0,
        lambda logits: logits == 0,
        lambda logits: logits != 0,
        lambda logits: logits[..., 3:],
        lambda logits: logits[:, :, 3],
        lambda logits: logits[..., torch.ones(67, dtype=torch.bool)],
        lambda logits: logits[torch.ones(2, 7, 67, dtype=torch.bool)],
        lambda logits: logits[None],
        lambda logits: logits.view(-1, 66),
        lambda logits: logits.to("meta"),
        lambda logits: torch.zeros(()),
    ],
)
def test_what_is_not_understood_raises(operation):
    def loss_function(logits, labels, vocab_size, **kwargs):
        return operation(logits)

    model = patch(build())
    model.loss_function = loss_function
    with pytest.raises((TypeError, AttributeError), match="[Uu]npatch it|unsupported operand .*_Logits"):
        model(**batch())
    del model._loss_function
    assert torch.isfinite(model(**batch()).loss)


def test_bad_labels_raise():
    labels = batch()["labels"]
    labels[1, 2] = 67
    with pytest.raises(IndexError, match="67"):
        patch(build())(input_ids=batch()["input_ids"], labels=labels)


class Unlabelled(transformers.LlamaForCausalLM):
    def forward(self, input_ids):
        return super().forward(input_ids)


class Adapted(torch.nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def with_head(head):
    model = build()
    model.lm_head = head
    return model


def with_forward_on(find):
    model = build()
    module = find(model)
    module.forward = module.forward
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), "Linear has no output embedding"),
        (lambda: build().model, "LlamaModel has no output embedding"),
        (lambda: with_head(None), "has no output embedding"),
        (lambda: with_head(torch.nn.Bilinear(1, 1, 1)), "must be a torch.nn.Linear.*Bilinear"),
        (lambda: with_head(Adapted(16, 67)), "must be a torch.nn.Linear.*Adapted"),
        (lambda: Unlabelled(build().config), "Unlabelled.forward must take labels"),
        (lambda: with_forward_on(lambda model: model), "LlamaForCausalLM.forward was replaced"),
        (lambda: with_forward_on(lambda model: model.lm_head), "Linear.forward was replaced"),
    ],
)
def test_models_that_cannot_be_patched(make, message):
    model = make()
    before = [type(module) for module in model.modules()]
    with pytest.raises(TypeError, match=message):
        patch(model)
    assert [type(module) for module in model.modules()] == before


def test_patch_and_unpatch():
    model = build()
    head, before = model.lm_head, [(type(module), dict(vars(module))) for module in model.modules()]
    names = list(model.state_dict())
    assert unpatch(model) is model
    assert patch(model) is model
    kinds = type(model), type(head)
    assert kinds != (transformers.LlamaForCausalLM, torch.nn.Linear) and isinstance(
        model, transformers.LlamaForCausalLM
    )
    assert patch(model) is model and (type(model), type(head)) == kinds
    assert list(model.state_dict()) == names and str(type(model)) == str(transformers.LlamaForCausalLM)
    step(model)
    assert unpatch(model) is model and model.lm_head is head
    model.zero_grad()
    assert [(type(module), dict(vars(module))) for module in model.modules()] == before
    assert step(model)[0].logits is not None


def test_classes_put_on_top_of_ours():
    """As FSDP does."""
    model = patch(build())
    for module in (model, model.lm_head):
        module.__class__ = type("Sharded", (type(module),), {})
    assert patch(model) is model and type(model).__name__ == "Sharded"
    assert model(**batch()).logits is None
    with pytest.raises(TypeError, match="Sharded was wrapped in another class"):
        unpatch(model)


def test_replaced_output_embedding():
    model = patch(build())
    model.lm_head = torch.nn.Linear(16, 67)
    with pytest.raises(ValueError, match="patch it again"):
        model(**batch())
    assert patch(model)(**batch()).logits is None


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_patched_and_independent(family, copied):
    model = patch(build(family))
    ours, other = step(model), copied(model)
    assert type(other) is type(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    other.zero_grad()
    theirs = step(other)
    assert theirs[0].logits is None
    assert_same(theirs, ours)
    assert step(unpatch(other))[0].logits is not None and model(**batch()).logits is None


def test_saved_models(tmp_path):
    model = patch(build("Qwen3"))
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).train()
    assert type(loaded) is transformers.Qwen3ForCausalLM and loaded.config.architectures == ["Qwen3ForCausalLM"]
    assert_same(step(loaded), step(model))
    assert loaded.load_state_dict(model.state_dict())


def trained(model, folder, **options):
    data = [{name: value[i] for name, value in batch(7).items()} for i in range(7)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2, learning_rate=1e-3,
        eval_strategy="epoch", **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data[:2])
    trainer.train()
    history = trainer.state.log_history
    return [entry[name] for entry in history for name in ("loss", "grad_norm", "eval_loss") if name in entry]


@pytest.mark.parametrize(("family", "bf16"), [("Gemma2", False), ("Qwen3", True)])
def test_trainer_with_gradient_accumulation(family, bf16, tmp_path, products):
    theirs = trained(build(family), tmp_path, bf16=bf16)
    model = patch(build(family))
    head = model.get_output_embeddings()
    products.clear()
    ours = trained(model, tmp_path, bf16=bf16)
    evaluations = sum(weight is head.weight for weight in products)
    assert evaluations == 2  # one batch at the end of each epoch
    assert len(ours) == len(theirs) == 10
    torch.testing.assert_close(ours, theirs, rtol=0.02 if bf16 else 1e-4, atol=0)
    assert model.train()(**batch()).logits is None
    assert unpatch(model)(**batch()).logits is not None
