"""Language models: labels shifted in time, and loss by token, byte, word and document."""

import json
import math
import re

import numpy as np
import pytest
import torch
from score_files import write
from test_score import command

import crossent
from crossent.tools.score import readers, score
from crossent.tools.score.command import run
from crossent.tools.score.readers import BadFile, Reading

N, T, C = 9, 6, 11
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, T, C))
Y = RNG.integers(3, C, size=(N, T))
Y[RNG.random((N, T)) < 0.2] = -100
Y[4] = -100  # a document of padding
BYTES, WORDS = RNG.integers(20, 90, N), RNG.integers(3, 9, N)


def losses(shift):
    """Of each position, in float64; nan where nothing counts."""
    found = np.full((N, T), np.nan)
    for n in range(N):
        for t in range(T - shift):
            label = Y[n, t + shift]
            if label != -100:
                found[n, t] = np.log(np.exp(X[n, t]).sum()) - X[n, t, label]
    return found


def saved(folder, kinds=("npy", "npy")):
    return [write(folder / f"{name}.npy", kind, array) for name, kind, array in zip("xy", kinds, (X, Y))]


def check(found, shift, bytes=None, words=None):
    nats, kept = np.nansum(losses(shift)), ~np.isnan(losses(shift))
    near = pytest.approx
    assert found["scored"] == kept.sum() and found["ignored"] == N * T - kept.sum()
    assert found["nll"] == near(nats / kept.sum(), rel=1e-12)
    assert found["perplexity"] == near(math.exp(nats / kept.sum()), rel=1e-12)
    if bytes is not None:
        assert found["bytes"] == bytes
        assert found["perplexity_by_byte"] == near(math.exp(nats / bytes), rel=1e-12)
        assert found["bits_per_byte"] == near(nats / math.log(2) / bytes, rel=1e-12)
    if words is not None:
        assert found["words"] == words and found["perplexity_by_word"] == near(math.exp(nats / words), rel=1e-12)
    there = kept.any(1)
    means = np.nansum(losses(shift), 1)[there] / kept.sum(1)[there]
    documents = found["documents"]
    assert documents["count"] == there.sum() and documents["nll"] == near(means.mean(), rel=1e-12)
    assert documents["perplexity"] == near(math.exp(means.mean()), rel=1e-12)
    worst = np.flatnonzero(there)[np.argsort(-means)][:3]
    assert [one["row"] for one in documents["worst"]][:3] == worst.tolist()
    assert documents["worst"][0]["nll"] == near(means.max()) and documents["worst"][0]["rows"] == kept.sum(1)[worst[0]]


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_a_score_of_texts(tmp_path, shift, library):
    kept = ~np.isnan(losses(shift))
    total = crossent.Score(shift=shift).update(library(X), library(Y), dim=2, bytes=library(BYTES), words=77)
    check(total.result(), shift, BYTES[kept.any(1)].sum(), 77)
    parts = [crossent.Score(shift=shift).update(
        library(np.moveaxis(X[at], 2, 1).copy()), library(Y[at]), rows=np.arange(N)[at], bytes=library(BYTES[at]),
        words=n) for at, n in ((slice(4), 70), (slice(4, N), 7))]  # fmt: skip
    parts[1].save(tmp_path / "part")
    merged = crossent.Score(shift=shift).merge(parts[0], crossent.Score.load(tmp_path / "part"))
    assert merged.result() == total.result()
    # Of each label its own length, which is shifted with it.
    lengths = RNG.integers(1, 7, (N, T))
    later = np.concatenate([lengths[:, shift:], np.zeros((N, shift), int)], 1)
    check(crossent.Score(shift=shift).update(X, Y, dim=2, bytes=lengths).result(), shift, later[kept].sum())


def test_shift_is_that_of_the_head():
    hidden, weight = torch.randn(N, T, 4, dtype=torch.float64), torch.randn(C, 4, dtype=torch.float64)
    for shift in (0, 1, 3, T, T + 2):
        found = crossent.Score(shift=shift).update(hidden @ weight.T, torch.from_numpy(Y), dim=2).result()
        if shift >= T:
            assert found["nll"] is None and found["ignored"] == N * T
        else:
            expected = crossent.linear_cross_entropy(hidden, weight, torch.from_numpy(Y), shift=shift).item()
            assert found["nll"] == pytest.approx(expected, rel=1e-12)


