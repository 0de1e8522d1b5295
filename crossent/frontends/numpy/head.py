"""The fused head for NumPy."""

from crossent import _rows
from crossent._call import Call
from crossent.frontends import _heads
from crossent.frontends._products import Products
from crossent.frontends.numpy.losses import NUMPY, divisor_of, readable, result, tape_of_call


def products_for(x, weight, exact):
    return Products(NUMPY, x)


def _like_input(name, array, input):
    if array is None:
        return None
    array = readable(name, array)
    if array.dtype != input.dtype:
        raise TypeError(f"{name} must have the dtype of input, {input.dtype}, got {array.dtype}")
    return array


def checked(given, options, how, divisor=None):
    """The arrays as kernels read them, and the call; `given` are they as the caller gave them."""
    input, linear_weight, linear_bias, target, weight, sample_weight = given
    x, classes = readable("input", input), None
    if isinstance(target, _rows.SparseTarget):
        classes, target = readable("target", target.classes), target.probs
    arrays = (
        x,
        _like_input("linear_weight", linear_weight, x),
        _like_input("linear_bias", linear_bias, x),
        readable("target", target),
        None if weight is None else readable("weight", weight),
        None if sample_weight is None else readable("sample_weight", sample_weight),
    )
    shape = _heads.shape_of(arrays, classes, how.shift)
    return arrays, Call(options, divisor=divisor, how=how, shape=shape, classes=classes)


def linear_cross_entropy(input, linear_weight, target, linear_bias, weight, sample_weight, denominator, options, how):
    given = input, linear_weight, linear_bias, target, weight, sample_weight
    arrays, call = checked(given, options, how, divisor_of(options, denominator))
    tape = tape_of_call.get()
    differentiates = tape is not None and tape.input is input
    wanted = (differentiates, differentiates, differentiates and linear_bias is not None, False)
    value, gradients, later = _heads.loss_and_gradients(arrays, wanted, call, products_for)
    value = result(value, arrays[0].dtype, options)
    if differentiates:
        tape.record(value, lambda: tuple(_heads.finished(NUMPY, gradients[:3], arrays, later)))
    return value


def linear_token_stats(input, linear_weight, target, linear_bias, options, how):
    arrays, call = checked((input, linear_weight, linear_bias, target, None, None), options, how)
    _rows.check_tokens(call.shape)
    head, *_ = _heads.head_of(arrays, call, products_for)
    return tuple(_heads.losses_of(result, call) for result in head.tokens())
