"""PyTorch: which way a call takes.

An ordinary call on the CPU is one autograd node, whose backward is a kernel too. Other devices, function transforms,
forward-mode derivatives, derivatives of derivatives and traces by `torch.jit.trace` use `kernels.plain`, which PyTorch
differentiates itself. Under `torch.compile` and `torch.export` the kernels are operators.
"""

from dataclasses import replace
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from crossent import _rows
from crossent._call import Call, Spread
from crossent._options import number
from crossent._plan import KERNELS, OPERATOR, PLAIN, STAGES
from crossent._public import named
from crossent.frontends import _problem
from crossent.frontends._problem import ready_softmax
from crossent.frontends.torch import modes, nodes, plain, staged
from crossent.frontends.torch.arrays import TORCH, strides
from crossent.frontends.torch.checks import (
    REQUIRED,
    check_distributed,
    checked_slowly,
    device_error,
    is_distributed,
    plain_tensor,
)
from crossent.frontends.torch.dtypes import (
    COMPUTE,
    ORDINARY,
    STORAGES,
    STRIDED,
    Tensor,
    autocast_result,
    in_common_dtype,
    number_at,
    result_dtype,
)
from crossent.frontends.torch.fast import fast_first
from crossent.frontends.torch.gpus import GPUS_HAVE_KERNELS
from crossent.frontends.torch.modes import (
    IsTracedError,
    autocasts,
    compiling,
    constrained,
    dispatch_modes,
    function_modes,
    grad_enabled,
    is_operator,
    may_take_over,
    tracer,
    transforms,
)
from crossent.frontends.torch.softmax import apply_softmax, compiled_softmax, is_tiny, softmax_elsewhere, softmax_of
from crossent.frontends.torch.staged import has_picked, has_predictions, has_stages

_BY_POSITION = "input", "linear_weight", "target"
# While somebody watches: makes a call, tells of it, and returns its result; returns None for calls inside of others. It
# is asked for after `compiling`: code for which a compiler had read it would be compiled again once somebody watches.
told: Any = None


def way_of(tensors, by_weights=False, in_stages=None):
    """Which way a call takes. `by_weights`: weights or the divisor require a gradient, which no kernel makes.
    `in_stages(tensors)` says whether a device's kernels may take the call, as `has_stages` does of cross entropy and of
    a head.
    """
    if compiling():
        devices = ("cpu", "cuda") if in_stages and GPUS_HAVE_KERNELS else ("cpu",)
        return OPERATOR if is_operator(tensors[0], devices) and not by_weights else PLAIN
    if by_weights:
        return PLAIN
    if ordinary(*tensors):
        return KERNELS
    return STAGES if in_stages and in_stages(tensors) else PLAIN


def ordinary(*tensors):
    """Whether these are CPU tensors that a kernel may read, and no transform is active."""
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in ORDINARY and tensor.is_cpu and tensor.layout is STRIDED and not tensor.is_neg()
        ):
            return False
    # `modes.is_traced` and `transformed`, written out: two calls less for every loss (tests/test_journeys.py).
    if tracer() is not None or transforms() or dispatch_modes():
        return False
    return forward_ad._current_level < 0 and modes.forced is None


def checked(**tensors):
    """The tensors, after a check that all are dense and on one device; None passes where it may be given.

    Subclasses that are plain memory become plain tensors.
    """
    for name, tensor in tensors.items():
        if tensor is None and name not in REQUIRED:
            continue
        plain = type(tensor) in ORDINARY and tensor.is_cpu and tensor.layout is STRIDED and not tensor.is_nested
        if not plain:
            return checked_slowly(tensors)
    return tensors.values()


def differentiates_weights(weight, sample_weight, divisor):
    return torch.is_grad_enabled() and (
        (weight is not None and weight.requires_grad)
        or (sample_weight is not None and sample_weight.requires_grad)
        or (isinstance(divisor, torch.Tensor) and divisor.requires_grad)
    )


def divisor_of(options, denominator, input):
    """The caller's denominator, as a number if no device has to be waited for and nothing differentiates it.

    It may be on any device from which it can be read.
    """
    if denominator is None:
        return None
    if not isinstance(denominator, torch.Tensor):
        _rows.check_denominator(options, 0)
        return number("denominator", denominator)
    narrow = denominator.dtype if denominator.itemsize == 2 and denominator.is_floating_point() else None
    _rows.check_denominator(options, denominator.ndim, narrow)
    if denominator.is_meta and not input.is_meta:
        raise device_error("denominator", denominator, input.device)
    if type(denominator) not in ORDINARY:
        check_distributed("denominator", denominator, input)
        denominator = plain_tensor(denominator)
    if not denominator.is_cpu and denominator.device != input.device:  # such as another GPU
        denominator = denominator.to(input.device)
    if compiling() or denominator.requires_grad or not ordinary(denominator):
        return denominator
    return float(denominator)


