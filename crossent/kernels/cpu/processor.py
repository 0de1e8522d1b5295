"""Choices that depend on the processor: on its features alone, so that every run gives the same bits."""

import llvmlite.binding as llvm
from numba import config


def _features():
    """The features of the processor that numba compiles for: this one, unless NUMBA_CPU_FEATURES names others."""
    told = config.CPU_FEATURES
    if told is None:
        return llvm.get_host_cpu_features()
    return {name[1:]: name[0] == "+" for name in told.split(",") if name}


FEATURES = _features()
_KNOWN = config.ENABLE_AVX and not (config.CPU_NAME and config.CPU_FEATURES is None)  # else numba may leave some out

# How matrices of bfloat16 are multiplied.
PAIRS = "in pairs"  # here: one instruction multiplies two pairs and adds both products to a 32-bit sum
WIDENED = "widened"  # here: as 32-bit numbers
LIBRARY = "by the library"  # by the array library, on a matrix unit: results have 16 bits


def products_of_bfloat16(features, known=True):
    """(usual, exact): how a processor with these features multiplies, and how it does if results must keep 32 bits.

    A matrix unit makes at least eight times as many products in a cycle as the instruction for pairs does.
    """
    exact = PAIRS if features.get("avx512bf16") and known else WIDENED
    return (LIBRARY if features.get("amx-bf16") or features.get("bf16") else exact), exact


PRODUCTS_OF_BFLOAT16 = products_of_bfloat16(FEATURES, _KNOWN)
