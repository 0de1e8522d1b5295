"""The process that measures starting: the seconds of its first call, or of compiling every float32 kernel."""

import sys
import time

import torch

import crossent
import crossent.nn.functional as F

CLASSES = 100  # enough that no function leaves its work to PyTorch


def first_call() -> None:
    crossent.cross_entropy(torch.randn(32, 10), torch.arange(32) % 10)


def every_kernel() -> None:
    rows, labels = torch.randn(8, CLASSES), torch.arange(8)
    images, maps = torch.randn(2, CLASSES, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    options = (
        {},
        {"weight": torch.rand(CLASSES)},
        {"label_smoothing": 0.1},
        {"weight": torch.rand(CLASSES), "label_smoothing": 0.1},
        {"softcap": 30.0, "z_loss": 1e-4},
        {"inplace_backward": True},
        {"reduction": "none"},
    )
    for logits, target in ((rows, labels), (rows.t().contiguous().t(), labels), (images, maps)):
        for extra in options:
            _step(crossent.cross_entropy, logits, target, **extra)
            if not extra.get("inplace_backward"):
                _step(crossent.cross_entropy, logits, logits.softmax(dim=1), **extra)
        for function in (F.softmax, F.log_softmax):
            _step(function, logits, dim=1)
        _step(F.nll_loss, logits, target)
    hidden, vocabulary = torch.randn(8, 4), torch.randn(CLASSES, 4)
    _step(crossent.linear_cross_entropy, hidden, vocabulary.requires_grad_(), labels, filter_eps=0.1)
    sum(crossent.linear_token_stats(hidden.requires_grad_(), vocabulary, labels)[:3]).sum().backward()
    crossent.prediction_stats(rows, labels)


def _step(function, logits: torch.Tensor, *arrays: torch.Tensor, **options) -> None:
    # A copy by arithmetic, so that what is given over to the function is nobody's leaf.
    function(logits.detach().requires_grad_() * 1.0, *arrays, **options).sum().backward()


MEASURED = {"first call, kernels cached": first_call, "all float32 kernels, from cold": every_kernel}

if __name__ == "__main__":
    start = time.perf_counter()
    MEASURED[sys.argv[1]]()
    print(time.perf_counter() - start)
