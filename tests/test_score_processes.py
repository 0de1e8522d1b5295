"""`crossent.Score` carried between processes by the documentation's recipes."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from processes import Cases, failures_of
from score_parts import ROOT, predictions, recipe, scored
from torch import distributed

PROCESSES = 2
CASES = Cases()


@CASES.add
def gathered(mesh):
    """Unevenly, and all rows in one process."""
    logits, labels = map(torch.as_tensor, predictions(50))
    whole = scored(logits.numpy(), labels.numpy(), np.arange(50)).result()
    for first in (37, 50):
        mine = (torch.arange(first), torch.arange(first, 50))[distributed.get_rank()]
        assert recipe("evaluated")([(logits[at], labels[at], at) for at in mine.split(7) if len(at)]) == whole


@pytest.fixture(scope="module")
def failures():
    return failures_of("test_score_processes", PROCESSES)


@pytest.mark.parametrize("case", CASES)
def test_with_torch_distributed(failures, case):
    assert case not in failures, failures[case]


def test_with_dask(tmp_path):
    """In a process of its own, which gets functions and Scores as pickled objects."""
    pytest.importorskip("dask", reason="dask is not installed")
    (tmp_path / "program.py").write_text(
        textwrap.dedent(f"""
            import sys
            import numpy as np
            import crossent
            sys.path.insert(0, {str(ROOT / "tests")!r})
            from score_parts import predictions, recipe, scored
            if __name__ == "__main__":
                part, whole = recipe("part"), recipe("whole")
                logits, labels = predictions(50)
                cuts = [0, 20, 20, 50]
                parts = [part(logits[lo:hi], labels[lo:hi], lo) for lo, hi in zip(cuts, cuts[1:])]
                found = whole(parts).compute(scheduler="processes", num_workers=1)
                assert found == scored(logits, labels, np.arange(50)).result()
                print("same")
        """)
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "same\n", done.stderr
