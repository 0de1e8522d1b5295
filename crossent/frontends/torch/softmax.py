"""softmax and log_softmax: by kernels, and under torch.compile."""

import torch

from crossent.frontends._problem import softmax_backward, softmax_forward
from crossent.frontends.torch import namespace as xp, plain
from crossent.frontends.torch.arrays import TORCH, address
from crossent.frontends.torch.dtypes import compute_dtype, number_at
from crossent.frontends.torch.modes import applier, is_exporting, is_operator, may_be_exporting, threads
from crossent.frontends.torch.nodes import in_memory, needs_composite
from crossent.kernels import plain as formulas

# Bytes; for less the compiler's loops take no longer than the call of an operator (`python -m benchmarks.softmax`).
_OPERATOR_FROM = 2**18
_NATIVE_SOFTMAX_CLASSES, _NATIVE_SOFTMAX_NUMBERS = 32, 512


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, ready):
        out = softmax_of(x, ready)
        ctx.save_for_backward(out)
        ctx.ready = ready
        return out

    @staticmethod
    def backward(ctx, dout):
        (out,) = ctx.saved_tensors
        ready = ctx.ready
        if needs_composite(dout):
            return _softmax_grad(out, dout, ready.dim, ready.log), None
        dout = in_memory(dout)
        if dout.dtype is not out.dtype:
            dout = dout.to(out.dtype)
        return softmax_backward(TORCH, out, dout, ready.dim, ready.log), None


apply_softmax = applier(_Softmax)


def softmax_of(x, ready):
    if ready.plan is None:
        return softmax_forward(TORCH, x, ready.dim, ready.log)
    out = ready.new(x)
    ready.plan.forward((address(x), address(out)), threads, (x, out))
    return out


def _softmax_grad(out, dout, dim, log):
    """The derivative, in operations that can be differentiated again; `out` must be a function of the input."""
    if not log:
        return out * (dout - (out * dout).sum(dim, keepdim=True))
    return formulas.log_softmax_grad(xp, out, dout, dim)


def is_tiny(input, dim):
    """Whether PyTorch's own is faster: its node is not in Python, which saves 7 of 35 us of a step over 32 x 10
    (`python -m benchmarks.softmax`).
    """
    short = input.shape[dim] <= _NATIVE_SOFTMAX_CLASSES and input.stride()[dim] == 1
    return short and input.numel() <= _NATIVE_SOFTMAX_NUMBERS and input.dtype in number_at


class _FusedLogSoftmax(torch.autograd.Function):
    """Plain operations with a derivative by formula. The compiler makes fewer loops of it than of a derivative that it
    derives itself; `python -m benchmarks.softmax` has its time beside PyTorch's.
    """

    @staticmethod
    def forward(ctx, x, axis):
        out = formulas.log_softmax(xp, x, axis, xp.freeze)
        ctx.save_for_backward(out)
        ctx.axis = axis
        return out

    @staticmethod
    def backward(ctx, dout):
        return formulas.log_softmax_grad(xp, ctx.saved_tensors[0], dout, ctx.axis), None


def compiled_softmax(x, axis, log):
    """By kernels for large inputs. Small ones are left to the compiler to fuse, and exported programs to PyTorch."""
    if not is_operator(x) or is_exporting():
        return plain.softmax(x, axis, log)
    if x.numel() * x.itemsize < _OPERATOR_FROM:
        if log and not may_be_exporting():
            return _FusedLogSoftmax.apply(x.to(compute_dtype(x.dtype)), axis).to(x.dtype)
        return plain.softmax(x, axis, log)
    from crossent.frontends.torch import compiled

    return compiled.softmax(x, axis, log)
