"""The statistics of labels, and their gradients, from a head's logits to the kernels; `lib` is as in `_products`.

`results` are the arrays of logprob, lse, entropy and rank, and `upstream` the gradients of the first three, each an
array or None. Of a `shard` of the classes, the logits are those of its classes.
"""

from crossent import _rows
from crossent.frontends._problem import compute_storage
from crossent.kernels import TokenSums, plain
from crossent.kernels.cpu import kernels


def forward(lib, logits, target, options, results, shard=None):
    """Write the results."""
    if shard is not None:
        return _forward_of_shard(lib, logits, target, options, results, shard)
    plan, changing = _call(lib, logits, target, options, results)
    plan.forward(changing, lib.threads, (logits, target, results))


def backward(lib, logits, target, options, results, upstream, shard=None):
    """Write the gradient over the logits."""
    if shard is not None:
        if not logits.shape[1]:
            return
        target, options = _labels_of_shard(lib, logits, target, options, shard)
    plan, changing = _call(lib, logits, target, options, results)
    addresses = (0 if array is None else lib.address(array) for array in upstream)
    plan.backward((*changing, *addresses, lib.address(logits)), lib.threads, (logits, target, results, upstream))


def _call(lib, logits, target, options, arrays):
    layout = _rows.layout_of(tuple(logits.shape), tuple(lib.strides(logits)), 1)
    strides = layout.label_strides_of(lib.strides(target))
    plan = kernels.token_plan(layout, lib.storage(logits), strides, options)
    return plan, tuple(lib.address(array) for array in (logits, target, *arrays))


def _forward_of_shard(lib, logits, target, options, results, shard):
    (rows, here), storage = logits.shape, compute_storage(lib.storage(logits))
    labels, options = _labels_of_shard(lib, logits, target, options, shard)
    own, sums = lib.new((rows,), storage), lib.new((len(TokenSums._fields), rows), storage)
    own[...], sums[...] = 0, 0

    def run(which):
        if here:
            plan, changing = _call(lib, logits, labels, options, (own, sums))
            getattr(plan, which)(changing, lib.threads, (logits, labels, own, sums))

    run("label_logits")
    own[...] = lib.xp.sum(shard.gathered(own), axis=0)
    run("sums")
    # A few numbers a row: in float64 they are put together without loss.
    own, parts = (lib.converted(array, lib.xp.float64) for array in (own, shard.gathered(sums)))
    merged = plain.merged_tokens(lib.xp, own, parts)
    for result, found in zip(results, plain.token_results(lib.xp, own, merged)):
        result[...] = found


def _labels_of_shard(lib, logits, target, options, shard):
    """The labels as numbers of these classes, as the kernels take them, and options with which none is ignored."""
    where, here = lib.xp.where, logits.shape[1]
    labels = target - shard.first
    labels = where(labels < 0, -1, where(labels > here, here, labels))
    return labels, options.changed(ignore_index=-100)
