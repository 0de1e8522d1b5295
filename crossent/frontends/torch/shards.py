"""Classes that are spread over processes: which of them this one has, and what it hears of the others."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import distributed
from torch.distributed import ProcessGroup, _functional_collectives as collectives
from torch.distributed.device_mesh import DeviceMesh

from crossent._options import integer
from crossent.frontends.torch import namespace
from crossent.frontends.torch.labels import concrete, outside
from crossent.frontends.torch.modes import compiling, dispatch_modes
from crossent.kernels import plain as formulas

# Until PyTorch 2.12 they have other names.
_all_gather = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
_all_gather_now = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


@dataclass(frozen=True)
class ClassShard:
    """The classes that this process has: those from `first` on, of the `classes` of all. The `largest` shard has so
    many, and the `smallest`.

    `group` are the `processes`, as functional collectives take it, and `rank` is this one's number among them.
    `assumed` says how many classes each of them has, if that is still to be seen.
    """

    group: Any
    processes: int
    rank: int
    first: int
    classes: int
    largest: int
    smallest: int
    assumed: int | None = None

    def gathered(self, mine):
        """The tensors of all processes, in their order, along a new first axis.

        What every process makes of them must be the same. Then so are their gradients, of which each process takes its
        own part: the backward pass sends nothing.
        """
        return self._checked(_Gathered.apply(self._with_count(mine), self), mine.shape)

    def _with_count(self, mine):
        """What is sent of a tensor; with the number of classes, if it is still to be seen that all have as many."""
        return mine if self.assumed is None else torch.cat([mine.reshape(-1), mine.new_full((1,), self.assumed)])

    def _checked(self, parts, shape):
        """The tensors of all, after a check of the numbers that `_with_count` has added."""
        if self.assumed is None:
            return parts
        counts = parts[:, -1].detach()
        agree, known = counts == counts[self.rank], concrete(counts)
        if known is None:  # nan is heard by all
            parts = torch.where(agree.all(), parts, torch.nan)
        elif not agree.all():
            raise ValueError(
                f"first_class must be given where the processes of group have different numbers of classes, got "
                f"{[int(count) for count in known]}"
            )
        return parts[:, :-1].reshape(len(parts), *shape)

    def _stacked(self, sums):
        given = [one for one in sums if one is not None]
        dtype = torch.float64 if self.classes > 2**24 else given[0].dtype  # for the numbers of classes
        return torch.stack([one.to(dtype) for one in given])

    def parts_of(self, sums):
        """The sums of all processes, in their order; `sums` are this one's, a named tuple of tensors of one shape."""
        return _unstacked(self.gathered(self._stacked(sums)), sums)

    def merged(self, sums):
        """The `Sums` over the classes of all processes."""
        return formulas.merged(namespace, self.parts_of(sums), namespace.freeze)

    def sent(self, sums):
        """As `merged`, for what is not differentiated, but nothing is waited for until the result is called."""
        mine = self._stacked(sums)
        received = _sent(self._with_count(mine), self)

        def merged():
            return formulas.merged(namespace, _unstacked(self._checked(received(), mine.shape), sums))

        return merged

    def total(self, part):
        """The sum over all processes."""
        return self.gathered(part).sum(0)

    def with_sum_of_gradients(self, tensor):
        """A tensor that is the same in all processes; each makes a part of its gradient."""
        return _WithSumOfGradients.apply(tensor, self) if tensor.requires_grad else tensor

    def own_labels(self, labels, ignore_index, here):
        """The labels as numbers of the classes that are `here`; -1, which is to be ignored, for all others."""
        labels = labels.to(torch.int64)  # first: uint8 counts 156 as -100
        own = labels - self.first
        return torch.where((labels == ignore_index) | (own < 0) | (own >= here), -1, own)

    def own_sparse(self, classes, probs, here):
        """The classes and probabilities of a sparse target that are `here`."""
        bad, classes = outside(classes, self.classes), classes.to(torch.int64) - self.first
        if not here:
            return classes[..., :0], probs[..., :0]
        own = ~outside(classes, here)
        others = torch.where(bad, torch.nan, 0.0)  # a bad class could not be refused
        return torch.where(own, classes, 0), torch.where(own, probs, others.to(probs.dtype))

    def row_weights(self, labels, weight, keep):
        """What each row adds to the mean's divisor, by this process's class weights and those of the others."""
        own = self.own_labels(torch.where(keep != 0, labels, -1), -1, len(weight))
        padded = torch.cat([weight, weight.new_zeros(1)])
        return keep * self.total(padded[own])


