"""What tensors a call takes, found out slowly: which one is to be refused, and why."""

import sys

import torch
from torch.autograd import forward_ad

from crossent.frontends.torch.dtypes import ORDINARY, STRIDED, Tensor
from crossent.frontends.torch.modes import compiling, transforms, unwrapped

REQUIRED = ("input", "target", "linear_weight")
_NO_OPERATIONS = getattr(torch.Tensor, "__torch_dispatch__")  # noqa: B009 - type checkers do not know it


def checked_slowly(tensors):
    device = None
    for name, tensor in tensors.items():
        if tensor is None and name not in REQUIRED:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor like input, got {type(tensor).__name__}")
        if tensor.layout is not STRIDED or tensor.is_nested:
            got = "a nested one" if tensor.is_nested else f"layout {tensor.layout}"
            raise TypeError(f"{name} must be a dense tensor, got {got}")
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise device_error(name, tensor, device)
        if type(tensor) not in ORDINARY:
            check_distributed(name, tensor, tensors["input"])
            tensors[name] = plain_tensor(tensor)
    return tensors.values()


def is_distributed(tensor):
    """Whether it is a DTensor. There can be none before their module is imported."""
    if type(tensor) in ORDINARY:
        return False
    defined = sys.modules.get("torch.distributed.tensor")
    return defined is not None and isinstance(tensor, defined.DTensor)


def check_distributed(name, tensor, input):
    if is_distributed(tensor) and not is_distributed(input):
        refuse_wrapped(input)
        learned = name.startswith("linear_")  # whose full_tensor() gets the gradient of this process's rows alone
        how = "give fully_shard the module that makes the loss" if learned else "take the full_tensor() of this"
        raise TypeError(f"{name} must be a plain tensor like input, got a DTensor: distribute input as well, or {how}")


def refuse_transforms(tensor):
    """Refuse derivatives that DTensors have not; function transforms wrap them in what looks like plain tensors."""
    if not transforms():
        is_plain = forward_ad._current_level < 0 or is_distributed(tensor)  # which cannot be made dual
        if is_plain or forward_ad.unpack_dual(tensor).tangent is None:
            return
    raise TypeError(
        "torch.func and forward mode take no DTensors: differentiate them by torch.autograd, or give plain tensors, "
        "with group= where their classes are spread"
    )


def refuse_wrapped(input):
    """Refuse a DTensor inside a function transform."""
    if not compiling() and transforms() and is_distributed(unwrapped(input)):  # the compiler cannot look inside
        refuse_transforms(input)


def device_error(name, tensor, device):
    return ValueError(f"{name} must be on the device of input, {device}, got {tensor.device}")


def plain_tensor(tensor):
    """The memory of a subclass as a plain tensor; the tensor itself if operations on it have a meaning of their own."""
    if compiling() or type(tensor).__torch_dispatch__ is not _NO_OPERATIONS:
        return tensor
    return tensor.as_subclass(Tensor)
