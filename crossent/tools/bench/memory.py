"""What this process takes and what the machine has left, in bytes."""

import ctypes
import os
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import crossent

RESET_PEAK = "/proc/self/clear_refs"
SETTLE_SECONDS = 0.05  # JAX frees what is gone by and by


def of_this_process(field: str) -> int:
    """A field of the system's status of this process that is a size; 0 where there is none."""
    found = re.search(rf"{field}:\s+(\d+)", text_of("/proc/self/status"))
    return 1024 * int(found[1]) if found else 0


def peak() -> int:
    """Of this process. On Linux not by getrusage, whose count starts from the parent's peak."""
    return of_this_process("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident() -> int:
    """Of this process, now; its peak where the system does not say."""
    return of_this_process("VmRSS") or peak()


def available() -> int:
    """What can be had without swapping; half of all memory where the system does not say."""
    found = re.search(r"MemAvailable:\s+(\d+)", text_of("/proc/meminfo"))
    free = 1024 * int(found[1]) if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, used = text_of("/sys/fs/cgroup/memory.max").strip(), text_of("/sys/fs/cgroup/memory.current").strip()
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def extra_peak(call: Callable[[], object], device: str = "cpu") -> int | None:
    """What the call takes at its peak, after one that loads what there is to; None where the system does not say."""
    if device != "cpu":
        return _extra_peak_of_gpu(call)
    if not os.access(RESET_PEAK, os.W_OK):
        return None
    call()
    time.sleep(SETTLE_SECONDS)
    crossent.empty_cache()  # what waits there for this call would not be counted,
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # nor what the GNU C library holds; others have no such function, and hold little
    Path(RESET_PEAK).write_text("5")  # the peak starts again from what is resident now
    before = peak()
    call()
    return peak() - before


def _extra_peak_of_gpu(call: Callable[[], object]) -> int:
    import torch

    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def text_of(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
