"""What CI and other tools ask of a score: a file of all rows, bad rows left out, and conditions it must not meet."""

import csv
import gzip
import json
import os
import re
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from score_files import FORMATS, example, suffix, write
from sklearn import metrics as sk
from test_score import command, probabilities, saved
from test_score_reading import text

import crossent
from crossent.tools.arrays import told_apart
from crossent.tools.score import held, readers, score
from crossent.tools.score.command import run
from crossent.tools.score.readers import BadFile, Reading

COLUMNS = ["file", "row", "label", "prediction", "rank", "loss", "confidence", "brier"]


def read(path):
    """The columns of a file of rows, as numbers and words."""
    if path.suffix == ".parquet":
        return {name: np.array(column) for name, column in pyarrow.parquet.read_table(path).to_pydict().items()}
    if path.suffix == ".npz":
        return dict(np.load(path))
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    columns = dict(zip(names, map(np.array, zip(*rows))))
    return {name: column if name in ("file", "group") else column.astype(float) for name, column in columns.items()}


def expected(logits, labels):
    """In float64."""
    p, at = probabilities(logits), np.arange(len(labels))
    chosen = p[at, labels]
    before = (p > chosen[:, None]) | ((p == chosen[:, None]) & (np.arange(p.shape[1]) < labels[:, None]))
    brier = ((p - np.eye(p.shape[1])[labels]) ** 2).sum(1)
    return {"label": labels, "prediction": p.argmax(1), "rank": before.sum(1), "loss": -np.log(chosen),
            "confidence": p.max(1), "brier": brier}  # fmt: skip


@pytest.mark.parametrize("ending", ["parquet", "csv", "npz"])
def test_a_file_of_all_rows(tmp_path, ending, monkeypatch, capsys):
    monkeypatch.setattr(readers, "_AT_ONCE", 160)  # ten rows of no more than 16 numbers
    logits, labels = example()
    labels[7] = -100
    shards = [write(tmp_path / f"x-{i}.npy", "npy", part) for i, part in enumerate(np.split(logits, [45]))]
    _, targets = saved(tmp_path, logits, labels)
    groups = np.array(["a", "bcd"])[labels % 2]
    np.savez(tmp_path / "g.npz", group=groups)
    out = tmp_path / f"rows.{ending}"
    assert command(f"{tmp_path}/x-*.npy", targets, rows=out, beside={"group": f"{tmp_path}/g.npz"}) == 0
    found, kept = read(out), labels != -100
    assert list(found) == [*COLUMNS, "group"]
    for name, column in expected(logits[kept], labels[kept]).items():
        np.testing.assert_allclose(found[name].astype(float), column, rtol=2e-6, atol=1e-7, err_msg=name)
    np.testing.assert_array_equal(found["file"], np.repeat(shards, [45, 155])[kept])
    np.testing.assert_array_equal(found["row"].astype(int), np.r_[:45, :155][kept])
    np.testing.assert_array_equal(found["group"], groups[kept])
    # The metrics are those of the rows.
    assert np.mean(found["loss"].astype(float)) == pytest.approx(score(f"{tmp_path}/x-*.npy", targets).metrics.nll)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["g.npz", "labels.npy", "logits.npy", out.name, "x-0.npy", "x-1.npy"]
    )


def test_rows_of_more_axes(tmp_path):
    generator = np.random.default_rng(1)
    logits, labels = generator.normal(size=(5, 4, 3)), generator.integers(4, size=(5, 3))
    files = saved(tmp_path, logits, labels)
    assert command(*files, rows=tmp_path / "rows.csv") == 0
    found = read(tmp_path / "rows.csv")
    row, index = np.indices((5, 3)).reshape(2, -1)
    np.testing.assert_array_equal(found["row"], row)
    np.testing.assert_array_equal(found["index_1"], index)
    flat = np.moveaxis(logits, 1, 2).reshape(-1, 4)
    np.testing.assert_allclose(found["loss"], expected(flat, labels.reshape(-1))["loss"])
    told, tensors = [], map(torch.from_numpy, (logits, labels))
    made = crossent.Score().update(*tensors, rows=range(10, 15), each=told.append)
    assert list(told[0]) == ["row", "index_1", *COLUMNS[2:]]
    np.testing.assert_array_equal(told[0]["row"], row + 10)
    assert told[0]["loss"].mean() == pytest.approx(made.result()["nll"])


