"""`crossent.Score` and partial results: the result of the whole however rows are cut, and nothing that does not fit."""

import copy
import json
import math
import os
import pickle
import random
import textwrap
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import typed
from hiding import run_without
from hypothesis import HealthCheck, given, settings, strategies as st
from score_files import example, write
from score_parts import predictions, scored
from sklearn import metrics as sk

import crossent
from crossent.tools import plain_json
from crossent.tools.score import confusion, metrics, partial
from crossent.tools.score.confusion import Pairs
from crossent.tools.score.sums import Cells

# Sums


@given(st.data())
def test_sums_are_exact(data):
    floats = st.floats(0, 1e300) | st.floats(0, 1e-300) | st.floats(0, 64, width=32)
    n = data.draw(st.integers(1, 3), "sums")
    values = data.draw(st.lists(st.tuples(st.integers(0, n - 1), floats), max_size=30), "summands")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3), "cuts"))
    parts = [values[lo:hi] for lo, hi in zip([0, *cuts], [*cuts, None])]
    total = Cells(n, (), ("sum",))
    for part in data.draw(st.permutations(parts), "order"):
        some = Cells(n, (), ("sum",))
        some.add(np.array([place for place, _ in part], int), {"sum": np.array([value for _, value in part], float)})
        total.merge(some)
    for i in range(n):
        exact = sum((Fraction(value) for place, value in values if place == i), Fraction(0))
        assert sum(Fraction(2) ** (32 * j) * int(digit[i]) for j, digit in total.carried("sum").items()) == exact
        rounded = total["sum"][i]
        assert abs(Fraction(rounded) - exact) <= Fraction(np.spacing(rounded))
    assert Fraction(total.folded(1)["sum"][0]) == pytest.approx(sum(Fraction(value) for _, value in values), rel=1e-15)


def test_sums_carry_before_they_overflow(monkeypatch):
    monkeypatch.setattr("crossent.tools.score.sums._OFTEN", 10)
    sums, largest = Cells(1, (), ("sum",)), 2.0**32 - 2.0**-20
    for _ in range(100):
        sums.add(np.zeros(3, int), {"sum": np.full(3, largest)})
        assert max(int(digit.max()) for digit in sums.digits["sum"].values()) < 14 * 2**32
    found = sum(Fraction(2) ** (32 * i) * int(digit[0]) for i, digit in sums.carried("sum").items())
    assert found == 300 * Fraction(largest)


# Scores


