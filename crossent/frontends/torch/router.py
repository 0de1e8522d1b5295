"""PyTorch: which way a call takes.

An ordinary call on the CPU goes through one autograd node whose backward is a kernel too. Other devices, function
transforms, forward-mode derivatives and derivatives of derivatives use `kernels.plain`, which PyTorch differentiates
itself, and so does what `torch.jit.trace` records. Under `torch.compile` and `torch.export` the kernels are operators.
"""

from functools import cache
from inspect import signature

import torch
from torch.overrides import handle_torch_function, has_torch_function

from crossent import _rows
from crossent._call import Call
from crossent._public import named
from crossent.frontends import _problem
from crossent.frontends._problem import problem_of
from crossent.frontends.torch import plain
from crossent.frontends.torch.arrays import (
    ORDINARY,
    STORAGES,
    STRIDED,
    TORCH,
    Tensor,
    autocast_result,
    in_common_dtype,
    result,
    result_dtype,
    strides,
)
from crossent.frontends.torch.checks import (
    KERNELS,
    OPERATOR,
    checked,
    differentiates_weights,
    divisor_of,
    is_distributed,
    plain_tensor,
    way_of,
)
from crossent.frontends.torch.fast import fast_first
from crossent.frontends.torch.losses import apply_cross_entropy, apply_nll_loss
from crossent.frontends.torch.modes import (
    IsTracedError,
    compiling,
    function_modes,
    grad_enabled,
    may_take_over,
    transformed,
)
from crossent.frontends.torch.softmax import apply_softmax, compiled_softmax, is_tiny, softmax_call, softmax_of

_BY_POSITION = "input", "linear_weight", "target"


@cache
def _parameters(function):
    return tuple(signature(function).parameters)


def _taken_over(name, tensors, arguments):
    """The call, handed to the type of a tensor that takes it over with the public function's arguments."""
    function = named(name)
    given = {key: arguments[key] for key in _parameters(function) if key in arguments}
    first = [given.pop(key) for key in _BY_POSITION if key in given]
    return handle_torch_function(function, tensors, *first, **given)


def _distributed():
    from crossent.frontends.torch import distributed

    return distributed


@fast_first
def cross_entropy(input, target, weight, sample_weight, denominator, dim, options, inplace_backward):
    tensors = {"input": input, "target": target, "weight": weight, "sample_weight": sample_weight}
    others = {"denominator": denominator, "dim": dim, "inplace_backward": inplace_backward}
    if has_torch_function((*tensors.values(), denominator)) and may_take_over(input):
        return _taken_over("cross_entropy", (*tensors.values(), denominator), tensors | others | vars(options))
    of_any_type = input
    input, target, weight, sample_weight = checked(**tensors)
    if input is not of_any_type:  # for which there is a fast way perhaps
        return cross_entropy(input, target, weight, sample_weight, denominator, dim, options, inplace_backward)
    if type(input) not in ORDINARY and is_distributed(input):
        arguments = input, target, weight, sample_weight, denominator, dim, options, inplace_backward
        return _distributed().loss(cross_entropy, True, *arguments)
    if target.is_floating_point():
        input, target = in_common_dtype(input, target)
    return _loss(False, (input, target, weight, sample_weight), denominator, dim, options, inplace_backward)


def nll_loss(input, target, weight, sample_weight, denominator, dim, options):
    tensors = {"input": input, "target": target, "weight": weight, "sample_weight": sample_weight}
    if has_torch_function((*tensors.values(), denominator)) and may_take_over(input):
        others = {"denominator": denominator, "dim": dim}
        return _taken_over("nll_loss", (*tensors.values(), denominator), tensors | others | vars(options))
    input, target, weight, sample_weight = checked(**tensors)
    if type(input) not in ORDINARY and is_distributed(input):
        arguments = input, target, weight, sample_weight, denominator, dim, options
        return _distributed().loss(nll_loss, False, *arguments)
    return _loss(True, (input, target, weight, sample_weight), denominator, dim, options)


