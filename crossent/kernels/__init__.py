"""The contract of the kernels: rows in, numbers out, on one kind of device.

Kernels know no reduction, no class axis, no validation and no framework's differentiation. They take `Rows` and work in
two stages. `sums` reads the logits and leaves a few numbers for each row, the `Sums`. `losses` and `gradients` make the
results of them. Between the stages somebody else can put together the sums of several shards of the classes
(`plain.merged`): then each shard finishes with the sums of all of them.

Everything is an array on the device. Nothing comes back to the host, and no kernel raises an error for what an array
holds: the number of the first row with a bad label is left in memory, and whoever called decides when to read it. A bad
label is never read with. The results are the same bits in every run.

What a loss means is in `crossent._rules`. The CPU has a shorter way for arrays that are there as a whole, which
`crossent.kernels.cpu` describes; its two stages are in `crossent.frontends._cpu`. `crossent.kernels.plain` needs no
kernels.
"""

from typing import Any, NamedTuple


class Rows(NamedTuple):
    """The rows of a cross entropy.

    logits          (outer, classes, inner), of any strides: float16, bfloat16, float32 or float64. The arithmetic is in
                    float64 for float64, else in float32
    target          (outer, inner) labels of int64; or, where `soft`, (outer, classes, inner) probabilities, stored like
                    the logits
    weight          (classes,) class weights in the dtype of the arithmetic, or None
    sample_weight   (outer, inner) in the dtype of the arithmetic, or None
    options         the `LossOptions`
    soft            whether the target holds probabilities
    first_class     the number of the first of these classes among those of all shards, by which labels count
    all_classes     how many classes there are in all shards

    A row counts `sample_weight`, or 1. It is ignored, whatever its logits are, if that is 0 or its label is
    `options.ignore_index`.
    """

    logits: Any
    target: Any
    weight: Any
    sample_weight: Any
    options: Any
    soft: bool
    first_class: int
    all_classes: int


def has_mass(rows):  # no property of `Rows`: the compilers of PyTorch 2.10 and before cannot follow one of a tuple
    """Whether classes other than the label have a target weight."""
    return rows.soft or rows.options.label_smoothing > 0.0


def has_own_weight(rows):
    """Whether labels have class weights."""
    return rows.weight is not None and not rows.soft


class Sums(NamedTuple):
    """What the results of a row depend on: arrays (outer, inner) in the dtype of the arithmetic.

    z are the logits after the softcap, and q the target weights for a row that counts 1, of `_rules.target_weight`.

    peak            a finite number near the largest z, so that the others' sum is in range: 0 where all are -inf
    others          the sum of exp(z - peak) over all classes but the label
    own             z of the label, -inf where it is not among these classes
    own_weight      the class weight of the label, 0 where it is not among these classes; None unless labels have class
                    weights
    mass            the sum of q over the classes, without what `_rules.label_weight` gives the label
    dot             the sum of q * (z - peak); both are None for labels without smoothing

    Those of an ignored row may be any finite numbers; so may `others` and `own` be -inf.
    """

    peak: Any
    others: Any
    own: Any
    own_weight: Any
    mass: Any
    dot: Any


class TokenSums(NamedTuple):
    """What the statistics of a row's label depend on, beside the label's own logit: arrays of one number for each row.

    z are the logits after the softcap.

    peak            a finite number near the largest z, so that the others' sum is in range: 0 where all are -inf
    others          the sum of exp(z - peak) over all classes but the label
    dot             the sum of exp(z - peak) * (z - peak) over all classes but the label
    ahead           how many classes are ahead of the label: of larger z, or of the same z and earlier among all classes
    """

    peak: Any
    others: Any
    dot: Any
    ahead: Any


class Note(NamedTuple):
    """Memory in which kernels leave the first row that has a bad label, that label, and both combined by exclusive or:
    `found`, beside a `flag` that becomes 1. If no label is bad they leave it as it is, found[0] being -1, and so they
    do while a row is there that nobody has been told of. The third number shows whoever looks without waiting that the
    others are there. `at` is for whoever made it.
    """

    flag: Any
    found: Any
    at: Any = None


