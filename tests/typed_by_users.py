"""What users write, for type checkers to read: nobody runs it. A line that ends in `# refused` has to be an error."""

import math
from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import crossent
import crossent.nn as nn
import crossent.nn.functional as F
import crossent.nn.utils.rnn
from crossent.functional import Reduction
from crossent.nn import CrossEntropyLoss, Linear, init, utils
from crossent.nn.modules.batchnorm import _BatchNorm
from crossent.nn.modules.loss import BCELoss, NLLLoss
from crossent.nn.parallel import DistributedDataParallel
from crossent.nn.parameter import Parameter
from crossent.nn.utils import clip_grad_norm_
from crossent.nn.utils.rnn import pad_sequence

x, w = torch.zeros(4, 5, requires_grad=True), torch.zeros(5, 3)
y = torch.zeros(4, dtype=torch.int64)
a: NDArray[np.float32] = np.zeros((4, 5), np.float32)
b: NDArray[np.int64] = np.zeros(4, np.int64)
Numbers = NDArray[np.floating[Any]]


def functions_of_tensors(reduction: Reduction) -> None:
    assert_type(F.softmax(x, dim=-1), torch.Tensor)
    assert_type(F.log_softmax(x, -1, dtype=torch.float64), torch.Tensor)
    assert_type(F.cross_entropy(x, y, dim=-1), torch.Tensor)
    assert_type(F.cross_entropy(x, y, None, None, -100, None, "none", 0.1), torch.Tensor)
    assert_type(F.cross_entropy(x, y, reduction=reduction, softcap=30.0, denominator=torch.tensor(4)), torch.Tensor)
    assert_type(F.cross_entropy(x.bfloat16(), y, loss_dtype=torch.float32), torch.Tensor)
    assert_type(F.nll_loss(x, y, sample_weight=torch.ones(4), reduction="sum"), torch.Tensor)
    assert_type(F.linear_cross_entropy(x[:, :3], w, y, shift=1, z_loss=1e-4), torch.Tensor)
    assert_type(crossent.cross_entropy(Parameter(x), y, ignore_index=0), torch.Tensor)
    crossent.linear_cross_entropy(x[:, :3], w, crossent.SparseTarget(y[:, None], x[:, :1]))
    crossent.prediction_stats(x, y).rank.sum()
    crossent.linear_token_stats(x[:, :3], w, y).logprob.mean().backward()
    assert_type(crossent.value_and_grad(crossent.cross_entropy)(x, y), tuple[torch.Tensor, torch.Tensor])
    assert_type(crossent.plan(crossent.cross_entropy, x, y).extra_bytes, int)
    assert_type(crossent.explain(x, y).to_html(), str)
    score = crossent.Score(top=5, scale="probabilities", names=["cat", "dog"]).update(x, y, dim=-1, rows=range(4))
    assert_type(score.merge(crossent.Score(), crossent.Score.load("part.npz")), crossent.Score)
    assert_type(score.result(), dict[str, Any])
    F.cross_entropy(x, y).backward()
    assert_type(F.relu(x), torch.Tensor)
    F.cross_entropy(x, y, reduction="avg")  # refused
    F.cross_entropy(x, "label")  # refused
    F.cross_entropy(x, b)  # refused
    F.cross_entropy(x, y, softcap="30")  # refused
    F.nll_loss(x, y, reduction="avg")  # refused
    F.nll_loss(x, "label")  # refused
    F.linear_cross_entropy(x, w, "label")  # refused
    F.linear_cross_entropy(x, w, y, reduction="avg")  # refused
    F.softmax("logits")  # refused
    F.no_such_function(x)  # refused
    crossent.prediction_stats(x, "label")  # refused
    crossent.Score(scale="percent")  # refused
    crossent.Score(5)  # refused
    score.merge(score.result())  # refused
    crossent.linear_token_stats(x, w, "label")  # refused


