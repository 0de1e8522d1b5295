"""Operators that `torch.compile` and `torch.export` carry through their graphs as they are."""

from dataclasses import fields

import torch
from torch._decomp import meta_table, register_decomposition

from crossent.frontends.torch.labels import refuse_bad_labels

library = torch.library.Library("crossent", "DEF")
ops = torch.ops.crossent
# Without this tag old compilers copy tensors that are not contiguous.
_STRIDES_KEPT = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)


def define(name, arguments, results, kernel, fake, backward=None, setup=None, on=("CPU",)):
    """An operator that runs `kernel` on CPUs, or on these devices. `fake` makes its results without their values. If
    there is a `backward`, it is the operator's derivative, from what `setup` keeps.
    """
    library.define(f"{name}({arguments}) -> {results}", tags=(_STRIDES_KEPT,))
    for device in on:
        library.impl(name, kernel, device)
    torch.library.register_fake(f"crossent::{name}", fake, lib=library)
    if backward is not None:
        torch.library.register_autograd(f"crossent::{name}", backward, setup_context=setup, lib=library)
    return getattr(ops, name)


_IN_SCHEMAS = {str: "str", int: "int", bool: "bool", float: "float", int | None: "int?", float | None: "float?"}


def carried(kind):
    """The names of the options that operators carry."""
    return tuple(option.name for option in fields(kind) if option.metadata.get("carried", True))


def schema(kind):
    """These options as an operator's schema has them: `str reduction, int ignore_index, ...`"""
    types = {option.name: option.type for option in fields(kind)}
    return ", ".join(f"{_IN_SCHEMAS[types[name]]} {name}" for name in carried(kind))


# Labels on their way to plain operations. A compiler does not see their values, so an operator checks them.


def _checked_labels(labels, counts, classes, ignore_index):
    refuse_bad_labels(labels, counts, classes, ignore_index)
    return labels.clone()


def _fake_checked_labels(labels, counts, classes, ignore_index):
    return torch.empty_like(labels)


checked_labels = define(
    "checked_labels",
    "Tensor labels, Tensor counts, int classes, int ignore_index",
    "Tensor",
    _checked_labels,
    _fake_checked_labels,
)


@register_decomposition(checked_labels.default)
def _decompose_checked_labels(labels, counts, classes, ignore_index):
    return labels.clone()  # the operations after the operator look for bad labels too


meta_table[checked_labels.default] = _fake_checked_labels


@torch.library.register_vmap("crossent::checked_labels", lib=library)
def _batched_checked_labels(info, in_dims, labels, counts, classes, ignore_index):
    batches = [
        tensor.expand(info.batch_size, *tensor.shape) if at is None else tensor.movedim(at, 0)
        for tensor, at in zip((labels, counts), in_dims)
    ]
    return checked_labels(*batches, classes, ignore_index), 0
