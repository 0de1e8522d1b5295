"""The stateless style: losses as functions of arrays. Meaning is in `_rules`, validation in `_options` and `_rows`."""

from crossent import _dispatch
from crossent._options import loss_options


def softmax(input, dim=None, _stacklevel=3, dtype=None):
    return _dispatch.frontend(input).softmax(input, dim, dtype, False, _stacklevel)


def log_softmax(input, dim=None, _stacklevel=3, dtype=None):
    return _dispatch.frontend(input).softmax(input, dim, dtype, True, _stacklevel)


def nll_loss(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    *,
    dim=None,
    sample_weight=None,
    denominator=None,
):
    options = loss_options(size_average, reduce, reduction, ignore_index)
    return _dispatch.frontend(input).nll_loss(input, target, weight, sample_weight, denominator, dim, options)


def cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
    *,
    dim=None,
    sample_weight=None,
    denominator=None,
    softcap=None,
    z_loss=0.0,
    inplace_backward=False,
):
    options = loss_options(size_average, reduce, reduction, ignore_index, label_smoothing, softcap, z_loss)
    return _dispatch.frontend(input).cross_entropy(
        input, target, weight, sample_weight, denominator, dim, options, inplace_backward
    )


def value_and_grad(function):
    def value_and_gradient(input, *args, **kwargs):
        return _dispatch.frontend(input).value_and_grad(function, input, args, kwargs)

    return value_and_gradient
