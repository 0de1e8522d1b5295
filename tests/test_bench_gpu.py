"""`make gpu` and what `crossent bench` says of a GPU, as far as there need be none."""

import io
import json
import subprocess
import sys
import types
from pathlib import Path
from statistics import median

import pytest
import torch
from rich.console import Console

from benchmarks.gpu import __main__ as program, report, worker
from benchmarks.gpu.cases import CASES, Case
from crossent.tools.bench import limits, report as bench_report, rivals, runner, worker as bench_worker
from crossent.tools.bench.cases import HEAD, case_of

ROOT = Path(__file__).parents[1]
LOSS = case_of((64, 50), "bfloat16", "cross_entropy", "cpu")
FUSED = case_of((32, 8, 50), "float32", HEAD, "cpu")


def shown(function, *arguments, width=120):
    console = Console(file=io.StringIO(), width=width)
    function(console, *arguments)
    return console.file.getvalue()


# What cannot be gone below.


def test_least():
    assert limits.least(LOSS, "evaluation") == {"bytes": 64 * 50 * 2}
    assert limits.least(LOSS, "step") == {"bytes": 2 * 64 * 50 * 2}
    soft = Case("", (6, 5), dtype="float64", soft_targets=True, limits={})
    assert limits.least(soft, "step") == {"bytes": 3 * 6 * 5 * 8}
    assert limits.least(FUSED, "evaluation") == {"flops": 2 * 32 * 8 * 50}
    assert limits.least(FUSED, "step") == {"flops": 6 * 32 * 8 * 50}


@pytest.mark.parametrize("mode", ["evaluation", "step"])
def test_a_copy_moves_as_many_bytes(mode):
    call = limits.copy(LOSS, mode)
    copied = call()
    assert 2 * copied.nbytes == limits.least(LOSS, mode)["bytes"] and (copied == 1).all()


def test_products_are_those_of_the_gradient(monkeypatch):
    """The tensors that are multiplied are those that a head's own step multiplies."""
    arrays = worker.torch_arrays(FUSED)
    hidden, weight, labels = (array.detach() for array in arrays)
    logits = (hidden @ weight.t()).requires_grad_()
    torch.nn.functional.cross_entropy(logits, labels).backward()
    called, real = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *pair, **out: called.append(real(*pair, **out)) or called[-1])
    limits.at_limit(FUSED, "step", arrays)()
    expected = [logits.detach(), logits.grad @ weight, logits.grad.t() @ hidden]
    for ours, exact in zip(called, expected, strict=True):
        torch.testing.assert_close(ours, exact)
    called.clear()
    limits.at_limit(FUSED, "evaluation", arrays)()
    assert len(called) == 1


# `crossent bench --device cuda`


def test_the_limit_is_measured_as_a_rival_is(monkeypatch):
    monkeypatch.setattr(bench_worker, "SECONDS", 0.0)
    for case in (LOSS, FUSED):
        rows = bench_worker.measure(case, rivals.LIMIT, 2)
        assert [row["mode"] for row in rows] == ["evaluation", "step"]
        assert all(row["seconds"] > 0 and row["ratio"] > 0 for row in rows), rows


def test_shares_of_the_limit_are_shown(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    row = {"ours": 2e-3, "seconds": 1e-3, "ratio": 0.5, "quartiles": [0.5, 0.5], "bytes": 0, "our_bytes": 0}
    row |= {"others": 0.0}
    functions = {"cross_entropy": (1000, 1000), HEAD: (1000, 1000, 1000)}
    cases = [case_of(shape, "float32", function, "cuda") for function, shape in functions.items()]
    found = runner.run(
        cases, 2, Console(file=io.StringIO()), {"eager": rivals.RIVALS["eager"]}, lambda *_: [row | {"mode": "step"}]
    )
    assert [row["rival"] for row in found["results"]] == ["eager", "eager", "limit", "limit"]
    text = shown(bench_report.show, found)
    assert "step: crossent makes 4 GB/s, 50% of what a copy of as many bytes makes (8 GB/s)" in text
    assert "step: crossent makes 3 TFLOP/s, 50% of what the bare matrix products makes (6 TFLOP/s)" in text
    assert json.loads(json.dumps(found))["cases"][0]["least"] == {
        "evaluation": {"bytes": 4e6}, "step": {"bytes": 8e6}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (LOSS, "runs on a GPU"),
        (case_of((2, 5, 3), "float32", "cross_entropy", "cuda"), "takes two axes alone"),
        (case_of((4, 5), "float64", "cross_entropy", "cuda"), "takes no float64"),
        (case_of((4, 5), "bfloat16", "cross_entropy", "cuda"), "not installed: pip install quack-kernels"),
    ],
)
def test_why_quack_is_not_measured(case, reason):
    assert rivals.RIVALS["quack"].why_not(case).startswith(reason)


