"""What is measured: a function, and the shapes and dtypes of its arrays."""

from dataclasses import KW_ONLY, dataclass, field
from math import prod
from typing import Any

from crossent.tools.shapes import ITEM_SIZES

HEAD = "linear_cross_entropy"


@dataclass(frozen=True)
class Case:
    """A call: of logits of `shape`, or for the fused head of (tokens, features, classes)."""

    name: str
    shape: tuple[int, ...]
    _: KW_ONLY
    function: str = "cross_entropy"
    dtype: str = "float32"
    soft_targets: bool = False
    class_weights: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def head(self) -> bool:
        return self.function == HEAD

    @property
    def size(self) -> int:
        """Bytes of the logits, which the fused head never holds as a whole."""
        numbers = self.shape[0] * self.shape[2] if self.head else prod(self.shape)
        return numbers * ITEM_SIZES[self.dtype]


def case_of(shape: tuple[int, ...], dtype: str, function: str, device: str) -> Case:
    head = "head, " if function == HEAD else ""
    name = f"{head}{' x '.join(map(str, shape))}, {dtype}"
    return Case(name, shape, function=function, dtype=dtype, device=device)
