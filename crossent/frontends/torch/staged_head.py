"""The fused head on a device, by its kernels in two stages.

Nothing is read back, but for the number of rows that count where the host waits for the labels anyway.
"""

import torch

from crossent._kept import no_memory_kept
from crossent.frontends import _heads, _stages
from crossent.frontends.torch import head as heads, late, modes, staged
from crossent.frontends.torch.device_products import DeviceProducts, memory_of
from crossent.frontends.torch.dtypes import COMPUTE


def _not_known(counted):
    """Which rows count, where nothing is waited for."""


def _read(counted):
    """The numbers of the rows that count, None if all do. The host waits for how many there are."""
    count = int(counted.sum())
    return None if count == len(counted) else counted.logical_not().to(torch.uint8).argsort(stable=True)[:count]


def reads(tensors, wanted, call):
    """Whether the host waits for the labels anyway, in eager code. Processes that share the classes must all have the
    same rows, whatever each of them was told.
    """
    return late.waits(any(wanted)) and call.shard is None and not late.is_captured(tensors[0].device)


def _head_of(tensors, wanted, call, eager):
    """The `DeviceHead` of a call whose labels are looked at, without the rows that do not count where the host waits
    for the labels anyway. It waits once.
    """
    if eager and reads(tensors, wanted, call):
        left = []
        whole = head_of(tensors, call, lambda bad, error: left.append(late.left(bad, error)), _read)
        for raise_left in left:
            raise_left()
        return whole
    return head_of(tensors, call, late.refuse if any(wanted) or not eager else late.refuse_outside_training)


def head_of(tensors, call, refuse=_stages.raise_now, kept_of=_not_known):
    """The `DeviceHead`; `refuse` is as in `OnDevice`, `kept_of` as in `head_on_device`."""
    device = tensors[0].device
    kernels, memory = staged.kernels_on(device.type), memory_of(device)

    def products_for(x, weight, exact):
        return DeviceProducts(x, kernels, exact, memory, call.shard is not None, refuse)

    return _heads.head_on_device(tensors, call, products_for, kept_of)


def _told(bad, error):
    """The forward pass has told of it."""


def _loss(tensors, wanted, call, eager=True):
    late.look()
    reduction, gradients = call.options.reduction, None
    with modes.without_autocast(tensors[0].device.type):
        whole = _head_of(tensors, wanted, call, eager)
        head, bad = whole.head, whole.bad
        if reduction == "none":
            loss = _heads.losses_of(head.losses(), call)
            bad = None if bad is None else _heads.losses_of(bad, call)
        else:
            total, gradients = head.loss(wanted)
            loss, _ = _heads.reduced(reduction, head.products.lib.number(total), whole.divisor)
            bad = None if bad is None else bad.any()
    loss = loss if bad is None else torch.where(bad, torch.nan, loss)
    return loss.to(call.out_dtype), gradients, whole._replace(head=None)  # its copy of the input is not kept


def _gradients(tensors, wanted, call, dloss, gradients, whole):
    late.look()
    with modes.without_autocast(dloss.device.type):
        by_row = call.options.reduction == "none"
        if gradients is None:
            kept = None if whole is None else whole.kept
            whole = head_of(tensors, call, _told, lambda counted: kept)
            upstream = None
            if by_row:  # an inf of a target that does not count is not to be seen
                upstream = heads.upstream_by_row(dloss, call, whole.head.x)
                upstream = torch.where(whole.counts.reshape(upstream.shape), upstream, 0.0)
            gradients = whole.head.gradients(wanted, upstream)
        return _finished(gradients, whole, tensors, 1.0 if by_row else whole.later * dloss, call)


def _finished(gradients, whole, tensors, factor, call):
    """The gradients, multiplied by the factor if it is a tensor, each in the dtype and shape of its tensor.

    Those of targets that do not count stay 0 whatever the factor is.
    """
    counts, shift, kernels = whole.counts, call.how.shift, staged.kernels_on(tensors[0].device.type)
    of_rows = counts.any(1, keepdim=True)
    if whole.kept is not None and shift:
        of_rows, shift = of_rows.roll(-shift, 0), 0
    masks = of_rows, None, None, counts.reshape(call.shape.rows, 1, *call.shape.out)
    found = []
    for gradient, tensor, mask in zip(gradients, tensors, masks):
        if gradient is None:
            found.append(None)
            continue
        if not isinstance(factor, torch.Tensor):
            pass
        elif mask is None and gradient.dtype == tensor.dtype:
            kernels.multiply(gradient, factor)
        else:
            by = factor if mask is None else torch.where(mask, factor, 0.0).to(COMPUTE[tensor.dtype])
            out = gradient if gradient.dtype == tensor.dtype else torch.empty_like(gradient, dtype=tensor.dtype)
            gradient = torch.mul(gradient, by, out=out)
        found.append(gradient.to(tensor.dtype))
    if shift and found[0] is not None:
        found[0] = found[0].roll(-shift, 0)
    return [None if gradient is None else gradient.reshape(tensor.shape) for gradient, tensor in zip(found, tensors)]


def _tokens(tensors, wanted, call, eager=True):
    late.look()
    with modes.without_autocast(tensors[0].device.type):
        whole = _head_of((*tensors, None, None), wanted, call, eager)
        *floats, ranks = whole.head.tokens()
    return (*(torch.where(whole.bad[:, 0], torch.nan, some) for some in floats), ranks), whole.kept


def _token_gradients(tensors, wanted, call, results, kept, upstream):
    rows = [None if above is None else heads.upstream_by_row(above, call, tensors[0]) for above in upstream]
    return token_gradients_of_rows(tensors, wanted, call, results, rows, kept)


def token_gradients_of_rows(tensors, wanted, call, results, upstream, kept=None):
    """The gradients of the tensors; `upstream` has a number for each target, whether it belongs to a row or not."""
    late.look()
    with modes.without_autocast(tensors[0].device.type):
        whole = head_of((*tensors, None, None), call, _told, lambda counted: kept)
        gradients = whole.head.token_gradients(wanted, results, upstream)
        return _finished(gradients, whole, tensors, 1.0, call)


def planned(tensors, wanted, call):
    """The head of an eager call, whose labels are looked at here, and whether it knows which rows count."""
    known = reads(tensors, wanted, call)
    return head_of(tensors, call, kept_of=_read if known else _not_known).head, known


# What the operators are made of, see `compiled`.


@no_memory_kept()
def loss_and_gradients(tensors, wanted, call):
    """The loss, and all of its gradients that are wanted; none of them for the losses of rows."""
    loss, gradients, whole = _loss(tensors, wanted, call, eager=False)
    return loss, [None] * 4 if gradients is None else _finished(gradients, whole, tensors, whole.later, call)


@no_memory_kept()
def gradients_again(tensors, wanted, call, dloss):
    return _gradients(tensors, wanted, call, dloss, None, None)


def tokens(tensors, call):
    return _tokens(tensors, (True,), call, eager=False)[0]


ON_DEVICE = heads.Way(_loss, _gradients, _tokens, _token_gradients)
