"""Threads, forks, folders that cannot be written, and what a process costs."""

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import crossent

PACKAGE = Path(crossent.__file__).parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def python(script, timeout=240, folder=None, **environment):
    """Runs a script in a fresh interpreter and returns its output; whatever goes wrong there fails here."""
    environment = {**os.environ, "PYTHONPATH": str(folder or PACKAGE.parent), **environment}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={key: value for key, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=folder,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def cases():
    """Calls large enough for several threads and small ones, in both libraries, with their arguments."""
    generator = torch.Generator().manual_seed(0)
    for shape in [(32, 10), (600, 1000), (4, 19, 64, 64)]:
        logits = torch.randn(shape, generator=generator)
        labels = torch.randint(shape[1], shape[:1] + shape[2:], generator=generator)
        yield logits, labels
        yield logits.numpy(), labels.numpy()


def step(logits, labels):
    """The bytes of everything that one training step computes."""
    if isinstance(logits, np.ndarray):
        loss, gradient = crossent.value_and_grad(crossent.cross_entropy)(logits, labels, label_smoothing=0.1)
        return np.asarray(loss).tobytes() + gradient.tobytes() + crossent.softmax(logits, 1).tobytes()
    x = logits.detach().requires_grad_()
    loss = crossent.cross_entropy(x, labels, label_smoothing=0.1)
    loss.backward()
    return loss.detach().numpy().tobytes() + x.grad.numpy().tobytes() + crossent.softmax(logits, 1).numpy().tobytes()


def test_many_threads_at_once():
    work = [case for case in cases() for _ in range(12)]
    expected = [step(*case) for case in work]
    barrier = threading.Barrier(8)

    def run(part):
        barrier.wait()
        return [(i, step(*work[i])) for i in range(part, len(work), 8)]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(run, range(8)):
            for i, result in results:
                assert result == expected[i]


def test_first_call_from_many_threads():
    """Compiling or loading the kernels, and starting the helpers, may happen in every thread at once."""
    out = python(
        """
        import threading, torch, crossent
        x, y = torch.randn(600, 1000), torch.randint(1000, (600,))
        barrier, losses = threading.Barrier(8), []
        def run():
            barrier.wait()
            losses.append(crossent.cross_entropy(x, y).item())
        threads = [threading.Thread(target=run) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print(len(losses), len(set(losses)))
        """
    )
    assert out == "8 1\n"


def test_errors_in_threads_reach_their_callers():
    logits, labels = torch.randn(600, 1000), torch.zeros(600, dtype=torch.int64)
    bad = labels.clone()
    bad[599] = 1000
    expected = crossent.cross_entropy(logits, labels)

    def run(i):
        if i % 2:
            with pytest.raises(IndexError, match="1000"):
                crossent.cross_entropy(logits, bad)
            return expected
        return crossent.cross_entropy(logits, labels)

    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(value, expected) for value in pool.map(run, range(64)))


FORKED = """
import os, sys, threading
import torch, crossent
torch.set_num_threads({threads})
x, y = torch.randn(2000, 1000, requires_grad=True), torch.randint(1000, (2000,))

def step():
    x.grad = None
    loss = crossent.cross_entropy(x, y)
    loss.backward()
    return loss.item(), float(x.grad.numpy().sum())

def in_child():
    pid = os.fork()
    if pid == 0:
        signal = __import__("signal")
        signal.alarm(60)
        good = step() == before and step() == before and {grandchild}
        os._exit(0 if good else 1)
    return os.waitpid(pid, 0)[1] == 0

before = step()
print(in_child(), step() == before, in_child())
"""


@FORK
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_fork_after_use(threads):
    """The child has none of its parent's threads, and must neither wait for them nor die of it."""
    assert python(FORKED.format(threads=threads, grandchild="True")) == "True True True\n"


@FORK
def test_fork_of_a_fork():
    script = FORKED.replace("def in_child", "depth = [0]\ndef in_child").replace(
        "pid = os.fork()", "depth[0] += 1\n    pid = os.fork()"
    )
    grandchild = "(depth[0] > 1 or in_child())"
    assert python(script.format(threads=2, grandchild=grandchild)) == "True True True\n"


