"""Losses, fused head and softmax of much at once as operators, which `torch.compile` and `torch.export` carry through
their graphs as they are.

The reduction to a mean stays in the operator, since it needs the sums; rounding to the result's type and the caller's
denominator are left to the graph. Gradients of gradients are not available here, as nowhere under `torch.compile`.
"""

import math
from functools import partial
from typing import Any

import torch
from torch._decomp import meta_table, register_decomposition

from crossent import _rows
from crossent._options import HeadOptions, loss_options
from crossent.frontends import _torch_decompositions, _torch_head, torch as frontend
from crossent.frontends._problem import problem_of, softmax_backward, softmax_forward

_library = torch.library.Library("crossent", "DEF")
# Else old compilers copy what is not contiguous.
_STRIDES_KEPT = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)
_define = partial(_library.define, tags=(_STRIDES_KEPT,))
_OPTIONS = "bool picks, int dim, str reduction, int ignore_index, float label_smoothing, float? softcap, float z_loss"
_INPUTS = "Tensor input, Tensor target, Tensor? weight, Tensor? sample_weight"
_define(f"loss({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)")
_define(f"loss_alone({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)")  # without a derivative
_define(
    f"loss_backward(Tensor dloss, {_INPUTS}, Tensor stats, Tensor scale, bool want_target, {_OPTIONS})"
    " -> (Tensor, Tensor)"
)


def _compute_dtype(input):
    return torch.float64 if input.dtype is torch.float64 else torch.float32


def _stats_shape(input, target, picks, dim):
    """What the kernels keep for contiguous rows; they do without where it does not fit their plan."""
    count = (3 if target.dtype.is_floating_point else 2) if input.stride(dim) == 1 and not picks else 0
    return count, input.numel() // input.shape[dim]


@torch.library.impl(_library, "loss", "CPU")
@torch.library.impl(_library, "loss_alone", "CPU")
def _loss(input, target, weight, sample_weight, picks, dim, *values):
    options = loss_options(None, None, *values)
    problem = problem_of(frontend.TORCH, input, target, weight, sample_weight, dim, options, picks)
    dtype = _compute_dtype(input)
    stats = torch.empty(_stats_shape(input, target, picks, dim), dtype=dtype)
    loss, scale = problem.forward(None, _fitting(problem, stats))
    return frontend.result(loss, dtype), stats, frontend.tensor_of(scale, torch.float64)


def _fitting(problem, stats):
    return stats if problem.plan.stats == stats.shape[0] > 0 else None


@torch.library.impl(_library, "loss_backward", "CPU")
def _loss_backward(dloss, input, target, weight, sample_weight, stats, scale, want_target, picks, dim, *values):
    options = loss_options(None, None, *values)
    problem = problem_of(frontend.TORCH, input, target, weight, sample_weight, dim, options, picks)
    upstream = frontend.upstream(problem, dloss, float(scale))
    dx = frontend.TORCH.empty(problem.layout, input)
    if picks:
        dx.zero_()
    dtarget, *_ = problem.backward(_fitting(problem, stats), *upstream, dx, want_target)
    return _as_announced(dx, input), target.new_empty(0) if dtarget is None else _as_announced(dtarget, target)


# Labels on their way to plain operations, of which a compiler does not see the values.
_define("checked_labels(Tensor labels, Tensor counts, int classes, int ignore_index) -> Tensor")


@torch.library.impl(_library, "checked_labels", "CPU")
def _checked_labels(labels, counts, classes, ignore_index):
    frontend.refuse_bad_labels(labels, counts, classes, ignore_index)
    return labels.clone()


@torch.library.register_fake("crossent::checked_labels", lib=_library)
def _fake_checked_labels(labels, counts, classes, ignore_index):
    return torch.empty_like(labels)


@torch.library.register_vmap("crossent::checked_labels", lib=_library)
def _batched_checked_labels(info, in_dims, labels, counts, classes, ignore_index):
    batches = [
        tensor.expand(info.batch_size, *tensor.shape) if at is None else tensor.movedim(at, 0)
        for tensor, at in zip((labels, counts), in_dims)
    ]
    return torch.ops.crossent.checked_labels(*batches, classes, ignore_index), 0


_define("softmax(Tensor x, int axis, bool log) -> Tensor")
_define("softmax_backward(Tensor dout, Tensor out, int axis, bool log) -> Tensor")


@torch.library.impl(_library, "softmax", "CPU")
def _softmax(x, axis, log):
    return _as_announced(softmax_forward(frontend.TORCH, x, axis, log), x)


@torch.library.impl(_library, "softmax_backward", "CPU")
def _softmax_backward(dout, out, axis, log):
    return _as_announced(softmax_backward(frontend.TORCH, out, dout.to(out.dtype), axis, log), out)


