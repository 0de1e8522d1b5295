"""Threads that help a caller with its chunks of rows: those of a running OpenMP library, or a few of our own.

PyTorch's OpenMP threads spin while they wait for work, and would keep threads of our own from the processors that they
spin on. So they take part themselves.

The caller works too and never waits for a helper to wake up: whoever is free takes the next chunk. With no helper at
all (a forked child, an interpreter that shuts down) the caller does everything itself. Which thread takes a chunk does
not change its result.
"""

import ctypes
import os
from queue import SimpleQueue
from threading import Lock, Thread

_team = None  # GOMP_parallel of the OpenMP library to use
_jobs = SimpleQueue()
_helpers = 0
_growing = Lock()


class _Job:
    def __init__(self, take_part, block, owners):
        self.take_part, self.block, self.owners = take_part, block, owners
        self.finished = Lock()
        self.finished.acquire()

    def run(self):
        if self.take_part(self.block.address):
            self.finished.release()


def use_openmp(path):
    """Use the threads of this OpenMP library, which the process has loaded already, from now on."""
    global _team
    _team = ctypes.CDLL(path).GOMP_parallel
    _team.argtypes, _team.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None


def _help():
    while True:
        _jobs.get().run()


def _forget():
    """Start anew in a forked child: it has only the thread that forked, and OpenMP does not recover from that."""
    global _jobs, _helpers, _growing, _team
    _jobs, _helpers, _growing, _team = SimpleQueue(), 0, Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _grow(wanted):
    global _helpers
    with _growing:
        while _helpers < wanted:
            try:
                Thread(target=_help, name="crossent", daemon=True).start()
            except RuntimeError:  # the interpreter shuts down, or the system allows no more threads
                return
            _helpers += 1


def run(take_part, block, threads, owners):
    """Have up to `threads` threads, this one among them, call take_part(block.address), until all work is done.

    `take_part` is a C function that tells whether it finished the last chunk. The result says whether no thread will
    look at the block any more: a helper of our own may come late, and find that nothing is left to do.
    """
    if _team is not None:
        _team(take_part, block.address, threads, 0)
        return True
    job = _Job(take_part, block, owners)
    if _helpers < threads - 1:
        _grow(threads - 1)
    for _ in range(threads - 1):
        _jobs.put(job)
    job.run()
    job.finished.acquire()
    job.owners = None  # a helper that has not come yet must not keep the arrays
    return False
