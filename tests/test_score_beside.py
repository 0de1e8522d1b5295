"""What stands beside the labels: groups and lengths, read from every kind of file and paired with the rows."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from score_files import example
from test_score_reading import text, write

from crossent.tools.score import readers
from crossent.tools.score.pairs import pair_of
from crossent.tools.score.readers import BadFile, Reading

N, T, C = 40, 3, 7
X, Y = example(N, C)
WORDS = np.array(["en", "de", "zh", "fr"])[np.arange(N) % 4]
NUMBERS = np.arange(N) % 5


def beside(folder, files, said, x=X, y=Y, name="group", **options):
    """The values of all blocks, each as long as its block of labels."""
    logits, labels, *_ = write(folder, {"x.npy": x, "y.npy": y, **files})
    pair = pair_of(logits, labels, Reading(**options), {name: f"{folder}/{said}"})
    blocks = list(pair.blocks())
    assert all(len(block.labels) == len(block.beside[name]) for block in blocks)
    return np.concatenate([block.beside[name] for block in blocks]), pair.notes


GROUPS = {
    "a series": ({"g.csv": text(WORDS, names=["language"])}, "g.csv", WORDS),
    "a series without a name": ({"g.csv": text(WORDS)}, "g.csv", WORDS),
    "a column by name": ({"g.csv": text(NUMBERS, WORDS, names=["year", "language"])}, "g.csv:language", WORDS),
    "a column by number": ({"g.csv": text(NUMBERS, WORDS)}, "g.csv:1", WORDS),
    "a column called group": ({"g.csv": text(NUMBERS, WORDS, names=["year", "group"])}, "g.csv", WORDS),
    "an index beside it": ({"g.csv": text(np.arange(N), WORDS, names=["", "x"])}, "g.csv", WORDS),
    "numbers, which stay as they are written": (
        {"g.csv": text([f"0{i}" for i in NUMBERS], names=["zip"])}, "g.csv", np.array([f"0{i}" for i in NUMBERS]),
    ),
    "words of bytes": ({"g.npy": np.char.encode(WORDS)}, "g.npy", WORDS),
    "whole numbers": ({"g.npy": NUMBERS}, "g.npy", NUMBERS),
    "floats": ({"g.npy": NUMBERS.astype(np.float32)[:, None]}, "g.npy", NUMBERS),
    "booleans": ({"g.npy": NUMBERS > 2}, "g.npy", NUMBERS > 2),
    "an entry by name": ({"g.npz": {"a": NUMBERS, "b": NUMBERS + 1}}, "g.npz:b", NUMBERS + 1),
    "an entry called group": ({"g.npz": {"a": NUMBERS, "group": NUMBERS + 1}}, "g.npz", NUMBERS + 1),
    "a colon in the name": ({"g:1.npy": NUMBERS}, "g:1.npy", NUMBERS),
    "shards": ({"g-9.npy": NUMBERS[:11], "g-10.npy": NUMBERS[11:]}, "g-*.npy", NUMBERS),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUPS)
def test_groups_are_read_from_ordinary_files(tmp_path, case, monkeypatch):
    monkeypatch.setattr(readers, "_AT_ONCE", 160)  # ten rows of no more than 16 numbers
    files, said, expected = GROUPS[case]
    found, notes = beside(tmp_path, files, said)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype.kind == expected.dtype.kind
    assert ("header" in str(notes)) == any(b"x\n" in f or b"group\n" in f or b"lang" in f or b"zip\n" in f
                                           for f in files.values() if isinstance(f, bytes))  # fmt: skip


def test_groups_in_the_file_of_logits_and_labels(tmp_path):
    lists = pa.FixedSizeListArray.from_arrays(X.reshape(-1), C)
    file = f"{tmp_path}/x.parquet"
    pyarrow.parquet.write_table(pa.table({"logits": lists, "label": Y, "language": WORDS}), file)
    pair = pair_of(file, None, Reading(), {"group": f"{file}:language"})
    np.testing.assert_array_equal(np.concatenate([block.beside["group"] for block in pair.blocks()]), WORDS)
    table = f"{tmp_path}/x.csv"
    with open(table, "wb") as out:
        out.write(text(X, Y, WORDS, names=[*(f"c{i}" for i in range(C)), "label", "language"]))
    pair = pair_of(table, None, Reading(), {"group": f"{table}:language"})
    np.testing.assert_array_equal(np.concatenate([block.beside["group"] for block in pair.blocks()]), WORDS)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_values_of_rows_and_of_labels(tmp_path, dim):
    x = np.moveaxis(np.zeros((N, T, C), np.float32), 2, dim)
    lengths = np.arange(N * T).reshape(N, T)
    for values in (lengths, lengths[:, 0]):
        found, _ = beside(tmp_path, {"n.npy": values}, "n.npy", x, np.zeros((N, T), int), "bytes", dim=dim)
        np.testing.assert_array_equal(found, values)


REFUSED = {
    "too few": ({"g.npy": NUMBERS[:-1]}, "x.npy: 40 rows of logits do not fit the 39 values of .*g.npy"),
    "axes": ({"g.npy": np.zeros((N, 2), int)}, r"g.npy: group must have the shape \(rows,\), got \(40, 2\)"),
    "fractions": ({"g.npy": NUMBERS + 0.5}, "g.npy: row 0: group must be whole numbers or words, got 0.5"),
    "several columns": (
        {"g.csv": text(NUMBERS, WORDS, names=["year", "of"])}, "holds 2 columns, name one of them behind a colon",
    ),
    "several entries": (
        {"g.npz": {"a": NUMBERS, "b": NUMBERS}}, "holds 2 entries, name one of them behind a colon, as in FILE:ENTRY",
    ),
    "another order": (
        {
            "x.csv": text(np.arange(N), X, names=["", *map(str, range(C))]),
            "g.csv": text(np.arange(N)[::-1], WORDS, names=["", "of"]),
        },
        "x.csv: names the same rows as .*g.csv in another order",
    ),
    "no such file": ({}, "g.npy: there is no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_groups_is_refused(tmp_path, case):
    files, message = REFUSED[case]
    names = {"x.csv" if "x.csv" in files else "x.npy": X, "y.npy": Y} | files
    logits, labels, *others = write(tmp_path, names)
    with pytest.raises(BadFile, match=message):
        list(pair_of(logits, labels, Reading(), {"group": others[0] if others else f"{tmp_path}/g.npy"}).blocks())


@pytest.mark.parametrize("values, message", [
    (-NUMBERS, "row 1: bytes must be whole numbers, none negative, got -1"),
    (WORDS, "bytes must be whole numbers"),
    (NUMBERS + 0.5, "row 0: bytes must be whole numbers, none negative, got 0.5"),
])  # fmt: skip
def test_lengths_are_whole_numbers(tmp_path, values, message):
    with pytest.raises(BadFile, match=message):
        beside(tmp_path, {"n.npy": values}, "n.npy", name="bytes")
