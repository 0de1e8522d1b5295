"""The types that tensors have, and how their numbers are stored."""

import ctypes

import torch

from crossent.frontends.torch.modes import autocasts, numbers

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
ORDINARY = (torch.Tensor, torch.nn.Parameter)
FINITE = 3e38  # a smaller number is finite, in float32 too


COMPUTE = {  # in which type what is computed is stored
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def compute_dtype(dtype):
    return COMPUTE.get(dtype, torch.float32)


def result_dtype(input, options):
    """The dtype of losses: the caller's choice, or the input's; under autocast it is float32."""
    if options.loss_dtype is not None:
        return getattr(torch, options.loss_dtype)
    return autocast_result(input)


def autocast_result(input):
    half = input.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half and autocasts(input.device.type) else input.dtype


def common_dtype(input, target):
    """The wider dtype of logits and probabilities; None for labels, and where both have it."""
    soft = target.dtype in STORAGES and input.dtype in STORAGES and numbers(target.shape) == numbers(input.shape)
    return torch.promote_types(input.dtype, target.dtype) if soft and input.dtype is not target.dtype else None


def in_common_dtype(input, target):
    """Logits and probabilities in the wider dtype of both; labels and their logits as they are."""
    common = common_dtype(input, target)
    return (input, target) if common is None else (input.to(common), target.to(common))
