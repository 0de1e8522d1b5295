"""What a call is going to do, told by the same code that decides it when the call is made.

`out_of_kernels` are the reasons why the kernels cannot be used.
"""

import math

from crossent import _rows
from crossent._plan import KERNELS, PLAIN, STAGES, Plan
from crossent.frontends._problem import compute_storage, ready_call
from crossent.kernels import Sums

_PLAIN_ARRAYS = 6  # arrays as large as the logits that plain operations and their backward pass hold at once
_PLAIN_ARRAYS_OF_TOKENS = 8
_PLAIN_ARRAYS_OF_SOFTMAX = 3
_BY_ITSELF = "the numbers of a row lie side by side in memory: each row is computed by itself"
_SEVERAL = "rows of so few classes are computed several at a time"
_SIDE_BY_SIDE = "neighbouring rows lie side by side in memory: several are computed at a time"
_AT_ONCE = "the gradients that are asked for are made in the forward pass, so that the logits are made once"
_AGAIN = "the backward pass makes the logits again: each row's gradient depends on what the loss is used for"


def of_loss(lib, name, input, target, dim, options, out_of_kernels, of_gradient=()):
    """`of_gradient` says how the gradient is made by kernels."""
    axis, soft = _rows.target_kind(tuple(input.shape), tuple(target.shape), dim, name == "cross_entropy")
    arithmetic, numbers = compute_storage(lib.storage(input)), math.prod(input.shape)
    if out_of_kernels:
        return Plan(name, PLAIN, arithmetic, _PLAIN_ARRAYS * numbers * _size(arithmetic), reasons=out_of_kernels)
    picks, strides = name == "nll_loss", lib.raw_strides
    call = input.shape, strides(input), input.dtype, target.shape, strides(target), target.dtype
    ready = ready_call(lib, *call, dim, options, picks)
    rows, copied, reasons = numbers // max(1, input.shape[axis]), 0, []
    if _rows.layout_of(tuple(input.shape), tuple(lib.strides(input)), axis) is None:
        copied += numbers * input.itemsize
        reasons.append(f"input is copied: no kernel reads it with its strides, {tuple(lib.strides(input))}")
    elif ready is None:
        copied += math.prod(target.shape) * (input.itemsize if soft else 8)
        read = "the dtype of input" if soft else "int64"
        reasons.append(f"target is copied: the kernels read {read}, without gaps in memory")
    else:
        layout = ready.layout
        of_rows = (_BY_ITSELF if soft or not layout.short else _SEVERAL) if layout.last else _SIDE_BY_SIDE
        reasons.append("only the label's number is read of each row" if picks else of_rows)
    reasons += of_gradient
    return Plan(name, KERNELS, arithmetic, copied + 3 * rows * _size(arithmetic), reasons=tuple(reasons))


def of_stages(lib, name, input, target, dim, at_once=False, ready=False):
    """`at_once` says that the forward pass makes the gradient, `ready` that launches are kept for calls like this."""
    axis, _ = _rows.target_kind(tuple(input.shape), tuple(target.shape), dim, True)
    arithmetic = compute_storage(lib.storage(input))
    rows = math.prod(input.shape) // max(1, input.shape[axis])
    reasons = ["the forward pass makes the loss and a few sums of each row, the backward pass the gradient from these"]
    if at_once:
        reasons = ["the logits are read once: the loss and its gradient are made in the forward pass"]
    if ready:
        reasons.append("each pass is one launch, which is kept ready for calls of these shapes")
    return Plan(name, STAGES, arithmetic, (len(Sums._fields) + 1) * rows * _size(arithmetic), reasons=tuple(reasons))


def on_device(lib, name, input, reason):
    """By a device's kernels, which need no memory beside the results."""
    return Plan(name, KERNELS, compute_storage(lib.storage(input)), 0, reasons=(reason,))


def of_prediction(lib, name, input, target, dim, out_of_kernels):
    shape, strides = tuple(input.shape), tuple(lib.strides(input))
    axis, _ = _rows.target_kind(shape, tuple(target.shape), dim, False)
    arithmetic, numbers = compute_storage(lib.storage(input)), math.prod(shape)
    if out_of_kernels:
        return Plan(name, PLAIN, arithmetic, _PLAIN_ARRAYS * numbers * _size(arithmetic), reasons=out_of_kernels)
    shape, strides = ((*of[:axis], *of[axis + 1 :], of[axis]) for of in (shape, strides))
    layout = _rows.layout_of(shape, strides, len(shape) - 1)
    if layout is not None and layout.last:
        return Plan(name, KERNELS, arithmetic, 0, reasons=(_BY_ITSELF,))
    reasons = ("input is copied, so that the classes of a row lie side by side",)
    return Plan(name, KERNELS, arithmetic, numbers * input.itemsize, reasons=reasons)


