"""DTensors: every process computes its own rows as ordinary tensors, and the mean divides by what the rows of all
processes count.

The input's placements say where the rows are; the other tensors are brought there. A plain tensor beside a DTensor is
taken for the whole one, the same in every process. A loss that is one number is the same in every process. A gradient
has the placements of the tensor that it belongs to.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from crossent import _rows
from crossent._call import Call
from crossent.frontends.torch import dtypes, head, namespace as xp, plain
from crossent.kernels import plain as formulas


class _Parts:
    """How the rows of an input are spread over a mesh of processes; `axis` is that of the classes or features.

    For a call that is only planned nothing is sent: zeros stand for what would have to be sent.
    """

    def __init__(self, input, axis, what, planned):
        self.mesh, self.whole, self.axis, self.planned = input.device_mesh, input, axis, planned
        # Partial sums are added up now, and an input that is sharded in another order is brought together.
        self.of_input = [p if type(p) is Shard else Replicate() for p in input.placements]
        if any(p.is_shard(axis) for p in self.of_input):
            raise ValueError(
                f"input must not be sharded along its {what}, axis {axis}, got placements {tuple(input.placements)}: "
                "redistribute it along its rows, or to Replicate()"
            )
        self.of_rows = [Shard(p.dim - (p.dim > axis)) if type(p) is Shard else p for p in self.of_input]
        self.of_sums = [Partial() if type(p) is Shard else p for p in self.of_input]
        self.replicated = [Replicate()] * self.mesh.ndim

    def _spread(self, tensor) -> Any:
        if isinstance(tensor, DTensor):
            return tensor
        return DTensor.from_local(tensor, self.mesh, self.replicated, run_check=False)

    def _part(self, tensor, placements, grad_placements=None):
        tensor = self._spread(tensor)
        if self.planned and list(tensor.placements) != placements:
            zeros = torch.zeros(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            tensor = self._spread(zeros)
        return self._moved(tensor, placements, grad_placements).to_local(grad_placements=grad_placements)

    def _moved(self, tensor, placements, grad_placements=None):
        """The tensor with these placements. It is returned as it is if it has them already: over a mesh of several axes
        old PyTorch cannot differentiate a redistribution that moves nothing.
        """
        nothing = list(tensor.placements) == placements == (grad_placements or placements)
        return tensor if nothing and tensor.device_mesh == self.mesh else tensor.redistribute(self.mesh, placements)

    def input(self):
        return self._part(self.whole, self.of_input)

    def like_input(self, tensor):
        """This process's part of a tensor with the input's axes, that of the classes included."""
        return self._part(tensor, self.of_input)

    def like_rows(self, tensor, row_shape):
        """This process's part of labels, or of what broadcasts to them."""
        return self._part(self._spread(tensor).expand(row_shape), self.of_rows)

    def everywhere(self, tensor):
        """The whole of a tensor that all rows share; its gradient is the sum over the processes."""
        return None if tensor is None else self._part(tensor, self.replicated, self.of_sums)

    def samples(self, sample_weight, row_shape):
        if sample_weight is None:
            return None
        _rows.check_sample_weight(sample_weight.shape, row_shape)
        return self.like_rows(sample_weight, row_shape)

    def divisor(self, options, denominator, counts):
        """What the mean of all rows divides by."""
        if isinstance(denominator, DTensor):
            return denominator.full_tensor()
        if denominator is not None or options.reduction != "mean":
            return denominator
        whole, _ = self._sum(lambda: counts().sum(dtype=torch.float64))
        return self.everywhere(whole)

    def _sum(self, part):
        """The sum over all processes that have different rows, in float64, and the error of a bad label in this one.

        The error is to be raised after the other processes have heard from this one, so that none waits for ever. They
        hear nan.
        """
        error = None
        try:
            value = part()
        except IndexError as bad:
            value, error = torch.full((), math.nan, dtype=torch.float64, device=self.whole.device), bad
        parts = DTensor.from_local(value, self.mesh, self.of_sums, run_check=False)
        return self._moved(parts, self.replicated), error

    def loss(self, compute, options, dtype, shape):
        """The losses of rows, or the sum of all processes' losses, rounded once."""
        if options.reduction == "none":
            return self.rows(compute(options), shape)
        wide = options.changed(loss_dtype="float64")
        whole, error = self._sum(lambda: compute(wide))
        if error is not None:
            raise error
        return whole.to(dtype)

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


def _parts_of_loss(input, target, weight, sample_weight, dim, soft_allowed, planned=False):
    """The `_Parts`, the rows' shape, and this process's part of each tensor."""
    axis, soft = _rows.target_kind(tuple(input.shape), tuple(target.shape), dim, soft_allowed)
    parts, row_shape = _Parts(input, axis, "classes", planned), input.shape[:axis] + input.shape[axis + 1 :]
    target = parts.like_input(target) if soft else parts.like_rows(target, row_shape)
    samples = parts.samples(sample_weight, row_shape)
    return parts, row_shape, (parts.input(), target, parts.everywhere(weight), samples)


