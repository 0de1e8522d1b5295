"""A program of its own for each measurement."""

import os
import subprocess
import sys


def last_line(module: str, *parameters: str, quiet: bool = False, timeout: float | None = None, **environment) -> str:
    """The last line that the module prints, run as a program; `quiet` keeps what it says on stderr for the error."""
    # One compiler process: idle ones would share the cores with what is timed.
    variables = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-m", module, *parameters],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        timeout=timeout,
        check=True,
    )
    return done.stdout.splitlines()[-1]