def _as_announced(result, like):
    """In the strides that the graph was told of."""
    if result.stride() == like.stride():  # as nearly always; a tensor to compare with takes as long as all the rest
        return result
    announced = torch.empty_like(like, device="meta")
    return result if result.stride() == announced.stride() else torch.empty_like(like).copy_(result)


@torch.library.register_fake("crossent::softmax", lib=_library)
def _fake_softmax(x, axis, log):
    return torch.empty_like(x)


@torch.library.register_fake("crossent::softmax_backward", lib=_library)
def _fake_softmax_backward(dout, out, axis, log):
    return torch.empty_like(out)


def _setup_softmax(ctx, inputs, output):
    ctx.axis, ctx.log = inputs[1:]
    ctx.save_for_backward(output)


def _differentiate_softmax(ctx, dout):
    return torch.ops.crossent.softmax_backward(dout, ctx.saved_tensors[0], ctx.axis, ctx.log), None, None


torch.library.register_autograd("crossent::softmax", _differentiate_softmax, setup_context=_setup_softmax, lib=_library)


@torch.library.register_fake("crossent::loss", lib=_library)
@torch.library.register_fake("crossent::loss_alone", lib=_library)
def _fake(input, target, weight, sample_weight, picks, dim, reduction, *values):
    dtype = _compute_dtype(input)
    shape = [size for axis, size in enumerate(input.shape) if axis != dim] if reduction == "none" else []
    return (
        input.new_empty(shape, dtype=dtype),
        input.new_empty(_stats_shape(input, target, picks, dim), dtype=dtype),
        input.new_empty([], dtype=torch.float64),
    )


@torch.library.register_fake("crossent::loss_backward", lib=_library)
def _fake_backward(dloss, input, target, weight, sample_weight, stats, scale, want_target, *values):
    return torch.empty_like(input), torch.empty_like(target) if want_target else target.new_empty(0)


class _Loss(torch.autograd.Function):
    """The derivative, for the compiler to trace: an operator with one of its own takes longer to call. Before PyTorch
    2.7 no program for any number of rows can be exported with it.
    """

    @staticmethod
    def forward(ctx, input, target, weight, sample_weight, *values):
        loss, stats, scale = torch.ops.crossent.loss_alone(input, target, weight, sample_weight, *values)
        ctx.save_for_backward(input, target, weight, sample_weight, stats, scale)
        ctx.values = values
        return loss

    @staticmethod
    def backward(ctx, dloss):
        return _gradients(ctx, dloss)


def _setup(ctx, inputs, output):
    input, target, weight, sample_weight, *ctx.values = inputs
    ctx.save_for_backward(input, target, weight, sample_weight, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx, dloss, *_):
    input, target, *rest = ctx.saved_tensors
    want_target = ctx.needs_input_grad[1]
    dx, dtarget = torch.ops.crossent.loss_backward(dloss, input, target, *rest, want_target, *ctx.values)
    return dx, dtarget if want_target else None, None, None, *(None for _ in ctx.values)


torch.library.register_autograd("crossent::loss", _gradients, setup_context=_setup, lib=_library)


def loss(input, target, weight, sample_weight, divisor, picks, dim, options, out_dtype):
    axis, _ = _rows.target_kind(input.shape, target.shape, dim, not picks)
    reduction = "sum" if divisor is not None else options.reduction
    arguments = (
        input, target, weight, sample_weight, picks, axis, reduction, options.ignore_index, options.label_smoothing,
        options.softcap, options.z_loss,
    )  # fmt: skip
    value = torch.ops.crossent.loss(*arguments)[0] if frontend.may_be_exporting() else _Loss.apply(*arguments)
    return (value if divisor is None else value / divisor).to(out_dtype)


# The fused head: what a gradient that nobody wants would be is a tensor without elements.

