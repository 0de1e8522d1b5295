"""How sure a score is: intervals against SciPy's and by simulation, groups, top-k, and coverage against accuracy."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from command_line import typed
from scipy import special, stats
from score_files import example
from sklearn import metrics as sk

import crossent
from crossent.tools.score import groups, intervals
from crossent.tools.score.coverage import STEPS, step_of
from crossent.tools.score.intervals import CELLS, FEW, Sample, cells_of, shares


def probabilities(logits):
    p = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def by_hand(logits, labels):
    """In float64, of each row: NLL, right, confidence, Brier score, rank."""
    p, at = probabilities(logits), np.arange(len(labels))
    own = p[at, labels]
    before = (p > own[:, None]).sum(1) + ((p == own[:, None]) & (np.arange(p.shape[1]) < labels[:, None])).sum(1)
    brier = ((p - np.eye(p.shape[1])[labels]) ** 2).sum(1)
    return -np.log(own), p.argmax(1) == labels, p.max(1), brier, before


# Intervals


def test_an_interval_is_that_of_a_bootstrap_of_rows():
    """Of 2,000 resamples of rows, from SciPy; ends differ by what chance leaves in both."""
    logits, labels = example(3000, 8)
    found = crossent.Score().update(logits, labels).result()
    nll, _, _, brier, _ = by_hand(logits, labels)
    for name, values in (("nll", nll), ("brier", brier)):
        drawn = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
        low, high = found["intervals"][name]
        assert abs(low - drawn.low) < 0.1 * (drawn.high - drawn.low) > abs(high - drawn.high)
        assert low < found[name] < high
    assert found["intervals"]["perplexity"] == np.exp(found["intervals"]["nll"]).tolist()


def test_intervals_of_texts_are_those_of_a_bootstrap_of_documents():
    """Bits per byte and by word, of lengths of rows, of labels and of all; documents; whole rows are drawn."""
    generator = np.random.default_rng(0)
    logits, labels = (array.reshape(300, 10, *array.shape[1:]) for array in example(3000, 8))
    logits = logits * (0.2 + generator.gamma(2.0, 0.5, (300, 1, 1)))  # documents differ
    nll = by_hand(logits.reshape(3000, 8), labels.reshape(-1))[0].reshape(300, 10)
    length, each = generator.integers(20, 60, 300), generator.integers(1, 9, (300, 10))
    found = crossent.Score().update(logits, labels, dim=2, bytes=length, words=each).result()
    documents, one = found["documents"], found["intervals"]
    whole = crossent.Score().update(logits, labels, dim=2, bytes=int(length.sum())).result()["intervals"]
    low, high = whole["nll"]  # as many bytes for each label, where nobody knows
    assert whole["bits_per_byte"] == pytest.approx(np.array([low, high]) * 3000 / length.sum() / math.log(2))
    for ends, top, bottom in (
        (np.array(one["bits_per_byte"]) * math.log(2), nll.sum(1), length),
        (np.log(one["perplexity_by_byte"]), nll.sum(1), length),
        (np.log(one["perplexity_by_word"]), nll.sum(1), each.sum(1)),
        (documents["intervals"]["nll"], nll.mean(1), np.ones(300)),
        (np.log(documents["intervals"]["perplexity"]), nll.mean(1), np.ones(300)),
    ):
        drawn = stats.bootstrap(
            (top, bottom), lambda x, y, axis: x.sum(axis) / y.sum(axis), paired=True, n_resamples=2000, rng=0,
            method="percentile",
        ).confidence_interval  # fmt: skip
        assert abs(ends[0] - drawn.low) < 0.12 * (drawn.high - drawn.low) > abs(ends[1] - drawn.high)


def test_intervals_of_the_coverage_are_those_of_a_bootstrap_of_rows():
    logits, labels = example(1500, 8)
    found = crossent.Score().update(2 * logits, labels).result()["coverage"]
    _, right, confidence, _, _ = by_hand(2 * logits, labels)

    def drawn(share):
        generator, values = np.random.default_rng(0), []
        for _ in range(1000):
            at = generator.integers(1500, size=1500)
            accuracy = np.cumsum(right[at][np.argsort(-confidence[at])]) / np.arange(1, 1501)
            values.append(accuracy.mean() if share is None else accuracy[int(1500 * share) - 1])
        return np.percentile(values, (2.5, 97.5))

    points = {point["coverage"]: point["intervals"]["accuracy"] for point in found["points"]}
    for share, ends in {None: found["intervals"]["area"], 0.25: points[0.25], 0.75: points[0.75]}.items():
        low, high = drawn(share)
        assert abs(ends[0] - low) < 0.15 * (high - low) > abs(ends[1] - high)


@pytest.mark.parametrize("rows", [1, 7, 500])
def test_shares_have_wilsons_interval(rows):
    logits, labels = example(rows, 12)
    found = crossent.Score(top_k=(1, 3, 10)).update(logits, labels).result()
    rank = by_hand(logits, labels)[-1]
    for name, k in (("accuracy", 1), ("top1", 1), ("top3", 3), ("top10", 10)):
        expected = stats.binomtest(int((rank < k).sum()), rows).proportion_ci(method="wilson")
        assert found[name] == (rank < k).mean()
        assert found["intervals"][name] == pytest.approx(list(expected), abs=1e-12)


def test_the_percentiles_of_few_cells_are_students():
    found = intervals._t(np.arange(1, 300))
    np.testing.assert_allclose(found[2:], stats.t.ppf(0.975, np.arange(3, 300)), rtol=2e-3)
    assert np.isnan(intervals._t(np.array([0])))[0]


def test_the_sums_of_the_cells_are_the_metrics():
    logits, labels = example(4000, 9)
    score = crossent.Score(top_k=(2, 5)).update(logits, labels)
    found, sample = score.result(), score._held.metrics().sample
    for name, values in sample.resampled(np.ones((1, CELLS))).items():
        assert values[0] == pytest.approx(found[name], rel=1e-9)
    nll, right, confidence, brier, rank = by_hand(logits, labels)
    drawn, cell = intervals.weights()[:5], cells_of("", np.arange(4000))
    for weight, *values in zip(drawn, *sample.resampled(drawn).values()):
        w = weight[cell]
        mean, *others = [w @ nll, w @ right, w @ (rank < 2), w @ (rank < 5), w @ brier] / w.sum()
        np.testing.assert_allclose(values, [mean, np.exp(mean), *others], rtol=1e-6)


def test_cells_are_drawn_as_if_by_chance():
    """Alike in size, of rows that lie side by side or far apart; other in files of other names."""
    for numbers in (np.arange(2**16), 1024 * np.arange(2**16), 2**62 - np.arange(2**16)):
        cells = cells_of("x-0.npy", numbers)
        assert stats.chisquare(np.bincount(cells, minlength=CELLS)).pvalue > 1e-4
        pairs = np.bincount(cells[::2] * np.intp(CELLS) + cells[1::2], minlength=CELLS**2)
        assert stats.chisquare(np.add.reduceat(pairs, np.arange(0, CELLS**2, 64))).pvalue > 1e-4
        other = cells_of("x-1.npy", numbers)
        assert abs((cells == other).mean() - 1 / CELLS) < 0.002
    assert cells_of("logits.npy", np.arange(5)).tolist() == cells_of("logits.npy", np.arange(9))[:5].tolist()
    weights = intervals.weights()
    assert (weights.sum(1) == CELLS).all() and abs(weights.var() - (1 - 1 / CELLS)) < 0.01


def test_labels_of_one_row_are_drawn_together():
    """Each image has one prediction in all pixels: the pixels say no more than the images."""
    logits, labels = example(400, 5)
    pixels = np.broadcast_to(logits[:, :, None], (400, 5, 50))
    many = crossent.Score().update(pixels, np.repeat(labels[:, None], 50, 1)).result()
    one = crossent.Score().update(logits, labels).result()
    every = np.repeat(np.arange(400), 50)
    numbered = crossent.Score().update(logits[every], labels[every], rows=every).result()
    for name, (low, high) in one["intervals"].items():
        if name != "calibration_error":
            assert many["intervals"][name] == pytest.approx([low, high], abs=0.08 * (high - low)), name
            assert numbered["intervals"][name] == pytest.approx(many["intervals"][name])


def test_infinite_losses_and_few_rows():
    logits = np.tile(np.log([[0.5, 0.25, 0.25]]), (50, 1))
    logits[0] = [0.0, -np.inf, 0.0]
    found = crossent.Score().update(logits, np.ones(50, int)).result()
    low, high = found["intervals"]["nll"]
    assert found["nll"] == math.inf == high and math.log(4) == pytest.approx(low)
    for rows in (0, 1):
        found = crossent.Score().update(logits[1:][:rows], np.ones(rows, int)).result()["intervals"]
        assert found["nll"] == found["brier"] == found["calibration_error"] == [None, None]
    low, high = crossent.Score().update(logits[1:3], np.ones(2, int)).result()["intervals"]["accuracy"]
    assert low == 0 and high == pytest.approx(0.658, abs=1e-3)


# How often intervals have what they are to have: of data whose true metrics are known


def drawn(generator, rows, slope):
    """Confidence, whether rows are right, as c**slope of those with confidence c are, losses with a long tail, and
    bytes, of which rows of large losses have more."""
    confidence = 0.1 + 0.9 * generator.beta(4, 1.5, rows)
    right, nll = generator.random(rows) < confidence**slope, generator.gamma(0.5, 2.0, rows)
    return confidence, right, nll, 1 + generator.poisson(2 + np.minimum(nll, 3))


def sample_of(generator, rows, slope):
    """Each row is a document."""
    confidence, right, nll, length = drawn(generator, rows, slope)
    cell = cells_of("", generator.integers(2**40) + np.arange(rows)).astype(np.intp)
    bins = np.ceil(confidence * 15).astype(int) - 1
    gap = np.bincount(cell * 15 + bins, right - confidence, CELLS * 15).reshape(CELLS, 15)
    columns = {"rows": np.ones(rows), "right": right, "nll": nll, "brier": nll, "impossible": np.zeros(rows)}
    columns |= {"bytes": length, "documents": np.ones(rows), "endless": np.zeros(rows), "mean": nll}
    place = cell % FEW * STEPS + step_of(confidence)
    steps = np.array([np.bincount(place, x, FEW * STEPS).reshape(FEW, STEPS) for x in (right * 0 + 1, right)])
    sums = {name: np.bincount(cell, x, CELLS) for name, x in columns.items()}
    return Sample(sums, gap, steps.astype(int), rows)


def truth(slope):
    confidence, _, nll, length = drawn(np.random.default_rng(0), 1_000_000, slope)
    bins = np.ceil(confidence * 15).astype(int) - 1
    error = abs(np.bincount(bins, confidence**slope - confidence, 15)).sum() / len(bins)
    expected = {"nll": 1.0, "documents.nll": 1.0, "accuracy": (confidence**slope).mean(), "calibration_error": error}
    surest = np.cumsum(np.sort(confidence)[::-1] ** slope) / np.arange(1, 1_000_001)
    expected |= {"bits_per_byte": 1 / length.mean() / math.log(2), "coverage.area": surest.mean()}
    shares = (0.25, 0.5, 0.75, 0.9, 1.0)
    points = {f"coverage.points.{i}.accuracy": surest[int(1e6 * share) - 1] for i, share in enumerate(shares)}
    return expected | points


def check_how_often(times, rows, slope):
    generator, expected = np.random.default_rng(1), truth(slope)
    right = dict.fromkeys(expected, 0)
    for _ in range(times):
        found = sample_of(generator, rows, slope).intervals
        for name, value in expected.items():
            low, high = found[name]
            right[name] += low <= value <= high
    least = 0.95 * times - 4 * math.sqrt(0.95 * 0.05 * times)
    for name in expected.keys() - {"calibration_error"}:
        tail = name in ("nll", "documents.nll", "bits_per_byte")  # a long one: means of few losses are too small
        assert least - (0.03 * times if rows < 200 and tail else 0) <= right[name] <= 0.99 * times, (name, right)
    assert right["calibration_error"] >= least, right


@pytest.mark.parametrize(("rows", "slope"), [(100, 1), (1000, 1.5)])
def test_intervals_have_the_truth(rows, slope):
    check_how_often(100, rows, slope)


@pytest.mark.soak
@pytest.mark.parametrize("rows", [50, 100, 300, 1000, 10_000])
@pytest.mark.parametrize("slope", [1, 1.1, 1.5, 3])
def test_intervals_have_the_truth_as_often_as_they_say(rows, slope):
    check_how_often(1000, rows, slope)


# Groups


def grouped(rows=2000, classes=6, seed=0):
    """Groups of very different numbers of rows, of which "dark" is worse than the others."""
    logits, labels = example(rows, classes, seed)
    names = np.random.default_rng(seed).choice(["day", "dusk", "dark", "fog"], rows, p=[0.6, 0.28, 0.1, 0.02])
    logits[names == "dark"] *= -0.3
    return logits, labels, names


def test_groups_are_what_their_rows_are():
    logits, labels, names = grouped()
    found = crossent.Score().update(logits, labels, groups=names).result()["groups"]
    assert [row["group"] for row in found][0] == "dark" and len(found) == 4
    for row in found:
        at = names == row["group"]
        nll, right, confidence, _, _ = by_hand(logits[at], labels[at])
        assert row["rows"] == at.sum() and row["accuracy"] == pytest.approx(right.mean(), abs=1e-12)
        assert row["nll"] == pytest.approx(nll.mean(), rel=1e-6)
        assert row["confidence"] == pytest.approx(confidence.mean(), rel=1e-6)
        share = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        assert row["intervals"]["accuracy"] == pytest.approx(list(share), abs=1e-12)
        low, high = stats.t.interval(0.95, len(nll) - 1, nll.mean(), stats.sem(nll))
        assert row["intervals"]["nll"] == pytest.approx([low, high], abs=0.25 * (high - low))
    of_all = (by_hand(logits, labels)[1]).mean()
    order = [(min(row["intervals"]["accuracy"][1], of_all), row["accuracy"]) for row in found]
    assert order == sorted(order) and order[0][0] < of_all == order[-1][0]


def test_a_group_of_few_rows_is_not_the_worst():
    """Three rows that are all wrong may be chance; a hundred of which sixty are wrong are not."""
    logits, names = np.tile([[1.0, 0.0]], (1003, 1)), np.array(["most"] * 900 + ["many"] * 100 + ["few"] * 3)
    labels = np.array([0] * 940 + [1] * 63)
    rows = crossent.Score().update(logits, labels, groups=names).result()["groups"]
    assert [row["group"] for row in rows] == ["many", "few", "most"]
    assert rows[1]["accuracy"] == 0 and rows[1]["intervals"]["accuracy"] == pytest.approx([0, 0.5615], abs=1e-4)


def test_no_order_of_groups_changes_a_bit(monkeypatch, tmp_path):
    logits, labels, names = grouped(500)
    labels[::7] = -100
    names = np.char.add(names, np.array(["", "\n", "\t", "ü", "0", "10", "9", " ", "日"])[np.arange(500) % 9])
    monkeypatch.setattr("crossent.tools.score.metrics._GROUP", 64)
    whole = crossent.Score().update(logits, labels, rows=np.arange(500), groups=names).result()
    parts = []
    for at in np.array_split(np.random.default_rng(0).permutation(500), 7):
        score = crossent.Score()
        for some in np.array_split(at, 3):
            score.update(torch.tensor(logits[some]), torch.tensor(labels[some]), rows=some, groups=list(names[some]))
        parts.append(pickle.loads(pickle.dumps(score)))
    parts[0].save(tmp_path / "part")
    merged = crossent.Score.load(tmp_path / "part").merge(*parts[1:])
    assert merged.result() == whole and len(whole["groups"]) > 20
    assert sum(row["rows"] for row in whole["groups"]) == whole["scored"]


def test_groups_of_rows_that_do_not_count():
    """A process may have no others; its part has groups where those of others have some."""
    logits, labels, names = grouped(60)
    none = crossent.Score().update(logits[:5], np.full(5, -100), groups=list("abcab"))
    assert "groups" not in none.result()
    whole = crossent.Score().update(logits, labels, groups=names).result()
    assert none.merge(crossent.Score().update(logits, labels, groups=names)).result() == whole | {"ignored": 5}


def test_groups_of_labels_and_of_rows():
    logits, labels = example(120, 4)
    logits, labels = logits.reshape(40, 3, 4), labels.reshape(40, 3)
    of_rows = crossent.Score().update(logits, labels, dim=-1, groups=np.arange(40) % 2).result()["groups"]
    names = np.repeat(np.arange(40) % 2, 3).reshape(40, 3)
    assert of_rows == crossent.Score().update(logits, labels, dim=-1, groups=torch.tensor(names)).result()["groups"]
    assert sorted((row["group"], row["rows"]) for row in of_rows) == [("0", 60), ("1", 60)]


def test_groups_of_files(tmp_path):
    """Beside shards, and in parts: what Python says of the same rows."""
    logits, labels, names = grouped(300)
    np.save(tmp_path / "x-0.npy", logits[:120])
    np.save(tmp_path / "x-1.npy", logits[120:])
    np.save(tmp_path / "y.npy", labels)
    lines = [f"{i},{name}" for i, name in enumerate(names)]
    (tmp_path / "side.csv").write_text("\n".join(["id,when", *lines, ""]))
    np.save(tmp_path / "y-1.npy", labels[120:])
    np.save(tmp_path / "when-1.npy", np.where(names == "dusk", "du\x1bsk", names)[120:])
    status, said = typed(
        f"crossent score '{tmp_path}/x-*.npy' {tmp_path}/y.npy --group {tmp_path}/side.csv:when --json"
    )
    found = json.loads(said[said.index("{") :])["groups"]
    expected = crossent.Score().update(logits, labels, groups=names).result()["groups"]
    assert status == 0 and [row["group"] for row in found] == [row["group"] for row in expected]
    for row, other in zip(found, expected):
        for one in (row, other):
            del one["intervals"]["nll"]  # by cells, which depend on names of files
        assert row == other
    of_part = f"{tmp_path}/x-1.npy {tmp_path}/y-1.npy --group {tmp_path}/when-1.npy"
    status, said = typed(f"crossent score {of_part} --top 2 --partial {tmp_path}/part")
    assert status == 0 and "\n2 of 4 groups.\n" in said and said.count("dark") == 1
    status, said = typed(f"crossent score --merge {tmp_path}/part --html {tmp_path}/page.html")
    assert status == 0 and "Groups, worst first" in said and "du?sk" in said and "\x1b" not in said
    assert "<h2>Groups, worst first, with" in (tmp_path / "page.html").read_text()
    status, said = typed(f"crossent score {of_part.replace('--group', '--key 1 --group')} --merge")
    assert status == 2 and "--merge takes parts as they were scored" in said


def test_groups_that_do_not_fit(monkeypatch):
    logits, labels = example(10, 3)
    score = crossent.Score().update(logits, labels, groups=["a"] * 10)
    before = score.result()
    monkeypatch.setattr(groups, "MOST", 3)
    for error, given in {
        "groups must be 10 values, or of the shape .*, got \\(3,\\)": ["a"] * 3,
        "groups must be given for all rows or for none": None,
        "there may be 3 groups, and these are 11 or more: they are meant to be values that many": range(10),
    }.items():
        with pytest.raises(ValueError, match=error):
            score.update(logits, labels, groups=given)
        assert score.result() == before
    other = crossent.Score().update(logits, labels)
    with pytest.raises(ValueError, match="whether rows have groups is False, but True in what came before"):
        score.merge(other)
    more = [crossent.Score().update(logits[:2], labels[:2], groups=names) for names in (["b", "c"], ["d", "e"])]
    with pytest.raises(ValueError, match="there may be 3 groups"):
        score.merge(*more)
    assert score.result() == before


# Top-k, coverage, baselines


def test_top_k_is_scikit_learns(tmp_path):
    logits, labels = example(700, 15)
    np.save(tmp_path / "x.npy", logits)
    np.save(tmp_path / "y.npy", labels)
    files = f"{tmp_path}/x.npy {tmp_path}/y.npy"
    status, said = typed(f"crossent score {files} --top-k 10,1,3 --json --partial {tmp_path}/part")
    found = json.loads(said[said.index("{") :])
    for k in (1, 3, 10):
        expected = sk.top_k_accuracy_score(labels, probabilities(logits), k=k, labels=np.arange(15))
        assert status == 0 and found[f"top{k}"] == expected
    assert "top5" not in found and found["top1"] == found["accuracy"]
    status, said = typed(f"crossent score {files} --top-k 1,3")
    assert status == 0 and "top-1 accuracy" in said and "top-3 accuracy" in said and "top-5" not in said
    status, said = typed(f"crossent score {files} --top-k 1,x")
    assert status == 2 and "--top-k takes numbers with commas between them, as in 1,3,10, got '1,x'" in said
    status, said = typed(f"crossent score {files} --top-k 0")
    assert status == 2 and "top_k must be at least 1, got 0" in said
    typed(f"crossent score {files} --partial {tmp_path}/other")
    status, said = typed(f"crossent score --merge {tmp_path}/part {tmp_path}/other")
    assert status == 2 and "top_k is (5,), but (1, 3, 10) in what came before: score all alike" in said


def test_coverage_is_the_accuracy_of_the_surest_rows():
    logits, labels = example(20_000, 10)
    found = crossent.Score().update(3 * logits, labels)
    curve, said = found._held.metrics().coverage, found.result()["coverage"]
    _, right, confidence, _, _ = by_hand(3 * logits, labels)
    order = np.argsort(-confidence)
    accuracy = np.cumsum(right[order]) / np.arange(1, 20_001)
    for point in said["points"]:
        n = round(20_000 * point["coverage"])
        assert point["accuracy"] == pytest.approx(accuracy[n - 1], abs=0.002)
        assert confidence[order][n - 1] * 0.93 <= point["confidence"] <= confidence[order][n - 1]
    assert said["points"][-1]["accuracy"] == found.result()["accuracy"]
    assert said["area"] == pytest.approx(accuracy.mean(), abs=1e-3)
    # To the last digits where rows of a step are taken for equally sure.
    rows, share = np.cumsum(curve.rows), curve.right / curve.rows
    x, w = special.roots_legendre(60)
    ends = np.concatenate([[0], rows])
    area = 0.0
    for i, (lo, hi) in enumerate(zip(ends[:-1], ends[1:])):
        at = (lo + hi) / 2 + x * (hi - lo) / 2
        area += (hi - lo) / 2 * w @ ((curve.right[:i].sum() + share[i] * (at - lo)) / at)
    assert said["area"] == pytest.approx(area / 20_000, rel=1e-6)


def test_every_confidence_has_its_step():
    confidence = np.unique(np.concatenate([np.logspace(-12, 0, 5000), 1 - np.logspace(-12, 0, 5000), [0.5, 1.0]]))
    from crossent.tools.score.coverage import STEPS, _least, step_of

    step = step_of(confidence)
    assert step.min() == 0 and step.max() == STEPS - 1 and (np.diff(step) >= 0).all()
    least = _least(np.arange(STEPS))
    assert (np.diff(least) > 0).all()
    used = confidence > 2.0**-30
    assert (least[step[used]] <= confidence[used]).all()
    above = np.append(least[1:], np.inf)[step]
    assert (confidence[used] < above[used] * (1 + 1e-15)).all()


def test_a_model_that_is_worse_than_knowing_nothing(tmp_path):
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    shares = np.log([0.6, 0.3, 0.1])
    np.save(tmp_path / "y.npy", labels)
    for row, said in (
        (shares, "nats"),
        (0 * shares, "worse than the labels' shares"),
        (-shares, "worse than knowing nothing"),
    ):
        np.save(tmp_path / "x.npy", np.tile(row, (100, 1)).astype(np.float32))
        status, printed = typed(f"crossent score {tmp_path}/x.npy {tmp_path}/y.npy --logits")
        assert status == 0 and said in next(line for line in printed.splitlines() if line.startswith("mean NLL"))
    found = crossent.Score().update(np.zeros((100, 3)), labels).result()
    assert found["baselines"]["uniform"] == pytest.approx(math.log(3)) == found["nll"]
    assert found["baselines"]["label_entropy"] == pytest.approx(stats.entropy([60, 30, 10]), abs=1e-12)


def test_shares_of_nothing():
    low, high = shares(np.zeros((1, 4)), np.zeros((1, 4)), 1)
    assert np.isnan([low, high]).all()
