"""What is measured, and how fast it has to be."""

from dataclasses import dataclass, replace

from crossent.tools.bench import cases
from crossent.tools.bench.cases import HEAD

# What is put in proportion to what: "a / b" is the time of a over that of b, and "memory of" compares peaks instead.
AT_LEAST_OF_A_READ = {"read / forward": {"at_least": 0.9, "aim": 0.95}}
AT_LEAST_OF_A_COPY = dict.fromkeys(("copy / step", "copy / step in place"), {"at_least": 0.8, "aim": 0.9})
OF_LONG_ROWS = dict.fromkeys(("copy / step", "copy / step in place"), {"at_least": 0.7, "aim": 0.88})
OF_A_HEAD = {
    "liger / step": {"at_least": 8.0},
    "memory of step / memory of liger": {"at_most": 1.0},
    "eager / step": {},
    "chunked / step": {},
    "cce / step": {},
    "quack / step": {},
    "forward / product": {},
}
BOTH = {"syncs": {"at_most": 0}}


@dataclass(frozen=True)
class Case(cases.Case):
    """`limits` are those of `benchmarks.cases`, with what is aimed at."""

    limits: dict[str, dict[str, float]] = None  # pyright: ignore[reportAssignmentType]
    filter_eps: float = 0.0  # of a head that knows how frequent the classes are

    def small(self):
        """One that takes no time, of the same kinds of rows."""
        least = 8 if self.head else 4
        shape = tuple(min(size, least * (5 if axis == 1 or self.head else 1)) for axis, size in enumerate(self.shape))
        return replace(self, shape=shape, device="cpu")


def _case(shape: tuple[int, ...], dtype: str, limits: dict, function: str = "cross_entropy") -> Case:
    plain = cases.case_of(shape, dtype, function, "cuda")
    return Case(plain.name, shape, function=function, dtype=dtype, device="cuda", limits=limits | BOTH)


def _filtered(case: Case, filter_eps: float) -> Case:
    limits = {"step / products": {"aim": 0.6}} | BOTH
    return replace(case, name=f"{case.name}, filter_eps={filter_eps:g}", filter_eps=filter_eps, limits=limits)


OF_A_LARGE_HEAD = {"step / products": {"at_most": 1.06, "aim": 1.0}} | OF_A_HEAD
LARGE_HEAD = _case((8192, 4096, 128256), "bfloat16", OF_A_LARGE_HEAD, HEAD)
CASES = [
    _case((8192, 128256), "bfloat16", AT_LEAST_OF_A_READ | OF_LONG_ROWS),
    _case((4096, 256000), "bfloat16", OF_LONG_ROWS),
    _case((2048, 32000), "float32", AT_LEAST_OF_A_READ | AT_LEAST_OF_A_COPY),
    _case((4096, 8192), "float32", AT_LEAST_OF_A_READ | AT_LEAST_OF_A_COPY),
    _case(
        (8192, 32000),
        "bfloat16",
        AT_LEAST_OF_A_COPY
        | {
            "everything / step": {"at_most": 1.5, "aim": 1.2},
            "liger / step": {"at_least": 2.0},
            "compile / step": {"at_least": 1.3},
            "quack / step": {},
            "eager / step": {},
        },
    ),
    _case((4, 19, 512, 512), "float32", {"eager / step": {"at_least": 3.0}, "copy / step": {}}),
    _case((16, 150, 512, 512), "float32", {"eager / step": {"at_least": 3.0}} | AT_LEAST_OF_A_COPY),
    _case((32, 10), "float32", {"eager / step": {"at_least": 1.0}}),
    LARGE_HEAD,
    _filtered(LARGE_HEAD, 1.6e-4),
    _case((8192, 2048, 128256), "bfloat16", {"step / products": {"at_most": 1.1, "aim": 1.03}}, HEAD),
]
