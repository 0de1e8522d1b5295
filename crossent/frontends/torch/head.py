"""The fused head for PyTorch: by kernels in one autograd node, or in plain operations where that will not do."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from crossent._call import Call
from crossent._options import CHUNK_BYTES
from crossent.frontends import _heads
from crossent.frontends.torch import dtypes, labels, modes, namespace as xp, nodes, plain, staged
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.dtypes import COMPUTE
from crossent.frontends.torch.products import products_for
from crossent.kernels import plain as formulas


def checked(input, target, weight, sample_weight, call):
    """Labels, class weights and how much each target counts, all with one axis for the rows."""
    shape, dim = call.shape, len(call.shape.leading)
    logits = input.new_empty(()).expand(shape.logits)  # their shape without their memory
    if call.classes is not None:
        check_classes(call.classes, shape.classes)
    whole = target if call.classes is None else target.new_empty(()).expand(shape.logits)
    counted = _shifted(sample_weight, call, input.device)
    all_classes = None if call.shard is None else call.shard.classes
    found = plain.checked_rows(logits, whole, weight, counted, dim, call.options, True, all_classes)
    _, _, labels, weight, keep = found
    labels = target if shape.soft else labels
    return labels.reshape(shape.rows, *labels.shape[dim:]), weight, keep.reshape(shape.rows, *shape.out)


def _shifted(sample_weight, call, device):
    """The sample weights, with 0 for the targets at the beginning of a sequence, which belong to no row."""
    shape, shift = call.shape, call.how.shift
    if not shift:
        return sample_weight
    belongs = (torch.arange(shape.leading[-1], device=device) >= shift).to(torch.float32)
    return belongs if sample_weight is None else belongs * labels.samples_of_rows(sample_weight, shape.targets)


def check_classes(classes, count):
    """Check the classes of a sparse target."""
    if classes.dtype not in dtypes.INTEGERS:
        raise TypeError(f"a SparseTarget's classes must be integers, got {classes.dtype}")
    if modes.is_traced():
        with modes.untraced():
            return check_classes(classes, int(count))
    known = labels.concrete(classes)
    if known is not None:
        _heads.check_classes(TORCH, known, count)


def _classes_by_row(call):
    return None if call.classes is None else call.classes.reshape(call.shape.rows, call.classes.shape[-1]).long()


def _sparse(call, probs):
    """The classes by row and their probabilities. A bad class that could not be refused has probability nan."""
    classes = _classes_by_row(call)
    if classes is None:
        return None, probs
    bad = labels.outside(classes, call.shape.classes)
    return torch.where(bad, 0, classes), torch.where(bad, math.nan, probs)


def head_of(tensors, call):
    return _heads.head_of(tensors, call, products_for)


def call_of(tensors, call, classes=None):
    """The call with the head's shapes, after a check that they fit. `tensors` are input, linear_weight, linear_bias and
    target; of a sparse target they have the probabilities, and `classes` has its classes.
    """
    if modes.tracer() is None:
        shape = _heads.shape_of(tensors, classes, call.how.shift)
    else:
        with modes.untraced():
            shape = _heads.shape_of(tensors, classes, call.how.shift)
        shape.sized(tensors[0].shape, tensors[1].shape)
    # Not `dataclasses.replace`, which PyTorch 2.6 cannot compile.
    given = {"divisor": call.divisor, "out_dtype": call.out_dtype, "how": call.how, "shard": call.shard}
    return Call(call.options, shape=shape, classes=classes, **given)


def with_divisor(tensors, call):
    """The call of a shard with the divisor of its mean, if no process has the class weights of all labels."""
    if call.divisor is not None or tensors[4] is None or call.options.reduction != "mean":
        return call
    divisor = counts(tensors, call).sum()
    given = {"out_dtype": call.out_dtype, "how": call.how, "shard": call.shard, "classes": call.classes}
    return Call(call.options, divisor=divisor, shape=call.shape, **given)


def of_shard(input, classes, probs, shard, here, by_group):
    """The input and the sparse target of a process with the classes that are `here`. What all processes have gets its
    gradient from all of them: the probabilities, and the input if they are a `group` of plain tensors.
    """
    if by_group:
        input = shard.with_sum_of_gradients(input)
    if classes is not None:
        check_classes(classes, shard.classes)
        classes, probs = shard.own_sparse(classes, shard.with_sum_of_gradients(probs), here)
    return input, classes, probs


def loss_and_gradients(tensors, wanted, call):
    """The loss, and its gradients with what they are still to be multiplied by."""
    loss, gradients, later = _heads.loss_and_gradients(tensors, wanted, call, products_for)
    return nodes.result(loss, call.out_dtype), gradients, later


def gradients_again(tensors, wanted, call, dloss):
    """The gradients, made in backward: those of forward are used up, or it did not know the upstream gradient yet."""
    head, later, _ = head_of(tensors, call)
    if call.options.reduction == "none":
        return head.gradients(wanted, upstream_by_row(dloss, call, head.x)), later
    if later == 1.0 or not math.isfinite(dloss):
        head.scale *= float(dloss)
    else:
        later *= float(dloss)
    return head.gradients(wanted, None), later


class Way(NamedTuple):
    """How the nodes of the autograd graph make what they give.

    loss(tensors, wanted, call)                             the loss, its gradients if they are made already, and what
                                                            else is to be known of these
    gradients(tensors, wanted, call, dloss, made, rest)     the gradients; `made` is None if they were handed out
    tokens(tensors, wanted, call)                           the statistics of the labels, by row, and what else is to
                                                            be known of them
    token_gradients(tensors, wanted, call, results, rest, above)
                                                            their gradients, given the statistics by row
    """

    loss: Callable
    gradients: Callable
    tokens: Callable
    token_gradients: Callable


def _gradients_of_loss(tensors, wanted, call, dloss, gradients, factor):
    if gradients is None or not math.isfinite(dloss):  # ignored rows get zeros even for an infinite dloss
        gradients, factor = gradients_again(tensors, wanted, call, dloss)
    else:
        factor *= float(dloss)
    return _heads.finished(TORCH, gradients, tensors, factor)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made in forward, and handed out by the first backward; a later one makes them again."""

    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, target, weight, sample_weight, call, way):
        tensors = input, linear_weight, linear_bias, target, weight, sample_weight
        loss, *ctx.made = way.loss(tensors, ctx.needs_input_grad[:4], call)
        ctx.save_for_backward(*tensors, call.classes)
        ctx.call, ctx.way = call, way
        return loss

    @staticmethod
    def backward(ctx, dloss):
        *tensors, _ = ctx.saved_tensors  # reading a sparse target's classes checks that they are unchanged
        call, wanted = ctx.call, ctx.needs_input_grad[:4]
        if nodes.needs_composite(dloss):
            return *_differentiable_gradients(tensors, wanted, call, dloss), None, None, None, None
        made, ctx.made = ctx.made, (None, ctx.made[1])
        return *ctx.way.gradients(tensors, wanted, call, dloss, *made), None, None, None, None


