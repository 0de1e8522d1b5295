"""What becomes of a model with a loss that is traced, scripted, exported or compiled ahead; see docs/deploy.md."""

import io
import subprocess
import sys
import warnings

import pytest
import torch
from deployed import CASES, CLASSES, METRICS, Case
from torch.nn import functional as F

import crossent
import crossent.nn as nn


def traced(model, *inputs):
    """As it comes out of a file; no line of the library warns of a Python value that the trace does not follow."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        trace = torch.jit.trace(model, inputs)
        file = io.BytesIO()
        torch.jit.save(trace, file)
        file.seek(0)
        return torch.jit.load(file)


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_trace(name, enabled):
    """Right for other inputs and numbers of rows, whether it was made to be differentiated or not."""
    case = CASES[name]
    with torch.set_grad_enabled(enabled):
        trace = traced(case.model(), *case.batch(4))
    for seed, rows in enumerate((4, 4, 7) if enabled else (1,)):  # TorchScript optimises what has been called once
        case.check(trace, rows, seed + 1, differentiate=name not in METRICS)


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
    """Of the fused head, whose products have been chosen when its plain operations come."""
    x, labels, matrix = torch.randn(8, 6), torch.arange(8), torch.randn(CLASSES, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = traced(lambda x, y: crossent.linear_cross_entropy(x, matrix, y), x, labels)
    right = F.cross_entropy(x.bfloat16().double() @ matrix.bfloat16().double().t(), labels)
    torch.testing.assert_close(trace(x, labels).double(), right, rtol=2**-8, atol=0)


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


def test_a_trace_runs_without_the_library(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(6, CLASSES), nn.Softmax(1))
    x = torch.randn(4, 6)
    with torch.no_grad():
        torch.jit.trace(model, (x,)).save(tmp_path / "model.pt")
        torch.save({"x": x, "right": F.softmax(model[0](x).double(), 1)}, tmp_path / "right.pt")
    program = """
import sys, torch
kept, model = torch.load("right.pt"), torch.jit.load("model.pt")
torch.testing.assert_close(model(kept["x"]).double(), kept["right"], rtol=1e-5, atol=1e-7)
assert not any(name.partition(".")[0] in ("crossent", "numba") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True)


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
