"""Partial results in files: an .npz archive of integers, and a head in JSON. Nothing in it is an object to unpickle.

The entries, int64 but for the head, of a score of C classes:

    head                  bytes of JSON: format, version, digest, options, classes, ignored, units, lengths, short,
                          groups, parts, worst, documents, inputs
    rows by class, ...    of each of `Counts.tables` the counts
    nll by class, ...     and of each exact sum the digits (k, n), and "...: place" (k,) with what they stand for
    confused, times       pairs of classes as numbers below C**2, and how often they came
    before                of `Tally`

The digest is that of all else, so that damage is seen wherever it is.
"""

import hashlib
import json
import operator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from crossent.tools import plain_json
from crossent.tools.explain.tally import EPS, Tally
from crossent.tools.files import replacing
from crossent.tools.score.formats import npz
from crossent.tools.score.groups import GroupCells
from crossent.tools.score.held import SKIPPED, Held, Options, Part
from crossent.tools.score.inputs import Along
from crossent.tools.score.metrics import Counts
from crossent.tools.score.readers import BadFile, printable
from crossent.tools.score.scaling import Scaling
from crossent.tools.score.sums import Cells, ExactSums
from crossent.tools.score.texts import UNITS, Document
from crossent.tools.score.worst import WorstRow

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
        known, version = head.pop("format") == FORMAT, head.pop("version")
    except PermissionError as error:
        raise BadFile(f"{path}: {error.strerror}") from error
    except Exception as error:
        raise BadFile(f"{path}: is no partial result of crossent score, or is damaged") from error
    if not known:
        raise BadFile(f"{path}: is no partial result of crossent score, or is damaged")
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
    head["documents"] = [asdict(one) for one in held.documents.worst]
    entries: dict[str, np.ndarray] = {}
    if held.counts is not None:
        counts = held.counts.settled()
        head |= {name: getattr(counts, name) for name in ("classes", "ignored", "units", "lengths")}
        head |= {"short": counts.pairs.short, "groups": counts.groups and list(counts.groups.numbers)}
        entries |= {"confused": counts.pairs.codes, "times": counts.pairs.counts}
        for what, table in _tables(counts).items():
            entries |= {f"{name} by {what}": column for name, column in table.whole.items()}
            for name, sums in table.exact.items():
                digits = sums.digits
                entries[f"{name} by {what}{_PLACE}"] = np.array(list(digits), np.int64)
                entries[f"{name} by {what}"] = np.array(list(digits.values()), np.int64).reshape(len(digits), sums.n)
    if (tally := held.inputs.tally) is not None:
        numbers = dict(vars(tally))
        entries["before"] = numbers.pop("before")
        along = {str(i): asdict(one) for i, one in held.inputs.along.items() if i}
        head["inputs"] = {"axis": held.inputs.axis, "shape": held.inputs.shape, "along": along}
        head["tally"] = numbers | {"_possible": sorted(tally._possible), "_above": float(tally._above)}
    return head, entries


def _unpacked(head: dict, entries: dict[str, np.ndarray]) -> Held:
    scaling = head["options"]["scaling"]
    scaling = scaling and Scaling(*(tuple(map(float, scaling[name])) for name in ("weight", "bias")))
    options = Options(**head["options"] | {"scaling": scaling})
    parts = {name: _part(**part) for name, part in head["parts"].items()}
    held = Held(options, parts, _counts(head, entries, options) if "classes" in head else None)
    held.worst.rows = tuple(_row(**row) for row in head["worst"])
    held.skipped.update({what: _number(head["skipped"][what]) for what in SKIPPED if what in head["skipped"]})
    held.documents.worst = tuple(_document(**one) for one in head["documents"])
    if held.counts is not None:
        held.check_classes(held.counts.classes)
    if "tally" in head:
        inputs, found = held.inputs, head["inputs"]
        inputs.tally = _tally(head["tally"], entries["before"])
        inputs.axis, inputs.shape = _number(found["axis"]), tuple(map(_number, found["shape"]))
        inputs.along = {int(i): Along(float(one["total"]), _number(one["rows"])) for i, one in found["along"].items()}
    return held


def _part(logits: str, labels: str, files: int, notes: list[str]) -> Part:
    return Part(printable(logits), printable(labels), _number(files), tuple(map(printable, notes)))


def _row(file: str | None, index: list, label: int, prediction: int, rank: int, logprob: Any, confidence: Any):
    label, prediction, rank = map(_number, (label, prediction, rank))
    at = tuple(map(operator.index, index))
    return WorstRow(file and printable(file), at, label, prediction, rank, float(logprob), float(confidence))


def _document(file: str | None, index: list, rows: Any, nll: Any) -> Document:
    return Document(file and printable(file), tuple(map(operator.index, index)), _number(rows), float(nll))


def _tally(found: dict, before: np.ndarray) -> Tally:
    numbers = {name: found.pop(name) for name in ("finite", "counted", "hits", "_far_above", "_bounded")}
    above, possible = float(found.pop("_above")), set(found.pop("_possible"))
    found |= {name: _number(value) for name, value in numbers.items()}
    if found["dtype"] not in EPS:
        raise Damage(f"rows of {found['dtype']}")
    return Tally(**found, before=before, _above=above, _possible=possible)


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise Damage(f"{value!r} rows")
    return value


def _tables(counts: Counts) -> dict[str, Cells]:
    return counts.tables | ({"group": counts.groups.table} if counts.groups else {})


def _counts(head: dict, entries: dict[str, np.ndarray], options: Options) -> Counts:
    classes, ignored, units = (_number(head[name]) for name in ("classes", "ignored", "units"))
    lengths = {name: _number(head["lengths"][name]) for name in UNITS if name in head["lengths"]}
    counts = Counts(classes, options.top_k, ignored, units, lengths)
    if head["groups"] is not None:
        counts.groups = GroupCells(map(str.__str__, head["groups"]))  # which refuses what is no name
    for what, table in _tables(counts).items():
        for name, empty in table.whole.items():
            table.whole[name] = _fitting(entries[f"{name} by {what}"], empty.shape)
        for name, sums in table.exact.items():
            place = entries[f"{name} by {what}{_PLACE}"]
            digits = _fitting(entries[f"{name} by {what}"], (len(place), sums.n))
            table.exact[name] = ExactSums(sums.n, dict(zip(place.tolist(), digits)))
    pairs, codes = counts.pairs, entries["confused"]
    pairs.codes, pairs.counts, pairs.short = codes, _fitting(entries["times"], codes.shape), _number(head["short"])
    tables = _tables(counts).values()
    for name in ("rows", "right", "impossible"):
        if len({int(table[name].sum()) for table in tables if name in table.whole}) > 1:
            raise Damage("tables of other rows")
    if (np.diff(codes) <= 0).any() or codes.max(initial=-1) >= counts.classes**2:
        raise Damage("counts that contradict each other")
    return counts


def _fitting(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape or array.min(initial=0) < 0:
        raise Damage(f"an entry of shape {array.shape}, not {shape}, or with numbers below 0")
    return array
