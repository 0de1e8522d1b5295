"""softmax and log_softmax of slices that are spread over processes: in plain operations."""

import torch

from crossent.frontends.torch import namespace as xp
from crossent.frontends.torch.dtypes import compute_dtype
from crossent.kernels import plain as formulas
from crossent.kernels.plain import SliceSums


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis, log, shard):
        out = _softmax_of(x.to(compute_dtype(x.dtype)), axis, log, shard).to(x.dtype)
        ctx.save_for_backward(out)
        ctx.call = axis, log, shard
        return out

    @staticmethod
    def backward(ctx, dout):
        (out,), (axis, log, shard) = ctx.saved_tensors, ctx.call
        dtype = compute_dtype(out.dtype)
        wide, above = out.to(dtype), dout.to(dtype)
        total = shard.total((above if log else wide * above).sum(axis, keepdim=True))
        total = shard.with_sum_of_gradients(total)  # each process uses it for its own entries
        dx = formulas.log_softmax_grad_of(xp, wide, above, total) if log else wide * (above - total)
        return dx.to(out.dtype), None, None, None


softmax = _Softmax.apply


def _softmax_of(x, axis, log, shard):
    if x.shape[axis]:
        mine, _ = formulas.slice_sums(xp, x, axis, xp.freeze)
    else:
        nothing = x.sum(axis, keepdim=True)
        mine = SliceSums(nothing - torch.inf, nothing, nothing)
    sums = formulas.merged_slices(xp, shard.parts_of(mine))
    return formulas.log_softmax_of(xp, x, x - sums.peak, sums, xp.freeze) if log else formulas.softmax_of(xp, x, sums)
