"""What launches take on the host, and what is compiled anew for them: with no GPU, by a driver that does nothing."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.7")


@functools.cache
def found_for(target):
    tool = Path(__file__).parent / "launching.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, tool, target, "json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_small_step():
    """Two launches for four of PyTorch's; Python's calls must not become more."""
    found = found_for("sm_90")
    assert found["launches"] == ["sums_of_rows", "gradients_of_rows"]
    assert found["calls"] <= 105


def test_a_launch_that_is_ready():
    """It tells kernels what one tells them that Triton looks up."""
    assert found_for("sm_90")["differences"] == []


def test_settings_of_triton_that_change():
    """A launch that is ready is looked up again, as Triton itself looks at its settings in every launch."""
    both = ["gradients_of_rows", "sums_of_rows"]
    assert found_for("sm_90")["settings"] == [both, both, [], []]


def test_other_numbers_of_rows_are_not_compiled_for():
    """Of 1, 2, 7, 16, 17, 32 and 1,024 rows: a few and many are programs of other sizes, where rows are short, and a
    few long rows are cut into parts.
    """
    assert found_for("sm_90")["compiled"] == {
        "10, float32, mean": {"sums_of_rows": 2, "gradients_of_rows": 2},
        "10, float32, none": {"sums_of_rows": 2, "gradients_of_rows": 2},
        "1000, bfloat16, sum": {"sums_of_rows": 1, "gradients_of_rows": 1},
        "5000, float32, none": {"sums_of_rows": 2, "losses_of_rows": 1, "gradients_of_rows": 1},
    }


@pytest.mark.parametrize(("target", "warp"), [("sm_90", 32), ("gfx942", 64)])
def test_no_program_has_too_many_threads(target, warp):
    """No GPU runs more than 1,024."""
    warps = found_for(target)["warps"]
    assert {"at_once", "sums_of_rows", "gradients_of_rows", "forward", "backward", "statistics_of_rows"} <= warps.keys()
    assert max(warps.values()) * warp == 1024
