"""`cross_entropy` with as few Python calls as can be: for few numbers they take as long as the kernel.

Lines that are functions elsewhere are repeated here, which spares seven of sixteen calls (tests/test_journeys.py counts
them). Without this file an evaluation of 32 x 10 takes 9 us instead of 4, and a step 43 instead of 32 (`python -m
benchmarks.floor`).
"""

import math

import torch
from torch.autograd import forward_ad

from crossent._call import Call
from crossent._plan import PLAIN
from crossent._rows import reduced
from crossent.frontends._problem import UNASKED_AT_MOST, label_error, ready_call
from crossent.frontends.torch import modes
from crossent.frontends.torch.arrays import TORCH, address, like_numbers, strides
from crossent.frontends.torch.checks import checked_slowly
from crossent.frontends.torch.dtypes import FINITE, STRIDED, Tensor, number_at
from crossent.frontends.torch.modes import (
    IsTracedError,
    applier,
    compiling,
    dispatch_modes,
    function_modes,
    grad_enabled,
    threads,
    top_hooks,
    transforms,
)
from crossent.frontends.torch.nodes import gradients_in_backward, has_storage, in_memory, made_again
from crossent.kernels.cpu.call import BadLabel


def _loss(value, dtype):
    """As `nodes.tensor_of`."""
    tensor = torch.empty_like(like_numbers[dtype])
    number_at[dtype](address(tensor)).value = value
    return tensor


def fast_first(slow):
    """`slow`, with the short way tried before it."""

    def cross_entropy(input, target, weight, sample_weight, denominator, dim, options, inplace_backward):
        if not (
            weight is sample_weight is denominator is None
            and not inplace_backward
            and (dim is None or type(dim) is int)
            and type(input) is Tensor
            and type(target) is Tensor
            and input.is_cpu
            and target.is_cpu
            and input.layout is STRIDED
            and not compiling()
            and not input.is_neg()  # torch.compile cannot trace this
            and not function_modes()
            # as `modes.transformed`
            and not (transforms() or forward_ad._current_level >= 0 or dispatch_modes() or modes.forced)
        ):
            return slow((input, target, weight, sample_weight), denominator, dim, options, inplace_backward)
        try:
            ready = ready_call(
                TORCH, input.shape, strides(input), input.dtype, target.shape, strides(target), target.dtype, dim,
                options, False,
            )  # fmt: skip
            if ready is not None and ready.is_quick:
                if input.requires_grad and grad_enabled():
                    return _apply(input, target, ready)
                addresses = address(input), address(target), 0
                losses, weights = ready.plan.quick_forward(addresses, threads, (input, target))
                return _loss(reduced(options.reduction, losses, weights, None)[0], input.dtype)
        except BadLabel as bad:
            raise label_error(TORCH, target, bad.row, ready.layout, options) from None
        except IsTracedError:
            pass
        except RuntimeError:  # a sparse tensor has no address, a nested one no shape
            checked_slowly({"input": input, "target": target})
            raise
        return slow((input, target, None, None), None, dim, options)

    return cross_entropy


class _FastCrossEntropy(torch.autograd.Function):
    """`nodes._CrossEntropy` for what is quick."""

    @staticmethod
    def forward(ctx, input, target, ready):
        # As `ready.expects_backward`.
        if ready.unasked < UNASKED_AT_MOST and top_hooks(True) is None:
            ready.unasked += 1
            dx = ready.new(input)
            addresses = address(input), address(target), address(dx)
            losses, weights = ready.plan.quick_backward(addresses, threads, (input, target, dx))
        else:
            dx, addresses = None, (address(input), address(target), 0)
            losses, weights = ready.plan.quick_forward(addresses, threads, (input, target))
        loss, ctx.scale = reduced(ready.options.reduction, losses, weights, None)
        ctx.save_for_backward(input, target)
        ctx.made, ctx.ready = dx, ready
        return _loss(loss, input.dtype)

    @staticmethod
    def backward(ctx, dloss):
        dx, scale, ready = ctx.made, ctx.scale, ctx.ready
        ctx.made, ready.unasked = None, 0
        tensors = *ctx.saved_tensors, None, None
        # As `nodes.needs_composite`.
        if (
            grad_enabled()
            or type(dloss) is not Tensor
            or transforms()
            or forward_ad._current_level >= 0
            or dispatch_modes()
            or modes.forced is PLAIN
            or not has_storage(dloss)
        ):
            factor = math.inf  # is left to `gradients_in_backward`
        else:
            if dloss.is_neg() or dloss._is_zerotensor():
                dloss = in_memory(dloss)
            factor = number_at[dloss.dtype](address(dloss)).value
        unit = ready.plan.unit
        if scale != unit:  # where rows are ignored the mean is of fewer
            factor *= scale / unit
        if not abs(factor) < FINITE:
            dx = None  # free it first: two gradients are never held at once
            found = gradients_in_backward(tensors, ctx.needs_input_grad, _call(ready, tensors), dloss, None, scale)
            return *found, None
        if dx is None:
            dx = made_again(tensors, _call(ready, tensors), unit)
        return dx if factor == 1.0 else dx.mul_(factor), None, None


def _call(ready, tensors):
    return Call(ready.options, ready.dim, out_dtype=tensors[0].dtype)


_apply = applier(_FastCrossEntropy)
