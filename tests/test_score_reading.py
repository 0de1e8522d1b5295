"""Ordinary files of pandas, NumPy, R and people: what is taken for what, the right number, and what is refused.

The right number is worked out here, in float64. `crossent score` and `crossent explain` have to read alike.
"""

import gzip
import math

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings, strategies as st

from crossent.tools.commands import _application
from crossent.tools.explain import command as explain_command
from crossent.tools.score import command, score
from crossent.tools.score.pairs import pair_of
from crossent.tools.score.readers import BadFile, Reading, two_files

N, C = 40, 10
RNG = np.random.default_rng(7)
Y = np.concatenate([[3], RNG.integers(0, C, N - 1)])
X = RNG.standard_normal((N, C)) + 1.5 * np.eye(C)[Y]
SHUFFLED = RNG.permutation(N)
NAMES = ["cat", "dog", "cow", "pig", "hen", "fox", "bee", "ant", "owl", "elk"]
WORDS = np.array(NAMES)[Y]


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


P = softmax(X)


def nll(x, y):
    return float((np.log(np.exp(x).sum(1)) - x[np.arange(len(y)), y]).mean())


RIGHT = nll(X, Y)


def text(*columns, names=None, between=",", mark=b""):
    """As pandas writes columns, each a vector or a matrix."""
    flat = [one for column in columns for one in (column.T if getattr(column, "ndim", 1) == 2 else [column])]
    rows = [between.join(str(cell) for cell in row) for row in zip(*flat)]
    head = [] if names is None else [between.join(map(str, names))]
    return mark + "".join(f"{line}\n" for line in [*head, *rows]).encode()


def parquet(columns, index=None):
    """As pandas writes a frame, whose index is a column where it is no range."""
    table = pa.table(columns)
    if index is not None:
        table = table.replace_schema_metadata({"pandas": f'{{"index_columns": ["{index}"], "columns": []}}'})
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


MARK = b"\xef\xbb\xbf"
COUNT = range(N)
Y_CSV = {"y.csv": text(Y)}
PARQUET = {str(i): X[:, i] for i in range(C)}

