"""Labels and weights of rows, looked at outside of the kernels."""

import torch
from torch._subclasses.fake_tensor import is_fake

from crossent import _rows
from crossent.frontends._problem import broadcast_samples
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.modes import compiling, dispatch_modes, is_traced, numbers, tracer, untraced, unwrapped


def samples_of_rows(sample_weight, row_shape):
    """The sample weights, broadcast to the rows."""
    if is_traced():
        with untraced():
            broadcast_samples(TORCH, sample_weight, numbers(row_shape))
        return sample_weight.expand(row_shape)
    return broadcast_samples(TORCH, sample_weight, row_shape)


def outside(labels, classes):
    labels = labels.to(torch.int64)  # uint8 counts 300 as 44
    return (labels < 0) | (labels >= classes)


def refuse_bad_labels(labels, counts, classes, ignore_index):
    bad = outside(labels, classes) & (labels != ignore_index)
    if counts.shape == labels.shape:
        bad = bad & (counts != 0)
    if bool(bad.any()):
        row = int(bad.reshape(-1).nonzero()[0])
        raise _rows.label_error(TORCH.item(labels, row), row, labels.shape, classes, ignore_index)


def concrete(tensor):
    """The tensor of values inside function transforms. None if it has no values, or they must not be waited for."""
    if compiling() or tracer() is not None or (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    tensor = unwrapped(tensor)
    fake = tensor.is_meta or is_fake(tensor)
    return None if fake or dispatch_modes() else tensor.detach()
