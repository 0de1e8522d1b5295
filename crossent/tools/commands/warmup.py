"""`crossent warmup`: the kernels that most calls need, compiled before the first of them."""

from __future__ import annotations  # of which typer alone reads the values

from time import perf_counter
from typing import Annotated

from crossent.tools.commands.common import bad_input, typer


def warmup(
    dtypes: Annotated[
        list[str] | None,
        typer.Argument(metavar="DTYPE ...", help="float16, bfloat16, float32 (if left out) or float64."),
    ] = None,
) -> None:
    """Compile the kernels of common calls now, so that no first call has to wait for them.

    They are kept where numba keeps them: in the package's folder, else in the user's cache, else in a private
    folder in the temporary directory; with NUMBA_CACHE_DIR in that folder.
    """
    with bad_input():
        _compile(dtypes or ["float32"])


def _compile(dtypes: list[str]) -> None:
    from crossent.kernels.cpu.compile import folder
    from crossent.kernels.cpu.warmup import STORAGES, compile_for

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
