"""Losses, the fused head and softmax of large inputs as operators.

The mean is made in the operator, because it needs the sums. Rounding to the result's dtype and dividing by the caller's
denominator are left to the graph. Gradients of gradients are not available here, as nowhere under `torch.compile`. An
operator cannot return None: in place of a gradient that nobody wants it returns a tensor without elements.
"""

import math
from typing import Any

import torch
from torch._decomp import meta_table, register_decomposition

from crossent import _rows
from crossent._call import Call
from crossent._options import HeadOptions, LossOptions, loss_options
from crossent.frontends._heads import finished, losses_of
from crossent.frontends._problem import problem_of, softmax_backward, softmax_forward
from crossent.frontends.torch import decompositions, head, modes, nodes, staged, staged_head
from crossent.frontends.torch.arrays import TORCH
from crossent.frontends.torch.dtypes import compute_dtype
from crossent.frontends.torch.operators import carried, define, ops, schema
from crossent.kernels import Sums

_LOSS, _HEAD = carried(LossOptions), carried(HeadOptions)
_INPUTS = "Tensor input, Tensor target, Tensor? weight, Tensor? sample_weight"
_OPTIONS = f"bool picks, int dim, {schema(LossOptions)}"
_HEAD_INPUTS = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, Tensor? sample_weight, "
    "Tensor? classes"
)
_HEAD_OPTIONS = f"bool[] wanted, {schema(HeadOptions)}, {schema(LossOptions)}"
_TOKEN_INPUTS = "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target"
_TOKEN_OPTIONS = f"{schema(HeadOptions)}, {schema(LossOptions)}"


def _values(options, names):
    return tuple(getattr(options, name) for name in names)


def _values_of(call):
    """The options that a loss's operator carries: for the caller's denominator those of a sum, divided in the graph."""
    options = call.options if call.divisor is None else call.options.changed(reduction="sum")
    return _values(options, _LOSS)


def call_of_loss(input, picks, dim, *values):
    options = loss_options(**dict(zip(_LOSS, values, strict=True)))
    return Call(options, dim, picks, out_dtype=compute_dtype(input.dtype))


def call_of_head(tensors, classes, *values):
    """Of a head whose operator got these values; `tensors` are input, linear_weight, linear_bias and target."""
    given = dict(zip((*_HEAD, *_LOSS), values, strict=True))
    how = HeadOptions(**{name: given[name] for name in _HEAD})
    options = loss_options(**{name: given[name] for name in _LOSS})
    call = Call(options, out_dtype=compute_dtype(tensors[0].dtype), how=how)
    return head.call_of(tensors, call, classes)


# Losses


def _stats_shape(input, target, picks, dim):
    """The shape of what kernels keep for contiguous rows. If it does not fit the plan, they keep nothing."""
    if staged.is_staged(input, picks):
        return 0 if picks else len(Sums._fields), input.numel() // max(1, input.shape[dim])
    count = (3 if target.dtype.is_floating_point else 2) if input.stride(dim) == 1 and not picks else 0
    return count, input.numel() // input.shape[dim]


def _fitting(problem, stats):
    return stats if problem.plan.stats == stats.shape[0] > 0 else None


def _loss(input, target, weight, sample_weight, picks, dim, *values):
    call = call_of_loss(input, picks, dim, *values)
    if staged.is_staged(input, picks):
        return staged.loss_and_sums((input, target, weight, sample_weight), call)
    problem = problem_of(TORCH, input, target, weight, sample_weight, dim, call.options, picks)
    stats = torch.empty(_stats_shape(input, target, picks, dim), dtype=call.out_dtype)
    value, scale = problem.forward(None, _fitting(problem, stats))
    return nodes.result(value, call.out_dtype), stats, nodes.tensor_of(scale, torch.float64)


