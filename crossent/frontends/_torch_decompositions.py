"""The operators in PyTorch's own operations, for what has no Python to call: ONNX, and programs for other processes.

Each takes what its operator takes and returns what is asked for, but nothing for a backward pass. Labels out of range
make nan, since there is nobody to tell.
"""

from functools import wraps

from crossent._options import HeadOptions, loss_options
from crossent.frontends import _torch_head, torch as frontend


def _plain(function):
    @wraps(function)
    def decomposed(*arguments):
        with frontend.plain_operations():
            return function(*arguments)

    return decomposed


@_plain
def loss(input, target, weight, sample_weight, picks, dim, *values):
    options, dtype = loss_options(None, None, *values), frontend.compute_dtype(input.dtype)
    composite = frontend.composite_nll if picks else frontend.composite
    return composite(input, target, weight, sample_weight, None, dim, options, dtype)


@_plain
def checked_labels(labels, counts, classes, ignore_index):
    return labels.clone()  # what follows the operator looks for bad ones as well


@_plain
def head(
    input, linear_weight, linear_bias, target, weight, sample_weight, classes, wanted, shift, chunk_bytes, chunk_rows,
    filter_eps, exact, *values,
):  # fmt: skip
    options, dtype = loss_options(None, None, *values), frontend.compute_dtype(input.dtype)
    how = HeadOptions(shift, chunk_bytes, chunk_rows, filter_eps, exact)
    call = _torch_head.call_of(input, linear_weight, linear_bias, target, classes, options, how, None, dtype)
    return _torch_head.composite((input, linear_weight, linear_bias, target, weight, sample_weight), call)


@_plain
def tokens(input, linear_weight, linear_bias, target, shift, chunk_bytes, ignore_index, softcap):
    options, how = loss_options(ignore_index=ignore_index, softcap=softcap), HeadOptions(shift, chunk_bytes, exact=True)
    call = _torch_head.call_of(input, linear_weight, linear_bias, target, None, options, how, None, None)
    return _torch_head.composite_token_rows((input, linear_weight, linear_bias, target), call)
