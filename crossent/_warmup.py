"""`crossent warmup`: the kernels that most calls need, compiled before the first of them."""

from time import perf_counter

from crossent.kernels.cpu.compile import folder
from crossent.kernels.cpu.warmup import STORAGES, compile_for


def run(dtypes: list[str]) -> None:
    for dtype in dtypes:
        if dtype not in STORAGES:
            raise ValueError(f"dtypes must be among {', '.join(STORAGES)}, got {dtype}")
    for dtype in dict.fromkeys(dtypes):
        began = perf_counter()
        count, compiled = compile_for(dtype)
        took = f"compiled in {perf_counter() - began:.1f} s" if compiled else "all of them there already"
        some = f"{compiled} of {count} kernels" if 0 < compiled < count else f"{count} kernels"
        print(f"{dtype}: {some} {took}")
    print(f"kept in {folder()}" if folder() else "no folder can be written: set NUMBA_CACHE_DIR to one that can")