def test_files_of_texts(tmp_path, monkeypatch, capsys):
    """However they are cut, with lengths from a file, from a column, or as a number."""
    monkeypatch.setattr(readers, "_AT_ONCE", 2 * T * C)
    files = saved(tmp_path)
    np.save(tmp_path / "bytes.npy", BYTES)
    (tmp_path / "n.csv").write_text("bytes,words\n" + "\n".join(f"{a},{b}" for a, b in zip(BYTES, WORDS)))
    there = ~np.isnan(losses(1)).all(1)
    for beside in (
        {"bytes": f"{tmp_path}/bytes.npy", "words": str(WORDS[there].sum())},
        {"bytes": f"{tmp_path}/n.csv", "words": f"{tmp_path}/n.csv:words"},
        {"bytes": str(BYTES[there].sum()), "words": f"{tmp_path}/n.csv:1"},
    ):
        assert command(*files, as_json=True, reading=Reading(dim=2), shift=1, beside=beside) == 0
        check(json.loads(capsys.readouterr().out), 1, BYTES[there].sum(), WORDS[there].sum())
    assert command(*files, reading=Reading(dim=2), shift=1, beside=beside, fail_if=["bits_per_byte>0.01"]) == 3
    out = capsys.readouterr().out
    for said in ("perplexity by byte", "perplexity by word", "bits per byte", "document NLL"):
        assert said in out
    nats = losses(1)[there]
    order = np.argsort(-np.nanmean(nats, 1))
    expected = [[str(np.flatnonzero(there)[i]), str((~np.isnan(nats[i])).sum()), f"{np.nanmean(nats[i]):.4f}"]
                for i in order[:5]]  # fmt: skip
    _, _, shown = out.partition("Documents, worst first")
    assert [re.findall("[0-9.]+", line) for line in shown.splitlines() if "│" in line] == expected
    found = score(*files, reading=Reading(dim=2), shift=1, beside=beside)
    assert found.worst[0].index == np.unravel_index(np.nanargmax(losses(1)), (N, T))  # the row of the logits


def test_labels_that_are_shifted_away_may_be_anything(tmp_path):
    y = Y.copy()
    y[:, 0] = 99
    files = write(tmp_path / "x.npy", "npy", X), write(tmp_path / "y.npy", "npy", y)
    check(score(*files, reading=Reading(dim=2), shift=1).total.result(), 1)
    y[2, 1] = 99
    write(tmp_path / "y.npy", "npy", y)
    with pytest.raises(BadFile, match=r"row \(2, 1\): label 99 is out of bounds"):
        score(*files, reading=Reading(dim=2), shift=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Of words and a space before each, with a token for the end."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = ["<pad>", "<s>", "</s>", "▁the", "▁cat", "▁sat", "▁on", "▁mät", "s", ".", "▁猫"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>")
    made = tokenizers.Tokenizer(model)
    made.decoder = tokenizers.decoders.Metaspace()
    folder = tmp_path_factory.mktemp("tokenizer")
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    return str(folder), words


@pytest.mark.parametrize("shift", [0, 1])
def test_a_tokenizer_counts(tmp_path, tokenizer, shift, capsys):
    folder, words = tokenizer
    texts = []
    for labels, nats in zip(Y, losses(shift)):
        chosen = np.concatenate([labels[shift:], np.full(shift, -100)])[~np.isnan(nats)]
        texts.append("".join(words[i] for i in chosen).replace("▁", " ").removeprefix(" "))
    bytes, count = sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)
    files = saved(tmp_path)
    assert run(files, as_json=True, tokenizer=folder, reading=Reading(dim=2), shift=shift) == 0
    check(json.loads(capsys.readouterr().out), shift, bytes, count)


def test_perplexity_is_that_of_transformers(tmp_path):
    language_models = pytest.importorskip("language_models")
    model = language_models.build("GPT2").eval()
    labels = torch.randint(3, 67, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(labels, labels=labels)
    files = write(tmp_path / "x.npy", "npy", out.logits.numpy()), write(tmp_path / "y.npy", "npy", labels.numpy())
    found = score(*files, reading=Reading(dim=2), shift=1).total.result()
    assert found["scored"] == 4 * 11 and found["nll"] == pytest.approx(out.loss.item(), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(out.loss.item()), rel=1e-5)


def test_what_is_refused(tmp_path, capsys):
    files = saved(tmp_path)
    flat = write(tmp_path / "flat.npy", "npy", X[:, 0]), write(tmp_path / "z.npy", "npy", np.zeros(N, int))
    for option in ({"shift": 1}, {"tokenizer": object()}):
        with pytest.raises(BadFile, match=f"flat.npy: --{next(iter(option))} needs logits of shape .rows, time, "):
            score(*flat, **option)
    assert run(files, tokenizer=str(tmp_path), reading=Reading(dim=2)) == 2
    assert f"crossent score: --tokenizer {tmp_path}: " in capsys.readouterr().err
    made = crossent.Score(shift=1)
    for lengths in (-1, BYTES[:-1], BYTES * 0.5, "many", -BYTES):
        with pytest.raises(ValueError, match="bytes must be an integer, 9 or as many as there are labels, none"):
            made.update(X, Y, dim=2, bytes=lengths)
    with pytest.raises(ValueError, match="shift needs rows with an axis of time"):
        made.update(X[:, 0], Y[:, 0])
    made.update(X, Y, dim=2, bytes=5)
    with pytest.raises(ValueError, match="bytes and words must be given for all rows or for none"):
        made.update(X, Y, dim=2)
    with pytest.raises(ValueError, match="what lengths are known is .'words'., but .'bytes'. in what came before"):
        made.merge(crossent.Score(shift=1).update(X, Y, dim=2, words=5))
    with pytest.raises(ValueError, match="shift is 0, but 1 in what came before"):
        made.merge(crossent.Score().update(X, Y, dim=2, bytes=5))
