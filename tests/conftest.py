import gc
import os
import sys
from collections import Counter
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from unittest import mock

import pytest

# What other processes print is compared with what it should be.
os.environ.setdefault("CROSSENT_QUIET", "1")
# Before anything imports Triton: its own functions are interpreted or compiled from their import on.
if not glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("TRITON_INTERPRET", "1")


INTERPRETED = "test_triton", "test_launches", "test_device"
OF_THEIR_OWN = "test_types", "test_machine_code", "test_processes"  # which take long, and no kernels of the cache


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        order_files(items)
    skip_interpreted(items)


def order_files(items):
    """Files with many tests first, so that the last ones are short. The largest makes one worker compile kernels, while
    others do what takes none: so they do not all compile the same.
    """
    counts = Counter(item.path for item in items)
    largest = max(counts, key=counts.get, default=None)

    def place(item):
        apart = item.path.name.startswith(OF_THEIR_OWN)
        return item.path != largest, not apart, -counts[item.path], str(item.path)

    items.sort(key=place)


def skip_interpreted(items):
    """Beside a GPU kernels are compiled for it, and tests/test_gpu*.py have them run there; older interpreters do not
    know all that the kernels are written in.
    """
    try:
        can_interpret = tuple(map(int, version("triton").split(".")[:2])) >= (3, 7)
    except PackageNotFoundError:
        return  # which the tests say themselves
    if not can_interpret or os.environ.get("TRITON_INTERPRET") != "1":
        for item in items:
            if item.path.name.startswith(INTERPRETED):
                item.add_marker(pytest.mark.skip(reason="needs the interpreter of Triton 3.7: TRITON_INTERPRET=1"))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What has been imported stays, and is a million objects: no collection of garbage is to walk over them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_addoption(parser):
    parser.addoption("--poison", action="store_true", help="fill memory that nobody has written yet with nan")


@pytest.fixture(autouse=True)
def nothing_is_left_of_processes():
    """No test hands its process group to the next one, nor what torchrun would have set, by which other libraries make
    one of their own.
    """
    with mock.patch.dict(os.environ):
        before = _has_process_group()
        yield
        if _has_process_group() and not before:
            sys.modules["torch.distributed"].destroy_process_group()


def _has_process_group():
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


@pytest.fixture(autouse=True)
def poisoned(request):
    """Where --poison asks for it."""
    if not request.config.getoption("--poison"):
        yield
        return
    import torch
    from poison import poison

    before = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison(monkeypatch)
        yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def nothing_planned():
    """Nor any gradient made that nobody has asked for."""
    from harness import new_plans

    with new_plans():
        yield
