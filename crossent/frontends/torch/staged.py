"""Cross entropy by a device's two stages: which devices have them, and the node of the autograd graph."""

import torch

from crossent._plan import STAGES
from crossent.frontends import _stages
from crossent.frontends._cpu import CpuKernels
from crossent.frontends.torch import modes
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.dtypes import ORDINARY, STRIDED
from crossent.frontends.torch.modes import applier, grad_enabled
from crossent.frontends.torch.nodes import in_memory, needs_composite
from crossent.frontends.torch.plain import differentiable_gradients

KERNELS_OF = {"cpu": CpuKernels(TORCH)}  # device type -> its `LossKernels`


def has_stages(tensors):
    """Whether a device's kernels may read these tensors, and no transform is active."""
    if modes.forced not in (None, STAGES) or modes.is_traced() or modes.transformed():
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    return given[0].device.type in KERNELS_OF and all(
        type(tensor) in ORDINARY and tensor.layout is STRIDED and not tensor.is_neg() for tensor in given
    )


class _StagedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, weight, sample_weight, call):
        tensors = input, target, weight, sample_weight
        finished = _finished(tensors, call)
        ctx.save_for_backward(*tensors)
        ctx.call, ctx.finished = call, finished
        return finished.loss.to(call.out_dtype)

    @staticmethod
    def backward(ctx, dloss):
        tensors, call, wanted = ctx.saved_tensors, ctx.call, ctx.needs_input_grad
        if needs_composite(dloss):
            return *differentiable_gradients(tensors, wanted[:2], call, dloss), None, None, None
        rows, dloss = _stages.rows_of(TORCH, tensors, call), in_memory(dloss)
        found = _stages.gradients(TORCH, _kernels_of(tensors), rows, ctx.finished, dloss, tensors, wanted[1])
        return *found, None, None, None


def _kernels_of(tensors):
    return KERNELS_OF[tensors[0].device.type]


def _finished(tensors, call):
    return _stages.loss(TORCH, _kernels_of(tensors), _stages.rows_of(TORCH, tensors, call), call, tensors[1])


_apply = applier(_StagedCrossEntropy)


def loss(tensors, call):
    """Of input, target, weight and sample_weight."""
    input, target, *_ = tensors
    if grad_enabled() and (input.requires_grad or target.requires_grad):
        return _apply(*tensors, call)
    return _finished(tensors, call).loss.to(call.out_dtype)
