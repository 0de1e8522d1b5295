"""The functions in PyTorch's operations, which it differentiates itself: for other devices, transforms and traces."""

import math

import torch

from crossent import _rows
from crossent.frontends.torch import namespace as xp
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.checks import refuse_wrapped
from crossent.frontends.torch.dtypes import COMPUTE, INTEGERS, STORAGES, compute_dtype
from crossent.frontends.torch.labels import concrete, outside, refuse_bad_labels, samples_of_rows
from crossent.frontends.torch.modes import compiling, grad_enabled, is_plain, numbers, tracer, untraced
from crossent.kernels import plain as formulas


def checked_rows(input, target, weight, sample_weight, dim, options, soft_allowed, all_classes=None):
    """Class axis, kind of target, int64 labels, class weights and how much each row counts (0: ignored).

    Labels are of `all_classes`, if the input does not have them all.
    """
    refuse_wrapped(input)
    shape, target_shape = input.shape, target.shape
    if tracer() is not None:
        shape, target_shape = numbers(shape), numbers(target_shape)
    axis, soft = _rows.target_kind(shape, target_shape, dim, soft_allowed)
    all_classes = input.shape[axis] if all_classes is None else all_classes
    if input.dtype not in STORAGES:
        raise _rows.dtype_error("input", input.dtype)
    _rows.check_target_dtype(soft, target.dtype in STORAGES, target.dtype in INTEGERS, target.dtype)
    dtype = COMPUTE[input.dtype]
    row_shape = input.shape[:axis] + input.shape[axis + 1 :]
    keep = torch.ones(row_shape, dtype=dtype, device=input.device)
    if sample_weight is not None:
        keep = samples_of_rows(sample_weight, row_shape).to(dtype)
    if weight is not None:
        if numbers(weight.shape) != (shape[axis],):
            raise _rows.weight_error(weight.shape, shape[axis])
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
            raise _rows.label_error(label, row, row_shape, all_classes, options.ignore_index)
    target = target.to(torch.int64)
    keep = torch.where(target == options.ignore_index, 0.0, keep)
    target, keep = _checked_labels(target, keep, all_classes, options.ignore_index)
    return axis, soft, target, weight, keep


def _checked_labels(labels, keep, classes, ignore_index):
    """Both as they are, after a check. If labels cannot be read, a bad label becomes class 0 and its row counts nan.

    A program compiled for the CPU checks labels when it runs, unless it was exported to where no check can be called. A
    trace refuses bad labels when it is made; when it runs, a bad label counts nan.
    """
    if tracer() is not None:
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
    """The loss. `tensors` are input, target, weight and sample_weight."""
    input, target, weight, sample_weight = tensors
    found = checked_rows(input, target, weight, sample_weight, call.dim, call.options, not call.picks)
    axis, soft, target, weight, keep = found
    target = target.to(keep.dtype) if soft else target
    x, target, keep, axis = lined_up(input, target, keep, axis)
    x = x.to(keep.dtype)
    if call.picks:
        rows = formulas.picked_losses(xp, x, target, weight, keep, axis)
    else:
        rows = formulas.row_losses(xp, x, target, soft, weight, keep, call.options, axis, xp.freeze)
    return of_rows(input, reduce(rows, target, soft, weight, keep, call.divisor, call.options)).to(call.out_dtype)


def differentiable_gradients(tensors, wanted, call, dloss):
    """Gradients of input and target that can be differentiated again, None for what is not wanted.

    Rows do not depend on each other, so the gradient is that of the sum of all losses, times the upstream gradient.
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
    """A single row gets an axis of length 1. The value of an index without an axis would be read, and forward mode
    gives it another dtype.
    """
    return (input, target, keep, axis) if keep.ndim else (input[None], target[None], keep[None], 1)


def of_rows(input, result):
    """The result without the axis that `lined_up` added."""
    return result[0] if result.ndim >= input.ndim else result


def reduce(rows, target, soft, weight, keep, divisor, options):
    if options.reduction == "none":
        return rows
    total = rows.sum()
    if options.reduction == "mean":
        if divisor is None:
            divisor = formulas.row_weights(xp, target, soft, weight, keep).sum()
        total = total / divisor
    return total


def prediction_stats(input, target, dim, options, shard=None):
    all_classes = None if shard is None else shard.classes
    axis, _, target, _, keep = checked_rows(input, target, None, None, dim, options, False, all_classes)
    x, target, keep, axis = lined_up(input, target, keep, axis)
    stats = formulas.prediction_stats(xp, x.to(keep.dtype), target, keep, axis, shard)
    return tuple(of_rows(input, stat) for stat in stats)


def softmax(x, axis, log):
    """In plain operations where PyTorch's own function loses digits, but not on devices on which plain operations take
    several times as long.
    """
    if log and x.device.type == "cpu":
        return formulas.log_softmax(xp, x.to(compute_dtype(x.dtype)), axis, xp.freeze).to(x.dtype)
    return native_softmax(x, axis, log)


def native_softmax(x, dim, log):
    """PyTorch's own function; for 16 bits in float32, since PyTorch's kernels round on the way."""
    native = torch.log_softmax if log else torch.softmax
    if x.itemsize > 2:
        return native(x, dim)
    if tracer() is not None:  # told a dtype, TorchScript makes the gradient in that dtype
        return native(x.float(), dim).to(x.dtype)
    return native(x, dim, dtype=torch.float32).to(x.dtype)
