"""The statistics of labels and their gradients: the launches."""

from crossent.kernels import Rows
from crossent.kernels.triton import tokens as kernels
from crossent.kernels.triton.launches import Launch, run
from crossent.kernels.triton.tokens import Results


class TokenKernels:
    tokens_at_once = 8192  # classes at most of a tile, of each of which a program holds several numbers
    token_gradients_at_once = 4096

    def tokens(self, logits, target, options, results):
        launch = _launch(logits, target, options)
        walk = launch.layout.walk(self.tokens_at_once)
        if launch.count:
            run(
                launch.device, kernels.tokens_of_rows, walk.programs, launch.array(launch.logits), launch.target,
                Results(*results), *walk.shape, launch.layout.settings, walk.how, num_warps=walk.warps,
            )  # fmt: skip

    def token_gradient(self, logits, target, options, results, upstream):
        launch = _launch(logits, target, options)
        walk = launch.layout.walk(self.token_gradients_at_once)
        if launch.count and launch.classes:
            run(
                launch.device, kernels.token_gradients_of_rows, walk.programs * walk.tiles, launch.array(launch.logits),
                launch.target, Results(*results), *upstream, walk.tiles, *walk.shape, launch.layout.settings, walk.how,
                num_warps=walk.warps,
            )  # fmt: skip


def _launch(logits, target, options):
    rows = Rows(logits[:, :, None], target[:, None], None, None, options, False, 0, logits.shape[1])
    return Launch(rows)
