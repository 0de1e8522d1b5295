"""`crossent compare`: paired differences, tests and lists against NumPy and SciPy, and every bad pair of files."""

import json
import pickle

import browser
import numpy as np
import pytest
import torch
from command_line import typed
from scipy import stats
from score_files import example, write
from sklearn import metrics as sk

import crossent
from crossent.tools import plain_json
from crossent.tools.score import compare, readers
from crossent.tools.score.conditions import _found


def models(rows=1500, classes=6, seed=0):
    """Logits of two models that agree more than chance would, the second a little better, and labels."""
    a, labels = example(rows, classes, seed)
    generator = np.random.default_rng(seed + 1)
    b = 0.8 * a + 0.6 * generator.standard_normal(a.shape) + 0.5 * np.eye(classes)[labels]
    b[labels == 2] -= 2.0 * np.eye(classes)[2]
    return a, b.astype(np.float32), labels


def losses(z, labels):
    z = z.astype(np.float64)
    return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels]


@pytest.fixture
def files(tmp_path, monkeypatch):
    a, b, labels = models()
    labels[::50] = -100
    monkeypatch.chdir(tmp_path)
    for name, array in (("a", a), ("b", b), ("y", labels)):
        write(tmp_path / f"{name}.npy", "npy", array)
    kept = labels >= 0
    return a[kept], b[kept], labels[kept], np.flatnonzero(kept)


def result(command):
    status, printed = typed(command)
    assert status == 0, printed
    return json.loads(printed[printed.index("{") :])


def test_differences_are_those_of_two_scores(files):
    a, b, labels, _ = files
    found = result("crossent compare a.npy b.npy y.npy --json")
    assert (found["scored"], found["ignored"], found["classes"]) == (1470, 30, 6)
    results = [result(f"crossent score {name}.npy y.npy --json") for name in "ab"]
    assert {"nll", "top5", "coverage.area", "coverage.points.0.accuracy"} <= found["differences"].keys()
    for name, said in found["differences"].items():
        one, other = (_found(score, name) for score in results)
        assert (said["a"], said["b"]) == (one, other)
        assert said["difference"] == pytest.approx(other - one, abs=1e-12)
        assert said["low"] < said["high"]
        assert name == "calibration_error" or said["low"] < said["difference"] < said["high"]


def test_intervals_are_paired_as_those_of_scipy(files):
    a, b, labels, _ = files
    found = result("crossent compare a.npy b.npy y.npy --json")["differences"]
    right = [(z.argmax(1) == labels).astype(float) for z in (a, b)]
    for name, one, other in (("nll", losses(a, labels), losses(b, labels)), ("accuracy", *right)):
        options = {"paired": True, "rng": 0, "n_resamples": 2000, "method": "percentile"}
        theirs = stats.bootstrap((one, other), lambda x, y, axis: (y - x).mean(axis), **options)
        low, high = theirs.confidence_interval
        assert found[name]["low"] == pytest.approx(low, abs=0.2 * (high - low))
        assert found[name]["high"] == pytest.approx(high, abs=0.2 * (high - low))
        alone = other.std() * 2 * 1.96 / np.sqrt(len(labels))
        assert found[name]["high"] - found[name]["low"] < 0.9 * alone * np.sqrt(2)  # what unpaired rows would give


def test_intervals_hold_the_truth_19_times_in_20():
    """Of two models whose true difference is known from many rows."""
    a, b, labels = models(40_000, 4, seed=5)

    def metrics(z, at):
        return crossent.Score(top=0).update(z[at], labels[at])._held.metrics()

    truth = compare.differences(*(metrics(z, slice(None)) for z in (a, b)))
    names, held = ("nll", "accuracy", "brier", "calibration_error", "coverage.area", "coverage.points.1.accuracy"), []
    for start in range(0, 40_000, 500):
        found = compare.differences(*(metrics(z, slice(start, start + 500)) for z in (a, b)))
        held.append([found[name]["low"] <= truth[name]["difference"] <= found[name]["high"] for name in names])
    share = dict(zip(names, np.mean(held, 0)))
    assert 0.97 <= share.pop("calibration_error") and all(0.9 <= value <= 0.99 for value in share.values()), share


