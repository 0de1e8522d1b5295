"""What calls with PyTorch's tensors are going to do, as the router says."""

import torch

from crossent import _rows
from crossent._call import Call
from crossent._plan import KERNELS, NATIVE, PLAIN, STAGES
from crossent.frontends import _plans
from crossent.frontends._problem import compute_storage
from crossent.frontends.torch import dtypes, head, modes, softmax, staged
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.checks import is_distributed
from crossent.frontends.torch.modes import transformed
from crossent.frontends.torch.router import (
    as_linear_takes_them,
    check_sums,
    checked,
    differentiates_weights,
    divisor_of,
    ordinary,
    way_of,
)
from crossent.frontends.torch.staged import has_picked, has_predictions, has_stages
from crossent.kernels.cpu.kernels import best_at_once


def _spread():
    from crossent.frontends.torch import spread_plans

    return spread_plans


def plan(name, arguments, options, how):
    a = arguments
    if is_distributed(a["input"]):
        return _spread().of_dtensors(plan, name, a, options, how)
    if name in ("softmax", "log_softmax"):
        return _of_softmax(name, a["input"], a["dim"], a["dtype"])
    if name == "prediction_stats":
        input, target = checked(input=a["input"], target=a["target"])
        if way_of((input, target), in_stages=has_predictions) is STAGES:
            return _plans.on_device(TORCH, name, input, "one kernel makes all statistics of a row")
        reasons = _out_of_kernels((input, target), False)
        return _plans.of_prediction(TORCH, name, input, target, a["dim"], reasons)
    if a.get("group") is not None:
        return _spread().of_group(plan, name, a, options, how)
    if how is not None:
        return _of_head(name, a, options, how)
    tensors = input, target, weight, sample_weight = tuple(
        checked(**{argument: a[argument] for argument in ("input", "target", "weight", "sample_weight")})
    )
    divisor = divisor_of(options, a["denominator"], input)
    by_weights = differentiates_weights(weight, sample_weight, divisor)
    picks = name == "nll_loss"
    if way_of(tensors, by_weights, in_stages=has_picked if picks else has_stages) is STAGES:
        if picks:
            return _plans.on_device(TORCH, name, input, "only the label's number is read of each row")
        return _of_stages(name, a, tensors, options, divisor)
    out_of_kernels = _out_of_kernels(tensors, by_weights)
    in_place, wanted = a.get("inplace_backward", False), input.requires_grad and torch.is_grad_enabled()
    may_wait = wanted and not (in_place or target.requires_grad or modes.packs_what_is_saved())
    of_gradient = []
    if may_wait and _best_at_once(name, input, target, a["dim"], options):
        of_gradient.append("the gradient is made in the forward pass, unless those of earlier calls were never used")
    if in_place:
        of_gradient.append("the gradient is written over input")
    return _plans.of_loss(TORCH, name, input, target, a["dim"], options, out_of_kernels, of_gradient)


def _of_stages(name, a, tensors, options, divisor):
    input, target, *_ = tensors
    in_place = a.get("inplace_backward", False)
    at_once = (
        torch.is_grad_enabled()
        and input.requires_grad
        and staged.is_made_at_once(input, options, in_place, target.requires_grad)
    )
    call = Call(options, a["dim"], divisor=divisor, out_dtype=dtypes.result_dtype(input, options), in_place=in_place)
    return _plans.of_stages(TORCH, name, input, target, a["dim"], at_once, staged.ready_of(tensors, call) is not None)


def _best_at_once(name, input, target, dim, options):
    picks, storage = name == "nll_loss", TORCH.storages.get(dtypes.common_dtype(input, target) or input.dtype)
    axis, _ = _rows.target_kind(input.shape, target.shape, dim, not picks)
    copy = torch.empty(input.shape, device="meta")
    layout = _rows.layout_of(input.shape, input.stride(), axis) or _rows.layout_of(copy.shape, copy.stride(), axis)
    return storage is not None and best_at_once(layout, storage, options.reduction, picks)


