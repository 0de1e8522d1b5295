"""torch.nn.modules with crossent's losses and softmaxes in it."""

import torch.nn.modules as _torch_modules
from torch.nn.modules import *  # noqa: F403

from crossent.nn.modules.activation import LogSoftmax as LogSoftmax, Softmax as Softmax
from crossent.nn.modules.loss import (
    CrossEntropyLoss as CrossEntropyLoss,
    LinearCrossEntropyLoss as LinearCrossEntropyLoss,
    NLLLoss as NLLLoss,
)


def __getattr__(name):
    return getattr(_torch_modules, name)
