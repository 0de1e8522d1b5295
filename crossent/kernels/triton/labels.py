"""nll_loss and prediction_stats: the launches."""

import torch
import triton

from crossent.kernels import LossKernels
from crossent.kernels.triton import picked, predictions
from crossent.kernels.triton.launches import ROWS, Launch, bits, run, side_by_side
from crossent.kernels.triton.predictions import Results
from crossent.kernels.triton.rows import Array
from crossent.kernels.triton.slices import in_units

_NEW_NUMBERS = 256


def _shape_and_array(launch, array, blocks):
    """Both in units, and the units, see `in_units`."""
    shape, (at, *strides) = launch.shape(blocks), launch.array(array)
    (classes, inner, *strides), units = in_units(side_by_side(array), shape.classes, shape.inner, *strides)
    return shape._replace(classes=classes, inner=inner), Array(at, *strides), units


class PickedKernels(LossKernels):
    """The kernels of losses whose logits are log-probabilities: such losses have no sums."""

    def forward(self, rows, dtype=None):
        launch = Launch(rows)
        programs, dtype = max(1, triton.cdiv(launch.count, ROWS)), dtype or launch.dtype
        losses, totals = launch.new(launch.count, dtype=dtype), launch.totals(programs, dtype)
        run(
            launch.device, picked.losses_of_labels, programs, launch.array(rows.logits), launch.target, rows.weight,
            launch.samples, losses, totals, programs, launch.shape(), launch.settings, launch.how, BLOCK=ROWS,
        )  # fmt: skip
        return None, launch.outcome(losses, totals)

    def gradients(self, rows, sums, upstream, scale, want_target, over_logits):
        launch, dx = Launch(rows), torch.empty_like(rows.logits)
        if not dx.numel():
            return dx, None
        cut = launch.cut(at_most=4096)
        tiles, blocks = triton.cdiv(launch.classes, cut.classes), launch.blocks(cut)
        by, scale = (1.0, scale) if isinstance(scale, torch.Tensor) else (scale, None)
        shape, array, units = _shape_and_array(launch, dx, blocks)
        run(
            launch.device, picked.gradients_of_labels, launch.outer * blocks * tiles, launch.target, rows.weight,
            launch.samples, launch.array(upstream), bits(by), scale, array, tiles, shape, launch.settings,
            launch.cut_how(cut, DX_SIDE=side_by_side(dx)), MASKED=cut.R > 1 or launch.classes % cut.classes > 0,
            UNITS=units, num_warps=cut.warps,
        )  # fmt: skip
        return dx, None

    def packed(self, rows, sums):
        launch = Launch(rows)
        return launch.new(0, launch.count)

    def unpacked(self, rows, packed):
        return None


class PredictionKernels:
    predictions_at_once = 8192  # classes at most that are held; in a loop, too, they are read once

    def predictions(self, rows):
        launch, x = Launch(rows), rows.logits
        kinds = launch.dtype, torch.int64, torch.int64, launch.dtype, launch.dtype
        results = Results(*(launch.new(x.shape[0], x.shape[2], dtype=dtype) for dtype in kinds))
        bad, cut = _new_number(launch.device), launch.cut(self.predictions_at_once)
        blocks = launch.blocks(cut)
        shape, array, units = _shape_and_array(launch, x, blocks)
        if launch.count:
            run(
                launch.device, predictions.statistics_of_rows, launch.outer * blocks, array, launch.target, results,
                bad, shape, launch.settings, launch.cut_how(cut),
                MASKED=cut.R > 1 or launch.classes % cut.classes > 0, UNITS=units, num_warps=cut.warps,
            )  # fmt: skip
        return results, bad


_numbers = {}


def _new_number(device):
    """-1 in a device's memory, in which a kernel leaves the number of a row; they are made many at a time."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.full((), -1, device=device)
    waiting = _numbers.setdefault((device, torch.cuda.current_stream(device).stream_id), [])
    if not waiting:
        waiting.extend(torch.full((_NEW_NUMBERS,), -1, device=device).unbind())
    return waiting.pop()
