"""softmax and log_softmax: by the CPU's kernels, by another device's, and under torch.compile."""

import torch

from crossent.frontends._problem import softmax_backward, softmax_forward
from crossent.frontends.torch import namespace as xp, plain, staged
from crossent.frontends.torch.arrays import TORCH, address
from crossent.frontends.torch.dtypes import compute_dtype, number_at
from crossent.frontends.torch.gpus import GPUS_HAVE_KERNELS
from crossent.frontends.torch.modes import (
    applier,
    grad_enabled,
    is_exporting,
    is_operator,
    may_be_exporting,
    threads,
)
from crossent.frontends.torch.nodes import in_memory, needs_composite
from crossent.kernels import plain as formulas

# Bytes; for less the compiler's loops take no longer than the call of an operator (`python -m benchmarks.softmax`).
_OPERATOR_FROM = 2**18
_LAUNCH_FROM = 2**20  # on other devices, where Python launches the kernels; nobody has measured it yet
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


class _SoftmaxOnDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis, log, kernels):
        out = kernels.softmax(x, axis, log)
        ctx.save_for_backward(out)
        ctx.axis, ctx.log, ctx.kernels = axis, log, kernels
        return out

    @staticmethod
    def backward(ctx, dout):
        (out,), axis, log = ctx.saved_tensors, ctx.axis, ctx.log
        if needs_composite(dout):
            return _softmax_grad(out, dout, axis, log), None, None, None
        return ctx.kernels.softmax_gradient(out, in_memory(dout), axis, log), None, None, None


_apply_on_device = applier(_SoftmaxOnDevice)


def kernels_of(x):
    """The kernels that a device has for softmax of this tensor, and whether they are used: not if there are none, or
    fewer bytes than a launch from Python is worth.
    """
    kernels = staged.kernels_on(x.device.type) if staged.has_stages((x,)) else None
    if kernels is None or kernels.softmax is None:
        return None, False
    return kernels, x.numel() * x.itemsize >= _LAUNCH_FROM


def softmax_elsewhere(x, axis, log):
    """Where the CPU's kernels cannot be used: by a device's kernels, or in PyTorch's operations."""
    kernels, used = kernels_of(x)
    if not used:
        return plain.softmax(x, axis, log)
    if x.requires_grad and grad_enabled():
        return _apply_on_device(x, axis, log, kernels)
    return kernels.softmax(x, axis, log)


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
    devices = ("cpu", "cuda") if GPUS_HAVE_KERNELS else ("cpu",)
    if not is_operator(x, devices) or is_exporting():
        return plain.softmax(x, axis, log)
    on_cpu = x.device.type == "cpu"
    if x.numel() * x.itemsize < (_OPERATOR_FROM if on_cpu else _LAUNCH_FROM):
        if log and on_cpu and not may_be_exporting():
            return _FusedLogSoftmax.apply(x.to(compute_dtype(x.dtype)), axis).to(x.dtype)
        return plain.softmax(x, axis, log)
    from crossent.frontends.torch import compiled

    return compiled.softmax(x, axis, log)
