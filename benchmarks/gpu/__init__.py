"""What a machine with a GPU has to say, in some minutes: `python -m benchmarks.gpu`.

The tests on the GPU, a check of its memory accesses, and the times of the losses beside those of a copy, of bare matrix
products and of rivals, with the demands that the library makes on itself. A demand that is missed is marked; a test
that fails makes the run fail. Without a GPU there is nothing to do; `--dry` goes through all measurements on the CPU,
with a few numbers each, and says nothing of any speed.
"""