@pytest.mark.parametrize("case", [LOSS, FUSED], ids=["loss", "head"])
def test_quack_is_called_by_its_names(case, monkeypatch):
    """As its 0.6 has them; it needs a GPU to be imported."""
    package, losses, heads = map(types.ModuleType, ("quack", "quack.cross_entropy", "quack.linear_cross_entropy"))
    losses.cross_entropy, heads.chunked_linear_cross_entropy = object(), object()
    for module in (package, losses, heads):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    expected = heads.chunked_linear_cross_entropy if case.head else losses.cross_entropy
    assert rivals.RIVALS["quack"].build(case) is expected


# `make gpu`


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert program.main([]) == 0
    assert capsys.readouterr().out == "skipped: there is no GPU\n" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_can_be_measured(case, monkeypatch):
    monkeypatch.setattr(rivals, "compiled", lambda function: function)  # which takes long
    small = case.small()
    assert small.function == case.function and len(small.shape) == len(case.shape) and small.size < 10_000
    rows = worker.measure(small, 2)
    for row in rows:
        assert ("value" in row) != ("missing" in row) and row["seconds"] > 0 and row["least"]
    found = {row["name"].partition(": ")[2]: row for row in rows}
    assert found.keys() == case.limits.keys() and found["syncs"]["missing"] == "there is no GPU"
    measured = [row["value"] for row in rows if "value" in row]
    assert len(measured) >= 1 + (case.shape == (8192, 32000)) and min(measured) > 0
    assert json.loads(json.dumps(rows)) == rows


def test_read_is_the_quicker_way(monkeypatch):
    samples = {"read by a sum": [3.0, 1.0, 2.0], "read by half a copy": [5.0, 0.5, 0.7], "step": [1.0, 1.0, 1.0]}
    monkeypatch.setattr(worker, "interleaved", lambda *_: samples)
    assert worker.times(CASES[0], [{}], 3)["read"] == samples["read by half a copy"]
    found = worker._proportion("step / step", samples, {}, {})
    assert found == {"value": 1.0, "times": {"step": 1.0}}
    peaks = {"step": 3, "liger": 4}
    assert worker._proportion("memory of step / memory of liger", samples, peaks, {}) == {"value": 0.75}
    assert worker._proportion("liger / step", samples, {}, {"liger": "not there"}) == {"missing": "not there"}


def test_calls_take_turns():
    order = []
    call = worker.in_turn([lambda: order.append(0), lambda: order.append(1), lambda: order.append(2)])
    for _ in range(5):
        call()
    assert order == [0, 1, 2, 0, 1]


def results(**more):
    row = {"name": "8 x 5, float32: copy / step", "seconds": 1e-3, "value": 0.7, "at_least": 0.8, "aim": 0.9}
    row["least"] = {"bytes": 2e9}
    head = {"name": "head, 8 x 4 x 6, bfloat16: step / products", "seconds": 1e-3, "value": 1.0, "at_most": 1.06}
    head["least"] = {"flops": 3e12}
    found = [row, row | {"name": "8 x 5, float32: liger / step", "missing": "not installed"}, head]
    checks = [{"name": "tests", "outcome": "3 passed", "failed": False}]
    numbers = {"date": "today", "machine": {"cpu": "a CPU", "gpu": "a GPU"}, "versions": {"torch": "2.13.0"}}
    return numbers | {"checks": checks, "results": found, "errors": ["what: failed"]} | more


