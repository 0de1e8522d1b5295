"""`watch` as callbacks of the libraries that have a training loop of their own."""

from collections.abc import Callable
from typing import Any

from torch.nn import Module


class _Block:
    """A block that a loop's callbacks begin and end."""

    def __init__(self, watch: Callable[[Module], Any]):
        self._watch, self._watched = watch, None

    def begin(self, model: Module) -> None:
        self.end()  # of a training that an error ended, of which nobody was told
        self._watched = self._watch(model)
        self._watched._ends_by_fault = True
        self._watched.__enter__()

    def end(self, error: BaseException | None = None) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.__exit__(error and type(error), error, None)


def trainer_callback(watch: Callable[[Module], Any]):
    from transformers import TrainerCallback

    class Watch(_Block, TrainerCallback):
        def on_train_begin(self, args, state, control, *, model, **others):
            self.begin(model)

        def on_train_end(self, args, state, control, **others):
            self.end()

    return Watch(watch)


def lightning_callback(watch: Callable[[Module], Any]):
    from lightning import Callback

    class Watch(_Block, Callback):
        def on_train_start(self, trainer, pl_module):
            self.begin(pl_module)

        def on_train_end(self, trainer, pl_module):
            self.end()

        def on_exception(self, trainer, pl_module, exception):
            self.end(exception)

    return Watch(watch)
