"""What a launch takes on the host, and what is compiled for it, found out with no GPU: a driver that does nothing.

That takes a process without Triton's interpreter:

    python tests/launching.py sm_90          Python's calls in a step, by function, and its launches
    python tests/launching.py sm_90 json     for tests/test_launching.py, which asks for gfx942 as well
"""

import contextlib
import itertools
import json
import sys
from collections import Counter
from unittest import mock

import torch
import triton
from harness import on_triton
from machine_code import CALLS, TARGETS, Call, Device, calls_in
from triton.compiler import CompiledKernel

import crossent
from crossent.kernels.triton.device import DeviceKernels


class Kernel(CompiledKernel):
    """What Triton has compiled, as far as a launch asks for it."""

    def __init__(self, launched):
        self.module, self.function, self.packed_metadata, self._run = True, None, None, launched
        self.src = self.name = None


_numbers = itertools.count()
OF_LAUNCHER = 9  # arguments before those of a kernel


def plain(argument):
    """An argument of a kernel, but for the address."""
    if isinstance(argument, torch.Tensor):
        return str(argument.dtype)
    return [plain(one) for one in argument] if isinstance(argument, tuple) else repr(argument)


class Launches:
    """What is launched: the kernels' names and arguments; for each name how many warps what is compiled for it has."""

    def __init__(self):
        self.names, self.arguments, self.compiled = [], [], {}


@contextlib.contextmanager
def launches():
    """The `Launches` meanwhile. Nothing is compiled, and no kernel runs."""
    from triton.runtime import JITFunction, driver

    found = Launches()

    def compiled(self, key, signature, device, constexprs, options, attrs, warmup):
        name = self.fn.__name__

        def launched(*arguments):
            found.names.append(name)
            found.arguments.append(plain(arguments[OF_LAUNCHER:]))  # no tensors, which would be kept with the kernel

        kernel = Kernel(launched)
        found.compiled.setdefault(name, []).append(options.num_warps)
        self.device_caches[device][0][key] = kernel
        return kernel

    device, number = Device(*TARGETS[sys.argv[1]]), next(_numbers)
    device.get_current_device = lambda: number  # one for which nothing is kept yet
    driver.set_active(device)
    with mock.patch.object(JITFunction, "_do_compile", compiled):
        yield found


ROWS = [1, 2, 7, 16, 17, 32, 1024]


def compiled_for_rows(classes, dtype, reduction):
    """How many of each kernel are compiled for steps of so many rows."""
    with launches() as found:
        for rows in ROWS:
            Call((rows, classes), dtype, {"reduction": reduction}).run()
    return {name: len(warps) for name, warps in found.compiled.items()}


def calls_of_a_step():
    """Python's functions that a step of 32 x 10 calls, those of C, and its launches."""
    x, y = torch.randn(32, 10, requires_grad=True), torch.zeros(32, dtype=torch.int64)
    upstream, seen = torch.ones(()), Counter()

    def step():
        crossent.cross_entropy(x, y).backward(upstream)
        x.grad = None

    def count(frame, event, argument):
        if event == "call" and frame.f_code.co_filename != __file__:
            seen[f"{frame.f_code.co_filename.split('site-packages/')[-1]}:{frame.f_code.co_qualname}"] += 1

    with launches() as found, on_triton():
        for _ in range(3):
            step()
        found.names.clear()
        threads = torch.autograd.set_multithreading_enabled(False)
        with threads:
            sys.setprofile(count)
            step()
            sys.setprofile(None)
        return seen, found.names


def compiled_after_settings():
    """Which kernels steps of one shape compile: the first one, one after a setting of Triton's has changed, one more,
    and one with the first setting again.
    """
    x, y, counts = torch.randn(32, 10, requires_grad=True), torch.zeros(32, dtype=torch.int64), []
    with launches() as found, on_triton():
        for debug in (False, True, True, False):
            before = Counter({name: len(warps) for name, warps in found.compiled.items()})
            with triton.knobs.runtime.scope():
                triton.knobs.runtime.debug = debug
                crossent.cross_entropy(x, y).backward()
            counts.append(sorted(Counter({name: len(warps) for name, warps in found.compiled.items()}) - before))
    return counts


def differences():
    """What a launch that is ready says otherwise than one that Triton looks up."""
    found = []
    for shape, reduction in itertools.product([(32, 10), (300, 10), (3, 7, 5), (200, 300)], ["mean", "sum", "none"]):
        said = []
        for ready in (DeviceKernels.ready_step, None):
            with launches() as seen, mock.patch.object(DeviceKernels, "ready_step", ready):
                for _ in range(2):
                    Call(shape, "float32", {"reduction": reduction}).run()
            said.append(seen.arguments[2:])
        found += [(shape, reduction, said)] if said[0] != said[1] else []
    return found


def largest_programs():
    """For each kernel the most warps that a call's program has."""
    found = {}
    for call in [*CALLS, *calls_in("float16"), *calls_in("bfloat16"), *calls_in("float32"), *calls_in("float64")]:
        with launches() as seen:
            call.run()
        for name, warps in seen.compiled.items():
            found[name] = max(found.get(name, 0), *warps)
    return found


STEPS = [(10, "float32", "mean"), (1000, "bfloat16", "sum"), (5000, "float32", "none"), (10, "float32", "none")]

if __name__ == "__main__":
    seen, names = calls_of_a_step()
    if sys.argv[2:] == ["json"]:
        compiled = {", ".join(map(str, step)): compiled_for_rows(*step) for step in STEPS}
        warps = largest_programs()
        found = {"calls": seen.total(), "launches": names, "compiled": compiled, "warps": warps}
        print(json.dumps(found | {"differences": differences(), "settings": compiled_after_settings()}))
    else:
        for name, times in seen.most_common():
            print(times, name)
        print(seen.total(), names)