@FORK
def test_fork_while_another_thread_computes():
    out = python(
        """
        import os, signal, threading, torch, crossent
        x, y = torch.randn(2000, 1000), torch.randint(1000, (2000,))
        expected, stop = crossent.cross_entropy(x, y).item(), False
        def busy():
            while not stop:
                crossent.cross_entropy(x, y)
        threads = [threading.Thread(target=busy) for _ in range(3)]
        [t.start() for t in threads]
        good = []
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                os._exit(0 if crossent.cross_entropy(x, y).item() == expected else 1)
            good.append(os.waitpid(pid, 0)[1] == 0)
        stop = True
        [t.join() for t in threads]
        print(all(good))
        """
    )
    assert out == "True\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(method, tmp_path):
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    script = tmp_path / "loader.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import torch, crossent

            class Losses(torch.utils.data.Dataset):
                def __len__(self):
                    return 8

                def __getitem__(self, i):
                    generator = torch.Generator().manual_seed(i)
                    x = torch.randn(600, 1000, generator=generator)
                    return crossent.cross_entropy(x, torch.full((600,), i))

            if __name__ == "__main__":
                here = torch.stack([Losses()[i] for i in range(8)])
                loader = torch.utils.data.DataLoader(
                    Losses(), batch_size=2, num_workers=2, multiprocessing_context={method!r}, timeout=100
                )
                print(torch.equal(torch.cat(list(loader)), here))
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.stdout == "True\n", done.stderr


@LINUX
def test_number_of_threads_is_followed():
    """By the time that each thread of the process has computed, not by the clock."""
    out = python(
        """
        import os, time, torch, crossent
        x, y = torch.randn(2000, 4000), torch.randint(4000, (2000,))

        def seconds():
            times = {}
            for task in os.listdir("/proc/self/task"):
                fields = open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()
                times[task] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            return times

        def share_of_the_helpers(threads):
            torch.set_num_threads(threads)
            crossent.cross_entropy(x, y)
            time.sleep(0.2)
            before, end = seconds(), time.monotonic() + 0.6
            while time.monotonic() < end:
                crossent.cross_entropy(x, y)
            spent = {task: s - before.get(task, 0) for task, s in seconds().items()}
            return 1 - spent[str(os.getpid())] / sum(spent.values())

        print(*[share_of_the_helpers(threads) for threads in (1, 2, 1)])
        """
    )
    alone, two, alone_again = map(float, out.split())
    assert alone < 0.1 and alone_again < 0.1
    assert two > 0.1 or os.cpu_count() == 1


@LINUX
def test_one_thread_starts_no_other():
    out = python(
        """
        import os, torch, crossent
        torch.set_num_threads(1)
        x, y = torch.randn(2000, 1000), torch.randint(1000, (2000,))
        crossent.cross_entropy(x[:2], y[:2])  # libraries that are loaded now have threads of their own
        before = len(os.listdir("/proc/self/task"))
        crossent.cross_entropy(x, y)
        crossent.softmax(x, 1)
        print(len(os.listdir("/proc/self/task")) - before)
        """
    )
    assert out == "0\n"


def test_interpreter_shuts_down_with_idle_helpers():
    out = python(
        """
        import atexit, torch, crossent
        x, y = torch.randn(2000, 1000), torch.randint(1000, (2000,))
        torch.set_num_threads(4)
        loss = crossent.cross_entropy(x, y).item()
        atexit.register(lambda: print(crossent.cross_entropy(x, y).item() == loss))
        """
    )
    assert out == "True\n"


USE = """
import numpy as np, crossent
loss = crossent.nll_loss(np.full((1, 4), -np.log(4), "f4"), np.array([1]), reduction="sum")  # which is soon compiled
print(crossent.__file__, round(float(loss), 4))
"""


def unwritable(path):
    """A file where a folder is wanted: nobody can write into it, root neither."""
    path.write_text("")
    return str(path)


def copy_of_the_package(folder):
    shutil.copytree(PACKAGE, folder / "crossent", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("writable", ["nothing", "temporary", "home"])
def test_read_only_package(tmp_path, writable):
    """The cache of kernels goes to the user's folder, or a private one for temporary files, and else nowhere."""
    folder = copy_of_the_package(tmp_path / "site")
    for inner in [folder / "crossent", *[f for f in (folder / "crossent").rglob("*") if f.is_dir()]]:
        unwritable(inner / "__pycache__")
    home = tmp_path / "home"
    if writable == "home":
        home.mkdir()
    else:
        unwritable(home)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    if writable == "nothing":
        unwritable(temporary / f"crossent-{os.getuid()}")
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "NUMBA_CACHE_DIR": None}
    environment["TMPDIR"] = str(temporary)
    out = python(USE, folder=folder, **environment)
    assert out == f"{folder / 'crossent' / '__init__.py'} 1.3863\n"
    kept = {folder for folder in (home, temporary) if folder.is_dir() and list(folder.rglob("*.nbi"))}
    assert kept == {"home": {home}, "temporary": {temporary}, "nothing": set()}[writable]


