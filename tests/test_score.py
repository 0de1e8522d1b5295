"""`crossent score`: metrics against scikit-learn, the same from every file and block size, and every bad file."""

import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import score_files
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from rich.console import Console
from score_files import FORMATS, example, write
from sklearn import metrics as sk

from crossent.tools.commands import _application
from crossent.tools.score import confusion, held, metrics, readers, score
from crossent.tools.score.command import run
from crossent.tools.score.readers import BadFile, Reading
from crossent.tools.score.show import Shown

REPOSITORY = Path(__file__).parent.parent


def saved(folder, logits, labels):
    return write(folder / "logits.npy", "npy", logits), write(folder / "labels.npy", "npy", labels)


def probabilities(logits):
    p = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def command(logits, labels, as_json=False, html=None, top=5, **options):
    return run([logits, labels], as_json=as_json, html=html, top=top, **options)


def same(one, other):
    """Whether two scores have the same bits, wherever their rows came from, by which they are drawn for intervals."""
    rows, others = ([replace(row, file=None, index=()) for row in found.worst] for found in (one, other))
    metrics, others_metrics = (vars(found.metrics) | {"sample": None} for found in (one, other))
    return pickle.dumps(metrics) == pickle.dumps(others_metrics) and rows == others


def calibration_error(p, labels, bins=15):
    """As in the paper's formula, bin by bin."""
    confidence, right, error = p.max(1), p.argmax(1) == labels, 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (300, 2), (500, 12), (3000, 40)])
def test_metrics_are_those_of_scikit_learn(tmp_path, dtype, rows, classes):
    logits, labels = example(rows, classes)
    logits = logits.astype(dtype)
    scored = score(*saved(tmp_path, logits, labels))
    found, p, every = scored.metrics, probabilities(logits), np.arange(classes)
    one_hot = np.eye(classes)[labels]
    assert found.rows == rows and found.classes == classes
    near = pytest.approx
    assert found.nll == near(sk.log_loss(labels, p, labels=every), rel=1e-5)
    assert found.numbers["perplexity"] == near(np.exp(found.nll))
    assert found.accuracy == near(sk.accuracy_score(labels, p.argmax(1)))
    if classes > 5:
        assert found.numbers["top5"] == near(sk.top_k_accuracy_score(labels, p, k=5, labels=every))
    expected = sk.brier_score_loss(labels, p, labels=every, scale_by_half=False)
    assert found.numbers["brier"] == near(expected, rel=1e-5) and expected == near(((p - one_hot) ** 2).sum(1).mean())
    assert found.calibration.error == near(calibration_error(p, labels), rel=1e-4)
    matrix = sk.confusion_matrix(labels, p.argmax(1), labels=every)
    ours = np.diag(found.by_class.correct)
    ours[found.confusion.label, found.confusion.prediction] = found.confusion.rows
    np.testing.assert_array_equal(ours, matrix)
    known, guessed = matrix.sum(1) > 0, matrix.sum(0) > 0
    recall = sk.recall_score(labels, p.argmax(1), labels=every, average=None, zero_division=0)
    precision = sk.precision_score(labels, p.argmax(1), labels=every, average=None, zero_division=0)
    np.testing.assert_allclose(found.by_class.recall[known], recall[known])
    np.testing.assert_allclose(found.by_class.precision[guessed], precision[guessed])
    assert np.isnan(found.by_class.recall[~known]).all() and np.isnan(found.by_class.precision[~guessed]).all()
    nll = -np.log(p[np.arange(rows), labels])
    for label in np.flatnonzero(known):
        assert found.by_class.nll[label] == near(nll[labels == label].mean(), rel=1e-5)
    np.testing.assert_array_equal([w.row for w in scored.worst], np.argsort(-nll, kind="stable")[:10])
    histogram, _ = np.histogram(nll, np.arange(0, 129) / 32)
    assert abs(found.losses[:128] - histogram).sum() <= 4 and found.losses.sum() == rows  # next to an edge


