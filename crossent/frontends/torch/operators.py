"""Operators that `torch.compile` and `torch.export` carry through their graphs as they are."""

import torch

from crossent.frontends.torch.checks import refuse_bad_labels

library = torch.library.Library("crossent", "DEF")
operators = torch.ops.crossent
# Else old compilers copy what is not contiguous.
_STRIDES_KEPT = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)


def define(name, arguments, results, kernel, fake, backward=None, setup=None):
    """An operator with a kernel for CPUs and `fake`, which makes the results without their values; where there is a
    `backward` it is differentiated by that, from what `setup` keeps.
    """
    library.define(f"{name}({arguments}) -> {results}", tags=(_STRIDES_KEPT,))
    library.impl(name, kernel, "CPU")
    torch.library.register_fake(f"crossent::{name}", fake, lib=library)
    if backward is not None:
        torch.library.register_autograd(f"crossent::{name}", backward, setup_context=setup, lib=library)
    return getattr(operators, name)


# Labels on their way to plain operations, of which a compiler does not see the values.


def _checked_labels(labels, counts, classes, ignore_index):
    refuse_bad_labels(labels, counts, classes, ignore_index)
    return labels.clone()


def fake_checked_labels(labels, counts, classes, ignore_index):
    return torch.empty_like(labels)


checked_labels = define(
    "checked_labels",
    "Tensor labels, Tensor counts, int classes, int ignore_index",
    "Tensor",
    _checked_labels,
    fake_checked_labels,
)


@torch.library.register_vmap("crossent::checked_labels", lib=library)
def _batched_checked_labels(info, in_dims, labels, counts, classes, ignore_index):
    batches = [
        tensor.expand(info.batch_size, *tensor.shape) if at is None else tensor.movedim(at, 0)
        for tensor, at in zip((labels, counts), in_dims)
    ]
    return checked_labels(*batches, classes, ignore_index), 0
