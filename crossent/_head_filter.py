"""The products of a gradient with few of its classes as they are, and the others as a matrix of low rank.

Rows pass in groups, each of which chooses classes of its own. What it leaves out is replaced by the matrix of rank one
with the same sums over rows and over classes; those of all groups of a chunk go through the products together.
"""

_ROWS = 256  # of a group
_COLUMNS = 2048  # of those that are chosen, gathered at a time


class FilteredProducts:
    """Of one chunk of rows `x`: what they add to dweight, if that is not None, and to their own gradients."""

    def __init__(self, lib, weight, dweight, x, wants_input):
        self.groups = _groups(len(x))
        self._lib, self._weight, self._dweight, self._x = lib, weight, dweight, x
        self._dinput = lib.accumulator(x) if wants_input else None
        self._by_row = lib.zeros((len(self.groups), len(x)), x)
        self._by_class = lib.zeros((len(self.groups), len(weight)), x)

    def add(self, group, dlogits, chosen, sums, scale):
        """The products of the chosen classes of a group; `sums` lack the scale."""
        lib, (lo, hi) = self._lib, self.groups[group]
        by_class, squares, by_row = sums
        columns, by_row_chosen = lib.numbers(chosen), lib.zeros(hi - lo, self._x)
        for start in range(0, len(columns), _COLUMNS):
            some = columns[start : start + _COLUMNS]
            dsome = lib.columns(dlogits, some)
            lib.to_bias(by_row_chosen, dsome.T)
            if self._dinput is not None:
                self._dinput[lo:hi] += lib.to_input(dsome, self._weight, some)
            if self._dweight is not None:
                lib.to_weight(self._dweight, dsome, self._x[lo:hi], some)
        by_class[columns] = squares[columns] = 0.0
        by_row = by_row - by_row_chosen / scale
        whole, left_out = float(by_row.sum()), float(squares.sum()) ** 0.5
        # Sums that cancel each other could make the product much larger than what it stands for.
        if 2.0 * abs(whole) * left_out >= _norm(by_row) * _norm(by_class) > 0.0:
            self._by_row[group, lo:hi] = by_row * scale
            self._by_class[group] = by_class / whole

    def finish(self):
        """The gradients of the rows, None if nobody wants them."""
        lib = self._lib
        if self._dinput is not None:
            lib.to_weight(self._dinput, self._by_row, lib.to_input(self._by_class, self._weight))
        if self._dweight is not None:
            lib.to_weight(self._dweight, self._by_class, lib.to_input(self._by_row, self._x))
        return self._dinput


def _groups(rows):
    """(lo, hi) of even groups."""
    count = max(1, round(rows / _ROWS))
    step = -(-rows // count)
    return [(lo, min(lo + step, rows)) for lo in range(0, rows, step)]


def _norm(vector):
    return float((vector * vector).sum()) ** 0.5
