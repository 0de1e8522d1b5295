"""What a call is going to do, as an answer to `crossent.plan`."""

from dataclasses import dataclass

# The ways that a call may take.
KERNELS, STAGES, PLAIN = "kernels", "kernels in two stages", "plain operations"
NATIVE, OPERATOR = "PyTorch's own", "operator"


@dataclass(frozen=True)
class Plan:
    """How a call is computed: the answer of `crossent.plan`.

    `path` is "kernels", "kernels in two stages", "plain operations" or "PyTorch's own"; `arithmetic` the dtype of the
    sums; `chunk_rows` and `chunks` say how the rows of a fused head are cut, and are None elsewhere. `extra_bytes` is
    the memory that the call and its backward pass take at their peak beside arguments, results and gradients. `reasons`
    say why, one sentence each.
    """

    function: str
    path: str
    arithmetic: str
    extra_bytes: int
    chunk_rows: int | None = None
    chunks: int | None = None
    reasons: tuple[str, ...] = ()

    def __str__(self):
        chunks = f", {self.chunks} chunks of {self.chunk_rows} rows" if self.chunks is not None else ""
        head = f"{self.function}: {self.path} in {self.arithmetic}{chunks}, {self.extra_bytes / 1e6:.1f} MB beside"
        return "\n".join([f"{head} arguments, results and gradients", *(f"  {reason}" for reason in self.reasons)])
