"""softmax and log_softmax on tensors: how their slices are walked, and the launches."""

import torch
import triton

from crossent.kernels.triton import softmax as kernels
from crossent.kernels.triton.launches import AT_ONCE, TYPES, USUAL, cut_of, power, run
from crossent.kernels.triton.rows import Array, How, Shape


class SoftmaxKernels:
    softmax_at_once = AT_ONCE  # entries of a slice at most that a program holds
    gradient_at_once = AT_ONCE // 2  # of two arrays

    def softmax(self, x, axis, log):
        out = torch.empty_like(x)
        loops = loops_of(axis, x, out)
        if loops is None:
            return self.softmax(x.contiguous(), axis, log)
        _launch(kernels.forward, (x, out), ("X_SIDE", "DX_SIDE"), axis, loops, self.softmax_at_once, log)
        return out

    def softmax_gradient(self, out, dout, axis, log):
        dx = torch.empty_like(out)
        loops = loops_of(axis, out, dout, dx)
        if loops is None:
            return self.softmax_gradient(out.contiguous(), dout.contiguous(), axis, log)
        sides = "X_SIDE", "T_SIDE", "DX_SIDE"
        _launch(kernels.backward, (out, dout, dx), sides, axis, loops, self.gradient_at_once, log)
        return dx


def loops_of(axis, *arrays):
    """How many steps an outer and an inner loop over the slices make, and the strides (outer, class, inner) of each
    array; None if a loop over them would need more than two strides in one of the arrays.
    """
    shape, strides, loops = arrays[0].shape, [array.stride() for array in arrays], []
    others = [a for a, size in enumerate(shape) if a != axis and size != 1]
    for a in sorted(others, key=strides[0].__getitem__, reverse=True):
        steps = [of[a] for of in strides]
        if loops and loops[-1][1] == [step * shape[a] for step in steps]:
            loops[-1] = loops[-1][0] * shape[a], steps
        else:
            loops.append((shape[a], steps))
    if len(loops) > 2:
        return None
    (outer, first), (inner, second) = [(1, [0] * len(arrays))] * (2 - len(loops)) + loops
    return outer, inner, [(o, of[axis], i) for o, of, i in zip(first, strides, second)]


def in_units(*numbers):
    """The numbers by powers of 2, their units, which the kernels are compiled for.

    Of itself Triton looks for multiples of 16 alone, so that of 1,000 numbers it would load one at a time.
    """
    units = tuple(number & -number if number % 16 else 1 for number in numbers)
    return [number // unit for number, unit in zip(numbers, units)], units


def _launch(kernel, arrays, sides, axis, loops, at_most, log):
    outer, inner, strides = loops
    x, n = arrays[0], arrays[0].shape[axis]
    if not x.numel():
        return
    side_by_side = {side: n == 1 or of_class == 1 for side, (_, of_class, _) in zip(sides, strides)}
    cut, (arithmetic, _) = cut_of(n, x.element_size(), side_by_side["X_SIDE"], at_most), TYPES.get(x.dtype, USUAL)
    slices = min(cut.R, power(inner))
    how = How(arithmetic, cut.T, cut.W, slices, cut.LOOP, **side_by_side)
    blocks = triton.cdiv(inner, slices)
    (n_units, inner_units, *steps), units = in_units(n, inner, *(step for of in strides for step in of))
    run(
        x.device, kernel, outer * blocks, *(Array(array, *steps[3 * i : 3 * i + 3]) for i, array in enumerate(arrays)),
        Shape(n_units, inner_units, blocks, outer * inner), how, LOG=log,
        MASKED=slices > 1 or n % cut.classes > 0, UNITS=units, num_warps=cut.warps,
    )  # fmt: skip
