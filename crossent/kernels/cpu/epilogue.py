"""From the sums over each row's exponentials to its loss, and to what its gradient is made of: a lane for each row.

What belongs to `tile` rows lies in arrays at `state`. The kernels that pass over the classes fill

    PEAK, KEEP           what the exponentials are relative to, and the sample weight, 0 for ignored rows
    WEIGHT               the label's class weight, where classes have weights
    OWN, OWN_EXP         the label's logit less the peak and its exponential; both 0 where there is no label
    OTHERS               the sum of all other exponentials
    MASS, DOT            the sums of q and of q * (z - peak) for keep = 1, the first for soft targets, the second for
                         these and with smoothing

and find the rest written here. A row's numbers do not depend on the rows beside it.
"""

import numpy as np

from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import log, log1p, negative_log
from crossent.kernels.cpu.row import label_grad, label_weight, lse_slope, row_loss, target_weight
from crossent.kernels.cpu.vector import (
    at,
    first_lanes,
    lanes,
    lift,
    load,
    load_some,
    same,
    select,
    store,
    store_some,
    sum_of_lanes_in_double,
)

ARRAYS = 12
PEAK, KEEP, WEIGHT, OWN, OWN_EXP, OTHERS, MASS, DOT, _NLL, FACTOR, LABEL_GRAD, COST = range(ARRAYS)


@inline
def array(like, state, tile, which):
    return at(like, state, tile * which)


@inline
def _of(like, state, tile, which, j):
    return load(like, array(like, state, tile, which), j)


@inline
def _own_weight(call, state, j):
    """The class weight of each row's label."""
    return _of(call.weight_like, state, call.tile, WEIGHT, j) if call.weight != 0 else lift(call.like, 1.0)


@inline
def _label_losses(like, weight_like, state, tile, n):
    """Write -log of the label's probability; in a pass of its own, since it is one long chain of operations."""
    losses = array(weight_like, state, tile, _NLL)
    for j in range(0, n, lanes(like)):
        own, own_exp = _of(weight_like, state, tile, OWN, j), _of(weight_like, state, tile, OWN_EXP, j)
        store(weight_like, losses, j, negative_log(like, _of(weight_like, state, tile, OTHERS, j), own, own_exp))


@inline
def _log_total(like, weight_like, state, tile, j):
    """log of the sum of all exponentials, relative to the peak."""
    one, others = lift(like, 1.0), _of(weight_like, state, tile, OTHERS, j)
    own_exp = _of(weight_like, state, tile, OWN_EXP, j)
    excess = select(same(own_exp, one), others, others + own_exp - 1.0)
    small = (lift(like, 0.0) <= excess) & (excess <= one)
    return select(small, log1p(like, excess), log(like, others + own_exp))


@inline
def _rest_mass(call, state, j):
    """The sum of q, for keep = 1, over the classes beside what is the label's own."""
    if call.is_soft != 0:
        return _of(call.weight_like, state, call.tile, MASS, j)
    return lift(call.like, target_weight(0.0, call.weight_total, 1.0, call.smoothing, np.float64(call.classes)))


@inline
def _losses(call, state, n, row, general):
    """Lane by lane the sum of the losses and that of the weights; `general` for more than the label's own part."""
    like, weight_like, tile, smoothing, is_soft = call.like, call.weight_like, call.tile, call.smoothing, call.is_soft
    zero = lift(like, 0.0)
    total_loss, total_weight = zero, zero
    for j in range(0, n, lanes(like)):
        keep, own_weight = _of(weight_like, state, tile, KEEP, j), _own_weight(call, state, j)
        label_mass, mass, dot, log_total, lse, z_loss = (
            label_weight(own_weight, keep, smoothing),
            zero,
            zero,
            zero,
            zero,
            0.0,
        )
        if general:
            z_loss, mass = call.z_loss, _rest_mass(call, state, j)
            if is_soft != 0 or smoothing > 0.0:
                dot = _of(weight_like, state, tile, DOT, j)
            log_total = _log_total(like, weight_like, state, tile, j)
            label_mass = zero if is_soft != 0 else label_mass
            lse = _of(weight_like, state, tile, PEAK, j) + log_total
        nll = select(same(label_mass, zero), zero, _of(weight_like, state, tile, _NLL, j))
        value = row_loss(nll, label_mass, log_total, keep * mass, keep * dot, lse, z_loss)
        value = select(keep != zero, value, zero)
        total_loss, total_weight = total_loss + value, total_weight + keep * own_weight
        if call.loss != 0:
            store_some(weight_like, call.loss, row + j, first_lanes(like, n - j), value)
    return total_loss, total_weight


@inline
def losses_of(call, state, n, row):
    """Write the losses of n rows from number `row` on, if they are wanted; their sum and that of the weights."""
    if call.is_soft == 0:
        _label_losses(call.like, call.weight_like, state, call.tile, n)
    if call.is_soft != 0 or call.smoothing > 0.0 or call.z_loss > 0.0:
        losses, weights = _losses(call, state, n, row, True)
    else:
        losses, weights = _losses(call, state, n, row, False)
    return sum_of_lanes_in_double(losses), sum_of_lanes_in_double(weights)


@inline
def prepare_gradients(call, state, n, row, plain):
    """Write what the exponentials are multiplied by, and the gradient at the label.

    Where other logits than the label's count by themselves, not `plain`, also what of `target_grad` no class has a part
    in, and g * keep in place of keep, g being what each loss is multiplied by.
    """
    like, weight_like, tile, smoothing, is_soft = call.like, call.weight_like, call.tile, call.smoothing, call.is_soft
    zero, dloss = lift(like, 0.0), call.dloss
    for j in range(0, n, lanes(like)):
        keep, own_weight = _of(weight_like, state, tile, KEEP, j), _own_weight(call, state, j)
        own_exp, others = _of(weight_like, state, tile, OWN_EXP, j), _of(weight_like, state, tile, OTHERS, j)
        label_mass, rest, log_total, mass = zero, zero, zero, _rest_mass(call, state, j)
        if is_soft == 0:
            label_mass = label_weight(own_weight, keep, smoothing)
            rest = target_weight(zero, own_weight, keep, smoothing, np.float64(call.classes))
        if is_soft != 0 or call.z_loss > 0.0:
            log_total = _log_total(like, weight_like, state, tile, j)
        g = lift(like, call.scale)
        if dloss != 0:
            g = g * load_some(weight_like, dloss, row + j, first_lanes(like, n - j), zero)
        lse = _of(weight_like, state, tile, PEAK, j) + log_total
        slope = lse_slope(label_mass + keep * mass, lse, call.z_loss)
        share = 1.0 / (others + own_exp)
        p = own_exp * share
        not_p = select(p < 0.5, 1.0 - p, others * share)  # whichever was rounded less
        d = g * label_grad(p, not_p, label_mass, rest, slope)
        store(weight_like, array(weight_like, state, tile, FACTOR), j, g * slope * share)
        store(weight_like, array(weight_like, state, tile, LABEL_GRAD), j, d)
        if not plain:
            cost = log_total + call.z_loss * lse * lse if call.z_loss > 0.0 else log_total
            store(weight_like, array(weight_like, state, tile, COST), j, cost)
            store(weight_like, array(weight_like, state, tile, KEEP), j, select(keep != zero, g * keep, zero))
