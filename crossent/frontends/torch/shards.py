"""Classes that are spread over processes: which of them this one has, and what it hears of the others."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.distributed import ProcessGroup, _functional_collectives as collectives
from torch.distributed.device_mesh import DeviceMesh

from crossent._call import Spread
from crossent._options import integer
from crossent.frontends.torch import namespace
from crossent.frontends.torch.agreement import raise_together
from crossent.frontends.torch.labels import concrete, outside
from crossent.frontends.torch.modes import compiling, dispatch_modes, grad_enabled, outside_transforms, transformed
from crossent.kernels import plain as formulas

_WORDS = 2
_UNSAID = -(2**63)
_UNLIKE = "targets, weights and options must be alike in all processes of group, got "

# Until PyTorch 2.12 they have other names.
_all_gather = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
_all_gather_now = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


@dataclass(frozen=True)
class ClassShard:
    """The classes that this process has: those from `first` on, of the `classes` of all. The `largest` shard has so
    many, and the `smallest`.

    `group` are the `processes`, as functional collectives take it, and `rank` is this one's number among them.
    `assumed` says how many classes each of them has, if that is still to be seen; `call` is then what the caller said.
    """

    group: Any
    processes: int
    rank: int
    first: int
    classes: int
    largest: int
    smallest: int
    assumed: int | None = None
    call: Spread | None = None

    def gathered(self, mine):
        """The tensors of all processes, in their order, along a new first axis.

        What every process makes of them must be the same. Then so are their gradients, of which each process takes its
        own part: the backward pass sends nothing.
        """
        return self._checked(_linear(_Gathered, self._with_words(mine), self), mine)

    def _with_words(self, mine):
        """What is sent of a tensor; with `_WORDS` numbers, if it is still to be seen that all have as many classes and
        send as many numbers for each row.
        """
        if self.assumed is None:
            return mine
        if self.call is not None:
            self.call.answered = True
        return torch.cat([mine.reshape(-1), mine.new_full((1,), self.assumed), mine.new_full((1,), len(mine))])

    def _checked(self, parts, mine):
        """The tensors of all, after a check of the numbers that `_with_words` has added to `mine`."""
        if self.assumed is None:
            return parts
        words = parts[:, -_WORDS:].detach()
        known = concrete(words)
        if known is None:  # nan is heard by all
            parts = torch.where((words == words[self.rank]).all(), parts, torch.nan)
        else:
            with outside_transforms():
                self.refuse_others(known, len(mine))
        return parts[:, :-_WORDS].reshape(len(parts), *mine.shape)

    def refuse_others(self, words, numbers, error=None):
        """Refuse what does not fit together; `error` is what this process has to raise, if anything."""
        if bool((words == words.new_tensor([self.assumed, numbers])).all()):
            return
        classes, of_rows = words.reshape(-1, _WORDS).T.tolist()
        _refuse_other_classes(classes)
        if any(math.isnan(one) for one in of_rows):
            raise_together(error, [self.group])
        raise ValueError(f"{_UNLIKE}{[int(one) for one in of_rows]} numbers to send for each row")

    def dtype_of(self, dtype):
        """In which dtype sums are sent that have this one: numbers of classes are exact in it."""
        return torch.float64 if self.classes > 2**24 else dtype

    def _stacked(self, sums):
        given = [one for one in sums if one is not None]
        dtype = self.dtype_of(given[0].dtype)
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
        received = _sent(self._with_words(mine), self)

        def merged():
            return formulas.merged(namespace, _unstacked(self._checked(received(), mine), sums))

        return merged

    def total(self, part):
        """The sum over all processes."""
        return self.gathered(part).sum(0)

    def with_sum_of_gradients(self, tensor):
        """A tensor that is the same in all processes; each makes a part of its gradient."""
        return _linear(_WithSumOfGradients, tensor, self) if tensor.requires_grad else tensor

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
    _refuse_batched(mine)
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


def _refuse_batched(tensor):
    """Refuse what the older vmap makes, which sends nothing and tells nobody."""
    if not compiling() and not torch._C._has_storage(tensor):
        raise RuntimeError(
            "is_grads_batched must not be given where classes are spread over a group: take torch.func.vmap"
        )


class _Linear(torch.autograd.Function):
    """A linear function of a tensor and a shard, for function transforms too."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.shard = inputs


