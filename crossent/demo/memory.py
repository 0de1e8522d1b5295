"""What this process takes and what the machine has left, in bytes."""

import os
import re
from pathlib import Path


def peak() -> int:
    """Of this process. On Linux not by getrusage, whose count starts from the parent's peak."""
    return _of_this_process("VmHWM") or _highest_by_getrusage()


def resident() -> int:
    """Of this process, now; its peak where the system does not say."""
    return _of_this_process("VmRSS") or _highest_by_getrusage()


def available() -> int:
    """What can be had without swapping; half of all memory where the system does not say."""
    found = re.search(r"MemAvailable:\s+(\d+)", _text("/proc/meminfo"))
    free = 1024 * int(found[1]) if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, used = _text("/sys/fs/cgroup/memory.max").strip(), _text("/sys/fs/cgroup/memory.current").strip()
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def in_megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def _of_this_process(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+)", _text("/proc/self/status"))
    return 1024 * int(found[1]) if found else 0


def _highest_by_getrusage() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
