"""torch.nn.modules.activation with crossent's `Softmax` and `LogSoftmax` in it."""

from typing import TYPE_CHECKING

import torch.nn.modules.activation as _torch_activation
from torch import Tensor

from crossent.functional import log_softmax, softmax
from crossent.nn._scripting import scripted_as

if TYPE_CHECKING:
    from torch.nn.modules.activation import (
        CELU as CELU,
        ELU as ELU,
        GELU as GELU,
        GLU as GLU,
        SELU as SELU,
        Hardshrink as Hardshrink,
        Hardsigmoid as Hardsigmoid,
        Hardswish as Hardswish,
        Hardtanh as Hardtanh,
        LeakyReLU as LeakyReLU,
        LogSigmoid as LogSigmoid,
        Mish as Mish,
        MultiheadAttention as MultiheadAttention,
        PReLU as PReLU,
        ReLU as ReLU,
        ReLU6 as ReLU6,
        RReLU as RReLU,
        Sigmoid as Sigmoid,
        SiLU as SiLU,
        Softmax2d as Softmax2d,
        Softmin as Softmin,
        Softplus as Softplus,
        Softshrink as Softshrink,
        Softsign as Softsign,
        Tanh as Tanh,
        Tanhshrink as Tanhshrink,
        Threshold as Threshold,
    )


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

    def forward(self, input: Tensor) -> Tensor:
        return softmax(input, self.dim, 5)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...

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

    def forward(self, input: Tensor) -> Tensor:
        return log_softmax(input, self.dim, 5)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...

    def __prepare_scriptable__(self):
        return scripted_as(self, LogSoftmax, _torch_activation.LogSoftmax)


if not TYPE_CHECKING:  # a type checker would take any misspelt name for a good one

    def __getattr__(name):
        return getattr(_torch_activation, name)