class _Gathered(_Linear):
    @staticmethod
    def forward(mine, shard):
        return _sent(mine, shard)()

    @staticmethod
    def backward(ctx, above):
        if not ctx.shard.smallest and torch.is_grad_enabled():
            # It would differentiate by other steps than the others, and what each of them sends must come in one order.
            raise RuntimeError(
                "the gradient of a loss cannot be differentiated where a process has no classes, nor made by "
                "torch.func: spread them over fewer processes"
            )
        return _linear(_Own, above, ctx.shard), None

    @staticmethod
    def vmap(info, in_dims, mine, shard):
        return _linear(_Gathered, mine.movedim(in_dims[0], 0), shard), 1


class _Own(_Linear):
    """This process's part of what is the same in all of them."""

    @staticmethod
    def forward(parts, shard):
        return parts[shard.rank].clone()

    @staticmethod
    def backward(ctx, above):
        return _linear(_Gathered, above, ctx.shard), None

    @staticmethod
    def vmap(info, in_dims, parts, shard):
        return _linear(_Own, parts.movedim(in_dims[0], 1), shard), 0


class _WithSumOfGradients(_Linear):
    @staticmethod
    def forward(tensor, shard):
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, above):
        return _linear(_Sum, above, ctx.shard), None

    @staticmethod
    def vmap(info, in_dims, tensor, shard):
        return _linear(_WithSumOfGradients, tensor, shard), in_dims[0]


class _Sum(_Linear):
    @staticmethod
    def forward(part, shard):
        _refuse_batched(part)
        return collectives.wait_tensor(collectives.all_reduce(part.contiguous(), "sum", shard.group))

    @staticmethod
    def backward(ctx, above):
        return _linear(_WithSumOfGradients, above, ctx.shard), None

    @staticmethod
    def vmap(info, in_dims, part, shard):
        return _linear(_Sum, part, shard), in_dims[0]


def _with_jvp(function):
    """The function with its derivative in forward mode, which is itself; the compiler takes none that has one."""

    def jvp(ctx, tangent, _):
        return found.apply(tangent, ctx.shard)

    found = type(function)(function.__name__, (function,), {"jvp": staticmethod(jvp)})
    return found


_IN_FORWARD_MODE = {function: _with_jvp(function) for function in (_Gathered, _Own, _WithSumOfGradients, _Sum)}


def _linear(function, tensor, shard):
    if not (compiling() or transformed() or (tensor.requires_grad and grad_enabled())):
        return function.forward(tensor, shard)  # no node, which would bind its arguments by name
    return (function if compiling() else _IN_FORWARD_MODE[function]).apply(tensor, shard)


ANY_NUMBER = 2**63 - 1  # of classes: how many the others have is not known before something is sent


def planned_shard(group, here):
    """The `ClassShard` of a process with the classes that are `here`, if all have as many."""
    if isinstance(group, DeviceMesh) and group.ndim == 1:
        group = group.get_group()
    if not isinstance(group, ProcessGroup):
        raise TypeError(f"group must be a process group or a mesh of one axis, got {group!r}")
    rank, processes = distributed.get_rank(group), distributed.get_world_size(group)
    return ClassShard(group, processes, rank, rank * here, processes * here, here, here, assumed=here)


class Opening(NamedTuple):
    """What a process tells the others before it sends sums, where all must know it: the number of its first class, or
    `_UNSAID`; how many it has; how many targets count, how many numbers it will send for each, and the lowest and the
    highest label or class among them.
    """

    first: int
    here: int
    targets: int
    numbers: int
    lowest: int
    highest: int