def _fake_loss(input, target, weight, sample_weight, picks, dim, reduction, *values):
    dtype = compute_dtype(input.dtype)
    shape = [size for axis, size in enumerate(input.shape) if axis != dim] if reduction == "none" else []
    return (
        input.new_empty(shape, dtype=dtype),
        input.new_empty(_stats_shape(input, target, picks, dim), dtype=dtype),
        input.new_empty([], dtype=torch.float64),
    )


def _loss_backward(dloss, input, target, weight, sample_weight, stats, scale, want_target, picks, dim, *values):
    call = call_of_loss(input, picks, dim, *values)
    if staged.is_staged(input, picks):
        tensors = input, target, weight, sample_weight
        dx, dtarget = staged.gradients_of_sums(tensors, call, stats, scale, dloss, want_target)
        return _as_announced(dx, input), target.new_empty(0) if dtarget is None else _as_announced(dtarget, target)
    problem = problem_of(TORCH, input, target, weight, sample_weight, dim, call.options, picks)
    upstream = nodes.upstream(dloss, float(scale), input)
    dx = TORCH.empty(problem.layout, input)
    if picks:
        dx.zero_()
    dtarget, *_ = problem.backward(_fitting(problem, stats), *upstream, dx, want_target)
    return _as_announced(dx, input), target.new_empty(0) if dtarget is None else _as_announced(dtarget, target)


def _fake_loss_backward(dloss, input, target, weight, sample_weight, stats, scale, want_target, *values):
    return torch.empty_like(input), torch.empty_like(target) if want_target else target.new_empty(0)


def _as_announced(result, like):
    """The result with the strides that the graph was told of."""
    if result.stride() == like.stride():  # nearly always; making a tensor to compare with takes as long as all else
        return result
    announced = torch.empty_like(like, device="meta")
    return result if result.stride() == announced.stride() else torch.empty_like(like).copy_(result)


def _keep_for_loss(ctx, inputs, output):
    input, target, weight, sample_weight, *ctx.values = inputs
    ctx.save_for_backward(input, target, weight, sample_weight, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_loss(ctx, dloss, *_):
    input, target, *rest = ctx.saved_tensors
    want_target = ctx.needs_input_grad[1]
    dx, dtarget = ops.loss_backward(dloss, input, target, *rest, want_target, *ctx.values)
    return dx, dtarget if want_target else None, None, None, *(None for _ in ctx.values)


_LOSS_RESULTS = "(Tensor, Tensor, Tensor)"
_EVERYWHERE = "CPU", "CUDA"
define(
    "loss", f"{_INPUTS}, {_OPTIONS}", _LOSS_RESULTS, _loss, _fake_loss, _differentiate_loss, _keep_for_loss,
    on=_EVERYWHERE,
)  # fmt: skip


def _loss_alone(wanted, *arguments):
    """Without a derivative; `wanted` says whether somebody is going to differentiate the loss."""
    return _loss(*arguments)


# Kernels in a lambda are looked up at each call: while losses are followed, others stand there.
define(
    "loss_alone",
    f"bool wanted, {_INPUTS}, {_OPTIONS}",
    _LOSS_RESULTS,
    lambda *arguments: _loss_alone(*arguments),
    lambda wanted, *arguments: _fake_loss(*arguments),
    on=_EVERYWHERE,
)
define(
    "loss_backward",
    f"Tensor dloss, {_INPUTS}, Tensor stats, Tensor scale, bool want_target, {_OPTIONS}",
    "(Tensor, Tensor)",
    _loss_backward,
    _fake_loss_backward,
    on=_EVERYWHERE,
)


class _Loss(torch.autograd.Function):
    """The loss with a derivative that the compiler traces. An operator with a derivative of its own takes longer to
    call. Before PyTorch 2.7, programs for any number of rows cannot be exported with this class.
    """

    @staticmethod
    def forward(ctx, *given):
        *arguments, wanted = given  # last: `_differentiate_loss` asks for the target by its place
        output = ops.loss_alone(wanted, *arguments)
        ctx.save_for_backward(*arguments[:4], *output[1:])
        ctx.values = arguments[4:]
        return output[0]

    @staticmethod
    def backward(ctx, dloss):
        return *_differentiate_loss(ctx, dloss), None


def loss(tensors, call):
    axis, _ = _rows.target_kind(tensors[0].shape, tensors[1].shape, call.dim, not call.picks)
    arguments = *tensors, call.picks, axis, *_values_of(call)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors[:2])
    value = ops.loss(*arguments)[0] if modes.may_be_exporting() else _Loss.apply(*arguments, wanted)
    return (value if call.divisor is None else value / call.divisor).to(call.out_dtype)