def test_worst_classes_and_what_they_are_taken_for(tmp_path):
    labels = np.repeat([0, 1, 2, 3], [10, 10, 10, 1])
    predicted = np.array([*[0] * 10, *[2] * 4, *[0] * 2, *[3] * 2, 1, 1, *[2] * 7, *[0] * 3, 3])
    found = score(*saved(tmp_path, 2 * np.eye(4, dtype=np.float32)[predicted], labels)).metrics
    assert found.by_class.worst(5).tolist() == [1, 2] and found.by_class.worst(1).tolist() == [1]
    assert found.confusion.of(np.array([2, 0, 1]), 3) == [[(0, 3)], [], [(2, 4), (0, 2), (3, 2)]]
    assert found.confusion.of(np.array([1]), 1) == [[(2, 4)]] and found.confusion.short == 0


def test_too_many_confusions_are_counted_within_a_bound(monkeypatch):
    """With room for 50 different ones, of a stream in which few are frequent."""
    monkeypatch.setattr(confusion, "_PAIRS_KEPT", 50)
    monkeypatch.setattr(confusion, "_PAIRS_AT_ONCE", 1000)
    codes = np.minimum(np.random.default_rng(0).geometric(0.02, 20_000), 399)
    pairs = confusion.Pairs(20)
    for part in np.array_split(codes, 77):
        pairs.add(part)
    pairs.settle()
    found, exact = pairs, np.bincount(codes, minlength=400)
    assert len(found.rows) <= 50 and 0 < found.short <= len(codes) / 50
    kept = found.label * 20 + found.prediction
    assert (found.rows <= exact[kept]).all() and (exact[kept] - found.rows <= found.short).all()
    assert exact[np.setdiff1d(np.arange(400), kept)].max() <= found.short


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_blocks_and_shards_change_no_bit(tmp_path_factory, data):
    rows = data.draw(st.integers(1, 400), "rows")
    logits, labels = example(rows, 6, seed=rows)
    labels[:: data.draw(st.integers(2, 9), "every so many ignored")] = -100
    if (labels == -100).all():
        labels[0] = 0
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_GROUP", data.draw(st.sampled_from([1, 7, 64, 2**16]), "group"))
        whole = score(*saved(folder, logits, labels))
        for name, array in (("x", logits), ("y", labels)):
            cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=12), f"cuts of {name}"))
            for i, part in enumerate(np.split(array, cuts)):
                write(folder / f"{name}-{i}.npy", "npy", part)
        patch.setattr(readers, "_AT_ONCE", data.draw(st.integers(1, 4000), "numbers in a block"))
        assert same(whole, score(f"{folder}/x-*.npy", f"{folder}/y-*.npy"))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("at_once", [2**23, 100])
def test_every_format_says_the_same(tmp_path, kind, at_once, monkeypatch):
    logits, labels = example()
    expected = score(*saved(tmp_path, logits.astype(np.float64 if kind == "csv" else np.float32), labels))
    monkeypatch.setattr(readers, "_AT_ONCE", at_once)
    files = [write(tmp_path / f"{name}{score_files.suffix(kind)}", kind, a) for name, a in zip("xy", (logits, labels))]
    assert same(score(*files), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path, dtype):
    import safetensors.torch

    logits, labels = example()
    rounded = torch.from_numpy(logits).to(dtype)
    expected = score(*saved(tmp_path, rounded.float().numpy(), labels))
    torch.save({"logits": rounded, "labels": torch.from_numpy(labels).to(torch.int16)}, tmp_path / "both.pt")
    safetensors.torch.save_file({"logits": rounded, "labels": torch.from_numpy(labels)}, tmp_path / "both.safetensors")
    for name in ("both.pt", "both.safetensors"):
        file = str(tmp_path / name)
        assert same(score(file, file, reading=Reading("logits", "labels")), expected)


