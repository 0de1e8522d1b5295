"""A Python program for which packages are not installed."""

import subprocess
import sys
import textwrap

_HIDE = """
import sys
from importlib.machinery import PathFinder

class Hiding:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


def run_without(hidden, source):
    """What became of the program."""
    program = _HIDE.replace("{hidden}", repr(set(hidden))) + textwrap.dedent(source)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)


def typed_without(hidden, *arguments):
    """What became of `crossent ...`."""
    return run_without(
        hidden, f"import sys; sys.argv = {['crossent', *arguments]!r}\nfrom crossent.tools.commands import main; main()"
    )
