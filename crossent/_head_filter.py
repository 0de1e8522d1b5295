"""The products of a gradient, with a few classes as they are and all others as a matrix of low rank.

The other classes are replaced by their projection on a few vectors: for each part of the vocabulary, the sums of its
other classes. Making these sums takes one pass over the gradient. Little is lost, because the singular values fall off
quickly: rare classes have nearly the same shares in every row. The error of a projection is never larger than that of
leaving these classes out. The sketch is that of Halko, Martinsson and Tropp, Finding Structure with Randomness (2011),
section 4.1, with parts of the vocabulary in place of random vectors.
"""

PARTS = 8
_AT_ONCE = 2**19  # numbers of chosen classes that are gathered at a time
_TINY = 1e-300  # in the place of the size of a vector of zeros


class FilteredProducts:
    """The products of one chunk: its rows `x`, and the derivatives of their losses by the logits."""

    def __init__(self, products, weight, x, dlogits):
        self._products, self._weight, self._x, self._dlogits = products, weight, x, dlogits
        self.add_up()

    def add_up(self):
        self._squares, self._parts = self._products.sums(self._dlogits, PARTS)

    def choose(self, eps):
        """Choose the classes whose root mean square is above eps, or nan."""
        self._chosen = ~(self._squares <= eps**2 * len(self._x))

    def multiply(self, dlogits, dtarget, rest, dloss):
        """Multiply the derivatives by a number and, unless they are None, the upstream gradients of the rows; those of
        the target as well, if there are any. `dlogits` are the derivatives with an axis of classes, and others behind.
        """
        if dloss is None and rest == 1.0:
            return
        rows = len(dlogits), *dlogits.shape[2:]
        factors = self._products.zeros(rows) + rest if dloss is None else rest * dloss
        for array in (dlogits, dtarget):
            if array is not None:
                _multiply(array, factors[:, None])
        self.add_up()

    def add(self, dinput, dweight, begins):
        """Add the products to the gradients that are not None. `begins` says that nothing was added to dweight yet."""
        if dinput is dweight is None:
            return
        products = self._products
        span = self._add_chosen(dinput, dweight, begins)
        if products.lib.reads and self._chosen.all():
            return
        _make_orthonormal(span)
        span = products.narrow(span)
        by_class = products.lib.xp.where(self._chosen, 0.0, products.combinations(span, self._dlogits))
        if dinput is not None:
            products.to_weight(dinput, span, products.to_input(by_class, self._weight))
        if dweight is not None:
            products.to_weight(dweight, by_class, products.to_input(span, self._x))

    def _add_chosen(self, dinput, dweight, begins):
        """Add the products of the chosen classes; the sums of the others, for each part and row."""
        products, rows = self._products, len(self._x)
        lib, step = products.lib, max(1, _AT_ONCE // rows)
        others = products.zeros((len(self._parts), rows))
        for part, (classes, sums) in enumerate(self._parts):
            chosen = lib.xp.argwhere(self._chosen[classes])[:, 0] + classes.start
            total = products.zeros((rows,))
            for start in range(0, len(chosen), step):
                some = chosen[start : start + step]
                dsome = lib.columns(self._dlogits, some)
                products.to_bias(total, dsome.T)
                dsome = products.rounded(dsome)
                if dinput is not None:
                    dinput += products.to_input(dsome, self._weight, some)
                if dweight is not None:
                    products.to_weight(dweight, dsome, self._x, some)
            others[part] = sums - total
        return products.wide(others)


def _make_orthonormal(vectors):
    """By Gram's and Schmidt's method, twice.

    What is left of a vector near the span of the others is mostly rounding, so it is made orthogonal a second time. If
    a vector lies in the span, nothing but rounding is left: the second time shows that, and the vector becomes 0.
    """
    for least in (0.0, 0.5):
        for i in range(len(vectors)):
            vector, rest = vectors[i], vectors[i + 1 :]
            size = (vector * vector).sum() ** 0.5
            vector *= (size > least) / size.clip(_TINY)
            rest -= (rest * vector).sum(1)[:, None] * vector


def _multiply(array, factors):
    """Multiply each row by its factor, a few rows at a time, since the product of 16-bit rows has 32 bits at first."""
    for lo in range(0, len(array), 16):
        array[lo : lo + 16] *= factors[lo : lo + 16]
