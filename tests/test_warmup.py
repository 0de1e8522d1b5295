"""Compiling: what is said of it, where kernels are kept, and `crossent warmup`."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import typed
from harness import gradients_made_in_backward, new_plans

import crossent
from crossent.kernels.cpu import cache, call as kernel_call, patience as patience_module, warmup

UNIX = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of files here")


@pytest.fixture
def patience(monkeypatch, caplog):
    """As at the start of a process, with a tenth of a second for two; and what has been said."""
    monkeypatch.setattr(patience_module, "_told", False)
    monkeypatch.setattr(patience_module, "_spent", 0.0)
    monkeypatch.setattr(patience_module, "TOLD_AFTER", 0.1)
    monkeypatch.delenv("CROSSENT_QUIET", raising=False)
    caplog.set_level(logging.WARNING, "crossent")

    def spend(seconds, found=False, writable=True):
        cache = SimpleNamespace(cache_path="/kept/here") if writable else None
        with patience_module.patience(cache):
            if writable and not found:
                cache.on_miss()
            time.sleep(seconds)
        return [record.getMessage() for record in caplog.records]

    return spend


def test_a_line_after_two_seconds_and_only_one(patience):
    (said,) = patience(0.5)
    assert said.startswith("crossent: compiling kernels") and "/kept/here" in said and "\n" not in said
    assert patience(0.3) == [said] and patience(0.0, writable=False) == [said]


def test_nothing_of_what_is_quick_or_found(patience):
    assert patience(0.0) == patience(0.3, found=True) == patience(0.0) == []


def test_the_seconds_of_many_kernels_are_added(patience):
    assert patience(0.07) == []
    assert len(patience(0.07)) == 1


def test_what_cannot_be_kept_is_said_at_once(patience):
    (said,) = patience(0.0, writable=False)
    assert "NUMBA_CACHE_DIR" in said and "\n" not in said
    assert patience(0.3) == [said]


def test_quiet(patience, monkeypatch):
    monkeypatch.setenv("CROSSENT_QUIET", "1")
    assert patience(0.3) == []


COMPILE = """
from crossent.kernels.cpu import call, patience
patience.TOLD_AFTER = 0.01
call._entry()
"""


def stderr_of(script, **environment):
    package = Path(crossent.__file__).parents[1]
    environment = {**os.environ, "CROSSENT_QUIET": "", "PYTHONPATH": str(package), **environment}
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and not done.stdout, done.stderr
    return done.stderr


def test_the_line_is_on_standard_error(tmp_path):
    """Warnings as errors or not, once; and not where `logging` is told otherwise, or the kernels are there already."""
    said = stderr_of(COMPILE, NUMBA_CACHE_DIR=str(tmp_path / "one"))
    assert said.startswith("crossent: compiling") and said.count("\n") == 1 and str(tmp_path / "one") in said
    silence = "import logging\nlogging.getLogger('crossent').setLevel('ERROR')\n"
    assert stderr_of(silence + COMPILE, NUMBA_CACHE_DIR=str(tmp_path / "two")) == ""
    assert stderr_of(COMPILE, NUMBA_CACHE_DIR=str(tmp_path / "one")) == ""


@UNIX
def test_a_folder_that_is_private(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"crossent-{os.getuid()}"
    for _ in range(2):
        assert cache.private_folder() == str(folder) and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert cache.private_folder() is None, "others can read it"
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert cache.private_folder() is None, "a link"
    folder.unlink()
    folder.write_text("")
    assert cache.private_folder() is None, "a file"
    theirs = tmp_path / f"crossent-{os.getuid() + 1}"
    theirs.mkdir(mode=0o700)
    somebody = os.getuid() + 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: somebody)
        assert cache.private_folder() is None, "somebody else's"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert cache.private_folder() is None


def asked_for(monkeypatch, calls):
    """The kernels that these calls ask for, of which none is compiled anew."""
    found = set()

    def kernel_of(function, storage, names, original=kernel_call.kernel_of):
        found.add((function, storage, names))
        return original(function, storage, names)

    monkeypatch.setattr(kernel_call, "kernel_of", kernel_of)
    for apart in (new_plans, gradients_made_in_backward):
        with apart():
            for call in calls:
                call()
    return found


def test_warmup_compiles_what_common_calls_ask_for(monkeypatch):
    def step(loss, *shape):
        loss(torch.ones(shape, requires_grad=True), torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)).backward()

    def nll(x, y):
        return crossent.nll_loss(crossent.log_softmax(x, 1), y)

    calls = [
        *(lambda s=shape: step(crossent.cross_entropy, *s) for shape in ((4, 10), (4, 300), (2, 10, 3, 3))),
        *(lambda s=shape: step(nll, *s) for shape in ((4, 11), (2, 11, 3, 3))),
        lambda: crossent.prediction_stats(torch.ones(4, 12), torch.zeros(4, dtype=torch.int64)),
        lambda: step(lambda x, y: crossent.linear_cross_entropy(x, x.detach()[:3], y), 5, 13),
        lambda: step(lambda x, y: crossent.linear_token_stats(x, x.detach()[:3], y).logprob.sum(), 5, 13),
    ]
    asked = asked_for(monkeypatch, calls)
    assert asked and asked <= set(warmup.common("float32"))


def test_the_command(monkeypatch):
    compiled, found = SimpleNamespace(cache_hits=0), SimpleNamespace(cache_hits=1)
    kernels = iter([compiled, found] * 100)
    monkeypatch.setattr(warmup, "kernel_of", lambda *_: next(kernels))
    status, printed = typed("crossent warmup float32 bfloat16 float32")
    lines = printed.splitlines()
    assert status == 0 and [line.partition(":")[0] for line in lines[:2]] == ["float32", "bfloat16"]
    assert "compiled in" in lines[0] and lines[2].startswith("kept in") and len(lines) == 3
    monkeypatch.setattr(warmup, "kernel_of", lambda *_: found)
    assert "there already" in typed("crossent warmup")[1]
    status, printed = typed("crossent warmup int8")
    assert status == 2 and "float16, bfloat16, float32, float64, got int8" in printed
