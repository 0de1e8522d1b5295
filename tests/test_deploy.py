"""What becomes of a model with a loss that is traced, scripted, exported or compiled ahead; see docs/deploy.md."""

import io
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from deployed import CASES, CLASSES, METRICS, Case, Together
from harness import EXPORTS
from torch.nn import functional as F

import crossent
import crossent.nn as nn

COMPILERS = shutil.which("g++") or shutil.which("clang++")


def traced(model, *inputs, check_trace=True):
    """As it comes out of a file; no line of the library warns of a Python value that the trace does not follow."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        trace = torch.jit.trace(model, inputs, check_trace=check_trace)
        file = io.BytesIO()
        torch.jit.save(trace, file)
        file.seek(0)
        return torch.jit.load(file)


@pytest.mark.parametrize("name", CASES)
def test_trace(name):
    """Right for other inputs and numbers of rows."""
    case = CASES[name]
    trace = traced(case.model(), *case.batch(4))
    for seed, rows in enumerate((4, 7)):  # TorchScript optimises what has been called once
        case.check(trace, rows, seed + 1, differentiate=name not in METRICS)


def test_traces_made_without_gradients():
    model = Together(CASES)
    with torch.no_grad():
        trace = traced(model, *model.batch(4))
    for rows in (4, 1):
        model.check(trace, rows)


def test_trace_of_one_row_and_of_other_classes():
    x, label, weight = torch.randn(CLASSES), torch.tensor(3), torch.rand(CLASSES)
    for name in ("cross_entropy", "nll_loss"):
        ours, theirs = [getattr(module, name) for module in (crossent, F)]
        trace = traced(lambda x, y, ours=ours: ours(x, y, weight=weight), x, label)
        for other in (torch.tensor(0), torch.tensor(5)):
            right = theirs(2 * x.double(), other, weight=weight.double())
            torch.testing.assert_close(trace(2 * x, other).double(), right, rtol=1e-6, atol=1e-6)
    x, small = torch.randn(4, 77, dtype=torch.float64), torch.randn(4, 9, dtype=torch.float64)
    trace = traced(lambda x, y: crossent.cross_entropy(x, y, label_smoothing=0.3), small, torch.arange(4))
    right = F.cross_entropy(x, torch.arange(4), label_smoothing=0.3)
    torch.testing.assert_close(trace(x, torch.arange(4)), right, rtol=1e-12, atol=0)  # nothing of it in float32


def test_trace_under_autocast():
    """Of the fused head, whose products have been chosen when its plain operations come.

    Run under autocast, the trace has its products rounded, as every trace has: PyTorch would warn of the difference.
    """
    x, labels, matrix = torch.randn(8, 6), torch.arange(8), torch.randn(CLASSES, 6)
    right = F.cross_entropy(x.bfloat16().double() @ matrix.bfloat16().double().t(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = traced(lambda x, y: crossent.linear_cross_entropy(x, matrix, y), x, labels, check_trace=False)
        torch.testing.assert_close(trace(x, labels).double(), right, rtol=2**-8, atol=0)
    torch.testing.assert_close(trace(x, labels).double(), right, rtol=1e-6, atol=0)


OF_LABELS = {
    "cross_entropy": lambda x, w, y: crossent.cross_entropy(x @ w.t(), y),
    "nll_loss": lambda x, w, y: crossent.nll_loss(x @ w.t(), y),
    "prediction_stats": lambda x, w, y: crossent.prediction_stats(x @ w.t(), y),
    "linear_cross_entropy": lambda x, w, y: crossent.linear_cross_entropy(x, w, y),
    "linear_token_stats": lambda x, w, y: crossent.linear_token_stats(x, w, y),
    "sparse": lambda x, w, y: crossent.linear_cross_entropy(
        x, w, crossent.SparseTarget(torch.where(y == CLASSES, y, y.clamp(min=0))[:, None], torch.ones(x.shape[0], 1))
    ),
}


@pytest.mark.parametrize("name", OF_LABELS)
def test_bad_labels_of_a_trace(name):
    """Those it is made with are refused, those it meets later make nan: no trace can raise."""
    case = Case(OF_LABELS[name], None)
    x, labels = case.batch(4)
    bad = labels.index_fill(0, torch.tensor([0]), CLASSES)
    with pytest.raises(IndexError, match=f"{CLASSES} at position"):
        torch.jit.trace(case.model(), (x, bad), check_trace=False)
    found = traced(case.model(), x, labels)(x, bad)
    first = found if isinstance(found, torch.Tensor) else found[0][0]
    assert first.isnan()


def scripted(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(module), file)
        file.seek(0)
        return torch.jit.load(file)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", [nn.Softmax, nn.LogSoftmax])
def test_script_softmax(kind, inside):
    x = torch.randn(4, CLASSES)
    module = kind(dim=-1)
    script = scripted(torch.nn.Sequential(torch.nn.Tanh(), module) if inside else module)
    right = getattr(torch.nn, kind.__name__)(-1)(x.double().tanh() if inside else x.double())
    torch.testing.assert_close(script(x).double(), right, rtol=1e-5, atol=1e-6)


class Loss(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.linear, self.loss = torch.nn.Linear(6, CLASSES), loss

    def forward(self, x, labels):
        return self.loss(self.linear(x), labels)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", [nn.NLLLoss, nn.CrossEntropyLoss])
@pytest.mark.parametrize("weight", [None, torch.linspace(0.5, 2.0, CLASSES)])
@pytest.mark.parametrize("options", [{}, {"ignore_index": 3, "reduction": "sum"}])
def test_script_losses(kind, weight, options, inside):
    """With their options and their weights, which are among what is saved."""
    if kind is nn.CrossEntropyLoss:
        options = {"label_smoothing": 0.1} | options
    x, labels = torch.randn(4, 6), torch.tensor([3, 0, 63, 5])
    model = Loss(kind(weight, **options))
    logits = model.linear(x).detach().requires_grad_()
    script = scripted(model if inside else model.loss)
    loss = script(x if inside else logits, labels)
    theirs = getattr(torch.nn, kind.__name__)(None if weight is None else weight.double(), **options)
    right = logits.double().detach().requires_grad_()
    torch.testing.assert_close(loss.double(), theirs(right, labels), rtol=1e-5, atol=1e-6)
    if not inside:
        gradients = [torch.autograd.grad(*pair)[0] for pair in ((loss, logits), (theirs(right, labels), right))]
        torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-5, atol=1e-6)
    assert script.state_dict().keys() == (model if inside else model.loss).state_dict().keys()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.NLLLoss, {"dim": -1}),
        (nn.CrossEntropyLoss, {"dim": 1}),
        (nn.CrossEntropyLoss, {"softcap": 30.0}),
        (nn.CrossEntropyLoss, {"z_loss": 1e-4}),
        (nn.CrossEntropyLoss, {"inplace_backward": True}),
        (nn.CrossEntropyLoss, {"loss_dtype": torch.float32}),
        (nn.NLLLoss, {"loss_dtype": torch.float64}),
    ],
)
def test_options_that_cannot_be_scripted(kind, options):
    (name,) = options
    for module in (kind(**options), Loss(kind(**options))):
        with pytest.raises(ValueError, match=f"{kind.__name__} with {name}=.*torch.jit.trace or torch.export"):
            scripted(module)


def test_head_cannot_be_scripted():
    with pytest.raises(TypeError, match="nor can torch's own"):
        scripted(torch.nn.Sequential(nn.LinearCrossEntropyLoss(6, 5)))


class Halved(nn.Softmax):
    def forward(self, input):
        return torch.softmax(input, 1) / 2


def test_subclasses_are_scripted_as_they_are_written():
    x = torch.randn(4, CLASSES)
    torch.testing.assert_close(scripted(torch.nn.Sequential(Halved(1)))(x), torch.softmax(x, 1) / 2)


# One of each kind; the others at leisure.
SOME = [
    "softmax modules",
    "cross_entropy with options",
    "linear_cross_entropy",
    "linear_token_stats",
    "prediction_stats",
]
ALL = pytest.param(list(CASES), marks=pytest.mark.soak)
SETS = pytest.mark.parametrize("names", [SOME, ALL], ids=["some", "all"])
OPERATORS = ["loss", "checked_labels", "head", "tokens"]


def exported(model):
    rows, inputs = torch.export.Dim("rows", min=2, max=64), model.batch(4)
    return torch.export.export(model, inputs, dynamic_shapes=(tuple({0: rows} for _ in inputs),))


def without_operators(program):
    table = torch.export.default_decompositions()
    table.update(torch._decomp.get_decompositions([getattr(torch.ops.crossent, name) for name in OPERATORS]))
    return program.run_decompositions(table)


def named(program):
    return {str(node.target).split(".")[1] for node in program.graph.nodes if "crossent" in str(node.target)}


PROGRAM = """
import sys, torch
kept = torch.load("kept.pt")
def check(run):
    for found, right in zip(run(*kept["inputs"]), kept["results"], strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
check(torch.jit.load("trace.pt"))
check(torch.export.load("plain.pt2").module())
assert not any(name.partition(".")[0] in ("crossent", "numba") for name in sys.modules)
import crossent.nn
check(torch.export.load("operators.pt2").module())
"""


@EXPORTS
@SETS
def test_files_in_another_process(names, tmp_path):
    """Traces and programs without operators need no crossent there; the others find their operators in crossent.nn."""
    model = Together(names)
    program = exported(model)
    plain = without_operators(program)
    assert named(program) == set(OPERATORS) and not named(plain)
    trace = traced(model, *model.batch(4))
    for run in (program.module(), plain.module()):
        for rows in (4, 7):
            model.check(run, rows)
    torch.jit.save(trace, tmp_path / "trace.pt")
    torch.export.save(program, tmp_path / "operators.pt2")
    torch.export.save(plain, tmp_path / "plain.pt2")
    inputs = model.batch(5, 5)
    torch.save({"inputs": inputs, "results": model(*inputs)}, tmp_path / "kept.pt")
    here = {"PYTHONPATH": str(Path(crossent.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, check=True, env=os.environ | here)


@EXPORTS
@SETS
@pytest.mark.parametrize("newer", [False, True], ids=["dynamo=False", "dynamo=True"])
def test_onnx(names, newer, tmp_path):
    """What onnxruntime computes, for any number of rows, without anything that the caller would have to register."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    names = [name for name in names if CASES[name].dtype is torch.float32]  # which onnxruntime has products of
    model, file = Together(names), str(tmp_path / "model.onnx")
    inputs = model.batch(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if newer:
            torch.onnx.export(exported(model), f=file, dynamo=True, verbose=False)
        else:
            called = [f"inputs_{i}" for i in range(len(inputs))]
            rows = {name: {0: "rows"} for name in called}
            torch.onnx.export(model, inputs, file, dynamo=False, input_names=called, dynamic_axes=rows)
    session = runtime.InferenceSession(file)

    def run(*inputs):
        given = {one.name: inputs[int(one.name.rpartition("_")[2])].numpy() for one in session.get_inputs()}
        return map(torch.from_numpy, map(np.asarray, session.run(None, given)))

    for rows in (4, 7):
        model.check(run, rows)


_WITHOUT_NN = """
import sys, torch, crossent

class Model(torch.nn.Module):
    def forward(self, x, y):
        return crossent.prediction_stats(x, y).logprob

program = torch.export.export(Model(), (torch.randn(4, 10), torch.tensor([1, 2, 3, 4])))
assert "crossent.nn" not in sys.modules and "crossent.checked_labels" in str(program.graph)
operator = torch.ops.crossent.checked_labels.default
assert operator in torch._decomp.get_decompositions([torch.ops.crossent.checked_labels])
assert "crossent" not in str(program.run_decompositions({operator: torch._decomp.decomposition_table[operator]}).graph)
"""


def test_labels_have_a_decomposition_without_crossent_nn():
    result = subprocess.run([sys.executable, "-c", _WITHOUT_NN], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@EXPORTS
def test_onnx_of_a_model(tmp_path):
    """As most call it: the exporter is given the model; and labels out of range make nan."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model, file = Loss(nn.CrossEntropyLoss()), str(tmp_path / "model.onnx")
    x, labels = torch.randn(4, 6), torch.tensor([3, 0, -100, 5])
    torch.onnx.export(model.eval(), (x, labels), file, dynamo=True, verbose=False)
    session = runtime.InferenceSession(file)
    (loss,) = session.run(None, {"x": x.numpy(), "labels": labels.numpy()})
    right = F.cross_entropy(model.linear(x).double(), labels)
    torch.testing.assert_close(torch.from_numpy(loss).double(), right, rtol=1e-5, atol=0)
    (loss,) = session.run(None, {"x": x.numpy(), "labels": torch.where(labels == 5, 64, labels).numpy()})
    assert np.isnan(loss)


@EXPORTS
@pytest.mark.soak
@pytest.mark.skipif(not COMPILERS, reason="there is no compiler for what Inductor generates")
@pytest.mark.parametrize("plain", [False, True])
def test_compiled_ahead(plain, tmp_path):
    """By Inductor, into a package that holds no Python; the operators, if there are any, are called in this process."""
    model = Together(CASES)
    with torch.no_grad():
        program = exported(model)
        program = without_operators(program) if plain else program
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    run = torch._inductor.aoti_load_package(package)
    for rows in (4, 7):
        model.check(run, rows)
