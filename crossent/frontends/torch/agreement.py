"""An error in one process is raised in all of them, so that none waits for those that have left."""

import math

import torch
from torch import distributed
from torch.utils.checkpoint import _StopRecomputationError

from crossent.frontends.torch.modes import outside_transforms

KINDS = (IndexError, TypeError, ValueError)


def together(part, reduce, groups, device):
    """`reduce(part())`: a number of float64, which `reduce` sums over the processes of all `groups`.

    Where `part` raises, that process hands on nan instead, so that all make the same collectives. A sum that is nan
    sends them to ask one another, by one collective more for each group, whether it is an error. If so, all raise that
    of the lowest rank, by which it is named; those of other ranks stand in its notes.
    """
    groups = [group for group in groups if distributed.get_world_size(group) > 1]
    if not groups:
        return reduce(part())  # and nothing is waited for
    error = None
    try:
        value = part()
    except _StopRecomputationError:  # no error: a checkpoint leaves what it repeats, in all processes
        raise
    except Exception as own:
        value, error = torch.full((), math.nan, dtype=torch.float64, device=device), own
    whole = reduce(value)
    if math.isnan(whole.detach().item()):
        raise_together(error, groups)
    return whole


def raise_together(error, groups):
    """All processes of the groups tell one another what they have to raise: this one `error`, or None.

    What all have alike is raised as it is; nothing, if none has anything.
    """
    told = {distributed.get_rank(): None if error is None else _kind_and_message(error)}
    for group in groups:
        found = [{} for _ in range(distributed.get_world_size(group))]
        with outside_transforms():
            distributed.all_gather_object(found, told, group=group)
        told = {rank: one for some in found for rank, one in some.items()}
    if error is not None and len(set(told.values())) == 1:
        raise error
    errors = [one[0](f"rank {rank}: {one[1]}") for rank, one in sorted(told.items()) if one is not None]
    if errors:
        first, *others = errors
        for other in others:
            first.add_note(str(other))
        raise first from error


def _kind_and_message(error):
    """An error of an unusual kind, which other processes may be unable to make, is told in words."""
    for kind in KINDS:
        if isinstance(error, kind):
            return kind, str(error)
    return RuntimeError, f"{type(error).__name__}: {error}"
