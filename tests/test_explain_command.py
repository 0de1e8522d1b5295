"""`crossent explain`: what it prints and writes, its exit codes, and that it leaves no half-written file."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import crossent
from crossent.tools.explain import command
from crossent.tools.files import replacing

LOGITS, LABELS = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32), np.arange(9) % 5


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "logits.npy", LOGITS)
    np.savez(tmp_path / "labels.npz", labels=LABELS)
    return tmp_path / "logits.npy", tmp_path / "labels.npz"


def test_worked_example_is_that_of_the_lesson():
    torch.manual_seed(42)
    logits, labels = command.worked_example()
    np.testing.assert_array_equal(logits, torch.randn(3, 4))
    assert labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_worked_example(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert called() == 0
    captured = capsys.readouterr()
    assert "mean = sum of the losses / rows that count = 6.38249 / 3 = 2.1275" in captured.out and not captured.err
    assert max(map(len, captured.out.splitlines())) <= int(columns)


def test_json(files, capsys):
    assert called(*files, "--json", "--row", 4, "--row", -1, "--label-smoothing", 0.1, "--ignore-index", 2) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["result"] == float(crossent.cross_entropy(LOGITS, LABELS, label_smoothing=0.1, ignore_index=2))
    assert [row["position"] for row in found["rows"]] == [4, 8]


def test_pages_and_plots(files, tmp_path):
    page, plot = tmp_path / "page.html", tmp_path / "plot.png"
    assert called(*files, "--html", page, "--plot", plot, "--reduction", "none", "--dim", "1") == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>") and plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.npz", "logits.npy", "page.html", "plot.png"]


def test_errors_in_the_data_are_exit_code_1(files, tmp_path, capsys):
    np.save(tmp_path / "bad.npy", LABELS + 1)
    assert called(files[0], tmp_path / "bad.npy") == 1
    captured = capsys.readouterr()
    assert "one-based" in captured.out and not captured.err


def broken(tmp_path, files):
    logits, labels = files
    truncated, text, objects, two = (tmp_path / f"{name}.npy" for name in ("cut", "text", "objects", "two"))
    truncated.write_bytes(logits.read_bytes()[:150])
    text.write_text("not an array")
    np.save(objects, np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=LOGITS, b=LOGITS)
    (tmp_path / "half.npz").write_bytes((labels.read_bytes())[:60])
    two = tmp_path / "two.npz"
    return {
        "one file": ([logits], "holds no labels beside the logits"),
        "a pattern without quotes": ([logits, logits, labels], "expected LOGITS and LABELS"),
        "two scales": ([logits, labels, "--logits", "--probabilities"], "exclude each other"),
        "missing": ([tmp_path / "none.npy", labels], "none.npy: there is no such file"),
        "truncated": ([truncated, labels], "cut.npy: "),
        "text": ([text, labels], "text.npy: "),
        "pickle": ([objects, labels], "objects.npy: "),
        "two arrays": ([two, labels], "two.npz: holds 2 entries, name one of them as its key: a, b"),
        "half an archive": ([logits, tmp_path / "half.npz"], "half.npz: "),
        "shapes": ([logits, logits.with_name("short.npy")], "9 rows of logits do not fit the 3 labels"),
        "row": ([logits, labels, "--row", "9"], "rows must be between -9 and 8"),
        "option": ([logits, labels, "--reduction", "max"], "reduction must be one of"),
        "no folder": ([logits, labels, "--html", tmp_path / "no" / "page.html"], "there is no folder"),
        "a file that is read": ([logits, labels, "--html", labels], "must be another file than those that are read"),
        "no format": ([logits, labels, "--plot", tmp_path / "plot.what"], "plot.what: "),
    }


def test_bad_input_is_one_line_and_exit_code_2(files, tmp_path, capsys):
    np.save(tmp_path / "short.npy", LABELS[:3])
    cases = broken(tmp_path, files)
    before = sorted(tmp_path.iterdir())
    for name, (arguments, message) in cases.items():
        done = called(*arguments)
        assert done == 2, name
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and not captured.out, (name, captured)
    assert sorted(tmp_path.iterdir()) == before


def called(*arguments):
    """In this process, which has paid for its imports."""
    from crossent.tools.commands import _application

    try:
        _application()(["explain", *map(str, arguments)])
    except SystemExit as stopped:
        return stopped.code


def test_nothing_half_written(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("old")
    with pytest.raises(ValueError, match="page.html: No space left"), replacing(page) as part:
        part.write_text("half")
        raise OSError(28, "No space left on device")
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]


def test_needs_no_torch():
    source = "import sys; sys.modules['torch'] = None\n"
    source += "from crossent.tools.commands import _application; _application()(['explain'])"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "2.1275" in done.stdout, done.stderr


def test_help_loads_nothing_heavy():
    source = """
import sys
from crossent.tools.commands import _application
try:
    _application()(["explain", "--help"])
except SystemExit:
    pass
heavy = {"torch", "numpy", "numba", "matplotlib", "jinja2"} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_every_format_that_score_reads(tmp_path, capsys):
    torch.save({"x": torch.from_numpy(LOGITS).bfloat16(), "y": torch.from_numpy(LABELS)}, tmp_path / "both.pt")
    np.savetxt(tmp_path / "labels.csv", LABELS, fmt="%d")
    both = tmp_path / "both.pt"
    for arguments in ([both, both, "--labels-key", "y"], [both, tmp_path / "labels.csv"]):
        assert called(*arguments, "--key", "x", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        expected = crossent.cross_entropy(torch.from_numpy(LOGITS).bfloat16(), torch.from_numpy(LABELS))
        assert found["dtype"] == "bfloat16" and found["result"] == float(expected)