# Softmax


def _softmax(x, axis, log):
    kernels = staged.softmax_kernels(x)
    out = softmax_forward(TORCH, x, axis, log) if kernels is None else kernels.softmax(x, axis, log)
    return _as_announced(out, x)


def _fake_softmax(x, axis, log):
    return torch.empty_like(x)


def _softmax_backward(dout, out, axis, log):
    kernels, dout = staged.softmax_kernels(out), dout.to(out.dtype)
    if kernels is None:
        return _as_announced(softmax_backward(TORCH, out, dout, axis, log), out)
    return _as_announced(kernels.softmax_gradient(out, dout, axis, log), out)


def _fake_softmax_backward(dout, out, axis, log):
    return torch.empty_like(out)


def _keep_for_softmax(ctx, inputs, output):
    ctx.axis, ctx.log = inputs[1:]
    ctx.save_for_backward(output)


def _differentiate_softmax(ctx, dout):
    return ops.softmax_backward(dout, ctx.saved_tensors[0], ctx.axis, ctx.log), None, None


softmax = define(
    "softmax", "Tensor x, int axis, bool log", "Tensor", _softmax, _fake_softmax, _differentiate_softmax,
    _keep_for_softmax, on=_EVERYWHERE,
)  # fmt: skip
define(
    "softmax_backward", "Tensor dout, Tensor out, int axis, bool log", "Tensor", _softmax_backward,
    _fake_softmax_backward, on=_EVERYWHERE,
)  # fmt: skip


# The fused head


def _tensors_of(gradients, factor, tensors):
    made = finished(TORCH, gradients, tensors, factor)
    return [tensors[0].new_empty(0) if gradient is None else gradient for gradient in made]


def _fake_gradients(tensors, wanted):
    return [
        tensor.new_empty(tensor.shape) if want else tensors[0].new_empty(0) for tensor, want in zip(tensors, wanted)
    ]


def _head(input, linear_weight, linear_bias, target, weight, sample_weight, classes, wanted, *values):
    tensors = input, linear_weight, linear_bias, target, weight, sample_weight
    call = call_of_head(tensors[:4], classes, *values)
    if staged.is_staged(input):
        value, gradients = staged_head.loss_and_gradients(tensors, wanted, call)
        return value.clone(), *(input.new_empty(0) if gradient is None else gradient for gradient in gradients)
    value, gradients, factor = head.loss_and_gradients(tensors, wanted, call)
    return value.clone(), *_tensors_of(gradients or [None] * 4, factor, tensors)


def _fake_head(input, linear_weight, linear_bias, target, weight, sample_weight, classes, wanted, *values):
    given, shape = dict(zip((*_HEAD, *_LOSS), values)), []
    if given["reduction"] == "none":
        shape = [*input.shape[:-1], *linear_weight.shape[1:-1]]
        shape = [*shape[:-1], shape[-1] - given["shift"]] if given["shift"] else shape
        wanted = [False] * 4
    value = input.new_empty(shape, dtype=compute_dtype(input.dtype))
    return value, *_fake_gradients((input, linear_weight, linear_bias, target), wanted)