def test_what_both_get_right_and_mcnemar(files):
    a, b, labels, _ = files
    found = result("crossent compare a.npy b.npy y.npy --json")["agreement"]
    one, other = a.argmax(1) == labels, b.argmax(1) == labels
    counts = [(one & other).sum(), (one & ~other).sum(), (~one & other).sum(), (~one & ~other).sum()]
    assert [found[name] for name in ("both", "a_alone", "b_alone", "neither")] == counts
    assert found["p"] == pytest.approx(stats.binomtest(int(counts[1]), int(counts[1] + counts[2])).pvalue, rel=1e-9)
    lost, won = np.array([0, 3, 0, 5, 400]), np.array([0, 3, 7, 0, 350])
    expected = [1.0, *(stats.binomtest(int(x), int(x + y)).pvalue for x, y in zip(lost[1:], won[1:]))]
    np.testing.assert_allclose(compare.mcnemar(lost, won), expected, rtol=1e-9)


def test_classes_that_got_worse(files):
    a, b, labels, _ = files
    found = result("crossent compare a.npy b.npy y.npy --json")
    one, other = a.argmax(1) == labels, b.argmax(1) == labels
    counts = [((one & ~other)[labels == c].sum(), (one ^ other)[labels == c].sum()) for c in range(6)]
    p = [stats.binomtest(int(lost), int(changed)).pvalue for lost, changed in counts]
    order = np.argsort(p)
    adjusted = np.empty(6)
    adjusted[order] = np.minimum.accumulate((np.sort(p) * 6 / np.arange(1, 7))[::-1])[::-1]
    worse = [c for c in order if one[labels == c].sum() > other[labels == c].sum()]
    said = found["classes_that_got_worse"]
    assert [row["label"] for row in said] == worse and 2 in worse and found["classes_tested"] == 6
    for row in said:
        mine = labels == row["label"]
        assert row["rows"] == mine.sum() and row["recall_a"] == pytest.approx(one[mine].mean())
        assert row["recall_b"] == pytest.approx(other[mine].mean())
        assert (row["p"], row["adjusted"]) == pytest.approx((p[row["label"]], adjusted[row["label"]]), rel=1e-9)


def test_rows_that_changed_sides(files):
    a, b, labels, numbers = files
    found = result("crossent compare a.npy b.npy y.npy --top 5 --json")
    one, other = a.argmax(1) == labels, b.argmax(1) == labels
    off = abs(losses(b, labels) - losses(a, labels))
    for name, changed in (("lost", one & ~other), ("won", ~one & other)):
        at = np.flatnonzero(changed)
        at = at[np.argsort(-off[at])[:5]]
        assert [row["row"] for row in found[name]] == numbers[at].tolist()
        assert [row["predictions"] for row in found[name]] == [[a[i].argmax(), b[i].argmax()] for i in at]
        np.testing.assert_allclose([row["losses"][1] for row in found[name]], losses(b, labels)[at], rtol=1e-5)
        assert {row["file"] for row in found[name]} == {"a.npy"}


def test_a_comparison_in_python_is_the_command(files):
    """In any batches, dtypes, libraries, order and number of processes, to the last bit."""
    a, b, labels = (np.load(f"{name}.npy") for name in "aby")
    said = result("crossent compare a.npy b.npy y.npy --top 7 --json")
    whole = crossent.Comparison(top=7).update(a, b, labels)
    parts = [crossent.Comparison(top=7) for _ in range(3)]
    for i, at in enumerate(np.array_split(np.random.default_rng(0).permutation(1500), 11)):
        one = map(torch.from_numpy, (a[at], b[at], labels[at])) if i % 2 else (a[at].T, b[at].T, labels[at])
        parts[i % 3].update(*one, dim=None if i % 2 else 0, rows=at)
    sent = [pickle.loads(pickle.dumps(one)) for one in parts]
    merged = crossent.Comparison(top=7).merge(*sent)
    found = merged.result()
    assert found == whole.result() and parts[0].result() == sent[0].result()
    found = json.loads(plain_json.text(found))
    for name in ("lost", "won"):
        assert len(found[name]) == 7
        assert found.pop(name) == [row | {"file": None} for row in said[name]]
    assert found == {name: said[name] for name in found}
    assert repr(merged) == "<crossent.Comparison of 1,470 rows>"
    assert merged.a.result()["nll"] == found["differences"]["nll"]["a"]
    with pytest.raises(ValueError, match="its rows are counted already"):
        merged.merge(sent[0])
    assert merged.result() == whole.result()


