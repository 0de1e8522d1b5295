"""DTensors: every process computes its own rows as ordinary tensors, and the mean divides by what the rows of all
processes count.

The input's placements say where the rows are; the other tensors are brought there. A plain tensor beside a DTensor is
taken for the whole one, the same in every process. A loss that is one number is the same in every process. A gradient
has the placements of the tensor that it belongs to.

Where a loss's classes are spread, each process makes the sums of its own. These are gathered once, and each process
finishes with the sums over all classes, put together in the processes' order: so all have the same bits.
"""

import math
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from crossent import _rows
from crossent._call import Call
from crossent.frontends.torch import dtypes, head, namespace as xp, plain, spread_softmax
from crossent.frontends.torch.agreement import together
from crossent.frontends.torch.checks import refuse_transforms
from crossent.frontends.torch.labels import concrete
from crossent.frontends.torch.shards import ClassShard
from crossent.kernels import plain as formulas


class _Parts:
    """How the rows of an input are spread over a mesh of processes; `axis` is that of the classes or features.

    If these `may_be_spread`, they stay spread along one axis of the mesh, and are brought together along others. Else
    an input whose features are spread is refused. `class_dim` is the axis of the mesh along which a head's classes are
    spread: along it every process gets all rows.
    For a call that is only planned nothing is sent: zeros stand for what would have to be sent.
    """

    def __init__(self, input, axis, what, planned, may_be_spread=False, class_dim=None):
        self.mesh, self.whole, self.axis, self.planned = input.device_mesh, input, axis, planned
        # Partial sums are added up now, and an input that is sharded in another order is brought together.
        self.of_input = [p if type(p) is Shard else Replicate() for p in input.placements]
        if class_dim is not None:
            self.of_input[class_dim] = Replicate()
        spread = [dim for dim, p in enumerate(self.of_input) if p.is_shard(axis)]
        if spread and not may_be_spread:
            raise ValueError(
                f"input must not be sharded along its {what}, axis {axis}, got placements {tuple(input.placements)}: "
                "redistribute it along its rows, or to Replicate()"
            )
        for dim in spread[1:]:
            self.of_input[dim] = Replicate()
        self.class_dim = spread[0] if spread else class_dim
        others = [Replicate() if dim == self.class_dim else p for dim, p in enumerate(self.of_input)]
        self.of_rows = [Shard(p.dim - (p.dim > axis)) if type(p) is Shard else p for p in others]
        along = [type(p) is Shard and self.mesh.size(dim) > 1 for dim, p in enumerate(others)]
        self.of_sums = [Partial() if is_spread else Replicate() for is_spread in along]
        self.of_classes = [Shard(0) if dim == self.class_dim else Replicate() for dim in range(self.mesh.ndim)]
        self.replicated = [Replicate()] * self.mesh.ndim

    @property
    def processes_of_rows(self):
        """Over how many processes the rows are spread."""
        return math.prod(self.mesh.size(dim) for dim, p in enumerate(self.of_sums) if p.is_partial())

    def shard(self, classes):
        """Which classes this process has."""
        processes, rank = self.mesh.size(self.class_dim), self.mesh.get_local_rank(self.class_dim)
        largest = -(-classes // processes)  # as torch.chunk cuts
        smallest = max(0, classes - (processes - 1) * largest)
        group = self.mesh, self.class_dim
        return ClassShard(group, processes, rank, min(classes, rank * largest), classes, largest, smallest)

    def _spread(self, tensor) -> Any:
        if isinstance(tensor, DTensor):
            return tensor
        return DTensor.from_local(tensor, self.mesh, self.replicated, run_check=False)

    def _part(self, tensor, placements, grad_placements=None):
        refuse_transforms(tensor)
        if not isinstance(tensor, DTensor) and placements == self.replicated == (grad_placements or placements):
            return tensor.resolve_neg()
        tensor = self._spread(tensor)
        if self.planned and list(tensor.placements) != placements:
            zeros = torch.zeros(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            tensor = self._spread(zeros)
        return self._moved(tensor, placements, grad_placements).to_local(grad_placements=grad_placements).resolve_neg()

    def _moved(self, tensor, placements, grad_placements=None):
        """The tensor with these placements. It is returned as it is if it has them already: over a mesh of several axes
        old PyTorch cannot differentiate a redistribution that moves nothing.
        """
        nothing = list(tensor.placements) == placements == (grad_placements or placements)
        return tensor if nothing and tensor.device_mesh == self.mesh else tensor.redistribute(self.mesh, placements)

    def input(self):
        return self._part(self.whole, self.of_input)

    def input_of_head(self):
        """Where classes are spread, each process makes the part of the gradient that comes from its own."""
        of_grad = [Partial() if dim == self.class_dim else p for dim, p in enumerate(self.of_input)]
        return self._part(self.whole, self.of_input, of_grad)

    def like_input(self, tensor, class_axis=None):
        """This process's part of a tensor with the input's axes, and with the classes, which of a head are along
        `class_axis`.
        """
        spread = {} if class_axis is None or self.class_dim is None else {self.class_dim: Shard(class_axis)}
        return self._part(tensor, [spread.get(dim, p) for dim, p in enumerate(self.of_input)])

    def like_rows(self, tensor, row_shape):
        """This process's part of labels, or of what broadcasts to them."""
        return self._part(tensor.expand(row_shape), self.of_rows)

    def by_class(self, tensor):
        """This process's part of a tensor whose first axis is that of the classes."""
        of_grad = [p if dim == self.class_dim else self.of_sums[dim] for dim, p in enumerate(self.of_classes)]
        return None if tensor is None else self._part(tensor, self.of_classes, of_grad)

    def everywhere(self, tensor):
        """The whole of a tensor that all rows share; its gradient is the sum over the processes."""
        return None if tensor is None else self._part(tensor, self.replicated, self.of_sums)

    def samples(self, sample_weight, row_shape):
        if sample_weight is None:
            return None
        _rows.check_sample_weight(sample_weight.shape, row_shape)
        return self.like_rows(sample_weight, row_shape)

    def divisor(self, options, denominator, counts):
        """What the mean of all rows divides by; None if the loss is to find it, which has all rows."""
        if isinstance(denominator, torch.Tensor):
            return self.everywhere(denominator)
        if denominator is not None or options.reduction != "mean" or counts is None:
            return denominator
        return self.everywhere(self._sum(lambda: counts().sum(dtype=torch.float64)))

    def _sum(self, part, placements=None):
        """The sum over all processes that have different rows, in float64. What one of them cannot add is raised in
        all.
        """
        placements = placements or self.of_sums
        if placements == self.replicated:
            return part()  # as in every other process

        def reduce(value):
            parts = DTensor.from_local(value, self.mesh, placements, run_check=False)
            return self._moved(parts, self.replicated).to_local()

        if not self._can_read():
            return reduce(part())
        return together(part, reduce, [self.mesh.get_group(dim) for dim in range(self.mesh.ndim)], self.whole.device)

    def _can_read(self):
        return concrete(self.whole.detach().to_local()) is not None

    def in_all(self, compute):
        """What `compute()` makes of this process's rows. What it raises is raised in all processes that have others:
        they send one number, if they send nothing else. In a graph nothing can be heard, and nothing is sent.
        """
        found = []

        def part():
            found.append(compute())
            return torch.zeros((), dtype=torch.float64, device=self.whole.device)

        if self._can_read():
            self._sum(part)
        else:
            part()
        return found[0]

    def loss(self, compute, options, dtype, shape, by_class=False):
        """The losses of rows, or the sum of all processes' losses, rounded once. `by_class` says that a row's loss is
        a sum as well, over the processes that have its classes.
        """
        over_classes = {self.class_dim: Partial()} if by_class else {}
        if options.reduction == "none":
            of_rows = [over_classes.get(dim, p) for dim, p in enumerate(self.of_rows)]
            losses = self.in_all(lambda: compute(options))
            return self._moved(self._of_shape(losses, of_rows, shape), self.of_rows)
        wide = options.changed(loss_dtype="float64")
        of_sums = [over_classes.get(dim, p) for dim, p in enumerate(self.of_sums)]
        return self._spread(self._sum(lambda: compute(wide), of_sums).to(dtype))

    def rows(self, part, shape):
        """The DTensor of this shape of which this is one process's part."""
        return self._of_shape(part, self.of_rows, shape)

    def like_whole(self, part):
        return self._of_shape(part, self.of_input, self.whole.shape)

    def _of_shape(self, part, placements, shape):
        strides = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            part.contiguous(), self.mesh, placements, run_check=False, shape=torch.Size(shape), stride=strides
        )


def parts_of_loss(input, target, weight, sample_weight, dim, soft_allowed, planned=False):
    """The `_Parts`, the rows' shape, and this process's part of each tensor; the class weights are those of all
    classes.
    """
    axis, soft = _rows.target_kind(tuple(input.shape), tuple(target.shape), dim, soft_allowed)
    parts = _Parts(input, axis, "classes", planned, may_be_spread=True)
    row_shape = input.shape[:axis] + input.shape[axis + 1 :]
    target = parts.like_input(target) if soft else parts.like_rows(target, row_shape)
    samples = parts.samples(sample_weight, row_shape)
    return parts, row_shape, (parts.input(), target, parts.everywhere(weight), samples)


def loss(function, name, tensors, denominator, dim, options, in_place):
    """`function` is the router's function for plain tensors; these are input, target, weight and sample_weight."""
    soft_allowed = name == "cross_entropy"
    input, target, class_weight, sample_weight = tensors
    parts, shape, found = parts_of_loss(input, target, class_weight, sample_weight, dim, soft_allowed)
    x, target, weight, samples = found
    if soft_allowed:
        x, target = dtypes.in_common_dtype(x, target)

    def counts():
        # Their shape stands for that of the logits of all classes.
        like = x.new_empty(()).expand([*x.shape[: parts.axis], input.shape[parts.axis], *x.shape[parts.axis + 1 :]])
        like_target = like if target.is_floating_point() else target
        _, soft, *found = plain.checked_rows(like, like_target, weight, samples, dim, options, soft_allowed)
        return formulas.row_weights(xp, found[0], soft, *found[1:])

    has_all_rows = soft_allowed and parts.class_dim is not None and parts.of_sums == parts.replicated
    divisor = parts.divisor(options, denominator, None if has_all_rows else counts)
    out_dtype = dtypes.result_dtype(x, options)

    def compute(options):
        if parts.class_dim is None:
            return function(name, (x, target, weight, samples), divisor, dim, options, in_place)
        shard, own_weight = parts.shard(input.shape[parts.axis]), parts.by_class(class_weight)
        if soft_allowed:
            return function(name, (x, target, own_weight, samples), divisor, dim, options, in_place, shard)
        counts()  # refuses bad labels
        labels = shard.own_labels(target, options.ignore_index, x.shape[parts.axis])
        own_labels = options.changed(ignore_index=-1)
        # Each process makes the gradients that come from its own labels.
        shared = [shard.with_sum_of_gradients(one) if torch.is_tensor(one) else one for one in (samples, divisor)]
        return function(name, (x, labels, own_weight, shared[0]), shared[1], dim, own_labels, in_place)

    return parts.loss(compute, options, out_dtype, shape, parts.class_dim is not None and not soft_allowed)


def prediction_stats(function, input, target, dim, options):
    parts, shape, (x, target, *_) = parts_of_loss(input, target, None, None, dim, False)

    def compute():
        if parts.class_dim is None:
            return function(x, target, dim, options)
        return plain.prediction_stats(x.detach(), target, dim, options, parts.shard(input.shape[parts.axis]))

    return tuple(parts.rows(value, shape) for value in parts.in_all(compute))


def parts_of_softmax(x, axis, planned=False):
    return _Parts(x, axis, "slices", planned, may_be_spread=True)


def softmax(function, x, axis, log):
    parts = parts_of_softmax(x, axis)
    part = parts.input()
    if parts.class_dim is None:
        return parts.like_whole(function(part, axis, None, log, 0))
    return parts.like_whole(spread_softmax.softmax(part, axis, log, parts.shard(x.shape[axis])))


def _class_dim(linear_weight, linear_bias, mesh):
    """The axis of the mesh along which a head's classes are spread, None if they are not."""
    if not isinstance(linear_weight, DTensor) or all(p.is_replicate() for p in linear_weight.placements):
        if isinstance(linear_bias, DTensor) and not all(p.is_replicate() for p in linear_bias.placements):
            raise ValueError(
                f"linear_bias must be replicated, got placements {tuple(linear_bias.placements)}: redistribute it to "
                "Replicate()"
            )
        return None
    spread = [dim for dim, p in enumerate(linear_weight.placements) if p.is_shard(0)]
    others = [p for p in linear_weight.placements if not p.is_replicate()]
    if linear_weight.device_mesh != mesh or len(spread) != len(others) or len(spread) != 1:
        raise ValueError(
            "linear_weight must be replicated, or sharded along its classes over one axis of the input's mesh, got "
            f"placements {tuple(linear_weight.placements)}: redistribute it"
        )
    return spread[0]


def parts_of_head(tensors, how, planned=False):
    """The `_Parts`, the shapes of the whole head, and this process's part of each tensor, but all of the class weights
    and of a sparse target's classes.
    """
    input, linear_weight, target, linear_bias, weight, sample_weight = tensors
    sparse = isinstance(target, _rows.SparseTarget)
    bias = None if linear_bias is None else tuple(linear_bias.shape)
    kind = target if sparse else tuple(target.shape)
    shape = _rows.HeadShape(tuple(input.shape), tuple(linear_weight.shape), bias, kind, how.shift)
    class_dim = _class_dim(linear_weight, linear_bias, input.device_mesh)
    parts = _Parts(input, input.ndim - 1, "features", planned, class_dim=class_dim)
    if how.shift and any(p.is_shard(input.ndim - 2) for p in parts.of_input):
        raise ValueError(
            f"input must not be sharded along time, axis {input.ndim - 2}, where a shift of {how.shift} looks at later "
            "rows: redistribute it along the batch"
        )
    if sparse:
        target = _rows.SparseTarget(*(parts.like_input(tensor) for tensor in (target.classes, target.probs)))
    elif shape.soft:
        target = parts.like_input(target, len(shape.leading))
    else:
        target = parts.like_rows(target, shape.targets)
    samples = parts.samples(sample_weight, shape.targets)
    of_head = parts.everywhere if class_dim is None else parts.by_class
    return parts, shape, (
        parts.input_of_head(), of_head(linear_weight), target, of_head(linear_bias), parts.everywhere(weight), samples,
    )  # fmt: skip


def _counts(tensors, shape, options, how):
    """What the targets of this process count in the mean's divisor."""
    input, _, target, _, weight, sample_weight = tensors
    classes, probs = (target.classes, target.probs) if isinstance(target, _rows.SparseTarget) else (None, target)
    # Only its shape counts, which is that of all classes.
    matrix = input.new_empty(()).expand(shape.classes, *shape.out, shape.features)
    if shape.soft and classes is None:
        probs = probs.new_empty(()).expand(*input.shape[:-1], shape.classes, *shape.out)
    whole = input, matrix, None, probs, weight, sample_weight
    return head.counts(whole, head.call_of(whole[:4], Call(options, how=how), classes))


def linear_cross_entropy(function, tensors, denominator, options, how):
    class_weight = tensors[4]
    parts, shape, tensors = parts_of_head(tensors, how)
    divisor = parts.divisor(options, denominator, lambda: _counts(tensors, shape, options, how))
    shard = None if parts.class_dim is None else parts.shard(shape.classes)

    def compute(options):
        if shard is None:
            return function(*tensors, divisor, options, how)
        *others, _, samples = tensors
        return function(*others, parts.by_class(class_weight), samples, divisor, options, how, shard)

    return parts.loss(compute, options, dtypes.result_dtype(tensors[0], options), shape.losses(how.shift))


def linear_token_stats(function, tensors, options, how):
    parts, shape, tensors = parts_of_head((*tensors, None, None), how)
    shard = None if parts.class_dim is None else parts.shard(shape.classes)
    found = parts.in_all(lambda: function(*tensors[:4], options, how, shard))
    return tuple(parts.rows(value, shape.losses(how.shift)) for value in found)
