"""softmax, log_softmax and prediction statistics of classes that are spread over processes: in plain operations."""

import torch

from crossent.frontends.torch import namespace as xp
from crossent.frontends.torch.dtypes import compute_dtype
from crossent.kernels import plain as formulas
from crossent.kernels.plain import PredictionSums, SliceSums


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


def prediction_stats(logits, target, keep, axis, shard):
    """Of logits in the dtype of the arithmetic; `target` are labels, and `keep` is 0 in ignored rows."""
    z = torch.where((keep != 0).unsqueeze(axis), logits, 0.0)
    if not z.shape[axis]:  # a class whose logit is -inf says as little as none
        z = torch.nn.functional.pad(z.movedim(axis, -1), (0, 1), value=-torch.inf).movedim(-1, axis)
    own = shard.gathered(formulas.own_logit(xp, z, target, axis, shard.first)).amax(0)
    mine = formulas.prediction_sums(xp, z, own, target, axis, shard.first)
    sums = formulas.merged_predictions(xp, shard.parts_of(mine))
    return formulas.prediction_stats_of(xp, own.squeeze(axis), PredictionSums(*sums), keep)
