"""What tensors a call takes, and what kernels can read of them."""

import sys

import torch
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._subclasses.fake_tensor import is_fake

from crossent import _rows
from crossent._options import number
from crossent.frontends._problem import broadcast_samples
from crossent.frontends.torch.arrays import ORDINARY, STRIDED, TORCH, Tensor
from crossent.frontends.torch.modes import (
    compiling,
    dispatch_modes,
    is_operator,
    is_traced,
    numbers,
    tracer,
    transformed,
    untraced,
)

_NO_OPERATIONS = getattr(torch.Tensor, "__torch_dispatch__")  # noqa: B009 - of which type checkers know nothing


KERNELS, PLAIN, OPERATOR = "kernels", "plain operations", "operator"


def way_of(tensors, by_weights=False):
    """How a call is computed; `by_weights` says that weights or the divisor want a gradient, which no kernel makes."""
    if compiling():
        return OPERATOR if is_operator(tensors[0]) and not by_weights else PLAIN
    return KERNELS if not by_weights and ordinary(*tensors) else PLAIN


def ordinary(*tensors):
    """Whether these are CPU tensors that a kernel may read, with no transform in the way."""
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in ORDINARY and tensor.is_cpu and tensor.layout is STRIDED and not tensor.is_neg()
        ):
            return False
    return tracer() is None and not transformed()


def obstacles(tensors, by_weights):
    """Why `way_of` says plain operations."""
    found = []
    for tensor in tensors:
        if tensor is not None and not ordinary(tensor) and not transformed():
            found.append(f"a tensor of type {type(tensor).__name__} on {tensor.device} has no kernel")
    if transformed():
        found.append("a function transform, forward-mode differentiation or a dispatch mode is active")
    if by_weights:
        found.append("weight, sample_weight or denominator require a gradient")
    return tuple(dict.fromkeys(found))


_REQUIRED = ("input", "target", "linear_weight")


def checked(**tensors):
    """These, once they are dense tensors on one device; of subclasses that are plain memory, as plain tensors. None is
    not checked where it may be given.
    """
    for name, tensor in tensors.items():
        if tensor is None and name not in _REQUIRED:
            continue
        plain = type(tensor) in ORDINARY and tensor.is_cpu and tensor.layout is STRIDED and not tensor.is_nested
        if not plain:
            return _checked(tensors)
    return tensors.values()


def _checked(tensors):
    device = None
    for name, tensor in tensors.items():
        if tensor is None and name not in _REQUIRED:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor like input, got {type(tensor).__name__}")
        if tensor.layout is not STRIDED or tensor.is_nested:
            got = "a nested one" if tensor.is_nested else f"layout {tensor.layout}"
            raise TypeError(f"{name} must be a dense tensor, got {got}")
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise _device_error(name, tensor, device)
        if type(tensor) not in ORDINARY:
            _check_distributed(name, tensor, tensors["input"])
            tensors[name] = plain_tensor(tensor)
    return tensors.values()


def is_distributed(tensor):
    """Whether it is a DTensor, of which there is none as long as nobody has imported them."""
    if type(tensor) in ORDINARY:
        return False
    defined = sys.modules.get("torch.distributed.tensor")
    return defined is not None and isinstance(tensor, defined.DTensor)


def _check_distributed(name, tensor, input):
    if is_distributed(tensor) and not is_distributed(input):
        raise TypeError(
            f"{name} must be a plain tensor like input, got a DTensor: distribute input as well, or take the "
            "full_tensor() of this"
        )


def _device_error(name, tensor, device):
    return ValueError(f"{name} must be on the device of input, {device}, got {tensor.device}")


def plain_tensor(tensor):
    """A subclass's memory as a plain tensor; itself where operations on it mean something of their own."""
    if compiling() or type(tensor).__torch_dispatch__ is not _NO_OPERATIONS:
        return tensor
    return tensor.as_subclass(Tensor)


def divisor_of(options, denominator, input):
    """The caller's denominator: a number where no device has to be waited for and nothing differentiates it.

    It may be on any device from which it can be read.
    """
    if denominator is None:
        return None
    if not isinstance(denominator, torch.Tensor):
        _rows.check_denominator(options, 0)
        return number("denominator", denominator)
    _rows.check_denominator(options, denominator.ndim)
    if denominator.is_meta and not input.is_meta:
        raise _device_error("denominator", denominator, input.device)
    if type(denominator) not in ORDINARY:
        _check_distributed("denominator", denominator, input)
        denominator = plain_tensor(denominator)
    if compiling() or denominator.requires_grad or not ordinary(denominator):
        return denominator
    return float(denominator)


def differentiates_weights(weight, sample_weight, divisor):
    return torch.is_grad_enabled() and (
        (weight is not None and weight.requires_grad)
        or (sample_weight is not None and sample_weight.requires_grad)
        or (isinstance(divisor, torch.Tensor) and divisor.requires_grad)
    )


def spread(sample_weight, row_shape):
    """Broadcast to the rows."""
    if is_traced():
        with untraced():
            broadcast_samples(TORCH, sample_weight, numbers(row_shape))
        return sample_weight.expand(row_shape)
    return broadcast_samples(TORCH, sample_weight, row_shape)


def outside(labels, classes):
    return (labels < 0) | (labels >= classes)


def refuse_bad_labels(labels, counts, classes, ignore_index):
    bad = outside(labels, classes) & (labels != ignore_index)
    if counts.shape == labels.shape:
        bad = bad & (counts != 0)
    if bool(bad.any()):
        row = int(bad.reshape(-1).nonzero()[0])
        raise _rows.label_error(TORCH.item(labels, row), row, labels.shape, classes, ignore_index)


def concrete(tensor):
    """The tensor with values under function transforms, or None where there are none, or none to wait for."""
    if compiling() or is_traced() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    fake = tensor.is_meta or is_fake(tensor)
    return None if fake or dispatch_modes() else tensor.detach()
