"""`crossent.explain` with what people have: lists, frames, names of classes, a tokenizer."""

import json

import numpy as np
import pytest
import torch

import crossent

LOGITS = [[2.0, 1.0, 0.0], [0.0, 3.0, -1.0]]
NAMES = ["cat", "dog", "elk"]


class Tokenizer:
    def decode(self, ids):
        (token,) = ids
        return [" the", "\n", "é"][token]


class Array:
    """Another library's."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


def expected(labels, **options):
    labels = torch.tensor(labels)
    return torch.nn.functional.cross_entropy(torch.tensor(LOGITS, dtype=torch.float64), labels, **options).item()


@pytest.mark.parametrize("input", [LOGITS, Array(LOGITS), np.array(LOGITS), torch.tensor(LOGITS)])
@pytest.mark.parametrize("target", [[0, 2], (0, 2), Array([0, 2])])
def test_lists_and_arrays(input, target):
    assert crossent.explain(input, target).result == pytest.approx(expected([0, 2]), abs=1e-6)


def test_lists_as_options():
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = crossent.explain(torch.tensor(LOGITS), [0, 2], weight=[1.0, 2.0, 3.0])
    assert found.result == pytest.approx(expected([0, 2], weight=weight), abs=1e-6)
    hidden, layer = [[1, 2], [0, 1]], [[1.0, 0.0], [0.5, 1.0], [0.0, 2.0]]
    logits = torch.tensor(hidden, dtype=torch.float64) @ torch.tensor(layer, dtype=torch.float64).T
    head = crossent.explain(hidden, layer, [1, 2], function=crossent.linear_cross_entropy)
    assert head.result == pytest.approx(torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2])).item())


def test_whole_numbers_as_logits():
    assert crossent.explain([[2, 1, 0]], [1]).result == pytest.approx(1.4076059644443804)


def test_a_frame_names_its_classes():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(LOGITS, columns=NAMES)
    found = crossent.explain(frame, pandas.Series(["cat", "elk"]))
    assert found.result == pytest.approx(expected([0, 2]))
    assert found.names == dict(enumerate(NAMES))
    assert crossent.explain(pandas.DataFrame(LOGITS), pandas.Series([0, 2])).names == {}


@pytest.mark.parametrize("names", [NAMES, tuple(NAMES), np.array(NAMES), dict(enumerate(NAMES))])
def test_names(names):
    found = crossent.explain(np.array(LOGITS), np.array(["cat", "elk"]), names=names)
    assert found.result == pytest.approx(expected([0, 2]))
    assert "label y = 2 (elk)" in str(found) and "y=elk" in str(found)
    assert "y = </th>" not in found.to_html() and "elk" in found.to_html()
    assert json.loads(found.to_json())["names"] == {"0": "cat", "1": "dog", "2": "elk"}
    assert found.plot()


def test_findings_say_names():
    found = crossent.explain([[0.0, -np.inf, 1.0]], [1], names=NAMES)
    assert "the label's class, 1 (dog), is -inf" in found.findings[0].sentence
    found = crossent.explain([[0.0, -np.inf, 1.0]], [1], names=NAMES, lang="zh")
    assert "1 (dog)" in found.findings[0].sentence
    assert "1 (dog)" not in str(crossent.explain([[0.0, -np.inf, 1.0]], [1]))


def test_names_keep_their_capitals():
    labels = np.arange(64) % 2
    logits = np.where(np.eye(3)[labels] == 1, 6.0, 0.0)
    logits[:2], labels[:2] = [6.0, 0.0, 0.0], 2
    (found,) = crossent.explain(logits, labels, names=["cat", "dog", "Elk"]).findings[-1:]
    assert found.sentence.startswith("Class 2 (Elk) is the label of 3% of the rows")


def test_tokens():
    found = crossent.explain(np.array(LOGITS), np.array([1, 99]), names=Tokenizer())
    assert found.names == {0: "' the'", 1: "'\\n'", 2: "'é'"}
    assert found.rows[1].state == "bad label"


def test_names_are_of_the_classes_shown():
    found = crossent.explain(np.eye(3, 1000), np.arange(3), names=[f"token {i}" for i in range(1000)])
    assert set(found.names) == {c for row in found.rows for c in row.classes}


REFUSED = [
    ((LOGITS, ["cat", "fox"]), {"names": NAMES}, ValueError, "target holds 'fox' in row 1, which is no name of a"),
    ((LOGITS, ["cat", "elk"]), {}, TypeError, "target must hold numbers of classes, or names that are in names"),
    ((LOGITS, [0, 2]), {"names": NAMES[:2]}, ValueError, "names must have one for each of the 3 classes, got 2"),
    ((LOGITS, [0, 2]), {"names": "abc"}, TypeError, "names must be a sequence of names, a mapping from classes"),
    (([[1.0, 2.0], [1.0]], [0, 1]), {}, ValueError, "input must have as many numbers in every row"),
    (({"logits": LOGITS}, [0, 1]), {}, TypeError, "input must be a PyTorch tensor or a NumPy array, got dict"),
    (([["a", "b"]], [0]), {}, TypeError, "input must be float16"),
]


@pytest.mark.parametrize(("call", "options", "error", "message"), REFUSED)
def test_what_is_refused(call, options, error, message):
    with pytest.raises(error, match=message):
        crossent.explain(*call, **options)


def test_command(tmp_path, capsys):
    from crossent.tools.explain.command import run
    from crossent.tools.score.readers import Reading

    (tmp_path / "logits.csv").write_text("cat,dog,elk\n2.5,1.5,0.5\n0.5,3.5,-1.5\n")
    (tmp_path / "labels.csv").write_text("cat\nelk\n")
    files = [str(tmp_path / "logits.csv"), str(tmp_path / "labels.csv")]
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\n")
    for named, wanted in ((None, "2 (elk)"), (names, "2 (three)")):
        assert run(files, Reading(), None, [], None, None, False, {"names": named}) == 0
        assert wanted in capsys.readouterr().out


def test_names_in_a_file(tmp_path):
    from crossent.tools.files import lines_of

    path = tmp_path / "names.txt"
    path.write_text("猫\r\ndog\n\n")
    assert lines_of(path, "--names") == ["猫", "dog"]
    path.write_bytes(b"\xff\xfe")
    for wrong in (path, tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"--names must be a text file, got .*: "):
            lines_of(wrong, "--names")
