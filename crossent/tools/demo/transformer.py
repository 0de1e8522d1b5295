"""A small language model of the standard library's own source: text, tokens, model and training.

The demo trains it with either of two heads; `trained` gives hidden states and a vocabulary for measurements.
"""

import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import crossent
import crossent.nn as nn

NOT_READ = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


@dataclass(frozen=True)
class Settings:
    """How much text, how large a model, how long a training; the defaults are the demo's."""

    text_bytes: int = 8_000_000
    vocabulary: int = 32_000
    features: int = 128
    layers: int = 2
    attention_heads: int = 4
    batch: int = 4
    length: int = 256  # predictions a sequence, which is a token longer
    steps: int = 200
    learning_rate: float = 2e-3  # at its highest
    warm_up: int = 20  # steps until then


DEMO = Settings()


def with_torch(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    logits = F.linear(hidden[:, :-1], weight)
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def with_crossent(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    return crossent.linear_cross_entropy(hidden, weight, tokens, shift=1)


HEADS = {"torch": with_torch, "crossent": with_crossent}


def standard_library(size: int) -> list[str]:
    """The source files of Python's standard library in the order of their paths, up to about `size` bytes."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts, total = [], 0
    for path in sorted(folder.rglob("*.py")):
        if total < size and NOT_READ.isdisjoint(path.relative_to(folder).parts):
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
            total += path.stat().st_size
    return texts


def tokenized(settings: Settings) -> tuple[list[str], Tensor]:
    """The text and its tokens, by a byte-pair tokenizer trained on it."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    # Too little text has too few pairs for the vocabulary.
    for enlarged in (1, 2, 4):
        texts = standard_library(enlarged * settings.text_bytes)
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        alphabet, vocabulary = ByteLevel.alphabet(), settings.vocabulary
        trainer = BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        if tokenizer.get_vocab_size() == settings.vocabulary:
            break
    tokens = [torch.tensor(encoding.ids, dtype=torch.int64) for encoding in tokenizer.encode_batch(texts)]
    return texts, torch.cat(tokens)


class Transformer(nn.Module):
    """Tokens (batch, time) to hidden states (batch, time, features). The embedding is the head's weight as well."""

    def __init__(self, settings: Settings):
        super().__init__()
        features, time = settings.features, settings.length + 1
        self.embedding = nn.Embedding(settings.vocabulary, features)
        self.position = nn.Parameter(torch.zeros(time, features))
        # A decoder that reads nothing else is an encoder with a causal mask. Without biases, since that of the keys has
        # no gradient but rounding errors, which Adam scales up to full steps: two trainings would soon part.
        layer = nn.TransformerEncoderLayer(
            features, settings.attention_heads, dim_feedforward=4 * features, dropout=0.0, activation="gelu",
            batch_first=True, norm_first=True, bias=False,
        )  # fmt: skip
        self.layers = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(features), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(time))
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(self.embedding(tokens) + self.position, mask=self.mask, is_causal=True)


def batch(tokens: Tensor, settings: Settings, step: int) -> Tensor:
    """Of sequences in an order that is the same in every training; none comes twice before all have come."""
    sequences = tokens[: len(tokens) // (settings.length + 1) * (settings.length + 1)].view(-1, settings.length + 1)
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0))
    return sequences[order[torch.arange(step * settings.batch, (step + 1) * settings.batch) % len(sequences)]]


def train(model: Transformer, head: Callable, tokens: Tensor, settings: Settings) -> Iterator[float]:
    """Yields the loss of each step, in nats a token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    total, rate = settings.steps + 1, settings.learning_rate
    # At a rate that does not fall, rounding grows within some 200 steps into losses that differ visibly.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total, pct_start=min(1.0, settings.warm_up / total), anneal_strategy="linear",
        cycle_momentum=False, div_factor=settings.warm_up,
    )  # fmt: skip
    for step in range(settings.steps):
        yield train_step(model, head, batch(tokens, settings, step), optimizer)
        schedule.step()


def train_step(model: Transformer, head: Callable, tokens: Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = head(model(tokens), model.embedding.weight, tokens)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def seeded_model(settings: Settings) -> Transformer:
    torch.manual_seed(0)
    return Transformer(settings)


def trained(steps: int, settings: Settings = DEMO) -> tuple[Tensor, Tensor, Tensor]:
    """What the head gets after so many steps of training, for a batch that the training has not seen.

    Returns hidden (N, D), weight (V, D) and labels (N,), without a graph; N = batch * length. By default N is 1024, D
    128 and V 32,000.
    """
    settings = replace(settings, steps=steps)
    _, tokens = tokenized(settings)
    model = seeded_model(settings)
    for _ in train(model, with_crossent, tokens, settings):
        pass
    unseen = batch(tokens, settings, steps)
    with torch.no_grad():
        hidden = model(unseen)[:, :-1].flatten(0, 1)
    return hidden, model.embedding.weight.detach(), unseen[:, 1:].flatten()
