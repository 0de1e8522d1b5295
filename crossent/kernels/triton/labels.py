"""nll_loss and prediction_stats: the launches."""

import torch

from crossent.kernels import LossKernels
from crossent.kernels.triton import picked, predictions
from crossent.kernels.triton.launches import ROWS, Launch, bits, cdiv, new_note, run
from crossent.kernels.triton.predictions import Results


def leave(bad, note):
    """Leave a bad label in a note: the number of its row and the label, or -1 for the row if there is none."""
    run(bad.device, picked.left, 1, bad, note.flag, note.found)


class PickedKernels(LossKernels):
    """The kernels of losses whose logits are log-probabilities: such losses have no sums."""

    def __init__(self, note=new_note):
        self.note = note

    def forward(self, rows, dtype=None):
        launch = Launch(rows)
        programs, note = max(1, cdiv(launch.count, ROWS)), self.note(launch.device)
        losses, totals = launch.losses(dtype), launch.totals(programs, note, **launch.wanted(dtype))
        run(
            launch.device, picked.losses_of_labels, programs, launch.array(rows.logits), launch.target, rows.weight,
            launch.samples, losses, totals, programs, *launch.layout.shape, launch.layout.settings, launch.layout.how,
            BLOCK=ROWS,
        )  # fmt: skip
        return None, launch.outcome(losses, totals, note)

    def gradients(self, rows, sums, upstream, scale, want_target, over_logits):
        launch, dx = Launch(rows), torch.empty_like(rows.logits)
        if not dx.numel():
            return dx, None
        walk = launch.layout.walk(4096, dx.stride())
        by, scale = (1.0, scale) if isinstance(scale, torch.Tensor) else (scale, None)
        run(
            launch.device, picked.gradients_of_labels, walk.programs * walk.tiles, launch.target, rows.weight,
            launch.samples, launch.array(upstream), bits(by), scale, launch.array(dx), walk.tiles, *walk.shape,
            launch.layout.settings, walk.how, MASKED=walk.how.R > 1 or launch.classes % walk.classes > 0,
            num_warps=walk.warps,
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
        dtype = launch.layout.dtype
        kinds = dtype, torch.int64, torch.int64, dtype, dtype
        results = Results(*(launch.new(x.shape[0], x.shape[2], dtype=dtype) for dtype in kinds))
        walk, note = launch.layout.walk(self.predictions_at_once), self.note(launch.device)
        if launch.count:
            run(
                launch.device, predictions.statistics_of_rows, walk.programs, launch.array(x), launch.target, results,
                launch.totals(walk.programs, note, walk.alone), walk.programs, *walk.shape, launch.layout.settings,
                walk.how, num_warps=walk.warps,
            )  # fmt: skip
        return results, note
