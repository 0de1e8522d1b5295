"""Calls of plain tensors whose classes are spread over processes: what one of them has to raise is raised in all.

A process tells the others of its error in the place of what they wait for. So nothing more is sent as long as nothing
is wrong.
"""

import math
from functools import partial

import torch
from torch.utils.checkpoint import _StopRecomputationError

from crossent import _rows
from crossent._call import Call
from crossent.frontends.torch import head, plain, shards
from crossent.frontends.torch.dtypes import INTEGERS, common_dtype, compute_dtype
from crossent.frontends.torch.labels import concrete, outside
from crossent.frontends.torch.modes import compiling, dispatch_modes
from crossent.kernels import TokenSums


def cross_entropy(function, tensors, denominator, dim, options, in_place, spread):
    """The router's `function`, of the classes of this process."""
    input, target, weight, _ = tensors
    call = partial(function, tensors, denominator, dim, options, in_place, spread)
    return _in_all(call, input, spread, lambda: _sums_like(input, target, weight, dim, options))


def of_head(function, *arguments):
    """A head's loss or statistics by the router's `function`, of the classes of this process."""
    input, *_, spread = arguments
    return _in_all(partial(function, *arguments), input, spread, lambda: (len(arguments[1]), None))


def _in_all(call, input, spread, like):
    """What `call()` returns, with its errors raised in all processes.

    `like()` is how many classes there are here, and a tensor like the sums that the others send first; None if they
    send an `Opening` anyway.
    """
    if compiling():
        return call()
    try:
        return call()
    except _StopRecomputationError:  # no error: a checkpoint leaves what it repeats, in all processes
        raise
    except Exception as error:
        if not spread.answered and not dispatch_modes():
            _answer(error, input, spread, like)
        raise


def _answer(error, input, spread, like):
    try:
        here, sums = like()
        shard, device = shards.planned_shard(spread.group, here), input.device
        sums = None if sums is None else sums.to(shard.dtype_of(sums.dtype))
    except Exception:  # so little is right that nobody can tell what the others send
        return
    shards.answer(error, spread, shard, None if spread.first_class is not None else sums, device)


def _sums_like(input, target, weight, dim, options):
    axis = _rows.class_axis(input.ndim, dim)
    rows = math.prod(input.shape[:axis] + input.shape[axis + 1 :])
    soft = isinstance(target, torch.Tensor) and target.ndim == input.ndim
    dtype = compute_dtype((common_dtype(input, target) if soft else None) or input.dtype)
    calls = max(1, concrete(input).numel() // max(1, input.numel()))  # that a function transform makes of one
    sums = calls, rows * numbers_of_loss(soft, weight, options)
    return input.shape[axis], torch.empty(sums, dtype=dtype, device=input.device)


def numbers_of_loss(soft, weight, options):
    """How many numbers a row are sent for a loss."""
    return 3 + (weight is not None and not soft) + 2 * (soft or options.label_smoothing > 0.0)


NUMBERS_OF_TOKENS = 1 + len(TokenSums._fields)


def shard_of_loss(spread, tensors, dim, options):
    """The `ClassShard` of input, target, weight and sample_weight, whose labels are checked if it is the caller's; it
    may be given already.
    """
    if isinstance(spread, shards.ClassShard):
        return spread
    input, target, weight, sample_weight = tensors
    here = input.shape[_rows.class_axis(input.ndim, dim)]

    def check(shard):
        given = _without_bad(target, shard, options.ignore_index)
        _, soft, labels, _, keep = plain.checked_rows(
            input, given, weight, sample_weight, dim, options, True, shard.classes
        )
        return keep.numel(), numbers_of_loss(soft, weight, options), *_range(None if soft else target, keep)

    shard = shards.shard_of(spread, here, input.device, check)
    if shard.call is not None and input.is_cpu and _may_be_bad(target, shard.classes, options.ignore_index):
        check(shard)
    return shard


def _may_be_bad(target, classes, ignore_index):
    """Whether there are labels that are neither classes nor ignored; their rows may still count nothing."""
    known = concrete(target)
    if known is None or not known.numel() or known.dtype not in INTEGERS:
        return False
    known = known.to(torch.int64)
    lowest, highest = known.aminmax()
    if int(lowest) >= 0 and int(highest) < classes:
        return False
    return bool((outside(known, classes) & (known != ignore_index)).any())


def shard_of_head(spread, tensors, classes, options, how, tokens=False):
    """The `ClassShard` of a head: input, linear_weight, linear_bias, target, weight and sample_weight. Of a sparse
    target they have the probabilities, and `classes` has its classes. `tokens` says that statistics are wanted. It may
    be given already.
    """
    if isinstance(spread, shards.ClassShard):
        return spread
    input, linear_weight, linear_bias, target, weight, sample_weight = tensors
    here = len(linear_weight)

    def check(shard):
        unchecked = None if classes is None else _without_bad(classes, shard, None)
        _, own, probs = head.of_shard(input, unchecked, target, shard, here, by_group=False)
        given = probs if classes is not None else _without_bad(target, shard, options.ignore_index)
        call = Call(options, how=how, shard=shard)
        call = head.call_of((input, linear_weight, linear_bias, given), call, own)
        if tokens:
            _rows.check_tokens(call.shape)
        _, _, keep = head.checked(input, given, weight, sample_weight, call)
        numbers = NUMBERS_OF_TOKENS if tokens else numbers_of_loss(call.shape.soft, weight, options)
        if classes is not None:
            return _targets(keep), numbers, *_range(classes)
        return _targets(keep), numbers, *_range(None if call.shape.soft else target, keep.reshape(call.shape.targets))

    return shards.shard_of(spread, here, input.device, check, at_once=True)


def _without_bad(labels, shard, ignore_index):
    """Labels without those below 0, whose error cannot say how many classes there are, as long as that is not known."""
    if shard.classes != shards.ANY_NUMBER or labels.dtype not in INTEGERS:
        return labels
    labels = labels.to(torch.int64)
    return torch.where((labels < 0) & (labels != ignore_index), 0, labels)


def _targets(keep):
    return int((concrete(keep) != 0).sum())


def _range(labels, keep=None):
    """The lowest and the highest of the labels that count; 0 and -1 if there are none."""
    if labels is None:
        return 0, -1
    known = concrete(labels).to(torch.int64)
    known = known if keep is None else known[concrete(keep) != 0]
    return (int(known.min()), int(known.max())) if known.numel() else (0, -1)