def test_of_equal_rows_that_changed_sides_the_first_are_kept():
    """In whatever order and batches they come; the larger of two differences that are the same in float32."""
    a, b, labels = np.eye(3)[np.zeros(40, int)], np.eye(3)[np.ones(40, int)], np.arange(40) % 2
    whole = crossent.Comparison(top=3).update(a, b, labels).result()
    assert [[row["row"] for row in whole[name]] for name in ("lost", "won")] == [[0, 2, 4], [1, 3, 5]]
    at = np.random.default_rng(0).permutation(40)
    assert crossent.Comparison(top=3).update(a[at], b[at], labels[at], rows=at).result() == whole
    merged = crossent.Comparison(top=3)
    for some in np.array_split(at, 5):
        merged.update(a[some], b[some], labels[some], rows=some)
    assert merged.result() == whole
    a, b = np.array([[1, 0, 0], [1 + 3e-7, 0, 0]], np.float32), np.array([[0, 30, 0]] * 2, np.float32)
    one, other = crossent.Comparison(top=1), crossent.Comparison(top=1)
    for i in range(2):
        one.update(a[i : i + 1], b[i : i + 1], np.zeros(1, int), rows=[i])
    assert one.result()["lost"] == other.update(a, b, np.zeros(2, int)).result()["lost"]
    assert one.result()["lost"][0]["row"] == 1


def test_scikit_learn_and_scipy_say_the_same():
    a, b, labels = models(700, 9)
    found = crossent.Comparison(names=[f"c{i}" for i in range(9)]).update(a, b, labels).result()
    for name, z in (("a", a), ("b", b)):
        p = np.exp(z.astype(float))
        p /= p.sum(1, keepdims=True)
        assert found["differences"]["nll"][name] == pytest.approx(sk.log_loss(labels, p, labels=range(9)), rel=1e-6)
        assert found["differences"]["accuracy"][name] == sk.accuracy_score(labels, p.argmax(1))
    table = sk.confusion_matrix(a.argmax(1) == labels, b.argmax(1) == labels)
    n = found["agreement"]
    assert [[n["neither"], n["b_alone"]], [n["a_alone"], n["both"]]] == table.tolist()
    assert n["p"] == pytest.approx(stats.binomtest(n["a_alone"], n["a_alone"] + n["b_alone"]).pvalue, rel=1e-9)
    recall = sk.recall_score(labels, b.argmax(1), average=None)
    assert [row["recall_b"] for row in found["classes_that_got_worse"]] == [
        recall[row["label"]] for row in found["classes_that_got_worse"]
    ]
    assert found["classes_that_got_worse"][0]["name"] == "c2"


def test_what_is_bad_for_one_counts_for_neither(tmp_path, files):
    a, b, labels = (np.load(f"{name}.npy") for name in "aby")
    a[[5, 6]], b[[6, 7], 0], labels[8] = np.nan, np.inf, 6
    for name, array in (("a2", a), ("b2", b), ("y2", labels)):
        write(tmp_path / f"{name}.npy", "npy", array)
    said = result("crossent compare a2.npy b2.npy y2.npy --skip-bad --json")
    kept = np.setdiff1d(np.arange(1500), [5, 6, 7, 8])
    expected = crossent.Comparison().update(a[kept], b[kept], labels[kept], rows=kept).result()
    assert said["skipped"] == {"labels": 1, "logits": 3, "scale": 0} and said["ignored"] == 30
    assert said["agreement"] == expected["agreement"]
    for name, one in expected["differences"].items():
        assert said["differences"][name] == pytest.approx(one, rel=1e-9)
    both = crossent.Comparison(skip_bad=True).update(a, b, labels)
    assert both.result()["skipped"] == both.b.result()["skipped"] == said["skipped"]
    status, printed = typed("crossent compare a2.npy b2.npy y2.npy --skip-bad")
    assert status == 0 and ", 4 skipped (1: label is no class, 3: nan, inf or no number); A is" in " ".join(
        printed.split()
    )


