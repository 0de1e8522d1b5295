"""PyTorch's tensors as memory: how their numbers are stored, new ones, and what `_problem` asks of an array library."""

import ctypes
import math

import torch

from crossent.frontends._memory import LENT_FROM, block
from crossent.frontends.torch.modes import autocasts, grad_enabled, numbers, transformed

STORAGES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
INTEGERS = {
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
}  # fmt: skip
number_at = {torch.float32: ctypes.c_float.from_address, torch.float64: ctypes.c_double.from_address}
Tensor, STRIDED = torch.Tensor, torch.strided
has_storage = torch._C._has_storage
# To be read from: asked for an address to write to, copy-on-write tensors take memory of their own. PyTorch 2.6 has no
# other than that.
address = getattr(torch.Tensor, "const_data_ptr", torch.Tensor.data_ptr)
strides = torch.Tensor.stride
ORDINARY = (torch.Tensor, torch.nn.Parameter)
FINITE = 3e38  # below it a number is, in float32 too


def overlaps(tensor):
    """Whether elements may share memory."""
    return torch._debug_has_internal_overlap(tensor) != 0  # pyright: ignore[reportPrivateImportUsage]


def needs_composite(gradient):
    """Whether a backward is to be differentiated itself, or runs under a transform, on something without memory.

    `is_grads_batched` runs it under the older vmap, which nothing else gives away.
    """
    return grad_enabled() or type(gradient) is not Tensor or transformed() or not has_storage(gradient)


def in_memory(gradient):
    """As kernels read it: PyTorch stores some imaginary parts with the other sign, and some zeros not at all."""
    if gradient.is_neg() or gradient._is_zerotensor():
        return torch.zeros(gradient.shape, dtype=gradient.dtype) + gradient
    return gradient


def is_small(layout, dtype):
    """Whether a tensor like this needs neither an order of its own nor memory that is used again."""
    return layout.contiguous and layout.rows * layout.classes * dtype.itemsize < LENT_FROM


def compute_dtype(dtype):
    return torch.float64 if dtype is torch.float64 else torch.float32


def result_dtype(input, options):
    """The caller's choice, or the input's; autocast gives losses in float32."""
    if options.loss_dtype is not None:
        return getattr(torch, options.loss_dtype)
    return autocast_result(input)


def autocast_result(input):
    half = input.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half and autocasts(input.device.type) else input.dtype


class _Numbers(dict):
    """dtype -> a tensor of one number, made on first use: at an import a mode may be on that makes it fake."""

    def __missing__(self, dtype):
        made = self[dtype] = torch.zeros((), dtype=dtype, device="cpu")
        return made


like_numbers = _Numbers()


def empty(layout, like):
    """A new tensor of the logits' shape in the layout's order."""
    if is_small(layout, like.dtype):
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    if layout.inverse is not None:
        return new_tensor([like.shape[axis] for axis in layout.order], like.dtype).permute(layout.inverse)
    return new_tensor(like.shape, like.dtype)


def new_tensor(shape, dtype):
    """An uninitialised tensor, a large one in memory that is used again."""
    buffer = block(math.prod(shape) * dtype.itemsize)
    if buffer is None:
        return torch.empty(shape, dtype=dtype)
    # Not the view itself: what autograd sees as one is not to be changed in place.
    view = torch.frombuffer(buffer, dtype=dtype).view(shape)
    return torch.empty(0, dtype=dtype).set_(view)  # pyright: ignore[reportArgumentType]


class TORCH:
    """What `_problem` asks of an array library."""

    storages = {**STORAGES, torch.int64: "labels"}
    threads = staticmethod(torch.get_num_threads)
    address = staticmethod(address)  # what is written to is new
    strides = staticmethod(torch.Tensor.stride)
    contiguous = staticmethod(torch.Tensor.contiguous)
    broadcast = staticmethod(torch.Tensor.expand)
    empty = staticmethod(empty)

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
    def labels(tensor):
        if tensor.dtype is torch.int64:
            return tensor, None
        wide = tensor.to(torch.int64)
        if tensor.dtype is torch.uint64 and bool((wide < 0).any()):
            return wide, int((wide.reshape(-1) < 0).nonzero()[0])
        return wide, None

    @staticmethod
    def cast(tensor, storage):
        return tensor.detach().to(getattr(torch, storage))

    @staticmethod
    def total(tensor):
        return float(tensor.sum(dtype=torch.float64))

    @staticmethod
    def item(tensor, row):
        return tensor.reshape(-1)[row].item()


def result(loss, dtype):
    if type(loss) is float:
        if dtype in number_at:
            return tensor_of(loss, dtype)
        loss = tensor_of(loss, torch.float32)
    return loss.to(dtype)


def tensor_of(value, dtype):
    """A tensor of one full-precision number, in less time than PyTorch takes; infinity where it is too large."""
    tensor = torch.empty_like(like_numbers[dtype])
    number_at[dtype](address(tensor)).value = value
    return tensor


def upstream(problem, dloss, scale):
    """The gradient from above, as rows or as part of the scale."""
    if dloss.ndim:
        return TORCH.cast(in_memory(dloss), problem.compute).contiguous(), scale
    return None, scale * float(dloss)


def in_common_dtype(input, target):
    """Logits and probabilities in the wider type of both; labels and their logits as they are."""
    soft = target.dtype in STORAGES and input.dtype in STORAGES and numbers(target.shape) == numbers(input.shape)
    if not soft or input.dtype is target.dtype:
        return input, target
    common = torch.promote_types(input.dtype, target.dtype)
    return input.to(common), target.to(common)
