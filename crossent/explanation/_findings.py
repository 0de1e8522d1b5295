"""What is worth knowing about a call: one function for each finding, in the order in which they are told.

Each takes the `Facts` and returns a `Finding` or None. An error makes the result wrong or useless, a warning is a
likely mistake, a note is no mistake. Whoever adds one adds a faulty case and its healthy twin to the tests.
"""

from dataclasses import dataclass

import numpy as np

from crossent.explanation import _inputs, _losses, _values
from crossent.explanation._case import Case
from crossent.explanation._scan import Scan
from crossent.explanation._working import Worked


@dataclass
class Facts:
    """A call, what its rows are like, the losses and the result that the function returned, in `dtype`.

    `mistake` is the error that the function raised for bad labels, which are left out of all else.
    """

    case: Case
    scan: Scan
    worked: list[Worked]
    losses: np.ndarray
    result: float | None
    dtype: str
    mistake: str | None


FINDINGS = (
    _values.bad_labels,
    _values.nothing_counts,
    _values.weights_not_finite,
    _values.nan_logits,
    _values.infinite_logits,
    _values.nothing_but_minus_infinity,
    _values.target_at_minus_infinity,
    _values.overflow,
    _inputs.probabilities,
    _inputs.log_probabilities,
    _inputs.softmax_twice,
    _inputs.logits_to_nll_loss,
    _inputs.labels_off_by_one,
    _inputs.class_axis,
    _inputs.target_sums,
    _losses.rows_that_dominate,
    _losses.classes_that_dominate,
)


def findings_of(facts):
    return tuple(found for finding in FINDINGS if (found := finding(facts)) is not None)
