"""Bad labels in a device's memory: when they are told.

To look at a label the host would have to wait for the device. So the kernels leave the number of a row with a bad label
in memory, and it is copied to the host when the device gets there. The loss is nan meanwhile, and the row's gradient 0.
Every later loss on a device, and every backward pass, looks at what has arrived, which takes no waiting.
"""

import os
from collections import deque
from threading import Lock
from typing import NamedTuple

import torch

from crossent.frontends._stages import raise_now

_ON_THE_WAY = -2
_SLOTS = 64  # in a block of memory that devices may write to


def is_late(tensor):
    """Whether the host would have to wait for what is in this tensor."""
    return tensor.is_cuda


def is_captured(tensor):
    """Whether what is done with this tensor becomes part of a graph, in which nothing can be waited for."""
    with torch.cuda.device_of(tensor):
        return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class _Slot(NamedTuple):
    """Memory of the host that a device may write to: a row's number, -1 if no label is bad, and the label."""

    row: torch.Tensor
    label: torch.Tensor

    def tell(self, error, has_label):
        row = self.row.item()
        if row >= 0:
            self.row.fill_(_ON_THE_WAY)
            raise error(row, self.label.item()) if has_label else error(row)


class _Late:
    """What is on the way: numbers that the device writes, and the error that they may turn into. Backward passes run in
    threads of their own.
    """

    def __init__(self):
        self.free, self.waiting, self.recorded, self.lock = [], deque(), [], Lock()

    def watch(self, bad, error, label):
        captured = is_captured(bad)
        with self.lock:
            if len(self.free) < _SLOTS // 2 and not captured:
                self._reserve(bad.is_cuda)
            if not self.free:
                raise RuntimeError(
                    "no memory was reserved for bad labels, which cannot be done while a CUDA graph is captured: run "
                    f"the step once before, and capture at most {_SLOTS // 2} losses in one graph"
                )
            slot = self.free.pop()
            slot.row.fill_(_ON_THE_WAY)
            if label is not None:
                slot.label.copy_(label, non_blocking=True)
            slot.row.copy_(bad, non_blocking=True)
            (self.recorded if captured else self.waiting).append((slot, error, label is not None))

    def _reserve(self, pinned):
        with torch.inference_mode(False):  # or nobody could write to it outside of that mode
            block = torch.empty((_SLOTS, 2), dtype=torch.int64, pin_memory=pinned)
        self.free.extend(_Slot(*numbers.unbind()) for numbers in block)

    def look(self):
        """Raise the first error that has arrived. A captured graph's number may arrive again and again."""
        if not (self.waiting or self.recorded):
            return
        with self.lock:
            while self.waiting and self.waiting[0][0].row.item() != _ON_THE_WAY:
                slot, error, has_label = self.waiting.popleft()
                self.free.append(slot)
                slot.tell(error, has_label)
            for slot, error, has_label in self.recorded:
                slot.tell(error, has_label)


_late = _Late()


def look():
    """Raise the error of a label that has arrived by now."""
    _late.look()


def refuse(bad, error, label=None):
    """As `_stages.raise_now`, in a loss that is going to be differentiated."""
    _refuse(bad, error, label, wait=os.environ.get("CROSSENT_CHECK_LABELS") == "now")


def refuse_outside_training(bad, error, label=None):
    """As `_stages.raise_now`, in a loss whose gradient nobody wants: there the host waits for the loss anyway."""
    _refuse(bad, error, label, wait=os.environ.get("CROSSENT_CHECK_LABELS") != "later")


def _refuse(bad, error, label, wait):
    if isinstance(bad, torch.Tensor) and is_late(bad) and (is_captured(bad) or not wait):
        _late.watch(bad, error, label)
    else:
        raise_now(bad, error, label)
