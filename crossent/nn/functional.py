"""torch.nn.functional with crossent's softmaxes and losses in it."""

from typing import TYPE_CHECKING

import torch.nn.functional as _torch_functional

if TYPE_CHECKING:  # of two names mypy takes the first and pyright the last, so that ours come before and after torch's
    from crossent.functional import (
        cross_entropy as cross_entropy,
        linear_cross_entropy as linear_cross_entropy,
        log_softmax as log_softmax,
        nll_loss as nll_loss,
        softmax as softmax,
    )
from torch.nn.functional import *  # type: ignore # noqa: F403

from crossent.functional import (
    cross_entropy as cross_entropy,
    linear_cross_entropy as linear_cross_entropy,
    log_softmax as log_softmax,
    nll_loss as nll_loss,
    softmax as softmax,
)

if not TYPE_CHECKING:  # a type checker would take any misspelt name for a good one

    def __getattr__(name):
        return getattr(_torch_functional, name)
