"""torch.nn.modules.activation with crossent's `Softmax` and `LogSoftmax` in it."""

import torch.nn.modules.activation as _torch_activation

from crossent.functional import log_softmax, softmax
from crossent.nn._scripting import scripted_as


class Softmax(_torch_activation.Softmax):
    """`crossent.softmax` along `dim` as a module; torch.nn.Softmax with another engine.

    Args:
        dim: the axis whose entries sum to 1. None chooses one by the number of axes, with PyTorch's warning.

    Shape: any; the output has the input's shape and dtype.

    >>> import torch
    >>> import crossent.nn as nn
    >>> nn.Softmax(dim=1)(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """

    def forward(self, input):
        return softmax(input, self.dim, 5)

    def __prepare_scriptable__(self):
        return scripted_as(self, Softmax, _torch_activation.Softmax)


class LogSoftmax(_torch_activation.LogSoftmax):
    """`crossent.log_softmax` along `dim` as a module; torch.nn.LogSoftmax with another engine.

    Args:
        dim: the axis whose entries' exponentials sum to 1. None chooses one by the number of axes, with PyTorch's
            warning.

    Shape: any; the output has the input's shape and dtype.

    >>> import torch
    >>> import crossent.nn as nn
    >>> nn.LogSoftmax(dim=1)(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    tensor([[-0.6931, -0.6931],
            [-0.6931, -0.6931]])
    """

    def forward(self, input):
        return log_softmax(input, self.dim, 5)

    def __prepare_scriptable__(self):
        return scripted_as(self, LogSoftmax, _torch_activation.LogSoftmax)


def __getattr__(name):
    return getattr(_torch_activation, name)
