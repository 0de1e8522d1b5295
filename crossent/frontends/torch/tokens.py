"""The statistics of labels, and their gradients, of a head's logits on a device. Nothing is read back.

`results` are the tensors of logprob, lse, entropy and rank, and `upstream` the gradients of the first three, each a
tensor or None. Of a `shard` of the classes, the logits are those of its classes. A label is ignored or good.
"""

import torch

from crossent.frontends.torch import namespace as xp
from crossent.frontends.torch.dtypes import COMPUTE
from crossent.kernels import plain as formulas

_PLAIN_ARRAYS = 8  # arrays as large as the logits that plain operations hold at once


def bytes_beside(kernels, dtype):
    """Bytes a logit that these kernels hold beside the logits."""
    return 0 if kernels.tokens is not None else _PLAIN_ARRAYS * dtype.itemsize


def forward(kernels, logits, target, options, results, shard):
    """Write the results."""
    if shard is None and kernels.tokens is not None:
        kernels.tokens(logits, target, options, results)
        return
    keep = _counts(logits, target, options)
    found = formulas.token_stats(xp, logits.to(keep.dtype), target, keep, options, 1, xp.freeze, shard)
    for result, made in zip(results, found):
        result.copy_(made)


def backward(kernels, logits, target, options, results, upstream, shard):
    """Write the gradient over the logits."""
    if shard is None and kernels.token_gradient is not None:
        kernels.token_gradient(logits, target, options, results, upstream)
        return
    keep = _counts(logits, target, options)
    counts = (keep != 0)[:, None]
    label = target if shard is None else target - shard.first
    x = torch.where(counts, logits.to(keep.dtype), 0.0)
    gradient = formulas.token_gradient(xp, x, label, results, upstream, options)
    logits.copy_(torch.where(counts, gradient, 0.0))


def _counts(logits, target, options):
    """How much each row counts: 0 or 1."""
    return (target != options.ignore_index).to(COMPUTE[logits.dtype])
