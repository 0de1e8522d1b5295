"""torch.nn with crossent's `Softmax`, `LogSoftmax`, `NLLLoss`, `CrossEntropyLoss` and `LinearCrossEntropyLoss` in it.

Everything else that torch.nn has is here under the same name: a program changes `import torch.nn as nn` to
`import crossent.nn as nn` and `import torch.nn.functional as F` to `import crossent.nn.functional as F`.
"""

from typing import TYPE_CHECKING

try:
    import torch.nn as _torch_nn
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError("crossent.nn needs PyTorch: pip install crossent[torch]") from None

from torch import Tensor as _Tensor

if TYPE_CHECKING:  # of two names mypy takes the first and pyright the last, so that ours come before and after torch's
    from crossent.nn import functional as functional, modules as modules
    from crossent.nn.modules import (
        CrossEntropyLoss as CrossEntropyLoss,
        LinearCrossEntropyLoss as LinearCrossEntropyLoss,
        LogSoftmax as LogSoftmax,
        NLLLoss as NLLLoss,
        Softmax as Softmax,
    )
from torch.nn import *  # type: ignore # noqa: F403

# The star brought torch's `functional` and `modules`; importing ours puts them in their place.
import crossent.nn.functional
import crossent.nn.modules  # noqa: F401
from crossent._dispatch import define_operators as _define_operators, frontend_of as _frontend_of
from crossent.nn import _submodules as _submodules, functional as functional, modules as modules
from crossent.nn.modules import (
    CrossEntropyLoss as CrossEntropyLoss,
    LinearCrossEntropyLoss as LinearCrossEntropyLoss,
    LogSoftmax as LogSoftmax,
    NLLLoss as NLLLoss,
    Softmax as Softmax,
)

# Found before anything is compiled, at the price of importing numba now rather than at the first call: torch.compile,
# if it saw how they are found, would soon compile all of it again.
for _kind in (_Tensor, _torch_nn.Parameter):
    _frontend_of(_kind)
_define_operators()

if not TYPE_CHECKING:  # a type checker would take any misspelt name for a good one

    def __getattr__(name):
        return getattr(_torch_nn, name)