@pytest.mark.parametrize("ending", ["parquet", "csv", "npz"])
def test_a_file_of_rows_is_whole_or_not_there(tmp_path, ending, monkeypatch, capsys):
    logits, labels = example()
    logits[150] = np.nan
    files, out = saved(tmp_path, logits, labels), tmp_path / f"rows.{ending}"
    monkeypatch.setattr(readers, "_AT_ONCE", 160)
    before = {path.name for path in tmp_path.iterdir()}
    assert command(*files, rows=out) == 2
    assert capsys.readouterr().err.startswith(f"crossent score: {files[0]}: row 150: the logits hold nan or inf")
    original, calls = held.prediction_stats, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(held, "prediction_stats", interrupted)
    assert command(*files, rows=out) == 130
    assert f"of which this is the score; {out} is not written." in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_what_cannot_be_a_file_of_rows(tmp_path, monkeypatch, capsys):
    files = saved(tmp_path, *example())
    for path, message in {
        tmp_path / "rows.json": "--rows must end in one of .parquet, .csv, .npz, got",
        tmp_path / "nowhere" / "rows.csv": "--rows must be a file to write, got",
    }.items():
        assert command(*files, rows=path) == 2
        assert message in capsys.readouterr().err
    both = tmp_path / "both.npz"
    np.savez(both, logits=np.load(files[0]), labels=np.load(files[1]))
    groups = tmp_path / "g.npz"
    np.savez(groups, group=np.load(files[1]))
    for inputs, path in (([both, both], both), (files, groups)):
        content = path.read_bytes()
        assert command(*map(str, inputs), rows=path, beside={"group": f"{groups}:group"}) == 2
        assert "--rows must be another file than those that are read" in capsys.readouterr().err
        assert path.read_bytes() == content
    monkeypatch.setattr("crossent.tools.score.rows.find_spec", lambda name: None)
    assert command(*files, rows=tmp_path / "rows.parquet") == 2
    assert "writing .parquet needs pyarrow: pip install crossent[score]" in capsys.readouterr().err


# Rows that are left out


def bad(logits, labels):
    """With rows that cannot count, and which can."""
    logits, labels = logits.copy(), labels.copy()
    logits[3, 1], logits[4, 2], logits[5], labels[6], labels[7] = np.nan, np.inf, -np.inf, 99, -7
    logits[8], labels[8] = np.nan, 99  # twice bad, counted once
    logits[9], labels[9] = np.nan, -100  # ignored
    return logits, labels, np.isin(np.arange(len(labels)), range(3, 10), invert=True)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if "packed" not in kind])
