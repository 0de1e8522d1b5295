"""What is known of some neighbouring rows, a lane for each: arrays in scratch memory, of which each row has one number.

    from crossent.kernels.cpu import state as st

The kernels that pass over the classes fill

    PEAK, KEEP           what the exponentials are relative to, and the sample weight, 0 for ignored rows
    WEIGHT               the label's class weight, where classes have weights
    OWN, OWN_EXP         the label's logit less the peak and its exponential; both 0 where there is no label
    OTHERS               the sum of all other exponentials
    MASS, DOT            the sums of q and of q * (z - peak) for keep = 1, the first for soft targets, the second for
                         these and with smoothing

and `epilogue` writes the rest. LABEL and PART are for kernels whose labels and unfinished sums wait there as well.
"""

from collections import namedtuple

import numpy as np

from crossent.kernels.cpu import vector as v
from crossent.kernels.cpu.compile import inline

# Numbers of the type of the arithmetic, at an address, with room for so many rows in each array. `storage` is read from
# the call once and handed on. The constants of `exp` hang on its value: read for each row, they would be made for each
# row, which took 7 % of a forward pass over 4096 x 1000 (`make bench`).
State = namedtuple("State", "storage compute address rows")
ARRAYS = 12
PEAK, KEEP, WEIGHT, OWN, OWN_EXP, OTHERS, MASS, DOT, NLL, FACTOR, LABEL_GRAD, COST = range(ARRAYS)
LABEL, PART = ARRAYS, ARRAYS + 1
ALL_ARRAYS = ARRAYS + 2


@inline
def array(state, which):
    return v.at(state.compute, state.address, state.rows * which)


@inline
def load(state, which, j):
    """The numbers of a vector's rows, from row j on."""
    return v.load(state.compute, array(state, which), j)


@inline
def store(state, which, j, value):
    v.store(state.compute, array(state, which), j, value)


@inline
def load_one(state, which, k):
    """That of row k."""
    return np.float64(v.load_scalar(state.compute, array(state, which), k))


@inline
def store_one(state, which, k, value):
    v.store_scalar(state.compute, array(state, which), k, value)


@inline
def load_labels(state, j):
    return v.load_narrow_labels(state.compute, array(state, LABEL), j)
