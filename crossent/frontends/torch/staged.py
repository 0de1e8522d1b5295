"""Cross entropy by a device's two stages: which devices have them, and the node of the autograd graph."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from crossent._plan import STAGES
from crossent._rows import SparseTarget
from crossent.frontends import _stages
from crossent.frontends._cpu import CpuKernels
from crossent.frontends.torch import modes, namespace
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.dtypes import COMPUTE, ORDINARY, STRIDED, Tensor
from crossent.frontends.torch.modes import applier, grad_enabled
from crossent.frontends.torch.nodes import has_storage, in_memory, needs_composite
from crossent.frontends.torch.plain import differentiable_gradients
from crossent.kernels import Sums, plain as formulas
from crossent.kernels.stages import PlainKernels

KERNELS_OF = {"cpu": CpuKernels(TORCH)}  # device type -> its `LossKernels`
PLAIN_KERNELS = PlainKernels(namespace, COMPUTE)  # for devices without


def has_stages(tensors):
    """Whether a device's kernels may read these tensors, and no transform is active."""
    if modes.forced not in (None, STAGES) or modes.is_traced() or modes.transformed():
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    return given[0].device.type in KERNELS_OF and all(
        type(tensor) in ORDINARY and tensor.layout is STRIDED and not tensor.is_neg() for tensor in given
    )


class ClassShard(NamedTuple):
    """Which of the `classes` of all processes this one has: those from `first` on. The `largest` shard has so many.

    `gathered(tensor)` are the tensors of all of them, along a new first axis.
    """

    first: int
    classes: int
    largest: int
    gathered: Callable

    @staticmethod
    def refuse_derivatives_of(dloss):
        """No process has all that derivatives of derivatives need."""
        if grad_enabled() or type(dloss) is not Tensor or not has_storage(dloss):
            raise RuntimeError(
                "the gradient of a loss whose classes are sharded cannot be differentiated: redistribute them to "
                "Replicate()"
            )

    def merged(self, sums):
        given = [one for one in sums if one is not None]
        parts = []
        for part in self.gathered(torch.stack(given)):
            numbers = iter(part)
            parts.append(Sums(*(None if one is None else next(numbers) for one in sums)))
        return formulas.merged(namespace, parts)

    def own_labels(self, labels, ignore_index, here):
        """The labels as numbers of the classes that are `here`; -1, which is to be ignored, for all others."""
        own = labels.to(torch.int64) - self.first
        return torch.where((labels == ignore_index) | (own < 0) | (own >= here), -1, own)

    def own_sparse(self, target, here):
        """The part of a sparse target that is of the classes that are `here`."""
        classes, probs = target.classes.to(torch.int64) - self.first, target.probs
        if not here:
            return SparseTarget(classes[..., :0], probs[..., :0])
        own = (classes >= 0) & (classes < here)
        return SparseTarget(torch.where(own, classes, 0), torch.where(own, probs, 0.0))


class _StagedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, weight, sample_weight, call, shard):
        tensors = input, target, weight, sample_weight
        finished = _finished(tensors, call, shard)
        ctx.save_for_backward(*tensors)
        ctx.call, ctx.shard, ctx.finished = call, shard, finished
        return finished.loss.to(call.out_dtype)

    @staticmethod
    def backward(ctx, dloss):
        tensors, call, wanted = ctx.saved_tensors, ctx.call, ctx.needs_input_grad
        if ctx.shard is not None:
            ctx.shard.refuse_derivatives_of(dloss)
        elif needs_composite(dloss):
            return *differentiable_gradients(tensors, wanted[:2], call, dloss), None, None, None, None
        rows, dloss = _rows_of(tensors, call, ctx.shard), in_memory(dloss)
        found = _stages.gradients(TORCH, _kernels_of(tensors), rows, ctx.finished, dloss, tensors, wanted[1])
        return *found, None, None, None, None


def _kernels_of(tensors):
    return KERNELS_OF.get(tensors[0].device.type, PLAIN_KERNELS)


def _rows_of(tensors, call, shard):
    return _stages.rows_of(TORCH, tensors, call, *(() if shard is None else (shard.first, shard.classes)))


def _finished(tensors, call, shard):
    rows, merge = _rows_of(tensors, call, shard), None if shard is None else shard.merged
    return _stages.loss(TORCH, _kernels_of(tensors), rows, call, tensors[1], merge)


_apply = applier(_StagedCrossEntropy)


def loss(tensors, call, shard=None):
    """Of input, target, weight and sample_weight. Of a `ClassShard` these are the parts that this process has."""
    input, target, *_ = tensors
    if grad_enabled() and (input.requires_grad or target.requires_grad):
        return _apply(*tensors, call, shard)
    return _finished(tensors, call, shard).loss.to(call.out_dtype)