def test_nothing_and_little():
    a, b, labels = models(50, 4)
    nothing = crossent.Comparison().merge(crossent.Comparison().update(a, b, np.full(50, -100))).result()
    assert nothing["scored"] == nothing["classes_tested"] == 0 and nothing["agreement"]["p"] == 1
    assert all(np.isnan(one[end]) for one in nothing["differences"].values() for end in ("a", "low", "high"))
    one = crossent.Comparison().update(a[0], b[0], labels[0]).result()
    assert one["scored"] == 1 and np.isnan(one["differences"]["nll"]["low"])
    with pytest.raises(TypeError, match="input must be"):
        crossent.Comparison().update(a.tolist(), b.tolist(), labels)


def test_a_failed_call_counts_nothing():
    a, b, labels = models(50, 4)
    comparison = crossent.Comparison().update(a, b, labels)
    before, b[3, 2] = comparison.result(), np.nan
    for error, given in {
        "row 53: the logits hold nan or inf": (a, b, labels),
        "b must have the shape of a, .50, 4., got .50, 3.": (a, b[:, :3], labels),
        "input has 3 classes, and that of the rows before 4": (a[:, :3], a[:, :3], labels % 3),
    }.items():
        with pytest.raises(ValueError, match=error):
            comparison.update(*given)
        assert comparison.result() == before
    with pytest.raises(TypeError, match=r"others\[0\] must be a Comparison, got Score"):
        comparison.merge(comparison.a)


def test_classes_have_their_names(tmp_path, files):
    a, b, labels = (np.load(f"{name}.npy") for name in "aby")
    for name, array in (("a", a), ("b", b)):
        np.savetxt(tmp_path / f"{name}.csv", array, "%.9g", ",", header="cat,dog,elk,fox,gnu,hen", comments="")
    status, printed = typed("crossent compare a.csv b.csv y.npy --top 2")
    assert status == 0 and printed.count("elk") >= 2
    found = result("crossent compare a.csv b.csv y.npy --json")["classes_that_got_worse"]
    assert found[0]["label"] == 2 and found[0]["name"] == "elk"
    status, printed = typed("crossent calibrate a.csv y.npy")
    assert status == 0 and all(name in printed for name in "cat dog elk fox gnu hen".split())


def test_shards_and_blocks_change_nothing(files, tmp_path, monkeypatch):
    a, b, _ = (np.load(f"{name}.npy") for name in "aby")
    expected = result("crossent compare a.npy b.npy y.npy --json")
    for name, array, cuts in (("a", a, [7, 700]), ("b", b, [300, 301, 1400])):
        for i, part in enumerate(np.split(array, cuts)):
            write(tmp_path / f"{name}-{i}.npy", "npy", part)
    monkeypatch.setattr(readers, "_AT_ONCE", 1000)
    found = result("crossent compare 'a-*.npy' 'b-*.npy' y.npy --json")
    for name in ("differences", "agreement", "classes_that_got_worse"):
        assert found[name] == expected[name]
    for name in ("lost", "won"):
        assert [row["losses"] for row in found[name]] == [row["losses"] for row in expected[name]]
        starts = {"a-0.npy": 0, "a-1.npy": 7, "a-2.npy": 700}
        assert [starts[row["file"]] + row["row"] for row in found[name]] == [r["row"] for r in expected[name]]


