"""`crossent.watch`: the losses of a training, followed while it runs.

`seen` tells of every loss, `looks` says what some of its rows say, `faults` where a number arose that is not finite,
and `page` shows the lines that were written.
"""

import math
import time
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from crossent._options import whole_number
from crossent.integrations.callbacks import lightning_callback, trainer_callback
from crossent.tools import plain_json
from crossent.tools.files import check_file
from crossent.tools.watch import faults, seen
from crossent.tools.watch.faults import Batch, Fault as Fault, NonFiniteError as NonFiniteError
from crossent.tools.watch.looks import Sums, look
from crossent.tools.watch.seen import Loss

_SHARE = 0.005  # of the time that passes, for looks
_BATCHES = 16  # that are held where no backward pass follows them
_WINDOW = 1024  # rows of the first window; each later one has at least a quarter of all rows before it


class _Part:
    """Of one loss, what is to become its part of a step's line; on a GPU tensors, for which nobody has to wait."""

    losses: Any = 0.0  # their sum
    counted: Any = 0
    rows = 0
    looked: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        losses, counted = float(self.losses), int(self.counted)
        said = {"loss": losses / counted if counted else math.nan, "rows": counted}
        said |= {"ignored": 1.0 - counted / self.rows if self.rows else 0.0}
        return said | ({"looked": self.looked} if self.looked else {})


