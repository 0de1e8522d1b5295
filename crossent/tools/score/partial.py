"""Partial results in files: an .npz archive of integers, and a head in JSON. Nothing in it is an object to unpickle.

The entries, int64 but for the head, of a score of C classes:

    head                  bytes of JSON: format, version, crossent, digest, options, parts, worst, skipped, documents,
                          classes, ignored, units, lengths, short, groups, inputs, tally
    rows by class, ...    of each of `Counts.tables` the counts
    nll by class, ...     and of each exact sum the digits (k, n), and "...: place" (k,) with what they stand for
    confused, times       pairs of classes as numbers below C**2, and how often they came
    before                of `Tally`

The digest is that of all else, so that damage is seen wherever it is.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from crossent.tools import plain_json
from crossent.tools.explain.tally import EPS, Tally
from crossent.tools.files import replacing
from crossent.tools.score.formats import npz
from crossent.tools.score.held import SKIPPED, Held, Options, Part
from crossent.tools.score.inputs import Along
from crossent.tools.score.metrics import Counts
from crossent.tools.score.readers import BadFile, printable
from crossent.tools.score.scaling import Scaling
from crossent.tools.score.sums import Cells
from crossent.tools.score.texts import UNITS
from crossent.tools.score.worst import Document, WorstRow

FORMAT, VERSION = "crossent score", 3
_LONGEST = 2**27  # numbers in an entry; a longer one is taken for damage
_PLACE = ": place"


class Damage(Exception):
    """What is in a file cannot be what was written."""


def name(held: Held, part: Part) -> str:
    """Of what was counted of a part: the same for the same rows of files of the same names, whoever counted them."""
    head, entries = _packed(held)
    for row in head["worst"]:
        row["file"] = Path(row["file"]).name
    head["parts"] = {"": {"logits": Path(part.logits).name, "labels": Path(part.labels).name}}
    told = {what: head.get(what) for what in ("options", "parts", "classes", "ignored", "groups", "worst")}
    return _digest(told, entries)


def write(path: Path, held: Held) -> None:
    head, entries = _packed(held)
    head["digest"] = _digest(head, entries)
    with replacing(path) as part, part.open("wb") as file:
        entries["head"] = np.frombuffer(plain_json.text(head).encode(), np.uint8)
        np.savez_compressed(file, **entries)  # pyright: ignore[reportArgumentType] - which takes them for its option


def read(path: Path) -> Held:
    """Raises BadFile for whatever is wrong with the file."""
    if not path.is_file():
        raise BadFile(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    try:
        found = npz(path)
        head = json.loads(next(found.pop("head").blocks(_LONGEST)).tobytes())
        if head.pop("format") != FORMAT:
            raise Damage("another format")
        version = head.pop("version")
    except PermissionError as error:
        raise BadFile(f"{path}: {error.strerror}") from error
    except Exception as error:
        raise BadFile(f"{path}: is no partial result of crossent score, or is damaged") from error
    if version != VERSION:
        raise BadFile(
            f"{path}: is of version {version} of the format, and this crossent reads {VERSION}: merge it with "
            f"the crossent that wrote it, {head.get('crossent')}"
        )
    try:
        entries = {name: _whole(stored) for name, stored in found.items()}
        digest = head.pop("digest")
        if digest != _digest(head | {"format": FORMAT, "version": VERSION}, entries):
            raise Damage("other numbers than its digest tells of")
        return _unpacked(head, entries)
    except Exception as error:
        raise BadFile(f"{path}: is damaged: score its rows again") from error


def _whole(stored) -> np.ndarray:
    if stored.kind != "i" or not 1 <= len(stored.shape) <= 2 or int(np.prod(stored.shape, dtype=object)) > _LONGEST:
        raise Damage(f"an entry of shape {stored.shape}")
    return np.concatenate(list(stored.blocks(max(1, stored.shape[0])))).astype(np.int64)


def _digest(head: dict, entries: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256(json.dumps(plain_json.plain(head), sort_keys=True).encode())
    for name, array in sorted(entries.items()):
        found.update(f"{name} {array.shape}".encode())
        found.update(np.ascontiguousarray(array, "<i8").tobytes())
    return found.hexdigest()


def _packed(held: Held) -> tuple[dict, dict[str, np.ndarray]]:
    import crossent

    head: dict[str, Any] = {"format": FORMAT, "version": VERSION, "crossent": crossent.__version__}
    head |= {"options": asdict(held.options), "parts": {name: asdict(part) for name, part in held.parts.items()}}
    head |= {"worst": [asdict(row) for row in held.worst.rows], "skipped": dict(held.skipped)}
    head["documents"] = [asdict(one) for one in held.documents.rows]
    entries: dict[str, np.ndarray] = {}
    if held.counts.classes:
        counts = held.counts.settled()
        head |= {name: getattr(counts, name) for name in ("classes", "ignored", "units")}
        head |= {
            "lengths": dict(counts.lengths),
            "short": counts.pairs.short,
            "groups": list(counts.groups.names) or None,
        }
        entries |= {"confused": counts.pairs.codes, "times": counts.pairs.rows}
        for key, table, name in _columns(counts):
            digits = table.carried(name)
            entries[key] = np.array([*digits.values()], np.int64).reshape(len(digits), table.n)
            if name in table.whole:
                entries[key] = entries[key][0]
            else:
                entries[key + _PLACE] = np.array([*digits], np.int64)
    if (tally := held.inputs.tally) is not None:
        numbers = dict(vars(tally))
        entries["before"] = numbers.pop("before")
        along = {str(i): asdict(one) for i, one in held.inputs.along.items() if i}
        head["inputs"] = {"axis": held.inputs.axis, "shape": held.inputs.shape, "along": along}
        head["tally"] = numbers | {"_possible": sorted(tally._possible), "_above": float(tally._above)}
    return head, entries


def _unpacked(head: dict, entries: dict[str, np.ndarray]) -> Held:
    held = Held(Options(**head["options"] | {"scaling": made(Scaling | None, head["options"]["scaling"])}))
    held.parts = {name: made(Part, part) for name, part in head["parts"].items()}
    held.worst.rows = made(tuple[WorstRow, ...], head["worst"])
    held.documents.rows = made(tuple[Document, ...], head["documents"])
    held.skipped.update({what: _number(head["skipped"][what]) for what in SKIPPED if what in head["skipped"]})
    if "classes" in head:
        held.check_classes(head["classes"])
        held.counts = _counts(head, entries, held.options)
    if "tally" in head:
        inputs, found = held.inputs, head["inputs"]
        inputs.tally = made(Tally, head["tally"] | {"before": entries["before"]})
        if inputs.tally.dtype not in EPS:
            raise Damage(f"rows of {inputs.tally.dtype}")
        inputs.axis, inputs.shape = made(int, found["axis"]), made(tuple[int, ...], found["shape"])
        inputs.along = {int(i): made(Along, one) for i, one in found["along"].items()}
    return held


def made(kind: Any, value: Any) -> Any:
    """What JSON says of a value of this kind, if it does."""
    outer, inner = get_origin(kind), get_args(kind)
    if hasattr(kind, "__dataclass_fields__"):
        return kind(**{name: made(inner, value[name]) for name, inner in get_type_hints(kind).items()})
    if outer is UnionType:  # with None
        return None if value is None else made(inner[0], value)
    if outer in (tuple, set):
        return outer(made(inner[0], one) for one in value)
    if kind is float:
        return float(value)  # also of words
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise Damage(f"{value!r} is no {kind}")
    return printable(value) if kind is str else value


def _number(value: Any) -> int:
    if made(int, value) < 0:
        raise Damage(f"{value!r} rows")
    return value


def _columns(counts: Counts) -> list[tuple[str, Cells, str]]:
    """The key of each entry, its table, and its name there."""
    known = [(what, table) for what, table in counts.tables.items() if table.n]
    return [(f"{name} by {what}", table, name) for what, table in known for name in table.digits]


def _counts(head: dict, entries: dict[str, np.ndarray], options: Options) -> Counts:
    counts = Counts(_number(head["classes"]), options.top_k)
    counts.ignored, counts.units = _number(head["ignored"]), _number(head["units"])
    counts.lengths.update({name: _number(head["lengths"][name]) for name in UNITS if name in head["lengths"]})
    counts.groups.numbered(map(str.__str__, head["groups"] or ()))  # which refuses what is no name
    for key, table, name in _columns(counts):
        if name in table.whole:
            table.digits[name] = {0: _fitting(entries[key], (table.n,))}
        else:
            place = entries[key + _PLACE]
            table.digits[name] = dict(zip(place.tolist(), _fitting(entries[key], (len(place), table.n))))
    pairs, codes = counts.pairs, entries["confused"]
    pairs.codes, pairs.rows, pairs.short = codes, _fitting(entries["times"], codes.shape), _number(head["short"])
    for name in ("rows", "right", "impossible"):
        if len({int(table[name].sum()) for _, table, column in _columns(counts) if column == name}) > 1:
            raise Damage("tables of other rows")
    if (np.diff(codes) <= 0).any() or codes.max(initial=-1) >= counts.classes**2:
        raise Damage("counts that contradict each other")
    return counts


def _fitting(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape or array.min(initial=0) < 0:
        raise Damage(f"an entry of shape {array.shape}, not {shape}, or with numbers below 0")
    return array
