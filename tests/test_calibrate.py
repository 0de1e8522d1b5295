"""Calibration: scaling that is fitted, against float64 code without the library's, and what has no answer."""

import json

import numpy as np
import pytest
import torch
from command_line import typed
from scipy import optimize
from score_files import example, write
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

import crossent
from crossent import Scaling, calibrate
from crossent.tools.score import scales, scaling, score


def overconfident(rows=600, classes=5, seed=0):
    logits, labels = example(rows, classes, seed)
    return 3.0 * logits.astype(np.float64), labels


def mean_nll(z, labels):
    shifted = z - z.max(1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(z)), labels]).mean())


def probabilities(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


class Stored(ClassifierMixin, BaseEstimator):
    """A model whose logits are its inputs."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return X

    def predict(self, X):
        return X.argmax(1)


@pytest.mark.parametrize(("factor", "classes"), [(1.0, 5), (30.0, 3), (0.01, 20)])
def test_the_temperature_is_that_of_scipy_and_scikit_learn(factor, classes):
    logits, labels = overconfident(classes=classes)
    logits = factor * logits
    found = calibrate(logits, labels).temperature
    best = optimize.minimize_scalar(
        lambda log: mean_nll(logits / np.exp(log), labels), bounds=(-9, 9), options={"xatol": 1e-12}
    )
    assert found == pytest.approx(np.exp(best.x), rel=1e-6)
    pytest.importorskip("sklearn", "1.8", reason="scikit-learn before 1.8 has no temperature scaling")
    theirs = CalibratedClassifierCV(FrozenEstimator(Stored().fit(logits, labels)), method="temperature")
    (fitted,) = theirs.fit(logits, labels).calibrated_classifiers_
    assert 1 / found == pytest.approx(fitted.calibrators[0].beta_, rel=1e-6)


def test_the_slope_is_0_at_the_temperature():
    logits, labels = overconfident()
    z = logits / calibrate(logits, labels).temperature
    slope = (probabilities(z) * z).sum(1) - z[np.arange(len(z)), labels]
    assert abs(slope.mean()) < 1e-11 * abs(z).mean()


@pytest.mark.parametrize("classes", [2, 5])
def test_the_vector_is_the_least_loss(classes):
    """It is convex: the least where its gradient, here by hand, is 0; and no solver of another kind finds less."""
    logits, labels = overconfident(rows=2000, classes=classes)
    logits[:, 1] += 2
    found = calibrate(logits, labels, "vector")
    z = logits * found.weight + found.bias
    gradient = (probabilities(z) - np.eye(classes)[labels]) / len(z)
    assert abs((gradient * logits).sum(0)).max() < 1e-7 and abs(gradient.sum(0)).max() < 1e-7
    assert sum(found.bias) == pytest.approx(0, abs=1e-9) and found.temperature is None

    def loss(numbers):
        return mean_nll(logits * numbers[:classes] + numbers[classes:], labels)

    other = optimize.minimize(loss, np.repeat([0.5, 0], classes), method="BFGS", options={"gtol": 1e-7})
    assert mean_nll(z, labels) <= other.fun + 1e-12 and mean_nll(z, labels) == pytest.approx(other.fun, abs=1e-6)
    temperature = calibrate(logits, labels).temperature
    assert mean_nll(z, labels) < mean_nll(logits / temperature, labels) - 0.01
    theirs = logits * other.x[:classes] + other.x[classes:]
    np.testing.assert_allclose(probabilities(z), probabilities(theirs), atol=1e-4)


@pytest.mark.parametrize("method", scaling.METHODS)
def test_rows_come_in_any_layout(method, monkeypatch):
    logits, labels = overconfident(400, 4)
    expected = calibrate(logits, labels, method)

    def same(found, rel=1e-9):
        np.testing.assert_allclose(found.weight + found.bias, expected.weight + expected.bias, rel, rel)

    with monkeypatch.context() as small:
        small.setattr(scaling, "_AT_ONCE", 4 * 77)
        same(calibrate(logits, labels, method), 1e-6)
    same(calibrate(torch.tensor(logits, requires_grad=True), torch.tensor(labels), method))
    same(calibrate(logits.reshape(100, 4, 4).transpose(0, 2, 1), labels.reshape(100, 4), method))
    same(calibrate(np.asfortranarray(logits.T), labels.astype(np.uint8), method, dim=0))
    junk = np.full((3, 4), np.nan)
    same(calibrate(np.vstack([junk, logits]), np.r_[9, 9, 9, labels], method, ignore_index=9))
    half = torch.tensor(logits).bfloat16()
    assert calibrate(half, torch.tensor(labels), method) == calibrate(half.double().numpy(), labels, method)


def test_classes_that_are_masked_do_not_matter():
    logits, labels = overconfident()
    masked = np.concatenate([logits, np.full((600, 1), -np.inf)], 1)
    assert calibrate(masked, labels).weight == pytest.approx(calibrate(logits, labels).weight, rel=1e-9)
    some = logits.copy()
    some[np.arange(0, 600, 3), (labels[::3] + 1) % 5] = -np.inf
    found = calibrate(some, labels)
    z = some / found.temperature
    kept = np.where(np.isfinite(some), some, 0)
    assert abs(((probabilities(z) * kept).sum(1) - kept[np.arange(600), labels]).mean()) < 1e-10
    by_class = calibrate(some, labels, "vector")
    z = np.where(np.isfinite(some), some * by_class.weight + by_class.bias, -np.inf)
    np.testing.assert_array_equal(by_class(some), z)
    assert abs((probabilities(z) - np.eye(5)[labels]).mean(0)).max() < 1e-7


def changed(case):
    z, labels = overconfident()
    if case == "all right":
        labels = z.argmax(1)
    elif case == "equal logits":
        z = np.ones_like(z)
    elif case == "all wrong":
        labels = z.argmin(1)
    elif case == "no rows of a class":
        z[:, 3] -= 100
        labels[labels == 3] = 0
    elif case == "a class apart":
        z[:, 3] = np.where(labels == 3, 5.0, -5.0) + np.where(labels == 3, z.max(1), z.min(1))
    elif case == "an impossible label":
        z[7, labels[7]] = -np.inf
    elif case == "nan":
        z[7, 2] = np.nan
    elif case == "a row of -inf":
        z[7] = -np.inf
    elif case == "no rows":
        labels = np.full(600, -100)
    elif case == "a bad label":
        labels[7] = 5
    return z, labels


NO_ANSWER = {
    "all right": ("largest in each of the 600 rows: the lower the temperature", "temperature vector"),
    "equal logits": ("largest in each of the 600 rows", "temperature vector"),
    "all wrong": ("the higher the temperature, the better", "temperature"),
    "no rows of a class": ("class 3 has none of the rows that are fitted", "vector"),
    "a class apart": ("class 3 can be told from all others without fail", "vector"),
    "an impossible label": ("has probability 0, and has it however", "temperature vector"),
    "nan": ("row 7: the logits hold nan or inf", "temperature vector"),
    "a row of -inf": ("row 7: the logits hold nan or inf, or are all -inf", "temperature vector"),
    "no rows": ("there is no row to fit a scaling to", "temperature vector"),
    "a bad label": ("Target 5 at position 7 is out of bounds", "temperature vector"),
}


@pytest.mark.parametrize("case", NO_ANSWER)
def test_what_has_no_answer_is_told(case):
    said, methods = NO_ANSWER[case]
    for method in methods.split():
        with pytest.raises((ValueError, IndexError), match=said):
            calibrate(*changed(case), method)
    if methods == "vector":
        assert calibrate(*changed(case)).temperature > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_scaling_of_tensors(dtype):
    given = Scaling((2.0, 0.5, -1.0), (0.0, 1.0, -1.0))
    z = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, -torch.inf]], dtype=dtype, requires_grad=True)
    found = given(z)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.tolist() == [[2.0, 2.0, -4.0], [8.0, 3.5, -np.inf]]
    found[:, :2].sum().backward()
    assert z.grad.tolist() == [[2.0, 0.5, 0.0]] * 2
    assert given(z.detach().T, dim=0).tolist() == found.T.tolist()
    with pytest.raises(ValueError, match="the scaling is of 3 classes, and the logits have 2"):
        given(z[:, :2])


def test_a_scaling_in_a_file(tmp_path):
    path = tmp_path / "scaling.json"
    for one in (Scaling.of_temperature(1.7), Scaling((2.0, 0.5), (0.1, -0.1))):
        one.save(path)
        assert Scaling.load(path) == one
    assert json.loads(path.read_text())["temperature"] is None
    for bad in ("", "[]", '{"weight": [], "bias": []}', '{"weight": [NaN], "bias": [0]}', '{"weight": 1, "bias": [0]}'):
        path.write_text(bad)
        with pytest.raises(ValueError, match="scaling.json: is no scaling that crossent calibrate has written"):
            Scaling.load(path)
    with pytest.raises(ValueError, match="nowhere.json: No such file"):
        Scaling.load(tmp_path / "nowhere.json")
    for bad in (0.0, -1.0, np.nan, np.inf, 1e-320):
        with pytest.raises(ValueError, match="a temperature must be a number above 0"):
            Scaling.of_temperature(bad)


# The command


@pytest.fixture
def files(tmp_path, monkeypatch):
    logits, labels = overconfident(900, 6)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.npy", "npy", logits)
    write(tmp_path / "y.npy", "npy", labels)
    return logits, labels


def result(command):
    status, printed = typed(command)
    assert status == 0, printed
    return json.loads(printed[printed.index("{") :])


def errors(z, labels):
    """Calibration errors, row by row: in bins of confidence, in bins of as many rows, and of each class."""
    p = probabilities(z)
    confidence, right, n = p.max(1), z.argmax(1) == labels, len(z)

    def gaps(score, hit, edges):
        inside = [(score > lo) & (score <= hi) for lo, hi in zip(edges[:-1], edges[1:])]
        return sum(abs(hit[rows].sum() - score[rows].sum()) for rows in inside) / n

    even = np.linspace(0, 1, 16)
    ordered = np.sort(confidence)
    equal = [0, *(ordered[int(np.ceil(n * i / 15)) - 1] for i in range(1, 15)), 1]
    by_class = np.mean([gaps(p[:, c], labels == c, even) for c in range(z.shape[1])])
    return [gaps(confidence, right, even), gaps(confidence, right, np.array(equal)), by_class]


def test_the_command_judges_rows_that_it_did_not_fit(files):
    logits, labels = files
    found = result("crossent calibrate x.npy y.npy --json")
    fitted = np.random.default_rng(0).random(900) < 0.5
    assert found["fitted"] == fitted.sum() and found["judged"] == (~fitted).sum()
    temperature = found["scaling"]["temperature"]
    assert temperature == pytest.approx(calibrate(logits[fitted], labels[fitted]).temperature, rel=1e-9)
    for name, z in (("before", logits), ("after", logits / temperature)):
        z, y, said = z[~fitted], labels[~fitted], found[name]
        assert said["nll"] == pytest.approx(mean_nll(z, y), rel=1e-9)
        assert said["accuracy"] == pytest.approx((z.argmax(1) == y).mean())
        got = [said[f"{kind}calibration_error"] for kind in ("", "adaptive_", "class_wise_")]
        np.testing.assert_allclose(got, errors(z, y), rtol=1e-9)
        assert sum(one["rows"] for one in said["calibration"]) == len(y)
    assert found["after"]["nll"] < found["before"]["nll"]
    assert found["after"]["calibration_error"] < 0.5 * found["before"]["calibration_error"]


def test_shards_and_blocks_draw_the_same_lots(files, monkeypatch, tmp_path):
    logits, _ = files
    expected = result("crossent calibrate x.npy y.npy --seed 3 --split 0.3 --method vector --json")
    for i, part in enumerate(np.split(logits, [100, 100, 707])):
        write(tmp_path / f"part-{i}.npy", "npy", part)
    monkeypatch.setattr(scales, "BLOCK", 1000)
    found = result("crossent calibrate 'part-*.npy' y.npy --seed 3 --split 0.3 --method vector --json")
    assert found["fitted"] == expected["fitted"]
    np.testing.assert_allclose(found["scaling"]["weight"], expected["scaling"]["weight"], rtol=1e-6)
    assert found["after"]["nll"] == pytest.approx(expected["after"]["nll"], rel=1e-9)
    assert result("crossent calibrate x.npy y.npy --seed 4 --split 0.3 --json")["fitted"] != expected["fitted"]


def test_pixels_of_an_image_have_one_lot(files, tmp_path):
    logits, labels = (array.reshape(90, 10, *array.shape[1:]) for array in files)
    write(tmp_path / "images.npy", "npy", logits.transpose(0, 2, 1))
    write(tmp_path / "pixels.npy", "npy", labels)
    found = result("crossent calibrate images.npy pixels.npy --json")
    assert found["fitted"] == 10 * (np.random.default_rng(0).random(90) < 0.5).sum()


def test_other_files_to_judge_by(files, tmp_path):
    logits, labels = files
    np.savez(tmp_path / "both.npz", logits=logits[:300], labels=labels[:300])
    write(tmp_path / "x2.npy", "npy", logits[300:])
    write(tmp_path / "y2.npy", "npy", labels[300:])
    found = result("crossent calibrate both.npz both.npz x2.npy y2.npy --json")
    assert (found["fitted"], found["judged"]) == (300, 600)
    assert found["scaling"]["weight"][0] == pytest.approx(calibrate(logits[:300], labels[:300]).weight[0], rel=1e-9)
    assert found["before"]["nll"] == pytest.approx(mean_nll(logits[300:], labels[300:]), rel=1e-9)
    status, printed = typed("crossent calibrate x.npy y.npy --split 1")
    assert status == 0 and "fitted to 900 rows, and judged by 900 the same ones" in printed


def test_a_scaling_is_applied(files, tmp_path):
    logits, labels = files
    status, printed = typed("crossent calibrate x.npy y.npy --method vector --save scaling.json")
    assert status == 0 and "vector scaling, fitted to" in printed and "the same, class-wise" in printed
    given = Scaling.load("scaling.json")
    found = result("crossent score x.npy y.npy --scaling scaling.json --json")
    assert found["nll"] == pytest.approx(mean_nll(logits * given.weight + given.bias, labels), rel=1e-9)
    assert found["notes"] == ["the logits are scaled: a vector of 6 classes"]
    own = crossent.Score(scaling=given).update(logits, labels).result()
    assert own["nll"] == found["nll"] and own["brier"] == found["brier"]
    found = result("crossent score x.npy y.npy --temperature 2.5 --json")
    assert found["nll"] == pytest.approx(mean_nll(logits / 2.5, labels), rel=1e-9)
    write(tmp_path / "p.npy", "npy", probabilities(logits))
    scaled = result("crossent score p.npy y.npy --temperature 2.5 --json")
    assert scaled["nll"] == pytest.approx(mean_nll(logits / 2.5, labels), rel=1e-9)


def test_parts_are_scaled_alike(files, tmp_path):
    for i, temperature in enumerate((1, 2, 2)):
        one = score("x.npy", "y.npy", scaling=Scaling.of_temperature(temperature)).total
        one.save(f"part-{i}.npz")
        assert crossent.Score.load(f"part-{i}.npz").result() == one.result()
    status, printed = typed("crossent score --merge part-0.npz part-1.npz")
    assert status == 2 and "part-1.npz: scaling is Scaling(weight=(0.5,), bias=(0.0,)), but" in printed
    with pytest.raises(TypeError, match="scaling must be a crossent.Scaling, got float"):
        crossent.Score(scaling=1.7)


def test_bad_rows_are_left_out_of_the_fit_and_of_the_judgement(files, tmp_path):
    logits, labels = files
    logits[[3, 5]], labels[[8, 9]] = np.nan, 6
    write(tmp_path / "bad.npy", "npy", logits)
    write(tmp_path / "bad-y.npy", "npy", labels)
    found = result("crossent calibrate bad.npy bad-y.npy --skip-bad --json")
    good = np.isin(np.arange(900), [3, 5, 8, 9], invert=True)
    lots = np.random.default_rng(0).random(900) < 0.5
    expected = calibrate(logits[good & lots], labels[good & lots]).temperature
    assert found["scaling"]["temperature"] == pytest.approx(expected, rel=1e-9)
    assert (found["fitted"], found["judged"]) == ((good & lots).sum(), (good & ~lots).sum())
    assert found["skipped"] == {"labels": 2, "logits": 2, "scale": 0}
    judged = good & ~lots
    assert found["before"]["nll"] == pytest.approx(mean_nll(logits[judged], labels[judged]), rel=1e-9)
    p, y = probabilities(logits[judged]), labels[judged]
    for c, error in enumerate(found["before"]["by_class"]):  # whose mean the class-wise error is
        gap = np.bincount(np.ceil(p[:, c] * 15).astype(int) - 1, (y == c) - p[:, c], 15)
        assert error == pytest.approx(abs(gap).sum() / len(y), rel=1e-9)
    status, printed = typed("crossent calibrate bad.npy bad-y.npy --skip-bad")
    assert status == 0 and "4 skipped (2: label is no class, 2: nan, inf or no number)" in " ".join(printed.split())
    status, printed = typed("crossent calibrate bad.npy bad-y.npy")
    assert status == 2 and "crossent calibrate: bad-y.npy: row 8: label 6 is out of bounds" in printed


WRONG = {
    "x.npy y.npy --split 0": "--split must be above 0 and at most 1, got 0.0",
    "x.npy y.npy --split 0.0001": "x.npy: there is no row to fit a scaling to among",
    "x.npy y.npy --split 0.9999": "x.npy: there is no row to judge a scaling by among",
    "x.npy y.npy --method platt": "x.npy: method must be one of temperature, vector, got 'platt'",
    "x.npy y.npy x.npy": "expected LOGITS and LABELS",
    "x.npy y.npy few.npy zeros.npy": "few.npy: has 2 classes, and x.npy has 6",
    "few.npy zeros.npy": "few.npy: the label's logit is the largest in each of the",
    "nan.npy y.npy": "nan.npy: row 33: the logits hold nan or inf",
    "x.npy y.npy --save nowhere/scaling.json": "--save must be a file to write",
    "x.npy y.npy --html nowhere/page.html": "--html must be a file to write",
    "x.npy y.npy --save y.npy": "--save must be another file than those that are read, got y.npy",
    "huge.npy y.npy": "huge.npy: the logits are so large or so small that no temperature can be found",
}


@pytest.mark.parametrize("command", WRONG)
def test_the_command_says_what_is_wrong(command, files, tmp_path):
    logits, _ = files
    write(tmp_path / "few.npy", "npy", np.tile([1.5, 0.25], (50, 1)))
    write(tmp_path / "zeros.npy", "npy", np.zeros(50, int))
    write(tmp_path / "huge.npy", "npy", np.where(logits > 2, 1e-320, 0.0))
    logits[33] = np.nan
    write(tmp_path / "nan.npy", "npy", logits)
    status, printed = typed(f"crossent calibrate {command}")
    assert status == 2 and printed.splitlines()[-1].startswith(f"crossent calibrate: {WRONG[command]}"), printed


@pytest.mark.parametrize("command", ["calibrate x.npy y.npy", "compare x.npy x.npy y.npy"])
def test_an_interrupt_ends_the_command(command, files, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for name in ("calibration.fitted", "compare.Comparison._count"):
        monkeypatch.setattr(f"crossent.tools.score.{name}", interrupted)
    status, printed = typed(f"crossent {command}")
    assert status == 130 and "Traceback" not in printed


def test_options_of_score_exclude_each_other(files):
    status, printed = typed("crossent score x.npy y.npy --temperature 2 --scaling scaling.json")
    assert status == 2 and "--temperature and --scaling exclude each other" in printed
    status, printed = typed("crossent score x.npy y.npy --temperature -2")
    assert status == 2 and "a temperature must be a number above 0, got -2.0" in printed
    status, printed = typed("crossent score --merge part.npz --temperature 2")
    assert status == 2 and "--merge takes parts as they were scored" in printed
    Scaling((1.0, 2.0)).save("two.json")
    status, printed = typed("crossent score x.npy y.npy --scaling two.json")
    assert status == 2 and "the scaling is of 2 classes, and the logits have 6" in printed