def test_rows_of_several_places(files, tmp_path):
    expected = result("crossent compare a.npy b.npy y.npy --json")
    for name in "ab":
        write(tmp_path / f"{name}-images.npy", "npy", np.load(f"{name}.npy").reshape(150, 10, 6).transpose(0, 2, 1))
    write(tmp_path / "pixels.npy", "npy", np.load("y.npy").reshape(150, 10))
    found = result("crossent compare a-images.npy b-images.npy pixels.npy --json")
    assert found["agreement"] == expected["agreement"]
    assert [row["row"] for row in found["lost"]] == [[r["row"] // 10, r["row"] % 10] for r in expected["lost"]]
    for name, one in expected["differences"].items():
        assert found["differences"][name]["difference"] == pytest.approx(one["difference"], rel=1e-6)
    status, printed = typed("crossent compare a-images.npy b-images.npy pixels.npy --top 1")
    assert status == 0 and str(tuple(found["lost"][0]["row"])) in printed


def test_a_model_beside_itself(files):
    found = result("crossent compare a.npy a.npy y.npy --json")
    calibration = found["differences"].pop("calibration_error")
    assert calibration["difference"] == 0 and -0.1 < calibration["low"] < 0 < calibration["high"] < 0.1
    assert all(one["low"] == one["difference"] == one["high"] == 0 for one in found["differences"].values())
    assert found["agreement"]["p"] == 1 and not found["lost"] and not found["classes_that_got_worse"]
    status, printed = typed("crossent compare a.npy a.npy y.npy")
    assert status == 0 and "Both models get the same rows right." in printed and printed.count("may be chance") == 7


def test_an_impossible_label_makes_no_difference_up(files, tmp_path):
    """Where one model gives a label no probability, its NLL is infinite, and so is the difference."""
    b, labels = np.load("b.npy"), np.load("y.npy")
    b[3, labels[3]] = -np.inf
    write(tmp_path / "b.npy", "npy", b)
    found = result("crossent compare a.npy b.npy y.npy --json")["differences"]
    assert found["nll"]["b"] == found["nll"]["difference"] == found["nll"]["high"] == "inf"
    status, printed = typed("crossent compare a.npy b.npy y.npy")
    (line,) = [line for line in printed.splitlines() if line.startswith("mean NLL")]
    assert status == 0 and "+inf" in line and "no interval" in line
    found = result("crossent compare b.npy b.npy y.npy --json")["differences"]
    assert found["nll"]["difference"] == "nan"


def test_the_tables_and_the_page(files, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    status, printed = typed("crossent compare a.npy b.npy y.npy --top 3 --html page.html")
    assert status == 0 and "1,470 rows of 6 classes, 30 ignored; A is a.npy, B is b.npy" in printed
    lines = {line[:17].strip(): line for line in printed.splitlines()}
    assert "A is better" in lines["mean NLL"] and "hardly chance (p = " in printed
    assert "Of 6 classes some get worse by chance" in " ".join(printed.split())
    text = (tmp_path / "page.html").read_text()
    for said in ("Classes that got worse", "A right, B wrong", "A wrong, B right", "hardly chance", "Reliability: B"):
        assert said in text
    assert text.count("<svg") == 2


@browser.needs_chromium
@pytest.mark.parametrize(
    ("command", "width", "dark"), [("compare a.npy b.npy y.npy", 420, True), ("calibrate a.npy y.npy", 1400, False)]
)
def test_the_pages_in_a_browser(files, tmp_path, command, width, dark):
    assert typed(f"crossent {command} --html page.html")[0] == 0
    address = (tmp_path / "page.html").as_uri()
    with browser.opened(address, width, dark) as page:
        assert page.errors == [] and page.requests == [address]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.violations(page) == []


WRONG = {
    "a.npy few.npy y.npy": "few.npy: 100 rows of logits do not fit the 1500 labels of",
    "a.npy narrow.npy y.npy": "narrow.npy: has logits of shape (1500, 5), and a.npy of (1500, 6)",
    "a.csv b.csv y.npy": "b.csv: the header names other classes than that of a.csv, or in another order",
    "a.npy nan.npy y.npy": "nan.npy: row 7: the logits hold nan or inf",
    "a.npy nothing.npy y.npy": "nothing.npy: there is no such file",
    "nil.npy nil.npy nil-y.npy": "nil.npy: nothing to score, there are no rows",
    "a.npy b.npy none.npy": "a.npy: nothing to score, every label is ignored",
    "a.npy b.npy y.npy --html nowhere/page.html": "--html must be a file to write",
    "a.npy b.npy y.npy --html b.npy": "--html must be another file than those that are read, got b.npy",
}


@pytest.mark.parametrize("command", WRONG)
def test_what_cannot_be_compared(command, files, tmp_path):
    a = np.load("a.npy")
    write(tmp_path / "few.npy", "npy", a[:100])
    write(tmp_path / "narrow.npy", "npy", a[:, :5])
    write(tmp_path / "nil.npy", "npy", a[:0])
    write(tmp_path / "nil-y.npy", "npy", np.zeros(0, int))
    write(tmp_path / "none.npy", "npy", np.full(1500, -100))
    for name, header in (("a", "cat,dog,elk,fox,gnu,hen"), ("b", "dog,cat,elk,fox,gnu,hen")):
        np.savetxt(tmp_path / f"{name}.csv", a, delimiter=",", header=header, comments="")
    a[7] = np.nan
    write(tmp_path / "nan.npy", "npy", a)
    status, printed = typed(f"crossent compare {command}")
    assert status == 2 and printed.splitlines()[-1].startswith(f"crossent compare: {WRONG[command]}"), printed
