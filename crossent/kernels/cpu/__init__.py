"""The contract's kernels for CPUs, compiled by numba on first use."""
