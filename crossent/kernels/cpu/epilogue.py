"""From the sums of each row's exponentials to its loss and to the factors of its gradient: one lane for each row.

The sums lie in a `State`. The results of a row do not depend on the rows beside it.
"""

import numpy as np

from crossent.kernels.cpu import rules, state as st, vector as v
from crossent.kernels.cpu.compile import inline
from crossent.kernels.cpu.math import log, log1p, nll


@inline
def _own_weight(call, state, j):
    """The class weight of each row's label."""
    return st.load(state, st.WEIGHT, j) if call.weight != 0 else v.splat(call.storage, 1.0)


@inline
def _label_nll(storage, state, j):
    """-log of each row's label's probability."""
    return nll(storage, st.load(state, st.OTHERS, j), st.load(state, st.OWN, j), st.load(state, st.OWN_EXP, j))


@inline
def _log_total(storage, state, j):
    """The log of the sum of all exponentials, relative to the peak."""
    one, others, own_exp = v.splat(storage, 1.0), st.load(state, st.OTHERS, j), st.load(state, st.OWN_EXP, j)
    excess = v.select(v.eq(own_exp, one), others, others + own_exp - 1.0)
    small = (v.splat(storage, 0.0) <= excess) & (excess <= one)
    return v.select(small, log1p(storage, excess), log(storage, others + own_exp))


@inline
def _rest_mass(call, state, j):
    """The sum of q over all classes for keep = 1, without the label's own part (`label_weight`)."""
    if call.has_mass != 0:
        return st.load(state, st.MASS, j)
    mass = rules.target_weight(0.0, call.weight_total, 1.0, call.smoothing, np.float64(call.all_classes))
    return v.splat(call.storage, mass)


@inline
def _losses(call, state, n, row, general):
    """Write the losses; lane by lane, their sum and that of the weights. `general`: not the label's own part alone."""
    storage, smoothing, is_soft = call.storage, call.smoothing, call.is_soft
    zero = v.splat(storage, 0.0)
    total_loss, total_weight = zero, zero
    for j in range(0, n, v.lanes(storage)):
        keep, own_weight = st.load(state, st.KEEP, j), _own_weight(call, state, j)
        label_mass = rules.label_weight(own_weight, keep, smoothing)
        mass, dot, log_total, lse, z_loss = zero, zero, zero, zero, 0.0
        if general:
            z_loss, mass = call.z_loss, _rest_mass(call, state, j)
            if is_soft != 0 or smoothing > 0.0:
                dot = st.load(state, st.DOT, j)
            log_total = _log_total(storage, state, j)
            label_mass = zero if is_soft != 0 else label_mass
            lse = st.load(state, st.PEAK, j) + log_total
        label_nll = zero
        if is_soft == 0:
            label_nll = _label_nll(storage, state, j)
            nothing = v.eq(label_mass, zero) & v.eq(label_nll, v.splat(storage, np.inf))
            label_nll = v.select(nothing, zero, label_nll)
        value = rules.row_loss(label_nll, label_mass, log_total, keep * mass, keep * dot, lse, z_loss)
        value = v.select(keep != zero, value, zero)
        total_loss, total_weight = total_loss + value, total_weight + keep * own_weight
        if call.loss != 0:
            v.store_masked(call.compute, call.loss, row + j, v.first_n(storage, n - j), value)
    return total_loss, total_weight


@inline
def losses_of(call, state, n, row):
    """Write the losses of n rows from row number `row` on, if wanted. Returns their sum and that of the weights."""
    if call.is_soft != 0 or call.smoothing > 0.0 or call.z_loss > 0.0:
        losses, weights = _losses(call, state, n, row, True)
    else:
        losses, weights = _losses(call, state, n, row, False)
    return v.reduce_sum_in_double(losses), v.reduce_sum_in_double(weights)


@inline
def prepare_gradients(call, state, n, row, plain):
    """Write what the exponentials are multiplied by, and the gradient at the label.

    `plain` says that classes other than the label count by their exponentials alone. If not, also write the cost in
    `target_grad`, which is the same for all classes, and g * keep. g is what a loss is multiplied by.
    """
    storage, smoothing, is_soft = call.storage, call.smoothing, call.is_soft
    zero, dloss = v.splat(storage, 0.0), call.dloss
    for j in range(0, n, v.lanes(storage)):
        keep, own_weight = st.load(state, st.KEEP, j), _own_weight(call, state, j)
        own_exp, others = st.load(state, st.OWN_EXP, j), st.load(state, st.OTHERS, j)
        label_mass, rest, log_total, mass = zero, zero, zero, _rest_mass(call, state, j)
        if is_soft == 0:
            label_mass = rules.label_weight(own_weight, keep, smoothing)
            rest = rules.target_weight(zero, own_weight, keep, smoothing, np.float64(call.all_classes))
        if is_soft != 0 or call.z_loss > 0.0:
            log_total = _log_total(storage, state, j)
        g = v.splat(storage, call.scale)
        if dloss != 0:
            g = g * v.load_masked(call.compute, dloss, row + j, v.first_n(storage, n - j), zero)
        lse = st.load(state, st.PEAK, j) + log_total
        slope = rules.lse_slope(label_mass + keep * mass, lse, call.z_loss)
        share = 1.0 / (others + own_exp)
        p = own_exp * share
        not_p = v.select(p < 0.5, 1.0 - p, others * share)  # whichever has the smaller error
        st.store(state, st.FACTOR, j, g * slope * share)
        st.store(state, st.LABEL_GRAD, j, g * rules.label_grad(p, not_p, label_mass, rest, slope))
        if not plain:
            cost = log_total + call.z_loss * lse * lse if call.z_loss > 0.0 else log_total
            st.store(state, st.COST, j, cost)
            st.store(state, st.SCALED, j, v.select(keep != zero, g * keep, zero))