class Outcome(NamedTuple):
    """What the rows add up to.

    losses          (outer, inner), 0 for ignored rows; they may be None where the options want them added up
    totals          two numbers: the sum of the losses, and that of the weights, by which a mean is divided; they may be
                    None where the options want the losses of rows
    bad             the number of the first row with a bad label, -1 if there is none; or the `Note` of it
    total, mean     the first total and the quotient of both, in the dtype of the loss, and
    scale           the inverse of the second; None unless the kernels have made what the options want
    """

    losses: Any
    totals: Any
    bad: Any
    total: Any = None
    mean: Any = None
    scale: Any = None


class LossKernels:
    """What a device has to offer: the three functions of the two stages. The others have a default, in these terms.
    What is None is computed in plain operations.

    of_good_labels      the same kernels for labels that have been looked at: they leave no `Note`
    picked              the `LossKernels` of log-probabilities, of which the label's alone is read; their sums are None
    softmax             of an array, an axis and whether the logarithm is wanted: the result, in the array's dtype
    softmax_gradient    of a result, the upstream gradient, the axis and whether it is the logarithm
    predictions         of `Rows`: log-probability and rank of the label, prediction, confidence and Brier score, arrays
                        (outer, inner), and the number of the first row with a bad label as in an `Outcome`
    tokens              of logits (rows, classes) whose classes lie side by side, labels that are good or ignored, the
                        options, and four arrays to write: logprob, lse, entropy and rank, see `plain.token_stats`
    ready_step          of a shape (outer, classes, inner), that of the labels, the dtype of the logits, the options,
                        the dtype of the loss and a device: what makes the loss of logits and labels that lie dense in
                        memory, and the gradient of the logits, in a launch each; None if nothing can
    token_gradient      of the same, with the arrays filled, and the upstream gradients of the first three or None: the
                        gradient is written over the logits
    """

    @property
    def of_good_labels(self):
        return self

    picked: Any = None
    softmax: Any = None
    softmax_gradient: Any = None
    predictions: Any = None
    ready_step: Any = None
    tokens: Any = None
    token_gradient: Any = None

    def sums(self, rows: Rows) -> Sums:
        """The first stage."""
        raise NotImplementedError

    def losses(self, rows: Rows, sums: Sums, dtype: Any = None) -> Outcome:
        """The second stage. `dtype` is that of the loss which is wanted: losses and mean may have it already."""
        raise NotImplementedError

    def gradients(
        self, rows: Rows, sums: Sums, upstream: Any, scale: Any, want_target: bool, over_logits: bool
    ) -> tuple[Any, Any]:
        """The second stage, for the derivatives of the sum of scale * upstream * losses by the logits and by the
        probabilities: the latter None if they are not wanted. `upstream` is (outer, inner), `scale` a number or an
        array of one. Those of ignored rows are 0 whatever these are. `over_logits` says that nobody needs the logits
        any more: their derivatives may be written over them.
        """
        raise NotImplementedError

    def forward(self, rows: Rows, dtype: Any = None) -> tuple[Sums, Outcome]:
        """Both stages of rows whose classes are all here."""
        sums = self.sums(rows)
        return sums, self.losses(rows, sums, dtype)

    def is_best_at_once(self, logits: Any, over_logits: bool = False) -> bool:
        """Whether to ask for `at_once` where the loss is one number: that reads the logits once, and not twice."""
        return False

    def at_once(
        self, rows: Rows, mean: bool, divisor: Any, dtype: Any, over_logits: bool = False
    ) -> tuple[Sums, Outcome, Any]:
        """As `forward`, and the gradient by the logits of the sum of the losses, or of the `mean`. `divisor` is the
        caller's or None. `over_logits` is as in `gradients`.
        """
        raise NotImplementedError

    def packed(self, rows: Rows, sums: Sums) -> Any:
        """The sums of rows, of `sums` or `forward`, as one array (6, number of rows): so they pass through graphs."""
        raise NotImplementedError

    def unpacked(self, rows: Rows, packed: Any) -> Sums:
        """The inverse."""
        raise NotImplementedError

    def multiply(self, gradient: Any, by: Any) -> None:
        """Multiply what lies dense in memory, such as `at_once` made, by an array of one number, in its place."""
        gradient *= by