def _with_number(call):
    """With the number that a divisor is which is on another device, or whose gradient nobody wants now."""
    return replace(call, divisor=float(call.divisor)) if isinstance(call.divisor, Tensor) else call


@cache
def _parameters(function):
    return tuple(signature(function).parameters)


def _taken_over(name, tensors, arguments):
    """Hand the call, with the public function's arguments, to the type of a tensor that takes it over."""
    function = named(name)
    given = {key: arguments[key] for key in _parameters(function) if key in arguments}
    first = [given.pop(key) for key in _BY_POSITION if key in given]
    return handle_torch_function(function, tensors, *first, **given)


def _distributed():
    from crossent.frontends.torch import distributed

    return distributed


def _staged_head():
    from crossent.frontends.torch import staged_head

    return staged_head


def _spread_calls():
    from crossent.frontends.torch import spread_calls

    return spread_calls


def _said_of(spread):
    """A caller's arguments about classes that are spread."""
    return {"group": spread.group, "first_class": spread.first_class} if isinstance(spread, Spread) else {}


def _refuse_group(spread):
    if spread is not None:
        raise TypeError("group must not be given for DTensors, which know how they are spread")


_TENSORS_OF_A_LOSS = "input", "target", "weight", "sample_weight"


def _loss(name, given, denominator, dim, options, in_place=False, spread=None):
    """Of input, target, weight and sample_weight. `spread` says which classes these have, a `Spread` of the caller's or
    a `ClassShard`; None if they have all.
    """
    if not compiling() and told:
        found = told(_loss, name, given, denominator, dim, options, in_place, spread)
        if found is not None:
            return found
    if has_torch_function((*given, denominator)) and may_take_over(given[0]):
        others = {"denominator": denominator, "dim": dim, "inplace_backward": in_place} | _said_of(spread)
        return _taken_over(name, (*given, denominator), dict(zip(_TENSORS_OF_A_LOSS, given)) | others | vars(options))
    tensors = input, target, weight, sample_weight = tuple(checked(**dict(zip(_TENSORS_OF_A_LOSS, given))))
    picks = name == "nll_loss"
    if input is not given[0] and not picks and spread is None:  # perhaps it can go the fast way now
        return cross_entropy(input, target, weight, sample_weight, denominator, dim, options, in_place)
    if type(input) not in ORDINARY and is_distributed(input):
        _refuse_group(spread)
        return _distributed().loss(_loss, name, tensors, denominator, dim, options, in_place)
    if not picks and target.is_floating_point():
        input, target = in_common_dtype(input, target)
        tensors = input, target, weight, sample_weight
    divisor = None if denominator is None else divisor_of(options, denominator, input)
    full = options.loss_dtype is None and input.dtype in number_at
    shard = None if spread is None else _spread_calls().shard_of_loss(spread, tensors, dim, options)
    dtype = input.dtype if full else result_dtype(input, options)
    call = Call(options, dim, picks, divisor, dtype, in_place, shard=shard)
    weighs = not weight is sample_weight is divisor is None
    by_weights = weighs and differentiates_weights(weight, sample_weight, divisor)
    if shard is not None:
        return staged.loss(tensors, call, by_weights)
    way = way_of(tensors, by_weights, in_stages=has_picked if picks else has_stages)
    if way is KERNELS:
        return nodes.loss(tensors, call if divisor is None else _with_number(call))
    if way is PLAIN:
        return plain.loss(tensors, call)
    if way is STAGES:
        return staged.loss(tensors, call)
    from crossent.frontends.torch import compiled

    return compiled.loss(tensors, call)


cross_entropy = fast_first(partial(_loss, "cross_entropy"))


def spread_cross_entropy(*arguments):
    """Of plain tensors with one process's classes; the last argument is a `Spread`."""
    if not compiling() and told and (found := told(spread_cross_entropy, *arguments)) is not None:
        return found
    return _spread_calls().cross_entropy(partial(_loss, "cross_entropy"), *arguments)


def nll_loss(input, target, weight, sample_weight, denominator, dim, options):
    return _loss("nll_loss", (input, target, weight, sample_weight), denominator, dim, options)


