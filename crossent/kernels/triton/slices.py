"""softmax and log_softmax on tensors: how their slices are walked, and the launches."""

from typing import NamedTuple

import torch

from crossent._kept import kept
from crossent.kernels.triton import softmax as kernels
from crossent.kernels.triton.launches import AT_ONCE, TYPES, USUAL, begins_anywhere, cdiv, cut_of, line_of, power, run
from crossent.kernels.triton.rows import Array, How, Shape


class SoftmaxKernels:
    softmax_at_once = AT_ONCE  # entries of a slice at most that a program holds
    gradient_at_once = AT_ONCE // 2  # of two arrays

    def softmax(self, x, axis, log):
        out = torch.empty_like(x)
        walk = _walk_of((x, out), axis, self.softmax_at_once)
        if walk is None:
            return self.softmax(x.contiguous(), axis, log)
        _launch(kernels.forward, walk, (x, out), log)
        return out

    def softmax_gradient(self, out, dout, axis, log):
        dx = torch.empty_like(out)
        walk = _walk_of((out, dout, dx), axis, self.gradient_at_once)
        if walk is None:
            return self.softmax_gradient(out.contiguous(), dout.contiguous(), axis, log)
        _launch(kernels.backward, walk, (out, dout, dx), log)
        return dx


class Walk(NamedTuple):
    """What a launch over the slices of arrays depends on beside the arrays themselves; `strides` are three for each."""

    programs: int
    strides: list
    shape: Shape
    how: How
    masked: bool
    warps: int


_SIDES = {2: ("X_SIDE", "DX_SIDE"), 3: ("X_SIDE", "T_SIDE", "DX_SIDE")}  # of two arrays and of three, see `softmax`


def _walk_of(arrays, axis, at_most):
    """The `Walk`, or None if an array has to be copied first."""
    like = arrays[0]
    return _walk(like.shape, tuple(array.stride() for array in arrays), like.dtype, like.element_size(), axis, at_most)


@kept
def _walk(shape, strides, dtype, itemsize, axis, at_most):
    loops = loops_of(shape, axis, strides)
    if loops is None:
        return None
    (outer, inner, steps), n = loops, shape[axis]
    side_by_side = dict(zip(_SIDES[len(strides)], (n == 1 or of_class == 1 for _, of_class, _ in steps)))
    side = side_by_side["X_SIDE"]
    cut, (arithmetic, _) = cut_of(n, itemsize, side, at_most), TYPES.get(dtype, USUAL)
    slices, line = min(cut.R, power(inner)), line_of(itemsize, side, n, inner, steps)
    peeled = all(side_by_side.values()) and begins_anywhere(cut, slices, line, steps)
    how = How(arithmetic, cut.T, cut.W, slices, cut.LOOP, LINE=line, PEELED=peeled, **side_by_side)
    blocks = cdiv(inner, slices)
    masked, steps = slices > 1 or n % (cut.T * cut.W) > 0, [step for of in steps for step in of]
    return Walk(outer * blocks, steps, Shape(n, inner, blocks, outer * inner), how, masked, cut.warps)


def loops_of(shape, axis, strides):
    """How many steps an outer and an inner loop over the slices make, and the strides (outer, class, inner) of each
    array; None if a loop over them would need more than two strides in one of the arrays.
    """
    loops, others = [], [a for a, size in enumerate(shape) if a != axis and size != 1]
    for a in sorted(others, key=strides[0].__getitem__, reverse=True):
        steps = [of[a] for of in strides]
        if loops and loops[-1][1] == [step * shape[a] for step in steps]:
            loops[-1] = loops[-1][0] * shape[a], steps
        else:
            loops.append((shape[a], steps))
    if len(loops) > 2:
        return None
    (outer, first), (inner, second) = [(1, [0] * len(strides))] * (2 - len(loops)) + loops
    return outer, inner, [(o, of[axis], i) for o, of, i in zip(first, strides, second)]


def _launch(kernel, walk, arrays, log):
    if not arrays[0].numel():
        return
    run(
        arrays[0].device, kernel, walk.programs,
        *(Array(array, *walk.strides[3 * i : 3 * i + 3]) for i, array in enumerate(arrays)), *walk.shape, walk.how,
        LOG=log, MASKED=walk.masked, num_warps=walk.warps,
    )  # fmt: skip
