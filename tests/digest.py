"""The bits of all that the tests of the numbers compute: what a change leaves alone has the same before and after.

    python tests/digest.py before.json [pytest's options]    # before the change
    python tests/digest.py after.json
    python tests/digest.py --compare before.json after.json

What a public function returns to a test, and what `torch.autograd.grad` does, is hashed with the name of the test and
the place among its calls, and summed for each test function: the order of tests does not matter. The random numbers
of every test start from the same seed. Bits depend on the processor and on the versions, which the file names.
"""

import argparse
import hashlib
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports]
from torch.jit._trace import is_tracing

import crossent
from crossent.tools.bench.machine import machine, versions

HERE = Path(__file__).parent
FILES = ("contract", "head", "tokens", "prediction_stats", "confident", "loss_dtype", "head_autograd", "autograd")
# by what chance proposes, and in other processes
LEFT_OUT = ("hypothesis", "memory", "opinfo", "process")


def content(value) -> bytes:
    """The bits, with dtype and shape, of what a function returns."""
    if isinstance(value, torch.Tensor):
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or is_functorch_wrapped_tensor(value) or value.is_meta:
            return type(value).__name__.encode()
        value = value.detach().resolve_neg().contiguous()
        header, numbers = f"{value.dtype} {tuple(value.shape)}", value.reshape(-1).view(torch.uint8).numpy()
        return header.encode() + numbers.tobytes()
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype} {value.shape}".encode() + value.tobytes()
    if isinstance(value, tuple | list):
        return b"".join(map(content, value))
    return repr(value).encode() if isinstance(value, float | int | bool | None) else type(value).__name__.encode()


class Recorder:
    def __init__(self):
        self.sums, self.test, self.calls, self.failed = defaultdict(int), None, 0, []

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if not self._is_left_out(item)]

    def _is_left_out(self, item):
        return any(word in item.name for word in LEFT_OUT) or hasattr(getattr(item, "obj", None), "hypothesis")

    def pytest_sessionstart(self):
        for name in crossent.__all__:
            function = getattr(crossent, name)
            if callable(function) and not isinstance(function, type):
                setattr(crossent, name, self.recorded(function))
        torch.autograd.grad = self.recorded(torch.autograd.grad)

    def recorded(self, function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            seen = torch.compiler.is_compiling() or is_tracing()  # whose tensors hold no numbers
            if self.test is not None and not seen and Path(sys._getframe(1).f_code.co_filename).parent == HERE:
                self.record(result)
            return result

        return call

    def record(self, result):
        named = f"{self.test.nodeid} {self.calls}".encode() + content(result)
        file, _, name = self.test.nodeid.partition("::")
        group = f"{Path(file).stem}::{name.partition('[')[0]}"
        self.sums[group] = (self.sums[group] + int.from_bytes(hashlib.sha256(named).digest()[:8])) % 2**64
        self.calls += 1

    def pytest_runtest_setup(self, item):
        self.test, self.calls = item, 0
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)


def write(path, options):
    recorder = Recorder()
    files = [str(HERE / f"test_{name}.py") for name in FILES]
    pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:randomly", *files, *options], plugins=[recorder])
    found = {"machine": machine(), "versions": versions(("torch", "numpy", "numba")), "failed": recorder.failed}
    groups = {group: f"{total:016x}" for group, total in sorted(recorder.sums.items())}
    Path(path).write_text(json.dumps(found | {"digests": groups}, indent=1) + "\n")


def compare(before, after):
    """The test functions whose bits differ, or that one of the two has not."""
    one, other = (json.loads(Path(path).read_text())["digests"] for path in (before, after))
    return [group for group in sorted(one.keys() | other.keys()) if one.get(group) != other.get(group)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--compare", nargs=2, metavar="FILE")
    parser.add_argument("file", nargs="?")
    chosen, options = parser.parse_known_args()
    if not chosen.compare:
        return write(chosen.file, options)
    differ = compare(*chosen.compare)
    print("\n".join(differ) or "the same bits")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