def check_a_cut(data):
    """Rows in any order, in batches, in processes, merged as a tree: the result is that of one call."""
    rows, seed = data.draw(st.integers(1, 80), "rows"), data.draw(st.integers(0, 99), "seed")
    dtype = data.draw(st.sampled_from(["float32", "float64"]), "dtype")
    library = data.draw(st.sampled_from([np.asarray, torch.as_tensor]), "library")
    logits, labels = predictions(rows, dtype=dtype, seed=seed)
    shuffled = random.Random(data.draw(st.integers(0, 99), "order"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_GROUP", data.draw(st.sampled_from([1, 7, 2**15]), "group"))
        options = {"top": data.draw(st.integers(0, 12), "top")}
        whole = scored(logits, labels, np.arange(rows), library, **options).result()
        order = shuffled.sample(range(rows), rows)
        parts = [crossent.Score(**options) for _ in range(data.draw(st.integers(1, 5), "processes"))]
        while order:
            n = shuffled.randint(1, 9)
            batch, order = np.array(order[:n]), order[n:]
            shuffled.choice(parts).update(library(logits[batch]), library(labels[batch]), rows=batch)
            if shuffled.random() < 0.2:
                parts[0].result()
        while len(parts) > 1:
            shuffled.shuffle(parts)
            one = parts.pop()
            parts[0].merge(pickle.loads(pickle.dumps(one)))
        assert parts[0].result() == whole and parts[0].result() == whole


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_cut_and_no_order_changes_a_bit(data):
    check_a_cut(data)


@pytest.mark.soak
@settings(max_examples=4000, deadline=None)
@given(data=st.data())
def test_none_of_many_cuts_changes_a_bit(data):
    check_a_cut(data)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_are_those_of_scikit_learn(dtype):
    logits, labels = example(1000, 12)
    logits, every = logits.astype(dtype), np.arange(12)
    parts = [scored(logits, labels, at) for at in np.array_split(np.arange(1000), 7)]
    found = crossent.Score().merge(*parts).result()
    p = np.exp(logits.astype(float) - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    near = pytest.approx
    assert found["nll"] == near(sk.log_loss(labels, p, labels=every), rel=1e-6)
    assert found["accuracy"] == sk.accuracy_score(labels, p.argmax(1))
    assert found["top5"] == sk.top_k_accuracy_score(labels, p, k=5, labels=every)
    assert found["brier"] == near(sk.brier_score_loss(labels, p, labels=every, scale_by_half=False), rel=1e-6)
    recall = sk.recall_score(labels, p.argmax(1), labels=every, average=None)
    assert [row["recall"] for row in found["by_class"]] == near(recall.tolist(), abs=1e-15)
    nll = -np.log(p[np.arange(1000), labels])
    assert [row["row"] for row in found["worst"]] == np.argsort(-nll, kind="stable")[:10].tolist()


def test_the_mean_is_that_of_an_exact_sum():
    logits, labels = example(5000, 9)
    logits[::3] *= 1000  # losses from 0 to thousands
    stats = crossent.prediction_stats(logits, labels)
    found = crossent.Score().update(logits, labels).result()
    assert found["nll"] == pytest.approx(-math.fsum(stats.logprob.tolist()) / 5000, rel=3e-16)
    assert found["brier"] == pytest.approx(math.fsum(stats.brier.tolist()) / 5000, rel=3e-16)
    for row in found["by_class"]:
        own = stats.logprob[labels == row["label"]].tolist()
        assert row["nll"] == pytest.approx(-math.fsum(own) / len(own), rel=3e-16)


@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
def test_every_layout_says_the_same(library):
    """The class axis anywhere, more axes, one row; labels of every integer type."""
    logits, labels = predictions(24)
    whole = crossent.Score(top=3).update(library(logits), library(labels)).result()
    turned = crossent.Score(top=3).update(library(logits).T, library(labels), dim=0).result()
    assert turned == whole
    pixels = library(np.ascontiguousarray(logits.reshape(4, 6, -1).transpose(0, 2, 1)))
    spread = crossent.Score(top=3).update(pixels, library(labels.reshape(4, 6))).result()
    last = crossent.Score(top=3).update(library(logits.reshape(4, 6, -1)), library(labels.reshape(4, 6)), dim=-1)
    assert spread == last.result()
    assert [divmod(row["row"], 6) for row in whole["worst"]] == [row["row"] for row in spread["worst"]]
    of_rows = {"worst": 0, "intervals": 0, "documents": 0, "coverage": 0}  # the positions of a row belong together
    assert spread | of_rows == whole | of_rows and spread["coverage"]["area"] == whole["coverage"]["area"]
    score = crossent.Score(top=3)
    for row, label in zip(library(logits), library(labels)):
        score.update(row, library(label))
    assert score.result() == whole
    for dtype in (np.int8, np.int32, *([np.uint8, np.uint64] if library is np.asarray else [])):
        kept = labels >= 0
        one, other = (crossent.Score().update(library(logits[kept]), library(labels[kept].astype(d)))
                      for d in (np.int64, dtype))  # fmt: skip
        assert one.result() == other.result()


def test_tensors_of_16_bits_and_gradients():
    logits, labels = torch.randn(50, 8), torch.arange(50) % 8
    for dtype in (torch.float16, torch.bfloat16):
        x = logits.to(dtype).requires_grad_()
        found = crossent.Score().update(x, labels).result()
        assert found == crossent.Score().update(x.float(), labels).result()
        assert x.grad is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_tensors_on_a_gpu():
    logits, labels = map(torch.as_tensor, example(1000, 12))
    expected = crossent.Score().update(logits, labels).result()
    for scale in ("logits", "log-probabilities"):
        found = crossent.Score(scale=scale).update(logits.log_softmax(1).cuda(), labels.cuda(), rows=labels.cuda())
        assert found.result()["nll"] == pytest.approx(expected["nll"], rel=1e-6)
        assert found.result()["accuracy"] == expected["accuracy"]


def test_probabilities_are_what_their_logarithms_are():
    logits, labels = example(100, 5)
    p = np.exp(logits.astype(float))
    p /= p.sum(1, keepdims=True)
    near = crossent.Score(scale="log-probabilities").update(np.log(p), labels).result()
    for library in (np.asarray, torch.as_tensor):
        found = crossent.Score(scale="probabilities").update(library(p), library(labels)).result()
        assert found == near and not found["findings"]
    wrong = crossent.Score().update(p, labels).result()
    assert [finding["name"] for finding in wrong["findings"]] == ["probabilities"]
    with pytest.raises(ValueError, match="row 7: the numbers are no probabilities: they have the sum 2 and"):
        crossent.Score(scale="probabilities").update(np.where(np.arange(100)[:, None] == 7, 2 * p, p), labels)


def test_findings_are_those_of_the_whole():
    """One part shows that the other's rows are no probabilities; classes along the other axis are seen together."""
    p = np.full((20, 3), 1 / 3)
    p[:, 0], p[:, 1] = 0.5, 0.5 - 1 / 3
    labels = np.zeros(20, int)
    one, other = crossent.Score().update(p, labels), crossent.Score().update(5 * p, labels)
    assert one.result()["findings"] and not one.merge(other).result()["findings"]
    logits, labels = example(200, 5)
    turned, labels = (
        (logits + 5 * np.eye(5)[labels]).reshape(40, 5, 5),
        labels.reshape(40, 5),
    )  # its classes lie along axis 2
    parts = [crossent.Score().update(turned[lo : lo + 2], labels[lo : lo + 2]) for lo in range(0, 40, 2)]
    assert not parts[0].result()["findings"]  # too few rows
    found = crossent.Score().merge(*parts).result()["findings"]
    assert [finding["name"] for finding in found] == ["class_axis"] and "(40, 5, 5)" in found[0]["sentence"]
    assert found == crossent.Score().update(turned, labels).result()["findings"]
    parts[-1].update(turned[:3, :, :4], labels[:3, :4])  # rows whose other axis is too short to have the classes
    assert not parts[0].merge(*parts[1:]).result()["findings"]


def test_names():
    names = ["cat", "dog", "cow"]
    found = crossent.Score(names=names).update(np.eye(3), np.array([0, 1, 1])).result()
    assert [(row["label"], row["name"]) for row in found["by_class"]] == [*enumerate(names)]


def test_nothing_to_score_is_a_result_too():
    """A process that has no rows, or none that counts, is no special case."""
    empty, ignored = crossent.Score(), crossent.Score().update(np.zeros((2, 3)), np.full(2, -100))
    none = crossent.Score().update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    for score in (empty, ignored, none):
        found = score.result()
        assert found["nll"] is found["accuracy"] is found["brier"] is found["calibration_error"] is None
        assert found["scored"] == 0 and found["worst"] == found["by_class"] == [] and found["ignored"] in (0, 2)
        json.dumps(found)
    logits, labels = example(20, 3)
    one = scored(logits, labels, np.arange(20))
    expected = one.result()
    assert empty.merge(one, none).result() == expected
    assert ignored.merge(crossent.Score(), copy.deepcopy(one)).result() == expected | {"ignored": 2}


def test_it_holds_sums_and_no_rows():
    logits, labels = example(100, classes=10)
    score, sizes = crossent.Score(), []
    for _ in range(40):
        for _ in range(25):
            score.update(logits, labels)
        score.result()
        sizes.append(len(pickle.dumps(score)))
    assert sizes[-1] < 1.1 * sizes[20] and sizes[-1] < 100_000
    assert repr(score) == "<crossent.Score of 100,000 rows of 10 classes>"
    waiting = crossent.Score().update(np.tile(logits, (300, 1)), np.tile(labels, 300))
    assert waiting._held.counts._rows_waiting == 30_000
    assert len(pickle.dumps(waiting)) < 100_000


def test_looking_at_a_score_changes_nothing():
    """Several threads may show, send and merge one and the same Score, as Dask's do."""
    score = scored(*predictions(3000, 20), np.arange(3000))
    before, expected = score._held.counts._rows_waiting, score.result()
    with ThreadPoolExecutor(8) as pool:
        merged = [pool.submit(lambda: crossent.Score().merge(score).result()) for _ in range(16)]
        sent = [pool.submit(lambda: pickle.loads(pickle.dumps(score)).result()) for _ in range(16)]
        assert all(one.result() == expected for one in (*merged, *sent))
    assert score._held.counts._rows_waiting == before > 2000 and score.result() == expected


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (IndexError, "Target 9 at position 1 is out of bounds", (np.zeros((2, 3)), np.array([0, 9]))),
        (IndexError, r"Target 3 at position \(0, 1\) is out", (np.zeros((1, 3, 2)), np.array([[0, 3]]))),
        (IndexError, "Target 18446744073709551516 at", (np.zeros((1, 3)), np.array([2**64 - 100], np.uint64))),
        (ValueError, "row 2: the logits hold nan or inf", (np.array([[0.0, 0, 0], [0, np.nan, 0]]), np.array([0, 1]))),
        (ValueError, r"row \(1, 0\): the logits hold", (np.full((1, 3, 2), -np.inf), np.array([[0, 0]]))),
        (ValueError, "input has 4 classes, and that of the rows before 3", (np.zeros((2, 4)), np.array([0, 1]))),
        (ValueError, "target has the wrong shape .* got \\(3,\\)", (np.zeros((2, 3)), np.array([0, 1, 1]))),
        (TypeError, "labels, which must be integers, got float64", (np.zeros((2, 3)), np.array([0.0, 1]))),
        (TypeError, "input must be float16, .* got int64", (np.zeros((2, 3), int), np.array([0, 1]))),
        (TypeError, "input must be a PyTorch tensor or a NumPy array", ([[0.0, 1, 2]], np.array([0]))),
        (TypeError, "target must be a NumPy array like input, got list", (np.zeros((1, 3)), [0])),
        (TypeError, "target must not be a masked array", (np.zeros((1, 3)), np.ma.array([0], mask=[True]))),
        (TypeError, "takes whole rows, got a DTensor: pass to_local", (type("D", (), {"placements": ()})(), 0)),
    ],
)  # fmt: skip
def test_bad_rows_count_nothing(error, message, call):
    score = crossent.Score().update(np.eye(3)[:1], np.array([0]))
    before = score.result()
    with pytest.raises(error, match=message):
        score.update(*call)
    assert score.result() == before
    assert score.update(np.eye(3)[:1], np.array([1])).result()["worst"][0]["row"] == 1


@pytest.mark.parametrize("rows", [[0.5], [0, 1], [[0]], ["a"], [True]])
def test_bad_numbers_of_rows(rows):
    with pytest.raises(ValueError, match="rows must be 1 integers, got"):
        crossent.Score().update(np.zeros((1, 3)), np.array([0]), rows=rows)


def test_what_does_not_fit_is_merged_by_nobody():
    logits, labels = example(20, 3)
    at, others = np.arange(20), np.arange(10)
    score, good = scored(logits, labels, at), scored(logits, labels, others)
    before = score.result()
    bad = {
        "others[1]: ignore_index is 7, but -100 in what came before: score all alike": {"ignore_index": 7},
        "others[1]: top is 3, but 10 in what came before: score all alike": {"top": 3},
        "others[1]: names is ('a', 'b', 'c'), but None in what came before: score all alike": {"names": list("abc")},
        "others[1]: scale is 'log-probabilities', but 'logits' in what came before: score all alike": {
            "scale": "log-probabilities"
        },
    }
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for message, options in bad.items():
        with pytest.raises(ValueError) as error:
            score.merge(good, scored(log, labels, at, **options))
        assert str(error.value) == message
    wide = crossent.Score().update(np.zeros((1, 4)), np.array([0]))
    named = [crossent.Score(names=list(names)).update(np.eye(3), np.arange(3)) for names in ("abc", "axc")]
    for call, message in {
        (good, wide): "others[1]: the number of classes is 4, but 3 in what came before: score all alike",
        (good, score): "others[1]: its rows are counted already: merge each part once",
        (good, copy.deepcopy(score)): "others[1]: its rows are counted already: merge each part once",
        (good, pickle.loads(pickle.dumps(good))): "others[1]: its rows are counted already: merge each part once",
    }.items():
        with pytest.raises(ValueError) as error:
            score.merge(*call)
        assert str(error.value) == message
    with pytest.raises(ValueError, match=r"others\[0\]: the name of class 1 is 'x', but 'b' in what came before"):
        named[0].merge(named[1])
    with pytest.raises(ValueError, match=r"others\[0\]: the name of class 3 is 'd', but None in what came before"):
        crossent.Score(names=list("abc")).merge(crossent.Score(names=list("abcd")))
    with pytest.raises(TypeError, match=r"others\[0\] must be a Score, got dict"):
        score.merge(before)
    assert score.result() == before and score.merge(good) is score


def test_a_score_that_went_on_after_it_was_sent_is_counted_once():
    logits, labels = example(30, 3)
    score = scored(logits, labels, np.arange(10))
    sent = pickle.loads(pickle.dumps(score))
    score.update(logits[10:], labels[10:])
    with pytest.raises(ValueError, match="counted already"):
        crossent.Score().merge(sent, score)


def test_more_pairs_than_are_kept_stay_within_the_bound(monkeypatch):
    monkeypatch.setattr(confusion, "_PAIRS_KEPT", 50)
    codes = np.minimum(np.random.default_rng(0).geometric(0.02, 20_000), 399)
    parts = []
    for some in np.array_split(codes, 9):
        parts.append(Pairs(20))
        parts[-1].add(some)
        parts[-1].settle()
    for other in parts[1:]:
        parts[0].merge(other)
    found, exact = parts[0], np.bincount(codes, minlength=400)
    kept = found.label * 20 + found.prediction
    assert len(found.rows) <= 50 and 0 < found.short <= len(codes) / 25
    assert (found.rows <= exact[kept]).all() and (exact[kept] - found.rows <= found.short).all()
    assert exact[np.setdiff1d(np.arange(400), kept)].max() <= found.short


def test_it_needs_numpy_alone():
    hidden = ["jinja2", "matplotlib", "pyarrow", "rich", "safetensors", "torch", "typer"]
    source = """
        import numpy as np, crossent
        score = crossent.Score().update(np.eye(3), np.arange(3))
        score.save("part.npz")
        print(crossent.Score().merge(crossent.Score.load("part.npz")).result()["accuracy"])
    """
    done = run_without(hidden, f"import os, tempfile; os.chdir(tempfile.mkdtemp())\n{textwrap.dedent(source)}")
    assert done.stdout == "1.0\n", done.stderr


# Files


def parts_of(folder, logits, labels, cuts, options=""):
    """The partial results of these shards, scored by the command."""
    paths = []
    for i, (x, y) in enumerate(zip(np.split(logits, cuts), np.split(labels, cuts))):
        files = write(folder / f"x-{i}.npy", "npy", x), write(folder / f"y-{i}.npy", "npy", y)
        paths.append(f"{folder}/part-{i}")
        status, said = typed(f"crossent score {' '.join(files)} --partial {paths[-1]} {options}")
        assert status == 0, said
    return paths


def as_json(command):
    status, said = typed(f"crossent score {command} --json")
    assert status == 0, said
    found = json.loads(said[said.index("{") :])
    return {name: found[name] for name in found if name not in ("logits", "labels", "parts")}


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_merged_parts_are_one_run(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("parts")
    rows = data.draw(st.integers(1, 60), "rows")
    logits, labels = predictions(rows, seed=rows)
    labels[0] = 0
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=11), "cuts"))  # past shard 9 comes shard 10
    parts = parts_of(folder, logits, labels, cuts, "--top 4")
    whole = as_json(f"'{folder}/x-*.npy' '{folder}/y-*.npy' --top 4")
    parts = data.draw(st.permutations(parts), "order")
    if len(parts) > 2:
        assert typed(f"crossent score --merge {parts[0]} {parts[1]} --partial {folder}/both")[0] == 0
        parts[:2] = [f"{folder}/both"]
    merged = as_json(f"--merge {' '.join(parts)}")
    assert merged == whole
    loaded = crossent.Score.load(parts[0]).merge(*map(crossent.Score.load, parts[1:])).result()
    loaded = json.loads(plain_json.text(loaded))
    assert loaded == {name: whole[name] for name in loaded}
    few = as_json(f"--merge {' '.join(parts)} --top 2")
    assert few["worst"] == whole["worst"][:2] and few["nll"] == whole["nll"]


