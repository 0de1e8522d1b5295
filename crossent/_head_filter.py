"""The products of a gradient with few of its classes as they are, and the others as a matrix of low rank.

What is left out is projected on the span of its sums over parts of the vocabulary, which come at the price of reading
it once: its singular values fall off quickly, since rare classes have nearly the same shares in every row. A projection
never brings a larger error than leaving everything out. The sketch is that of Halko, Martinsson and Tropp, Finding
Structure with Randomness (2011), section 4.1, with parts of the vocabulary for its random vectors.
"""

PARTS = 8
_AT_ONCE = 2**19  # numbers of the chosen classes, gathered at a time


class FilteredProducts:
    """Of one chunk: rows `x`, and the derivatives of their losses by the logits."""

    def __init__(self, lib, weight, x, dlogits):
        self._lib, self._weight, self._x, self._dlogits = lib, weight, x, dlogits
        self.add_up()

    def add_up(self):
        self._squares, self._parts = self._lib.sums(self._dlogits, PARTS)

    def choose(self, eps):
        """The classes whose root mean square is above eps, nan among them."""
        self._chosen = ~(self._squares <= eps**2 * len(self._x))

    def add(self, dinput, dweight):
        """Add to what is not None."""
        if dinput is dweight is None:
            return
        lib = self._lib
        span = self._add_chosen(dinput, dweight)
        if self._chosen.all():
            return
        _make_orthonormal(span)
        span = lib.narrow(span, lib.storage(self._squares))
        by_class = lib.combinations(span, self._dlogits)
        by_class[:, self._chosen] = 0.0
        if dinput is not None:
            lib.to_weight(dinput, span, lib.to_input(by_class, self._weight))
        if dweight is not None:
            lib.to_weight(dweight, by_class, lib.to_input(span, self._x))

    def _add_chosen(self, dinput, dweight):
        """The products of the chosen classes; what the others sum to, for each part and row."""
        lib, others, step = self._lib, [], max(1, _AT_ONCE // len(self._x))
        for classes, sums in self._parts:
            chosen, total = lib.numbers(self._chosen[classes]) + classes.start, lib.zeros(len(self._x), self._x)
            for start in range(0, len(chosen), step):
                some = chosen[start : start + step]
                dsome = lib.columns(self._dlogits, some)
                lib.to_bias(total, dsome.T)
                dsome = lib.rounded(dsome)
                if dinput is not None:
                    dinput += lib.to_input(dsome, self._weight, some)
                if dweight is not None:
                    lib.to_weight(dweight, dsome, self._x, some)
            others.append(sums - total)
        return lib.wide(others)


def _make_orthonormal(vectors):
    """By Gram's and Schmidt's method, twice: what is left of a vector near the others' span is mostly rounding, and of
    one that lies in it nothing else, as the second time shows; it becomes 0.
    """
    for least in (0.0, 0.5):
        for i in range(len(vectors)):
            vector, rest = vectors[i], vectors[i + 1 :]
            size = float((vector * vector).sum()) ** 0.5
            vector *= 1.0 / size if size > least else 0.0
            rest -= (rest * vector).sum(1)[:, None] * vector
