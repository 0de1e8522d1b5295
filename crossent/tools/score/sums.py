"""Exact sums of floats: the same bits in whatever order and in however many parts the summands come."""

import numpy as np

_BITS = 32
_UNIT = 2.0**_BITS
_OFTEN = 2**30  # digits that are added up without a carry: of 32 bits each, they fit 63


class ExactSums:
    """`n` sums of floats that are neither negative nor infinite.

    A sum is a whole number of fixed point, as wide as the summands need: `digits[i]` has its digit times 2**(32 * i),
    for each of the sums. Nothing is rounded before the sum is asked for.
    """

    def __init__(self, n: int, digits: dict[int, np.ndarray] | None = None):
        self.n, self._digits, self._uncarried = n, dict(digits or {}), 0

    def add(self, place: np.ndarray, values: np.ndarray) -> None:
        """Add each of the values, at most 2**20 in float64, to the sum of its place."""
        self._uncarried += len(values)
        while values.max(initial=0.0) >= _UNIT:
            i = (int(np.frexp(values.max())[1]) - 1) // _BITS
            digit = np.floor(np.ldexp(values, -_BITS * i))
            self._put(i, place, digit)
            values = values - np.ldexp(digit, _BITS * i)
        i = 0
        while values.any():
            digit = np.floor(values)
            self._put(i, place, digit)
            values, i = (values - digit) * _UNIT, i - 1
        if self._uncarried > _OFTEN:
            self._carry()

    def _put(self, i: int, place: np.ndarray, digit: np.ndarray) -> None:
        if digit.any():
            self._add(i, np.bincount(place, digit, self.n).astype(np.int64))

    def _add(self, i: int, digit: np.ndarray) -> None:
        self._digits[i] = self._digits[i] + digit if i in self._digits else digit

    def merge(self, other: "ExactSums") -> None:
        self._carry()
        for i, digit in other.digits.items():
            self._add(i, digit)

    def _carry(self) -> None:
        self._digits, self._uncarried = self.digits, 0

    @property
    def digits(self) -> dict[int, np.ndarray]:
        """From the lowest to the highest, all from 0 to 2**32 - 1: a form that a sum has once."""
        found, waiting = {}, dict(self._digits)
        while waiting:
            i = min(waiting)
            digit = waiting.pop(i)
            carry, digit = digit >> _BITS, digit & (2**_BITS - 1)
            if carry.any():
                waiting[i + 1] = waiting[i + 1] + carry if i + 1 in waiting else carry
            if digit.any():
                found[i] = digit
        return found

    def total(self) -> "ExactSums":
        """The one sum of all."""
        digits = {i: digit.sum(keepdims=True) for i, digit in self.digits.items()}
        return ExactSums(1, digits)

    def rounded(self) -> np.ndarray:
        """In float64, each within one unit in the last place; inf where a sum is beyond its range."""
        found = np.zeros(self.n)
        with np.errstate(over="ignore"):
            for i, digit in self.digits.items():
                found += np.ldexp(digit.astype(np.float64), _BITS * i)
        return found