def prediction_stats(input, target, dim, options):
    if has_torch_function((input, target)) and may_take_over(input):
        arguments = {"input": input, "target": target, "dim": dim, "ignore_index": options.ignore_index}
        return _taken_over("prediction_stats", (input, target), arguments)
    input, target = checked(input=input, target=target)
    if type(input) not in ORDINARY and is_distributed(input):
        return _distributed().prediction_stats(prediction_stats, input, target, dim, options)
    input = input.detach()
    way = way_of((input, target), in_stages=has_predictions)
    if way is KERNELS:
        return _problem.prediction_stats(TORCH, input, target, dim, options)
    if way is STAGES:
        return staged.prediction_stats(input, target, dim, options)
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
        and not constrained()
    )
    if quick:
        try:
            ready = ready_softmax(TORCH, input.shape, strides(input), input.dtype, dim, log)
        except (IsTracedError, RuntimeError):  # a nested tensor has no shape
            pass
        else:
            if not (input.requires_grad and grad_enabled()):
                return softmax_of(input, ready)
            return input.softmax(dim) if not log and is_tiny(input, dim) else apply_softmax(input, ready)
    name = "log_softmax" if log else "softmax"
    if has_torch_function((input,)) and may_take_over(input):
        return _taken_over(name, (input,), {"input": input, "dim": dim, "dtype": dtype})
    if dim is None:
        dim = _rows.softmax_axis(input.ndim, dim, name, stacklevel)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if dtype is None and not input.is_cpu:  # on other devices autocast gives softmax in float32
        dtype = autocast_result(input)
    if input.is_nested:
        if log and input.layout is STRIDED:  # PyTorch has no log_softmax of these
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
        return softmax_elsewhere(x, axis, log)
    ready = ready_softmax(TORCH, x.shape, strides(x), x.dtype, axis, log)
    return apply_softmax(x, ready) if x.requires_grad and grad_enabled() else softmax_of(x, ready)


def _classes_and_probs(target):
    """The classes and probabilities of a sparse target; of any other, None and the target."""
    return (target.classes, target.probs) if isinstance(target, _rows.SparseTarget) else (None, target)


def check_sums(options, dtype):
    wanted = getattr(options, "acc_dtype", None)
    if wanted not in (None, dtype, COMPUTE[dtype]):
        raise ValueError(f"options.acc_dtype must be None or {COMPUTE[dtype]} for {dtype}, got {wanted}")


def as_linear_takes_them(input, linear_weight, linear_bias):
    """The tensors in autocast's dtype if it is on; else all three must have the same dtype already."""
    device = input.device.type
    if torch.is_autocast_enabled(device) if device == "cpu" else autocasts(device):
        dtype = torch.get_autocast_dtype(device)
        if input.dtype is not torch.float64:
            input, linear_weight = input.to(dtype), linear_weight.to(dtype)
            linear_bias = None if linear_bias is None else linear_bias.to(dtype)
    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise TypeError(f"{name} must have the dtype of input, {input.dtype}, got {tensor.dtype}")
    return input, linear_weight, linear_bias


