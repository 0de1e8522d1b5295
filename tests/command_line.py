"""`crossent ...` as it is typed into a shell, run in this process."""

import io
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

import numpy as np
import pytest
from score_files import example

from crossent.tools import commands


def typed(command):
    """The exit status, and what was printed."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed), mock.patch.object(sys, "argv", shlex.split(command)):
        with pytest.raises(SystemExit) as ended:
            commands.main()
    return ended.value.code, printed.getvalue()


def write_predictions(folder):
    """The files that the documentation's commands name."""
    logits, labels = example(classes=10)
    np.save(folder / "logits.npy", logits)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "a.npy", logits)
    np.save(folder / "b.npy", 2 * logits)
    np.savez(folder / "predictions.npz", logits=logits, labels=labels)
    for shard, rows in enumerate(np.array_split(logits, 3)):
        np.save(folder / f"logits-{shard}.npy", rows)
