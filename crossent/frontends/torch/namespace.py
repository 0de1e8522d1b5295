"""PyTorch under the names of the array API standard, as far as the library uses them."""

import torch
from torch import (
    argmax,
    argwhere,
    asarray,
    empty,
    exp,
    expm1,
    finfo,
    float64,
    full,
    int64,
    log,
    log1p,
    maximum,
    ones_like,
    reshape,
    roll,
    squeeze,
    tanh,
    uint64,
    where,
    zeros_like,
)

__all__ = [
    "arange", "argmax", "argwhere", "asarray", "astype", "empty", "exp", "expand_dims", "expm1", "finfo", "float64",
    "freeze", "full", "int64", "log", "log1p", "max", "maximum", "ones_like", "reshape", "roll", "squeeze", "sum",
    "take", "take_along_axis", "tanh", "uint64", "where", "zeros_like",
]  # fmt: skip

arange, astype, max, sum = torch.arange, torch.Tensor.to, torch.amax, torch.sum


def freeze(x):  # no method of Tensor, which the compilers of PyTorch 2.10 and before cannot follow as an attribute
    return x.detach()


def expand_dims(x, axis):
    return x.unsqueeze(axis)


def take(x, indices, axis):
    return x.index_select(axis, indices)


def take_along_axis(x, indices, axis):
    return x.gather(axis, indices)
