"""Cases that several processes run together: functions of a mesh, in a test file's `CASES`, which is a `Cases`."""

import datetime
import importlib
import json
import multiprocessing
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import distributed

if not distributed.is_available():
    pytest.skip("this PyTorch has no processes to spread over", allow_module_level=True)


DTENSORS_KEEP_GRAPHS = torch.__version__ >= "2.13"  # before, differentiating their gradients is an error
ONE_GRAPH = torch.__version__ >= "2.10"  # of a step with collectives


# What takes seconds to import, and starts no thread: one process does, and those of all tests are its forks.
multiprocessing.set_forkserver_preload([
    "torch.distributed.tensor", "torch.testing", "torch._dynamo", "torch._inductor.pattern_matcher",
    "crossent.frontends.torch", "crossent.frontends._products",
])  # fmt: skip


def start(function, arguments, processes, join=True):
    """As `torch.multiprocessing.spawn`."""
    return torch.multiprocessing.start_processes(function, arguments, processes, join, start_method="forkserver")


class Cases(dict):
    """Functions by name."""

    def add(self, function):
        self[function.__name__] = function
        return function


def of_gradient(tensor):
    """Where PyTorch places the gradient of plain operations: before 2.13 not always where the tensor is."""
    leaf = tensor.detach().requires_grad_()
    (leaf.to_local() * torch.ones_like(leaf.to_local())).sum().backward()
    return leaf.grad.placements


@contextmanager
def collectives():
    """The collectives that are called meanwhile: for each its name and the shapes of what it is given. A profiler sees
    them, which changes no call's way, as a dispatch mode does.
    """
    found = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        yield found
    for event in seen.events():
        library, _, name = event.name.partition("::")
        if event.name == "c10d::_allgather_base_":  # what every gathering comes to, in a graph or not
            found.append(("all_gather_into_tensor", event.input_shapes[1]))
        elif library == "_c10d_functional" and name.startswith(("all_reduce", "reduce_", "broadcast")):
            found.append((name, event.input_shapes[0]))


def _work(rank, processes, folder, module):
    """One of the processes: all cases, and what went wrong in each."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    timeout = datetime.timedelta(minutes=5)  # each may have to compile kernels first
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes, timeout=timeout)
    mesh, failures = init_device_mesh("cpu", (processes,)), {}
    for name, run in importlib.import_module(module).CASES.items():
        try:
            run(mesh)
        except BaseException:  # pytest.fail is no Exception
            failures[name] = traceback.format_exc()
        distributed.barrier()
    Path(folder, f"{rank}.json").write_text(json.dumps(failures))
    distributed.destroy_process_group()


def failures_of(module, processes):
    """By name, what went wrong in the cases of a test file, in any process."""
    with tempfile.TemporaryDirectory() as folder:
        start(_work, (processes, folder, module), processes)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(processes)]
    return {name: "\n".join(of[name] for of in found if name in of) for of in found for name in of}


def in_processes(module, cases, processes):
    """The fixture and the test of a test file, for all its cases in each number of processes."""

    @pytest.fixture(scope="module", params=processes)
    def failures(request):
        return failures_of(module, request.param)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("name", cases)
    def test_processes(name, failures):
        assert name not in failures, failures.get(name)

    return failures, test_processes
