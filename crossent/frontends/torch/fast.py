"""The short way of a loss of few numbers, for which PyTorch's own call takes as long as the kernel.

What other files have functions for is written out here where it is a line: to call a Python function takes 40 ns, of 4
us that there are (`python -m benchmarks.floor`).
"""

import math
from functools import lru_cache, partial, wraps

import torch
from torch.autograd import forward_ad

from crossent._call import Call
from crossent._rows import reduced
from crossent.frontends._problem import label_error, ready_plan
from crossent.frontends.torch import modes
from crossent.frontends.torch.arrays import (
    FINITE,
    STORAGES,
    STRIDED,
    TORCH,
    Tensor,
    address,
    empty,
    has_storage,
    in_memory,
    is_small,
    like_numbers,
    number_at,
    strides,
)
from crossent.frontends.torch.losses import UNASKED_AT_MOST, gradients_in_backward, made_again
from crossent.frontends.torch.modes import (
    IsTracedError,
    applier,
    compiling,
    dispatch_modes,
    function_modes,
    grad_enabled,
    is_traced,
    threads,
    top_hooks,
    transforms,
)
from crossent.kernels import BadLabel


class FastCall:
    """The sum or mean over full-precision rows with labels that stay in the caches: its kernels, what makes the
    gradient's tensor, and what is asked for.
    """

    __slots__ = ("_like", "_number_at", "call", "new", "plan", "reduction")

    def __init__(self, plan, new, call):
        self.plan, self.new, self.call, self.reduction = plan, new, call, call.options.reduction
        self._like, self._number_at = like_numbers[call.out_dtype], number_at[call.out_dtype]

    def loss(self, value):
        """As `arrays.tensor_of`."""
        tensor = torch.empty_like(self._like)
        self._number_at(address(tensor)).value = value
        return tensor


@lru_cache(maxsize=4096)
def _known(shape, strides, dtype, target_shape, target_strides, target_dtype, dim, options):
    """The `FastCall`, or None for all else."""
    if is_traced():  # then the sizes are tensors, which nothing kept is equal to: this is reached
        raise IsTracedError
    if dtype not in number_at or options.loss_dtype not in (None, STORAGES[dtype]):
        return None
    plan = ready_plan(TORCH, shape, strides, dtype, target_shape, target_strides, target_dtype, dim, options, False)
    if plan is None or plan.quick_forward is None:
        return None
    new = torch.empty_like if is_small(plan.layout, dtype) else partial(empty, plan.layout)
    return FastCall(plan, new, Call(options, dim, out_dtype=dtype))


def fast_first(slow):
    """`slow`, and before it the short way."""

    @wraps(slow)
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
            and not input.is_neg()  # which torch.compile cannot trace
            and not function_modes()
            # as `modes.transformed`
            and not (transforms() or forward_ad._current_level >= 0 or dispatch_modes() or modes.plain_only)
        ):
            return slow(input, target, weight, sample_weight, denominator, dim, options, inplace_backward)
        try:
            fast = _known(
                input.shape, strides(input), input.dtype, target.shape, strides(target), target.dtype, dim, options
            )
            if fast is None:
                return slow(input, target, None, None, None, dim, options, False)
            if input.requires_grad and grad_enabled():
                return _apply(input, target, fast)
            losses, weights = fast.plan.quick_forward((address(input), address(target), 0), threads, (input, target))
            return fast.loss(reduced(fast.reduction, losses, weights, None)[0])
        except BadLabel as bad:
            raise label_error(TORCH, target, bad.row, fast.plan.layout, options) from None
        except (IsTracedError, RuntimeError):  # a sparse tensor has no address, a nested one no shape
            return slow(input, target, None, None, None, dim, options, False)

    return cross_entropy


class _FastCrossEntropy(torch.autograd.Function):
    """`losses.CrossEntropy` for a `FastCall`, in less time."""

    @staticmethod
    def forward(ctx, input, target, fast):
        plan = fast.plan
        # As `losses.makes_gradient`.
        if plan.unasked < UNASKED_AT_MOST and top_hooks(True) is None:
            plan.unasked += 1
            dx = fast.new(input)
            addresses = address(input), address(target), address(dx)
            losses, weights = plan.quick_backward(addresses, threads, (input, target, dx))
        else:
            dx = None
            losses, weights = plan.quick_forward((address(input), address(target), 0), threads, (input, target))
        loss, scale = reduced(fast.reduction, losses, weights, None)
        ctx.save_for_backward(input, target)
        ctx.made, ctx.scale, ctx.fast = dx, scale, fast
        return fast.loss(loss)

    @staticmethod
    def backward(ctx, dloss):
        dx, scale, fast = ctx.made, ctx.scale, ctx.fast
        ctx.made = None
        plan = fast.plan
        plan.unasked = 0
        tensors = *ctx.saved_tensors, None, None
        # As `arrays.needs_composite`.
        if (
            grad_enabled()
            or type(dloss) is not Tensor
            or transforms()
            or forward_ad._current_level >= 0
            or dispatch_modes()
            or modes.plain_only
            or not has_storage(dloss)
        ):
            factor = math.inf  # for `gradients_in_backward`
        else:
            if dloss.is_neg() or dloss._is_zerotensor():
                dloss = in_memory(dloss)
            factor = number_at[dloss.dtype](address(dloss)).value
        if scale != plan.unit:  # where rows are ignored the mean is of fewer
            factor *= scale / plan.unit
        if not abs(factor) < FINITE:
            dx = None  # free it first: two gradients are never held at once
            return *gradients_in_backward(tensors, ctx.needs_input_grad, fast.call, dloss, None, scale), None
        if dx is None:
            dx = made_again(tensors, fast.call, plan.unit)
        return dx if factor == 1.0 else dx.mul_(factor), None, None


_apply = applier(_FastCrossEntropy)
