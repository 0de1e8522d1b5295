"""Bad labels in a device's memory: when they are told.

To look at a label the host would have to wait for the device. So the kernels leave the number of a row with a bad label
in memory, and it is copied to the host when the device gets there. The loss is nan meanwhile, and the row's gradient 0.
Every later loss on a device, and every backward pass, looks at what has arrived, which takes no waiting.
"""

import os
from collections import deque
from threading import Lock

import torch

from crossent.frontends._stages import at_once

_ON_THE_WAY = -2.0
_SLOTS = 64  # in a block of memory that devices may write to


def is_late(tensor):
    """Whether the host would have to wait for what is in this tensor."""
    return tensor.is_cuda


def is_captured(tensor):
    """Whether what is done with this tensor becomes part of a graph, in which nothing can be waited for."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class _Late:
    """What is on the way: a number that the device writes, and the error that it may turn into. Backward passes run in
    threads of their own.
    """

    def __init__(self):
        self.free, self.waiting, self.recorded, self.lock = [], deque(), [], Lock()

    def watch(self, bad, error):
        captured = is_captured(bad)
        with self.lock:
            if len(self.free) < _SLOTS // 2 and not captured:  # while a graph is captured no such memory can be had
                block = torch.empty(_SLOTS, dtype=torch.float64, pin_memory=bad.is_cuda)
                self.free.extend(block.unbind())
            slot = self.free.pop().fill_(_ON_THE_WAY)
            slot.copy_(bad, non_blocking=True)
            (self.recorded if captured else self.waiting).append((slot, error))

    def look(self):
        """Raise the first error that has arrived. A captured graph's number may arrive again and again."""
        if not (self.waiting or self.recorded):
            return
        with self.lock:
            while self.waiting and self.waiting[0][0].item() != _ON_THE_WAY:
                slot, error = self.waiting.popleft()
                row = slot.item()
                self.free.append(slot)
                if row >= 0:
                    raise error(int(row))
            for slot, error in self.recorded:
                row = slot.item()
                if row >= 0:
                    slot.fill_(_ON_THE_WAY)
                    raise error(int(row))


_late = _Late()


def look():
    """Raise the error of a label that has arrived by now."""
    _late.look()


def refuse(bad, error):
    """As `_stages.at_once`, in a loss that is going to be differentiated."""
    _refuse(bad, error, wait=os.environ.get("CROSSENT_CHECK_LABELS") == "now")


def refuse_outside_training(bad, error):
    """As `_stages.at_once`, in a loss whose gradient nobody wants: there the host waits for the loss anyway."""
    _refuse(bad, error, wait=os.environ.get("CROSSENT_CHECK_LABELS") != "later")


def _refuse(bad, error, wait):
    if isinstance(bad, torch.Tensor) and is_late(bad) and (is_captured(bad) or not wait):
        _late.watch(bad, error)
    else:
        at_once(bad, error)
