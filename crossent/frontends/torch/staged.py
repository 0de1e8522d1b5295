"""Losses by a device's kernels: which devices have them, and the node of the autograd graph."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from crossent import _rows
from crossent._call import Call
from crossent._kept import kept, no_memory_kept
from crossent._plan import STAGES
from crossent.frontends import _stages
from crossent.frontends._cpu import CpuKernels
from crossent.frontends.torch import late, modes, namespace
from crossent.frontends.torch.arrays import TORCH, UNREAD, overlaps
from crossent.frontends.torch.dtypes import COMPUTE, ORDINARY, STRIDED
from crossent.frontends.torch.gpus import GPUS_HAVE_KERNELS
from crossent.frontends.torch.modes import applier, compiling, grad_enabled, packs_what_is_saved, transformed
from crossent.frontends.torch.nodes import in_memory, needs_composite
from crossent.frontends.torch.plain import checked_rows, differentiable_gradients
from crossent.kernels import Rows
from crossent.kernels.stages import PlainKernels

KERNELS_OF: dict[str, Any] = {"cpu": CpuKernels(TORCH)}  # device type -> its `LossKernels`, None if it has none
PLAIN_KERNELS = PlainKernels(namespace, COMPUTE, namespace.freeze)  # for devices without


def kernels_on(device_type):
    """The kernels of a type of device, or None."""
    if device_type == "cuda" and device_type not in KERNELS_OF:
        KERNELS_OF[device_type] = _triton_kernels() if GPUS_HAVE_KERNELS else None
    return KERNELS_OF.get(device_type)


def _triton_kernels():
    from crossent.kernels.triton.device import DeviceKernels

    return DeviceKernels(note=late.note)


def is_made_at_once(input, options, in_place, of_target):
    """Whether the forward pass of a loss makes the gradient, which then waits for the backward pass."""
    may_wait = options.reduction != "none" and not (in_place or of_target or packs_what_is_saved())
    kernels = kernels_on(input.device.type)
    return may_wait and kernels is not None and kernels.is_best_at_once(input)


def has_stages(tensors):
    """Whether a device's kernels may read these tensors, and no transform is active."""
    if modes.forced not in (None, STAGES) or modes.is_traced() or modes.transformed():
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    return kernels_on(given[0].device.type) is not None and all(
        type(tensor) in ORDINARY and tensor.layout is STRIDED and not tensor.is_neg() for tensor in given
    )


def has_picked(tensors):
    """As `has_stages`, of nll_loss."""
    return has_stages(tensors) and kernels_on(tensors[0].device.type).picked is not None


def has_predictions(tensors):
    """As `has_stages`, of prediction_stats."""
    return has_stages(tensors) and kernels_on(tensors[0].device.type).predictions is not None


class _StagedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, weight, sample_weight, call):
        tensors = input, target, weight, sample_weight
        ctx.ready, ctx.call, ctx.made = ready_of(tensors, call), call, None
        if ctx.ready is not None:
            ctx.save_for_backward(*tensors)
            loss, ctx.finished = _ready_loss(ctx.ready, tensors, late.refuse)
            return loss
        may_be_made = call.shard is None and not call.picks
        if may_be_made and is_made_at_once(input, call.options, call.in_place, ctx.needs_input_grad[1]):
            ctx.made, finished = _made_at_once(tensors, call)
        else:
            finished = _finished(tensors, call, late.refuse)
        ctx.save_for_backward(*tensors)
        ctx.finished = finished._replace(loss=None)  # the loss holds this node
        loss = finished.loss.to(call.out_dtype)
        return loss.new_empty(0).set_(loss) if loss._is_view() else loss  # a view could not be changed in place

    @staticmethod
    def backward(ctx, dloss):
        late.look()
        tensors, call, wanted = ctx.saved_tensors, ctx.call, ctx.needs_input_grad
        if needs_composite(dloss):
            make = differentiable_gradients if call.shard is None else _differentiable_gradients
            return *make(tensors, wanted[:2], call, dloss), None, None, None
        input, made, ctx.made = tensors[0], ctx.made, None
        if made is not None:
            _kernels_of(tensors, call).multiply(made, in_memory(dloss))
            return made, None, None, None, None
        if (
            ctx.ready is not None and input.is_contiguous() and tensors[1].is_contiguous()
        ):  # hooks may have changed that
            above, sums, scale = in_memory(dloss), ctx.finished.sums, ctx.finished.scale
            above = above.contiguous() if above.ndim else above
            return ctx.ready.step.backward(input, tensors[1], sums, scale, above), None, None, None, None
        in_place = call.in_place and wanted[0] and not overlaps(input)
        if in_place:
            input.data_ptr()  # gives a copy-on-write tensor memory of its own
        tensors = input.detach(), *tensors[1:]  # the gradient may be a view of it, which must not be one of the input
        found = _gradients(tensors, call, ctx.finished, in_memory(dloss), wanted[1], in_place)
        if in_place and found[0].data_ptr() == input.data_ptr():
            torch.autograd.graph.increment_version(input)
        return *found, None, None, None