_HEAD_OPTIONS = (
    "bool[] wanted, int shift, int chunk_bytes, int? chunk_rows, float filter_eps, bool exact, str reduction, "
    "int ignore_index, float label_smoothing, float? softcap, float z_loss"
)
_HEAD_INPUTS = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, Tensor? sample_weight, "
    "Tensor? classes"
)
_define(f"head({_HEAD_INPUTS}, {_HEAD_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
_define(f"head_alone({_HEAD_INPUTS}, {_HEAD_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
_define(f"head_backward(Tensor dloss, {_HEAD_INPUTS}, {_HEAD_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)")


def _head_call(input, linear_weight, linear_bias, target, classes, how, values):
    options, dtype = loss_options(None, None, *values), frontend.compute_dtype(input.dtype)
    return _torch_head.call_of(
        input, linear_weight, linear_bias, target, classes, options, HeadOptions(*how), None, dtype
    )


def _tensors_of(made, tensors):
    gradients, factor = made
    finished = (_torch_head.finished(gradient, tensor, factor) for gradient, tensor in zip(gradients, tensors))
    return [tensors[0].new_empty(0) if gradient is None else gradient for gradient in finished]


@torch.library.impl(_library, "head", "CPU")
@torch.library.impl(_library, "head_alone", "CPU")
def _head(
    input, linear_weight, linear_bias, target, weight, sample_weight, classes, wanted, shift, chunk_bytes, chunk_rows,
    filter_eps, exact, *values,
):  # fmt: skip
    how = shift, chunk_bytes, chunk_rows, filter_eps, exact
    call = _head_call(input, linear_weight, linear_bias, target, classes, how, values)
    tensors = input, linear_weight, linear_bias, target, weight, sample_weight
    loss, made = _torch_head.loss_and_gradients(tensors, wanted, call)
    return loss.clone(), *_tensors_of(made or ([None] * 4, 1.0), tensors)


@torch.library.impl(_library, "head_backward", "CPU")
def _head_backward(
    dloss, input, linear_weight, linear_bias, target, weight, sample_weight, classes, wanted, shift, chunk_bytes,
    chunk_rows, filter_eps, exact, *values,
):  # fmt: skip
    how = shift, chunk_bytes, chunk_rows, filter_eps, exact
    call = _head_call(input, linear_weight, linear_bias, target, classes, how, values)
    tensors = input, linear_weight, linear_bias, target, weight, sample_weight
    return tuple(_tensors_of(_torch_head.gradients_again(tensors, wanted, call, dloss), tensors))


def _fake_gradients(tensors, wanted):
    return [
        tensor.new_empty(tensor.shape) if want else tensors[0].new_empty(0) for tensor, want in zip(tensors, wanted)
    ]


@torch.library.register_fake("crossent::head", lib=_library)
@torch.library.register_fake("crossent::head_alone", lib=_library)
def _fake_head(
    input, linear_weight, linear_bias, target, weight, sample_weight, classes, wanted, shift, chunk_bytes, chunk_rows,
    filter_eps, exact, reduction, *values,
):  # fmt: skip
    shape = []
    if reduction == "none":
        shape = [*input.shape[:-1], *linear_weight.shape[1:-1]]
        shape = [*shape[:-1], shape[-1] - shift] if shift else shape
        wanted = [False] * 4
    loss = input.new_empty(shape, dtype=frontend.compute_dtype(input.dtype))
    return loss, *_fake_gradients((input, linear_weight, linear_bias, target), wanted)


@torch.library.register_fake("crossent::head_backward", lib=_library)
def _fake_head_backward(dloss, input, linear_weight, linear_bias, target, weight, sample_weight, classes, wanted, *_):
    return tuple(_fake_gradients((input, linear_weight, linear_bias, target), wanted))


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        wanted, reduction = arguments[7], arguments[13]
        loss, *gradients = torch.ops.crossent.head_alone(*arguments)
        ctx.wanted, ctx.reduction, ctx.values = wanted, reduction, arguments[7:]
        ctx.save_for_backward(*(arguments[:7] if reduction == "none" else gradients))
        return loss

    @staticmethod
    def backward(ctx, dloss):
        if ctx.reduction == "none":
            gradients = torch.ops.crossent.head_backward(dloss, *ctx.saved_tensors, *ctx.values)
        else:
            gradients = [(gradient * dloss).to(gradient.dtype) for gradient in ctx.saved_tensors]
        gradients = [gradient if want else None for gradient, want in zip(gradients, ctx.wanted)]
        return *gradients, *(None for _ in range(3 + len(ctx.values)))


def _setup_head(ctx, inputs, output):
    ctx.values = inputs[8:]
    ctx.save_for_backward(*inputs[:7])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_head(ctx, dloss, *_):
    wanted = list(ctx.needs_input_grad[:4])
    gradients = torch.ops.crossent.head_backward(dloss, *ctx.saved_tensors, wanted, *ctx.values)
    gradients = [gradient if want else None for gradient, want in zip(gradients, wanted)]
    return *gradients, *(None for _ in range(4 + len(ctx.values)))


torch.library.register_autograd("crossent::head", _differentiate_head, setup_context=_setup_head, lib=_library)


def head_loss(
    input, linear_weight, linear_bias, target, weight, sample_weight, classes, divisor, options, how, out_dtype
):  # fmt: skip
    """`linear_cross_entropy` for the compiler."""
    differentiated = input, linear_weight, linear_bias, target
    wanted = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in differentiated]
    # An exported program may be trained or not, whatever was exported: its gradients are made in backward.
    exporting = frontend.is_exporting()
    arguments = (
        *differentiated, weight, sample_weight, classes, [False] * 4 if exporting else wanted, how.shift,
        how.chunk_bytes, how.chunk_rows, how.filter_eps, how.exact, "sum" if divisor is not None else options.reduction,
        options.ignore_index, options.label_smoothing, options.softcap, options.z_loss,
    )  # fmt: skip
    loss = torch.ops.crossent.head(*arguments)[0] if exporting else _Head.apply(*arguments)
    return (loss if divisor is None else loss / divisor).to(out_dtype)


# What the head says of every token, before targets that belong to no row are left out.

_TOKEN_INPUTS = "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target"
_TOKEN_OPTIONS = "int shift, int chunk_bytes, int ignore_index, float? softcap"
_define(f"tokens({_TOKEN_INPUTS}, {_TOKEN_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)")
_define(
    f"tokens_backward(Tensor[] upstream, Tensor[] results, {_TOKEN_INPUTS}, bool[] wanted, {_TOKEN_OPTIONS})"
    " -> (Tensor, Tensor, Tensor)"
)


def _token_head(tensors, shift, chunk_bytes, ignore_index, softcap):
    options = loss_options(ignore_index=ignore_index, softcap=softcap)
    input, linear_weight, linear_bias, target = tensors
    how = HeadOptions(shift, chunk_bytes, exact=True)
    call = _torch_head.call_of(input, linear_weight, linear_bias, target, None, options, how, None, None)
    return _torch_head.head_of((*tensors, None, None), call)[0]


@torch.library.impl(_library, "tokens", "CPU")
def _tokens(input, linear_weight, linear_bias, target, *values):
    results = _token_head((input, linear_weight, linear_bias, target), *values).tokens()
    return tuple(result.clone() for result in results)  # which lie in one tensor


@torch.library.impl(_library, "tokens_backward", "CPU")
def _tokens_backward(upstream, results, input, linear_weight, linear_bias, target, wanted, *values):
    tensors = input, linear_weight, linear_bias, target
    upstream = [above.contiguous() for above in upstream]
    gradients = _token_head(tensors, *values).token_gradients((*wanted, False), results, upstream)
    return tuple(_tensors_of((gradients[:3], 1.0), tensors))


@torch.library.register_fake("crossent::tokens", lib=_library)
def _fake_tokens(input, *_):
    shape, dtype = [math.prod(input.shape[:-1])], frontend.compute_dtype(input.dtype)
    return *(input.new_empty(shape, dtype=dtype) for _ in range(3)), input.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("crossent::tokens_backward", lib=_library)
def _fake_tokens_backward(upstream, results, input, linear_weight, linear_bias, target, wanted, *_):
    return tuple(_fake_gradients((input, linear_weight, linear_bias), wanted))


def _setup_tokens(ctx, inputs, output):
    ctx.values = inputs[4:]
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.mark_non_differentiable(output[3])


def _differentiate_tokens(ctx, *upstream):
    tensors, results, wanted = ctx.saved_tensors[:4], ctx.saved_tensors[4:], list(ctx.needs_input_grad[:3])
    gradients = torch.ops.crossent.tokens_backward(list(upstream[:3]), results, *tensors, wanted, *ctx.values)
    return *(gradient if want else None for gradient, want in zip(gradients, wanted)), *[None] * (1 + len(ctx.values))


torch.library.register_autograd("crossent::tokens", _differentiate_tokens, setup_context=_setup_tokens, lib=_library)


def tokens(tensors, options, how):
    """`linear_token_stats` for the compiler, a number for every target."""
    return torch.ops.crossent.tokens(*tensors, how.shift, how.chunk_bytes, options.ignore_index, options.softcap)


# Those that exported programs call, in the table of PyTorch's own decompositions, where exporters look for them.


def _decompose_loss(*arguments):
    return _torch_decompositions.loss(*arguments), *_fake(*arguments)[1:]


def _decompose_head(*arguments):
    return _torch_decompositions.head(*arguments), *_fake_head(*arguments)[1:]


_of_exported_programs: list[tuple[Any, Any, Any]] = [
    (torch.ops.crossent.loss, _decompose_loss, _fake),
    (torch.ops.crossent.checked_labels, _torch_decompositions.checked_labels, _fake_checked_labels),
    (torch.ops.crossent.head, _decompose_head, _fake_head),
    (torch.ops.crossent.tokens, _torch_decompositions.tokens, _fake_tokens),
]
for _operator, _decomposition, _shapes in _of_exported_programs:
    register_decomposition(_operator.default)(_decomposition)
    meta_table[_operator.default] = _shapes  # else the shapes of what is compiled would be those of the decomposition
