"""What a call asks for, beside the arrays that it is computed of."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call of a loss, or of the fused head.

    `dim` is the class axis as it was given; `picks` says that the input holds log-probabilities, of which each row
    needs one; `divisor` is the caller's denominator, `out_dtype` the losses' dtype as the array library names it. A
    head has options of its own in `how`, its shapes in `shape`, and beside the probabilities of a sparse target its
    `classes`. If the classes are spread over processes, `shard` says which of them this one has.
    """

    options: Any
    dim: int | None = None
    picks: bool = False
    divisor: Any = None
    out_dtype: Any = None
    in_place: bool = False
    how: Any = None
    shape: Any = None
    classes: Any = None
    shard: Any = None


@dataclass(slots=True, eq=False)
class Spread:
    """What a caller says of arrays that have one process's classes: which `group` of processes has the others', and the
    number of the first of its own, None if all have as many.

    `answered` says that this process has taken part in what the others send in this call.
    """

    group: Any
    first_class: Any
    answered: bool = False
