"""The functions in PyTorch's own operations, which it differentiates itself: other devices, transforms and traces."""

import math

import torch

from crossent import _rows
from crossent.frontends.torch.arrays import INTEGERS, STORAGES, TORCH, compute_dtype
from crossent.frontends.torch.checks import concrete, outside, refuse_bad_labels, spread
from crossent.frontends.torch.modes import compiling, grad_enabled, is_plain, is_traced, numbers, untraced
from crossent.kernels import plain as array


def checked_rows(input, target, weight, sample_weight, dim, options, soft_allowed):
    """Class axis, kind of target, int64 labels, class weights and what each row counts (0: ignored)."""
    shape = numbers(input.shape)
    axis, soft = _rows.target_kind(shape, numbers(target.shape), dim, soft_allowed)
    if input.dtype not in STORAGES:
        raise _rows.dtype_error("input", input.dtype)
    _rows.check_target_dtype(soft, target.dtype in STORAGES, target.dtype in INTEGERS, target.dtype)
    dtype = compute_dtype(input.dtype)
    row_shape = input.shape[:axis] + input.shape[axis + 1 :]
    keep = torch.ones(row_shape, dtype=dtype, device=input.device)
    if sample_weight is not None:
        keep = spread(sample_weight, row_shape).to(dtype)
    if weight is not None:
        _rows.check_weight(numbers(weight.shape), shape[axis])
        if weight.dtype not in STORAGES:
            raise _rows.dtype_error("weight", weight.dtype)
        weight = weight.to(dtype)
    if soft:
        _rows.check_soft_options(options)
        return axis, soft, target, weight, keep
    if target.dtype is torch.uint64 and concrete(target) is not None:
        row = TORCH.labels(concrete(target))[1]
        if row is not None:
            label = TORCH.item(concrete(target), row)
            raise _rows.label_error(label, row, row_shape, input.shape[axis], options.ignore_index)
    target = target.to(torch.int64)
    keep = torch.where(target == options.ignore_index, 0.0, keep)
    target, keep = _checked_labels(target, keep, input.shape[axis], options.ignore_index)
    return axis, soft, target, weight, keep


def _checked_labels(labels, keep, classes, ignore_index):
    """Both as they are; where no label can be looked at, bad ones become a class whose row counts nan.

    What is compiled for the CPU looks when it runs, unless it was exported to where there is nobody to ask; a trace
    refuses what it is made with, and counts nan when it runs.
    """
    if is_traced():
        with untraced():
            _checked_labels(labels, keep, numbers((classes,))[0], ignore_index)
    target, counts = concrete(labels), concrete(keep)
    if target is not None and counts is not None:
        refuse_bad_labels(target, counts, classes, ignore_index)
        return labels, keep
    if compiling() and labels.device.type == "cpu" and not is_plain():
        from crossent.frontends.torch import operators

        labels = operators.checked_labels(labels, keep.detach(), classes, ignore_index)
    bad = outside(labels, classes) & (keep != 0)
    return torch.where(bad, 0, labels), torch.where(bad, math.nan, keep)


def loss(tensors, call):
    """Of input, target, weight and sample_weight."""
    input, target, weight, sample_weight = tensors
    found = checked_rows(input, target, weight, sample_weight, call.dim, call.options, not call.picks)
    axis, soft, target, weight, keep = found
    target = target.to(keep.dtype) if soft else target
    x, target, keep, axis = lined_up(input, target, keep, axis)
    x = x.to(keep.dtype)
    if call.picks:
        rows = array.picked_losses(torch, x, target, weight, keep, axis)
    else:
        rows = array.row_losses(torch, x, target, soft, weight, keep, call.options, axis, torch.Tensor.detach)
    return of_rows(input, reduce(rows, target, soft, weight, keep, call.divisor, call.options)).to(call.out_dtype)


def differentiable_gradients(tensors, wanted, call, dloss):
    """Gradients of input and target that can be differentiated again, None for what is not wanted.

    Rows do not depend on each other, so the gradient of their sum times what comes from above is all there is.
    """
    input, again = tensors[0], grad_enabled()
    differentiated = [tensor for tensor, want in zip(tensors, wanted, strict=False) if want]
    with torch.enable_grad():
        value = loss(tensors, call)
        grads = torch.autograd.grad(value.sum(), differentiated, create_graph=again)
    with torch.set_grad_enabled(again):
        if value.ndim:
            dloss = dloss.unsqueeze(_rows.class_axis(input.ndim, call.dim))
        scaled = iter([(grad * dloss).to(grad.dtype) for grad in grads])
    return [next(scaled) if want else None for want in wanted]


def lined_up(input, target, keep, axis):
    """A single row becomes a line of one: an index without an axis is read, and forward mode gives it another dtype."""
    return (input, target, keep, axis) if keep.ndim else (input[None], target[None], keep[None], 1)


def of_rows(input, result):
    """Without the axis of `lined_up`."""
    return result[0] if result.ndim >= input.ndim else result


def reduce(rows, target, soft, weight, keep, divisor, options):
    if options.reduction == "none":
        return rows
    total = rows.sum()
    if options.reduction == "mean":
        if divisor is None:
            divisor = array.row_weights(torch, target, soft, weight, keep).sum()
        total = total / divisor
    return total


def prediction_stats(input, target, dim, options):
    axis, _, target, _, keep = checked_rows(input, target, None, None, dim, options, False)
    x, target, keep, axis = lined_up(input, target, keep, axis)
    return tuple(of_rows(input, stat) for stat in array.prediction_stats(torch, x.to(keep.dtype), target, keep, axis))


def softmax(x, axis, log):
    """In plain operations where PyTorch's own lose digits, unless the device is one on which these take several times
    as long.
    """
    if log and x.device.type == "cpu":
        return array.log_softmax(torch, x.to(compute_dtype(x.dtype)), axis, torch.Tensor.detach).to(x.dtype)
    return native_softmax(x, axis, log)


def native_softmax(x, dim, log):
    """PyTorch's own; for 16 bits in float32, since its own kernels round on the way."""
    native = torch.log_softmax if log else torch.softmax
    if x.itemsize > 2:
        return native(x, dim)
    if is_traced():  # what TorchScript differentiates when it is told a dtype is a gradient of that dtype
        return native(x.float(), dim).to(x.dtype)
    return native(x, dim, dtype=torch.float32).to(x.dtype)
