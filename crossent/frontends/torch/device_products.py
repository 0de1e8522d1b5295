"""The fused head's matrix products on a device, by the library that PyTorch has for it. Nothing is read back."""

from functools import cache, partial

import torch

from crossent import _rows
from crossent.frontends._chunks import StagedChunk
from crossent.frontends._products import Products
from crossent.frontends._stages import raise_now
from crossent.frontends.torch import tokens
from crossent.frontends.torch.arrays import UNREAD
from crossent.frontends.torch.device_filter import LINE, FilteredOnDevice
from crossent.kernels import Note

_SHARE_OF_MEMORY = 16
# Where rows are too many for one chunk, each chunk reads and writes the sums of the weight's gradient in float32. On an
# H200 that takes 242 / R of the time of the products of a chunk of R rows (4.3 TB/s, 780 TFLOP/s): 3 % with the 8,372
# rows of 128,256 classes that these bytes hold, and 90 % with the 261 rows of the CPU's chunks.
_BYTES_OF_MANY_CHUNKS = 2**31
_BYTES_OF_SPREAD_CLASSES = 2**30  # the same in all processes, whatever memory each has


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def _of_uint64(error, value, number):
    return error(value % 2**64, number)


class OnDevice(UNREAD):
    """A device's tensors; `refuse(bad, error)` is as in `_stages.loss`."""

    def __init__(self, device, refuse):
        self.device, self._refuse = device, refuse

    def pooled(self, shape, dtype):  # PyTorch uses the device's memory again itself
        return torch.empty(shape, dtype=dtype, device=self.device)

    @staticmethod
    def total(tensor):
        return tensor.sum(dtype=torch.float64)

    def number(self, value):
        """A number, or a tensor of one, as a tensor of this device."""
        if isinstance(value, torch.Tensor):
            return value.to(self.device, torch.float64)
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def tell(self, bad, values, error):
        """Tell of the first value that is bad by `error(value, number)`."""
        if bad.numel():
            first = bad.reshape(-1).to(torch.int8).argmax()
            signed = _SIGNED.get(values.dtype, values.dtype)  # PyTorch selects no others
            value = values.reshape(-1).view(signed).index_select(0, first.reshape(1)).view(values.dtype)
            found = torch.cat([torch.where(bad.any(), first, -1).reshape(1), value.to(torch.int64)])
            self._refuse(Note(None, found), partial(_of_uint64, error) if values.dtype is torch.uint64 else error)

    @staticmethod
    def is_same_memory(tensor, other):  # not by addresses, which stand-ins without numbers do not have
        return tensor.untyped_storage()._cdata == other.untyped_storage()._cdata