def of_softmax(lib, name, x, path, reasons):
    arithmetic = compute_storage(lib.storage(x))
    size = _PLAIN_ARRAYS_OF_SOFTMAX * math.prod(x.shape) * _size(arithmetic) if path == PLAIN else 0
    return Plan(name, path, arithmetic, size, reasons=reasons)


def of_head(name, call, head, wanted, arithmetic, out_of_kernels, beside, plain_rows=0):
    """`beside` are the bytes beside the chunk: sums that become gradients later and, without kernels, a copy of the
    input. Without kernels `head` is None, and `plain_rows` are the rows of a chunk.
    """
    shape = call.shape
    if out_of_kernels:
        rows = min(plain_rows, shape.rows)
        arrays = _PLAIN_ARRAYS_OF_TOKENS if name == "linear_token_stats" else _PLAIN_ARRAYS
        size = arrays * rows * shape.classes * shape.places * _size(arithmetic) + beside
        reasons = (
            *out_of_kernels,
            "the logits are made chunk by chunk, but all at once for function transforms",
        )
        return Plan(name, PLAIN, arithmetic, size, rows, -(-shape.rows // max(1, rows)), reasons)
    at_once = 1 if name == "linear_token_stats" else head.at_once
    (rows, size), copied = head.chunk(wanted, at_once), head.products.copied_weight
    targets = head.count
    reasons = [_only(targets, shape)]
    if beside:
        reasons.append(f"{beside / 1e6:.1f} MB are float32 sums, which become the gradients of 16 bits")
    if head.x.itemsize == 2:
        reasons.append(head.products.precision)
    if copied:
        reasons.append(f"{copied / 1e6:.1f} MB are a copy of linear_weight, whose rows have an odd number of features")
    if name == "linear_token_stats" or call.options.reduction == "none":
        reasons.append(_AGAIN)
    else:
        reasons.append(_AT_ONCE)
    chunks = -(-targets // max(1, rows))
    return Plan(name, KERNELS, arithmetic, size + beside + copied, rows, chunks, tuple(reasons))


def of_head_on_device(name, call, head, known, wanted, arithmetic):
    """`known` says that the head has no rows but those that count."""
    shape, products, tokens = call.shape, head.products, name == "linear_token_stats"
    beside = products.beside_tokens if tokens else 0
    at_once = 1 if tokens else head.at_once
    rows, size = head.chunk(wanted, at_once, beside)
    targets = head.count
    chunks = -(-targets // max(1, rows))
    reasons = ["all rows are computed, with zeros for those that do not count: counting them would stop the device"]
    if known:
        reasons = [_only(targets, shape), "the host waits for the labels anyway: with them it gets the number of rows"]
    if call.how.chunk_bytes is None and not call.how.chunk_rows:
        reasons.append(products.why_usual_chunk(chunks))
    sums = _size(arithmetic) * math.prod(head.weight.shape) if wanted[1] and products.sums_widely(chunks) else 0
    if sums:
        reasons.append(f"{sums / 1e6:.1f} MB are float32 sums for the gradient of linear_weight")
    if head.x.itemsize == 2:
        reasons.append(products.precision)
    copies = 0
    if call.how.filter_eps and not products.filters:
        reasons.append(products.unfiltered)
    elif call.how.filter_eps and any(wanted[:2]):
        copies = head.weight.itemsize * math.prod(head.weight.shape) * (1 if chunks <= 1 else 2)
        reasons.append(
            f"{copies / 1e6:.1f} MB are copies of linear_weight or its gradient, with the classes in front that "
            "filter_eps does not leave out"
        )
    if tokens or call.options.reduction == "none":
        reasons.append(_AGAIN)
    else:
        reasons.append(_AT_ONCE)
    inputs = math.prod(head.x.shape) * (head.x.itemsize + products.input_dtype.itemsize)  # copies
    numbers = 2 * (len(Sums._fields) + 2) * shape.rows * shape.places * _size(arithmetic)
    return Plan(name, STAGES, arithmetic, size + sums + copies + inputs + numbers, rows, chunks, tuple(reasons))


def _only(targets, shape):
    return f"{targets} of {shape.rows} rows count, and only these are computed"


def _size(storage):
    return 8 if storage == "float64" else 4
