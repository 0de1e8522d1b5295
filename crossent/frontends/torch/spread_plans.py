"""What calls are going to do whose rows or classes are spread over processes."""

from dataclasses import replace

from torch.distributed import get_world_size
from torch.distributed.tensor import DTensor

from crossent import _rows
from crossent.frontends import _plans
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.distributed import parts_of_head, parts_of_loss, parts_of_softmax
from crossent.frontends.torch.dtypes import compute_dtype
from crossent.frontends.torch.shards import planned_shard

_OF_LOSS = "input", "target", "weight", "sample_weight"
_OF_HEAD = "input", "linear_weight", "target", "linear_bias", "weight", "sample_weight"


def _numbers_sent(target, weight, options):
    """How many numbers a row are sent where the classes of a loss are spread."""
    soft = isinstance(target, _rows.SparseTarget) or target.is_floating_point()
    return 3 + (weight is not None) + 2 * (soft or options.label_smoothing > 0.0)


def _of_classes(processes, input, target, weight, options):
    size = compute_dtype(input.dtype).itemsize * _numbers_sent(target, weight, options)
    return f"its classes are spread over {processes} processes, which send {size} bytes a row, once"


_OF_INPUT = "the gradient of input is the sum of theirs"


def of_dtensors(plan, name, arguments, options, how):
    """What `plan` says of this process's part."""
    a, reasons = arguments, ["every process computes the rows that it has"]
    if name.endswith("softmax"):
        axis = _rows.planned_softmax_axis(a["input"].ndim, a["dim"])
        part = {"input": parts_of_softmax(a["input"], axis, True).input()}
    elif how is not None:
        parts, shape, tensors = parts_of_head([a.get(name) for name in _OF_HEAD], how, True)
        part = dict(zip(_OF_HEAD, tensors))
        if parts.class_dim is not None:
            shard = parts.shard(shape.classes)
            part["weight"], a = parts.by_class(part["weight"]), a | {"shard": shard}
            part["target"] = _own_target(part["target"], shard, tensors[1].shape[0])
            processes = parts.mesh.size(parts.class_dim)
            reasons += [_of_classes(processes, part["input"], part["target"], part["weight"], options), _OF_INPUT]
    else:
        input, target, weight, samples = (a.get(name) for name in _OF_LOSS)
        is_loss = name != "prediction_stats"
        found = parts_of_loss(input, target, weight, samples, a["dim"], name == "cross_entropy", True, int(is_loss))
        parts, part = found[0], dict(zip(_OF_LOSS, found[2]))
        processes = 1 if parts.class_dim is None else parts.mesh.size(parts.class_dim)
        if processes > 1 and name == "nll_loss":
            reasons.append(f"its classes are spread over {processes} processes, whose losses are added up")
        elif processes > 1:
            reasons.append(_of_classes(processes, part["input"], part["target"], weight, options))
            found = _plans.of_stages(TORCH, name, part["input"], part["target"], a["dim"])
            return replace(found, reasons=(*reasons, *found.reasons))
    part = {name: tensor for name, tensor in part.items() if name in a}
    if isinstance(a.get("denominator"), DTensor):
        part["denominator"] = 1.0
    found = plan(name, a | part, options, how)
    return replace(found, reasons=(*reasons, *found.reasons))


def of_group(plan, name, arguments, options, how):
    """What `plan` says of plain tensors that have this process's part of the classes."""
    a, input = arguments | {"group": None}, arguments["input"]
    here = len(a["linear_weight"]) if how is not None else input.shape[_rows.class_axis(input.ndim, a["dim"])]
    shard, reasons = planned_shard(arguments["group"], here), []
    reasons.append(_of_classes(get_world_size(shard.group), input, a["target"], a["weight"], options))
    if a["first_class"] is not None:
        reasons.append("the processes send where their classes begin, since first_class is given")
    if how is None:
        found = _plans.of_stages(TORCH, name, input, a["target"], a["dim"])
    else:
        reasons.append(_OF_INPUT)
        found = plan(name, a | {"shard": shard, "target": _own_target(a["target"], shard, here)}, options, how)
    return replace(found, reasons=(*reasons, *found.reasons))


def _own_target(target, shard, here):
    """A sparse target's part that is of the classes that are `here`; any other target as it is."""
    if not isinstance(target, _rows.SparseTarget):
        return target
    return _rows.SparseTarget(*shard.own_sparse(target.classes, target.probs, here))
