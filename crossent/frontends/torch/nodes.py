"""The nodes of the autograd graph: what they share, and those of the losses."""

import math

import torch
from torch.autograd import forward_ad

from crossent import _rows
from crossent._plan import PLAIN
from crossent.frontends._problem import problem_of
from crossent.frontends.torch import modes
from crossent.frontends.torch.arrays import TORCH, address, like_numbers, overlaps
from crossent.frontends.torch.dtypes import FINITE, Tensor, compute_dtype, number_at
from crossent.frontends.torch.modes import applier, dispatch_modes, grad_enabled, top_hooks, transforms
from crossent.frontends.torch.plain import differentiable_gradients

has_storage = torch._C._has_storage


def result(loss, dtype):
    if type(loss) is float:
        if dtype in number_at:
            return tensor_of(loss, dtype)
        loss = tensor_of(loss, torch.float32)
    return loss.to(dtype)


def tensor_of(value, dtype):
    """A tensor of one number in full precision; infinity if it is too large, which PyTorch refuses to make."""
    tensor = torch.empty_like(like_numbers[dtype])
    number_at[dtype](address(tensor)).value = value
    return tensor


def needs_composite(gradient):
    """Whether a backward pass is to be differentiated itself, or runs under a transform, on a gradient without memory.

    `is_grads_batched` runs it under the older vmap, which shows in nothing but the missing memory.
    """
    # `modes.transformed`, written out.
    if grad_enabled() or type(gradient) is not Tensor or transforms() or dispatch_modes():
        return True
    return forward_ad._current_level >= 0 or modes.forced is PLAIN or not has_storage(gradient)


def in_memory(gradient):
    """The gradient as kernels read it: PyTorch stores some imaginary parts negated, and some zeros not at all."""
    if gradient.is_neg() or gradient._is_zerotensor():
        return torch.zeros(gradient.shape, dtype=gradient.dtype, device=gradient.device) + gradient
    return gradient


def upstream(dloss, scale, input):
    """The upstream gradient: one number for each row, or None and one number as part of the scale."""
    if dloss.ndim:
        return in_memory(dloss).to(compute_dtype(input.dtype)).contiguous(), scale
    return None, scale * float(dloss)


class _CrossEntropy(torch.autograd.Function):
    """Forward makes the gradient too, if that is best and gradients are used; the first backward hands it out."""

    @staticmethod
    def forward(ctx, input, target, weight, sample_weight, call):
        ctx.stats = ctx.made = ctx.unit = None
        problem = problem_of(TORCH, input, target, weight, sample_weight, call.dim, call.options)
        ready = problem.ready
        if ready.plan.unit is None or call.in_place or ctx.needs_input_grad[1]:
            ctx.stats = problem.new_stats()
            loss, ctx.scale = problem.forward(call.divisor, ctx.stats)
        else:
            unit = ready.plan.unit if call.divisor is None else problem.unit(call.divisor)
            if top_hooks(True) is None and ready.expects_backward():
                ctx.made = ready.new(problem.x)
                loss, ctx.scale = problem.forward_and_backward(call.divisor, unit, ctx.made)
            else:
                loss, ctx.scale = problem.forward(call.divisor)
            if _rows.workable(ctx.scale / unit):
                ctx.unit, ctx.ready = unit, ready
            else:
                ctx.made = None
        ctx.save_for_backward(input, target, weight, sample_weight)
        ctx.call = call
        return result(loss, call.out_dtype)

    @staticmethod
    def backward(ctx, dloss):
        tensors = ctx.saved_tensors
        if ctx.unit is not None:
            dx, ctx.made, ctx.ready.unasked = ctx.made, None, 0
            factor = math.inf if needs_composite(dloss) else ctx.scale / ctx.unit * float(in_memory(dloss))
            if abs(factor) < FINITE:
                if dx is None:
                    dx = made_again(tensors, ctx.call, ctx.unit)
                return dx if factor == 1.0 else dx.mul_(factor), None, None, None, None
            dx = None  # free it first: two gradients are never held at once
        found = gradients_in_backward(tensors, ctx.needs_input_grad, ctx.call, dloss, ctx.stats, ctx.scale)
        return *found, None, None, None


def made_again(tensors, call, unit):
    """The gradient, with the bits that it had in forward; hooks may have given the tensors other strides since."""
    input, target, weight, sample_weight = tensors
    problem = problem_of(TORCH, input, target, weight, sample_weight, call.dim, call.options)
    dx = problem.ready.new(problem.x)
    problem.forward_and_backward(call.divisor, unit, dx)
    return dx


def gradients_in_backward(tensors, wanted, call, dloss, stats, scale):
    """The gradients of logits and target, made in the backward pass; ignored rows get zeros whatever dloss is."""
    input, target, weight, sample_weight = tensors
    if needs_composite(dloss):
        return differentiable_gradients(tensors, wanted[:2], call, dloss)
    if call.in_place:
        input.data_ptr()  # gives a copy-on-write tensor memory of its own
    problem = problem_of(TORCH, input, target, weight, sample_weight, call.dim, call.options)
    in_place = call.in_place and wanted[0] and problem.x is input and not overlaps(input)
    dx = input.detach() if in_place else problem.ready.new(problem.x)
    dtarget, *_ = problem.backward(stats, *upstream(dloss, scale, input), dx, wanted[1])
    if in_place:
        torch.autograd.graph.increment_version(input)
    return dx, dtarget


class _NLLLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, weight, sample_weight, call):
        problem = problem_of(TORCH, input, target, weight, sample_weight, call.dim, call.options, picks=True)
        loss, ctx.scale = problem.forward(call.divisor)
        ctx.save_for_backward(input, target, weight, sample_weight)
        ctx.call = call
        return result(loss, call.out_dtype)

    @staticmethod
    def backward(ctx, dloss):
        tensors, call = ctx.saved_tensors, ctx.call
        if needs_composite(dloss):
            dx, _ = differentiable_gradients(tensors, ctx.needs_input_grad[:2], call, dloss)
            return dx, None, None, None, None
        input, target, weight, sample_weight = tensors
        above = upstream(dloss, ctx.scale, input)
        problem = problem_of(TORCH, input, target, weight, sample_weight, call.dim, call.options, picks=True)
        dx = problem.ready.new(problem.x).zero_()
        problem.backward(None, *above, dx, False)
        return dx, None, None, None, None


_apply_cross_entropy = applier(_CrossEntropy)
_apply_nll_loss = applier(_NLLLoss)


def loss(tensors, call):
    """Of input, target, weight and sample_weight, by kernels."""
    input, target, weight, sample_weight = tensors
    if grad_enabled() and (input.requires_grad or target.requires_grad):
        return (_apply_nll_loss if call.picks else _apply_cross_entropy)(*tensors, call)
    problem = problem_of(TORCH, input, target, weight, sample_weight, call.dim, call.options, call.picks)
    return result(problem.forward(call.divisor)[0], call.out_dtype)