def _of_softmax(name, input, dim, dtype):
    if input.is_nested and (name == "softmax" or input.layout is not torch.strided):
        return _plans.of_softmax(TORCH, name, input, NATIVE, ("no kernel takes nested tensors",))
    (input,) = checked(input=input)
    x = input if dtype is None else input.new_empty((), dtype=dtype).expand(input.shape)
    axis = _rows.planned_softmax_axis(x.ndim, dim)
    kernels, used = softmax.kernels_of(x)
    if used and x.ndim:
        return _plans.on_device(TORCH, name, x, "one kernel makes the result and one the gradient")
    reasons = _out_of_kernels((input,), False)
    if kernels is not None:
        reasons = (f"of {x.numel() * x.itemsize:,} bytes a kernel saves less time than its start from Python takes",)
    if reasons:
        plain = name == "log_softmax" and x.device.type == "cpu"
        return _plans.of_softmax(TORCH, name, x, PLAIN if plain else NATIVE, reasons)
    if x.ndim and name == "softmax" and input.requires_grad and torch.is_grad_enabled() and softmax.is_tiny(x, axis):
        reasons = (f"the input is small, with rows of {x.size(axis)}: PyTorch's own takes no longer",)
    return _plans.of_softmax(TORCH, name, x, NATIVE if reasons or not x.ndim else KERNELS, reasons)


def _of_head(name, a, options, how):
    target = a["target"]
    sparse = isinstance(target, _rows.SparseTarget)
    classes, probs = (target.classes, target.probs) if sparse else (None, target)
    input, linear_weight, probs, classes, bias, weight, sample_weight = checked(
        input=a["input"], linear_weight=a["linear_weight"], target=probs, classes=classes, linear_bias=a["linear_bias"],
        weight=a.get("weight"), sample_weight=a.get("sample_weight"),
    )  # fmt: skip
    divisor = divisor_of(options, a.get("denominator"), input)
    by_weights = differentiates_weights(weight, sample_weight, divisor)
    input, linear_weight, bias = as_linear_takes_them(input, linear_weight, bias)
    check_sums(how.given, input.dtype)
    shard = a.get("shard")
    if shard is not None and divisor is None:
        divisor = 1.0  # that of the processes' class weights would have to be sent
    call = head.call_of(
        (input, linear_weight, bias, probs), Call(options, divisor=divisor, how=how, shard=shard), classes
    )
    tensors = input, linear_weight, bias, probs, weight, sample_weight
    grad = torch.is_grad_enabled()
    wanted = [t is not None and t.requires_grad and grad for t in tensors[:4]]
    if way_of(tensors, by_weights, in_stages=has_stages) is STAGES:
        from crossent.frontends.torch import staged_head

        planned = staged_head.planned(tensors, wanted, call)
        return _plans.of_head_on_device(name, call, *planned, wanted, compute_storage(TORCH.storage(input)))
    reasons, size = _out_of_kernels(tensors, by_weights), dtypes.compute_dtype(input.dtype).itemsize
    if reasons:
        found = None
        head.counts(tensors, call)  # which checks the tensors
    else:
        found, *_ = head.head_of(tensors, call)
    # Memory beside the gradients: sums over chunks in more bits, or in plain operations the gradients of one chunk.
    summed = [t for t, want in zip(tensors[1:3], wanted[1:3]) if want and (reasons or t.itemsize == 2)]
    beside = sum(size * t.numel() for t in summed) + (size * input.numel() if reasons else 0)
    if reasons and input.itemsize < size:
        beside += size * linear_weight.numel()
    arithmetic = compute_storage(TORCH.storage(input))
    rows = head.plain_rows(call, size)
    return _plans.of_head(name, call, found, wanted, arithmetic, reasons, beside, rows)


def _out_of_kernels(tensors, by_weights):
    """Why `way_of` says plain operations; nothing where it says kernels."""
    if way_of(tensors, by_weights) is KERNELS:
        return ()
    found = []
    for tensor in tensors:
        if tensor is not None and not ordinary(tensor) and not transformed():
            found.append(f"no kernel takes a tensor of type {type(tensor).__name__} on {tensor.device}")
    if transformed():
        found.append("no kernel takes part in a function transform, forward-mode differentiation or a dispatch mode")
    if by_weights:
        found.append("no kernel makes the gradient that weight, sample_weight or denominator require")
    return tuple(dict.fromkeys(found))
