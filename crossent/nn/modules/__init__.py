"""torch.nn.modules with crossent's losses and softmaxes in it."""

from typing import TYPE_CHECKING

import torch.nn.modules as _torch_modules

if TYPE_CHECKING:  # of two names mypy takes the first and pyright the last, so that ours come before and after torch's
    from crossent.nn.modules import (
        activation as activation,
        adaptive as adaptive,
        batchnorm as batchnorm,
        channelshuffle as channelshuffle,
        container as container,
        conv as conv,
        distance as distance,
        dropout as dropout,
        flatten as flatten,
        fold as fold,
        instancenorm as instancenorm,
        lazy as lazy,
        linear as linear,
        linear_cross_entropy_options as linear_cross_entropy_options,
        loss as loss,
        module as module,
        normalization as normalization,
        padding as padding,
        pixelshuffle as pixelshuffle,
        pooling as pooling,
        rnn as rnn,
        sparse as sparse,
        transformer as transformer,
        upsampling as upsampling,
        utils as utils,
    )
    from crossent.nn.modules.activation import LogSoftmax as LogSoftmax, Softmax as Softmax
    from crossent.nn.modules.loss import (
        CrossEntropyLoss as CrossEntropyLoss,
        LinearCrossEntropyLoss as LinearCrossEntropyLoss,
        NLLLoss as NLLLoss,
    )
from torch.nn.modules import *  # type: ignore # noqa: F403

from crossent.nn.modules.activation import LogSoftmax as LogSoftmax, Softmax as Softmax
from crossent.nn.modules.loss import (
    CrossEntropyLoss as CrossEntropyLoss,
    LinearCrossEntropyLoss as LinearCrossEntropyLoss,
    NLLLoss as NLLLoss,
)

if not TYPE_CHECKING:  # a type checker would take any misspelt name for a good one

    def __getattr__(name):
        return getattr(_torch_modules, name)