def _loss(picks, tensors, denominator, dim, options, in_place=False):
    """Of checked tensors: input, target, weight, sample_weight."""
    input, target, weight, sample_weight = tensors
    divisor = None if denominator is None else divisor_of(options, denominator, input)
    call = Call(options, dim, picks, divisor, result_dtype(input, options), in_place)
    way = way_of(tensors, differentiates_weights(weight, sample_weight, divisor))
    if way is OPERATOR:
        from crossent.frontends.torch import compiled

        return compiled.loss(tensors, call)
    if way is not KERNELS:
        return plain.loss(tensors, call)
    problem = problem_of(TORCH, input, target, weight, sample_weight, dim, options, picks)
    if grad_enabled() and (input.requires_grad or target.requires_grad):
        apply = apply_nll_loss if picks else apply_cross_entropy
        return apply(input, target, weight, sample_weight, problem, call)
    return result(problem.forward(divisor)[0], call.out_dtype)


def prediction_stats(input, target, dim, options):
    if has_torch_function((input, target)) and may_take_over(input):
        arguments = {"input": input, "target": target, "dim": dim, "ignore_index": options.ignore_index}
        return _taken_over("prediction_stats", (input, target), arguments)
    input, target = checked(input=input, target=target)
    if type(input) not in ORDINARY and is_distributed(input):
        return _distributed().prediction_stats(prediction_stats, input, target, dim, options)
    input = input.detach()
    if way_of((input, target), compiling()) is KERNELS:
        return _problem.prediction_stats(TORCH, input, target, dim, options)
    return plain.prediction_stats(input, target, dim, options)


def softmax(input, dim, dtype, log, stacklevel):
    quick = (
        dtype is None
        and type(dim) is int
        and type(input) is Tensor
        and input.is_cpu
        and input.layout is STRIDED
        and input.ndim
        and not compiling()
        and not input.is_neg()
        and not function_modes()
        and not transformed()
    )
    if quick:
        try:
            call = softmax_call(input.shape, strides(input), input.dtype, dim, log)
        except (IsTracedError, RuntimeError):  # a nested tensor has no shape
            pass
        else:
            if not (input.requires_grad and grad_enabled()):
                return softmax_of(input, call)
            return input.softmax(dim) if not log and is_tiny(input, dim) else apply_softmax(input, call)
    name = "log_softmax" if log else "softmax"
    if has_torch_function((input,)) and may_take_over(input):
        return _taken_over(name, (input,), {"input": input, "dim": dim, "dtype": dtype})
    if dim is None:
        dim = _rows.softmax_axis(input.ndim, dim, name, stacklevel)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if dtype is None and not input.is_cpu:  # where autocast gives softmax in float32
        dtype = autocast_result(input)
    if input.is_nested:
        if log and input.layout is STRIDED:  # which PyTorch does not have
            checked(input=input)
        return plain.native_softmax(input if dtype is None else input.to(dtype), dim, log)
    x = input if type(input) in ORDINARY else plain_tensor(input)
    x = x if dtype is None else x.to(dtype)
    if x is not input:
        return softmax(x, dim, None, log, stacklevel)
    if x.dtype not in STORAGES:
        raise _rows.dtype_error("input", x.dtype)
    if not x.ndim:
        return plain.native_softmax(x, dim, log)
    axis = _rows.class_axis(x.ndim, dim)
    if type(x) not in ORDINARY and is_distributed(x):
        return _distributed().softmax(softmax, x, axis, log)
    if compiling():
        return compiled_softmax(x, axis, log)
    if way_of((x,)) is not KERNELS:
        return plain.softmax(x, axis, log)
    call = softmax_call(x.shape, strides(x), x.dtype, axis, log)
    return apply_softmax(x, call) if x.requires_grad and grad_enabled() else softmax_of(x, call)


