"""Callbacks of the libraries that have a training loop of their own, for a block that is to stand around it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch.nn import Module

Block = Callable[[Module], AbstractContextManager]  # made of the model when its training begins


class _Around:
    def __init__(self, block: Block):
        self._block, self._open = block, None

    def begin(self, model: Module) -> None:
        self.end()  # of a training that an error ended, of which nobody was told
        self._open = self._block(model)
        self._open.__enter__()

    def end(self, error: BaseException | None = None) -> None:
        block, self._open = self._open, None
        if block is not None:
            block.__exit__(error and type(error), error, None)


def trainer_callback(block: Block) -> Any:
    """For the Trainer of transformers, which tells of no error."""
    from transformers import TrainerCallback

    class Around(_Around, TrainerCallback):
        def on_train_begin(self, args, state, control, *, model, **others):
            self.begin(model)

        def on_train_end(self, args, state, control, **others):
            self.end()

    return Around(block)


def lightning_callback(block: Block) -> Any:
    from lightning import Callback

    class Around(_Around, Callback):
        def on_train_start(self, trainer, pl_module):
            self.begin(pl_module)

        def on_train_end(self, trainer, pl_module):
            self.end()

        def on_exception(self, trainer, pl_module, exception):
            self.end(exception)

    return Around(block)