# name: the files (bytes or arrays), what the options say, and a part of what is said of them; None: nothing is said
READ = {
    "plain": ({"x.csv": text(X), **Y_CSV}, {}, None),
    "header of numbers": ({"x.csv": text(X, names=range(C)), **Y_CSV}, {}, "first line (0,1,2,...,9) is taken for"),
    "header of numbers from 1": ({"x.csv": text(X, names=range(1, C + 1)), **Y_CSV}, {}, "first line (1,2,3,...,10)"),
    "header of numbers, all logits whole": (
        {"x.csv": text(np.round(X).astype(int), names=range(C)), "y.npy": Y}, {"header": True}, "first line (0,1,2,",
    ),
    "index": ({"x.csv": text(COUNT, X, names=["", *range(C)]), **Y_CSV}, {}, "column 0 with the numbers of the rows"),
    "index, without header": ({"x.csv": text(COUNT, X), **Y_CSV}, {}, "column 0 with the numbers of the rows"),
    "index, as floats": ({"x.csv": text(np.column_stack([COUNT, X])), **Y_CSV}, {}, "column 0 with the numbers"),
    "index, shuffled": ({"x.csv": text(SHUFFLED, X, names=["", *NAMES]), **Y_CSV}, {}, "column 0 with the numbers"),
    "index, named": ({"x.csv": text(SHUFFLED, X, names=["id", *NAMES]), **Y_CSV}, {}, "column 'id' with the numbers"),
    "labels in the logits' file": (
        {"x.csv": text(X, Y, names=[*range(C), "label"]), **Y_CSV}, {}, "column 'label' with labels is left out",
    ),
    "both in one file": ({"x.csv": text(X, Y, names=[*NAMES, "label"])}, {}, "the labels are in column 'label'"),
    "both in one file, with index": (
        {"x.csv": text(COUNT, X, Y, names=["", *NAMES, "target"])}, {}, "the labels are in column 'target'",
    ),
    "both in one file, no header": ({"x.csv": text(X, Y)}, {}, "the labels are in column 10"),
    "both in one file, stacked": ({"x.csv": text(np.column_stack([X, Y]))}, {}, "the labels are in column 10"),
    "both in one file, names": (
        {"x.csv": text(COUNT, X, WORDS, names=["", *NAMES, "label"])}, {}, "class names are found in the header",
    ),
    "both in one file, twice named": ({"x.csv": text(X, Y), "_": "x.csv"}, {}, "the labels are in column 10"),
    "columns by number": ({"x.csv": text(Y, X, Y), **Y_CSV}, {"columns": "1-10"}, None),
    "columns by name": ({"x.csv": text(Y, X, names=["p", *NAMES]), **Y_CSV}, {"columns": "cat-fox,bee,ant-elk"}, ""),
    "mark and header": ({"x.csv": text(X, names=NAMES, mark=MARK), **Y_CSV}, {"columns": "cat-elk"}, "(cat,dog,cow,"),
    "mark, no header": ({"x.csv": text(X, mark=MARK), "y.csv": text(Y, mark=MARK)}, {}, None),
    "a class that is masked": ({"x.csv": text(np.column_stack([X, X[:, 0] * 0 - 1e4])), **Y_CSV}, {}, None),
    "index and labels, no header": ({"x.csv": text(COUNT, X, Y)}, {}, "column 0 with the numbers of the rows"),
    "tabs": ({"x.tsv": text(X, names=range(C), between="\t"), **Y_CSV}, {}, "first line (0,1,2,...,9)"),
    "semicolons": ({"x.csv": text(X, between=";"), **Y_CSV}, {}, None),
    "marks in names": ({"x.csv": text(X, names=['"a;b"', *NAMES[1:]]), **Y_CSV}, {}, "is taken for its header"),
    "blanks": ({"x.txt": text(X, between=" "), **Y_CSV}, {}, None),
    "blanks and a comment": ({"x.txt": text(X, between=" ", names=["#", "logits"]), **Y_CSV}, {}, "is taken for"),
    "packed": ({"x.csv.gz": gzip.compress(text(X, names=range(C))), **Y_CSV}, {}, "first line (0,1,2,...,9)"),
    "upper case": ({"X.CSV": text(X), "Y.NPY": Y}, {}, None),
    "quoted, as R does": (
        {"x.csv": text([f'"{i + 1}"' for i in COUNT], X, names=['""', *(f'"V{i}"' for i in range(C))]), **Y_CSV}, {},
        "column 0 with the numbers of the rows is left out",
    ),
    "names of files": (
        {"x.csv": text([f"img/{i}.png" for i in COUNT], X, names=["file", *NAMES]), **Y_CSV}, {},
        "column 'file' with words is left out",
    ),
    "ends of lines": ({"x.csv": text(X).replace(b"\n", b"\r\n"), "y.csv": text(Y).replace(b"\n", b"\r\n")}, {}, None),
    "series, a header of 0": ({"x.npy": X, "y.csv": text(Y, names=[0])}, {}, "first line (0) is taken for its header"),
    "series with index": ({"x.npy": X, "y.csv": text(COUNT, Y, names=["", 0])}, {}, "column 0 with the numbers"),
    "series with index, no header": ({"x.npy": X, "y.csv": text(COUNT, Y)}, {}, "column 0 with the numbers"),
    "rows that both call the same": (
        {"x.csv": text(SHUFFLED, X, names=["", *NAMES]), "y.csv": text(SHUFFLED, Y, names=["", "label"])}, {},
        "column 0 with the numbers of the rows is left out",
    ),
    "rows that one calls otherwise": (
        {"x.csv": text(COUNT, X, names=["", *NAMES]), "y.csv": text(SHUFFLED + 100, Y, names=["", "label"])}, {},
        "column 0 with the numbers of the rows is left out",
    ),
    "labels of files": (
        {"x.npy": X, "y.csv": text([f"{i}.png" for i in COUNT], Y)}, {}, "the labels are in column 1",
    ),
    "names, no header": ({"x.csv": text(X, names=NAMES), "y.csv": text(WORDS)}, {}, "class names are found in"),
    "names, header": ({"x.csv": text(X, names=NAMES), "y.csv": text(WORDS, names=["class"])}, {}, "class names are"),
    "names, in an array of bytes": ({"x.csv": text(X, names=NAMES), "y.npy": np.char.encode(WORDS)}, {}, "class names"),
    "names, in an array": ({"x.csv": text(X, names=NAMES), "y.npy": WORDS}, {}, "class names are found in"),
    "header in another order": (
        {"x.csv": text(X[:, ::-1], names=range(C)[::-1]), "y.npy": Y}, {"header": True}, "labels are the numbers in",
    ),
    "labels from 1, header from 1": (
        {"x.csv": text(X, names=range(1, C + 1)), "y.npy": Y + 1}, {}, "labels are the numbers in the header of",
    ),
    "parquet": ({"x.parquet": parquet(PARQUET), **Y_CSV}, {}, None),
    "parquet, index": (
        {"x.parquet": parquet(PARQUET | {"__index_level_0__": SHUFFLED}, "__index_level_0__"), **Y_CSV}, {},
        "column '__index_level_0__' with the numbers of the rows is left out",
    ),
    "parquet, named index and label": (
        {"x.parquet": parquet(PARQUET | {"y": Y, "photo": SHUFFLED}, "photo")}, {}, "the labels are in column 'y'",
    ),
    "parquet, lists and labels": (
        {"x.parquet": parquet({"logits": pa.FixedSizeListArray.from_arrays(X.reshape(-1), C), "label": Y})}, {},
        "the logits are the lists in column 'logits', the labels are in column 'label'",
    ),
    "an archive of both": ({"x.npz": {"a": X, "b": Y}}, {}, "entry 'a' has the logits, its entry 'b' has the labels"),
    "safetensors of both": ({"x.safetensors": {"a": X, "b": Y}}, {}, "its entry 'b' has the labels"),
    "labels (N, 1)": ({"x.npy": X, "y.npy": Y[:, None]}, {}, "labels of shape (40, 1) are read as (rows,)"),
    "labels, floats": ({"x.npy": X, "y.npy": Y * 1.0}, {}, "whole numbers with a fraction of 0"),
    "labels, floats of text": ({"x.npy": X, "y.csv": text(Y * 1.0)}, {}, None),
    "labels, half": ({"x.npy": X, "y.npy": Y.astype(np.float16)}, {}, "whole numbers with a fraction of 0"),
    "labels, unsigned": ({"x.npy": X, "y.npy": Y.astype(np.uint64)}, {}, None),
    "labels, small": ({"x.npy": X, "y.npy": Y.astype(np.uint8)}, {}, None),
    "one-hot": ({"x.npy": X, "y.npy": np.eye(C)[Y]}, {}, "the labels are one-hot"),
    "one-hot, booleans": ({"x.npy": X, "y.npy": np.eye(C, dtype=bool)[Y]}, {}, "the labels are one-hot"),
    "one-hot, text": ({"x.npy": X, "y.csv": text(np.eye(C, dtype=int)[Y], names=NAMES)}, {}, "the labels are one-hot"),
}  # fmt: skip


def write(folder, files):
    """Their paths; under "_" is the name of one that is given again."""
    paths = []
    for name, content in files.items():
        path = folder / (content if name == "_" else name)
        paths.append(str(path))
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, dict) and name.endswith(".npz"):
            np.savez(path, **content)
        elif isinstance(content, dict):
            safetensors.numpy.save_file(content, path)
        elif name != "_":
            with path.open("wb") as file:
                np.save(file, content)
    return paths


def scored(folder, files, **options):
    said = []
    found = score(*write(folder, files), note=said.append, reading=Reading(**options))
    return found, "\n".join(said)