def _classes_and_probs(target):
    """Those of a sparse target; of others no classes."""
    return (target.classes, target.probs) if isinstance(target, _rows.SparseTarget) else (None, target)


def linear_cross_entropy(input, linear_weight, target, linear_bias, weight, sample_weight, denominator, options, how):
    from crossent.frontends.torch import head

    classes, probs = _classes_and_probs(target)
    tensors = (input, linear_weight, probs, linear_bias, weight, sample_weight, denominator)
    if has_torch_function(tensors) and may_take_over(input):
        arguments = {
            "input": input, "linear_weight": linear_weight, "target": target, "linear_bias": linear_bias,
            "weight": weight, "sample_weight": sample_weight, "denominator": denominator, "options": how.given,
        }  # fmt: skip
        return _taken_over("linear_cross_entropy", tensors, vars(options) | vars(how) | arguments)
    input, linear_weight, probs, classes, linear_bias, weight, sample_weight = checked(
        input=input, linear_weight=linear_weight, target=probs, classes=classes, linear_bias=linear_bias,
        weight=weight, sample_weight=sample_weight,
    )  # fmt: skip
    if type(input) not in ORDINARY and is_distributed(input):
        tensors = input, linear_weight, target, linear_bias, weight, sample_weight
        return _distributed().linear_cross_entropy(linear_cross_entropy, tensors, denominator, options, how)
    out_dtype = result_dtype(input, options)
    input, linear_weight, linear_bias = head.as_linear_takes_them(input, linear_weight, linear_bias)
    head.check_sums(how.given, input.dtype)
    divisor = divisor_of(options, denominator, input)
    tensors = input, linear_weight, linear_bias, probs, weight, sample_weight
    call = Call(options, divisor=divisor, out_dtype=out_dtype, how=how)
    way = way_of(tensors, differentiates_weights(weight, sample_weight, divisor))
    if way is OPERATOR:
        from crossent.frontends.torch import compiled

        return compiled.head_loss(tensors, call, classes)
    call = head.call_of(tensors[:4], call, classes)
    return (head.by_kernels if way is KERNELS else head.composite)(tensors, call)


def linear_token_stats(input, linear_weight, target, linear_bias, options, how):
    from crossent.frontends.torch import head

    tensors = input, linear_weight, target, linear_bias
    if has_torch_function(tensors) and may_take_over(input):
        arguments = {
            "input": input, "linear_weight": linear_weight, "target": target, "linear_bias": linear_bias,
        }  # fmt: skip
        return _taken_over("linear_token_stats", tensors, vars(options) | vars(how) | arguments)
    input, linear_weight, target, linear_bias = checked(
        input=input, linear_weight=linear_weight, target=target, linear_bias=linear_bias
    )
    if type(input) not in ORDINARY and is_distributed(input):
        tensors = input, linear_weight, target, linear_bias
        return _distributed().linear_token_stats(linear_token_stats, tensors, options, how)
    tensors = *head.as_linear_takes_them(input, linear_weight, linear_bias), target
    call = head.call_of(tensors, Call(options, how=how))
    _rows.check_tokens(call.shape)
    way = way_of(tensors)
    if way is OPERATOR:
        from crossent.frontends.torch import compiled

        return compiled.tokens(tensors, call)
    return (head.tokens_by_kernels if way is KERNELS else head.composite_tokens)(tensors, call)


def value_and_grad(function, input, args, kwargs):
    """The loss and its gradient by `torch.autograd.grad`; `input` need not require one."""
    with torch.enable_grad():
        logits = input.detach().requires_grad_()
        loss = function(logits, *args, **kwargs)
        if loss.ndim:
            raise ValueError(f"value_and_grad needs a loss that is one number, got shape {tuple(loss.shape)}")
        (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def plan(name, arguments, options, how):
    from crossent.frontends.torch import plans

    if is_distributed(arguments["input"]):
        return _distributed().planned(plans.plan, name, arguments, options, how)
    return plans.plan(name, arguments, options, how)