def test_a_part_is_what_its_shards_are(tmp_path):
    """Other axes and text with names: what was taken for what is said, and of classes the names."""
    logits, labels = example(40, 4)
    for i, lo in enumerate((0, 16)):
        at = slice(lo, lo + 24 if i else 16)
        write(tmp_path / f"x-{i}.csv", "csv", logits[at])
        write(tmp_path / f"y-{i}.npy", "npy", labels[at])
        np.save(tmp_path / f"z-{i}.npy", logits[at].reshape(-1, 4, 4).transpose(0, 2, 1))
        np.save(tmp_path / f"t-{i}.npy", labels[at].reshape(-1, 4))
        for logits_of, labels_of in ("xy", "zt"):
            suffix = "csv" if logits_of == "x" else "npy"
            files = f"{tmp_path}/{logits_of}-{i}.{suffix} {tmp_path}/{labels_of}-{i}.npy"
            assert typed(f"crossent score {files} --partial {tmp_path}/{logits_of}{i}")[0] == 0
    for logits_of, labels_of, suffix in (("x", "y", "csv"), ("z", "t", "npy")):
        status, said = typed(
            f"crossent score '{tmp_path}/{logits_of}-*.{suffix}' '{tmp_path}/{labels_of}-*.npy' --json"
        )
        whole = json.loads(said[said.index("{") :])
        merged = json.loads(typed(f"crossent score --merge '{tmp_path}/{logits_of}?' --json")[1])
        assert len(merged.pop("parts")) == 2 and merged.pop("notes").__len__() == 2 * len(whole.pop("notes"))
        del whole["logits"], whole["labels"]
        assert merged == whole and whole["rows"] == 40
    status, said = typed(f"crossent score --merge {tmp_path}/x0 {tmp_path}/z0")
    assert status == 2 and "z0: names is None, but ('c0', 'c1', 'c2') in what came before: score all alike" in said


