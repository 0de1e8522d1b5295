"""One line about kernels that take long to compile, sent to `logging`, which shows it unless told otherwise."""

import logging
import os
from contextlib import contextmanager
from threading import Lock, Timer
from time import monotonic

TOLD_AFTER = 2.0  # seconds of compiling in this process, before the line is logged
_log = logging.getLogger("crossent")
_changing = Lock()
_spent, _told = 0.0, False


def say_once(sentence):
    """Log this sentence, unless one about compiling has been logged already."""
    global _told
    with _changing:
        first, _told = not _told, True
    if first and not os.environ.get("CROSSENT_QUIET"):
        _log.warning("crossent: %s", sentence)


def _say_where(folder):
    say_once(
        "compiling kernels for this processor, which takes some seconds once; they are kept in "
        f"{folder} (`crossent warmup` compiles them ahead of time)"
    )


def _timer(folder):
    """A running timer, or None if none can be started."""
    timer = Timer(max(0.0, TOLD_AFTER - _spent), _say_where, (folder,))
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # the interpreter shuts down, or the system allows no more threads
        return None
    return timer


@contextmanager
def patience(cache):
    """Around the compilation of one kernel, which begins when the cache calls `on_miss`."""
    global _spent
    if cache is None:
        say_once(
            "no folder can be written to keep compiled kernels in, so that every process compiles them again: set "
            "NUMBA_CACHE_DIR to one that can"
        )
        yield
        return
    began, timer = None, None

    def begin():
        nonlocal began, timer
        began, timer = monotonic(), None if _told else _timer(cache.cache_path)

    cache.on_miss = begin
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        if began is not None:
            _spent += monotonic() - began