def _kernels_of(tensors, call):
    kernels = kernels_on(tensors[0].device.type) or PLAIN_KERNELS
    return kernels.picked if call.picks else kernels


def _lib_of(tensors):
    return TORCH if tensors[0].is_cpu else UNREAD


class _Ready(NamedTuple):
    """The step that kernels have ready, and what makes the error of a row and its label."""

    step: Any
    error: Any


def ready_of(tensors, call):
    """The `_Ready` of a call without weights, of labels and logits that lie dense in memory; None if there is none."""
    input, target, weight, sample_weight = tensors
    usual = weight is sample_weight is call.divisor is call.shard is None and not (call.picks or call.in_place)
    dense = input.is_contiguous() and target.is_contiguous()
    if not (usual and dense and target.dtype is torch.int64 and input.dtype in COMPUTE and target.ndim < input.ndim):
        return None
    kernels = kernels_on(input.device.type)
    if kernels is None or kernels.ready_step is None:
        return None
    return _ready(kernels, input.device, input.shape, input.dtype, target.shape, call.dim, call.options, call.out_dtype)


@kept
def _ready(kernels, device, shape, dtype, row_shape, dim, options, loss_dtype):
    axis, _ = _rows.target_kind(shape, row_shape, dim, False)
    by_class = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    step = kernels.ready_step(by_class, row_shape, dtype, options, loss_dtype, device)
    return None if step is None else _Ready(step, _stages.error_of_notes(tuple(row_shape), shape[axis], options))


def _ready_loss(ready, tensors, refuse):
    """The loss, and what else is `Finished`."""
    loss, sums, scale, note = ready.step.forward(*tensors[:2])
    refuse(note, ready.error)
    return loss, _stages.Finished(None, sums, 1.0 if scale is None else scale)


def _viewable(tensors, call):
    """The tensors and the call with the class axis where the logits are (outer, classes, inner) without a copy, if
    there is such a place: of `logits[:, :-1]` the sequences are the outer rows.
    """
    input, target, *weights = tensors
    if input.ndim < 3:
        return tensors, call
    axis = _rows.class_axis(input.ndim, call.dim)
    layout = _rows.layout_of(tuple(input.shape), input.stride(), axis)
    if layout is None or layout.split == axis:
        return tensors, call
    if target.shape == input.shape:
        target = target.movedim(axis, layout.split)
    return (input.movedim(axis, layout.split), target, *weights), replace(call, dim=layout.split)


def _rows_of(tensors, call):
    shard = call.shard
    return _stages.rows_of(_lib_of(tensors), tensors, call, *(() if shard is None else (shard.first, shard.classes)))


def _finished(tensors, call, refuse):
    tensors, call = _viewable(tensors, call)
    rows, merge = _rows_of(tensors, call), None if call.shard is None else call.shard.merged
    return _stages.loss(_lib_of(tensors), _kernels_of(tensors, call), rows, call, tensors[1], merge, refuse)


def _made_at_once(given, given_call):
    """The gradient for an upstream gradient of 1, and the `Finished` loss."""
    tensors, call = _viewable(given, given_call)
    lib, rows, mean = _lib_of(tensors), _rows_of(tensors, call), call.options.reduction == "mean"
    sums, outcome, gradient = _kernels_of(tensors, call).at_once(rows, mean, call.divisor, call.out_dtype)
    finished = _stages.reduced(lib, rows, sums, outcome, call, tensors[1], late.refuse)
    return _as_given(gradient.reshape(tensors[0].shape), given_call, call), finished


def _gradients(given, given_call, finished, dloss, want_target, in_place=False):
    tensors, call = _viewable(given, given_call)
    rows, kernels = _rows_of(tensors, call), _kernels_of(tensors, call)
    found = _stages.gradients(_lib_of(tensors), kernels, rows, finished, dloss, tensors, want_target, in_place)
    return [None if gradient is None else _as_given(gradient, given_call, call) for gradient in found]