def test_parts_without_rows_fit_all(tmp_path):
    """Also those of probabilities, which no row has told."""
    logits, labels = example(30, 3)
    p = np.exp(logits.astype(float))
    p /= p.sum(1, keepdims=True)
    labels[:10] = -100
    parts = parts_of(tmp_path, p, labels, [0, 10, 20])
    whole = as_json(f"'{tmp_path}/x-*.npy' '{tmp_path}/y-*.npy'")
    for order in (parts, parts[::-1]):
        merged = as_json(f"--merge {' '.join(order)}")
        assert {**merged, "notes": 0} == {**whole, "notes": 0} and whole["scored"] == 20
    status, said = typed(f"crossent score --merge {parts[0]} {parts[1]}")
    assert status == 2 and said.endswith("part-0: nothing to score, every label is ignored\n")
    status, said = typed(
        f"crossent score --merge {parts[0]} {parts[1]} --partial {tmp_path}/both --html {tmp_path}/page"
    )
    assert (status, said) == (0, "0 rows of 3 classes, 10 ignored, in 2 parts\n") and not (tmp_path / "page").exists()
    assert as_json(f"--merge {tmp_path}/both {parts[2]} {parts[3]}")["nll"] == whole["nll"]


def test_what_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logits, labels = example(30, 3)
    parts_of(Path(), logits, labels, [10])
    (tmp_path / "there").mkdir()
    np.save("there/x-0.npy", logits[:10])
    np.save("there/y-0.npy", labels[:10])
    np.save("wide.npy", np.zeros((30, 4)))
    np.save("labels.npy", labels)
    for command, said in {
        "--merge part-0 part-1 part-0": "part-0: its rows are counted already: merge each part once",
        "there/x-0.npy there/y-0.npy --partial again": "",  # from elsewhere, with the same names and numbers
        "--merge part-0 again": "again: its rows are counted already: merge each part once",
        "--merge part-0 part-1 --partial both": "",
        "--merge part-1 both": "both: its rows are counted already: merge each part once",
        "wide.npy labels.npy --partial wide": "",
        "--merge part-0 wide": "wide: the number of classes is 4, but 3 in what came before: score all alike",
        "x-0.npy y-0.npy --ignore-index 2 --partial ignoring": "",
        "--merge part-1 ignoring": "ignoring: ignore_index is 2, but -100 in what came before: score all alike",
        "x-0.npy y-0.npy --partial part.npz": "",
        "part.npz": "part.npz: is a partial result: --merge takes it",
        "--merge part-0 nothing": "nothing: there is no such file",
        "--merge 'nothing-*'": "nothing-*: no file matches",
        "--merge there": "there: is a folder",
        "--merge part-0 x-0.npy": "x-0.npy: is no partial result of crossent score, or is damaged",
        "--merge part-0 --top 11": "--top asks for 11 rows, and each part keeps 10: score the parts with --top 11",
        "x-0.npy y-0.npy --partial x-0.npy": "--partial must be another file than those that are read, got x-0.npy",
        "x-0.npy y-0.npy --html y-0.npy": "--html must be another file than those that are read, got y-0.npy",
        "x-0.npy y-0.npy --partial there": "--partial must be a file to write, got there: it is a folder",
    }.items():
        status, printed = typed(f"crossent score {command}")
        assert status == (2 if said else 0), printed
        assert not said or printed == f"crossent score: {said}\n"
    for option in ("--dim 1", "--ignore-index 0", "--key a", "--probabilities", "--no-header"):
        status, printed = typed(f"crossent score --merge part-0 {option}")
        assert status == 2 and printed.startswith("crossent: --merge takes parts as they were scored: say how to")


