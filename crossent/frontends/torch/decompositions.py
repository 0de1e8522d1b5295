"""The operators in PyTorch's own operations, for what has no Python to call: ONNX, and programs for other processes.

Each returns what is asked for, but nothing for a backward pass. Labels out of range make nan, since there is nobody to
tell.
"""

from functools import wraps

from crossent.frontends.torch import head, modes, plain


def _plain(function):
    @wraps(function)
    def decomposed(*arguments):
        with modes.plain_operations():
            return function(*arguments)

    return decomposed


loss = _plain(plain.loss)
head_loss = _plain(head.composite)
tokens = _plain(head.composite_token_rows)


@_plain
def checked_labels(labels, counts, classes, ignore_index):
    return labels.clone()  # what follows the operator looks for bad ones as well