def _unstacked(parts, sums):
    """Tuples like `sums`, of the parts that the processes sent."""
    found = []
    for part in parts:
        numbers = iter(part)
        found.append(type(sums)(*(None if one is None else next(numbers).to(one.dtype) for one in sums)))
    return found


def _sent(mine, shard):
    """Send a tensor; what is returned waits for those of all processes."""
    mine, group = mine.unsqueeze(0).contiguous(), shard.group
    if compiling() or dispatch_modes():
        parts = _all_gather(mine, 0, group)
        return lambda: collectives.wait_tensor(parts)
    # Without the operators that graphs need, which take three times as long.
    group = group if isinstance(group, ProcessGroup) else group[0].get_group(group[1])
    parts = mine.new_empty((shard.processes, *mine.shape[1:]))
    work = _all_gather_now(parts, mine, group=group, async_op=True)

    def received():
        work.wait()
        return parts

    return received


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mine, shard):
        ctx.shard = shard
        return _sent(mine, shard)()

    @staticmethod
    def backward(ctx, above):
        if not ctx.shard.smallest and torch.is_grad_enabled():
            # It would differentiate by other steps than the others, and what each of them sends must come in one order.
            raise RuntimeError(
                "the gradient of a loss cannot be differentiated where a process has no classes: spread them over "
                "fewer processes"
            )
        return _Own.apply(above, ctx.shard), None


class _Own(torch.autograd.Function):
    """This process's part of what is the same in all of them."""

    @staticmethod
    def forward(ctx, parts, shard):
        ctx.shard = shard
        return parts[shard.rank].clone()

    @staticmethod
    def backward(ctx, above):
        return _Gathered.apply(above, ctx.shard), None


class _WithSumOfGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, shard):
        ctx.shard = shard
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, above):
        return _Sum.apply(above, ctx.shard), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part, shard):
        ctx.shard = shard
        return collectives.wait_tensor(collectives.all_reduce(part.contiguous(), "sum", shard.group))

    @staticmethod
    def backward(ctx, above):
        return _WithSumOfGradients.apply(above, ctx.shard), None


def planned_shard(group, here):
    """The `ClassShard` of a process with the classes that are `here`, if all have as many."""
    if isinstance(group, DeviceMesh) and group.ndim == 1:
        group = group.get_group()
    if not isinstance(group, ProcessGroup):
        raise TypeError(f"group must be a process group or a mesh of one axis, got {group!r}")
    rank, processes = distributed.get_rank(group), distributed.get_world_size(group)
    return ClassShard(group, processes, rank, rank * here, processes * here, here, here, assumed=here)


def shard_of(spread, here, device, at_once=False):
    """The `ClassShard` of a process with the classes that are `here`. `spread` is one, or what a caller says of it: the
    group, and the number of its first class or None.

    Where the processes' classes begin is sent if it is given. Else it is seen with the sums whether all have as many;
    or `at_once`, where that would be too late: how many rows make a chunk depends on it.
    """
    if isinstance(spread, ClassShard):
        return spread
    group, first_class = spread
    shard = planned_shard(group, here)
    if first_class is not None:
        return _shard_from(shard, integer("first_class", first_class), here, device)
    if not at_once or compiling():  # a graph cannot depend on what is heard
        return shard
    shard.gathered(torch.zeros(0, device=device))
    return replace(shard, assumed=None)


def _shard_from(shard, first_class, here, device):
    """The shard whose classes begin at this number, once all have said where theirs do."""
    shard = replace(shard, assumed=None)
    parts = shard.gathered(torch.tensor([first_class, here], device=device)).tolist()
    end = 0
    for first, count in sorted(parts):
        if first != end:
            said = ", ".join(f"{count} from {first} on" for first, count in parts)
            raise ValueError(f"first_class must leave no class out and have none twice, got {said}")
        end += count
    counts = [count for _, count in parts]
    return replace(shard, first=first_class, classes=end, largest=max(counts), smallest=min(counts))