def _head_backward(dloss, input, linear_weight, linear_bias, target, weight, sample_weight, classes, wanted, *values):
    tensors = input, linear_weight, linear_bias, target, weight, sample_weight
    call = call_of_head(tensors[:4], classes, *values)
    if staged.is_staged(input):
        gradients = staged_head.gradients_again(tensors, wanted, call, dloss)
        return tuple(input.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return tuple(_tensors_of(*head.gradients_again(tensors, wanted, call, dloss), tensors))


def _fake_head_backward(dloss, input, linear_weight, linear_bias, target, weight, sample_weight, classes, wanted, *_):
    return tuple(_fake_gradients((input, linear_weight, linear_bias, target), wanted))


def _keep_for_head(ctx, inputs, output):
    ctx.values = inputs[8:]
    ctx.save_for_backward(*inputs[:7])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_head(ctx, dloss, *_):
    wanted = list(ctx.needs_input_grad[:4])
    gradients = ops.head_backward(dloss, *ctx.saved_tensors, wanted, *ctx.values)
    gradients = [gradient if want else None for gradient, want in zip(gradients, wanted)]
    return *gradients, *(None for _ in range(4 + len(ctx.values)))


_HEAD_RESULTS = "(Tensor, Tensor, Tensor, Tensor, Tensor)"
_HEAD_ARGUMENTS = f"{_HEAD_INPUTS}, {_HEAD_OPTIONS}"
define("head", _HEAD_ARGUMENTS, _HEAD_RESULTS, _head, _fake_head, _differentiate_head, _keep_for_head, on=_EVERYWHERE)
define("head_alone", _HEAD_ARGUMENTS, _HEAD_RESULTS, lambda *arguments: _head(*arguments), _fake_head, on=_EVERYWHERE)
define(
    "head_backward", f"Tensor dloss, {_HEAD_INPUTS}, {_HEAD_OPTIONS}", "(Tensor, Tensor, Tensor, Tensor)",
    _head_backward, _fake_head_backward, on=_EVERYWHERE,
)  # fmt: skip


class _Head(torch.autograd.Function):
    """As `_Loss`. The gradients are made in forward; for reduction "none" in backward."""

    @staticmethod
    def forward(ctx, *arguments):
        value, *gradients = ops.head_alone(*arguments)
        ctx.wanted, ctx.values = arguments[7], arguments[7:]
        ctx.by_row = arguments[8 + len(_HEAD) + _LOSS.index("reduction")] == "none"
        ctx.save_for_backward(*(arguments[:7] if ctx.by_row else gradients))
        return value

    @staticmethod
    def backward(ctx, dloss):
        if ctx.by_row:
            gradients = ops.head_backward(dloss, *ctx.saved_tensors, *ctx.values)
        else:
            gradients = [(gradient * dloss).to(gradient.dtype) for gradient in ctx.saved_tensors]
        gradients = [gradient if want else None for gradient, want in zip(gradients, ctx.wanted)]
        return *gradients, *(None for _ in range(3 + len(ctx.values)))


def head_loss(tensors, call, classes):
    """`linear_cross_entropy` of a call that `head.call_of` has not given its shapes yet."""
    wanted = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in tensors[:4]]
    # Nobody knows yet whether an exported program will be trained: its gradients are made in backward.
    exporting = modes.is_exporting()
    arguments = *tensors, classes, [False] * 4 if exporting else wanted, *_values(call.how, _HEAD), *_values_of(call)
    value = ops.head(*arguments)[0] if exporting else _Head.apply(*arguments)
    return (value if call.divisor is None else value / call.divisor).to(call.out_dtype)


# The head's token statistics. Targets that belong to no row are left out later.


def _token_head(tensors, values):
    return head.head_of((*tensors, None, None), call_of_head(tensors, None, *values))[0]


def _tokens(input, linear_weight, linear_bias, target, *values):
    tensors = input, linear_weight, linear_bias, target
    if staged.is_staged(input):
        results = staged_head.tokens(tensors, call_of_head(tensors, None, *values))
    else:
        results = _token_head(tensors, values).tokens()
    return tuple(result.clone() for result in results)  # the results lie in one tensor


