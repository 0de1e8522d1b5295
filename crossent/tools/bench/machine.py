"""What numbers were measured on."""

import os
import platform
import re
import time
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

import llvmlite.binding as llvm

import crossent
from crossent.tools.bench.memory import text_of


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work_of_others() -> float:
    """Seconds that this process's processors have worked for other processes, until now; what it differs by counts.

    Without the system's word on that it only falls.
    """
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    ticks = 0
    for number, times in re.findall(r"^cpu(\d+) (.*)$", text_of("/proc/stat"), re.MULTILINE):
        if int(number) in mine:
            user, nice, system, _, _, *interrupted = map(int, times.split()[:8])  # the two are idle and waiting
            ticks += user + nice + system + sum(interrupted)
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def machine() -> dict:
    cpu = re.search(r"model name\s*:\s*(.+)", text_of("/proc/cpuinfo"))
    return {
        "cpu": f"{cpu[1] if cpu else platform.processor()} ({llvm.get_host_cpu_name()})",  # as compilers name its kind
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": platform.platform(),
        "huge_pages": text_of("/sys/kernel/mm/transparent_hugepage/enabled").strip(),
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of Python, of crossent and of those of the packages that are installed."""
    found = {"python": platform.python_version(), "crossent": crossent.__version__}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def measured_on(packages: tuple[str, ...]) -> dict:
    """The time, the machine and the versions."""
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"date": date, "machine": machine(), "versions": versions(packages)}


def in_words(measured: dict) -> str:
    """A line with the machine and the versions."""
    known = measured["machine"]
    units = {"gpu": "", "cpu": "", "cores": " cores", "threads": " threads", "memory_gb": " GB"}
    size = ", ".join(f"{known[name]}{unit}" for name, unit in units.items() if name in known)
    return f"{size}. {', '.join(f'{name} {number}' for name, number in measured['versions'].items())}."
