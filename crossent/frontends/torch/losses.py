"""Losses by kernels: the nodes of the autograd graph."""

import math

import torch

from crossent import _rows
from crossent.frontends._problem import problem_of
from crossent.frontends.torch.arrays import FINITE, TORCH, empty, in_memory, needs_composite, overlaps, result, upstream
from crossent.frontends.torch.modes import applier, top_hooks
from crossent.frontends.torch.plain import differentiable_gradients

UNASKED_AT_MOST = 8  # gradients of a plan made in a row for nobody; several losses may wait for one backward pass


class _CrossEntropy(torch.autograd.Function):
    """Forward makes the gradient in passing where that is best and it is asked for; the first backward hands it out."""

    @staticmethod
    def forward(ctx, input, target, weight, sample_weight, problem, call):
        ctx.stats = ctx.made = ctx.unit = None
        plan = problem.plan
        if plan.unit is None or call.in_place or ctx.needs_input_grad[1]:
            ctx.stats = problem.new_stats()
            loss, ctx.scale = problem.forward(call.divisor, ctx.stats)
        else:
            unit = problem.unit(call.divisor)
            if makes_gradient(plan):
                ctx.made = empty(plan.layout, input)
                loss, ctx.scale = problem.forward_and_backward(call.divisor, unit, ctx.made)
            else:
                loss, ctx.scale = problem.forward(call.divisor)
            if _rows.workable(ctx.scale / unit):
                ctx.unit, ctx.plan = unit, plan
            else:
                ctx.made = None
        ctx.save_for_backward(input, target, weight, sample_weight)
        ctx.call = call
        return result(loss, call.out_dtype)

    @staticmethod
    def backward(ctx, dloss):
        tensors = ctx.saved_tensors
        if ctx.unit is not None:
            dx, ctx.made, ctx.plan.unasked = ctx.made, None, 0
            factor = math.inf if needs_composite(dloss) else ctx.scale / ctx.unit * float(in_memory(dloss))
            if abs(factor) < FINITE:
                if dx is None:
                    dx = made_again(tensors, ctx.call, ctx.unit)
                return dx if factor == 1.0 else dx.mul_(factor), None, None, None, None, None
            dx = None  # free it first: two gradients are never held at once
        found = gradients_in_backward(tensors, ctx.needs_input_grad, ctx.call, dloss, ctx.stats, ctx.scale)
        return *found, None, None, None, None


def made_again(tensors, call, unit):
    """With the bits that it had in forward, of tensors to which hooks may have given other strides."""
    input, target, weight, sample_weight = tensors
    problem = problem_of(TORCH, input, target, weight, sample_weight, call.dim, call.options)
    dx = empty(problem.layout, input)
    problem.forward_and_backward(call.divisor, unit, dx)
    return dx


def makes_gradient(plan):
    """Whether forward is to make the gradient, which is counted: not where the last ones were made for nobody, as in an
    evaluation with gradients on, until a backward pass comes; nor where hooks put away what waits.
    """
    if plan.unasked >= UNASKED_AT_MOST or top_hooks(True) is not None:
        return False
    plan.unasked += 1
    return True


def gradients_in_backward(tensors, wanted, call, dloss, stats, scale):
    """For the logits and the target, made in the backward pass; ignored rows get zeros whatever comes from above."""
    input, target, weight, sample_weight = tensors
    if needs_composite(dloss):
        return differentiable_gradients(tensors, wanted[:2], call, dloss)
    if call.in_place:
        input.data_ptr()  # after which it shares memory with no copy on write
    problem = problem_of(TORCH, input, target, weight, sample_weight, call.dim, call.options)
    in_place = call.in_place and wanted[0] and problem.x is input and not overlaps(input)
    dx = input.detach() if in_place else empty(problem.layout, input)
    dtarget, *_ = problem.backward(stats, *upstream(problem, dloss, scale), dx, wanted[1])
    if in_place:
        torch.autograd.graph.increment_version(input)
    return dx, dtarget


class _NLLLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, weight, sample_weight, problem, call):
        loss, ctx.scale = problem.forward(call.divisor)
        ctx.save_for_backward(input, target, weight, sample_weight)
        ctx.call = call
        return result(loss, call.out_dtype)

    @staticmethod
    def backward(ctx, dloss):
        tensors, call = ctx.saved_tensors, ctx.call
        if needs_composite(dloss):
            dx, _ = differentiable_gradients(tensors, ctx.needs_input_grad[:2], call, dloss)
            return dx, None, None, None, None, None
        input, target, weight, sample_weight = tensors
        problem = problem_of(TORCH, input, target, weight, sample_weight, call.dim, call.options, picks=True)
        dx = empty(problem.layout, input).zero_()
        problem.backward(None, *upstream(problem, dloss, ctx.scale), dx, False)
        return dx, None, None, None, None, None


apply_cross_entropy = applier(_CrossEntropy)
apply_nll_loss = applier(_NLLLoss)
