"""The operators in PyTorch's own operations, for programs that cannot call Python: ONNX, and those of other processes.

Each returns its results, but nothing for a backward pass. Labels out of range give nan, since there is nobody to tell.
"""

from functools import wraps

from crossent._plan import PLAIN
from crossent.frontends.torch import head, modes, plain


def _without_kernels(function):
    @wraps(function)
    def decomposed(*arguments):
        with modes.only(PLAIN):
            return function(*arguments)

    return decomposed


loss = _without_kernels(plain.loss)
head_loss = _without_kernels(head.composite)
tokens = _without_kernels(head.composite_token_rows)