@pytest.mark.parametrize("case", READ)
def test_ordinary_files(tmp_path, case, capsys):
    files, options, part = READ[case]
    found, said = scored(tmp_path, files, **options)
    expected = nll(np.round(X), Y) if case.endswith("whole") else RIGHT
    assert found.metrics.nll == pytest.approx(expected, rel=1e-6) and found.rows == N
    assert said == "" if part is None else part in said, said
    assert found.notes == tuple(said.splitlines()) and "." not in {f.name for f in found.findings}
    explained = explain_command._explained(write(tmp_path, files), Reading(**options), None, [], {})
    assert explained.result == pytest.approx(expected, rel=1e-6)
    told = capsys.readouterr().err
    assert told == "".join(f"crossent explain: {line}\n" for line in said.splitlines())


FIRST_EMPTY, FIRST_NA, LAST_EMPTY = (text(X).splitlines(keepends=True) for _ in range(3))
FIRST_EMPTY[0] = b"," + FIRST_EMPTY[0].partition(b",")[2]
FIRST_NA[0] = FIRST_NA[0].rpartition(b",")[0] + b",NA\n"
LAST_EMPTY[-1] = LAST_EMPTY[-1].rpartition(b",")[0] + b",\n"
NOT_CLOSED = text(X, WORDS, names=[*NAMES, "label"]).splitlines(keepends=True)
NOT_CLOSED[5] = b',"'.join(NOT_CLOSED[5].rsplit(b",", 1))
LONGER = text(X).splitlines(keepends=True)
LONGER[9] = b"1.5," + LONGER[9]

