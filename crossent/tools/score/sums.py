"""Tables of counts and of exact sums of floats: the same bits in whatever order and in however many parts rows come."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy

import numpy as np

_BITS = 32
_UNIT = 2.0**_BITS
_OFTEN = 2**30  # digits that are added up without a carry: of 32 bits each, they fit 63


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """nan where 0 is divided by 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole != 0)


def _digits_of(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Floats that are neither negative nor infinite as sums of digits times 2**(32 * i), with each i."""
    while values.max(initial=0.0) >= _UNIT:
        i = (int(np.frexp(values.max())[1]) - 1) // _BITS
        digit = np.floor(np.ldexp(values, -_BITS * i))
        yield i, digit
        values = values - np.ldexp(digit, _BITS * i)
    i = 0
    while values.any():
        digit = np.floor(values)
        yield i, digit
        values, i = (values - digit) * _UNIT, i - 1


class Cells:
    """A table of `n` cells into which rows fall, such as classes, bins or groups.

    `table[name]` has for each cell, of the `whole` names, how many rows there are ("rows") or for how many of them
    something is true, and of the `exact` ones the sums of floats that are neither negative nor infinite. These are
    whole numbers of fixed point, as wide as the summands need: `digits[name][i]` is the digit times 2**(32 * i).
    Nothing is rounded before a sum is asked for. A count has digit 0 alone, of any size.
    """

    def __init__(self, n: int, whole: Iterable[str], exact: Iterable[str] = ()):
        self.n, self.whole, self.exact, self._uncarried = n, tuple(whole), tuple(exact), 0
        self.digits: dict[str, dict[int, np.ndarray]] = {name: {0: np.zeros(n, np.int64)} for name in self.whole}
        self.digits |= {name: {} for name in self.exact}

    def __getitem__(self, name: str) -> np.ndarray:
        """Sums in float64, each within one unit in the last place; inf where one is beyond its range."""
        if name in self.whole:
            return self.digits[name][0]
        found = np.zeros(self.n)
        with np.errstate(over="ignore"):
            for i, digit in self.carried(name).items():
                found += np.ldexp(digit.astype(np.float64), _BITS * i)
        return found

    def mean(self, name: str) -> np.ndarray:
        """Of the rows of each cell; infinite where one of them is impossible."""
        total = np.where(self["impossible"] > 0, np.inf, self[name]) if name == "nll" else self[name]
        return ratio(total, self["rows"])

    def add(self, place: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """At most 2**20 rows that fall into these cells."""
        for name in self.whole:
            self.put(name, place if name == "rows" else place[rows[name]])
        for name in self.exact:
            for i, digit in _digits_of(rows[name]):
                if digit.any():
                    self.put(name, place, digit, i)
        self._uncarried += len(place)
        if self._uncarried > _OFTEN:
            self._carry()

    def put(self, name: str, place: np.ndarray, digit: np.ndarray | None = None, i: int = 0) -> None:
        """Add to digit `i` of a column 1, or as much as is said, for each of these places."""
        self._plus(name, i, np.bincount(place, digit, self.n).astype(np.int64, copy=False))

    def _plus(self, name: str, i: int, digit: np.ndarray) -> None:
        digits = self.digits[name]
        digits[i] = np.add(digits[i], digit, out=digits[i]) if i in digits else digit

    def carried(self, name: str) -> dict[int, np.ndarray]:
        """The digits of a sum from the lowest to the highest, all below 2**32: a form that it has once."""
        found, waiting = {}, dict(self.digits[name])
        while waiting and name in self.exact:
            i = min(waiting)
            digit = waiting.pop(i)
            carry, digit = digit >> _BITS, digit & (2**_BITS - 1)
            if carry.any():
                waiting[i + 1] = waiting.get(i + 1, 0) + carry
            if digit.any():
                found[i] = digit
        return found | waiting

    def _carry(self) -> None:
        self.digits, self._uncarried = {name: self.carried(name) for name in self.digits}, 0

    def merge(self, other: "Cells") -> None:
        self._carry()
        for name in other.digits:
            for i, digit in other.carried(name).items():
                self._plus(name, i, digit)

    def folded(self, n: int) -> "Cells":
        """`n` cells, each of all whose numbers differ by multiples of `n`."""
        return self._made(n, lambda column: column.reshape(-1, n).sum(0))

    def moved(self, places: np.ndarray, n: int) -> "Cells":
        """The same among `n` cells, at these places."""

        def of(column: np.ndarray) -> np.ndarray:
            found = np.zeros(n, np.int64)
            found[places] = column
            return found

        return self._made(n, of)

    def _made(self, n: int, of: Callable[[np.ndarray], np.ndarray]) -> "Cells":
        found = copy(self)
        found.n = n
        found.digits = {name: {i: of(digit) for i, digit in self.carried(name).items()} for name in self.digits}
        return found
