"""The kernels of common calls, compiled ahead of time."""

from collections.abc import Iterator

from crossent.kernels import _inner, _last, _pick, _products, _rounding, _scores, _softmax, _tokens
from crossent.kernels._call import kernel_of
from crossent.kernels._processor import PAIRS, PRODUCTS_OF_BFLOAT16
from crossent.kernels.numba import LOSS, PRODUCTS, QUICK_LOSS, ROUNDING, SCORES, SOFTMAX, TOKENS

STORAGES = ("float16", "bfloat16", "float32", "float64")
_LOSSES = (_last.forward, _last.backward, _inner.forward, _inner.backward)
_SOFTMAXES = (_softmax.forward_last, _softmax.backward_last, _softmax.forward_inner, _softmax.backward_inner)


def common(storage: str) -> Iterator[tuple]:
    """Function, storage and fields of the kernels of losses, softmax, statistics and heads, for arrays stored so."""
    quick = [(function, QUICK_LOSS) for function in _LOSSES] if storage in ("float32", "float64") else []
    for function, fields in (
        *quick,
        *((function, LOSS) for function in (*_LOSSES, _pick.forward, _pick.backward)),
        *((function, SOFTMAX) for function in _SOFTMAXES),
        (_scores.forward, SCORES),
        (_tokens.forward, TOKENS),
        (_tokens.backward, TOKENS),
        (_products.product, PRODUCTS),
    ):
        yield function, storage, fields.names
    if storage in ("float16", "bfloat16"):  # logits of a head
        yield from ((function, "float32", LOSS.names) for function in _LOSSES[:2])
    if storage == "bfloat16" and PAIRS in PRODUCTS_OF_BFLOAT16:
        yield _rounding.forward, "float32", ROUNDING.names
        for function in (_products.product, _products.rounded_product):
            yield function, "bfloat16 pairs", PRODUCTS.names


def compile_for(storage: str) -> tuple[int, int]:
    """How many kernels there are for it, and how many of them had to be compiled."""
    kernels = [kernel_of(*kernel) for kernel in common(storage)]
    return len(kernels), sum(not kernel.cache_hits for kernel in kernels)
