"""Losses of fine-tuning made of `linear_token_stats`, as docs/transformers.md shows them: beside float64, and TRL's."""

import pytest
import torch
from torch.nn import functional as F

import crossent


def example(dtype=torch.float64, rows=6, features=16, classes=67):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, rows, features, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(classes, features, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(classes, (2, rows), generator=generator)
    labels[0, :3] = -100
    return hidden, weight, labels


def reference(hidden, weight, labels, temperature, softcap):
    """Log-probabilities and entropies of logits that are divided by a temperature after their softcap."""
    logits = (hidden.double() @ weight.double().T)[:, :-1]
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    log_p = (logits / temperature).log_softmax(-1)
    labels = labels[:, 1:]
    picked = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    return picked * (labels != -100), entropy * (labels != -100)


def at_temperature(hidden, weight, labels, temperature, softcap=None):
    softcap = None if softcap is None else softcap / temperature
    stats = crossent.linear_token_stats(hidden / temperature, weight, labels, shift=1, softcap=softcap)
    return stats.logprob, stats.entropy


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("temperature", [0.7, 2.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_a_temperature_is_a_scale_of_the_input(dtype, tolerance, temperature, softcap):
    """A softcap's bound is divided with it: T * softcap * tanh(x / (T * softcap)) = T times that of x / T."""
    tensors = example(dtype)
    ours = at_temperature(*tensors, temperature, softcap)
    theirs = reference(*tensors, temperature, softcap)
    factors = torch.linspace(-1, 1, 10, dtype=torch.float64).view(2, 5)
    made = [
        torch.autograd.grad((logprob * factors + entropy * factors.flip(0)).sum(), tensors[:2])
        for logprob, entropy in (ours, theirs)
    ]
    for mine, expected in zip((*ours, *made[0]), (*theirs, *made[1])):
        error = (mine.double() - expected.double()).abs().max() / expected.double().abs().max()
        assert error < tolerance


def sft(logprob, labels):
    return -logprob.sum() / (labels[:, 1:] != -100).sum()


def dpo(logprob, frozen, beta=0.1):
    """The first row is preferred to the second."""
    chosen, rejected = (logprob - frozen).sum(1)
    return -F.logsigmoid(beta * (chosen - rejected))


def grpo(logprob, entropy, old, advantages, clip=0.2):
    ratio = (logprob - old).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -(gain + 0.01 * entropy).mean()


def losses(logprob, entropy, labels):
    frozen = logprob.detach() + torch.linspace(-0.3, 0.3, 10, dtype=logprob.dtype).view(2, 5)
    advantages = torch.tensor([[1.0], [-0.5]], dtype=logprob.dtype)
    return torch.stack([sft(logprob, labels), dpo(logprob, frozen), grpo(logprob, entropy, frozen, advantages)])


def with_gradients(values, tensors):
    gradients = [torch.autograd.grad(value, tensors, retain_graph=True) for value in values]
    return [values.detach(), *(gradient for pair in gradients for gradient in pair)]


def test_losses_of_fine_tuning():
    tensors = example(torch.float32)
    hidden, weight, labels = tensors
    stats = crossent.linear_token_stats(hidden, weight, labels, shift=1)
    ours = with_gradients(losses(stats.logprob, stats.entropy, labels), tensors[:2])
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors[:2]]
    theirs = with_gradients(losses(*reference(*exact, labels, 1.0, None), labels), exact)
    for mine, expected in zip(ours, theirs):
        torch.testing.assert_close(mine, expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_statistics_are_those_of_trl(temperature):
    utils = pytest.importorskip("trl.trainer.utils", reason="needs trl")
    from language_models import batch, build

    model = build("Gemma2", tie_word_embeddings=False)
    utils.add_fused_lm_head(model, temperature, outputs=("log_probs", "entropy", "is_top1"))
    inputs = batch()
    theirs = model(**inputs, fused_lm_head=True)
    hidden = model.model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    softcap = model.config.final_logit_softcapping / temperature
    ours = crossent.linear_token_stats(
        hidden / temperature, model.lm_head.weight, inputs["labels"], shift=1, softcap=softcap
    )
    torch.testing.assert_close(ours.logprob, theirs.log_probs)
    torch.testing.assert_close(ours.entropy, theirs.entropy)
    assert torch.equal(ours.rank == 0, theirs.is_top1)
    mine, expected = (
        torch.autograd.grad((logprob * entropy).sum(), model.lm_head.weight)[0]
        for logprob, entropy in ((ours.logprob, ours.entropy), (theirs.log_probs, theirs.entropy))
    )
    torch.testing.assert_close(mine, expected)


def test_patch_and_trls_fused_head():
    utils = pytest.importorskip("trl.trainer.utils", reason="needs trl")
    from language_models import batch, build

    from crossent.integrations.transformers import patch

    model = patch(build())
    with pytest.warns(UserWarning, match="TRL's trainer makes the loss with a fused head of its own"):
        utils.add_fused_lm_head(model)
    theirs = model(**batch(), fused_lm_head=True).loss
    torch.testing.assert_close(model(**batch()).loss, theirs)  # the patch serves the calls that are not for it
    model = build()
    utils.add_fused_lm_head(model)
    with pytest.raises(TypeError, match="LlamaForCausalLM has TRL's fused head already"):
        patch(model)