def test_cache_folder_that_cannot_be_made(tmp_path):
    folder = unwritable(tmp_path / "file")
    out = python(USE, NUMBA_CACHE_DIR=f"{folder}/cache")
    assert out.endswith(" 1.3863\n")


def test_damaged_cache(tmp_path):
    """An index or a kernel cut short, as by a full disk, is compiled again."""
    cache = tmp_path / "cache"
    python(USE, NUMBA_CACHE_DIR=str(cache))
    files = [*cache.rglob("*.nbi"), *cache.rglob("*.nbc")]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    try:
        assert python(USE, NUMBA_CACHE_DIR=str(cache)).endswith(" 1.3863\n")
    except AssertionError as error:
        # numba's own reading of its index has to forgive this; what must not happen is a wrong number
        assert "pickle" in str(error) or "EOFError" in str(error)


def test_cache_follows_the_rules(tmp_path):
    """A kernel compiled from an older rule is not used: the cache looks at every source file."""
    folder, cache = copy_of_the_package(tmp_path / "site"), tmp_path / "cache"
    python(USE, folder=folder, NUMBA_CACHE_DIR=str(cache))
    rules = folder / "crossent" / "_rules.py"
    text = rules.read_text()
    changed = text.replace("return keep * w * (1.0 - smoothing)", "return keep * w * (2.0 - smoothing)")
    assert changed != text
    rules.write_text(changed)
    assert python(USE, folder=folder, NUMBA_CACHE_DIR=str(cache)).endswith(" 2.7726\n")


@LINUX
def test_memory_of_a_step(tmp_path):
    """Beside the logits: nothing for an evaluation or a step in place, one gradient for a training step."""
    out = python(
        """
        import resource, torch, crossent
        x, y = torch.randn(2048, 16000, requires_grad=True), torch.randint(16000, (2048,))
        small = torch.randn(64, 16000, requires_grad=True)

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / x.nbytes

        for inplace in (False, True):  # whatever a first call brings
            crossent.cross_entropy(small * 1, y[:64], inplace_backward=inplace).backward()
        with torch.no_grad():
            start = peak()
            crossent.cross_entropy(x, y)
            evaluation = peak()
        logits = x.detach().requires_grad_()
        crossent.cross_entropy(logits, y, inplace_backward=True).backward()
        inplace = peak()
        x = x.detach().requires_grad_()
        crossent.cross_entropy(x, y).backward()
        print(evaluation - start, inplace - evaluation, peak() - inplace)
        """
    )
    evaluation, inplace, training = map(float, out.split())
    assert evaluation < 0.02 and inplace < 0.02 and training < 1.1


@pytest.mark.parametrize("told", [pytest.param("NUMBA_ENABLE_AVX=0", marks=pytest.mark.soak), "NUMBA_CPU_NAME=generic"])
def test_numba_may_be_told_of_another_processor(told, tmp_path):
    """No kernel then has instructions that its compiler does not know of, which would end the process."""
    script = """
        import torch, crossent
        x, matrix = (torch.randn(n, 8, dtype=torch.bfloat16, requires_grad=True) for n in (6, 10))
        loss = crossent.linear_cross_entropy(x, matrix, torch.arange(6))
        loss.backward()
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(x @ matrix.T, torch.arange(6)))
    """
    name, value = told.split("=")
    python(script, NUMBA_CACHE_DIR=str(tmp_path), **{name: value})


COMPILED_ONCE = """
    import torch
    from torch._dynamo.testing import CompileCounter
    import crossent.nn as nn
    import crossent.nn.functional as F

    x, target = torch.randn(6, 40, requires_grad=True), torch.arange(6)
    counter, module = CompileCounter(), {module}
    compiled = torch.compile({loss}, backend=counter, fullgraph=True)
    for _ in range(3):
        compiled(x, target).backward()
        F.cross_entropy(x, target)
        F.cross_entropy(x, target, label_smoothing=0.3)
        F.softmax(torch.nn.Parameter(x.detach()), 1)
    assert counter.frame_count == 1, counter.frame_count
"""


@pytest.mark.parametrize(
    ("module", "loss"),
    [
        ("nn.CrossEntropyLoss(label_smoothing=0.1)", "lambda x, target: module(2 * x, target)"),
        (
            "None",
            "lambda x, target: F.cross_entropy(x, target, z_loss=0.2) + F.nll_loss(F.log_softmax(x, 1), target)",
        ),
    ],
)
def test_what_is_compiled_first_is_compiled_once(module, loss):
    """What the library keeps of later calls is nothing that the compiled code depends on."""
    python(COMPILED_ONCE.format(module=module, loss=loss))