def linear_cross_entropy(
    input, linear_weight, target, linear_bias, weight, sample_weight, denominator, options, how, spread=None
):
    """`spread` is as in `_loss`: what has the classes has this process's, but for those of a sparse target."""
    from crossent.frontends.torch import head

    if not compiling() and told:
        arguments = input, linear_weight, target, linear_bias, weight, sample_weight, denominator, options, how, spread
        if (found := told(linear_cross_entropy, *arguments)) is not None:
            return found
    classes, probs = _classes_and_probs(target)
    tensors = (input, linear_weight, probs, linear_bias, weight, sample_weight, denominator)
    if has_torch_function(tensors) and may_take_over(input):
        arguments = {
            "input": input, "linear_weight": linear_weight, "target": target, "linear_bias": linear_bias,
            "weight": weight, "sample_weight": sample_weight, "denominator": denominator, "options": how.given,
        }  # fmt: skip
        return _taken_over("linear_cross_entropy", tensors, vars(options) | vars(how) | arguments | _said_of(spread))
    input, linear_weight, probs, classes, linear_bias, weight, sample_weight = checked(
        input=input, linear_weight=linear_weight, target=probs, classes=classes, linear_bias=linear_bias,
        weight=weight, sample_weight=sample_weight,
    )  # fmt: skip
    if type(input) not in ORDINARY and is_distributed(input):
        _refuse_group(spread)
        tensors = input, linear_weight, target, linear_bias, weight, sample_weight
        return _distributed().linear_cross_entropy(linear_cross_entropy, tensors, denominator, options, how)
    full = options.loss_dtype is None and input.dtype in number_at
    out_dtype = input.dtype if full else result_dtype(input, options)
    input, linear_weight, linear_bias = as_linear_takes_them(input, linear_weight, linear_bias)
    if how.given is not None:
        check_sums(how.given, input.dtype)
    divisor = None if denominator is None else divisor_of(options, denominator, input)
    shard = None
    if spread is not None:
        tensors = input, linear_weight, linear_bias, probs, weight, sample_weight
        shard = _spread_calls().shard_of_head(spread, tensors, classes, options, how)
        input, classes, probs = head.of_shard(input, classes, probs, shard, len(linear_weight), shard is not spread)
    tensors = input, linear_weight, linear_bias, probs, weight, sample_weight
    call = Call(options, divisor=divisor, out_dtype=out_dtype, how=how, shard=shard)
    weighs = not weight is sample_weight is divisor is None
    way = way_of(tensors, weighs and differentiates_weights(weight, sample_weight, divisor), has_stages)
    if way is OPERATOR and shard is None:
        from crossent.frontends.torch import compiled

        return compiled.head_loss(tensors, call, classes)
    call = head.call_of(tensors[:4], call, classes)
    if way is STAGES:
        return head.by_kernels(tensors, call, _staged_head().ON_DEVICE)
    if shard is not None:
        call = head.with_divisor(tensors, call)
    if way is not KERNELS:
        return head.composite(tensors, call)
    return head.by_kernels(tensors, call if call.divisor is None else _with_number(call))


def linear_token_stats(input, linear_weight, target, linear_bias, options, how, spread=None):
    """`spread` is as in `_loss`: linear_weight and linear_bias have this process's classes."""
    from crossent.frontends.torch import head

    tensors = input, linear_weight, target, linear_bias
    if has_torch_function(tensors) and may_take_over(input):
        arguments = {
            "input": input, "linear_weight": linear_weight, "target": target, "linear_bias": linear_bias,
        }  # fmt: skip
        return _taken_over("linear_token_stats", tensors, vars(options) | vars(how) | arguments | _said_of(spread))
    input, linear_weight, target, linear_bias = checked(
        input=input, linear_weight=linear_weight, target=target, linear_bias=linear_bias
    )
    if type(input) not in ORDINARY and is_distributed(input):
        _refuse_group(spread)
        tensors = input, linear_weight, target, linear_bias
        return _distributed().linear_token_stats(linear_token_stats, tensors, options, how)
    input, linear_weight, linear_bias = as_linear_takes_them(input, linear_weight, linear_bias)
    shard = None
    if spread is not None:
        tensors = input, linear_weight, linear_bias, target, None, None
        shard = _spread_calls().shard_of_head(spread, tensors, None, options, how, tokens=True)
        input, *_ = head.of_shard(input, None, target, shard, len(linear_weight), shard is not spread)
    tensors = input, linear_weight, linear_bias, target
    call = head.call_of(tensors, Call(options, how=how, shard=shard))
    _rows.check_tokens(call.shape)
    way = way_of(tensors, in_stages=has_stages)
    if way is OPERATOR and shard is None:
        from crossent.frontends.torch import compiled

        return compiled.tokens(tensors, call)
    if way is STAGES:
        return head.tokens_by_kernels(tensors, call, _staged_head().ON_DEVICE)
    return (head.tokens_by_kernels if way is KERNELS else head.composite_tokens)(tensors, call)


def spread_linear_cross_entropy(*arguments):
    """As `spread_cross_entropy`."""
    if not compiling() and told and (found := told(spread_linear_cross_entropy, *arguments)) is not None:
        return found
    return _spread_calls().of_head(linear_cross_entropy, *arguments)


def spread_linear_token_stats(*arguments):
    """As `spread_cross_entropy`."""
    return _spread_calls().of_head(linear_token_stats, *arguments)


def value_and_grad(function, input, args, kwargs):
    """The loss and its gradient by `torch.autograd.grad`; `input` need not require one."""
    with torch.enable_grad():
        logits = input.detach().requires_grad_()
        loss = function(logits, *args, **kwargs)
        if loss.ndim:
            raise ValueError(f"value_and_grad needs a loss that is one number, got shape {tuple(loss.shape)}")
        (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient
