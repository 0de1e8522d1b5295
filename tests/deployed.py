"""Models whose losses are traced, scripted, exported and compiled ahead, and what PyTorch makes of them in float64."""

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

import crossent
import crossent.nn

FEATURES, CLASSES = 6, 64
WEIGHT = torch.linspace(0.5, 2.0, CLASSES)
CAP = 4.0


class Model(torch.nn.Module):
    """`function(x, matrix, labels)`, the matrix being the model's own."""

    def __init__(self, function, classes=CLASSES, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        matrix = torch.randn(classes, FEATURES, generator=generator)
        self.matrix, self.function = torch.nn.Parameter(matrix.to(dtype)), function

    def forward(self, x, labels):
        return self.function(x, self.matrix, labels)


class Together(torch.nn.Module):
    """Several cases in one model, whose inputs are those of all of them: it takes less time to export than they do."""

    def __init__(self, names):
        super().__init__()
        self.cases = [CASES[name] for name in names]
        self.models = torch.nn.ModuleList(case.model() for case in self.cases)

    def forward(self, *inputs):
        found = [as_tuple(model(*inputs[2 * i : 2 * i + 2])) for i, model in enumerate(self.models)]
        return tuple(result for results in found for result in results)

    def batch(self, rows, seed=0):
        return tuple(tensor for case in self.cases for tensor in case.batch(rows, seed))

    def check(self, run, rows):
        """That `run(*inputs)` returns the right numbers."""
        inputs = self.batch(rows, rows)
        ours = iter(run(*inputs))
        for i, case in enumerate(self.cases):
            for right in case.right(*inputs[2 * i : 2 * i + 2]):
                tolerance = case.tolerance
                torch.testing.assert_close(next(ours).double(), right.double(), rtol=tolerance, atol=tolerance)
        assert not list(ours)


class Case(NamedTuple):
    """The same by the library and by PyTorch; `shape` is the input's without batch and features."""

    function: Any
    expected: Any
    shape: tuple = ()
    classes: int = CLASSES
    dtype: torch.dtype = torch.float32

    def model(self):
        return Model(self.function, self.classes, self.dtype)

    def batch(self, rows, seed=0):
        """Input and labels, of which one is ignored."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, *self.shape, FEATURES, generator=generator).to(self.dtype)
        labels = torch.randint(self.classes, (rows, *self.shape), generator=generator)
        labels.view(-1)[rows // 2 * labels[0].numel() + 1 if rows > 1 else 1 :][:1] = -100
        return x, labels

    @property
    def tolerance(self):
        return max(1e-5, 4 * torch.finfo(self.dtype).eps)

    def right(self, x, labels):
        return as_tuple(self.expected(x.double(), self.model().matrix.detach().double(), labels))

    def check(self, run, rows, seed=0, differentiate=True):
        """That `run(x, labels)` returns the right numbers, whose gradient for x is right."""
        x, labels = self.batch(rows, seed)
        right = x.double().requires_grad_(differentiate)
        x.requires_grad_(differentiate)
        ours, theirs, tolerance = as_tuple(run(x, labels)), self.right(right, labels), self.tolerance
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)
        if differentiate:
            gradients = [torch.autograd.grad(_weighted(found), at)[0] for found, at in ((ours, x), (theirs, right))]
            torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=4 * tolerance, atol=4 * tolerance)


def as_tuple(found):
    return (found,) if isinstance(found, torch.Tensor) else tuple(found)


def _weighted(parts):
    """A sum to which every result adds a share of its own."""
    shares = [
        (part.double() * torch.linspace(0.5, 1.0, part.numel(), dtype=torch.float64).view(part.shape)).sum()
        for part in parts
        if part.requires_grad
    ]
    return sum(shares)


def _predictions(x, w, y):
    logits, kept = x @ w.t(), y >= 0
    logp = logits.log_softmax(-1)
    at = y.clamp(min=0)[..., None]
    own = logp.gather(-1, at)
    p = logp.exp()
    brier = (p**2).sum(-1) - 2 * p.gather(-1, at)[..., 0] + 1
    values = own[..., 0], (logp > own).sum(-1), p.argmax(-1), p.amax(-1), brier
    ignored = 0.0, -1, -1, 0.0, 0.0
    return tuple(torch.where(kept, value, other).detach() for value, other in zip(values, ignored))


def _tokens(x, w, y):
    logits, kept = CAP * torch.tanh(x @ w.t() / CAP), y >= 0
    logp = logits.log_softmax(-1)
    own = logp.gather(-1, y.clamp(min=0)[..., None])
    entropy = -(logp.exp() * logp).sum(-1)
    values = own[..., 0], logits.logsumexp(-1), entropy, (logp > own).sum(-1)
    return tuple(torch.where(kept, value, other) for value, other in zip(values, (0.0, 0.0, 0.0, -1)))


def _everything(x, w, y):
    logits = CAP * torch.tanh(x @ w.t() / CAP)
    options = {"weight": WEIGHT.double(), "label_smoothing": 0.1, "reduction": "none"}
    loss = F.cross_entropy(logits.movedim(-1, 1), y, **options)
    mass = torch.where(y >= 0, 0.9 * WEIGHT.double()[y.clamp(min=0)] + 0.1 * WEIGHT.double().mean(), 0.0)
    return (loss + 0.01 * mass * logits.logsumexp(-1) ** 2) * (0.5 + y % 3)


def _shifted(x, w, y, bias):
    return F.cross_entropy((x @ w.t() + bias)[:, :-1].flatten(0, 1), y[:, 1:].flatten())


def _bias(w):
    return torch.linspace(-1, 1, CLASSES, dtype=w.dtype)


def _distribution(logits):
    return torch.softmax(2 * logits.detach(), 1)


def _sparse(y):
    classes = torch.stack([y.clamp(min=0), (y + 101) % CLASSES], -1)
    return classes, torch.stack([0.25 + 0.01 * (y % 7), 0.5 - 0.01 * (y % 5)], -1)


def _dense(x, y):
    classes, probs = _sparse(y)
    return torch.zeros(y.shape[0], CLASSES, dtype=x.dtype).scatter_add(1, classes, probs.to(x.dtype))


_modules = crossent.nn
_LOSS = _modules.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1)
_NLL = _modules.NLLLoss(weight=WEIGHT, reduction="sum")
_HALF = torch.bfloat16
_OPTIONS = {"label_smoothing": 0.1, "softcap": CAP, "z_loss": 0.01, "reduction": "none"}

SOFTMAXES = {
    "softmax": Case(lambda x, w, y: crossent.softmax(x @ w.t(), 1), lambda x, w, y: F.softmax(x @ w.t(), 1)),
    "softmax of few classes": Case(
        lambda x, w, y: crossent.softmax(x @ w.t(), -1), lambda x, w, y: F.softmax(x @ w.t(), -1), classes=10
    ),
    "softmax of 16 bits": Case(
        lambda x, w, y: crossent.softmax(x @ w.t(), 1), lambda x, w, y: F.softmax(x @ w.t(), 1), dtype=_HALF
    ),
    "log_softmax": Case(
        lambda x, w, y: crossent.log_softmax(x @ w.t(), 1), lambda x, w, y: F.log_softmax(x @ w.t(), 1), (3,)
    ),
    "softmax modules": Case(
        lambda x, w, y: torch.nn.Sequential(_modules.Softmax(1), _modules.LogSoftmax(-1))(x @ w.t()),
        lambda x, w, y: F.log_softmax(F.softmax(x @ w.t(), 1), -1),
    ),
}
LOSSES = {
    "cross_entropy": Case(
        lambda x, w, y: crossent.cross_entropy(x @ w.t(), y), lambda x, w, y: F.cross_entropy(x @ w.t(), y), classes=10
    ),
    "cross_entropy of images": Case(
        lambda x, w, y: crossent.cross_entropy((x @ w.t()).permute(0, 3, 1, 2), y.int(), reduction="sum"),
        lambda x, w, y: F.cross_entropy((x @ w.t()).permute(0, 3, 1, 2), y, reduction="sum"),
        (2, 3),
    ),
    "cross_entropy with options": Case(
        lambda x, w, y: crossent.cross_entropy(
            x @ w.t(), y, weight=WEIGHT, dim=-1, sample_weight=0.5 + y % 3, **_OPTIONS
        ),
        _everything,
        (3,),
    ),
    "cross_entropy with a denominator": Case(
        lambda x, w, y: crossent.cross_entropy(x @ w.t(), y, denominator=(y >= 0).sum() + 0.5),
        lambda x, w, y: F.cross_entropy(x @ w.t(), y, reduction="sum") / ((y >= 0).sum() + 0.5),
    ),
    "soft targets": Case(
        lambda x, w, y: crossent.cross_entropy(x @ w.t(), _distribution(x @ w.t()), label_smoothing=0.1),
        lambda x, w, y: F.cross_entropy(x @ w.t(), _distribution(x @ w.t()), label_smoothing=0.1),
    ),
    "nll_loss": Case(
        lambda x, w, y: crossent.nll_loss(x @ w.t(), y, weight=WEIGHT),
        lambda x, w, y: F.nll_loss(x @ w.t(), y, weight=WEIGHT.double()),
    ),
    "loss modules": Case(
        lambda x, w, y: (_LOSS(x @ w.t(), y), _NLL(x @ w.t(), y)),
        lambda x, w, y: (
            F.cross_entropy(x @ w.t(), y, weight=WEIGHT.double(), label_smoothing=0.1),
            F.nll_loss(x @ w.t(), y, weight=WEIGHT.double(), reduction="sum"),
        ),
    ),
}
HEADS = {
    "linear_cross_entropy": Case(
        lambda x, w, y: crossent.linear_cross_entropy(x, w, y, linear_bias=_bias(w), shift=1, chunk_bytes=2000),
        lambda x, w, y: _shifted(x, w, y, _bias(w)),
        (4,),
    ),
    "linear_cross_entropy with options": Case(
        lambda x, w, y: crossent.linear_cross_entropy(
            x, w, y, weight=WEIGHT, sample_weight=0.5 + y % 3, chunk_bytes=2000, **_OPTIONS
        ),
        _everything,
    ),
    "a sparse target": Case(
        lambda x, w, y: crossent.linear_cross_entropy(x, w, crossent.SparseTarget(*_sparse(y))),
        lambda x, w, y: F.cross_entropy(x @ w.t(), _dense(x, y)),
    ),
    "linear_token_stats": Case(
        lambda x, w, y: crossent.linear_token_stats(x, w, y, softcap=CAP, chunk_bytes=2000), _tokens, (3,)
    ),
}
METRICS = {
    "prediction_stats": Case(lambda x, w, y: crossent.prediction_stats(x @ w.t(), y, dim=-1), _predictions, (3,))
}
CASES = SOFTMAXES | LOSSES | HEADS | METRICS
