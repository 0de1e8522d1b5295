"""softmax and log_softmax by kernels, and compiled."""

from functools import lru_cache, partial

import torch

from crossent.frontends._problem import ready_softmax, softmax_backward, softmax_forward
from crossent.frontends.torch import plain
from crossent.frontends.torch.arrays import (
    TORCH,
    address,
    compute_dtype,
    empty,
    in_memory,
    is_small,
    needs_composite,
    number_at,
)
from crossent.frontends.torch.modes import IsTracedError, applier, is_exporting, is_operator, is_traced, threads
from crossent.kernels import plain as array

_OPERATOR_FROM = 2**18  # bytes; of less the compiler makes loops that take no longer than the call of an operator
_NATIVE_SOFTMAX_CLASSES, _NATIVE_SOFTMAX_NUMBERS = 32, 512


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, call):
        out = softmax_of(x, call)
        ctx.save_for_backward(out)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx, dout):
        (out,) = ctx.saved_tensors
        _, _, dim, log = ctx.call
        if needs_composite(dout):
            return _softmax_grad(out, dout, dim, log), None
        dout = in_memory(dout)
        if dout.dtype is not out.dtype:
            dout = dout.to(out.dtype)
        return softmax_backward(TORCH, out, dout, dim, log), None


apply_softmax = applier(_Softmax)


@lru_cache(maxsize=4096)
def softmax_call(shape, strides, dtype, dim, log):
    """The plan for ordinary tensors, what makes their result's, and the rest of the call."""
    if is_traced():
        raise IsTracedError
    plan = ready_softmax(TORCH, shape, strides, dtype, dim, log)
    if plan is None:
        return None, None, dim, log
    return plan, torch.empty_like if is_small(plan.layout, dtype) else partial(empty, plan.layout), dim, log


def softmax_of(x, call):
    plan, new, dim, log = call
    if plan is None:
        return softmax_forward(TORCH, x, dim, log)
    out = new(x)
    plan.forward((address(x), address(out)), threads, (x, out))
    return out


def _softmax_grad(out, dout, dim, log):
    """The derivative in operations that can be differentiated again: `out` is a function of the input."""
    if not log:
        return out * (dout - (out * dout).sum(dim, keepdim=True))
    return array.log_softmax_grad(torch, out, dout, dim)


def is_tiny(input, dim):
    """Whether PyTorch's node of the graph, which is not in Python, saves more time than its row loop takes longer."""
    short = input.shape[dim] <= _NATIVE_SOFTMAX_CLASSES and input.stride()[dim] == 1
    return short and input.numel() <= _NATIVE_SOFTMAX_NUMBERS and input.dtype in number_at


class _FusedLogSoftmax(torch.autograd.Function):
    """Plain operations with their derivative by formula, of which the compiler makes fewer loops than it derives: at
    128 x 100 a step takes 127 us instead of 272 (`python -m benchmarks.softmax`).
    """

    @staticmethod
    def forward(ctx, x, axis):
        out = array.log_softmax(torch, x, axis, torch.Tensor.detach)
        ctx.save_for_backward(out)
        ctx.axis = axis
        return out

    @staticmethod
    def backward(ctx, dout):
        return array.log_softmax_grad(torch, ctx.saved_tensors[0], dout, ctx.axis), None


def compiled_softmax(x, axis, log):
    """For much at once the kernels; less is left to the compiler to fuse, and exported programs to PyTorch."""
    if not is_operator(x) or is_exporting():
        return plain.softmax(x, axis, log)
    if x.numel() * x.itemsize < _OPERATOR_FROM:
        if log and x.device.type == "cpu":
            return _FusedLogSoftmax.apply(x.to(compute_dtype(x.dtype)), axis).to(x.dtype)
        return plain.softmax(x, axis, log)
    from crossent.frontends.torch import compiled

    return compiled.softmax(x, axis, log)
