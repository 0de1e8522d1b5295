"""The tests see mistakes: each one made on purpose in the rules makes them fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each mistake is checked in a forked process")
def test_mistakes_in_the_rules_are_seen(tmp_path):
    script = Path(__file__).parent / "mutants.py"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["controls"] == [["no mistake"], ["no mistake"]], "the checks fail on the rules as they are"
    assert result["made"] > 20
    assert result["missed"] == []
