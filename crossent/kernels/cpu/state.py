"""What is known of some neighbouring rows, a lane for each: arrays in scratch memory with one number for each row.

    from crossent.kernels.cpu import state as st

The kernels that pass over the classes fill

    PEAK, KEEP           what the exponentials are relative to, and the sample weight, 0 for ignored rows
    WEIGHT               the label's class weight, if classes have weights
    OWN, OWN_EXP         the label's logit less the peak, and the exponential of that; both 0 if there is no label
    OTHERS               the sum of all other exponentials
    MASS, DOT            the sums of q and of q * (z - peak) for keep = 1: MASS with soft targets, DOT with soft targets
                         or smoothing

and `epilogue` writes the rest. LABEL and PART are for kernels that keep labels and unfinished sums there as well.
"""

from collections import namedtuple

import numpy as np

from crossent.kernels.cpu import vector as v
from crossent.kernels.cpu.compile import inline

# Arrays at an address, each of `rows` numbers in the type of the arithmetic. `storage` is read from the call once and
# handed on, because the constants of `exp` depend on its value: if it were read for each row, they would be made for
# each row, which took 7 % of a forward pass over 4096 x 1000 (`make bench`).
State = namedtuple("State", "storage compute address rows")
ARRAYS = 12
PEAK, KEEP, WEIGHT, OWN, OWN_EXP, OTHERS, MASS, DOT, FACTOR, LABEL_GRAD, COST, SCALED = range(ARRAYS)
LABEL, PART = ARRAYS, ARRAYS + 1
ALL_ARRAYS = ARRAYS + 2


@inline
def array(state, which):
    return v.at(state.compute, state.address, state.rows * which)


@inline
def load(state, which, j):
    """One number of each row in a vector of rows, from row j on."""
    return v.load(state.compute, array(state, which), j)


@inline
def store(state, which, j, value):
    v.store(state.compute, array(state, which), j, value)


@inline
def load_one(state, which, k):
    """One number of row k."""
    return np.float64(v.load_scalar(state.compute, array(state, which), k))


@inline
def store_one(state, which, k, value):
    v.store_scalar(state.compute, array(state, which), k, value)


@inline
def load_labels(state, j):
    return v.load_narrow_labels(state.compute, array(state, LABEL), j)
