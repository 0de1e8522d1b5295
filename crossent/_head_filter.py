"""The products of a gradient with few of its classes as they are, and the others as a matrix of low rank.

Rows pass in groups, each of which chooses classes of its own. What it leaves out is replaced by the matrix of rank one
with the same sums over rows and over classes; those of all groups of a chunk go through the products together.
"""

_ROWS = 256  # of a group
_COLUMNS = 2048  # of those that are chosen, gathered at a time


class FilteredProducts:
    """Of one chunk: rows `x`, and the derivatives of their losses by the logits."""

    def __init__(self, lib, weight, x, dlogits):
        self._lib, self._weight, self._x, self._dlogits = lib, weight, x, dlogits
        self._groups = _groups(len(x))
        self.add_up()

    def add_up(self):
        self._sums = [self._lib.sums(self._dlogits[rows]) for rows in self._groups]

    def choose(self, eps):
        """The classes of each group whose root mean square is above eps, nan among them."""
        lib = self._lib
        self._chosen = [
            lib.numbers(~(squares <= eps**2 * (rows.stop - rows.start)))
            for rows, (_, squares, _) in zip(self._groups, self._sums)
        ]

    def add(self, dinput, dweight, scale):
        """Add to what is not None; the derivatives have the scale, their sums lack it."""
        lib, x, groups = self._lib, self._x, len(self._groups)
        by_row, by_class = lib.zeros((groups, len(x)), x), lib.zeros((groups, len(self._weight)), x)
        for group, (rows, columns, sums) in enumerate(zip(self._groups, self._chosen, self._sums)):
            sum_of_chosen = self._add_chosen(dinput, dweight, rows, columns)
            some_by_class, squares, some_by_row = sums
            some_by_class[columns] = squares[columns] = 0.0
            some_by_row = some_by_row - sum_of_chosen / scale
            whole, left_out = float(some_by_row.sum()), float(squares.sum()) ** 0.5
            # Sums that cancel each other could make the product much larger than what it stands for.
            if 2.0 * abs(whole) * left_out >= _norm(some_by_row) * _norm(some_by_class) > 0.0:
                by_row[group, rows] = some_by_row * scale
                by_class[group] = some_by_class / whole
        if dinput is not None:
            lib.to_weight(dinput, by_row, lib.to_input(by_class, self._weight))
        if dweight is not None:
            lib.to_weight(dweight, by_class, lib.to_input(by_row, x))

    def _add_chosen(self, dinput, dweight, rows, columns):
        """The products of a group's chosen classes; the sum of these for each row."""
        lib = self._lib
        by_row = lib.zeros(rows.stop - rows.start, self._x)
        for start in range(0, len(columns), _COLUMNS):
            some = columns[start : start + _COLUMNS]
            dsome = lib.columns(self._dlogits[rows], some)
            lib.to_bias(by_row, dsome.T)
            if dinput is not None:
                dinput[rows] += lib.to_input(dsome, self._weight, some)
            if dweight is not None:
                lib.to_weight(dweight, dsome, self._x[rows], some)
        return by_row


def _groups(rows):
    """Slices of about as many."""
    count = max(1, round(rows / _ROWS))
    step = -(-rows // count)
    return [slice(lo, min(lo + step, rows)) for lo in range(0, rows, step)]


def _norm(vector):
    return float((vector * vector).sum()) ** 0.5