def _as_given(gradient, given_call, call):
    """With the class axis where the caller's input has it."""
    if call is given_call:
        return gradient
    return gradient.movedim(call.dim, _rows.class_axis(gradient.ndim, given_call.dim))


_apply = applier(_StagedCrossEntropy)


def loss(tensors, call, by_weights=False):
    """Of input, target, weight and sample_weight, of which a call with a `ClassShard` has one process's classes.

    `by_weights`: weights or the divisor require a gradient.
    """
    if call.shard is not None and (by_weights or compiling() or transformed()):
        return differentiable_loss(tensors, call)
    late.look()
    input, target, *_ = tensors
    if grad_enabled() and (input.requires_grad or target.requires_grad):
        return _apply(*tensors, call)
    ready = ready_of(tensors, call)
    if ready is not None:
        return _ready_loss(ready, tensors, late.refuse_outside_training)[0]
    return _finished(tensors, call, late.refuse_outside_training).loss.to(call.out_dtype)


def prediction_stats(input, target, dim, options):
    late.look()
    tensors, call = (input, target, None, None), Call(options, dim, picks=True)
    tensors, call = _viewable(tensors, call)
    rows, kernels = _rows_of(tensors, call), kernels_on(input.device.type)
    return _stages.predictions(_lib_of(tensors), kernels, rows, call, target, late.refuse_outside_training)


def differentiable_loss(tensors, call):
    """The loss of one process's classes in plain operations, which PyTorch differentiates itself."""
    input, target, weight, sample_weight = tensors
    axis, soft, labels, weight, keep = checked_rows(
        input, target, weight, sample_weight, call.dim, call.options, True, call.shard.classes
    )
    outcome = losses_of_shard(input, labels, soft, weight, keep, axis, call)
    total, weights = outcome.totals
    if call.options.reduction == "none":
        total = outcome.losses.reshape(keep.shape)
    elif call.options.reduction == "mean":
        total = total / (weights if call.divisor is None else call.divisor)
    return total.to(call.out_dtype)


# What the operators are made of, see `compiled`.


def is_staged(input, picks=False):
    """Whether an operator makes the loss by the kernels of `KERNELS_OF`."""
    return not input.is_cpu or (modes.forced is STAGES and (not picks or KERNELS_OF["cpu"].picked is not None))


def softmax_kernels(x):
    """The kernels by which an operator makes softmax, or None on the CPU."""
    kernels = kernels_on(x.device.type) if is_staged(x) else None
    return kernels if kernels is not None and kernels.softmax is not None else None


@no_memory_kept()
def loss_and_sums(tensors, call):
    """The loss, its sums packed, and the scale as a tensor of float64."""
    late.look()
    finished, viewable = _finished(tensors, call, late.refuse), _viewable(tensors, call)
    sums = _kernels_of(*viewable).packed(_rows_of(*viewable), finished.sums)
    scale = torch.zeros((), dtype=torch.float64, device=tensors[0].device) + finished.scale
    return finished.loss.to(call.out_dtype), sums, scale


def gradients_of_sums(tensors, call, sums, scale, dloss, want_target):
    late.look()
    viewable = _viewable(tensors, call)
    finished = _stages.Finished(None, _kernels_of(*viewable).unpacked(_rows_of(*viewable), sums), scale)
    return _gradients(tensors, call, finished, dloss, want_target)


def losses_of_shard(logits, labels, soft, weight, keep, axis, call):
    """The `Outcome` of checked rows, which can be differentiated; `keep` is how much each row counts."""
    shape = logits.shape
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    by_class = outer, shape[axis], inner
    labels = labels.reshape(by_class if soft else (outer, inner))
    # Ignored rows count 0 already, and a bad label that could not be refused is 0, which may be the one to ignore.
    of_shard = call.options.changed(ignore_index=-1), soft, call.shard.first, call.shard.classes
    rows = Rows(logits.reshape(by_class), labels, weight, keep.reshape(outer, inner), *of_shard)
    return PLAIN_KERNELS.losses(rows, call.shard.merged(PLAIN_KERNELS.sums(rows)))


def _differentiable_gradients(tensors, wanted, call, dloss):
    """As `plain.differentiable_gradients`, for a shard. The upstream gradient goes through what all processes compute
    alike: multiplied afterwards, each would have its own part of the derivative by it.
    """
    with torch.enable_grad():
        value = differentiable_loss(tensors, call)
    differentiated = [tensor for tensor, want in zip(tensors, wanted, strict=False) if want]
    found = iter(torch.autograd.grad(value, differentiated, dloss.to(value.dtype), create_graph=grad_enabled()))
    return [next(found) if want else None for want in wanted]