def functions_of_numpy_arrays(reduction: Reduction) -> None:
    assert_type(crossent.softmax(a, 1), Numbers)
    loss = crossent.cross_entropy(a, b, label_smoothing=0.1, denominator=4)
    assert_type(loss, np.floating[Any])
    print(f"{loss:.4f}", round(loss, 4), float(loss), loss + 1.0, math.isnan(loss), loss.item())
    assert_type(crossent.nll_loss(a, b, reduction="sum", loss_dtype="float64"), np.floating[Any])
    assert_type(crossent.linear_cross_entropy(a, a, b), np.floating[Any])
    assert_type(crossent.cross_entropy(a, b, reduction="none"), Numbers)
    assert_type(crossent.nll_loss(a, b, reduction="none").mean(), Any)
    assert_type(crossent.linear_cross_entropy(a, a, b, reduction="none"), Numbers)
    either: np.floating[Any] | Numbers = crossent.cross_entropy(a, b, reduction=reduction)
    either = crossent.nll_loss(a, b, None, None, -100, False)
    print(either)
    value, gradient = crossent.value_and_grad(crossent.cross_entropy)(a, b)
    assert_type(value, np.floating[Any])
    assert_type(gradient, Numbers)
    crossent.cross_entropy(a, b, reduction="avg")  # refused
    crossent.cross_entropy(a, "label")  # refused
    crossent.cross_entropy(a, y)  # refused
    crossent.cross_entropy(a, b).backward()  # refused
    crossent.linear_cross_entropy(a, a, b, reduction="avg")  # refused


def modules() -> None:
    head = nn.LinearCrossEntropyLoss(3, 5, shift=1, dtype=torch.bfloat16)
    assert_type(head(x[:, :3], y), torch.Tensor)
    assert_type(nn.CrossEntropyLoss(softcap=30.0)(x, y, sample_weight=torch.ones(4)), torch.Tensor)
    assert_type(CrossEntropyLoss(x[0], reduction="none", label_smoothing=0.1, dim=-1)(x, y), torch.Tensor)
    assert_type(nn.Softmax(dim=1)(x), torch.Tensor)
    assert_type(nn.LogSoftmax(1)(x), torch.Tensor)
    assert_type(NLLLoss(dim=-1)(x, y), torch.Tensor)
    assert_type(nn.modules.loss.NLLLoss(dim=-1)(x, y, denominator=2), torch.Tensor)
    nn.Sequential(Linear(3, 5), nn.ReLU(), _BatchNorm(5), nn.LogSoftmax(dim=1)).train()
    nn.CrossEntropyLoss(loss_dtype=torch.float32)(x, y)
    nn.CrossEntropyLoss(reduction="avg")  # refused
    nn.CrossEntropyLoss(softcap="30")  # refused
    nn.CrossEntropyLoss()(x, "label")  # refused
    nn.NLLLoss(reduction="avg")  # refused
    nn.NLLLoss()(x, "label")  # refused
    nn.LinearCrossEntropyLoss(3, 5, reduction="avg")  # refused
    nn.LinearCrossEntropyLoss(3, 5)(x, "label")  # refused
    nn.NoSuchModule()  # refused
    nn.modules.loss.NoSuchLoss()  # refused


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)
        self.loss = nn.CrossEntropyLoss(z_loss=1e-4)

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss(self.head(hidden), labels)


def modules_of_torch() -> None:
    assert_type(pad_sequence([x, x]), torch.Tensor)
    assert_type(crossent.nn.utils.rnn.pad_sequence([x, x]), torch.Tensor)
    clip_grad_norm_([Parameter(x)], 1.0)
    utils.clip_grad_norm_([x], 1.0)
    nn.utils.clip_grad_norm_([x], 1.0)
    nn.init.zeros_(x)
    init.zeros_(x)
    parameter: nn.parameter.Parameter = nn.Parameter(x)
    wrapped: torch.nn.parallel.DistributedDataParallel = DistributedDataParallel(Classifier())
    loss: torch.nn.BCELoss = BCELoss()
    print(parameter, wrapped, loss)
    utils.no_such_function(x)  # refused