def upstream_by_row(dloss, call, x):
    """The upstream gradient of every target, with one axis for the rows."""
    shape, shift = call.shape, call.how.shift
    whole = dloss.new_zeros(shape.targets, dtype=COMPUTE[x.dtype])
    (whole[..., shift:] if shift else whole).copy_(dloss)
    return whole.reshape(shape.rows, *shape.out)


def _computable(x, weight, bias, exact):
    """The tensors in the dtype of the products: 32 bits at least on a CPU, or if the logits must be `exact`."""
    dtype = COMPUTE[x.dtype] if exact or x.is_cpu else x.dtype
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _all_at_once():
    """Whether plain operations hold the logits as a whole: function transforms and traces see no chunks."""
    eager = not torch.compiler.is_compiling()
    return modes.is_plain() or modes.transforms() or (eager and (modes.transformed() or modes.is_traced()))


def plain_rows(call, itemsize):
    """The rows of logits that plain operations hold at a time; as many in all processes that share the classes."""
    shape, how = call.shape, call.how
    if _all_at_once():
        return shape.rows
    classes = shape.classes if call.shard is None else call.shard.largest
    chunk_bytes = CHUNK_BYTES if how.chunk_bytes is None else how.chunk_bytes
    return how.chunk_rows or max(1, chunk_bytes // max(1, classes * shape.places * itemsize))


def _gradients(results, tensors, wanted, upstream, create_graph=False):
    """The gradients of the tensors that are wanted, None for the others, given the results' upstream gradients."""
    pairs = [(result, above) for result, above in zip(results, upstream) if above is not None]
    differentiated = [tensor for tensor, want in zip(tensors, wanted) if want]
    results, upstream = zip(*pairs)
    found = iter(torch.autograd.grad(results, differentiated, upstream, create_graph=create_graph, allow_unused=True))
    return [next(found) if want else None for want in wanted]


def _chunks(cut, tensors):
    """For each chunk, the first tensors, which all rows share, and the chunk's rows of the others."""
    rows, step, shared = cut
    for lo in range(0, max(1, rows), max(1, step)):
        yield [a if a is None or i < shared else a[lo : lo + step] for i, a in enumerate(tensors)]


def _joined(pieces):
    return tuple(torch.cat(parts) for parts in zip(*pieces))


def _by_checkpoints(function, cut, *tensors):
    return _joined(checkpoint(function, *chunk, use_reentrant=False) for chunk in _chunks(cut, tensors))


class _Chunks(torch.autograd.Function):
    """As by checkpoints, but nothing is kept for results without a gradient, and gradients are summed in 32 bits."""

    @staticmethod
    def forward(ctx, function, cut, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.call = function, cut
        ctx.set_materialize_grads(False)
        results = _joined(function(*chunk) for chunk in _chunks(cut, tensors))
        ctx.mark_non_differentiable(*(result for result in results if not result.is_floating_point()))
        return results

    @staticmethod
    def backward(ctx, *upstream):
        wanted, tensors = ctx.needs_input_grad[2:], ctx.saved_tensors
        given = [above for above in upstream if above is not None]
        if not given:
            return None, None, *[None] * len(tensors)
        if any(nodes.needs_composite(above) for above in given):
            differentiated = torch.is_grad_enabled()
            with torch.enable_grad():
                results = _by_checkpoints(*ctx.call, *tensors)
                return None, None, *_gradients(results, tensors, wanted, upstream, differentiated)
        return None, None, *_summed(ctx.call, tensors, wanted, upstream)


def _summed(call, tensors, wanted, upstream):
    """The gradients, summed over one chunk after the other."""
    function, cut = call
    sums = [
        torch.zeros_like(a, dtype=COMPUTE[a.dtype] if i < cut[2] else a.dtype) if want else None
        for i, (a, want) in enumerate(zip(tensors, wanted))
    ]
    by_chunk = _chunks(cut, tensors), _chunks(cut, sums), _chunks((*cut[:2], 0), upstream)
    for chunk, totals, above in zip(*by_chunk):
        leaves = [a if a is None else a.detach().requires_grad_(want) for a, want in zip(chunk, wanted)]
        with torch.enable_grad(), modes.without_autocast(tensors[0].device.type):
            made = _gradients(function(*leaves), leaves, wanted, above)
        for total, gradient in zip(totals, made):
            if gradient is not None:
                total.add_(gradient)
        del made  # before the next are made: the weight's gradient is as large as the weight
    return [total if total is None else total.to(a.dtype) for total, a in zip(sums, tensors)]


def _by_row(function, call, shared, rows, chunked=_Chunks.apply):
    """`function(*shared, *rows)`, by chunks. The last of `rows` has the dtype of the arithmetic."""
    with modes.without_autocast(rows[0].device.type):  # all are in the dtype of the products already
        if _all_at_once():
            return function(*shared, *rows)
        if torch.compiler.is_compiling():
            chunked = _by_checkpoints
        step = plain_rows(call, rows[-1].itemsize)
        return chunked(function, (call.shape.rows, step, len(shared)), *shared, *rows)


def composite(tensors, call, **how_chunked):
    """The loss in plain operations, which PyTorch differentiates itself: in chunks, except for function transforms."""
    input, linear_weight, linear_bias, target, weight, sample_weight = tensors
    shape = call.shape
    labels, weight, keep = checked(input, target, weight, sample_weight, call)
    counts = (keep != 0).reshape(shape.rows, shape.places).any(1)
    x = input.reshape(shape.rows, shape.features).roll(call.how.shift, 0)
    x = torch.where(counts.unsqueeze(1), x, 0.0)  # nan times a gradient of 0 is nan
    x, linear_weight, linear_bias = _computable(x, linear_weight, linear_bias, call.how.exact)
    matrix = linear_weight.reshape(shape.classes * shape.places, shape.features)
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    classes, labels = _sparse(call, labels)

    def rows_of(matrix, bias, weight, x, labels, classes, keep):
        logits = torch.nn.functional.linear(x, matrix, bias).reshape(x.shape[0], shape.classes, *shape.out)
        logits = logits.to(keep.dtype)
        if classes is not None:
            labels = torch.zeros_like(logits).scatter_add(1, classes, labels.to(keep.dtype))
        labels = labels.to(keep.dtype) if shape.soft else labels
        if call.shard is not None:
            losses = staged.losses_of_shard(logits, labels, shape.soft, weight, keep, 1, call).losses
            return (losses.reshape(keep.shape),)
        return (formulas.row_losses(xp, logits, labels, shape.soft, weight, keep, call.options, 1, xp.freeze),)

    (losses,) = _by_row(rows_of, call, (matrix, bias, weight), (x, labels, classes, keep), **how_chunked)
    if call.options.reduction == "none":
        return _heads.losses_of(losses, call).to(call.out_dtype)
    return plain.reduce(losses, labels, shape.soft, weight, keep, call.divisor, call.options).to(call.out_dtype)


def counts(tensors, call):
    """What each target adds to the mean's divisor."""
    input, _, _, target, weight, sample_weight = tensors
    labels, weight, keep = checked(input, target, weight, sample_weight, call)
    if call.shard is not None and weight is not None and not call.shape.soft:
        return call.shard.row_weights(labels, weight, keep)
    return formulas.row_weights(xp, labels, call.shape.soft, weight, keep)


def _differentiable_gradients(tensors, wanted, call, dloss):
    with torch.enable_grad():
        loss = composite(tensors, call, chunked=_by_checkpoints)
        return _gradients([loss], tensors, wanted, [dloss], create_graph=True)


def by_kernels(tensors, call, way=None):
    input, linear_weight, linear_bias, target = tensors[:4]
    wanted, way = input.requires_grad or linear_weight.requires_grad or target.requires_grad, way or ON_HOST
    if torch.is_grad_enabled() and (wanted or (linear_bias is not None and linear_bias.requires_grad)):
        return _LinearCrossEntropy.apply(*tensors, call, way)
    return way.loss(tensors, (), call)[0]


class _TokenStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, target, call, way):
        results, ctx.rest = way.tokens((input, linear_weight, linear_bias, target), ctx.needs_input_grad[:3], call)
        ctx.save_for_backward(input, linear_weight, linear_bias, target)
        ctx.call, ctx.way, ctx.results = call, way, [result.clone() for result in results]
        ctx.mark_non_differentiable(results[3])
        ctx.set_materialize_grads(False)
        return tuple(_heads.losses_of(result, call) for result in results)

    @staticmethod
    def backward(ctx, *upstream):
        tensors, call, wanted = ctx.saved_tensors, ctx.call, (*ctx.needs_input_grad[:3], False)
        upstream = upstream[:3]
        given = [above for above in upstream if above is not None]
        if not given:
            return None, None, None, None, None, None
        if any(nodes.needs_composite(above) for above in given):
            return *_differentiable_token_gradients(tensors, wanted, call, upstream), None, None, None
        return *ctx.way.token_gradients(tensors, wanted, call, ctx.results, ctx.rest, upstream)[:3], None, None, None


def _tokens(tensors, wanted, call):
    return head_of((*tensors, None, None), call)[0].tokens(), None


def _token_gradients(tensors, wanted, call, results, _, upstream):
    head, _, _ = head_of((*tensors, None, None), call)
    rows = [None if above is None else upstream_by_row(above, call, head.x) for above in upstream]
    return _heads.finished(TORCH, head.token_gradients(wanted, results, rows), tensors, 1.0)


ON_HOST = Way(loss_and_gradients, _gradients_of_loss, _tokens, _token_gradients)


def composite_token_rows(tensors, call, **how_chunked):
    input, linear_weight, linear_bias, target = tensors
    shape = call.shape
    labels, _, keep = checked(input, target, None, None, call)
    x = torch.where((keep != 0).unsqueeze(1), input.reshape(shape.rows, shape.features).roll(call.how.shift, 0), 0.0)
    x, linear_weight, linear_bias = _computable(x, linear_weight, linear_bias, False)

    def stats_of(matrix, bias, x, labels, keep):
        logits = torch.nn.functional.linear(x, matrix, bias).to(keep.dtype)
        return formulas.token_stats(xp, logits, labels, keep, call.options, 1, xp.freeze, call.shard)

    return _by_row(stats_of, call, (linear_weight, linear_bias), (x, labels, keep), **how_chunked)


def composite_tokens(tensors, call, **how_chunked):
    return tuple(_heads.losses_of(result, call) for result in composite_token_rows(tensors, call, **how_chunked))


def _differentiable_token_gradients(tensors, wanted, call, upstream):
    with torch.enable_grad():
        results = composite_tokens(tensors, call, chunked=_by_checkpoints)
        return _gradients(results, tensors, wanted, upstream, create_graph=True)[:3]


def tokens_by_kernels(tensors, call, way=None):
    way = way or ON_HOST
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors[:3]):
        return _TokenStats.apply(*tensors, call, way)
    results, _ = way.tokens(tensors, (), call)
    return tuple(_heads.losses_of(result, call) for result in results)
