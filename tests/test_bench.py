"""`crossent bench`: what is measured, what is said of what is not, and the files."""

import io
import json
import signal
import subprocess
import sys
from math import isclose
from time import perf_counter, process_time

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import crossent
from crossent.tools import commands
from crossent.tools.bench import calls, command, machine, memory, plot, report, runner, worker
from crossent.tools.bench.cases import HEAD, Case, case_of
from crossent.tools.bench.rivals import RIVALS, Rival
from crossent.tools.bench.timing import compared, interleaved

LOSS = case_of((64, 50), "float32", "cross_entropy", "cpu")
IMAGES = case_of((2, 5, 3, 4), "float32", "cross_entropy", "cpu")
FUSED = case_of((32, 8, 50), "float32", HEAD, "cpu")
MEASURED = {"ours", "seconds", "ratio", "quartiles", "rounds", "bytes", "our_bytes", "others", "mode"}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(worker, "SECONDS", 0.0)


def stub(build, refuses=lambda case: "", module="torch", arrays="torch"):
    return Rival("a stub", module, "stub-package", build, arrays, refuses=refuses)


def torch_loss(case):
    return torch.nn.functional.cross_entropy


def run(cases, rivals, measure=None):
    in_this_process = measure or (lambda case, name, rounds: worker.measure(case, rivals[name], rounds))
    return runner.run(cases, 2, Console(file=io.StringIO()), rivals, in_this_process)


def shown(results, width):
    console = Console(file=io.StringIO(), width=width)
    report.show(console, results)
    return console.file.getvalue()


def why_not(name, case):
    return RIVALS[name].why_not(case)


def in_dtype(case, dtype):
    return case_of(case.shape, dtype, case.function, "cpu")


COMPARED = [
    (name, case)
    for case in [in_dtype(LOSS, "bfloat16"), in_dtype(LOSS, "float64"), LOSS, IMAGES, FUSED]
    for name, rival in RIVALS.items()
    if name != "compile" and not rival.why_not(case)
]


@pytest.mark.parametrize(("name", "case"), COMPARED, ids=lambda value: getattr(value, "name", value))
def test_rivals_have_the_loss_of_crossent(name, case):
    mine, theirs = worker.sides(case, RIVALS[name])
    with torch.no_grad():
        own, other = (float(side.function(*side.arrays)) for side in (mine, theirs))
    assert isclose(own, other, rel_tol=1e-2 if case.dtype == "bfloat16" else 1e-5)
    theirs.timed(theirs.function, RIVALS[name].modes[-1], theirs.arrays)()
    assert all(getattr(array, "grad", None) is None for array in theirs.arrays), "gradients are freed"


def test_sides_are_of_the_same_numbers():
    optax = Rival("", "torch", "", lambda case: lambda *arrays: arrays, arrays="jax")
    pytest.importorskip("jax")
    mine, theirs = worker.sides(FUSED, optax)
    for own, other in zip(mine.arrays, theirs.arrays, strict=True):
        np.testing.assert_array_equal(own.detach().numpy(), np.asarray(other))


