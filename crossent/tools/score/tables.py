"""Files of columns: what their columns are like, and their rows in blocks. Which columns are meant is for `roles`."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

SAMPLED = 1000  # rows at most, from which it is decided what the columns are
# Names of columns that have the labels, or the numbers of the rows.
LABELS = frozenset(
    "class classes ground_truth gt label label_id label_ids labels target targets true_label y y_true".split()
)
KNOWN = {"logits": frozenset(["logits"]), "labels": LABELS}
# Of columns that stand beside logits and are no classes.
OTHERS = frozenset(
    "argmax confidence epoch fold loss nll pred predicted prediction predictions sample_weight split step top1 weight "
    "y_hat y_pred yhat".split()
)
INDICES = frozenset("id idx index row row_id sample sample_id".split())
_MISSING = frozenset(["#n/a", "-", "?", "missing", "n/a", "na", "none", "null"])  # words for a number that is not there
_WHOLE = re.compile(r"[+-]?[0-9]+")


class UnclearError(ValueError):
    """Whether the first line is a header cannot be told from the file alone."""


@dataclass(frozen=True)
class Column:
    """What the first rows of a column are like, and its `name`, "" where it has none.

    `kind` is "whole" for numbers without a fraction, however they are written, "fraction" for others, "words", "lists"
    (of numbers), "empty", or "mixed" for words among numbers. `values` are the numbers, a row each of lists, or the
    words. `points` says how many of them are written with a point or an exponent, or are of a type of floats.
    """

    kind: str
    values: np.ndarray = field(default_factory=lambda: np.empty(0))
    points: int = 0
    name: str = ""

    @property
    def numbers(self) -> bool:
        return self.kind in ("whole", "fraction")

    @property
    def counts(self) -> bool:
        """Whether these are whole numbers that go up by one from row to row."""
        return self.kind == "whole" and len(self.values) > 1 and bool((np.diff(self.values) == 1).all())


@dataclass(frozen=True)
class Table:
    """Columns of as many rows. `read(columns, words, step)` gives those columns, as numbers or as words, in blocks.

    `header` says whether the columns have names, `index` which of them the file itself calls an index of the rows, and
    `note` what the file was taken for.
    """

    rows: int
    columns: tuple[Column, ...]
    read: Callable[[Sequence[int], bool, int], Iterator[np.ndarray]]
    header: bool = False
    index: frozenset[int] = frozenset()
    note: str = ""

    def name(self, i: int) -> str:
        """Of a column, for messages."""
        return name_of(self.columns[i].name, i)


def listed(names: Iterable[str], most: int = 10) -> str:
    names = list(names)
    return ", ".join([*names[:most], *["..."] * (len(names) > most)])


def name_of(name: str, i: int) -> str:
    return repr(name) if name else str(i)


def column_of(cells: Sequence[str]) -> Column:
    """A column of text, by some of its cells."""
    full = [cell for cell in cells if cell]
    written = [kind_of(cell) for cell in full]
    if not full:
        return Column("empty")
    if "words" in written:
        missing = {cell.lower() for cell in full} <= _MISSING
        return Column("words", np.array(full)) if set(written) == {"words"} and not missing else Column("mixed")
    return of_numbers(np.array(full, np.float64), written.count("fraction"))


def of_numbers(values: np.ndarray, points: int) -> Column:
    kind = "whole" if np.isfinite(values).all() and (values == np.floor(values)).all() else "fraction"
    return Column(kind, values, points)


def kind_of(cell: str) -> str:
    if _WHOLE.fullmatch(cell):
        return "whole"
    try:
        float(cell)
    except ValueError:
        return "words"
    return "fraction"
