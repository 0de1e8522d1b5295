"""What is measured, and the targets: how many times faster than a rival crossent has to be."""

from dataclasses import dataclass, field
from statistics import median

from crossent.tools.bench import cases

MODES = {
    "step": "forward, backward, free the gradient",
    "forward": "forward of logits that require a gradient, with no backward pass after it",
    "evaluation": "forward under no_grad",
}
LARGE = 64e6  # bytes of logits
LARGE_WITH_HUGE_PAGES = 1.5  # over the better of eager and compile
NOWHERE_BELOW = 0.95
COMPILED_AT_MOST = 1.10  # crossent under torch.compile over crossent eager, from COMPILED_FROM bytes
COMPILED_FROM = 1e6


def proportion(measured: str, samples: dict[str, list[float]]) -> float:
    """Of "a / b", the median over the rounds of a / b."""
    above, below = (samples[name] for name in measured.split(" / "))
    return median(a / b for a, b in zip(above, below, strict=True))


@dataclass(frozen=True)
class Case(cases.Case):
    step: dict[str, float] = field(default_factory=dict)  # rival -> target
    forward: dict[str, float] = field(default_factory=dict)
    arrays: str = "torch"
    modes: tuple[str, ...] = tuple(MODES)

    @property
    def rivals(self) -> tuple[str, ...]:
        if self.arrays == "numpy":
            return tuple(self.forward)
        own = ("own compile", "empty compile") if self.size >= COMPILED_FROM else ()
        return ("eager", "compile", *own, *(name for name in self.forward if name == "memory read"))

    def limits(self, mode: str, rival: str, huge_pages: bool) -> dict[str, float]:
        """What the ratio rival / crossent has to be: {"at_least": ...} or {"at_most": ...}.

        Empty where the rival is not asked.
        """
        if rival == "own compile":
            return {} if huge_pages else {"at_most": COMPILED_AT_MOST}
        if rival == "empty compile":  # no rival: how much of "own compile" is the compiler's own way to its code
            return {} if huge_pages else {"at_least": 0.0}
        targets = self.step if mode == "step" else self.forward
        if rival == "memory read":
            return {"at_least": targets[rival]} if mode == "evaluation" else {}
        if not huge_pages:
            return {"at_least": targets.get(rival, NOWHERE_BELOW)}
        return {"at_least": LARGE_WITH_HUGE_PAGES if self.size >= LARGE else NOWHERE_BELOW}


SEGMENTATION = (4, 19, 512, 512)

CASES = [
    Case(
        "2048 x 32000",
        (2048, 32000),
        {"eager": 7, "compile": 3.5},
        {"eager": 8, "compile": 2, "memory read": 0.8},
    ),
    Case("512 x 128256", (512, 128256), {"eager": 7, "compile": 3.5}, {"eager": 8, "compile": 2}),
    Case("4 x 19 x 512 x 512", SEGMENTATION, {"eager": 6, "compile": 2.5}, {"eager": 6, "compile": 1.5}),
    Case("4096 x 1000", (4096, 1000), {"eager": 3, "compile": 1.8}, {"eager": 2, "compile": 1.2}),
    Case("128 x 1000", (128, 1000), {"eager": 1.5, "compile": 2}, {"eager": 1.3}),
    Case("32 x 10", (32, 10), {"eager": 1.0, "compile": 2}, {"eager": 1.0}),
    Case(
        "2048 x 32000, smoothing, class weights",
        (2048, 32000),
        {"eager": 8, "compile": 3},
        {"eager": 8, "compile": 2},
        class_weights=True,
        options={"label_smoothing": 0.1},
    ),
    Case(
        "2048 x 32000, bfloat16",
        (2048, 32000),
        {"eager": 4, "compile": 2.5},
        {"eager": 4, "compile": 1.2},
        dtype="bfloat16",
    ),
    Case("512 x 32000, soft targets", (512, 32000), {"eager": 3}, {"eager": 3}, soft_targets=True),
    Case("512 x 32000, float64", (512, 32000), {"eager": 3}, {"eager": 3}, dtype="float64"),
    Case("1 x 4 x 96 x 96 x 96", (1, 4, 96, 96, 96), {"eager": 3}, {"eager": 3}),
    *(
        Case(f"{name}, {' x '.join(map(str, shape))}", shape, {"eager": target}, {"eager": target}, function=name)
        for name in ("softmax", "log_softmax")
        for shape, target in (((2048, 32000), 2), (SEGMENTATION, 2), ((32, 10), 0.95))
    ),
    Case("NumPy, 2048 x 32000", (2048, 32000), {}, {"scipy": 5}, arrays="numpy", modes=("evaluation",)),
    Case("NumPy, 4096 x 1000", (4096, 1000), {}, {"sklearn": 10}, arrays="numpy", modes=("evaluation",)),
]