def test_entries_and_columns_by_name(tmp_path):
    logits, labels = example()
    expected = score(*saved(tmp_path, logits, labels))
    both = str(tmp_path / "both.npz")
    np.savez(both, logits=logits, labels=labels)
    assert same(score(both, both, reading=Reading("logits", "labels")), expected)
    table = tmp_path / "table.csv"
    table.write_text("id,label\n" + "\n".join(f"{i},{label}" for i, label in enumerate(labels)))
    assert same(score(both, str(table), reading=Reading("logits", "label")), expected)
    assert same(score(both, both), expected) and same(score(both), expected)
    np.savez(tmp_path / "three.npz", a=logits, b=logits, labels=labels)
    with pytest.raises(BadFile, match="three.npz: holds 3 entries, name one of them as its key: a, b, labels"):
        score(str(tmp_path / "three.npz"))
    with pytest.raises(BadFile, match="both.npz: has no entry 'x', only labels, logits"):
        score(both, both, reading=Reading("x"))
    with pytest.raises(BadFile, match="logits.npy: a file of one array has no entries"):
        score(str(tmp_path / "logits.npy"), both, reading=Reading("x"))


@pytest.mark.parametrize("layout", ["Fortran", "swapped"])
def test_arrays_of_other_layouts(tmp_path, layout):
    logits, labels = example()
    expected = score(*saved(tmp_path, logits, labels))
    other = np.asfortranarray(logits) if layout == "Fortran" else logits.astype(">f4")
    assert same(score(*saved(tmp_path, other, labels.astype(">i2"))), expected)


def test_shards_come_in_the_order_of_their_numbers(tmp_path):
    logits, labels = example(120)
    labels[:] = logits.argmax(1)
    for i in range(12):
        write(tmp_path / f"x-{i}.npy", "npy", logits[10 * i : 10 * i + 10])
    _, answers = saved(tmp_path, logits, labels)
    found = score(f"{tmp_path}/x-*.npy", answers)
    assert found.metrics.accuracy == 1 and found.parts[0].files == 12
    nll = -np.log(probabilities(logits)[np.arange(120), labels])
    assert found.worst[0].file == str(tmp_path / f"x-{nll.argmax() // 10}.npy")
    assert found.worst[0].row == nll.argmax() % 10


# Bad files