class watch:
    """Follows the losses of a training: a context manager around its loop.

        with crossent.watch(model, "run.jsonl"): train(model)

    Every loss that is computed in the block, in this thread, to be differentiated while `model.training` holds is seen:
    `crossent.cross_entropy`, `crossent.nll_loss` and `crossent.linear_cross_entropy`, torch.nn.functional's
    cross_entropy, nll_loss and linear_cross_entropy, and all modules made of these. Evaluation in the block is not. In
    compiled code the losses of crossent are seen, those of PyTorch are not. Of classes that are spread over processes
    by `group=`, and of means of DTensors, the loss is seen and no row looked at. Not seen are other subclasses of
    tensors, and what is inside of a function transform or a CUDA graph; a warning says so.

    Args:
        model: the torch.nn.Module that is trained, wrapped by torch.compile or DistributedDataParallel or not.
        path: a file for the lines, which are appended to it, one after each step of an optimizer that has parameters of
            the model; the page, of the same name with the ending .html, is written at the end. Where there are several
            processes, each but the first has a file with its rank in the name. None writes nothing.
        every: look at some rows of the losses once in so many steps. None looks as often as takes 0.5 % of the time.
        on_fault: is called with the `Fault`, once, instead of raising it.

    Of every step are told: the mean loss of the rows that count, in nats, and their number; the share that is ignored;
    the norm of the gradient of all parameters, before clipping and without the scale of a GradScaler. A look takes up
    to 1,048,576 logits of rows chosen at random, and tells of them: the mean of -log p of the label, the accuracy, the
    mean confidence (the largest p), and the root mean square of the norms of their losses' gradients by their logits.
    Their sums by class and by confidence are written from time to time. Probabilities as targets are not looked at.

    The first loss that is not finite, or the first such gradient that is to be used for a step, is a fault:
    `crossent.explain` explains the loss, the model runs the batch once more, with hooks, to find the module in which it
    arose, and a NonFiniteError is raised, which ends the watch. Gradients that a GradScaler finds infinite, and leaves
    out, are none. For that the last inputs of the model and of its losses are held until the backward pass ends; but
    logits in memory of a CPU of more than 32 MB are not, nor explained where a gradient is at fault.

    `last` is the last step's line as a dictionary, `fault` the fault or None.

    Raises TypeError for a model that is no module, ValueError for a path that cannot be written and for `every`;
    ImportError where there is a path, and no jinja2 or matplotlib for the page. Warns where the first step has losses
    that are not seen, or none.

    Differentiates nothing: losses and gradients are the same bits as without it, and so are random numbers.

    >>> import torch
    >>> import crossent
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with crossent.watch(model) as watched:
    ...     for step in range(3):
    ...         loss = torch.nn.functional.cross_entropy(model(torch.ones(2, 4)), torch.tensor([0, -100]))
    ...         loss.backward()
    ...         optimizer.step()
    >>> watched.last["step"], watched.last["losses"]["cross_entropy of 3 classes"]["ignored"]
    (3, 0.5)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        path: str | Path | None = None,
        *,
        every: int | None = None,
        on_fault: Callable[[Fault], Any] | None = None,
    ):
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.every = None if every is None else whole_number("every", every, 1)
        self.on_fault, self.fault, self.last, self.steps = on_fault, None, {}, 0
        self._called, self._model = model, _unwrapped(model)
        self._path = None if path is None else _checked(Path(path))
        self._parameters = list(model.parameters())
        self._own: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()  # optimizers
        self._generator = np.random.default_rng(0)
        self._sums: dict[str, Sums] = {}
        self._next_look, self._looking = 0.0, -1
        self._file: IO[str] | None = None
        self._missed: dict[str, bool] = {}  # where losses may be that cannot be told, and whether that was said
        self._open: ExitStack | None = None

    def __enter__(self) -> "watch":
        if self._open:
            raise RuntimeError("this watch is in use: make another one for a block inside of its block")
        self._start = time.perf_counter()
        self._bad = None
        self._fresh()
        self._open = ExitStack()
        if self._path:
            self._file = self._open.enter_context(self._path.open("a", encoding="utf-8"))
        numbers = sum(parameter.numel() for parameter in self._parameters)
        self._write("start", model=type(self._model).__name__, parameters=numbers)
        parts = self._model.children() if self._called is self._model else ()
        for module in (self._called, *parts):
            self._open.enter_context(module.register_forward_pre_hook(self._keep, with_kwargs=True))
        self._open.enter_context(register_optimizer_step_pre_hook(self._before_step))
        self._open.enter_context(register_optimizer_step_post_hook(self._after_step))
        self._open.enter_context(seen.telling(self))
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._open is None:  # a fault has ended it
            return
        for name in self._sums:
            self._end_window(name)
        self._write("end", step=self.steps, stopped=kind and kind.__name__)
        self._open.close()
        self._open = self._file = None
        self._fresh()
        if self._path:
            from crossent.tools.watch.page import write

            write(self._path)

    def _fresh(self) -> None:
        self._line: dict[str, _Part] = {}
        self._has_backward, self._gradient, self._scale = False, math.nan, 1.0
        self._fresh_batch()

    def _fresh_batch(self) -> None:
        self._batches: deque[Batch] = deque(maxlen=_BATCHES)
        self._has_whole = False  # not only parts of the model were called
        self._names: Counter[str] = Counter()
        self._losses: list[Loss] = []  # of the backward pass that is going on

    def _write(self, event: str, **said: Any) -> None:
        line = {"event": event, **said, "seconds": round(time.perf_counter() - self._start, 6)}
        if event == "step":
            self.last = line
        if self._file:
            self._file.write(plain_json.text(line) + "\n")
            self._file.flush()

    # What happens in a step, in this order

    def _keep(self, module, args, kwargs) -> None:
        is_whole = module is self._called
        if torch.compiler.is_compiling() or (self._has_whole and not is_whole):
            return
        if torch.is_grad_enabled() and self._model.training:
            if is_whole:
                self._has_whole = True
                self._names.clear()
            self._batches.append(Batch.of(_unwrapped(module), args, kwargs))

    def see(self, loss: Loss, value: Tensor) -> None:
        if not self._model.training:
            return
        begun = time.perf_counter()
        self._names[loss.name] += 1
        again = self._names[loss.name]
        name = f"{loss.name} ({again})" if again > 1 else loss.name
        if value.requires_grad:  # what is held of a loss goes with it, where no backward pass follows
            value.register_hook(lambda _: self._losses.append(loss))
        else:
            self._losses.append(loss)
        total, (counted, rows) = loss.value.float().sum(), loss.counted()
        if total.is_cpu:
            total, counted = total.item(), int(counted)
            if not math.isfinite(total):
                self._check(loss)
        part = self._line.setdefault(name, _Part())
        part.losses += total * loss.divided_by(counted)
        part.counted, part.rows = part.counted + counted, part.rows + rows
        if self.every is None and begun >= self._next_look:
            self._looking = self.steps
        looks = self._looking == self.steps if self.every is None else (self.steps + 1) % self.every == 0
        if looks and part.looked is None:
            part.looked = self._look(name, loss, begun)
        # Of a GPU's it is not known yet whether they are finite.
        if loss.passing or (loss.value.is_cpu and loss["input"].nbytes > faults.HELD):
            loss.arguments.clear()

    def miss(self, where: str) -> None:
        if self._model.training:
            self._missed.setdefault(where, False)

    def _look(self, name: str, loss: Loss, begun: float) -> dict[str, float] | None:
        found = look(loss, self._generator)
        if found is None:
            return None
        rows, said = found
        is_first = name not in self._sums  # it may compile kernels
        sums = self._sums.setdefault(name, Sums(loss.classes))
        sums.add(rows)
        if sums.rows >= max(_WINDOW, sums.before // 4):
            self._end_window(name)
        if not is_first:
            now = time.perf_counter()
            self._next_look = max(self._next_look, now) + (now - begun) / _SHARE
        return said

    def _end_window(self, name: str) -> None:
        sums = self._sums[name]
        if sums.rows:
            self._write("classes", step=self.steps + 1, loss=name, **sums.to_dict())
            self._sums[name] = Sums(sums.classes.n, sums.before + sums.rows)

    def _check(self, loss: Loss) -> None:
        if not loss.value.isfinite().all():
            self._tell("loss", [loss], list(self._batches), None)

    def after_backward(self) -> None:
        self._has_backward = True
        for loss in self._losses:
            if not loss.value.is_cpu:
                self._check(loss)
        # Which of them are not finite has to be asked now: clipping makes nan of all others.
        self._gradient, bad = self._gradients()
        self._bad = (self._bad or (bad, self._losses, list(self._batches))) if bad else None
        if not bad:
            for loss in self._losses:
                loss.arguments.clear()  # the hook is there as long as the loss is
        self._fresh_batch()

    def _gradients(self) -> tuple[float, list[str]]:
        """Their norm, and the names of the parameters whose gradients are not finite."""
        norm = faults.norm_of([p.grad for p in self._parameters if p.grad is not None])
        return norm, [] if math.isfinite(norm) else faults.bad_parameters(self._model, gradients=True)

    def _before_step(self, optimizer, args, kwargs):
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None or not self._is_own(optimizer):
            return self._check_gradient(optimizer)

        def checked():
            value = closure()
            self._check_gradient(optimizer)
            return value

        return args[:1], kwargs | {"closure": checked}

    def _is_own(self, optimizer) -> bool:
        if optimizer not in self._own:
            given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            self._own[optimizer] = not given.isdisjoint(map(id, self._parameters))
        return self._own[optimizer]

    def _check_gradient(self, optimizer) -> None:
        if not self._is_own(optimizer):
            return
        noted, self._bad = self._bad, None
        # Processes bring gradients together after the backward pass.
        known = self._has_backward and not (distributed.is_available() and distributed.is_initialized())
        if getattr(optimizer, "found_inf", None) is not None or (known and not noted):
            self._scale = seen.scale()
            return
        self._gradient, bad = self._gradients()  # which a GradScaler has divided by now
        if bad:
            names, losses, batches = noted or (bad, self._losses, list(self._batches))
            self._tell("gradient", losses, batches, names)

    def _after_step(self, optimizer, args, kwargs) -> None:
        if not self._is_own(optimizer) or (self.steps and not (self._line or self._has_backward)):
            return
        if getattr(optimizer, "found_inf", None):  # the GradScaler has left this step out
            return
        self.steps += 1
        if self.steps == 1 and not self._line and not self._missed:
            self.miss("outside of cross_entropy, nll_loss and linear_cross_entropy")
        if not all(self._missed.values()):
            sentence = "Part of this training is computed where crossent.watch sees no loss: "
            sentence += "; ".join(where for where, is_said in self._missed.items() if not is_said)
            self._missed = dict.fromkeys(self._missed, True)
            self._write("unseen", step=self.steps, sentence=sentence)
            warnings.warn(sentence, stacklevel=3)
        losses = {name: part.to_dict() for name, part in self._line.items()}
        self._write("step", step=self.steps, losses=losses, gradient=self._gradient / self._scale)
        self._fresh()

    def _tell(self, kind: str, losses: list[Loss], batches: list[Batch], bad: list[str] | None) -> None:
        if self.fault:
            return
        self.fault = fault = faults.fault_of(self._model, kind, self.steps + 1, losses, batches, bad)
        said = {name: getattr(fault, name) for name in ("step", "kind", "module", "parameters", "sentence")}
        self._write("fault", **said, explanation=str(fault.explanation or ""))
        if self.on_fault is None:
            self.__exit__(NonFiniteError, None, None)  # a Trainer tells its callbacks of no error
            raise NonFiniteError(fault)
        self.on_fault(fault)

    @staticmethod
    def for_trainer(path: str | Path | None = None, **options: Any) -> Any:
        """A callback for the Trainer of transformers, with the arguments of `watch` but for the model:
        `Trainer(model, arguments, train_dataset=dataset, callbacks=[crossent.watch.for_trainer("run.jsonl")])`.
        """
        return trainer_callback(partial(watch, path=path, **options))

    @staticmethod
    def for_lightning(path: str | Path | None = None, **options: Any) -> Any:
        """A callback for the Trainer of Lightning, with the arguments of `watch` but for the model:
        `lightning.Trainer(callbacks=[crossent.watch.for_lightning("run.jsonl")]).fit(model, loader)`.
        """
        return lightning_callback(partial(watch, path=path, **options))


def _unwrapped(model: Any) -> torch.nn.Module:
    """What torch.compile and DistributedDataParallel wrapped."""
    if hasattr(model, "_orig_mod"):
        return _unwrapped(model._orig_mod)
    return _unwrapped(model.module) if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def _checked(path: Path) -> Path:
    """Of this process; before the training whose lines are to go there."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank():
        path = path.with_name(f"{path.stem}.{distributed.get_rank()}{path.suffix}")
    check_file(path, "path")
    if path.suffix == ".html":
        raise ValueError(f"path must be a file for lines of JSON, beside which the page is written, got {path}")
    for package in ("jinja2", "matplotlib"):
        if not find_spec(package):
            raise ImportError(f"the page of crossent.watch needs {package}: pip install crossent[explain]")
    return path
