"""Models of transformers with the fused head: the same loss and gradients as without, and no logits."""

import copy
import pickle
import warnings

import pytest
import torch
from language_models import BIASED, FAMILIES, assert_same, batch, build, build_biased, step, transformers

from crossent.integrations.transformers import patch, unpatch


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
    assert "logits" not in ours[0] and type(ours[0]) is type(theirs[0])
    if "output_router_logits" in FAMILIES[family]:
        torch.testing.assert_close(ours[0].aux_loss, theirs[0].aux_loss)
        assert theirs[1] > theirs[0].aux_loss * model.router_aux_loss_coef > 0


@pytest.mark.parametrize("name", BIASED)
def test_a_bias_that_the_model_adds(name):
    model = build_biased(name)
    theirs = step(model)
    ours = step(patch(model))
    assert "logits" not in ours[0]
    assert_same(ours, theirs)


def test_a_bias_among_other_operations():
    """With the head's own bias, a scale before and after, and a cut of the classes; a bias that is a parameter."""

    def loss_function(logits, labels, vocab_size, **kwargs):
        logits = 0.5 * (logits * 0.3 + bias) + 0.1 * bias[None, None]
        logits = -3 * torch.tanh(logits[..., :60] / 3)
        return torch.nn.functional.cross_entropy(logits.view(-1, 60), labels.view(-1) % 60)

    bias = torch.linspace(-2, 2, 67).requires_grad_()
    model = build("Phi")
    model.loss_function = loss_function
    theirs, expected = step(model), bias.grad
    bias.grad = None
    assert_same(step(patch(model)), theirs)
    torch.testing.assert_close(bias.grad, expected)


def test_models_without_memory():
    """On the meta device: shapes and dtypes alone."""
    for dtype in (torch.float32, torch.bfloat16):
        with torch.device("meta"):
            model = build("Gemma2").to(dtype)
            inputs = {name: torch.zeros(2, 7, dtype=torch.int64) for name in batch()}
        theirs = model(**inputs)
        ours = patch(model)(**inputs)
        assert ours.loss.is_meta and (ours.loss.shape, ours.loss.dtype) == ((), theirs.loss.dtype)
        ours.loss.backward()
        assert model.get_output_embeddings().weight.grad.is_meta


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
        assert "logits" not in model(**inputs)


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
        lambda logits: torch.ones(2, 7, 67) + logits,
        lambda logits: logits + torch.ones(1),
        lambda logits: torch.tanh(logits) + torch.ones(67),
        lambda logits: logits / torch.ones(67),
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
    with pytest.raises((TypeError, AttributeError), match="unpatch it|unsupported operand .*Logits"):
        model(**batch())
    del model._loss_function
    assert torch.isfinite(model(**batch()).loss)


def test_logits_of_an_output():
    """Their cross entropy can be taken; whoever asks for anything else reads what to do."""
    model, inputs = build("Phi"), batch()
    labels = inputs["labels"][..., 1:]

    def loss(output):
        logits = output.logits[..., :-1, :].contiguous()
        return torch.nn.functional.cross_entropy(logits.view(-1, 67), labels.reshape(-1), label_smoothing=0.1)

    expected = loss(model(**inputs))
    output = patch(model)(**inputs)
    torch.testing.assert_close(loss(output), expected)
    assert "did not make" in repr(output.logits) and len(repr(output.logits)) < 80
    for use in (
        lambda logits: logits.argmax(-1),
        lambda logits: torch.softmax(logits, -1),
        lambda logits: logits[0, 0, 3],
    ):
        with pytest.raises((TypeError, AttributeError), match="in evaluation or without labels .* or unpatch it"):
            use(output.logits)


def test_label_smoothing_by_the_loss_function():
    """As docs/transformers.md has it: what the Trainer makes of logits that it asks for without labels."""

    def smoothed(logits, labels, vocab_size, **kwargs):
        targets = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
        logits = logits.float().view(-1, vocab_size)
        return torch.nn.functional.cross_entropy(logits, targets.reshape(-1), label_smoothing=0.1)

    model, inputs = build(), batch()
    labels = inputs.pop("labels")
    smoother = transformers.trainer_pt_utils.LabelSmoother(0.1)
    expected = smoother(model(**inputs), labels, shift_labels=True)
    patch(model)
    with pytest.warns(UserWarning, match="called in training without labels"):
        torch.testing.assert_close(smoother(model(**inputs), labels, shift_labels=True), expected)
    model.loss_function = smoothed
    output = model(**inputs, labels=labels)
    assert "logits" not in output
    torch.testing.assert_close(output.loss, expected)


def test_training_without_labels_warns():
    model, inputs = patch(build()), batch()
    del inputs["labels"]
    with pytest.warns(UserWarning, match="called in training without labels, so it makes its logits") as caught:
        model(**inputs)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            model(**inputs)
        model.eval()(**inputs)
        model.generate(**inputs, max_new_tokens=2)


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
    assert "logits" in step(model)[0]


def test_classes_put_on_top_of_ours():
    """As FSDP does."""
    model = patch(build())
    for module in (model, model.lm_head):
        module.__class__ = type("Sharded", (type(module),), {})
    assert patch(model) is model and type(model).__name__ == "Sharded"
    assert "logits" not in model(**batch())
    with pytest.raises(TypeError, match="Sharded was wrapped in another class"):
        unpatch(model)


def test_replaced_output_embedding():
    model = patch(build())
    model.lm_head = torch.nn.Linear(16, 67)
    with pytest.raises(ValueError, match="patch it again"):
        model(**batch())
    assert "logits" not in patch(model)(**batch())


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
    assert "logits" not in theirs[0]
    assert_same(theirs, ours)
    assert "logits" in step(unpatch(other))[0] and "logits" not in model(**batch())


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
    assert "logits" not in model.train()(**batch())
    assert "logits" in unpatch(model)(**batch())
