"""Which columns of a table are the classes and which has the labels, where only the table itself can tell.

What could be either is refused, and the message says which option settles it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crossent.tools.score.tables import Column, Table

# Names of columns that have the labels; of those that stand beside logits and are no classes; of the rows' numbers.
LABELS = frozenset(
    "class classes ground_truth gt label label_id label_ids labels target targets true_label y y_true".split()
)
_OTHERS = frozenset(
    "argmax confidence epoch fold loss nll pred predicted prediction predictions sample_weight split step top1 weight "
    "y_hat y_pred yhat".split()
)
_INDICES = frozenset("id idx index row row_id sample sample_id".split())
KNOWN = {"logits": frozenset(["logits"]), "labels": LABELS}
_ENOUGH = 3  # rows, before what they have in common says something
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


def _is_index(table: Table, i: int) -> bool:
    first, others = table.columns[0], table.columns[1:]
    if i or not others:
        return i in table.index
    nameless = table.header and first.name in ("", "Unnamed: 0") and any(column.name for column in others)
    alone = any(column.kind != "whole" for column in others) or (len(others) == 1 and not others[0].counts)
    named = first.name.lower() in _INDICES and first.kind == "whole"
    return i in table.index or nameless or named or (first.counts and alone)


def _has_labels(table: Table, i: int) -> bool:
    return table.columns[i].name.lower() in LABELS and table.columns[i].kind in ("whole", "words", "mixed", "empty")


def _has_words(table: Table, i: int) -> bool:
    return table.columns[i].kind == "words"


# What a column is that is no class, by the first of these that holds; and what is said of it where it is left out.
RULES: tuple[tuple[Callable[[Table, int], bool], str], ...] = (
    (_is_index, "the numbers of the rows"),
    (_has_labels, "labels"),
    (_has_words, "words"),
)
INDEX, LABEL, WORDS = (said for _, said in RULES)


def roles_of(table: Table) -> list[str]:
    """What each column is, "" for those that may be classes."""
    return [next((said for holds, said in RULES if holds(table, i)), "") for i in range(len(table.columns))]


def classes_of(table: Table, key: str | None, columns: str | None, labels_here: bool) -> Chosen:
    """The columns of the logits. `labels_here` says that the labels are to be found in the same table."""
    if table.header is None:
        raise ValueError(f"{table.note}: say --header or --no-header, which hold for both files")
    if key is not None:
        return Chosen((_place(table, key),))
    if columns is not None:
        return Chosen(_listed(table, columns))
    every, roles = range(len(table.columns)), roles_of(table)
    lists = [i for i in every if table.columns[i].kind == "lists"]
    if len(lists) > 1:
        raise ValueError(f"has several columns of lists, name one of them with --key: {table.names(lists)}")
    if lists:
        note = (f"the logits are the lists in column {table.name(lists[0])}",) if len(table.columns) > 1 else ()
        return Chosen((lists[0],), notes=note)
    kept = [i for i in every if not roles[i]]
    if not kept:
        said = "".join(f", but words such as {str(table.columns[i].values[:1])[1:21]}" for i in every[:1])
        raise ValueError(f"has no column of numbers for the logits{said}: {table.names(every)}")
    first, odd = kept[0], _odd(table, kept)
    if strange := _strange(table, kept) or [i for i in every if roles[i] == WORDS and kept[0] < i < kept[-1]]:
        raise ValueError(f"column {table.name(strange[0])} may be no class, seen from its name: {_SETTLE}")
    if labels_here and LABEL not in roles and len(odd) == 1 and not table.columns[odd[0]].differs:
        roles[odd[0]] = LABEL
        kept.remove(odd[0])
    elif odd:
        raise ValueError(f"column {table.name(odd[0])} holds whole numbers and the others do not: {_SETTLE}")
    if len(kept) > 1 and not table.header and table.columns[first].counts:
        raise ValueError(f"column {table.name(first)} counts the rows and may be a class or not: {_SETTLE}")
    notes = _left_out(table, [role if not labels_here or role != LABEL else "" for role in roles])
    if not table.header and all(table.columns[i].kind == "whole" for i in kept):
        notes = (*notes, f"whole numbers alone: all {len(kept)} columns are taken for classes")
    return Chosen(tuple(kept), notes=notes, ids=_ids(table, roles))


def beside_of(table: Table, key: str | None, role: str) -> Chosen:
    """The column of the labels, several where they are one-hot or probabilities, or that of what else has this role.

    Groups are words, whatever they look like.
    """
    columns, roles = table.columns, roles_of(table)
    rest = [i for i, one in enumerate(roles) if one != INDEX]
    ids, left_out = _ids(table, roles), _left_out(table, [one if one == INDEX else "" for one in roles])
    named = [i for i in rest if columns[i].name.lower() in KNOWN.get(role, {role})]
    whole = [i for i in rest if columns[i].kind in ("whole", "mixed") or _names_classes(columns[i])]
    found, notes = ([_place(table, key)] if key is not None else rest if len(rest) == 1 else []), left_out
    if not found:
        found = next((one for one in (named, whole if role == "labels" else []) if len(one) == 1), [])
        notes = tuple(f"the {role} {'are' if role == 'labels' else 'is'} in column {table.name(i)}" for i in found)
    if found:
        (column,) = found
        words = role == "group" or columns[column].kind == "words"
        return Chosen((column,), words, () if key is not None else notes, None if ids == column else ids)
    if role == "labels" and all(columns[i].kind in ("whole", "fraction") for i in rest):
        return Chosen(tuple(rest), notes=left_out)
    how = (
        "that of the labels with --labels-key" if role == "labels" else "one of them behind a colon, as in FILE:COLUMN"
    )
    raise ValueError(f"holds {len(rest)} columns, name {how}: {table.names(rest)}")


def _names_classes(column: Column) -> bool:
    return column.kind == "words" and not column.differs


def _ids(table: Table, roles: Sequence[str]) -> int | None:
    """The column that names the rows."""
    index = [i for i, role in enumerate(roles) if role == INDEX]
    return next(iter(index + [i for i, one in enumerate(table.columns) if one.kind == "words" and one.differs]), None)


def _place(table: Table, said: str) -> int:
    """The column of this name, or of this number from 0 on."""
    every = range(len(table.columns))
    found = [i for i in every if table.columns[i].name == said] or [i for i in every if str(i) == said]
    if len(found) != 1:
        raise ValueError(f"has {'several columns' if found else 'no column'} {said!r}, only {table.names(every)}")
    return found[0]


def _listed(table: Table, said: str) -> tuple[int, ...]:
    """Columns as --columns names them: names, numbers from 0, and from the first to the last of several."""
    known, found = {text for i, column in enumerate(table.columns) for text in (column.name, str(i))}, []
    for part in map(str.strip, said.split(",")):
        first, _, last = (part, "", part) if part in known else part.partition("-")
        found += range(_place(table, first.strip()), _place(table, last.strip()) + 1)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"--columns names a column twice, or none, got {said!r}")
    return tuple(found)


def _strange(table: Table, kept: Sequence[int]) -> list[int]:
    """Columns whose names are known to be of something else, or are not as most are, which differ in a number alone."""
    names = {i: table.columns[i].name.lower() for i in kept}
    stems = {i: name.rstrip("0123456789") for i, name in names.items()}
    (stem, times), *_ = Counter(stems[i] for i in kept if stems[i] != names[i]).most_common(1) or [("", 0)]
    unlike = [i for i in kept if 2 * times > len(kept) and (stems[i] != stem or names[i] == stem)]
    return [i for i in kept if names[i] in _OTHERS | LABELS] or unlike


def _odd(table: Table, kept: Sequence[int]) -> list[int]:
    """Columns of whole numbers among others, but for what may be a class: floats in a few rows, which may be whole by
    accident, and a masked class, which is always the same and not positive.
    """

    def may_be_class(column: Column) -> bool:
        values = column.values
        return column.floats and bool(len(values) < _ENOUGH or ((values == values[0]).all() and values[0] <= 0))

    kinds = [table.columns[i].kind for i in kept]
    some = "fraction" in kinds
    return [i for i, kind in zip(kept, kinds) if some and kind == "whole" and not may_be_class(table.columns[i])]


def _left_out(table: Table, roles: Sequence[str]) -> tuple[str, ...]:
    """Each kind of column that is not taken, in a few words."""
    of = {said: [i for i, role in enumerate(roles) if role == said] for _, said in RULES}
    return tuple(
        f"column{'s' * (len(some) > 1)} {table.names(some)} with {said} {'are' if len(some) > 1 else 'is'} left out"
        for said, some in of.items()
        if some
    )