def loss(function, name, tensors, denominator, dim, options, in_place):
    """`function` is the router's function for plain tensors; these are input, target, weight and sample_weight."""
    soft_allowed = name == "cross_entropy"
    input, target, weight, sample_weight = tensors
    parts, shape, found = _parts_of_loss(input, target, weight, sample_weight, dim, soft_allowed)
    x, target, weight, samples = found
    if soft_allowed:
        x, target = dtypes.in_common_dtype(x, target)

    def counts():
        _, soft, *found = plain.checked_rows(x, target, weight, samples, dim, options, soft_allowed)
        return formulas.row_weights(xp, found[0], soft, *found[1:])

    divisor = parts.divisor(options, denominator, counts)

    def compute(options):
        return function(name, (x, target, weight, samples), divisor, dim, options, in_place)

    return parts.loss(compute, options, dtypes.result_dtype(x, options), shape)


def prediction_stats(function, input, target, dim, options):
    parts, shape, tensors = _parts_of_loss(input, target, None, None, dim, False)
    return tuple(parts.rows(value, shape) for value in function(*tensors[:2], dim, options))


def _parts_of_softmax(x, axis, planned=False):
    """The `_Parts` of whole slices: slices that are spread over processes are brought together."""
    whole = _Parts(x, -1, "slices", planned)
    whole.of_input = [Replicate() if p.is_shard(axis) else p for p in whole.of_input]
    return whole


def softmax(function, x, axis, log):
    parts = _parts_of_softmax(x, axis)
    return parts.like_whole(function(parts.input(), axis, None, log, 0))


def _parts_of_head(tensors, how, planned=False):
    """The `_Parts`, the shapes of the whole head, and this process's part of each tensor."""
    input, linear_weight, target, linear_bias, weight, sample_weight = tensors
    sparse = isinstance(target, _rows.SparseTarget)
    bias = None if linear_bias is None else tuple(linear_bias.shape)
    kind = target if sparse else tuple(target.shape)
    shape = _rows.HeadShape(tuple(input.shape), tuple(linear_weight.shape), bias, kind, how.shift)
    parts = _Parts(input, input.ndim - 1, "features", planned)
    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if isinstance(tensor, DTensor) and not all(p.is_replicate() for p in tensor.placements):
            raise ValueError(
                f"{name} must be replicated, got placements {tuple(tensor.placements)}: redistribute it to Replicate()"
            )
    if how.shift and any(p.is_shard(input.ndim - 2) for p in parts.of_input):
        raise ValueError(
            f"input must not be sharded along time, axis {input.ndim - 2}, where a shift of {how.shift} looks at later "
            "rows: redistribute it along the batch"
        )
    if sparse:
        target = _rows.SparseTarget(*(parts.like_input(tensor) for tensor in (target.classes, target.probs)))
    else:
        target = parts.like_input(target) if shape.soft else parts.like_rows(target, shape.targets)
    samples = parts.samples(sample_weight, shape.targets)
    shared = parts.everywhere(linear_bias), parts.everywhere(weight)
    return parts, shape, (parts.input(), parts.everywhere(linear_weight), target, *shared, samples)


def _counts(tensors, options, how):
    """What the targets of this process count in the mean's divisor."""
    input, linear_weight, target, linear_bias, weight, sample_weight = tensors
    classes, probs = (target.classes, target.probs) if isinstance(target, _rows.SparseTarget) else (None, target)
    whole = input, linear_weight, linear_bias, probs, weight, sample_weight
    return head.counts(whole, head.call_of(whole[:4], Call(options, how=how), classes))


def linear_cross_entropy(function, tensors, denominator, options, how):
    parts, shape, tensors = _parts_of_head(tensors, how)
    divisor = parts.divisor(options, denominator, lambda: _counts(tensors, options, how))

    def compute(options):
        return function(*tensors, divisor, options, how)

    return parts.loss(compute, options, dtypes.result_dtype(tensors[0], options), shape.losses(how.shift))


def linear_token_stats(function, tensors, options, how):
    parts, shape, tensors = _parts_of_head((*tensors, None, None), how)
    found = function(*tensors[:4], options, how)
    return tuple(parts.rows(value, shape.losses(how.shift)) for value in found)


def planned(plan, name, arguments, options, how):
    """What `plan` says of this process's part."""
    a = arguments
    if name.endswith("softmax"):
        dim = 0 if a["dim"] is None and a["input"].ndim in (0, 1, 3) else 1 if a["dim"] is None else a["dim"]
        part = {"input": _parts_of_softmax(a["input"], dim % max(1, a["input"].ndim), True).input()}
    elif how is not None:
        names = "input", "linear_weight", "target", "linear_bias", "weight", "sample_weight"
        part = dict(zip(names, _parts_of_head([a.get(name) for name in names], how, True)[2]))
    else:
        names = "input", "target", "weight", "sample_weight"
        input, target, weight, samples = (a.get(name) for name in names)
        found = _parts_of_loss(input, target, weight, samples, a["dim"], name == "cross_entropy", True)
        part = dict(zip(names, found[2]))
    part = {name: tensor for name, tensor in part.items() if name in a}
    if isinstance(a.get("denominator"), DTensor):
        part["denominator"] = 1.0
    found = plan(name, a | part, options, how)
    return replace(found, reasons=("every process computes the rows that it has", *found.reasons))
