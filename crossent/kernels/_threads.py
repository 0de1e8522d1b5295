"""Threads that help a caller through its chunks of rows: those of a running OpenMP library, or a few of our own.

Where PyTorch has a team of OpenMP threads, it waits for work by spinning, and would keep threads of our own from the
processors that it spins on; so the team takes part itself, which also saves waking anybody up.

The caller works too and never waits for a helper to wake up: whoever is free takes the next chunk, and with no helper
at all (a forked child, an interpreter that shuts down) the caller does everything itself. Which thread takes a chunk
does not change its result.
"""

import ctypes
import os
from collections import deque
from itertools import count
from queue import SimpleQueue
from threading import Lock, Thread

_jobs = SimpleQueue()
_helpers = 0
_growing = Lock()


class _Job:
    def __init__(self, work, chunks):
        self.work = work
        self.waiting = deque(range(chunks))
        self.unfinished = deque(range(chunks))
        self.results = [None] * chunks
        self.finished = Lock()
        self.finished.acquire()

    def run(self):
        while True:
            try:
                chunk = self.waiting.pop()
            except IndexError:
                return
            try:
                self.results[chunk] = self.work(chunk)
            except BaseException as error:
                self.results[chunk] = error
            if self.unfinished.pop() == 0:
                self.finished.release()


_team = None  # GOMP_parallel of the OpenMP library to use
_team_jobs = {}
_tickets = count()


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _take_part(ticket):
    _team_jobs[ticket or 0].run()


def use_openmp(path):
    """Have the threads of this OpenMP library, which the process has loaded already, take part from now on."""
    global _team
    _team = ctypes.CDLL(path).GOMP_parallel
    _team.argtypes, _team.restype = [type(_take_part), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None


def _help():
    while True:
        _jobs.get().run()


def _forget():
    """A forked child has no threads but the one that forked, and OpenMP does not recover from that."""
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


def run(work, chunks, threads):
    """[work(chunk) for chunk in range(chunks)] on up to `threads` threads, this one among them."""
    if threads == 1 or chunks <= 1:
        return [work(chunk) for chunk in range(chunks)]
    job = _Job(work, chunks)
    if _team is not None:
        _with_team(job, threads)
    else:
        _with_helpers(job, min(threads, chunks) - 1)
    for chunk, result in enumerate(job.results):
        if isinstance(result, BaseException):
            raise result
        if result is None:  # interrupted between taking the chunk and working on it
            job.results[chunk] = work(chunk)
    return job.results


def _with_team(job, threads):
    ticket = next(_tickets)
    _team_jobs[ticket] = job
    try:
        _team(_take_part, ticket, threads, 0)
    finally:
        del _team_jobs[ticket]


def _with_helpers(job, helpers):
    if _helpers < helpers:
        _grow(helpers)
    for _ in range(helpers):
        _jobs.put(job)
    job.run()
    job.finished.acquire()