BAD = {
    "label": ((lambda x, y: (x, np.where(np.arange(200) == 150, 7, y))), "y.npy: row 150: label 7 is out of bounds"),
    "negative label": ((lambda x, y: (x, np.where(np.arange(200) == 3, -1, y))), "y.npy: row 3: label -1 is out"),
    "nan": ((lambda x, y: (np.where(np.arange(200)[:, None] == 120, np.nan, x), y)), "x.npy: row 120: the logits hold"),
    "inf": ((lambda x, y: (np.where(x == x.max(), np.inf, x), y)), "the logits hold nan or inf"),
    "lengths": ((lambda x, y: (x, y[:-1])), "x.npy: 200 rows of logits do not fit the 199 labels of"),
    "axes of logits": ((lambda x, y: (x[0], y)), r"x.npy: logits must have the shape \(rows, classes\)"),
    "axes of labels": (
        (lambda x, y: (x, y[:, None, None])),
        r"y.npy: labels must have the shape \(rows,\) .* got \(200, 1, 1\): correct them, or the axis with --dim",
    ),
    "no classes": ((lambda x, y: (x[:, :0], y)), "x.npy: logits must have from 1 to"),
    "float labels": (
        (lambda x, y: (x, y + np.where(np.arange(200) == 4, 0.5, 0))),
        r"row 4: labels must be whole .*, got \d.5",
    ),
    "integer logits": ((lambda x, y: (x.astype(int), y)), "x.npy: row 0: input must be float16"),
    "all ignored": ((lambda x, y: (x, y * 0 - 100)), "x.npy: nothing to score, every label is ignored"),
    "no rows": ((lambda x, y: (x[:0], y[:0])), "nothing to score, there are no rows"),
    "objects": ((lambda x, y: (x.astype(object), y)), "x.npy: "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(tmp_path, case, capsys):
    change, message = BAD[case]
    x, y = change(*example())
    files = write(tmp_path / "x.npy", "npy", x), write(tmp_path / "y.npy", "npy", y)
    with pytest.raises(BadFile, match=message):
        score(*files)
    report = tmp_path / "report.html"
    assert command(*files, html=report) == 2 and not report.exists()
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("crossent score: ")
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "y.npy"}


def test_ignored_rows_and_impossible_labels(tmp_path):
    logits, labels = example()
    logits[3], labels[3] = np.nan, 9
    logits[4, labels[4]] = -np.inf
    scored = score(*saved(tmp_path, logits, labels), ignore_index=9)
    found = scored.metrics
    assert found.ignored == 1 and found.rows == 199 and found.impossible == 1
    assert found.nll == found.numbers["perplexity"] == np.inf and scored.worst[0].row == 4


class Touch:
    """Whoever unpickles this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["npy", "npz", "pt"])
def test_no_pickle_is_loaded(tmp_path, kind):
    trap, array = tmp_path / "trap", np.empty((2, 2), object)
    array[:] = Touch(trap)
    file = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(file, array, allow_pickle=True)
    elif kind == "npz":
        np.savez(file, x=array)
    else:
        torch.save({"x": torch.zeros(2, 2), "y": Touch(trap)}, file)
    with pytest.raises(BadFile, match=f"x.{kind}: "):
        score(str(file), write(tmp_path / "y.npy", "npy", np.zeros(2, int)))
    assert not trap.exists()
    pickle.loads(pickle.dumps(Touch(trap)))
    assert trap.exists()


FILES = {
    "x.foo": (b"", "the suffix must be one of .npy, .npz"),
    "empty.npy": (b"", "empty.npy: "),
    "empty.npz": (b"", "empty.npz: "),
    "empty.csv": (b"", "empty.csv: the file is empty"),
    "empty.pt": (b"", "empty.pt: "),
    "ragged.csv": (b"1,2\n3,4,5\n", "ragged.csv: .*columns"),
    "blank.csv": (b"5,2\n\n", "blank.csv: row 1: column 0 is empty: fill it, or drop the row"),
    "words.csv": (b"a,b\n1,2\nx,3\n", "words.csv: row 1: 'x' in column 'a' is not a number"),
    "x.pt": (b"\x80\x02}q\x00.", "x.pt: "),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files(tmp_path, name):
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match=message):
        score(str(tmp_path / name), write(tmp_path / "labels.npy", "npy", np.zeros(2, int)))


def test_files_that_are_not_there(tmp_path):
    _, labels = saved(tmp_path, *example())
    with pytest.raises(BadFile, match="x.npy: there is no such file"):
        score(str(tmp_path / "x.npy"), labels)
    with pytest.raises(BadFile, match="no file matches"):
        score(str(tmp_path / "x-*.npy"), labels)
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(BadFile, match="folder.npy: is a folder"):
        score(str(tmp_path / "folder.npy"), labels)


def test_shards_of_different_width(tmp_path):
    write(tmp_path / "x-0.npy", "npy", np.zeros((3, 4), np.float32))
    write(tmp_path / "x-1.npy", "npy", np.zeros((3, 5), np.float32))
    with pytest.raises(BadFile, match="x-1.npy: has 5 classes, and .*x-0.npy has 4"):
        score(f"{tmp_path}/x-*.npy", write(tmp_path / "y.npy", "npy", np.zeros(6, int)))


def test_entries_that_promise_too_much(tmp_path):
    """A head that tells of more rows than there are, or of a row larger than memory."""
    cases = {(10**12, 4): "do not fit", (4, 10**12): "is longer", (4, 4): "ends before row 4", (-4, 4): "has the shape"}
    for shape, message in cases.items():
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("x.npy", head.getvalue() + bytes(40))
        with pytest.raises(BadFile, match=message):
            score(str(tmp_path / "x.npz"), write(tmp_path / "y.npy", "npy", np.zeros(4, int)))


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_and_changed_files_do_no_harm(tmp_path, kind, data, capsys):
    """A score, or one line and exit status 2; no other file appears."""
    logits, labels = example(40, 5)
    name, array = data.draw(st.sampled_from([("x", logits), ("y", labels)]))
    file = tmp_path / f"{name}{score_files.suffix(kind)}"
    write(file, kind, array)
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 5), "changes")):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    good = write(tmp_path / "good.npy", "npy", labels if name == "x" else logits)
    files = (str(file), good) if name == "x" else (good, str(file))
    status = command(*files, as_json=True)
    out, err = capsys.readouterr()
    assert all(line.startswith("crossent score: ") for line in err.splitlines()) and err.count("\n") <= 3
    if status == 0:
        assert json.loads(out)["done"] == 40
    else:
        assert status == 2 and out == "" and err
    assert {path.suffix for path in tmp_path.iterdir()} <= {file.suffix, ".npy"}


# The command


def test_json(tmp_path, capsys):
    logits, labels = example()
    logits[4, labels[4]] = -np.inf
    files = saved(tmp_path, logits, labels)
    assert command(*files, as_json=True, top=3) == 0
    out, err = capsys.readouterr()
    said, found = json.loads(out), score(*files)
    m = found.metrics
    assert err == "" and said["complete"] and said["rows"] == said["done"] == said["scored"] == 200
    assert said["nll"] == said["perplexity"] == "inf" and said["impossible"] == 1  # for which JSON has no number
    assert said["accuracy"] == m.accuracy and said["calibration_error"] == m.calibration.error
    assert [row["label"] for row in said["by_class"]] == list(range(7))
    assert said["by_class"][2]["taken_for"][0]["rows"] == m.confusion.of(np.array([2]), 1)[0][0][1]
    assert [row["row"] for row in said["worst"]] == [w.row for w in found.worst[:3]] and said["worst"][0][
        "logprob"
    ] == "-inf"
    assert sum(part["rows"] for part in said["calibration"]) == 200


def test_tables(tmp_path, capsys):
    logits, labels = example()
    labels[:5] = -100
    files = saved(tmp_path, logits, labels)
    assert command(*files, top=2) == 0
    out, _ = capsys.readouterr()
    m = score(*files).metrics
    assert out.startswith("195 rows of 7 classes, 5 ignored\n")
    assert "file" not in out
    for text in (f"{m.nll:.4f}", f"{m.accuracy:.2%}", f"{m.numbers['brier']:.4f}", "taken for", "largest loss"):
        assert text in out
    assert max(map(len, out.splitlines())) <= 80
    write(tmp_path / "logits-1.npy", "npy", logits[:0])
    assert command(f"{tmp_path}/logits*.npy", files[1], top=1) == 0
    assert "file" in capsys.readouterr().out
    assert command(*files, top=0) == 0
    assert "taken for" not in capsys.readouterr().out


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_tables_fold_words_and_never_numbers(width):
    numbers = ["-0.0552 to -0.0234", "3.25726", "66.90%", "0.66"]
    for title in ("", "Rows"):
        rows = [("the calibration error", *numbers, "is better than may be expected")]
        table = Shown(title, ("metric.", *(f"a column {i}" for i in range(4)), "more."), rows)
        out = io.StringIO()
        table.print(Console(file=out, width=width))
        assert max(map(len, out.getvalue().splitlines())) <= width
        shown = re.findall(r"[^\s━-╿,]+", out.getvalue())
        assert {word for cell in (*rows[0], *table.columns) for word in cell.rstrip(".").split()} <= {*shown}


def test_json_makes_no_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Shown, "__new__", lambda *args: pytest.fail("a table is made"))
    assert command(*saved(tmp_path, *example()), as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 200


@pytest.mark.parametrize("presses", [1, 2])
def test_an_interrupted_run_says_what_it_has(tmp_path, presses, monkeypatch, capsys):
    """Ctrl-C in the third block: that block still counts. Once more: it is over at once."""
    original, calls = held.prediction_stats, []

    def stats(*args, **kwargs):
        calls.append(args)
        for _ in range(presses if len(calls) == 3 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    logits, labels = example()
    files, report = saved(tmp_path, logits, labels), tmp_path / "report.html"
    monkeypatch.setattr(held, "prediction_stats", stats)
    monkeypatch.setattr(readers, "_AT_ONCE", 80)  # ten rows of no more than 16 numbers, mapped
    before = signal.getsignal(signal.SIGINT)
    assert command(*files, as_json=True, html=report, part=tmp_path / "part") == 130
    assert signal.getsignal(signal.SIGINT) is before and not report.exists() and not (tmp_path / "part").exists()
    out, err = capsys.readouterr()
    if presses == 2:
        assert out == "" and err == "Interrupted before there was a result.\n"
        return
    said = json.loads(out)
    assert not said["complete"] and said["done"] == said["scored"] == 30 and said["rows"] == 200
    assert (
        "after 30 of 200 rows" in err and "report.html is not written" in err and err.endswith("part is not written.\n")
    )
    first = score(*saved(tmp_path, logits[:30], labels[:30]))
    assert said["nll"] == first.metrics.nll


def test_the_command_line(tmp_path, monkeypatch, capsys):
    logits, labels = saved(tmp_path, *example())
    options = ["--ignore-index", "3", "--top", "2", "--json", "--html", f"{tmp_path}/r.html"]
    command = [sys.executable, "-m", "crossent", "score", logits, labels, *options]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    good = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert good.returncode == 0 and good.stderr == "", good.stderr
    said = json.loads(good.stdout)
    assert said["ignored"] == int((np.load(labels) == 3).sum()) and len(said["worst"]) == 2
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")

    def called(*arguments):
        """In this process, which has paid for its imports."""
        with pytest.raises(SystemExit) as stopped:
            _application()(["score", *arguments])
        return stopped.value.code, *capsys.readouterr()

    status, out, err = called(logits, logits)
    assert status == 2 and out == "" and err.count("\n") == 1 and "Traceback" not in err
    assert called(logits)[0] == 2
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    _, told, _ = called("--help")
    assert all(f"Exit status {status}:" in told for status in (0, 2, 130))


def test_a_file_streams_in_little_memory(tmp_path):
    """200 MB of logits, of which no more than a few blocks are held; explain has what is packed in a file."""
    logits = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (50_000, 1000))
    logits[:, ::100] = 1
    np.savez(tmp_path / "x.npz", x=logits)
    labels = write(tmp_path / "y.npy", "npy", np.arange(50_000) % 1000)
    source = """
        import sys, threading
        import numpy, crossent
        from crossent.tools.explain.command import _explained
        from crossent.tools.score import score
        from crossent.tools.score.readers import Reading

        def held():
            return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024

        def peak(work):
            peaks, done, before = [], threading.Event(), held()

            def watch():
                while not done.wait(1e-3):
                    peaks.append(held() - before)

            watcher = threading.Thread(target=watch)
            watcher.start()
            work()
            done.set()
            watcher.join()
            return max(peaks)

        plain, packed, labels = sys.argv[1:]
        crossent.explain(numpy.zeros((2, 3), numpy.float32), [0, 1])
        crossent.prediction_stats(numpy.zeros((2, 3), numpy.float32), numpy.zeros(2, int))
        print(peak(lambda: score(plain, labels)))
        print(peak(lambda: score(packed, labels)))
        print(peak(lambda: _explained([packed, labels], Reading(), None, [49_999], {})))
    """
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(source),
        *(f"{tmp_path}/x.{kind}" for kind in ("npy", "npz")),
        labels,
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    peaks = [*map(int, done.stdout.split())]
    assert len(peaks) == 3 and max(peaks) < 120e6, peaks


def test_tables_have_the_names_of_classes(tmp_path, capsys):
    rows = "2.0,1.5,0.1\n0.1,3.5,-1.5\n0.5,0.1,0.25\n"
    (tmp_path / "logits.csv").write_text(f"cat,dog,elk\n{rows}")
    (tmp_path / "labels.csv").write_text("cat\nelk\ncat\n")
    assert run([str(tmp_path / "logits.csv"), str(tmp_path / "labels.csv")]) == 0
    shown = [line.split("│") for line in capsys.readouterr().out.splitlines()]
    assert ["elk", "dog (1)"] in [[line[1].strip(), line[-2].strip()] for line in shown if len(line) == 8]
    assert ["elk", "dog"] in [[cell.strip() for cell in line[2:4]] for line in shown if len(line) == 7]