def test_parts_of_other_versions(tmp_path, monkeypatch):
    path = tmp_path / "part.npz"
    monkeypatch.setattr(partial, "VERSION", 4)
    score = crossent.Score().update(np.eye(3), np.arange(3))
    score.save(path)
    sent = pickle.dumps(score)
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match="pickled by a crossent that writes version 4 .* and this one reads 3: use the"
    ):
        pickle.loads(sent)
    with pytest.raises(ValueError) as error:
        crossent.Score.load(path)
    assert str(error.value) == (
        f"{path}: is of version 4 of the format, and this crossent reads 3: merge it with the crossent that wrote it, "
        f"{crossent.__version__}"
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_seen(tmp_path, data):
    """Bytes that are changed or missing: the same numbers, or one sentence."""
    score = crossent.Score()
    score._own = "one"  # not another name each time, of which bytes would depend
    score.update(*predictions(30, 4))
    path = tmp_path / "part"
    score.save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4), "changes")):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = crossent.Score.load(path).result()
    except ValueError as error:
        assert str(error).startswith(f"{path}: is ") and "\n" not in str(error)
    else:
        assert found == score.result()


def rewritten(path, change):
    """With a digest that fits what is changed."""
    with np.load(path) as file:
        entries = dict(file)
    head = json.loads(entries.pop("head").tobytes())
    change(head, entries)
    head.pop("digest")
    head["digest"] = partial._digest(head, entries)
    entries["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **entries)


@pytest.mark.parametrize(
    "change",
    [
        lambda head, entries: entries.update({"rows by class": entries["rows by class"] - 1}),
        lambda head, entries: entries.update({"right by class": entries["right by class"][:-1]}),
        lambda head, entries: entries.update({"rows by prediction": entries["rows by prediction"] * 2}),
        lambda head, entries: entries.update({"right by bin": entries["right by bin"] * 2}),
        lambda head, entries: entries.update({"confused": entries["confused"] + 100}),
        lambda head, entries: entries.pop("brier by cell"),
        lambda head, entries: head.update(classes=10**12),
        lambda head, entries: head.update(classes="3"),
        lambda head, entries: head.pop("options"),
        lambda head, entries: head["worst"].append({}),
        lambda head, entries: head["worst"][0].update(index=["0"]),
        lambda head, entries: head["worst"][0].update(label=0.5),
        lambda head, entries: head["options"].update(top="10"),
        lambda head, entries: head["options"].update(scale="percent"),
        lambda head, entries: head["options"].update(names=["a", "b"]),
        lambda head, entries: head.update(ignored=-1),
        lambda head, entries: head.update(units=0.5),
        lambda head, entries: head.update(groups=["a"]),
        lambda head, entries: head.update(groups=[1]),
        lambda head, entries: head["options"].update(top_k=[0]),
        lambda head, entries: head.update(short=0.5),
        lambda head, entries: head["tally"].update(counted="30"),
        lambda head, entries: head["tally"].update(dtype="int8"),
        lambda head, entries: head["parts"]["one"].update(files="2"),
    ],
)
def test_contradictions_are_refused(tmp_path, change):
    path, score = tmp_path / "part", crossent.Score()
    score._own = "one"
    score.update(*predictions(30, 4)).save(path)
    rewritten(path, lambda head, entries: None)
    crossent.Score.load(path)
    rewritten(path, change)
    with pytest.raises(ValueError, match="part: is damaged: score its rows again"):
        crossent.Score.load(path)


def test_no_pickle_is_loaded(tmp_path):
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "trap",)

    crossent.Score().update(np.eye(3), np.arange(3)).save(tmp_path / "part")
    with np.load(tmp_path / "part") as file:
        entries = dict(file)
    for name in ("head", "brier by cell"):
        array = np.empty(1, object)
        array[0] = Touch()
        with (tmp_path / "part").open("wb") as file:
            np.savez(file, **(entries | {name: array}))
        with pytest.raises(ValueError, match="damaged"):
            crossent.Score.load(tmp_path / "part")
    assert not (tmp_path / "trap").exists()


