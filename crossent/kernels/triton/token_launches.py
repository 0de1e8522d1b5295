"""The statistics of labels and their gradients: the launches."""

import triton

from crossent.kernels import Rows
from crossent.kernels.triton import tokens as kernels
from crossent.kernels.triton.launches import Launch, run
from crossent.kernels.triton.tokens import Results


class TokenKernels:
    tokens_at_once = 8192  # classes at most of a tile, of each of which a program holds several numbers
    token_gradients_at_once = 4096

    def tokens(self, logits, target, options, results):
        launch = _launch(logits, target, options)
        cut = launch.cut(self.tokens_at_once)
        blocks = launch.blocks(cut)
        if launch.count:
            run(
                launch.device, kernels.tokens_of_rows, blocks, launch.array(launch.logits), launch.target,
                Results(*results), launch.shape(blocks), launch.settings, launch.cut_how(cut), num_warps=cut.warps,
            )  # fmt: skip

    def token_gradient(self, logits, target, options, results, upstream):
        launch = _launch(logits, target, options)
        cut = launch.cut(self.token_gradients_at_once)
        tiles, blocks = triton.cdiv(launch.classes, cut.classes), launch.blocks(cut)
        if launch.count and launch.classes:
            run(
                launch.device, kernels.token_gradients_of_rows, blocks * tiles, launch.array(launch.logits),
                launch.target, Results(*results), *upstream, tiles, launch.shape(blocks), launch.settings,
                launch.cut_how(cut), num_warps=cut.warps,
            )  # fmt: skip


def _launch(logits, target, options):
    rows = Rows(logits[:, :, None], target[:, None], None, None, options, False, 0, logits.shape[1])
    return Launch(rows)
