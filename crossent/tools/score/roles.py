"""Which columns of a table are the classes and which has the labels, where only the table itself can tell.

What could be either is refused, and the message says which option settles it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from crossent.tools.score.tables import INDICES, KNOWN, LABELS, OTHERS, Column, Table, listed

_ENOUGH = 3  # rows, before what they have in common says something; or decimals that a number has not
_SETTLE = "name the columns of the classes with --columns, as in --columns 1-10"


@dataclass(frozen=True)
class Chosen:
    """The columns that are meant, whether they hold words, and what was taken for what, if anything was.

    `ids` is a column that was left out and says what the rows are called.
    """

    columns: tuple[int, ...]
    words: bool = False
    notes: tuple[str, ...] = ()
    ids: int | None = None


def classes_of(table: Table, key: str | None, columns: str | None, labels_here: bool) -> Chosen:
    """The columns of the logits. `labels_here` says that the labels are to be found in the same table."""
    if key is not None:
        return Chosen((_named(table, key),))
    if columns is not None:
        return Chosen(_listed(table, columns))
    lists = _of_kind(table, range(len(table.columns)), "lists")
    if len(lists) > 1:
        raise ValueError(f"has several columns of lists, name one of them with --key: {_names(table, lists)}")
    if lists:
        note = (f"the logits are the lists in column {table.name(lists[0])}",) if len(table.columns) > 1 else ()
        return Chosen((lists[0],), notes=note)
    index, rest = _without_index(table)
    words = _of_kind(table, rest, "words")
    labels = [i for i in _called(table, rest, LABELS) if table.columns[i].kind in ("whole", "words", "empty")]
    kept = [i for i in rest if i not in words and i not in labels]
    if not kept:
        said = "".join(f", but words such as {str(table.columns[i].values[:1])[1:21]}" for i in words[:1])
        raise ValueError(f"has no column of numbers for the logits{said}: {_names(table, range(len(table.columns)))}")
    first = table.columns[kept[0]]
    if len(kept) > 1 and not table.header and first.counts and len(first.values) >= _ENOUGH:
        raise ValueError(f"column {table.name(kept[0])} counts the rows and may be a class or not: {_SETTLE}")
    if strange := _strange(table, kept) or [i for i in words if i not in labels and kept[0] < i < kept[-1]]:
        raise ValueError(f"column {table.name(strange[0])} may be no class, seen from its name: {_SETTLE}")
    odd = _odd(table, kept, labels_here)
    in_order = [i for i in odd if i == 0 and (np.diff(np.sort(table.columns[i].values)) == 1).all()]
    if odd and (len(odd) > 1 or labels or in_order or not labels_here):  # else these are the labels
        raise ValueError(f"column {table.name(odd[0])} holds whole numbers and the others do not: {_SETTLE}")
    labels += odd
    kept = [i for i in kept if i not in odd]
    notes = _left_out(table, index, () if labels_here else labels, [i for i in words if i not in labels])
    if not table.header and len(_of_kind(table, kept, "whole")) == len(kept):
        notes = (*notes, f"whole numbers alone: all {len(kept)} columns are taken for classes")
    ids = next((i for i in (*index, *words) if i in index or _all_differ(table, i)), None)
    return Chosen(tuple(kept), notes=notes, ids=ids)


def beside_of(table: Table, key: str | None, role: str) -> Chosen:
    """The column of the labels, several where they are one-hot or probabilities, or that of what else has this role.

    Groups are words, whatever they look like.
    """
    columns = table.columns
    index, rest = _without_index(table)
    words = [i for i in _of_kind(table, rest, "words") if _all_differ(table, i)]
    named, whole, notes = _called(table, rest, KNOWN.get(role, frozenset([role]))), [], ()
    if role == "labels":
        whole = [i for i in rest if columns[i].kind in ("whole", "words", "mixed") and i not in words]
    if key is not None:
        found = [_named(table, key)]
    elif len(rest) == 1:
        found, notes = rest, _left_out(table, index, (), ())
    else:
        found = next((one for one in (named, whole) if len(one) == 1), [])
        notes = tuple(f"the {role} {'are' if role == 'labels' else 'is'} in column {table.name(i)}" for i in found)
    if found:
        (column,) = found
        ids = next((i for i in (*index, *words) if i != column), None)
        return Chosen((column,), role == "group" or columns[column].kind == "words", notes, ids)
    if role != "labels":
        how = "one of them behind a colon, as in FILE:COLUMN"
    elif (
        len(whole) in (0, len(rest)) and all(columns[i].numbers for i in rest) and (not whole or _one_hot(table, rest))
    ):
        return Chosen(tuple(rest), notes=_left_out(table, index, (), ()))
    else:
        how = "that of the labels with --labels-key"
    raise ValueError(f"holds {len(rest)} columns, name {how}: {_names(table, rest)}")


def _all_differ(table: Table, i: int) -> bool:
    values = table.columns[i].values
    return len(set(values.tolist())) == len(values) > 1


def _named(table: Table, key: str) -> int:
    found = [i for i, column in enumerate(table.columns) if column.name == key]
    if not found and key in map(str, range(len(table.columns))):
        return int(key)
    if not table.header:
        raise ValueError(f"its first line has no names, got the key {key!r}: columns are numbered from 0")
    if not found:
        raise ValueError(f"has no column {key!r}, only {_names(table, range(len(table.columns)))}")
    if len(found) > 1:
        raise ValueError(f"has {len(found)} columns {key!r}")
    return found[0]


def _listed(table: Table, said: str) -> tuple[int, ...]:
    """Columns as --columns names them: names, numbers from 0, and from the first to the last of several."""
    found = [i for part in said.split(",") for i in _part(table, part.strip())]
    if len(set(found)) < len(found):
        raise ValueError(f"--columns names a column twice, got {said!r}")
    return tuple(found)


def _part(table: Table, part: str) -> Sequence[int]:
    places = {str(i): i for i in range(len(table.columns))}
    for known in ({column.name: i for i, column in enumerate(table.columns)}, places):
        if part in known:
            return [known[part]]
        for dash in re.finditer("-", part):
            first, last = part[: dash.start()].strip(), part[dash.end() :].strip()
            if first in known and last in known and known[first] <= known[last]:
                return range(known[first], known[last] + 1)
    raise ValueError(f"--columns: there is no column {part!r} among {_names(table, places.values())}")


def _without_index(table: Table) -> tuple[list[int], list[int]]:
    """The columns that number the rows, and all others."""
    columns, index = table.columns, set(table.index)
    first, others = columns[0], columns[1:]
    kinds, enough = {column.kind for column in others}, len(first.values) >= _ENOUGH
    alone = "fraction" in kinds or (len(others) == 1 and not others[0].counts)
    nameless = table.header and any(column.name for column in others) and first.name in ("", "Unnamed: 0")
    named = first.name.lower() in INDICES and first.kind == "whole"
    counts = first.counts and ("whole" not in kinds or (enough and alone))  # which can be nothing but the rows
    if len(index) < len(others) and (nameless or named or counts):
        index.add(0)
    return sorted(index), [i for i in range(len(columns)) if i not in index]


def _strange(table: Table, kept: Sequence[int]) -> list[int]:
    """Columns whose names do not belong to those of the others, or are known to be of something else."""
    known = _called(table, kept, OTHERS)
    parts = {i: match.groups() for i in kept if (match := re.fullmatch(r"(.*?)(\d{1,9})", table.columns[i].name))}
    if not parts or known:
        return known
    stem, _ = Counter(stem for stem, _ in parts.values()).most_common(1)[0]
    numbers = sorted(int(number) for i, (one, number) in parts.items() if one == stem)
    in_order = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return [i for i in kept if i not in parts or parts[i][0] != stem] if in_order else []


def _odd(table: Table, kept: Sequence[int], labels_here: bool) -> list[int]:
    """Columns of whole numbers among others: written otherwise, or whole where that is no accident.

    A float that is the same in all rows and not positive may be a class that is masked.
    """
    fractions = [table.columns[i] for i in _of_kind(table, kept, "fraction")]
    if not fractions:
        return []
    pointed = all(column.points == len(column.values) for column in fractions)
    decimals = _decimals(np.concatenate([column.values for column in fractions]))

    def is_odd(column: Column) -> bool:
        if pointed and not column.points:
            return True
        if (column.values == column.values[:1]).all() and (column.values <= 0).all():
            return False
        return labels_here or len(column.values) * decimals >= _ENOUGH

    return [i for i in _of_kind(table, kept, "whole") if is_odd(table.columns[i])]


def _decimals(values: np.ndarray) -> int:
    """How many the numbers have after the point, or more than enough."""
    finite = values[np.isfinite(values)]
    scaled = (finite * 10.0**decimals for decimals in range(_ENOUGH))
    return next((i for i, one in enumerate(scaled) if np.allclose(one, np.rint(one), 1e-12, 1e-9)), _ENOUGH)


def _one_hot(table: Table, columns: Iterable[int]) -> bool:
    values = [table.columns[i].values for i in columns]
    sample = np.array(values) if len({len(column) for column in values}) == 1 else np.empty((0, 0))
    return bool(np.isin(sample, (0, 1)).all() and (sample.sum(0) == 1).all())


def _of_kind(table: Table, columns: Iterable[int], kind: str) -> list[int]:
    return [i for i in columns if table.columns[i].kind == kind]


def _called(table: Table, columns: Iterable[int], names: frozenset[str]) -> list[int]:
    return [i for i in columns if table.columns[i].name.lower() in names]


def _names(table: Table, columns: Iterable[int]) -> str:
    return listed(map(table.name, columns))


def _left_out(table: Table, index: Sequence[int], labels: Sequence[int], words: Sequence[int]) -> tuple[str, ...]:
    """Each kind of column that is not taken, in a few words."""
    kinds = ((index, "the numbers of the rows"), (labels, "labels"), (words, "words"))
    return tuple(
        f"column{'s' * (len(of) > 1)} {_names(table, of)} with {what} {'are' if len(of) > 1 else 'is'} left out"
        for of, what in kinds
        if of
    )