BYTES_OF_OPENING = 8 * len(Opening._fields)
_FAILED = Opening(_UNSAID, -1, 0, 0, 0, 0)


def shard_of(spread, here, device, check, at_once=False):
    """The `ClassShard` of a process with the classes that are `here`, where `spread` is what its caller says of them.

    The processes tell one another where their classes begin if that is given. Else it is seen with the sums whether all
    have as many; or `at_once`, where that would be too late: how many rows make a chunk depends on it. Then
    `check(shard)` makes this process's checks, and returns all but the first two fields of its `Opening`. As long as
    the shard's number of classes is not known, and `ANY_NUMBER`, it leaves labels alone that are too low.
    """
    shard, first = planned_shard(spread.group, here), _UNSAID
    if spread.first_class is not None:
        first = integer("first_class", spread.first_class)
    elif compiling():  # a graph cannot depend on what is heard
        return shard
    elif not at_once or dispatch_modes():
        return replace(shard, call=spread)
    shard = replace(shard, classes=ANY_NUMBER, assumed=None)
    return _opened(shard, Opening(first, here, *check(shard)), check, spread, device)


def _opened(shard, mine, check, spread, device):
    parts = _told(mine, shard, device, spread)
    if any(part.here < 0 for part in parts):
        raise_together(None, [shard.group])
    shard = _fitting(shard, mine, parts)
    if not all(part.lowest >= 0 and part.highest < shard.classes for part in parts):
        raise_together(_error_of(check, shard), [shard.group])
    return shard


def _told(mine, shard, device, spread):
    with outside_transforms():
        mine = torch.tensor(mine, device=device)  # an error for a number of more than 64 bits
        spread.answered = True
        return [Opening(*part) for part in _sent(mine, shard)().tolist()]


def _error_of(check, shard):
    try:
        check(shard)
    except Exception as error:
        return error
    return None


def _fitting(shard, mine, parts):
    """The shard, once all have said what they have."""
    counts = [part.here for part in parts]
    unsaid = [part.first == _UNSAID for part in parts]
    if any(unsaid) and not all(unsaid):
        raise ValueError("first_class must be given in all processes of group, or in none")
    if all(unsaid):
        _refuse_other_classes(counts)
        shard = replace(shard, classes=sum(counts))
    else:
        end = 0
        for part in sorted(parts):
            if part.first != end:
                said = ", ".join(f"{part.here} from {part.first} on" for part in parts)
                raise ValueError(f"first_class must leave no class out and have none twice, got {said}")
            end += part.here
        shard = replace(shard, first=mine.first, classes=end, largest=max(counts), smallest=min(counts))
    if len({(part.targets, part.numbers) for part in parts}) > 1:
        said = [part.targets for part in parts], [part.numbers for part in parts]
        raise ValueError(f"{_UNLIKE}{said[0]} targets that count, and {said[1]} numbers to send for each")
    return shard


def _refuse_other_classes(counts):
    if len(set(counts)) > 1:
        raise ValueError(
            f"first_class must be given where the processes of group have different numbers of classes, got "
            f"{[int(count) for count in counts]}"
        )


def answer(error, spread, shard, sums, device):
    """Raise in all processes an error that this one has before it has sent anything. It takes part in what the others
    send first: numbers like the `sums`, of each call that a transform makes of one, or an `Opening` if these are
    None.
    """
    if sums is None:
        _told(_FAILED, shard, device, spread)
    else:
        # The number of classes is right; if others have other numbers of them, it is that which all raise.
        with outside_transforms():
            words = sums.new_tensor([shard.assumed, torch.nan]).expand(*sums.shape[:-1], _WORDS)
            parts = _sent(torch.cat([torch.full_like(sums, torch.nan), words], -1), shard)()
            shard.refuse_others(parts[..., -_WORDS:], 0, error)
    raise_together(error, [shard.group])
