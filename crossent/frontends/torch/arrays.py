"""PyTorch's tensors as memory: addresses, new tensors, and what `_problem` needs of an array library."""

import math
from functools import partial

import torch

from crossent.frontends._memory import LENT_FROM, block, is_small
from crossent.frontends._problem import Arrays
from crossent.frontends.torch import namespace
from crossent.frontends.torch.dtypes import INTEGERS, STORAGES
from crossent.frontends.torch.modes import IsTracedError, tracer

# An address to read from. Asked for an address to write to, a copy-on-write tensor takes memory of its own; PyTorch 2.6
# has only that one.
address = getattr(torch.Tensor, "const_data_ptr", torch.Tensor.data_ptr)
strides = torch.Tensor.stride


def overlaps(tensor):
    """Whether elements may share memory."""
    return torch._debug_has_internal_overlap(tensor) != 0  # pyright: ignore[reportPrivateImportUsage]


class _Numbers(dict):
    """dtype -> a tensor of one number, made on first use: during an import a mode may be on that makes it fake."""

    def __missing__(self, dtype):
        made = self[dtype] = torch.zeros((), dtype=dtype, device="cpu")
        return made


like_numbers = _Numbers()


def empty(layout, like):
    """A new tensor of the logits' shape, whose axes lie in memory in the layout's order."""
    if is_small(layout, like.itemsize):
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    if layout.inverse is not None:
        return new_tensor([like.shape[axis] for axis in layout.order], like.dtype).permute(layout.inverse)
    return new_tensor(like.shape, like.dtype)


def new_tensor(shape, dtype):
    """An uninitialised tensor; a large one lies in memory that is used again."""
    size = math.prod(shape) * dtype.itemsize
    buffer = block(size) if size >= LENT_FROM else None
    if buffer is None:
        return torch.empty(shape, dtype=dtype)
    # Not the view itself: a tensor that autograd sees as a view must not be changed in place.
    view = torch.frombuffer(buffer, dtype=dtype).view(shape)
    return torch.empty(0, dtype=dtype).set_(view)  # pyright: ignore[reportArgumentType]


class TORCH(Arrays):
    """What `_problem` and `_stages` need of an array library."""

    xp = namespace
    storages = {**STORAGES, torch.int64: "labels"}
    dtypes = {storage: dtype for dtype, storage in STORAGES.items()}
    threads = staticmethod(torch.get_num_threads)
    address = staticmethod(address)  # to write to as well: those tensors are new
    strides = raw_strides = staticmethod(torch.Tensor.stride)
    contiguous = staticmethod(torch.Tensor.contiguous)
    broadcast = staticmethod(torch.Tensor.expand)
    converted = staticmethod(torch.Tensor.to)
    empty = staticmethod(empty)
    pooled = staticmethod(new_tensor)

    @staticmethod
    def in_elements(raw_strides, dtype):
        return raw_strides

    @staticmethod
    def maker(layout, dtype):
        """What makes tensors like the logits, in one call of PyTorch where they are small."""
        return torch.empty_like if is_small(layout, dtype.itemsize) else partial(empty, layout)

    @staticmethod
    def refuse_to_keep():
        """Where sizes are tensors, which nothing kept is equal to."""
        if tracer() is not None:
            raise IsTracedError

    @staticmethod
    def storage(tensor):
        return STORAGES.get(tensor.dtype)

    @staticmethod
    def is_integer(tensor):
        return tensor.dtype in INTEGERS

    @staticmethod
    def is_mask(tensor):
        return tensor.dtype is torch.bool

    @staticmethod
    def new(shape, storage):
        return torch.empty(shape, dtype=getattr(torch, storage))

    @staticmethod
    def copied(layout, tensor):
        return empty(layout, tensor).copy_(tensor)

    @staticmethod
    def cast(tensor, storage):
        return tensor.detach().to(getattr(torch, storage))

    @staticmethod
    def columns(matrix, numbers):
        return matrix.gather(1, numbers.expand(len(matrix), -1))  # an index takes 2.4 times as long

    @staticmethod
    def add_at(out, classes, probs):
        out.scatter_add_(1, classes, probs.to(out.dtype))


class UNREAD(TORCH):
    """The same of tensors in a device's memory, from which nothing is read."""

    reads = False

    @staticmethod
    def labels(tensor):
        """A label of more than 63 bits becomes the largest, which is as bad."""
        wide = tensor.to(torch.int64)
        return torch.where(wide < 0, 2**63 - 1, wide) if tensor.dtype is torch.uint64 else wide, None
