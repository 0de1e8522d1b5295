"""Bad labels in a device's memory: when they are told.

To look at a label the host would have to wait for the device. So the kernels leave a row with a bad label, and that
label, in memory of the host, and raise a flag there; where no label is bad they write nothing. The loss is nan
meanwhile, and the row's gradient 0. Every later loss on a device, and every backward pass, looks at the flag. Nothing
is asked of the device for that, not even how far it is, which may not be done while another thread captures a graph:
what is on its way shows in a note that does not fit together yet.
"""

import ctypes
import os
from collections import deque
from functools import partial
from itertools import count
from threading import Lock
from typing import Any
from weakref import finalize

import torch

from crossent.frontends._stages import raise_now
from crossent.frontends.torch.gpus import GPUS_HAVE_KERNELS
from crossent.kernels import Note

_IN_TURN = 2048  # calls, more than wait for a device at a time
_CAPTURED = 2048  # in graphs: each keeps its note as long as there is its graph, which may run again and again
# A row, a label, both combined, which no row >= 0 fits into, and what fills up 16 bytes, as kernels are compiled for.
_NOT_THERE = -1, -1, 0, 0


def is_late(device):
    """Whether the host would have to wait for what is in this device's memory."""
    return device.type == "cuda"


def is_captured(device):
    """Whether what is done on this device becomes part of a graph, in which nothing can be waited for."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _capturing_graph(device):
    """The graph that the current stream's work becomes part of, None if PyTorch does not say (before 2.13)."""
    ask = getattr(torch.cuda.CUDAGraph, "get_currently_capturing_graph", None)
    if device.type != "cuda" or ask is None:
        return None
    with torch.cuda.device(device):
        try:
            graph = ask()
        except RuntimeError:  # a capture that PyTorch knows nothing of
            return None
    return graph if isinstance(graph, torch.cuda.CUDAGraph) else None  # else an object made just now


def _in_some_graph(label, row):
    return IndexError(
        f"a label is out of bounds in one of the CUDA graphs captured last: of more than {_CAPTURED} losses in graphs "
        "at a time nobody knows which it is"
    )


class _Notes:
    """Notes in memory of the host, and what each of them means: the device, and what makes the error of a label and its
    row. The last note is that of all captured losses for which none of their own is left.
    """

    def __init__(self, pinned):
        size = _IN_TURN + _CAPTURED + 1
        with torch.inference_mode(False):  # or nobody could write to it outside of that mode
            memory = torch.tensor([*_NOT_THERE * size, -1], pin_memory=pinned)
        self.flag, self.found = memory[-1:], memory[:-1].view(size, 4).unbind()
        self.numbers = (ctypes.c_int64 * len(memory)).from_address(memory.data_ptr())  # the same memory
        self.meaning: list[Any] = [None] * size
        self.lock = Lock()
        self.turns, self.of_graphs, self.shared = count(), deque(range(_IN_TURN, size - 1)), size - 1

    def new(self, device):
        if is_captured(device):
            at = self._for_a_graph()
        else:
            at = next(self.turns) % _IN_TURN
            while self.numbers[4 * at] >= 0:  # it is still to be told
                at = next(self.turns) % _IN_TURN
            self.meaning[at] = None
        return Note(self.flag, self.found[at], (self, at, device))

    def _for_a_graph(self):
        with self.lock:
            for _ in range(len(self.of_graphs)):
                at = self.of_graphs.popleft()
                if self.numbers[4 * at] < 0:
                    self.meaning[at] = None
                    return at
                self.of_graphs.append(at)  # it is still to be told
        return self.shared

    def keep(self, at, device, error):
        """What the note means, until it is told or used again: that of a captured loss when its graph is gone."""
        self.meaning[at] = device, _in_some_graph if at == self.shared else error
        if _IN_TURN <= at < self.shared:
            graph = _capturing_graph(device)
            if graph is not None:
                finalize(graph, self.of_graphs.append, at).atexit = False

    def is_raised(self):
        return self.numbers[4 * len(self.found)] >= 0

    def tell(self):
        """Raise the error of the first note that has arrived."""
        with self.lock:
            arrived = [at for at, row in enumerate(self.numbers[:-1:4]) if row >= 0 and self._is_there(at)]
            if not arrived:
                return  # it is still on its way
            device, error = self.meaning[arrived[0]]
            if is_captured(device):
                return
            row, label = self.taken(arrived[0])
        raise error(label, row)

    def _is_there(self, at):
        """Whether all of a note has arrived. That of many graphs may hold parts of several, and tells none of them."""
        row, label, both = self.numbers[4 * at : 4 * at + 3]
        return self.meaning[at] is not None and (row ^ label == both or at == self.shared)

    def taken(self, at):
        """A row and its label, which are told now. The row is taken last: a device leaves nothing before."""
        flag, (row, label, _) = 4 * len(self.found), self.numbers[4 * at : 4 * at + 3]
        for place in (2, 1, 0):
            self.numbers[4 * at + place] = _NOT_THERE[place]
        self.numbers[flag] = -1
        if max(self.numbers[:-1:4]) >= 0:  # seen after the flag is down, which a device may raise at any time
            self.numbers[flag] = 1
        return row, label


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


def waits(training):
    """Whether the host waits for the labels of a loss: by default if nobody wants its gradient, since it waits for the
    loss then.
    """
    asked = os.environ.get("CROSSENT_CHECK_LABELS")
    return asked == "now" if training else asked != "later"


def refuse(bad, error):
    """As `_stages.raise_now`, in a loss that is going to be differentiated."""
    _refuse(bad, error, wait=os.environ.get("CROSSENT_CHECK_LABELS") == "now")  # as `waits`, without its call


def refuse_outside_training(bad, error):
    """As `_stages.raise_now`, in a loss whose gradient nobody wants."""
    _refuse(bad, error, wait=waits(training=False))


def left(bad, error):
    """What raises the error once the host has waited for the device. Nobody else is told of it."""
    if not isinstance(bad, Note) or (bad.at is None and not _may_be_left(bad.found)):
        return partial(raise_now, bad, error)
    notes, at, _ = bad.at or _left(bad.found)
    return partial(_raise_left, notes, at, error)


def _raise_left(notes, at, error):
    if notes.numbers[4 * at] >= 0:
        with notes.lock:
            row, label = notes.taken(at)
        raise error(label, row)


def _refuse(bad, error, wait):
    if not isinstance(bad, Note) or (bad.at is None and not _may_be_left(bad.found)):
        raise_now(bad, error)
        return
    notes, at, device = bad.at or _left(bad.found)
    if is_late(device) and (at >= _IN_TURN or not wait):
        notes.keep(at, device, error)
        return
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    if notes.numbers[4 * at] >= 0:  # asked here as well: a step makes one call less (`python tests/launching.py sm_90`)
        _raise_left(notes, at, error)


def _may_be_left(found):
    """Whether what is in a device's memory may be left in the host's, for which a GPU needs a kernel. Where the host
    waits it is done as well, so that the kernel is there if a graph is captured next.
    """
    return is_late(found.device) and (GPUS_HAVE_KERNELS or not found.is_cuda)


def _left(found):
    """The place of a note in which a row and its label are left, unless the row is -1."""
    made = note(found.device)
    if found.is_cuda:
        from crossent.kernels.triton.labels import leave

        leave(found, made)
    elif found[0] >= 0:
        row, label = found.tolist()
        made.found[:3], made.flag[0] = torch.tensor([row, label, row ^ label]), 1
    return made.at
