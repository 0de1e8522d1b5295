"""What is chosen by the kind of processor: by its features alone, so that every run makes the same bits."""

import llvmlite.binding as llvm
from numba import config


def _features():
    """Those of the processor that numba compiles for: this one, unless NUMBA_CPU_FEATURES names others."""
    told = config.CPU_FEATURES
    if told is None:
        return llvm.get_host_cpu_features()
    return {name[1:]: name[0] == "+" for name in told.split(",") if name}


FEATURES = _features()
_KNOWN = config.ENABLE_AVX and not (config.CPU_NAME and config.CPU_FEATURES is None)  # else some may not be there

# How matrices of bfloat16 are multiplied.
PAIRS = "in pairs"  # here: an instruction multiplies two numbers of each, and adds to a sum of 32 bits
WIDENED = "widened"  # here: as numbers of 32 bits
LIBRARY = "by the library"  # by the array library, on a unit for whole matrices: results have 16 bits


def products_of_bfloat16(features, known=True):
    """(usual, exact): how a processor with these features multiplies, and how where results have to keep 32 bits.

    A unit for whole matrices is many times faster than all that there is here.
    """
    exact = PAIRS if features.get("avx512bf16") and known else WIDENED
    return (LIBRARY if features.get("amx-bf16") or features.get("bf16") else exact), exact


PRODUCTS_OF_BFLOAT16 = products_of_bfloat16(FEATURES, _KNOWN)
