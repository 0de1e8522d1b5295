"""What is worth knowing about a call: one function for each finding, in the order in which they are told.

Each takes the `Case`, and returns nothing or what there is to say, by `error`, `warning` or `note`; its name is that of
the finding. An error makes the result wrong or useless, a warning is a likely mistake, a note is no mistake. Whoever
adds one adds a faulty case and its healthy twin to the tests.
"""

from collections.abc import Callable, Iterable
from typing import Any

from crossent.tools.explain import inputs, values, words
from crossent.tools.explain.explanation import Finding
from crossent.tools.language import say

# Of the input and the labels as such: `crossent score` asks them of files. Of the case they need no more than `tally`,
# `other_axis`, `stored`, `picks`, `soft`, `classes`, `axis` and `shape`.
OF_INPUTS = (
    inputs.one_class, inputs.equal_logits, inputs.probabilities, inputs.log_probabilities, inputs.softmax_twice,
    inputs.labels_off_by_one, inputs.class_axis,
)  # fmt: skip
FINDINGS = (
    values.bad_labels, values.nothing_counts, values.weights_not_finite, values.nan_logits, values.infinite_logits,
    values.nothing_left, values.target_at_minus_infinity, values.overflow, *OF_INPUTS[:5], inputs.logits_to_nll_loss,
    *OF_INPUTS[5:], inputs.target_sums, values.rows_that_dominate, values.classes_that_dominate,
)  # fmt: skip


def findings_of(case: Any, among: Iterable[Callable] = FINDINGS) -> tuple[Finding, ...]:
    told = ((finding.__name__, finding(case)) for finding in among)
    return tuple(_finding(case, name, *said) for name, said in told if said)


def _finding(case, name, severity, key, rows, classes, places):
    """Its sentence is the message `key`, or that of its name, with the rows, the classes and what else has a place."""
    if len(rows):
        places = {"rows": words.capital(words.rows(case, rows)), "in_first": words.in_first(rows)} | places
    if len(classes):
        places = {"classes": words.classes(classes)} | places
    return Finding(name, severity, say(key or name, **places), words.first(case, rows), words.few(classes))
