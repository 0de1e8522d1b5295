"""The products of a gradient with a few of its classes, on a device from which nothing is read.

How many classes are chosen is not known on the host. So the chosen ones are moved to the front, and the products end
where a number in the device's memory says: PyTorch has such products, of groups of rows, of which here is one.
"""

import torch

from crossent._head_filter import PARTS, FilteredProducts

LINE = 16  # bytes, of which the rows that these products read and the part that they end in are multiples


def _grouped(a, b, end):
    return torch.nn.functional.grouped_mm(a, b, offs=end)


class FilteredOnDevice(FilteredProducts):
    def add_up(self):
        """The parts are added up when it is known which of their classes are chosen."""
        norms = torch.linalg.vector_norm(self._dlogits, dim=0, dtype=self._products.dtype)
        self._squares = norms * norms

    def choose(self, eps):
        """As before; all classes if eps is inf, which is nan then."""
        super().choose(eps + 0.0 * eps)

    def multiply(self, dlogits, dtarget, rest, dloss):
        """As before; all classes are chosen if a factor is inf or nan, which is to be seen in the gradients."""
        if dloss is None and not isinstance(rest, torch.Tensor):
            return
        by = rest if dloss is None else (rest * dloss)[:, None]
        if dtarget is not None:
            dtarget *= by
        if dloss is None:  # which is nearly always 1: then nothing is read
            self._products.kernels.multiply(self._with_zeros(self._dlogits.stride(0)), by)
        else:
            dlogits *= by
        self._chosen |= ~by.isfinite().all()

    def _with_zeros(self, columns):
        """The derivatives with zeros behind each row."""
        return self._dlogits.as_strided((len(self._dlogits), columns), self._dlogits.stride())

    def _add_chosen(self, dinput, dweight, begins):
        products, classes = self._products, len(self._weight)
        line = LINE // products.stored.itemsize
        columns = -(-classes // line) * line
        dlogits = products.rounded(self._with_zeros(columns))
        self._dlogits = dlogits[:, :classes]
        chosen = torch.nn.functional.pad(self._chosen, (0, columns - classes))
        order = chosen.logical_not().to(torch.uint8).argsort(stable=True)
        end = chosen.sum().clamp(min=1)  # there is no product of nothing
        end = ((end + line - 1) // line * line).to(torch.int32).reshape(1)
        places = order.argsort()[:classes]
        self._chosen = places < end
        dchosen = dlogits.index_select(1, order)
        if dinput is not None:
            dinput += _grouped(dchosen, self._weight.index_select(0, order.clamp(max=classes - 1)), end)[0]
        if dweight is not None:
            made = _grouped(dchosen.t(), self._x.contiguous()[None], end)  # behind the end nothing is written
            out = dweight if begins and dweight.dtype == made.dtype else None
            made = torch.index_select(made, 0, places, out=out).masked_fill_(~self._chosen[:, None], 0.0)
            if out is None:
                dweight.copy_(made) if begins else dweight.add_(made)
        return products.wide(self._sums_of_others())

    def _sums_of_others(self):
        """For each part and row. Of inf and nan, such as 0 times a chosen class's, there are none: whatever vectors the
        others are projected on, less of them is missing than if they were left out.
        """
        numbers = torch.arange(len(self._weight), device=self._dlogits.device)
        part, parts = numbers * PARTS // len(numbers), torch.arange(PARTS, device=numbers.device)
        of_others = (part == parts[:, None]) & ~self._chosen
        return torch.mm(of_others.to(self._dlogits.dtype), self._dlogits.t()).nan_to_num_(0.0, 0.0, 0.0)
