"""A chunk of a head's logits, by the two stages in `crossent.kernels`."""

from functools import cached_property

from crossent._call import Call
from crossent.frontends import _stages
from crossent.frontends._problem import compute_storage


class StagedChunk:
    """As `_problem.Problem`, for logits with classes along axis 1; `tensors` are logits, target, class weights and
    sample weights, `kernels` those of the device. The logits may be of the classes of one `shard`: then the sums of
    rows are sent at once, and merged with those of the other shards when they are needed.
    """

    def __init__(self, lib, kernels, tensors, options, shard=None):
        self.lib, self.kernels, self.tensors = lib, kernels.of_good_labels, tensors
        self.x, self.labels, *_ = tensors
        # Sums of chunks are added up, which takes more bits.
        storage = compute_storage(lib.storage(self.x)) if options.reduction == "none" else "float64"
        self.call = Call(options, 1, out_dtype=lib.dtypes[storage])
        of_shard = () if shard is None else (shard.first, shard.classes)
        self.rows = _stages.rows_of(lib, tensors, self.call, *of_shard)
        self.merged = None if shard is None else shard.sent(self.kernels.sums(self.rows))

    @cached_property
    def finished(self):
        call = self.lib, self.kernels, self.rows
        if self.merged is None:
            return _stages.loss(*call, self.call, self.labels, refuse=_told_already)
        return _stages.finished(*call, self.merged(), self.call, self.labels, _told_already)

    def forward(self, divisor):
        loss = self.finished.loss
        return float(loss) if self.lib.reads and not loss.ndim else loss, 1.0

    def backward(self, stats, dloss, scale, dx, want_target, with_loss):
        """The gradient of the logits is written over them, which `dx` are."""
        alone = self.merged is None and dloss is None and not want_target
        if alone and self.kernels.is_best_at_once(self.rows.logits, over_logits=True):
            made = self._at_once(scale)
        else:
            finished = self.finished._replace(scale=scale)
            dloss = self.lib.xp.ones_like(self.finished.loss) if dloss is None else dloss
            made = _stages.gradients(
                self.lib, self.kernels, self.rows, finished, dloss, self.tensors, want_target, over_logits=True
            )
        dlogits, dtarget = made
        if not self.lib.is_same_memory(dlogits, dx):
            dx[...] = dlogits
        return dtarget, self.forward(None)[0], None

    def _at_once(self, scale):
        """The gradients; the kernels make the loss with them."""
        mean = not isinstance(scale, float)
        divisor = 1.0 / scale if mean else None
        sums, outcome, gradient = self.kernels.at_once(self.rows, mean, divisor, self.call.out_dtype, over_logits=True)
        self.finished = _stages.reduced(self.lib, self.rows, sums, outcome, self.call, self.labels, _told_already)
        return self.lib.xp.reshape(gradient, self.x.shape), None


def _told_already(bad, error):
    """The labels of all chunks are looked at together."""
