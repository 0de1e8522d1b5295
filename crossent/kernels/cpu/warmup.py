"""The kernels of common calls, compiled ahead of time."""

from collections.abc import Iterator

from crossent.kernels.cpu import across, along, matmul, pick, rounding, scores, softmax, tokens
from crossent.kernels.cpu.call import kernel_of
from crossent.kernels.cpu.kernels import LOSS, PRODUCTS, QUICK_LOSS, ROUNDING, SCORES, SOFTMAX, TOKENS
from crossent.kernels.cpu.processor import PAIRS, PRODUCTS_OF_BFLOAT16

STORAGES = ("float16", "bfloat16", "float32", "float64")
_LOSSES = (along.forward, along.backward, across.forward, across.backward)
_SOFTMAXES = (softmax.forward_along, softmax.backward_along, softmax.forward_across, softmax.backward_across)


def common(storage: str) -> Iterator[tuple]:
    """Function, storage type and fields of each kernel for losses, softmax, statistics and heads in this storage."""
    quick = [(function, QUICK_LOSS) for function in _LOSSES] if storage in ("float32", "float64") else []
    for function, fields in (
        *quick,
        *((function, LOSS) for function in (*_LOSSES, pick.forward, pick.backward)),
        *((function, SOFTMAX) for function in _SOFTMAXES),
        (scores.forward, SCORES),
        (tokens.forward, TOKENS),
        (tokens.backward, TOKENS),
        (matmul.product, PRODUCTS),
    ):
        yield function, storage, fields.names
    if storage in ("float16", "bfloat16"):  # a head's logits are float32
        yield from ((function, "float32", LOSS.names) for function in _LOSSES[:2])
    if storage == "bfloat16" and PAIRS in PRODUCTS_OF_BFLOAT16:
        yield rounding.forward, "float32", ROUNDING.names
        for function in (matmul.product, matmul.rounded_product):
            yield function, "bfloat16 pairs", PRODUCTS.names


def compile_for(storage: str) -> tuple[int, int]:
    """Compile the common kernels for a storage type: how many there are, and how many were not compiled before."""
    kernels = [kernel_of(*kernel) for kernel in common(storage)]
    return len(kernels), sum(not kernel.cache_hits for kernel in kernels)