REFUSED = {
    "an empty cell in the first row": ({"x.csv": b"".join(FIRST_EMPTY), **Y_CSV}, {}, "row 0: column 0 is empty"),
    "NA in the first row": ({"x.csv": b"".join(FIRST_NA), **Y_CSV}, {}, "row 0: 'NA' in column 9 is not a number"),
    "an empty cell in the last row": ({"x.csv": b"".join(LAST_EMPTY), **Y_CSV}, {}, "row 39: column 9 is empty: fill"),
    "a longer row": ({"x.csv": b"".join(LONGER), **Y_CSV}, {"columns": "0-9"}, "Row #10: Expected 10 columns, got 11"),
    "a quote that is not closed": ({"x.csv": b"".join(NOT_CLOSED)}, {}, "has 40 lines and 5 rows: a cell in quotes"),
    "a number as Python writes it": (
        {"x.csv": text(X, ["1_0"] * N), **Y_CSV}, {"columns": "0-10"}, "row 0: '1_0' in column 10 is not a number",
    ),
    "labels with fractions": (
        {"x.csv": text(X, X[:, 0], names=[*NAMES, "label"]), **Y_CSV}, {}, "'label' may be no class",
    ),
    "labels that floats do not hold": ({"x.npy": X, "y.csv": text(Y + 2**53)}, {}, "labels must be whole numbers"),
    "an index without order": (
        {"x.csv": text(SHUFFLED, X), **Y_CSV}, {}, "column 0 holds whole numbers and .* do not: .*--columns 1-10",
    ),
    "labels without a name": ({"x.csv": text(X, Y), **Y_CSV}, {}, "column 10 holds whole numbers .* --columns"),
    "two columns of whole numbers": (
        {"x.csv": text(X, Y, Y, names=[*NAMES, "label", "more"])}, {}, "column 'more' holds whole numbers",
    ),
    "a column whose name is of something else": (
        {"x.csv": text(X, X[:, 0], names=[*NAMES, "confidence"]), **Y_CSV}, {},
        "column 'confidence' may be no class, seen from its name: .*--columns",
    ),
    "a column that is not called like the others": (
        {"x.csv": text(X, X[:, 0], names=[*(f"logit_{i}" for i in range(C)), "x"]), **Y_CSV}, {}, "'x' may be no",
    ),
    "labels that are all 0": ({"x.csv": text(X, Y * 0), **Y_CSV}, {}, "column 10 holds whole numbers and"),
    "labels of one row": ({"x.csv": text(X[:1], Y[:1]), "y.npy": Y[:1]}, {}, "column 10 holds whole numbers and the"),
    "an index without order, no labels": ({"x.csv": text(SHUFFLED[SHUFFLED < C], X[:C])}, {}, "column 0 holds whole"),
    "index of one row": ({"x.csv": text([0], X[:1]), "y.npy": Y[:1]}, {}, "column 0 holds whole numbers and"),
    "rows in another order": (
        {"x.csv": text(COUNT, X, names=["", *NAMES]), "y.csv": text(SHUFFLED, Y[SHUFFLED], names=["", "label"])}, {},
        "x.csv: names the same rows as .*y.csv in another order, and rows are paired by their order: sort them alike",
    ),
    "rows in another order, labels named": (
        {
            "x.csv": text(COUNT, X, names=["", *NAMES]),
            "y.csv": text(SHUFFLED, Y[SHUFFLED], Y, names=["", "label", "more"]),
        },
        {"labels_key": "label"}, "names the same rows as .*y.csv in another order",
    ),
    "rows in another order, files": (
        {
            "x.csv": text([f"{i}.png" for i in COUNT], X, names=["file", *NAMES]),
            "y.csv": text([f"{i}.png" for i in SHUFFLED], Y[SHUFFLED], names=["file", "label"]),
        },
        {}, "names the same rows as .*y.csv in another order",
    ),
    "rows in another order, parquet": (
        {
            "x.csv": text(COUNT, X, names=["", *NAMES]),
            "y.parquet": parquet({"label": Y[SHUFFLED], "__index_level_0__": SHUFFLED}, "__index_level_0__"),
        },
        {}, "names the same rows as .*y.parquet in another order",
    ),
    "a class of words": ({"x.csv": text(X[:, :4], ["many"] * N, X[:, 5:]), **Y_CSV}, {}, "column 4 may be no class"),
    "a class that is missing": ({"x.csv": text(X[:, :9], ["NA"] * N), **Y_CSV}, {}, "row 0: 'NA' in column 9 is not a"),
    "a first column that counts": ({"x.csv": text(COUNT, np.round(X).astype(int)), **Y_CSV}, {}, "counts the rows"),
    "a first line of whole numbers": (
        {"x.csv": text(X, names=range(10, 110, 10)), "y.npy": Y[:9]}, {}, "may be a header or a row: say --header or",
    ),
    "a header of numbers, all logits whole": (
        {"x.csv": text(np.round(X).astype(int), names=range(C)), "y.npy": Y}, {}, "may be a header or a row: say --hea",
    ),
    "both first lines": (
        {"x.csv": text(np.round(X).astype(int), names=range(C)), "y.csv": text(Y, names=[0])}, {}, "may be a header or",
    ),
    "a header, said not to be one": (
        {"x.csv": text(X, names=range(C)), **Y_CSV}, {"header": False}, "41 rows of logits do not fit the 40 labels",
    ),
    "a header, said to be one": ({"x.csv": text(X), "y.npy": Y}, {"header": True}, "39 rows .* 40 labels"),
    "one label too many": ({"x.csv": text(X[:-1]), **Y_CSV}, {}, "39 rows .* 40 labels .*: is the first line .*"),
    "a decimal comma": (
        {"x.csv": text(X, between=";").replace(b".", b","), **Y_CSV}, {}, "no column of numbers .*, but words",
    ),
    "several blanks": ({"x.txt": text(X, between="  "), **Y_CSV}, {}, "between which are several blanks: write a sing"),
    "a blank before each line": (
        {"x.txt": b" " + text(X, between=" ").replace(b"\n", b"\n ").rstrip(), **Y_CSV}, {}, "several blanks: write a",
    ),
    "UTF-16": ({"x.csv": text(X).decode().encode("utf-16"), **Y_CSV}, {}, "is no text in UTF-8: save it so"),
    "names and no header": (
        {"x.npy": X, "y.csv": text(WORDS)}, {}, "y.csv: row .*: labels are names, such as '[a-z]+': store",
    ),
    "names of bytes": (
        {"x.csv": text(X, names=NAMES), "y.npy": np.where(WORDS == "cat", b"c\xe4t", np.char.encode(WORDS))}, {},
        "the label 'c.t' is none of the classes",
    ),
    "names of other classes": (
        {"x.csv": text(X, names=NAMES), "y.csv": text(np.where(WORDS == "cat", "yak", WORDS))}, {},
        "the label 'yak' is none of the classes in the header of .*x.csv: 'cat', 'dog', 'cow', 'pig', 'hen', ...",
    ),
    "labels from 0 or from 1": (
        {"x.csv": text(X, names=range(1, C + 1)), "y.npy": Y.clip(1, 8)}, {}, "its header has the numbers 1 to 10",
    ),
    "labels from 1": ({"x.npy": X, "y.npy": Y + 1}, {}, "label 10 is out of bounds.*one-based, subtract 1"),
    "no labels": ({"x.csv": text(X)}, {}, "holds no labels beside the logits: name the file of the labels as well"),
    "labels beyond all": ({"x.npy": X, "y.npy": Y.astype(np.uint64) + 2**63}, {}, "label 9223372036854775811 is"),
    "true or false of ten": ({"x.npy": X, "y.npy": Y > 4}, {}, "true or false need two classes, and there are 10"),
    "labels with a fraction": ({"x.npy": X, "y.npy": Y + 0.5}, {}, "row 0: labels must be whole numbers, got 3.5"),
    "labels that are missing": (
        {"x.npy": X, "y.npy": np.where(COUNT == np.int64(5), np.nan, Y)}, {}, "row 5: labels must .*, got nan",
    ),
    "probabilities as labels": ({"x.npy": X, "y.npy": P}, {}, "must be one-hot, a single 1 among zeros"),
    "columns that are not there": (
        {"x.csv": text(X), **Y_CSV}, {"columns": "1-10"}, "has no column '10', only 0, 1, 2,",
    ),
    "columns twice": ({"x.csv": text(X), **Y_CSV}, {"columns": "1-3,2"}, "--columns names a column twice"),
    "two columns of one name": (
        {"x.csv": text(X, names=["a", "a", *NAMES[2:]]), **Y_CSV}, {"key": "a"}, "has several columns 'a', only",
    ),
    "packed otherwise": ({"x.csv.bz2": b"", **Y_CSV}, {}, "is packed: unpack it first"),
    "no packed text": ({"x.csv.gz": text(X), **Y_CSV}, {}, "Not a gzipped file"),
    "packed text that ends early": ({"x.csv.gz": gzip.compress(text(X))[:-20], **Y_CSV}, {}, "x.csv.gz: "),
    "bytes of something": (
        {"x.npy": X.astype(ml_dtypes.float8_e4m3fn), **Y_CSV}, {}, r"holds \|V1, of which nothing says what it is",
    ),
    "shape": ({"x.npy": X.T.copy(), **Y_CSV}, {}, "10 rows .* fit the 40 labels .*: do the classes lie along axis 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_be_either_is_refused(tmp_path, case, capsys):
    files, options, message = REFUSED[case]
    with pytest.raises(BadFile, match=message):
        scored(tmp_path, files, **options)
    paths = write(tmp_path, files)
    assert command.run(paths, as_json=True, html=None, top=3, reading=Reading(**options)) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and err.splitlines()[-1].startswith("crossent score: ")
    if case not in ("labels from 1", "labels beyond all", "probabilities as labels"):  # which are findings, and right
        with pytest.raises(BadFile, match=message):
            pair_of(*two_files(paths), Reading(**options)).whole()


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_bfloat16_without_torch(tmp_path, kind, monkeypatch):
    """NumPy has no such type: what ml_dtypes writes is widened, exactly."""
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    half = X.astype(ml_dtypes.bfloat16)
    files = {"x.npy": half, "y.npy": Y} if kind == "npy" else {f"x.{kind}": {"logits": half, "y": Y}}
    found, said = scored(tmp_path, files)
    assert found.metrics.nll == pytest.approx(nll(half.astype(np.float64), Y), rel=1e-6)
    assert ("taken for bfloat16, as ml_dtypes writes it" in said) == (kind != "safetensors")
    found, _ = scored(tmp_path, {"x.npy": half, "y.npy": Y})
    np.testing.assert_array_equal(pair_of(f"{tmp_path}/x.npy", f"{tmp_path}/y.npy", Reading()).whole()[0], half)
    with pytest.raises(BadFile, match="there are no rows"):
        scored(tmp_path, {f"e.{kind}": half[:0], "z.npy": Y[:0]} if kind == "npy" else {
            f"e.{kind}": {"logits": half[:0], "y": Y[:0]}})  # fmt: skip


WRITTEN = {"pandas": lambda v: repr(float(v)), "savetxt": lambda v: f"{v:.18e}", "rounded": lambda v: f"{v:.3f}"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_frame_gives_a_wrong_number(tmp_path, data):
    """However a frame of logits is written, with whatever beside them: the right number, or a refusal."""
    rows, classes = data.draw(st.sampled_from([1, 2, 3, 9])), data.draw(st.sampled_from([2, 3, 10]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    labels = rng.integers(0, classes, rows)
    if data.draw(st.booleans(), "in order"):
        labels.sort()
    written = WRITTEN[data.draw(st.sampled_from(sorted(WRITTEN)))]
    cells = [[written(v) for v in row] for row in rng.normal(size=(rows, classes)) * 3]
    kinds = {"none": None, "from 0": range(classes), "from 1": range(1, classes + 1), "names": NAMES[:classes]}
    names = kinds[kind := data.draw(st.sampled_from(sorted(kinds)), "names")]
    columns, head = [*np.array(cells).T], None if names is None else [*names]
    beside = data.draw(st.sampled_from(["", "label", "pred", *(["words"] if kind == "names" else [])]), "beside")
    if beside:
        columns.append(np.array(NAMES)[labels] if beside == "words" else labels)
        head = None if head is None else [*head, "pred" if beside == "pred" else "label"]
    index = data.draw(st.sampled_from([None, np.arange(rows), rng.permutation(rows)]), "index")
    if index is not None:
        columns.insert(0, index)
        head = None if head is None else [data.draw(st.sampled_from(["", "id"]), "name of the index"), *head]
    mark = MARK if data.draw(st.booleans(), "mark") else b""
    files = {"x.csv": text(*columns, names=head, mark=mark, between=data.draw(st.sampled_from(",;\t"), "between"))}
    ways = {"array": labels, "text": text(labels), "header of 0": text(labels, names=[0]),
            "header": text(labels, names=["label"]), "index": text(range(rows), labels, names=["", "0"])}  # fmt: skip
    way = data.draw(st.sampled_from(sorted(ways) + ["the same"]), "labels")
    if way != "the same":
        files["y.npy" if way == "array" else "y.csv"] = ways[way]
    try:
        found, _ = scored(tmp_path, files)
    except BadFile:
        return
    known = (
        way != "the same" or beside in ("label", "words") or (beside == "pred" and head is None)
    )  # the only integers
    assert known and found.metrics.nll == pytest.approx(nll(np.array(cells, float), labels), rel=1e-6)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.text("0123456789.,;\t\n\r\"# -+eainfycl\ufeff\x00é", max_size=40),
    second=st.sampled_from(["", "a\nb\n", "1\n"]),
    suffix=st.sampled_from(["csv", "tsv", "txt"]), header=st.sampled_from([None, None, True, False]),
)  # fmt: skip
def test_any_text_is_scored_or_refused(tmp_path, content, second, suffix, header, capsys):
    paths = write(tmp_path, {f"x.{suffix}": content.encode(), **({"y.csv": second.encode()} if second else {})})
    status = command.run(paths, as_json=True, html=None, top=1, reading=Reading(header=header))
    out, err = capsys.readouterr()
    assert status == (0 if out else 2) and all(line.startswith("crossent score: ") for line in err.splitlines())


# Probabilities


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_probabilities_are_taken_for_what_they_are(tmp_path, dtype):
    p = P.astype(dtype)
    found, said = scored(tmp_path, {"x.npy": p, "y.npy": Y})
    right = p.astype(np.float64) / p.astype(np.float64).sum(1, keepdims=True)
    assert found.metrics.nll == pytest.approx(-np.log(right[np.arange(N), Y]).mean(), rel=1e-6)
    assert found.metrics.numbers["brier"] == pytest.approx(((right - np.eye(C)[Y]) ** 2).sum(1).mean(), rel=1e-6)
    assert "sum to 1: taken for probabilities (--logits takes them as they are)" in said and not found.findings
    paths = [str(tmp_path / name) for name in ("x.npy", "y.npy")]
    as_they_are = score(*paths, scale="logits")
    assert as_they_are.metrics.nll == pytest.approx(nll(p.astype(np.float64), Y), rel=1e-6)
    assert [finding.name for finding in as_they_are.findings] == ["probabilities"]
    assert score(*paths, scale="probabilities").metrics.nll == found.metrics.nll


def test_rounded_probabilities_have_to_be_named(tmp_path):
    rounded = np.round(P, 2)
    files = {"x.csv": text(rounded), "y.npy": Y}
    with pytest.raises(BadFile, match="as that of rounded probabilities: say --probabilities or --logits"):
        scored(tmp_path, files)
    right = rounded / rounded.sum(1, keepdims=True)
    found = score(*write(tmp_path, files), scale="probabilities")
    with np.errstate(divide="ignore"):
        assert found.metrics.nll == pytest.approx(-np.log(right[np.arange(N), Y]).mean(), rel=1e-6)


def test_predictions_of_0_and_1_have_to_be_named(tmp_path):
    """As probabilities their NLL is infinite, as logits it is not."""
    files = {"x.npy": np.eye(C)[Y[::-1]], "y.npy": Y}
    with pytest.raises(BadFile, match="every row is a single 1 among zeros: say --probabilities or --logits"):
        scored(tmp_path, files)
    assert score(*write(tmp_path, files), scale="probabilities").metrics.nll == np.inf
    assert score(*write(tmp_path, files), scale="logits").metrics.nll == pytest.approx(nll(np.eye(C)[Y[::-1]], Y))


def test_one_row_of_logits_makes_them_logits(tmp_path):
    """However late it comes; a row that is ignored says nothing."""
    mixed = np.concatenate([P, X[:1]])
    found, said = scored(tmp_path, {"x.npy": mixed, "y.npy": np.append(Y, 3)})
    assert not said and found.metrics.nll == pytest.approx(nll(mixed, np.append(Y, 3)), rel=1e-6)
    found, said = scored(tmp_path, {"x.npy": mixed, "y.npy": np.append(Y, -100)})
    assert "taken for probabilities" in said and found.metrics.nll == pytest.approx(RIGHT, rel=1e-6)


def test_log_probabilities_are_as_good_as_logits(tmp_path):
    files = {"x.npy": np.log(P), "y.npy": Y}
    found, said = scored(tmp_path, files)
    assert not said and found.metrics.nll == pytest.approx(RIGHT, rel=1e-6)
    assert [(f.name, f.severity) for f in found.findings] == [("log_probabilities", "note")]
    assert not score(*write(tmp_path, files), scale="log-probabilities").findings


@pytest.mark.parametrize("scale", ["probabilities", "log-probabilities"])
def test_a_scale_that_does_not_hold_is_refused(tmp_path, scale):
    bad = np.where(np.arange(N)[:, None] == 7, X, P if scale == "probabilities" else np.log(P))
    with pytest.raises(BadFile, match=f"x.npy: row 7: the numbers are no {scale}: they have"):
        score(*write(tmp_path, {"x.npy": bad, "y.npy": Y}), scale=scale)
    ignored = np.where(np.arange(N) == 7, -100, Y)
    assert score(*write(tmp_path, {"x.npy": bad, "y.npy": ignored}), scale=scale).metrics.ignored == 1


@pytest.mark.parametrize(("scale", "values"), [("probabilities", P), ("log-probabilities", np.log(P))])
def test_explain_takes_them_too(tmp_path, scale, values):
    paths = write(tmp_path, {"x.npy": values, "y.npy": Y})
    found = explain_command._explained(paths, Reading(), scale, [], {"label_smoothing": 0.0})
    assert found.function == "nll_loss" and found.result == pytest.approx(RIGHT, rel=1e-6)
    assert not [finding for finding in found.findings if finding.severity != "note"]
    with pytest.raises(ValueError, match=f"--label-smoothing is for logits, not for --{scale}"):
        explain_command._explained(paths, Reading(), scale, [], {"label_smoothing": 0.1})


# More axes


CUBE = RNG.standard_normal((6, 5, 4))
CUBE_LABELS = RNG.integers(0, 4, (6, 5))
IMAGES = RNG.standard_normal((3, 4, 2, 5))
IMAGE_LABELS = RNG.integers(0, 4, (3, 2, 5))
AXES = {
    "sequences": (CUBE, CUBE_LABELS, 2, nll(CUBE.reshape(-1, 4), CUBE_LABELS.reshape(-1))),
    "sequences, classes first": (
        np.moveaxis(CUBE, 2, 1), CUBE_LABELS, None, nll(CUBE.reshape(-1, 4), CUBE_LABELS.reshape(-1)),
    ),
    "images": (IMAGES, IMAGE_LABELS, None, nll(np.moveaxis(IMAGES, 1, -1).reshape(-1, 4), IMAGE_LABELS.reshape(-1))),
    "images, classes last": (
        np.moveaxis(IMAGES, 1, -1), IMAGE_LABELS, -1,
        nll(np.moveaxis(IMAGES, 1, -1).reshape(-1, 4), IMAGE_LABELS.reshape(-1)),
    ),
    "classes by rows": (X.T, Y, 0, RIGHT),
}  # fmt: skip


@pytest.mark.parametrize("case", AXES)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_logits_of_more_axes(tmp_path, case, kind):
    logits, labels, dim, right = AXES[case]
    logits = np.ascontiguousarray(logits)
    x = {"x.npz": {"x": logits}} if kind == "npz" else {"x.npy": logits}
    found, _ = scored(tmp_path, {**x, "y.npy": labels}, dim=dim)
    assert found.metrics.nll == pytest.approx(right, rel=1e-6) and found.rows == labels.size
    axis = 1 if dim is None else dim % logits.ndim
    last = np.moveaxis(logits, axis, -1)
    losses = np.log(np.exp(last).sum(-1)) - np.take_along_axis(last, labels[..., None], -1)[..., 0]
    place = found.worst[0].row
    assert losses[place] == losses.max() and isinstance(place, tuple if labels.ndim > 1 else int)
    explained = explain_command._explained(write(tmp_path, {**x, "y.npy": labels}), Reading(dim=dim), None, [], {})
    assert explained.result == pytest.approx(right, rel=1e-6)


def test_an_axis_that_does_not_fit(tmp_path):
    with pytest.raises(BadFile, match=r"must have the shape \(rows, 4\) .*or be one-hot; got \(6, 5\): .* with --dim"):
        scored(tmp_path, {"x.npy": CUBE, "y.npy": CUBE_LABELS})
    with pytest.raises(BadFile, match="--dim must be between -3 and 2 for logits of shape"):
        scored(tmp_path, {"x.npy": CUBE, "y.npy": CUBE_LABELS}, dim=3)


# What looks like a mistake


def confident(labels, classes=C):
    return RNG.normal(size=(*labels.shape, classes)) + 6.0 * np.eye(classes)[labels]


SQUARE = RNG.integers(0, 20, 20)
SEQUENCE = RNG.integers(0, 12, (8, 12))
MISTAKES = {
    "labels_off_by_one": ({"x.npy": confident(np.arange(N) % 7), "y.npy": np.arange(N) % 7 + 1}, "warning"),
    "class_axis": ({"x.npy": confident(SQUARE, 20).T.copy(), "y.npy": SQUARE}, "warning"),
    "class_axis, sequences": ({"x.npy": confident(SEQUENCE, 12), "y.npy": SEQUENCE}, "warning"),
    "softmax_twice": ({"x.npy": np.log(softmax(softmax(confident(Y)))), "y.npy": Y}, "error"),
    "one_class": ({"x.npy": X[:, :1], "y.npy": Y * 0}, "error"),
    "equal_logits": ({"x.npy": np.full((N, C), 2.5), "y.npy": Y}, "warning"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_explain_finds_score_finds(tmp_path, case, monkeypatch, capsys):
    """The same findings in the same words, however the rows are cut into blocks; and the page and JSON have them."""
    files, severity = MISTAKES[case]
    name = case.partition(",")[0]
    paths = write(tmp_path, files)
    explained = explain_command._explained(paths, Reading(), None, [], {})
    expected = {f.name: f for f in explained.findings}[name]
    assert expected.severity == severity
    for at_once in (2**23, 100):
        monkeypatch.setattr("crossent.tools.score.readers._AT_ONCE", at_once)
        found = {f.name: f for f in score(*paths).findings}
        assert found[name] == expected
    page = tmp_path / "page.html" if case in ("class_axis", "softmax_twice") else None  # a warning and an error
    assert command.run(paths, as_json=False, html=page, top=1) == 0
    assert " ".join(expected.sentence.split()[:4]) in " ".join(capsys.readouterr().out.split())
    assert page is None or f"<b>{severity}</b>" in page.read_text()


def test_healthy_files_are_not_accused(tmp_path):
    for x, y in ((X, Y), (confident(SQUARE, 20), SQUARE), (np.moveaxis(confident(SEQUENCE, 12), 2, 1), SEQUENCE)):
        assert not scored(tmp_path, {"x.npy": x, "y.npy": y})[0].findings


# Shards and names


def test_shards_have_to_be_read_alike(tmp_path):
    labels = write(tmp_path, {"y.npy": Y})
    parts = np.split(np.arange(N), 4)
    for i, rows in enumerate(parts):
        write(tmp_path, {f"x-{i}.csv": text(rows, X[rows], names=["", *range(C)])})
    said = []
    found = score(f"{tmp_path}/x-*.csv", *labels, note=said.append)
    assert found.metrics.nll == pytest.approx(RIGHT, rel=1e-6) and found.parts[0].files == 4
    assert len(said) == 1 and "x-0.csv and 3 more: the first line (,0,1,...,9) is taken for its header" in said[0]
    write(tmp_path, {"x-2.csv": text(X[parts[2]], names=range(C))})
    with pytest.raises(BadFile, match="x-2.csv: is read otherwise than .*x-0.csv: the first line"):
        score(f"{tmp_path}/x-*.csv", *labels)


def test_a_folder_and_many_files(tmp_path):
    (tmp_path / "shards").mkdir()
    for i in range(3):
        write(tmp_path / "shards", {f"x-{i}.npy": X})
    with pytest.raises(BadFile, match=r"shards: is a folder: name the files in it, as in '.*/shards/\*\.npy'"):
        score(str(tmp_path / "shards"), *write(tmp_path, {"y.npy": Y}))
    with pytest.raises(BadFile, match="-: files are read twice, and a stream cannot be: write it to a file first"):
        score("-", *write(tmp_path, {"y.npy": Y}))
    with pytest.raises(ValueError, match=r"got 5 files: put patterns in quotes, as in 'logits-\*\.npy'"):
        two_files(["a-0.npy", "a-1.npy", "a-2.npy", "a-3.npy", "y.npy"])


def test_true_and_false_of_two_classes(tmp_path):
    right = nll(X[:, :2], (Y > 4).astype(int))
    for labels in ({"y.npy": Y > 4}, {"y.csv": text(Y > 4)}, {"y.parquet": parquet({"label": Y > 4})}):
        found, said = scored(tmp_path, {"x.npy": X[:, :2], **labels})
        assert found.metrics.nll == pytest.approx(right, rel=1e-6) and "false is read as class 0" in said


def test_labels_of_words_that_are_numbers(tmp_path):
    words = Y.astype(str)
    for labels in (pa.array(words), pa.array(words, pa.large_string()), pa.array(words).dictionary_encode()):
        found, said = scored(tmp_path, {"x.parquet": parquet(PARQUET | {"label": labels})})
        assert found.metrics.nll == pytest.approx(RIGHT, rel=1e-6) and "labels are in column 'label'" in said


def test_labels_of_which_one_is_a_word(tmp_path):
    """It is skipped, and the others are no class of the logits."""
    labels = np.where(np.arange(N) == 3, "?", Y.astype(str))
    found, _ = scored(tmp_path, {"x.csv": text(X, labels, names=[*NAMES, "label"])}, skip_bad=True)
    keep = np.arange(N) != 3
    assert found.metrics.nll == pytest.approx(nll(X[keep], Y[keep]), rel=1e-6) and found.held.skipped["labels"] == 1


def test_a_few_rows_written_by_hand(tmp_path):
    """Whose columns have names, and one of them no number with a point: nobody knows whether it is a class. With points
    it may be whole by accident.
    """
    by_hand = {"x.csv": b"cat,dog,elk\n2,1.5,0.1\n0,3.5,-1.5\n", "y.csv": b"cat\nelk\n"}
    with pytest.raises(BadFile, match="column 'cat' holds whole numbers and the others do not: .* with --columns"):
        scored(tmp_path, by_hand)
    found, _ = scored(tmp_path, by_hand, columns="cat-elk")
    logits = np.array([[2, 1.5, 0.1], [0, 3.5, -1.5]])
    assert found.metrics.nll == pytest.approx(nll(logits, np.array([0, 2])), rel=1e-6)
    found, _ = scored(tmp_path, by_hand | {"x.csv": b"cat,dog,elk\n2.0,1.0,0.1\n0.0,3.0,-1.5\n"})
    logits = np.array([[2, 1, 0.1], [0, 3, -1.5]])
    assert found.metrics.nll == pytest.approx(nll(logits, np.array([0, 2])), rel=1e-6)


def test_labels_of_a_first_row_that_looks_like_a_header(tmp_path):
    """A label of 0 comes first: the number of the logits says that it is one."""
    labels = np.append(0, Y[1:])
    found, said = scored(tmp_path, {"x.npy": X, "y.csv": text(labels)})
    assert found.metrics.nll == pytest.approx(nll(X, labels), rel=1e-6) and not said


def test_one_class_and_an_axis_too_many(tmp_path):
    found, said = scored(tmp_path, {"x.npy": X[:, :1], "y.npy": Y[:, None] * 0})
    assert found.metrics.nll == 0.0 and "labels of shape (40, 1) are read as (rows,)" in said


@pytest.mark.parametrize("kind", ["pt", "npy"])
def test_logits_and_labels_of_two_libraries(tmp_path, kind):
    import torch

    files = write(tmp_path, {"x.npy": X, "y.npy": Y})
    torch.save(torch.from_numpy(X if kind == "pt" else Y), tmp_path / "t.pt")
    files = [f"{tmp_path}/t.pt", files[1]] if kind == "pt" else [files[0], f"{tmp_path}/t.pt"]
    assert score(*files).metrics.nll == pytest.approx(RIGHT, rel=1e-6)
    assert explain_command._explained(files, Reading(), None, [], {}).result == pytest.approx(RIGHT, rel=1e-6)


@pytest.mark.parametrize("name", ["x.csv", "x.npz", "x-*.npy", "x-*.pt", "x.parquet"])
def test_explain_reads_what_is_too_long_for_memory(tmp_path, name, monkeypatch):
    """Its rows lie in a file then, which nobody sees."""
    import torch

    monkeypatch.setattr("crossent.tools.score.readers._IN_MEMORY", N * C - 1)
    monkeypatch.setattr("crossent.tools.score.readers._AT_ONCE", 160)
    parts = [X[:7], X[7:].astype(np.float32)] if "*" in name else [X]
    for i, part in enumerate(parts):
        path = tmp_path / name.replace("*", str(i))
        if path.suffix == ".pt":
            torch.save(torch.from_numpy(part), path)
        else:
            content = {".csv": text(X), ".npz": {"x": X}, ".parquet": parquet(PARQUET)}.get(path.suffix, part)
            write(tmp_path, {path.name: content})
    files = [f"{tmp_path}/{name}", *write(tmp_path, {"y.npy": Y})]
    logits, labels, _ = pair_of(*files, Reading()).whole()
    assert isinstance(logits, np.memmap) and logits.dtype == np.float64
    np.testing.assert_array_equal(logits, np.concatenate(parts))
    np.testing.assert_array_equal(labels, Y)
    found = explain_command._explained(files, Reading(), None, [11, -1], {})
    assert found.result == pytest.approx(RIGHT, rel=1e-6) and [row.position for row in found.rows] == [11, N - 1]
    assert len([*tmp_path.iterdir()]) == len(parts) + 1


@pytest.mark.parametrize("room", [0, 1000])
def test_no_room_for_what_is_too_long_for_memory(tmp_path, room, monkeypatch, capsys):
    """No folder for temporary files, or a disk that is full, is a line and exit status 2."""
    import resource
    import tempfile

    monkeypatch.setattr("crossent.tools.score.readers._IN_MEMORY", N * C - 1)
    files = write(tmp_path, {"x.npz": {"x": X}, "y.npy": Y})
    monkeypatch.setattr(tempfile, "tempdir", None if room == 0 else tempfile.gettempdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(SystemExit) as ended:
            _application()(["explain", *files])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    out, err = capsys.readouterr()
    said = "No usable temporary directory" if room == 0 else "File too large: TMPDIR names another folder for it"
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert "x.npz: its rows have to lie in a temporary file, which cannot be written: " in err and said in err


def test_numbers_that_lie_askew(tmp_path):
    """As some writers of .safetensors leave them, behind three bytes of something else."""
    import json

    kinds = {"y": ("U8", Y.astype(np.uint8)[:39]), "x": ("F32", X[:39].astype(np.float32))}
    head, data = {}, b""
    for name, (kind, array) in kinds.items():
        offsets = [len(data), len(data) + array.nbytes]
        head[name], data = {"dtype": kind, "shape": array.shape, "data_offsets": offsets}, data + array.tobytes()
    told = json.dumps(head).encode()
    (tmp_path / "x.safetensors").write_bytes(len(told).to_bytes(8, "little") + told + data)
    found = score(f"{tmp_path}/x.safetensors")
    assert found.metrics.nll == pytest.approx(nll(X[:39], Y[:39]), rel=1e-6)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_come_in_the_order_in_which_they_are_named(tmp_path, kind):
    order = RNG.permutation(C)
    content = text(X, names=NAMES) if kind == "csv" else parquet(dict(zip(NAMES, X.T)))
    files = {f"x.{kind}": content, "y.npy": Y}
    found, _ = scored(tmp_path, files, columns=",".join(NAMES[i] for i in order))
    assert found.metrics.nll == pytest.approx(nll(X[:, order], Y), rel=1e-6)
    found, _ = scored(tmp_path, files, columns=",".join(map(str, order)))
    assert found.metrics.nll == pytest.approx(nll(X[:, order], Y), rel=1e-6)


@pytest.mark.parametrize("kind", ["npy", "npz", "pt"])
def test_no_rows_are_of_their_own_type(tmp_path, kind):
    import torch

    x, path = np.zeros((0, 3), np.int64), tmp_path / f"x.{kind}"
    {"npy": np.save, "npz": np.savez, "pt": lambda path, x: torch.save(torch.from_numpy(x), path)}[kind](path, x)
    files = [str(path), *write(tmp_path, {"y.npy": np.zeros(0, int)})]
    with pytest.raises(TypeError, match="input must be .* got (torch.)?int64"):
        explain_command._explained(files, Reading(), None, [], {})
    with pytest.raises(BadFile, match="input must be .* got (torch.)?int64"):
        score(*files)


def test_infinity_is_the_same_word_in_both(tmp_path, capsys):
    import json

    logits = X.copy()
    logits[4, Y[4]] = -np.inf
    files = write(tmp_path, {"x.npy": logits, "y.npy": Y})
    assert command.run(files, as_json=True, html=None, top=1) == 0
    said = json.loads(capsys.readouterr().out)
    explained = json.loads(explain_command._explained(files, Reading(), None, [], {}).to_json())
    assert said["nll"] == explained["result"] == "inf" and math.isinf(float(said["nll"]))
    assert said["worst"][0]["logprob"] == "-inf"