def test_a_part_is_written_as_a_whole(tmp_path, monkeypatch):
    logits, labels = example(20, 3)
    path = tmp_path / "part"
    scored(logits, labels, np.arange(10)).save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match="part: No space left on device"):
        scored(logits, labels, np.arange(20)).save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["part"]
    monkeypatch.undo()
    scored(logits, labels, np.arange(20)).save(path)
    assert crossent.Score.load(path).result()["scored"] == 20
    with pytest.raises(ValueError, match="nowhere"):
        scored(logits, labels, np.arange(20)).save(tmp_path / "nowhere" / "part")


def test_the_same_rows_make_the_same_file(tmp_path):
    logits, labels = example(30, 3)
    one, other = (parts_of(tmp_path, logits, labels, [10]) for _ in range(2))
    first = [Path(path).read_bytes() for path in one]
    assert first == [Path(path).read_bytes() for path in parts_of(tmp_path, logits, labels, [10])] and one == other


def test_a_page_of_parts(tmp_path):
    logits, labels = example(60, 5)
    parts = parts_of(tmp_path, logits, labels, [20, 40])
    status, said = typed(f"crossent score --merge {' '.join(parts)} --html {tmp_path}/page.html")
    text = (tmp_path / "page.html").read_text()
    assert status == 0 and "60 rows of 5 classes, in 3 parts" in text and "x-0.npy and 2 more parts" in text
    assert text.count("<svg") == 4 and f"{tmp_path}/x-1.npy" in text
