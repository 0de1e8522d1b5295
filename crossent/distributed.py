"""The mean over everything that is learned from: all processes, and all steps whose gradients are added up.

    import crossent.distributed

It needs PyTorch.
"""

import torch
from torch import distributed

from crossent._options import integer, whole_number
from crossent.frontends.torch import labels as of_rows, namespace as xp
from crossent.frontends.torch.agreement import together
from crossent.frontends.torch.checks import is_distributed
from crossent.kernels import plain as formulas

__all__ = ["denominator"]


def denominator(
    labels, ignore_index=-100, weight=None, sample_weight=None, *, group=None, steps=1, averaged_over=None
) -> torch.Tensor:
    """What each process divides its sum of losses by, so that all of them together learn from one mean.

    Where rows are spread over processes, or come in several steps, the mean of each part is not part of a mean: a row
    of a part with few targets would count more than others. The mean of all is

        sum of all losses / sum of all c,    c = s * w_y for a label y, 0 where it is ignored

    with the class weight w_y and the sample weight s of its row, each 1 where there are none. Whoever averages the
    gradients of R processes, as DistributedDataParallel and fully_shard do, and of the steps, as trainers that divide
    the loss by their number do, divides once more. So this is

        D = sum of all c / (R * steps)

    and `crossent.cross_entropy(logits, labels, denominator=D)` in every process and step gives the gradient of the mean
    of all. The sum of the processes' and steps' losses, divided by R * steps, is that mean.

    Args:
        labels: this process's labels, a tensor of any shape, or a list of those of all steps whose gradients are added
            up. They may be empty.
        ignore_index: the label that does not count, as in the loss.
        weight: the class weights, of shape (C,), if the loss has any. Labels must then be below C.
        sample_weight: how much each label counts, of a shape that broadcasts to the labels'; a list if they are one.
        group: the processes with different rows, those of data and context parallel training: a process group, or a
            mesh of any number of axes; by default all. Without torch.distributed, or before it is initialised, there is
            one process.
        steps: by how many steps the gradients are averaged: 1 where they are added up, which is what PyTorch does;
            the number of accumulation steps where the loss is divided by it, as by Lightning and accelerate.
        averaged_over: by how many processes the gradients are averaged, by default those of `group`; 1 where they are
            added up.

    Returns a 0-dimensional tensor of float64 on the labels' device, the same bits in every process; 1 where nothing
    counts, so that the loss and its gradients are 0. One number is sent, of a mesh one for each axis. Nothing is
    differentiated.

    Raises a TypeError for labels that are no integers, a ValueError for weights that do not fit them, and an IndexError
    for a label that `weight` has no entry for. What one process has to raise is raised in all of the group, with the
    rank of the one that has it, so that none waits for it.

    >>> import torch, crossent, crossent.distributed
    >>> logits, labels = torch.zeros(4, 3), torch.tensor([0, 2, -100, 1])
    >>> count = crossent.distributed.denominator(labels)
    >>> count
    tensor(3., dtype=torch.float64)
    >>> parts = [crossent.cross_entropy(logits[i : i + 2], labels[i : i + 2], denominator=count) for i in (0, 2)]
    >>> torch.allclose(sum(parts), crossent.cross_entropy(logits, labels))
    True
    """
    groups, processes = _groups_of(group)

    def part():
        whole_number("steps", steps, 1)
        if averaged_over is not None:
            whole_number("averaged_over", averaged_over, 1)
        return _counted_in_steps(labels, integer("ignore_index", ignore_index), weight, sample_weight)

    def reduce(counted):
        counted = counted.to(device)
        for one in groups:
            distributed.all_reduce(counted, group=one)
        return counted

    device = _where_to_send(groups[0]) if groups else None
    divisor = together(part, reduce, groups, device) / ((averaged_over or processes) * steps)
    home = labels[0].device if isinstance(labels, list | tuple) else labels.device
    return torch.where(divisor == 0, 1.0, divisor).to(home)


def _groups_of(group):
    """The groups over which to sum one after the other, and how many processes they are together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [], 1
    from torch.distributed.device_mesh import DeviceMesh

    is_mesh = isinstance(group, DeviceMesh)
    processes = group.size() if is_mesh else distributed.get_world_size(group)
    if processes < 1 or (is_mesh and group.get_coordinate() is None):
        raise ValueError("group must be one of those that this process belongs to")
    return group.get_all_groups() if is_mesh else [group], processes


def _where_to_send(group):
    """The kind of device that the group's processes send from, wherever the labels of each are: the CPU if they can,
    since the number is read there.
    """
    kinds = [pair.partition(":")[0] for pair in distributed.get_backend_config(group).split(",")]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])


def _counted_in_steps(labels, ignore_index, weight, sample_weight):
    """What the labels of this process count."""
    is_list = isinstance(labels, list | tuple)
    parts, samples = (labels, sample_weight) if is_list else ([labels], [sample_weight])
    if not parts:
        raise ValueError("labels must be a tensor or a list of at least one, got an empty list")
    if samples is None:
        samples = [None] * len(parts)
    if not isinstance(samples, list | tuple):
        raise TypeError(f"sample_weight must be a list where labels are one, got {type(samples).__name__}")
    if len(samples) != len(parts):
        raise ValueError(f"sample_weight must have as many parts as labels, {len(parts)}, got {len(samples)}")
    counted = [_counted(part, ignore_index, weight, some) for part, some in zip(parts, samples)]
    return sum(some.to(counted[0].device) for some in counted)


def _counted(labels, ignore_index, weight, sample_weight):
    """What the labels of one step count."""
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.dtype is torch.bool:
        got = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise TypeError(f"labels must be a tensor of integers, got {got}")
    for name, tensor in (("labels", labels), ("weight", weight), ("sample_weight", sample_weight)):
        if tensor is not None and not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if is_distributed(tensor):
            raise TypeError(f"{name} must be this process's own, got a DTensor: give {name}.to_local()")
    labels = labels.long()  # uint8 counts 156 as -100
    keep = torch.ones(labels.shape, dtype=torch.float64, device=labels.device)
    if sample_weight is not None:
        keep = of_rows.samples_of_rows(sample_weight, labels.shape).double()
    keep = torch.where(labels == ignore_index, 0.0, keep)
    if weight is not None:
        if weight.ndim != 1:
            raise ValueError(f"weight must have one entry for each class, got shape {tuple(weight.shape)}")
        of_rows.refuse_bad_labels(labels, keep, len(weight), ignore_index)
        weight = weight.detach().double()
    return formulas.row_weights(xp, labels, False, weight, keep.detach()).sum()