class DeviceProducts(Products):
    """Logits are stored like the input, unless they are to be `exact`. `memory` are the device's bytes, None if nobody
    knows. `spread` says that other processes have other classes.
    """

    line, odd = 128, False
    rows_at_once = 256  # of which products make their tiles
    evenly = True
    filtered = FilteredOnDevice

    def __init__(self, x, kernels, exact, memory=None, spread=False, refuse=raise_now):
        super().__init__(OnDevice(x.device, refuse), x)
        self.kernels, self.stored, self._memory, self._spread = kernels, x.dtype, memory, spread
        if spread:
            self.one_chunk_up_to = self.chunk_bytes = _BYTES_OF_SPREAD_CLASSES
        elif memory is not None:
            self.one_chunk_up_to = memory // _SHARE_OF_MEMORY
            self.chunk_bytes = min(self.one_chunk_up_to, _BYTES_OF_MANY_CHUNKS)
        if not exact:
            self.logits_dtype = x.dtype
        self.unfiltered = why_unfiltered(x)
        self.filters, self.beside_filter = self.unfiltered is None, x.itemsize * (2 if exact else 1)
        if x.dtype is not torch.float16:  # whose few exponents hold no gradients of a sum of losses
            self.input_dtype = x.dtype
        name, logits = str(x.dtype).removeprefix("torch."), "" if exact else "logits and "
        self.precision = f"{logits}their gradient are rounded to {name}, which the device multiplies"
        if exact:
            self.precision = f"logits are float32; their gradient is rounded to {name} for its products"

    def why_usual_chunk(self, chunks):
        if self._spread:
            return f"a chunk takes {self.chunk_bytes / 1e9:.1f} GB at most, the same in all processes"
        if self._memory is None:
            return f"a chunk takes {self.chunk_bytes / 1e6:.1f} MB at most"
        room = f"a sixteenth of the device's {self._memory / 1e9:.1f} GB"
        if chunks <= 1:
            return f"all rows are one chunk, which takes no more than {room}"
        return f"all rows would take more than {room}; a chunk takes {self.chunk_bytes / 1e9:.1f} GB at most"

    def new_sum(self, shape, chunks):
        """Of one chunk the gradient itself, with one rounding; of several a sum in more bits."""
        if not chunks:
            return self.zeros(shape)
        return self.lib.pooled(shape, self.dtype if self.sums_widely(chunks) else self.input_dtype)

    def sums_widely(self, chunks):
        """Whether the sum has more bits than the weight."""
        return self.stored != self.dtype and (chunks > 1 or self.input_dtype != self.stored)

    def logits(self, x, weight, bias, out):
        if bias is not None and out.dtype == x.dtype:
            torch.addmm(bias, x, weight.t(), out=out)
            return
        multiply(x, weight.t(), out)
        if bias is not None:
            out += bias

    def rounded(self, dlogits):
        return dlogits.to(self.stored)

    def workable(self, scale):
        """As before. What is inf or nan is left as it is: ignored rows have the derivative 0 whatever the scale is."""
        if not isinstance(scale, torch.Tensor):
            return scale, 1.0
        far = scale.isfinite() & ~_rows.workable(scale)
        return torch.where(far, 1.0, scale), torch.where(far, scale, 1.0)

    def to_input(self, dlogits, weight, numbers=None):
        return multiply(dlogits, weight, self.lib.pooled((len(dlogits), weight.shape[1]), self.input_dtype))

    def to_weight(self, dweight, dlogits, x, numbers=None, begins=False):
        multiply(dlogits.t(), x, dweight, adds=not begins)

    def combinations(self, factors, dlogits):
        return torch.mm(factors, dlogits)

    def wide(self, array):
        return array.to(torch.float64)

    def narrow(self, array):
        return array.to(self.stored)

    def dense(self, classes, probs, out):
        out.zero_()
        flat = out.as_strided((out.stride(0) * len(out),), (1,))
        rows = torch.arange(len(out), device=out.device) * out.stride(0)
        # Unlike `scatter_add_` it adds the probabilities of a class that is named twice in the same order every time.
        flat.index_put_(((rows[:, None] + classes).flatten(),), probs.flatten().to(out.dtype), accumulate=True)
        return out

    def problem(self, logits, target, weight, sample_weight, options, shard):
        return StagedChunk(self.lib, self.kernels, (logits, target, weight, sample_weight), options, shard)

    def token_results(self, rows):
        return *self.zeros((3, rows)), torch.full((rows,), -1, device=self.lib.device)

    @property
    def beside_tokens(self):
        return tokens.bytes_beside(self.kernels, self.dtype)

    def tokens(self, logits, target, options, results, shard):
        tokens.forward(self.kernels, logits, target, options, results, shard)

    def token_gradient(self, logits, target, options, results, upstream, shard):
        tokens.backward(self.kernels, logits, target, options, results, upstream, shard)


def multiply(a, b, out, adds=False):
    """Write a @ b to `out`, or add it. `out` may have 32 bits where a and b have 16."""
    if out.dtype == a.dtype:
        return torch.addmm(out, a, b, out=out) if adds else torch.mm(a, b, out=out)
    if _adds_in_float32(a.device):
        more = {"out_dtype": out.dtype, "out": out}
        return torch.addmm(out, a, b, **more) if adds else torch.mm(a, b, **more)
    a, b = a.to(out.dtype), b.to(out.dtype)
    return torch.addmm(out, a, b, out=out) if adds else torch.mm(a, b, out=out)


@cache
def _adds_in_float32(device):
    """Whether products of 16 bits can be added to float32 at once: since PyTorch 2.8, on NVIDIA's GPUs since Ampere."""
    if device.type != "cuda" or torch.version.hip is not None or not hasattr(torch.ops.aten.addmm, "dtype_out"):
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8


@cache
def memory_of(device):
    """The bytes of a GPU's memory; None of other devices."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def why_unfiltered(x):
    """Why no classes can be left out of the products of this input; None if they can."""
    if x.dtype is not torch.bfloat16 or x.shape[1] * x.itemsize % LINE:
        return "filter_eps leaves no class out: on a device that takes bfloat16, and features in a multiple of 8"
    if not _ends_on_device(x.device):
        return (
            "filter_eps leaves no class out: that takes PyTorch 2.10 or later, and an NVIDIA GPU of compute capability "
            "9 or 10"
        )
    return None


@cache
def _ends_on_device(device):
    """Whether grouped products end where the device says. Elsewhere PyTorch reads that on the host."""
    if device.type != "cuda" or torch.version.hip is not None or not hasattr(torch.nn.functional, "grouped_mm"):
        return False
    return torch.cuda.get_device_capability(device)[0] in (9, 10)
