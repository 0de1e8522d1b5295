"""What is worth knowing about a call: one function for each finding, in the order in which they are told.

Each takes the `Facts` and returns a `Finding` or None. An error makes the result wrong or useless, a warning is a
likely mistake, a note is no mistake. Whoever adds one adds a faulty case and its healthy twin to the tests.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from crossent.tools.explain import inputs, values
from crossent.tools.explain.case import Case
from crossent.tools.explain.explanation import Finding
from crossent.tools.explain.tally import Scan, Tally
from crossent.tools.explain.working import Worked


@dataclass
class Facts:
    """A call, what its rows are like, the losses and the result that the function returned, in `dtype`."""

    case: Case
    scan: Scan
    tally: Tally
    worked: list[Worked]
    losses: np.ndarray
    result: float | None
    dtype: str

    stored = False  # in files

    def other_axis(self) -> int | None:
        return inputs.other_axis(self)


FINDINGS = (
    values.bad_labels, values.nothing_counts, values.weights_not_finite, values.nan_logits, values.infinite_logits,
    values.nothing_but_minus_infinity, values.target_at_minus_infinity, values.overflow, inputs.one_class,
    inputs.equal_logits, inputs.probabilities, inputs.log_probabilities, inputs.softmax_twice,
    inputs.logits_to_nll_loss, inputs.labels_off_by_one, inputs.class_axis, inputs.target_sums,
    values.rows_that_dominate, values.classes_that_dominate,
)  # fmt: skip
# Of the input and the labels as such: `crossent score` asks them of files. They need the `tally`, `other_axis`, whether
# the numbers are `stored`, and of the case no more than `picks`, `soft`, `classes`, `axis` and `shape`.
OF_INPUTS = [
    finding
    for finding in FINDINGS
    if finding.__module__ == inputs.__name__ and finding not in (inputs.logits_to_nll_loss, inputs.target_sums)
]


def findings_of(facts, among: Iterable[Callable] = FINDINGS) -> tuple[Finding, ...]:
    return tuple(found for finding in among if (found := finding(facts)) is not None)