def _fake_tokens(input, *_):
    shape, dtype = [math.prod(input.shape[:-1])], compute_dtype(input.dtype)
    return *(input.new_empty(shape, dtype=dtype) for _ in range(3)), input.new_empty(shape, dtype=torch.int64)


def _tokens_backward(upstream, results, input, linear_weight, linear_bias, target, wanted, *values):
    tensors = input, linear_weight, linear_bias, target
    upstream = [above.contiguous() for above in upstream]
    if staged.is_staged(input):
        call = call_of_head(tensors, None, *values)
        found = staged_head.token_gradients_of_rows(tensors, (*wanted, False), call, results, upstream)
        return tuple(input.new_empty(0) if gradient is None else gradient for gradient in found[:3])
    gradients = _token_head(tensors, values).token_gradients((*wanted, False), results, upstream)
    return tuple(_tensors_of(gradients[:3], 1.0, tensors))


def _fake_tokens_backward(upstream, results, input, linear_weight, linear_bias, target, wanted, *_):
    return tuple(_fake_gradients((input, linear_weight, linear_bias), wanted))


def _keep_for_tokens(ctx, inputs, output):
    ctx.values = inputs[4:]
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.mark_non_differentiable(output[3])


def _differentiate_tokens(ctx, *upstream):
    tensors, results, wanted = ctx.saved_tensors[:4], ctx.saved_tensors[4:], list(ctx.needs_input_grad[:3])
    gradients = ops.tokens_backward(list(upstream[:3]), results, *tensors, wanted, *ctx.values)
    return *(gradient if want else None for gradient, want in zip(gradients, wanted)), *[None] * (1 + len(ctx.values))


define(
    "tokens", f"{_TOKEN_INPUTS}, {_TOKEN_OPTIONS}", "(Tensor, Tensor, Tensor, Tensor)", _tokens, _fake_tokens,
    _differentiate_tokens, _keep_for_tokens, on=_EVERYWHERE,
)  # fmt: skip
define(
    "tokens_backward",
    f"Tensor[] upstream, Tensor[] results, {_TOKEN_INPUTS}, bool[] wanted, {_TOKEN_OPTIONS}",
    "(Tensor, Tensor, Tensor)",
    _tokens_backward,
    _fake_tokens_backward,
    on=_EVERYWHERE,
)


def tokens(tensors, call):
    """`linear_token_stats`."""
    found = ops.tokens(*tensors, *_values(call.how, _HEAD), *_values(call.options, _LOSS))
    return tuple(losses_of(result, call) for result in found)


# Decompositions of the operators that exported programs call, in PyTorch's own table, where exporters look for them.


def _decompose_loss(input, target, weight, sample_weight, *values):
    tensors = input, target, weight, sample_weight
    return decompositions.loss(tensors, call_of_loss(input, *values)), *_fake_loss(*tensors, *values)[1:]


def _decompose_head(input, linear_weight, linear_bias, target, weight, sample_weight, classes, wanted, *values):
    tensors = input, linear_weight, linear_bias, target, weight, sample_weight
    call = call_of_head(tensors[:4], classes, *values)
    return decompositions.head_loss(tensors, call), *_fake_head(*tensors, classes, wanted, *values)[1:]


def _decompose_tokens(input, linear_weight, linear_bias, target, *values):
    tensors = input, linear_weight, linear_bias, target
    return decompositions.tokens(tensors, call_of_head(tensors, None, *values))


_of_exported_programs: list[tuple[Any, Any, Any]] = [
    (ops.loss, _decompose_loss, _fake_loss),
    (ops.head, _decompose_head, _fake_head),
    (ops.tokens, _decompose_tokens, _fake_tokens),
]
for _operator, _decomposition, _shapes in _of_exported_programs:
    register_decomposition(_operator.default)(_decomposition)
    meta_table[_operator.default] = _shapes  # else compiling would take the shapes from the decomposition