def test_a_real_run_of_torch_in_a_process_of_its_own_and_of_scipy_in_this_one():
    rivals = {name: RIVALS[name] for name in ("eager", "scipy", "chunked")}

    def measure(case, name, rounds):
        return (
            runner.in_a_process(case, name, rounds) if name == "eager" else worker.measure(case, rivals[name], rounds)
        )

    results = run([LOSS], rivals, measure)
    assert [(row["rival"], row["mode"]) for row in results["results"]] == [
        ("eager", "evaluation"), ("eager", "step"), ("scipy", "evaluation"),
    ]  # fmt: skip
    for row in results["results"]:
        assert row.keys() == MEASURED | {"case", "rival"}, row
        assert row["seconds"] > 0 and row["ours"] > 0 and row["rounds"] >= 2
        low, high = row["quartiles"]
        assert low <= row["ratio"] <= high
    assert results["not_measured"] == [{"case": LOSS.name, "rival": "chunked", "reason": "has the fused head alone"}]
    assert results["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert results["versions"]["numpy"] == np.__version__
    assert results["machine"]["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(results)) == json.loads(json.dumps(results | {"interrupted": False}))


def test_interleaved_takes_turns_and_compared_is_of_pairs():
    order = []
    names = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    samples = interleaved(names, 4, 0.0)
    assert {len(found) for found in samples.values()} == {4} and order.count("a") > 4
    found = compared([1.0, 2.0, 4.0], [3.0, 4.0, 4.0])
    assert found["ratio"] == 2.0 and found["ours"] == 2.0 and found["seconds"] == 4.0 and found["rounds"] == 3


@pytest.mark.skipif(memory.extra_peak(lambda: None) is None, reason="the system does not say")
@pytest.mark.parametrize("megabytes", [4, 48])
def test_extra_peak_is_what_the_call_takes(megabytes):
    found = memory.extra_peak(lambda: np.ones(megabytes * 10**6, np.int8))
    assert megabytes * 1e6 * 0.95 <= found <= megabytes * 1e6 + 2e6
    assert memory.extra_peak(lambda: None) < 1e6


def test_extra_peak_where_the_system_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "RESET_PEAK", str(tmp_path / "none"))
    assert memory.extra_peak(lambda: None) is None
    results = run([LOSS], {"stub": stub(torch_loss)})
    assert [row["bytes"] for row in results["results"]] == [None, None]
    assert " - " in shown(results, 80)
    plot.draw(tmp_path / "plot.png", results)


def broken(case):
    raise RuntimeError("\nit is\nbroken")


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (broken, "RuntimeError: it is"),
        (lambda case: lambda logits, labels: 2 * torch_loss(case)(logits, labels), "ValueError: a loss of "),
        (lambda case: lambda logits, labels: torch_loss(case)(logits, labels) * float("nan"), "a loss of nan where"),
    ],
)
def test_a_rival_that_fails_is_reported_and_the_rest_goes_on(build, error):
    rivals = {"bad": stub(build), "good": stub(torch_loss)}
    results = run([LOSS], rivals)
    bad = [row for row in results["results"] if row["rival"] == "bad"]
    assert [row["mode"] for row in bad] == ["evaluation", "step"] and all(error in row["error"] for row in bad)
    assert [row.keys() for row in results["results"][2:]] == [MEASURED | {"case", "rival"}] * 2
    assert "Failed: a stub, 64 x 50, float32, step:" in shown(results, 120)


def dies(how):
    def last_line(*_, **__):
        raise how

    return last_line


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (subprocess.CalledProcessError(-signal.SIGKILL, "", stderr=""), "killed by signal 9"),
        (subprocess.CalledProcessError(1, "", stderr="a\nNo memory\n\n"), "ended with status 1: No memory"),
        (subprocess.TimeoutExpired("", 300), "not done after 300 seconds"),
    ],
)
def test_a_process_that_dies(how, error, monkeypatch):
    monkeypatch.setattr(runner, "last_line", dies(how))
    assert runner.in_a_process(LOSS, "eager", 2) == [{"error": error}]
    results = run([LOSS], {"eager": RIVALS["eager"]}, runner.in_a_process)
    assert f"Failed: torch, eager, 64 x 50, float32: {error}" in shown(results, 120)


def test_a_child_says_its_last_line():
    assert runner.last_line("this", quiet=True).endswith(
        "Namespaces are one honking great idea -- let's do more of those!"
    )
    with pytest.raises(subprocess.CalledProcessError) as found:
        runner.last_line("no_such_module_at_all", quiet=True)
    assert "no_such_module_at_all" in found.value.stderr


def test_interrupted_runs_say_what_they_had():
    done = []

    def measure(case, name, rounds):
        if done:
            raise KeyboardInterrupt
        done.append(name)
        return [{"mode": "step", "error": "none"}]

    results = run([LOSS], {"first": stub(torch_loss), "second": stub(torch_loss)}, measure)
    assert results["interrupted"] and [row["rival"] for row in results["results"]] == ["first"]
    assert results["not_measured"] == [{"case": LOSS.name, "rival": "second", "reason": "interrupted"}]


def test_what_cannot_be_measured_is_listed_with_the_reason(monkeypatch):
    rivals = {
        "absent": stub(broken, module="no_such_module_at_all"),
        "picky": stub(broken, lambda case: "takes no such thing" if case.head else "takes nothing"),
        "large": stub(torch_loss),
    }
    monkeypatch.setattr(runner, "available", lambda: 6 * LOSS.size - 1)
    results = run([LOSS, FUSED], rivals, lambda *_: [])
    reasons = {(row["rival"], row["case"]): row["reason"] for row in results["not_measured"]}
    assert reasons == {
        ("absent", LOSS.name): "not installed: pip install stub-package",
        ("absent", FUSED.name): "not installed: pip install stub-package",
        ("picky", LOSS.name): "takes nothing",
        ("picky", FUSED.name): "takes no such thing",
        ("large", LOSS.name): "takes about 0.0 GB of memory, and 0.0 GB are free",
    }
    text = shown(results, 120)
    assert "all cases" in text and "takes no such thing" in text


def on_gpu(case):
    return case_of(case.shape, case.dtype, case.function, "cuda")


