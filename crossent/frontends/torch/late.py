"""Bad labels in a device's memory: when they are told.

To look at a label the host would have to wait for the device. So the kernels leave a row with a bad label, and that
label, in memory of the host, and raise a flag there; where no label is bad they write nothing. The loss is nan
meanwhile, and the row's gradient 0. Every later loss on a device, and every backward pass, looks at the flag, which
takes no waiting.
"""

import ctypes
import os
from itertools import count
from threading import Lock
from typing import Any

import torch

from crossent.frontends._stages import raise_now
from crossent.frontends.torch.gpus import GPUS_HAVE_KERNELS
from crossent.kernels import Note

_IN_TURN = 2048  # calls, more than wait for a device at a time
_CAPTURED = 2048  # in graphs: each keeps its note, since a graph may run again and again


def is_late(device):
    """Whether the host would have to wait for what is in this device's memory."""
    return device.type == "cuda"


def is_captured(device):
    """Whether what is done on this device becomes part of a graph, in which nothing can be waited for."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


class _Notes:
    """Notes in memory of the host, and what each of them means: the device, and what makes the error of a row, or of a
    row and its label.
    """

    def __init__(self, pinned):
        size = _IN_TURN + _CAPTURED
        with torch.inference_mode(False):  # or nobody could write to it outside of that mode
            memory = torch.full((2 * size + 1,), -1, dtype=torch.int64, pin_memory=pinned)
        self.flag, self.found = memory[-1:], memory[:-1].view(size, 2).unbind()
        self.numbers = (ctypes.c_int64 * len(memory)).from_address(memory.data_ptr())  # the same memory
        self.meaning: list[Any] = [None] * size
        self.lock = Lock()
        self.turns, self.captured = count(), iter(range(_IN_TURN, size))

    def new(self, device):
        if is_captured(device):
            at = next(self.captured, None)
            if at is None:
                raise RuntimeError(f"at most {_CAPTURED} losses can be captured in the CUDA graphs of a process")
        else:
            at = next(self.turns) % _IN_TURN
            while self.numbers[2 * at] >= 0:  # it is still to be told
                at = next(self.turns) % _IN_TURN
        self.meaning[at] = None
        return Note(self.flag, self.found[at], (self, at, device))

    def is_raised(self):
        return self.numbers[2 * len(self.found)] >= 0

    def tell(self):
        """Raise the error of the first note that has arrived."""
        with self.lock:
            arrived = [at for at, row in enumerate(self.numbers[:-1:2]) if row >= 0 and self.meaning[at]]
            if not arrived:
                return  # it is still on its way
            device, error, has_label = self.meaning[arrived[0]]
            if is_captured(device):
                return
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # the label is on its way
            found = self.taken(arrived[0])
        raise error(*found) if has_label else error(found[0])

    def taken(self, at):
        """A row and its label, which are told now."""
        flag = 2 * len(self.found)
        found, self.numbers[2 * at], self.numbers[flag] = self.numbers[2 * at : 2 * at + 2], -1, -1
        if max(self.numbers[:-1:2]) >= 0:  # seen after the flag is down, which a device may raise at any time
            self.numbers[flag] = 1
        return found


class _Late:
    """The notes of devices, and those of the CPU where it stands in for one. Backward passes run in threads of their
    own.
    """

    def __init__(self):
        self.notes, self.lock = {}, Lock()

    def note(self, device):
        pinned = device.type == "cuda"
        if pinned not in self.notes:
            if is_captured(device):
                raise RuntimeError(
                    "no memory was reserved for bad labels, which cannot be done while a CUDA graph is captured: run "
                    "the step once before"
                )
            with self.lock:
                self.notes.setdefault(pinned, _Notes(pinned))
        return self.notes[pinned].new(device)

    def look(self):
        """Raise the first error that has arrived."""
        for notes in list(self.notes.values()):
            if notes.is_raised():
                notes.tell()


_late = _Late()


def look():
    """Raise the error of a label that has arrived by now."""
    _late.look()


def note(device):
    """The `Note` of a call."""
    return _late.note(device)


def refuse(bad, error):
    """As `_stages.raise_now`, in a loss that is going to be differentiated."""
    _refuse(bad, error, wait=os.environ.get("CROSSENT_CHECK_LABELS") == "now")


def refuse_outside_training(bad, error):
    """As `_stages.raise_now`, in a loss whose gradient nobody wants: there the host waits for the loss anyway."""
    _refuse(bad, error, wait=os.environ.get("CROSSENT_CHECK_LABELS") != "later")


def _refuse(bad, error, wait):
    has_label = isinstance(bad, Note)
    if not has_label:
        if not _may_be_late(bad, wait):
            raise_now(bad, error)
            return
        bad = _noted(bad)
    notes, at, device = bad.at
    if is_late(device) and (at >= _IN_TURN or not wait):
        notes.meaning[at] = device, error, has_label
        return
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    if notes.numbers[2 * at] >= 0:
        with notes.lock:
            found = notes.taken(at)
        raise error(*found)


def _may_be_late(bad, wait):
    """Whether the number of a row may be told later, for which a GPU needs a kernel that leaves it in a note."""
    if not isinstance(bad, torch.Tensor) or not is_late(bad.device) or (bad.is_cuda and not GPUS_HAVE_KERNELS):
        return False
    return not wait or is_captured(bad.device)


def _noted(row):
    """The `Note` of the number of a row, -1 if there is none, in a device's memory."""
    made = note(row.device)
    if row.is_cuda:
        from crossent.kernels.triton.labels import leave

        leave(row, made)
    elif row >= 0:
        made.found[0], made.flag[0] = row, 1
    return made
