"""The demo's language model: tiny, but with all that the real one does."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress

import crossent
from crossent.tools.demo import language_model, transformer

TINY = transformer.Settings(
    text_bytes=100_000,
    vocabulary=400,
    features=32,
    layers=1,
    batch=2,
    length=16,
    steps=15,
    learning_rate=1e-2,
    warm_up=2,
)


@pytest.fixture(scope="module")
def records():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for so small a model more threads only wait for each other
        return language_model.train_in_turns(Progress(disable=True), transformer.tokenized(TINY)[1], TINY)


def test_both_heads_train_alike(records):
    (theirs, *_), (ours, seconds, peaks) = records["torch"].T, records["crossent"].T
    assert len(ours) == TINY.steps
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[-3:].mean() < ours[0] - 0.5
    assert (seconds > 0).all() and (np.diff(peaks) >= 0).all()


def test_shows_the_records(records, monkeypatch, tmp_path):
    monkeypatch.setattr(language_model, "train_in_turns", lambda *_: records)
    console = Console(file=io.StringIO(), width=100)
    assert language_model.show(console, tmp_path, TINY) == []
    assert (tmp_path / "language_model.png").stat().st_size > 10_000
    printed = console.file.getvalue()
    assert "linear_cross_entropy(hidden, weight, tokens, shift=1)" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_losses_that_differ_or_rise_are_failures(records):
    torchs, ours = records["torch"], records["crossent"]
    other = {"torch": torchs, "crossent": ours * 1.01}
    assert len(language_model._failures(other)) == 1
    assert len(language_model._failures({"torch": torchs[::-1], "crossent": ours[::-1]})) == 1
    assert len(language_model._failures({"torch": torchs, "crossent": ours * np.nan})) == 2


def test_too_little_text_takes_more():
    texts, tokens = transformer.tokenized(transformer.replace(TINY, text_bytes=20_000, vocabulary=8000))
    assert len(texts) > len(transformer.standard_library(20_000))
    assert tokens.max() < 8000


def test_batches_repeat_no_sequence_before_all_have_come():
    tokens = torch.arange(10 * (TINY.length + 1) + 3)
    seen = torch.cat([transformer.batch(tokens, TINY, step)[:, 0] for step in range(5)])
    assert len(seen.unique()) == 10
    assert transformer.batch(tokens, TINY, 5)[0, 0] == seen[0]


def test_trained_hidden_states_know_more_than_chance():
    hidden, weight, labels = transformer.trained(5, TINY)
    assert hidden.shape == (32, 32) and weight.shape == (400, 32) and labels.shape == (32,)
    assert crossent.linear_cross_entropy(hidden, weight, labels) < np.log(400)