@pytest.mark.parametrize(
    ("name", "case", "reason"),
    [
        ("chunked", LOSS, "has the fused head alone"),
        ("scipy", FUSED, "has no fused head"),
        ("sklearn", FUSED, "has no fused head"),
        ("scipy", in_dtype(LOSS, "bfloat16"), "takes no bfloat16"),
        ("sklearn", IMAGES, "takes two axes alone"),
        ("scipy", on_gpu(LOSS), "measured on the CPU alone"),
        ("optax", on_gpu(LOSS), "measured on the CPU alone"),
        ("liger", LOSS, "runs on a GPU"),
        ("cce", FUSED, "runs on a GPU"),
        ("liger", on_gpu(IMAGES), "takes two axes alone"),
        ("cce", on_gpu(LOSS), "has the fused head alone"),
        ("eager", on_gpu(FUSED), ""),
        ("compile", LOSS, ""),
    ],
)
def test_reasons(name, case, reason):
    found = why_not(name, case)
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_old_pytorch_has_no_chunked_head(monkeypatch):
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    assert "has no chunked linear_cross_entropy" in why_not("chunked", FUSED)


def test_cases():
    found = command.cases(["8x5", "8x5", "2x5x3"], ["8x4X6"], ["float32", "bfloat16"], "cpu")
    assert [(case.name, case.shape, case.function, case.dtype) for case in found] == [
        ("8 x 5, float32", (8, 5), "cross_entropy", "float32"),
        ("8 x 5, bfloat16", (8, 5), "cross_entropy", "bfloat16"),
        ("2 x 5 x 3, float32", (2, 5, 3), "cross_entropy", "float32"),
        ("2 x 5 x 3, bfloat16", (2, 5, 3), "cross_entropy", "bfloat16"),
        ("head, 8 x 4 x 6, float32", (8, 4, 6), HEAD, "float32"),
        ("head, 8 x 4 x 6, bfloat16", (8, 4, 6), HEAD, "bfloat16"),
    ]
    assert [case.size for case in found] == [160, 80, 120, 60, 192, 96]
    default = command.cases([], [], ["float32"], "cpu")
    assert {case.function for case in default} == {"cross_entropy", HEAD}
    assert command.cases([], ["8x4x6"], ["float32"], "cpu")[0].function == HEAD