def test_the_table():
    rows = report.sheet(results()).rows
    assert rows[0] == ("8 x 5, float32", "copy / step", "0.7 (missed)", "at least 0.8", "0.9", "1.00 ms", "2000 GB/s")
    assert rows[1][:3] == ("", "liger / step", "- (not installed)")
    assert rows[2][2:] == ("1", "at most 1.06", "", "1.00 ms", "3000 TFLOP/s")
    text = shown(report.show, results())
    for part in ("tests: 3 passed", "0.7 (missed)", "what: failed", "a GPU, a CPU. torch 2.13.0. today."):
        assert part in text, part
    page = report.markdown(results()).splitlines()
    assert page[0] == "a GPU, a CPU. torch 2.13.0. today." and "- tests: 3 passed" in page
    table = [line for line in page if line.startswith("|")]
    assert len(table) == 5 and len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize(
    ("source", "outcome", "failed"),
    [
        ("print('3 passed in 1s')", "3 passed in 1s", False),
        ("print('FAILED tests/a.py'); print('1 failed'); raise SystemExit(1)", "1 failed", True),
        ("import time; time.sleep(30)", "not done after 1 seconds", True),
    ],
)
def test_checks_say_what_came_out(source, outcome, failed):
    found = program.check("tests", [sys.executable, "-c", source], 1.0 if "sleep" in source else 60.0)
    assert (found["outcome"], found["failed"]) == (outcome, failed)
    assert found.get("said") == (["FAILED tests/a.py"] if outcome == "1 failed" else None)


@pytest.mark.parametrize("there", [None, "/usr/bin/compute-sanitizer"])
def test_what_is_checked(there, monkeypatch):
    """Files that exist, and by pytest's own reading tests that do, the latter under the sanitizer if it is there."""
    monkeypatch.setattr(program.shutil, "which", lambda name: there)
    monkeypatch.setattr(program, "check", lambda name, command, seconds, **more: {"name": name, "command": command})
    tests, accesses = program.checks(program.Clock(8.0))
    assert [part for part in tests["command"] if part.endswith(".py")] == list(program.TESTS)
    assert all((ROOT / path).exists() for path in program.TESTS)
    if not there:
        assert accesses["outcome"] == "not run: there is no compute-sanitizer"
        return
    found = accesses["command"][accesses["command"].index(sys.executable) :]
    collected = subprocess.run([*found, "--collect-only"], cwd=ROOT, capture_output=True, text=True)
    assert collected.returncode == 0 and 5 < collected.stdout.count("test_many_classes") < 50, collected.stdout


def test_nothing_is_begun_after_the_time():
    clock = program.Clock(0.0)
    assert clock.left(60) == 0.0 and 0 < program.Clock(1.0).left(10) <= 10 and 50 < program.Clock(1.0).left(90) <= 60
    assert program.check("tests", ["no such command"], clock.left(60))["outcome"] == "not run: the time is up"
    chosen = program.arguments(["--case", "32 x 10"])
    rows, errors = program.measured(chosen, clock, Console(file=io.StringIO()))
    assert not rows and errors == ["32 x 10, float32: not measured: the time is up"]


def test_a_dry_run(tmp_path):
    """Of a loss and a head, with the kernels of a GPU in Triton's interpreter."""
    pytest.importorskip("triton", minversion="3.7")
    chosen = "--case", "32 x 10,", "--case", "head, 8192 x 2048", "--output", str(tmp_path)
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", *chosen]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["name"].partition(", ")[0] for row in found["results"]] == ["32 x 10"] * 2 + ["head"] * 2
    assert not found["errors"] and (tmp_path / "gpu.md").read_text() == report.markdown(found)
    assert median(row["value"] for row in found["results"] if "value" in row) > 0
