"""What calls are going to do whose rows or classes are spread over processes."""

from dataclasses import replace

from torch.distributed.tensor import DTensor

from crossent import _rows
from crossent._plan import PLAIN
from crossent.frontends import _plans
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.distributed import parts_of_head, parts_of_loss, parts_of_softmax
from crossent.frontends.torch.dtypes import compute_dtype
from crossent.frontends.torch.shards import planned_shard
from crossent.kernels import TokenSums

_OF_LOSS = "input", "target", "weight", "sample_weight"
_OF_HEAD = "input", "linear_weight", "target", "linear_bias", "weight", "sample_weight"
_ANY_NUMBER = 2**63 - 1  # of classes: how many the others have is not known before something is sent


def of_dtensors(plan, name, arguments, options, how):
    """What `plan` says of this process's part."""
    a = arguments
    if name.endswith("softmax"):
        axis = _rows.planned_softmax_axis(a["input"].ndim, a["dim"])
        parts, classes = parts_of_softmax(a["input"], axis, True), a["input"].shape[axis]
        part = {"input": parts.input()}
    elif how is not None:
        parts, shape, tensors = parts_of_head([a.get(name) for name in _OF_HEAD], how, True)
        part, classes = dict(zip(_OF_HEAD, tensors)), shape.classes
        if parts.class_dim is not None:
            part["weight"] = parts.by_class(part["weight"])
    else:
        input, target, weight, samples = (a.get(name) for name in _OF_LOSS)
        parts, _, tensors = parts_of_loss(input, target, weight, samples, a["dim"], name == "cross_entropy", True)
        part, classes = dict(zip(_OF_LOSS, tensors)), a["input"].shape[parts.axis]
    a = a | {name: tensor for name, tensor in part.items() if name in a}
    if isinstance(a.get("denominator"), DTensor):
        a["denominator"] = 1.0
    reasons = ["every process computes the rows that it has"]
    if parts.class_dim is not None:
        return _of_shard(plan, name, a, parts.shard(classes), options, how, reasons)
    found = plan(name, a, options, how)
    return replace(found, reasons=(*reasons, *found.reasons))


def of_group(plan, name, arguments, options, how):
    """What `plan` says of plain tensors that have this process's part of the classes."""
    a, input, reasons = arguments | {"group": None}, arguments["input"], []
    here = len(a["linear_weight"]) if how is not None else input.shape[_rows.class_axis(input.ndim, a["dim"])]
    shard = planned_shard(arguments["group"], here)
    if a["first_class"] is not None:
        reasons.append("the processes send where their classes begin, since first_class is given")
        shard = replace(shard, classes=_ANY_NUMBER)
    return _of_shard(plan, name, a, shard, options, how, reasons)


def _of_shard(plan, name, a, shard, options, how, reasons):
    """What it says of this process's classes, which the arguments `a` have alone."""

    def sent(numbers, times):
        size = compute_dtype(a["input"].dtype).itemsize * numbers
        return f"its classes are spread over {shard.processes} processes, which send {size} bytes a row, {times}"

    input = a["input"]
    if name.endswith("softmax"):
        x = input if a["dtype"] is None else input.to(a["dtype"])
        found = _plans.of_softmax(TORCH, name, x, PLAIN, (sent(3, "once, and a sum in the backward pass"),))
    elif name == "prediction_stats":
        found = _plans.of_prediction(TORCH, name, input, a["target"], a["dim"], (sent(6, "in two parts"),))
    elif name == "nll_loss":
        reasons.append(f"its classes are spread over {shard.processes} processes, whose losses are added up")
        found = plan(name, a, options, how)
    else:
        if name == "linear_token_stats":
            reasons.append(sent(1 + len(TokenSums._fields), "in two parts"))
        else:
            reasons.append(sent(_numbers_sent(a["target"], a["weight"], options), "once"))
        if how is None:
            found = _plans.of_stages(TORCH, name, input, a["target"], a["dim"])
        else:
            reasons.append("the gradient of input is the sum of theirs")
            target = _own_target(a["target"], shard, a["linear_weight"].shape[0])
            found = plan(name, a | {"shard": shard, "target": target}, options, how)
    return replace(found, reasons=(*reasons, *found.reasons))


def _numbers_sent(target, weight, options):
    """How many numbers a row are sent for a loss."""
    soft = isinstance(target, _rows.SparseTarget) or target.is_floating_point()
    return 3 + (weight is not None and not soft) + 2 * (soft or options.label_smoothing > 0.0)


def _own_target(target, shard, here):
    """A sparse target's part that is of the classes that are `here`; any other target as it is."""
    if not isinstance(target, _rows.SparseTarget):
        return target
    return _rows.SparseTarget(*shard.own_sparse(target.classes, target.probs, here))
