"""Each finding of `crossent.explain`: a call that has the fault, and its healthy twin, which is not accused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import crossent
from crossent.tools.explain.words import number

RNG = np.random.default_rng(5)
N, C = 64, 8
LOGITS = RNG.normal(size=(N, C)).astype(np.float32) * 2
LABELS = RNG.integers(0, C, N)
HIDDEN, WEIGHT = RNG.normal(size=(N, 5)).astype(np.float32), RNG.normal(size=(C, 5)).astype(np.float32)


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def confident(labels, classes=C, scale=6.0):
    """Logits of a classifier that has learned its labels."""
    return (RNG.normal(size=(*labels.shape, classes)) + scale * np.eye(classes)[labels]).astype(np.float32)


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def call(*args, function=crossent.cross_entropy, **options):
    return function, args, options


def sparse(labels, prob=1.0):
    return crossent.SparseTarget(labels[:, None], np.full((N, 1), prob, np.float32))


NLL, HEAD = {"function": crossent.nll_loss}, {"function": crossent.linear_cross_entropy}
ZEROS = np.zeros((N, C), np.float32)
ONE_BASED = np.arange(N) % C + 1
FULL = np.full(N, -100)
SEQUENCE = RNG.integers(0, 12, (8, 12))  # batch, time; as many classes as times
TARGETS = softmax(RNG.normal(size=(4, 6, C)))  # batch, time, classes
with np.errstate(divide="ignore"):
    HALVES = np.log(0.5 * np.eye(C) + 0.5 * np.eye(C)[::-1])
RARE = np.where(np.arange(N) % 16 == 0, 7, np.arange(N) % 7)

# name: severity, the fault, its healthy twin, what the sentence has to name
CASES = {
    "bad_labels": (
        "error", call(LOGITS, changed(LABELS, 9, C)), call(LOGITS, LABELS), ("Row 9", "is no class: 8", "0 to 7"),
    ),
    "bad_labels, one-based": (
        "error", call(LOGITS, ONE_BASED), call(LOGITS, ONE_BASED - 1), ("one-based", "subtract 1"),
    ),
    "bad_labels, of the head": (
        "error", call(HIDDEN, WEIGHT, changed(LABELS, 3, -7), **HEAD), call(HIDDEN, WEIGHT, LABELS, **HEAD),
        ("Row 3", "-7"),
    ),
    "bad_labels, sparse": (
        "error", call(HIDDEN, WEIGHT, sparse(changed(LABELS, 3, C)), **HEAD),
        call(HIDDEN, WEIGHT, sparse(LABELS), **HEAD), ("Row 3",),
    ),
    "nothing_counts": (
        "error", call(LOGITS, FULL), call(LOGITS, changed(FULL, 3, 1)),
        ("all labels are ignore_index -100", "denominator"),
    ),
    "nothing_counts, with a denominator": (
        "error", call(LOGITS, LABELS, denominator=0), call(LOGITS, FULL, denominator=64.0), ("denominator is 0",),
    ),
    "nothing_counts, an empty batch": ("error", call(LOGITS[:0], LABELS[:0]), call(LOGITS[:1], LABELS[:1]), ("empty",)),
    "nothing_counts, class weights": (
        "error", call(LOGITS, LABELS * 0, np.eye(C)[1]), call(LOGITS, LABELS * 0, np.eye(C)[0]),
        ("weights", "sum to 0"),
    ),
    "nothing_counts, sample weights": (
        "error", call(LOGITS, LABELS, sample_weight=np.zeros(N)), call(LOGITS, LABELS, sample_weight=np.ones(N)),
        ("no row counts",),
    ),
    "weights_not_finite": (
        "error", call(LOGITS, LABELS, np.where(np.arange(C) == 2, np.nan, 1.0)),
        call(LOGITS, LABELS, np.arange(C) / 2.0),
        ("class 2",),
    ),
    "weights_not_finite, samples": (
        "error", call(LOGITS, LABELS, sample_weight=np.where(np.arange(N) == 6, np.inf, 1.0)),
        call(LOGITS, LABELS, sample_weight=np.arange(N) / 2.0), ("sample_weight of row 6",),
    ),
    "weights_not_finite, target": (
        "error", call(LOGITS, changed(softmax(LOGITS), (2, 5), np.nan)), call(LOGITS, softmax(LOGITS)),
        ("target of row 2",),
    ),
    "nan_logits": (
        "error", call(changed(LOGITS, (11, 3), np.nan), LABELS),
        call(changed(LOGITS, 11, np.nan), changed(LABELS, 11, -100)), ("Row 11", "class 3", "nan"),
    ),
    "nan_logits, of the head's weight": (
        "error", call(HIDDEN, changed(WEIGHT, (6, 1), np.nan), LABELS, **HEAD),
        call(changed(HIDDEN, 2, np.nan), WEIGHT, changed(LABELS, 2, -100), **HEAD),
        ("linear_weight of class 6", "64 of 64"),
    ),
    "nan_logits, of the head's input": (
        "error", call(changed(HIDDEN, 2, np.nan), WEIGHT, LABELS, **HEAD), call(HIDDEN, WEIGHT, LABELS, **HEAD),
        ("input of row 2",),
    ),
    "infinite_logits": (
        "error", call(changed(LOGITS, (4, 1), np.inf), LABELS),
        call(changed(LOGITS, (4, 1), np.inf), LABELS, softcap=30.0), ("Row 4", "class 1", "inf"),
    ),
    "infinite_logits, float16": (
        "error", call(changed(LOGITS.astype(np.float16), (4, 1), np.inf), LABELS),
        call(LOGITS.astype(np.float16), LABELS),
        ("float16 ends at 65504", "float32"),
    ),
    "nothing_left": (
        "error", call(changed(LOGITS, 8, -np.inf), LABELS),
        call(changed(LOGITS, (8, (LABELS[8] + 1) % C), -np.inf), LABELS),
        ("Row 8", "every logit is -inf"),
    ),
    "target_at_minus_infinity": (
        "error", call(changed(LOGITS, (8, LABELS[8]), -np.inf), LABELS),
        call(changed(LOGITS, (8, (LABELS[8] + 1) % C), -np.inf), LABELS), ("Row 8", f"{LABELS[8]}", "mask"),
    ),
    "target_at_minus_infinity, log-probabilities": (
        "error", call(HALVES, np.array([0, 1, 1, 3, 4, 5, 6, 7]), **NLL),
        call(HALVES, np.arange(C), **NLL), ("Row 2", "1"),
    ),
    "target_at_minus_infinity, smoothing": (
        "error", call(changed(LOGITS, (8, (LABELS[8] + 1) % C), -np.inf), LABELS, label_smoothing=0.1),
        call(changed(LOGITS, (8, (LABELS[8] + 1) % C), -1e4), LABELS, label_smoothing=0.1),
        ("Row 8", "label_smoothing", f"class {(LABELS[8] + 1) % C}"),
    ),
    "target_at_minus_infinity, probabilities": (
        "error", call(changed(LOGITS, (8, 2), -np.inf), np.full((N, C), 1 / C, np.float32)),
        call(changed(LOGITS, (8, 2), -np.inf), np.eye(C, dtype=np.float32)[np.where(LABELS == 2, 3, LABELS)]),
        ("Row 8", "class 2"),
    ),
    "overflow": (
        "error", call((LOGITS * 1000).astype(np.float16), LABELS, reduction="sum"),
        call((LOGITS * 1000).astype(np.float16), LABELS), ("sum", "65504"),
    ),
    "overflow, of a row": (
        "error", call(np.float16([[-6e4, 6e4], [0, 1]]), np.array([0, 1])),
        call(np.float32([[-6e4, 6e4], [0, 1]]), np.array([0, 1])),
        ("Row 0", "65504", "float32"),
    ),
    "one_class": (
        "error", call(LOGITS[:, :1], LABELS * 0), call(LOGITS[:, :2], LABELS % 2), ("one class",),
    ),
    "one_class, of the head": (
        "error", call(HIDDEN, WEIGHT[:1], LABELS * 0, **HEAD), call(HIDDEN, WEIGHT[:2], LABELS % 2, **HEAD), (),
    ),
    "equal_logits": (
        "warning", call(ZEROS + 2.5, LABELS), call(changed(ZEROS, (0, 1), 1.0), LABELS), ("all logits are equal",),
    ),
    "equal_logits, of rows that count": (
        "warning", call(changed(ZEROS, (0, 1), 1.0), changed(LABELS, 0, -100)),
        call(changed(ZEROS, (0, 1), 1.0), LABELS), (),
    ),
    "equal_logits, of the head": (
        "warning", call(HIDDEN, WEIGHT * 0, LABELS, **HEAD), call(HIDDEN, WEIGHT, LABELS, **HEAD), ("layer before",),
    ),
    "equal_logits, log-probabilities": (
        "warning", call(ZEROS - np.float32(np.log(C)), LABELS, **NLL), call(np.log(softmax(LOGITS)), LABELS, **NLL), (),
    ),
    "probabilities": (
        "error", call(softmax(LOGITS), LABELS), call(LOGITS, LABELS), ("softmax itself", "pass the logits"),
    ),
    "probabilities, bfloat16": (
        "error", call(torch.from_numpy(softmax(LOGITS)).bfloat16(), torch.from_numpy(LABELS)),
        call(torch.from_numpy(LOGITS).bfloat16(), torch.from_numpy(LABELS)), ("probabilities",),
    ),
    "probabilities, to nll_loss": (
        "error", call(softmax(LOGITS), LABELS, **NLL), call(np.log(softmax(LOGITS)), LABELS, **NLL), ("logarithm",),
    ),
    "log_probabilities": (
        "warning", call(np.log(softmax(LOGITS)), LABELS), call(LOGITS, LABELS), ("log-probabilities", "nll_loss"),
    ),
    "log_probabilities, float16": (
        "warning", call(np.log(softmax(LOGITS)).astype(np.float16), LABELS), call(LOGITS.astype(np.float16), LABELS),
        (),
    ),
    "softmax_twice": (
        "error", call(np.log(softmax(softmax(confident(LABELS)))), LABELS, **NLL),
        call(np.log(softmax(confident(LABELS))), LABELS, **NLL), ("log_softmax of probabilities",),
    ),
    "softmax_twice, small logits": (
        "error", call(np.log(softmax(softmax(confident(LABELS)))), LABELS, **NLL),
        call(np.log(softmax(LOGITS * 0.02)), LABELS, **NLL), (),
    ),
    "logits_to_nll_loss": (
        "error", call(LOGITS, LABELS, **NLL), call(np.log(softmax(LOGITS)), LABELS, **NLL),
        ("cross_entropy", "log_softmax"),
    ),
    "labels_off_by_one": (
        "warning", call(confident(LABELS % 7), LABELS % 7 + 1), call(confident(LABELS % 7), LABELS % 7),
        ("one-based", "Subtract 1"),
    ),
    "labels_off_by_one, one class for all": (
        "warning", call(confident(LABELS % 7), LABELS % 7 + 1), call(confident(LABELS * 0), LABELS * 0 + 1), (),
    ),
    "class_axis": (
        "warning", call(confident(SEQUENCE, 12), SEQUENCE), call(confident(SEQUENCE, 12), SEQUENCE, dim=-1),
        ("axis 2", "dim=2"),
    ),
    "class_axis, probabilities": (
        "error", call(np.log(TARGETS), TARGETS), call(np.log(TARGETS), TARGETS, dim=2), ("axis 2", "reads axis 1"),
    ),
    "target_sums": (
        "warning", call(LOGITS, changed(softmax(LOGITS), 12, 0.5)), call(LOGITS, softmax(LOGITS)),
        ("Row 12", "sum to 4"),
    ),
    "target_sums, negative": (
        "warning", call(LOGITS, softmax(LOGITS) * 2 - np.float32(1 / C)), call(LOGITS, np.eye(C)[LABELS]),
        ("negative",),
    ),
    "target_sums, sparse": (
        "warning", call(HIDDEN, WEIGHT, sparse(LABELS, 0.8), **HEAD),
        call(HIDDEN, WEIGHT, sparse(LABELS), **HEAD), ("sum to 0.8",),
    ),
    "rows_that_dominate": (
        "note", call(changed(confident(LABELS), (5, (LABELS[5] + 1) % C), 30.0), LABELS), call(LOGITS, LABELS),
        ("Row 5",),
    ),
    "classes_that_dominate": (
        "note", call(confident(np.where(RARE == 7, 0, RARE)), RARE), call(LOGITS, LABELS),
        ("Class 7", "6% of the rows"),
    ),
}  # fmt: skip


def explained(case):
    function, args, options = case
    return crossent.explain(*args, function=function, **options)


@pytest.mark.parametrize("name", CASES)
def test_faults_are_found(name):
    severity, fault, _, words = CASES[name]
    found = explained(fault)
    finding = next((f for f in found.findings if f.name == name.partition(",")[0]), None)
    assert finding is not None, found.findings
    assert finding.severity == severity
    assert all(word in finding.sentence for word in words), finding.sentence
    assert found.faulty == any(f.severity == "error" for f in found.findings) and found.faulty >= (severity == "error")
    assert all(check.passed for check in found.checks), found.checks
    assert finding.sentence.split()[0] in str(found)
    # one fault, one accusation
    others = [f.name for f in found.findings if f.severity != "note" and f is not finding]
    allowed = {"log_probabilities"} if name == "class_axis, probabilities" else set()
    assert set(others) <= allowed, others


@pytest.mark.parametrize("name", CASES)
def test_healthy_twins_are_not_accused(name):
    found = explained(CASES[name][2])
    assert name.partition(",")[0] not in [f.name for f in found.findings], found.findings
    allowed = {"log_probabilities"} if name == "class_axis, probabilities" else set()
    assert {f.name for f in found.findings if f.severity != "note"} <= allowed, found.findings
    assert all(check.passed for check in found.checks), found.checks


def test_a_row_of_nothing_but_nan_has_no_list_of_classes():
    found = crossent.explain(changed(LOGITS, 8, np.nan), LABELS)
    assert found.findings[0].sentence.startswith("Row 8: every logit is nan, and so the loss is lost. It came in with")
    assert "Knowing nothing" not in str(found)  # beside a loss of nan
    (finding,) = crossent.explain(changed(LOGITS, (8, 2), np.nan), LABELS).findings
    assert finding.sentence.startswith("Row 8: the logit of class 2 is nan")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1e-4, "0.0001"), (-9.9e-5, "-9.9e-05"), (99.98, "99.9800"), (-9999.9, "-9999.9"),
        (-13044.64, "-13044.6"), (99999.96, "100000"), (-1234567.8, "-1234568"), (9.94e6, "9.9e+06"), (np.inf, "inf"),
    ],
)  # fmt: skip
def test_numbers_have_eight_characters(value, text):
    assert number(value) == text and len(text) <= 8


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from([(3, 4), (40, 2), (64, 3), (50, 10), (4, 5, 5), (20, 20), (2, 9, 9)]),
    scale=st.sampled_from([0.01, 0.1, 0.3, 1.0, 10.0]), dtype=st.sampled_from(["float16", "float32", "float64"]),
    offset=st.sampled_from([0.0, 0.0, 5.0, -5.0]), kind=st.sampled_from(["labels", "soft", "nll"]),
)  # fmt: skip
def test_random_healthy_calls_are_not_accused(seed, shape, scale, dtype, offset, kind):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape) * scale + offset + rng.normal(size=shape[1])[:, *[None] * (len(shape) - 2)] * scale
    labels = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    target = softmax(rng.normal(size=shape), 1).astype(dtype) if kind == "soft" else labels
    function = crossent.cross_entropy
    if kind == "nll":
        logits, function = np.log(softmax(logits, 1)), crossent.nll_loss
    found = crossent.explain(logits.astype(dtype), target, function=function)
    assert not [f for f in found.findings if f.severity != "note"], found.findings
