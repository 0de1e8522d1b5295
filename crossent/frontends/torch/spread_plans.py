"""What calls are going to do whose rows or classes are spread over processes."""

from dataclasses import replace

from torch.distributed.tensor import DTensor

from crossent import _rows
from crossent._plan import PLAIN
from crossent.frontends import _plans
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.distributed import parts_of_head, parts_of_loss, parts_of_softmax
from crossent.frontends.torch.dtypes import compute_dtype
from crossent.frontends.torch.shards import ANY_NUMBER, BYTES_OF_OPENING, planned_shard
from crossent.frontends.torch.spread_calls import NUMBERS_OF_TOKENS, numbers_of_loss

_OF_LOSS = "input", "target", "weight", "sample_weight"
_OF_HEAD = "input", "linear_weight", "target", "linear_bias", "weight", "sample_weight"


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
    reasons = ["every process computes the rows that it has", *_of_rows(parts, name, a, options)]
    if parts.class_dim is not None:
        return _of_shard(plan, name, a, parts.shard(classes), options, how, reasons)
    found = plan(name, a, options, how)
    return replace(found, reasons=(*reasons, *found.reasons))


def _of_rows(parts, name, a, options):
    """What is sent because rows are spread."""
    if parts.processes_of_rows == 1 or name.endswith("softmax"):
        return ()
    if options.reduction == "none":
        sent = "8 bytes, by which an error in one is raised in all"
    elif options.reduction == "sum" or a["denominator"] is not None:
        sent = "8 bytes, of which the loss is the sum"
    else:
        sent = "16 bytes, whose sums are the loss and what it is divided by"
    return (f"its rows are spread over {parts.processes_of_rows} processes, which send {sent}",)


def of_group(plan, name, arguments, options, how):
    """What `plan` says of plain tensors that have this process's part of the classes."""
    a, input, reasons = arguments | {"group": None}, arguments["input"], []
    here = len(a["linear_weight"]) if how is not None else input.shape[_rows.class_axis(input.ndim, a["dim"])]
    shard = planned_shard(arguments["group"], here)
    if a["first_class"] is not None:
        shard = replace(shard, classes=ANY_NUMBER)
    if a["first_class"] is not None or how is not None:
        reasons.append(f"each process says first how many classes and targets it has, in {BYTES_OF_OPENING} bytes")
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
            reasons.append(sent(NUMBERS_OF_TOKENS, "in two parts"))
        else:
            soft = isinstance(a["target"], _rows.SparseTarget) or a["target"].is_floating_point()
            reasons.append(sent(numbers_of_loss(soft, a["weight"], options), "once"))
        if how is None:
            found = _plans.of_stages(TORCH, name, input, a["target"], a["dim"])
        else:
            reasons.append("the gradient of input is the sum of theirs")
            target = _own_target(a["target"], shard, a["linear_weight"].shape[0])
            found = plan(name, a | {"shard": shard, "target": target}, options, how)
    return replace(found, reasons=(*reasons, *found.reasons))


def _own_target(target, shard, here):
    """A sparse target's part that is of the classes that are `here`; any other target as it is."""
    if not isinstance(target, _rows.SparseTarget):
        return target
    return _rows.SparseTarget(*shard.own_sparse(target.classes, target.probs, here))
