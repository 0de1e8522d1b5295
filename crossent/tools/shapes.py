"""Shapes as the command line writes them."""

ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "int64": 8}
DTYPES = ("float16", "bfloat16", "float32", "float64")


def shape_of(text: str, option: str, axes: tuple[str, ...] = ()) -> tuple[int, ...]:
    """2048x32000 as (2048, 32000); `axes` are the names of those that there have to be, if it matters."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() for part in parts) or (axes and len(parts) != len(axes)):
        wanted = f"{' x '.join(axes)} as " if axes else ""
        example = "x".join(("2048", "512", "32768")[: len(axes)] or ("2048", "32000"))
        raise ValueError(
            f"{option} must be {wanted}whole numbers with an x between them, such as {example}, got {text!r}"
        )
    return tuple(map(int, parts))


def check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