def test_arrays_take_every_option():
    case = Case("", (6, 5, 2), class_weights=True, soft_targets=True)
    logits, target, weight = calls.torch_arrays(case)
    assert logits.requires_grad and not target.requires_grad and target.shape == (6, 5, 2) and weight.shape == (5,)
    torch.testing.assert_close(target.sum(1), torch.ones(6, 2))
    assert [array.shape for array in calls.torch_arrays(Case("", (6, 5), function="softmax"))] == [(6, 5)]
    call = calls.of_arrays(
        lambda x: crossent.softmax(x, 1), "step", calls.torch_arrays(Case("", (6, 5), function="softmax"))
    )
    call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "8"], "--shape must have rows and classes"),
        (["--shape", "8x0"], "--shape must have rows and classes, at least one of each, got 8x0"),
        (["--shape", "8xa"], "--shape must be whole numbers with an x between them, such as 2048x32000, got '8xa'"),
        (["--shape", "-8x5"], "got '-8x5'"),
        (["--head", "8x5"], "--head must be tokens x features x classes as whole numbers"),
        (["--dtype", "int8"], "--dtype must be one of float16, bfloat16, float32, float64, got 'int8'"),
        (["--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
        (["--plot", "plot.txt"], "--plot must end in one of"),
        (["--plot", "no/such/plot.png"], "--plot must be a file to write, got no/such/plot.png: there is no folder"),
        (["--save", "."], "--save must be a file to write, got .: it is a folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capfd):
    result = CliRunner().invoke(commands._application(), ["bench", *arguments])
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("crossent: ") and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    with pytest.raises(ValueError, match="PyTorch finds no GPU"):
        command.cases([], [], ["float32"], "cuda")


def fake(monkeypatch):
    """Every rival on every case, without measuring."""
    row = {"ours": 1e-3, "seconds": 2e-3, "ratio": 2.0, "quartiles": [1.9, 2.1], "rounds": 5, "bytes": 10**8}
    row |= {"others": 0.0}
    rows = [row | {"mode": "evaluation", "our_bytes": 0}, row | {"mode": "step", "ratio": 0.5, "our_bytes": 10**6}]
    monkeypatch.setattr(runner.run, "__defaults__", (RIVALS, lambda case, name, rounds: rows))


def test_files_and_json(monkeypatch, tmp_path):
    fake(monkeypatch)
    saved, drawn = tmp_path / "results.json", tmp_path / "bars.png"
    arguments = ["bench", "--shape", "8x5", "--head", "4x3x5", "--save", str(saved), "--plot", str(drawn), "--json"]
    result = CliRunner().invoke(commands._application(), arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads(saved.read_text())
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bars.png", "results.json"]


def test_a_plot_that_fails_leaves_the_old_one(monkeypatch, tmp_path):
    old = tmp_path / "bars.png"
    old.write_text("old")

    def fails(self, file, dpi):
        file.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(plot.FigureCanvasAgg, "print_figure", fails)
    results = run([LOSS], {"stub": stub(torch_loss)}, lambda *_: [])
    with pytest.raises(ValueError, match="bars.png: disk full"):
        plot.draw(old, results)
    assert [path.name for path in tmp_path.iterdir()] == ["bars.png"] and old.read_text() == "old"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit(width, monkeypatch):
    """Lines break between numbers and units, and nothing is cut off."""
    fake(monkeypatch)
    shape, head = command.SHAPES[0], command.HEADS[0]
    results = runner.run(command.cases([shape], [head], ["float32"], "cpu"), 5, Console(file=io.StringIO()))
    text = shown(results, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    names = "torch, eager", "torch, compiled", "torch, chunked", "1.9-2.1", "2.0", "0.50", "100", "1.0", "evaluation"
    for name in names if width == 60 else (*names, "2.0 x", "0.50 x", "2.00 ms"):
        assert name in text, name


def measured(quartiles, others=0.0):
    times = {"ours": 1e-3, "seconds": 0.75, "ratio": 751.0, "quartiles": quartiles, "others": others}
    return times | {"rounds": 3, "bytes": 0, "our_bytes": 0, "mode": "step"}


@pytest.mark.parametrize(
    ("quartiles", "others", "cell", "warnings"),
    [
        ([740.0, 760.0], 0.0, "751 x", []),
        ([12.0, 751.0], 0.0, "noisy", ["1 of 1 results are noisy", "Measure again"]),
        ([-3.0, 5.0], 0.0, "noisy", ["1 of 1 results are noisy"]),
        ([740.0, 760.0], 1.3, "751 x", ["other programs kept up to 1.3 of 2 cores busy", "Measure again"]),
        ([12.0, 751.0], 1.3, "noisy", ["1 of 1", "1.3 of 2 cores", "Measure again when nothing else runs"]),
    ],
)
def test_a_busy_machine_is_told_of(quartiles, others, cell, warnings, tmp_path, monkeypatch):
    """Where rounds differ by half and more their median is not shown, and whoever else was at work is named."""
    monkeypatch.setattr(machine, "cores", lambda: 2)
    rivals = {"stub": stub(torch_loss)}
    results = run([LOSS], rivals, lambda *_: [measured(quartiles, others)])
    text = shown(results, 300)
    assert f" {cell} " in text and all(warning in text for warning in warnings)
    assert text.count("Warning: ") == len(report.warnings(results)) == (cell == "noisy") + (others > 0)
    assert ("751 x" in text) == (cell == "751 x")
    plot.draw(tmp_path / "plot.png", results)


@pytest.mark.skipif(not machine.work_of_others() > 0, reason="the system does not say")
def test_the_work_of_others_is_not_ours():
    """That of a process beside this one, which itself works all the time: together no more than there are cores."""
    before, began, own = machine.work_of_others(), perf_counter(), process_time()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        while perf_counter() - began < 0.5:
            pass
        process.kill()
    taken, own = perf_counter() - began, process_time() - own
    others = machine.work_of_others() - before
    assert own > 0 and 0.1 * taken < others < machine.cores() * (taken + 0.05) - own


def test_progress_where_no_terminal_is():
    said = Console(file=io.StringIO(), width=20)
    with runner.progress(said, 2) as begins:
        begins("torch, eager: 2048 x 32000, float32")
        begins("[SciPy]")
    assert said.file.getvalue() == "1 of 2: torch, eager: 2048 x 32000, float32\n2 of 2: [SciPy]\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.50 s"), (0.1234, "123 ms"), (2e-3, "2.00 ms"), (3.456e-5, "34.6 µs"), (250.0, "250 s")],
)
def test_times_are_readable(seconds, text):
    assert report.in_time(seconds) == text


def test_help_is_quick_to_load():
    source = "import sys\nfrom crossent.tools import commands\nsys.argv = ['crossent', 'bench', '--help']\n"
    source += (
        "try:\n    commands.main()\nfinally:\n    assert not {'torch', 'numba', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0 and "--shape" in done.stdout, done.stderr
