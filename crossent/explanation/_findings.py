"""What is worth knowing about a call: one function for each finding, in the order in which they are told.

Each takes the `Facts` and returns a `Finding` or None. An error makes the result wrong or useless, a warning is a
likely mistake, a note is no mistake. Whoever adds one adds a faulty case and its healthy twin to the tests.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crossent.explanation import _inputs, _losses, _values
from crossent.explanation._case import Case
from crossent.explanation._explanation import Finding
from crossent.explanation._scan import Scan
from crossent.explanation._tally import Tally
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

    @cached_property
    def tally(self) -> Tally:
        case, scan = self.case, self.scan
        tally, at = Tally(case.classes, case.dtype, case.head), case.keep
        tally.add(scan.high[at], scan.low[at], scan.total[at], scan.lse[at])
        if case.labels is None:
            tally.counted = int(at.sum())
        else:
            tally.add_labels(scan.top[at], case.labels[at])
        return tally

    stored = False  # in files

    @property
    def picks(self) -> bool:
        return self.case.picks

    @property
    def soft(self) -> bool:
        return self.case.soft

    @property
    def classes(self) -> int:
        return self.case.classes

    @property
    def axis(self) -> int:
        return self.case.axis

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.case.input.shape)

    def other_axis(self) -> int | None:
        return _inputs.other_axis(self)


# Of the input and the labels as such: what these ask of `Facts` is in its properties, and anybody who has these may ask
# them, as `crossent score` does of files.
OF_INPUTS = (
    _inputs.one_class,
    _inputs.equal_logits,
    _inputs.probabilities,
    _inputs.log_probabilities,
    _inputs.softmax_twice,
    _inputs.labels_off_by_one,
    _inputs.class_axis,
)
FINDINGS = (
    _values.bad_labels,
    _values.nothing_counts,
    _values.weights_not_finite,
    _values.nan_logits,
    _values.infinite_logits,
    _values.nothing_but_minus_infinity,
    _values.target_at_minus_infinity,
    _values.overflow,
    _inputs.one_class,
    _inputs.equal_logits,
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


def findings_of(facts, among: Iterable[Callable] = FINDINGS) -> tuple[Finding, ...]:
    return tuple(found for finding in among if (found := finding(facts)) is not None)