def test_bad_rows_are_left_out_and_counted(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(readers, "_AT_ONCE", 160)
    logits, labels, good = bad(*example())
    files = [write(tmp_path / f"{name}{suffix(kind)}", kind, array) for name, array in (("x", logits), ("y", labels))]
    with pytest.raises(BadFile):
        score(*files)
    found = score(*files, reading=Reading(skip_bad=True))
    clean = score(*(write(tmp_path / f"clean-{name}{suffix(kind)}", kind, array[good])
                    for name, array in (("x", logits), ("y", labels))))  # fmt: skip
    result, wanted = found.total.result(), clean.total.result()
    assert result["skipped"] == {"labels": 3, "logits": 3, "scale": 0}
    assert result["ignored"] == 1 and result["scored"] == good.sum() == wanted["scored"]
    assert {name: result[name] for name in ("nll", "brier", "calibration", "by_class")} == {
        name: wanted[name] for name in ("nll", "brier", "calibration", "by_class")
    }


def test_skipped_rows_of_a_score(tmp_path):
    logits, labels, good = bad(*example())
    for library in (np.asarray, torch.from_numpy):
        whole = crossent.Score(skip_bad=True).update(library(logits), library(labels))
        parts = [crossent.Score(skip_bad=True).update(library(logits[at]), library(labels[at]), rows=range(200)[at])
                 for at in (slice(5), slice(5, 200))]  # fmt: skip
        parts[1].save(tmp_path / "part")
        merged = crossent.Score(skip_bad=True).merge(parts[0], crossent.Score.load(tmp_path / "part"))
        assert merged.result() == whole.result()
        assert merged.result()["skipped"] == {"labels": 3, "logits": 3, "scale": 0}
    p = probabilities(example()[0])
    p[2] *= 2
    score_of = crossent.Score(skip_bad=True, scale="probabilities").update(p, example()[1])
    assert score_of.result()["skipped"] == {"labels": 0, "logits": 0, "scale": 1}
    with pytest.raises(ValueError, match="row 2: the numbers are no probabilities: they have the sum 2"):
        crossent.Score(scale="probabilities").update(p, example()[1])
    with pytest.raises(TypeError, match="target"):
        crossent.Score(skip_bad=True).update(logits, labels + 0.5)


def test_cells_that_are_no_numbers(tmp_path, capsys):
    """Words, nothing, and lines of another length, in logits and labels alike."""
    logits, labels = example(40)
    lines = text(logits, labels).decode().splitlines()
    lines[3] = "x" + lines[3]
    lines[4] = "," + lines[4].partition(",")[2]
    lines[5], lines[6] = lines[5] + ",1", ""
    lines[7] = lines[7].rpartition(",")[0] + ",NA"
    lines[8] = lines[8].rpartition(",")[0] + ",1.5"
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    good = np.isin(np.arange(40), range(3, 9), invert=True)
    assert run([str(path)], reading=Reading(skip_bad=True, labels_key="7", columns="0-6"), as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["skipped"] == {"labels": 4, "logits": 2, "scale": 0} and said["scored"] == 34
    assert said["nll"] == pytest.approx(expected(logits[good], labels[good])["loss"].mean(), rel=1e-6)
    assert run([str(path)], reading=Reading(skip_bad=True, labels_key="7", columns="0-6")) == 0
    assert capsys.readouterr().out.startswith("34 rows of 7 classes, 6 skipped (4: label is no class, 2: nan, inf or ")


def test_missing_values_in_parquet(tmp_path):
    logits, labels = example(40)
    columns = {f"c{i}": pa.array(column, from_pandas=True) for i, column in enumerate(np.where(
        np.arange(40)[:, None] == 3, np.nan, logits).T)}  # fmt: skip
    names = [None if i == 5 else f"c{label}" for i, label in enumerate(labels)]
    pyarrow.parquet.write_table(pa.table(columns | {"label": names}), tmp_path / "x.parquet")
    with pytest.raises(BadFile, match="row 5: the label '' is none of the classes"):
        score(f"{tmp_path}/x.parquet")
    found = score(f"{tmp_path}/x.parquet", reading=Reading(skip_bad=True)).total.result()
    assert found["skipped"] == {"labels": 1, "logits": 1, "scale": 0}
    good = ~np.isin(np.arange(40), [3, 5])
    assert found["nll"] == pytest.approx(expected(logits[good], labels[good])["loss"].mean(), rel=1e-6)


def test_nothing_but_bad_rows(tmp_path):
    logits, labels = example(40)
    files = saved(tmp_path, logits * np.nan, labels)
    with pytest.raises(BadFile, match="nothing to score, every row is ignored or skipped .40: nan, inf or no number"):
        score(*files, reading=Reading(skip_bad=True))


# The class


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_results_are_those_of_scikit_learn_and_torchmetrics(library):
    """To nine digits, in float64, in three batches of which each has rows that do not count."""
    torchmetrics = pytest.importorskip("torchmetrics.classification")
    logits, labels, good = bad(*(array.astype(kind) for array, kind in zip(example(500, 12), (np.float64, np.int64))))
    total = crossent.Score(skip_bad=True)
    for at in np.array_split(np.arange(500), 3):
        total.update(library(logits[at]), library(labels[at]), rows=at)
    found, p, y, every = total.result(), probabilities(logits[good]), labels[good], np.arange(12)
    predicted = p.argmax(1)
    metric = torchmetrics.MulticlassCalibrationError(12, n_bins=15, norm="l1")
    assert found["calibration_error"] == pytest.approx(metric(*map(torch.from_numpy, (p, y))).item(), rel=1e-6)
    metric.confidences = [torch.from_numpy(p.max(1))]  # which update rounds to float32
    metric.accuracies = [one.double() for one in metric.accuracies]
    expected = {
        "nll": sk.log_loss(y, p, labels=every), "accuracy": sk.accuracy_score(y, predicted),
        "top5": sk.top_k_accuracy_score(y, p, k=5, labels=every), "calibration_error": metric.compute().item(),
        "brier": sk.brier_score_loss(y, p, labels=every, scale_by_half=False),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name
    assert found["perplexity"] == pytest.approx(np.exp(expected["nll"]), rel=1e-9)
    for name, score_of in (("recall", sk.recall_score), ("precision", sk.precision_score)):
        ours = [row[name] for row in found["by_class"]]
        assert ours == pytest.approx(score_of(y, predicted, labels=every, average=None), rel=1e-9), name


# Conditions


@pytest.mark.parametrize("conditions, status", [
    (["nll>0.01"], 3), (["nll>9"], 0), (["nll>9", "accuracy<=1"], 3), (["by_class.2.recall < 0.1"], 0),
    (["calibration_error >= 0", "brier<2"], 3), (["worst.0.logprob<-1e-3"], 3), (["by_class.6.nll>.1"], 3),
])  # fmt: skip
def test_conditions_that_fail(tmp_path, conditions, status, capsys):
    files = saved(tmp_path, *example())
    assert command(*files, as_json=True, fail_if=conditions, rows=tmp_path / "rows.csv") == status
    out, err = capsys.readouterr()
    assert json.loads(out)["complete"] and (tmp_path / "rows.csv").exists()
    assert (f", so {conditions[-1]} fails\n" in err) == (status == 3) and "Traceback" not in err


@pytest.mark.parametrize("condition, message", [
    ("nll", "--fail-if must be a metric, <, <=, > or >=, and a number, got 'nll'"),
    ("nll>much", "--fail-if must be a metric"),
    ("nnl>1", "--fail-if: there is no number nnl, got 'nnl' where there is .*nll, "),
    ("by_class.99.nll>1", "there is no number by_class.99.nll, got '99' where there is 0, 1, 2"),
    ("worst>1", "--fail-if: worst is no number"),
])  # fmt: skip
def test_conditions_that_are_none(tmp_path, condition, message, capsys):
    assert command(*saved(tmp_path, *example()), fail_if=[condition]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_condition_about_nothing_fails(tmp_path, capsys):
    """A class without rows has no recall."""
    logits, labels = example()
    labels[:] = 1 - labels % 2
    assert command(*saved(tmp_path, logits, labels), fail_if=["by_class.6.recall<0.5"]) == 3
    assert "by_class.6.recall is not known, so by_class.6.recall<0.5 fails" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 50, 5000])
def test_values_are_told_apart(count):
    words = np.array([f"{'é' * (i % 3)}{i}" for i in range(count)])[np.random.default_rng(0).integers(count, size=3000)]
    different, number = told_apart(words)
    np.testing.assert_array_equal(different[number], words)
    assert len(set(different.tolist())) == len(different) == len(set(words.tolist()))


@pytest.mark.parametrize(
    "words", [np.array([3, 1, 3]), np.array([], "U3"), np.array(["", ""]), np.broadcast_to(np.array("one"), 4)]
)
def test_few_values_are_told_apart(words):
    different, number = told_apart(words)
    np.testing.assert_array_equal(different[number], words)
    assert len(different) == len(set(words.tolist()))
