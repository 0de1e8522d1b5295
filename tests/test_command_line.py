"""What all commands have in common: an output that fails, extras that are missing, the version."""

import io
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from html import escape
from pathlib import Path

import numpy as np
import pytest
from command_line import typed, write_predictions
from hiding import run_without, typed_without
from test_bench import fake

import crossent
from crossent.tools import commands
from crossent.tools.output import guarded

ROOT = Path(__file__).parents[1]
FULL = Path("/dev/full")
COMMANDS = (
    "",
    "--help",
    "--version",
    "score --help",
    "score logits.npy labels.npy",
    "score logits.npy labels.npy --json",
    "explain",
    "explain --json",
    "plan softmax --shape 8x5",
    "plan softmax --shape 8x5 --library numpy --json",
    "bench --shape 8x5",
    "bench --shape 8x5 --json",
    "demo",
)


@pytest.fixture
def at_a_terminal(tmp_path, monkeypatch):
    """With files to score, and a bench and a demo that take no time."""

    def part(console, output=None):
        console.print("Shown.")
        return []

    write_predictions(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    fake(monkeypatch)
    for name in ("worked_example", "training", "large_logits", "language_model"):
        monkeypatch.setattr(f"crossent.tools.demo.{name}.show", part)


def ended(command, output, monkeypatch):
    """The exit status with this standard output, and what was said on standard error, but for how far it is."""
    said = io.StringIO()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as status:
        patch.setattr(sys, "argv", ["crossent", *shlex.split(command)])
        patch.setattr(sys, "stderr", said)
        patch.setattr(sys, "stdout", output)
        commands.main()
    return status.value.code, re.sub(r"^\d+ of \d+: .*\n", "", said.getvalue(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_fails(command, at_a_terminal, tmp_path, monkeypatch):
    """A full disk and a closed output are a line and status 2; a reader that has gone is status 141 without a word."""
    with open(tmp_path / "printed.txt", "w", encoding="utf-8") as output:
        status, said = ended(command, output, monkeypatch)
    printed = (tmp_path / "printed.txt").read_text(encoding="utf-8")
    assert (status, said) == (0, "") and printed.strip()
    if "bench" not in command:  # whose tables tell the time
        assert printed == typed(f"crossent {command}")[1]
    assert ended(command, None, monkeypatch) == (2, "crossent: standard output: it is closed\n")
    for buffering in (1, -1):
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, "w", buffering) as output:
            assert ended(command, output, monkeypatch) == (141, "")
        if FULL.exists():
            with open(FULL, "w", buffering) as output:
                assert ended(command, output, monkeypatch) == (
                    2,
                    "crossent: standard output: No space left on device\n",
                )


def test_an_output_that_fails_in_another_thread(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)

    def says():
        with pytest.raises(SystemExit):
            print("a line")

    with open(writing, "w", 1) as output, pytest.raises(SystemExit) as status:
        monkeypatch.setattr(sys, "stdout", output)
        with guarded():
            thread = threading.Thread(target=says)
            thread.start()
            thread.join()
    assert status.value.code == 141


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("crossent explain --json > /dev/full", "crossent: standard output: No space left on device\nstatus 2\n"),
        ("crossent --help >&-", "crossent: standard output: it is closed\nstatus 2\n"),
        ("crossent explain --json | true", "status 141\n"),
        ("crossent explain no labels 2> /dev/full", "status 2\n"),
        ("crossent explain no labels 2>&-", "status 2\n"),
        ("crossent --version >&- 2>&-", "status 2\n"),
        ("crossent demo --output /proc/none", "crossent: /proc/none: No such file or directory\nstatus 2\n"),
    ],
)
def test_in_a_shell(line, said, tmp_path):
    program = f'crossent() {{ "{sys.executable}" -m crossent "$@"; }}; {line}; echo "status ${{PIPESTATUS[0]}}" >&2'
    done = subprocess.run(
        ["bash", "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr == said and not done.stdout


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", ["", *commands.COMMANDS])
def test_help_fits(command, width, monkeypatch):
    """Nothing is cut off, lines are no wider than the terminal, and flags take no value."""
    monkeypatch.setenv("COLUMNS", str(width))
    status, text = typed(f"crossent {command} --help")
    assert status == 0 and max(map(len, text.splitlines())) <= width
    assert "..." not in text.replace("]...", "").replace("}...", "").replace(",...", "").replace("DTYPE ...", "")
    assert "bool" not in text and "…" not in text and "\b" not in text
    for purpose in commands.COMMANDS if not command else ():
        assert re.sub(r"\s+", " ", commands._purpose(commands.COMMANDS[purpose])) in re.sub(r"\s+", " ", text)


def test_version():
    assert typed("crossent --version") == (0, f"crossent {crossent.__version__}\n")


def extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["optional-dependencies"]


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_each_command_names_its_own_extra(command):
    assert {"rich", "typer"} <= {requirement.partition(">")[0] for requirement in extras()[command]}
    done = typed_without(["rich", "typer"], command)
    wanted = f"crossent: {command} needs typer, rich: pip install crossent[{command}]\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", wanted)


def test_help_and_version_without_any_extra():
    hidden = ["click", "jinja2", "matplotlib", "numba", "numpy", "rich", "torch", "typer"]
    done = typed_without(hidden, "--help")
    assert done.returncode == 0 and not done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 96
    for command in commands.COMMANDS:
        assert f"crossent {command}: pip install crossent[{command}]\n" in done.stdout
    assert "Score stored predictions: NLL, accuracy, calibration" in done.stdout
    assert typed_without(hidden).stdout == done.stdout
    assert typed_without(hidden, "--version").stdout == f"crossent {crossent.__version__}\n"
    unknown = typed_without(hidden, "scroe")
    assert unknown.returncode == 2 and unknown.stderr.startswith("crossent: there is no command 'scroe'")


OPTIONAL = ["jinja2", "matplotlib", "torch", "sklearn", "scipy", "tokenizers", "safetensors", "pyarrow"]


def test_a_command_needs_no_more_than_it_uses(tmp_path):
    write_predictions(tmp_path)
    files = str(tmp_path / "logits.npy"), str(tmp_path / "labels.npy")
    for command in (["score", *files, "--json"], ["explain", *files, "--json"], ["explain"]):
        done = typed_without(OPTIONAL, *command)
        assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("score x y --html z", "score --html needs jinja2, matplotlib: pip install crossent[score]"),
        ("explain --html z", "explain --html needs jinja2: pip install crossent[explain]"),
        ("explain --plot z", "explain --plot needs matplotlib: pip install crossent[explain]"),
        ("bench", "bench needs torch: pip install crossent[bench]"),
        ("demo", "demo needs torch, sklearn, matplotlib, tokenizers: pip install crossent[demo]"),
        ("plan softmax --shape 8", "plan --library torch needs torch: pip install crossent[torch]"),
    ],
)
def test_what_is_missing_is_one_line_and_status_2(command, said):
    done = typed_without(OPTIONAL, *shlex.split(command))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"crossent: {said}\n")


def test_an_explanation_is_text_without_any_extra():
    source = """
        import numpy as np
        import crossent

        found = crossent.explain(np.eye(3), np.array([0, 1, 3]))
        print(found)
        print("=" * 80)
        found.print()
        print("=" * 80)
        print(found._repr_html_())
        print("=" * 80)
        for method in (found.to_html, found.plot):
            try:
                method()
            except ImportError as error:
                print(error)
    """
    done = run_without([*OPTIONAL, "rich", "typer"], source)
    assert done.returncode == 0, done.stderr
    text, printed, html, errors = done.stdout.split("=" * 80 + "\n")
    found = crossent.explain(np.eye(3), np.array([0, 1, 3]))
    assert text == printed == f"{found}\n" and "bad label" in text
    assert html == f"<pre>{escape(text.rstrip())}</pre>\n"
    assert errors == (
        "Explanation.to_html needs jinja2: pip install crossent[explain]\n"
        "Explanation.plot needs matplotlib: pip install crossent[explain]\n"
    )