# Beside the logits, in sizes of the logits: library, mode -> at most.
MEMORY_SHAPE = (2048, 32000)
MEMORY = {
    ("crossent", "step"): 1.1,
    ("crossent", "step in place"): 0.02,
    ("crossent", "evaluation"): 0.02,
    ("torch", "step"): None,
    ("torch", "evaluation"): None,
}

# Seconds: at most.
START = {"first call, kernels cached": 0.8, "all float32 kernels, from cold": 20.0}


@dataclass(frozen=True)
class HeadCase:
    """The fused head: time over that of the bare matrix products, and over rivals."""

    tokens: int
    features: int
    classes: int
    dtype: str
    limits: dict[str, dict[str, float]]  # what is compared -> its limit
    ignored: float = 0.0  # share of the labels
    trained: int = 0  # steps that the demo's language model is trained for; 0 for random numbers
    filter_eps: float = 0.0

    @property
    def name(self) -> str:
        ignored = f", {self.ignored:.0%} ignored" if self.ignored else ""
        trained = f", trained, filter_eps={self.filter_eps:g}" if self.trained else ""
        return f"head, {self.tokens} x {self.features} x {self.classes}, {self.dtype}{ignored}{trained}"


def _head_limits(dtype: str) -> dict[str, dict[str, float]]:
    return {
        "step / products": {"at_most": 1.05},
        "step in chunks of 512 MB / products": {},
        "torch chunked, best / step": {"at_least": 1.0},
        "torch chunked, default / step": {"at_least": 2.0 if dtype == "float32" else 8.0},
        "torch reference / step": {"at_least": 1.1},
        "forward / product": {"at_most": 1.08},
        "token stats / product": {"at_most": 1.1},
    }


LARGEST_HEAD = (16384, 256, 128256)  # its logits alone are 8.4 GB
HEAD_CASES = [
    *(
        HeadCase(*shape, dtype, _head_limits(dtype))
        for shape in ((2048, 512, 32768), (4096, 256, 50304))
        for dtype in ("float32", "bfloat16")
    ),
    HeadCase(8192, 64, 100000, "float32", {"torch chunked, best / step": {"at_least": 1.3}}),
    HeadCase(2048, 512, 32768, "float32", {"step / step without": {"at_most": 0.6}}, ignored=0.5),
    HeadCase(
        2048,
        128,
        32000,
        "float32",
        {
            "step / products": {"at_most": 0.6},
            "error of input's gradient / exact input's gradient": {"at_most": 2.0**-9},
            "error of weight's gradient / exact weight's gradient": {"at_most": 2.0**-9},
        },
        trained=100,
        filter_eps=1.6e-4,
    ),
    HeadCase(*LARGEST_HEAD, "float32", {"step / products": {}}),
]


@dataclass(frozen=True)
class SpreadCase:
    """A loss, or a head if there are features, whose classes are spread over two processes."""

    name: str
    rows: int
    classes: int
    features: int = 0
    # 1.1: within 10 % of what one process has to do with its own half, and of what has to be sent.
    limits: dict[str, dict[str, float]] = field(
        default_factory=lambda: {
            "step / half + sent": {"at_most": 1.1},
            "step of plain tensors / half + sent": {"at_most": 1.1},
            "sent / step": {},
            "loss_parallel / step": {"at_least": 1.0},
        }
    )


SPREAD = {
    case.name: case
    for case in (
        SpreadCase("cross entropy, 1024 x 32000, float32", 1024, 32000),
        SpreadCase("head, 1024 x 256 x 32000, float32", 1024, 32000, 256),
    )
}

# Bytes beside inputs, gradients and accumulator: the default chunk and 16 MB.
HEAD_MEMORY_AT_MOST = 2**26 + 16e6
HEAD_MEMORY = {
    f"{' x '.join(map(str, shape))}, {dtype}, {variant}": (shape, dtype, variant)
    for shape, dtype, variant in (
        *(((4096, 256, 50304), "float32", what) for what in ("mean", "sum", "none", "smoothing", "soft targets")),
        ((4096, 256, 50304), "bfloat16", "mean"),
        (LARGEST_HEAD, "float32", "mean"),
    )
}
