"""A few threads that help a caller through its chunks of rows.

The caller works too and never waits for a helper to wake up: whoever is free takes the next chunk, and with no helper
at all (a forked child, an interpreter that shuts down) the caller does everything itself. Which thread takes a chunk
does not change its result.
"""

import os
from collections import deque
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


def _help():
    while True:
        _jobs.get().run()


def _forget():
    """A forked child has no threads but the one that forked."""
    global _jobs, _helpers, _growing
    _jobs, _helpers, _growing = SimpleQueue(), 0, Lock()


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
    helpers = min(threads, chunks) - 1
    if _helpers < helpers:
        _grow(helpers)
    job = _Job(work, chunks)
    for _ in range(helpers):
        _jobs.put(job)
    job.run()
    job.finished.acquire()
    for result in job.results:
        if isinstance(result, BaseException):
            raise result
    return job.results
