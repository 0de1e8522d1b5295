"""PyTorch: kernels for ordinary CPU tensors, plain tensor operations for everything else.

An ordinary call goes through one autograd node whose backward is a kernel too. Other devices, subclasses, function
transforms, forward-mode derivatives and derivatives of derivatives use `kernels.plain`, which PyTorch differentiates
itself, and so does what `torch.jit.trace` records. Under `torch.compile` and `torch.export` the kernels are operators
(`_torch_operators`).
"""

import ctypes
import math
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch._C import _autograd, _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._subclasses.fake_tensor import is_fake
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from crossent import _dispatch, _rows
from crossent._options import number, tell_of_tracing
from crossent.frontends import _problem
from crossent.frontends._memory import LENT_FROM, block
from crossent.frontends._problem import (
    broadcast_samples,
    label_error,
    problem_of,
    ready_plan,
    ready_softmax,
    softmax_backward,
    softmax_forward,
)
from crossent.kernels import BadLabel, plain as array
from crossent.kernels.cpu.threads import use_openmp

_STORAGE = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
INTEGERS = {
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
}  # fmt: skip
_number_at = {torch.float32: ctypes.c_float.from_address, torch.float64: ctypes.c_double.from_address}
_Tensor, _STRIDED = torch.Tensor, torch.strided
_grad_enabled = torch.is_grad_enabled
_compiling = torch.compiler.is_compiling
# Before PyTorch 2.7 nobody says.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)
may_be_exporting = getattr(torch.compiler, "is_exporting", lambda: True)
tell_of_tracing(_compiling)
transforms = torch._C._are_functorch_transforms_active
_tracer = torch._C._get_tracing_state
_set_tracer = torch._C._set_tracing_state  # pyright: ignore[reportAttributeAccessIssue]
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_has_storage = torch._C._has_storage
# Before PyTorch 2.8 nobody says.
_top_hooks = getattr(_autograd, "_top_saved_tensors_default_hooks", lambda _: None)
# To be read from: asked for an address to write to, copy-on-write tensors take memory of their own. PyTorch 2.6 has no
# other than that.
_address = getattr(torch.Tensor, "const_data_ptr", torch.Tensor.data_ptr)
_stride, _threads = torch.Tensor.stride, torch.get_num_threads
_ORDINARY = (torch.Tensor, torch.nn.Parameter)
_NO_OPERATIONS = getattr(torch.Tensor, "__torch_dispatch__")  # noqa: B009 - of which type checkers know nothing
_OPERATOR_FROM = 2**18  # bytes; of less the compiler makes loops that take no longer than the call of an operator
_FINITE = 3e38  # below it a number is, in float32 too
_UNASKED_AT_MOST = 8  # gradients of a plan made in a row for nobody; several losses may wait for one backward pass
_NATIVE_SOFTMAX_CLASSES, _NATIVE_SOFTMAX_NUMBERS = 32, 512

_plain_only = False


@contextmanager
def plain_operations():
    """Have everything computed by `kernels.plain`: what is to become of operators, and what tests are to reach."""
    global _plain_only
    _plain_only, before = True, _plain_only
    try:
        yield
    finally:
        _plain_only = before


def is_traced():
    """Whether `torch.jit.trace`, or an exporter that traces, records PyTorch's operations: kernels it would not see."""
    return _tracer() is not None


@contextmanager
def untraced():
    """Have nothing recorded, and sizes be numbers."""
    tracer = _tracer()
    _set_tracer(None)
    try:
        yield
    finally:
        _set_tracer(tracer)


def numbers(shape):
    """The sizes, which are tensors where they are traced: for checks, whose outcome a trace does not depend on."""
    if not is_traced():
        return shape
    with untraced():
        return torch.Size(int(size) for size in shape)


def ordinary(*tensors):
    """Whether these are CPU tensors that a kernel may read, with no transform in the way."""
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in _ORDINARY and tensor.is_cpu and tensor.layout is torch.strided and not tensor.is_neg()
        ):
            return False
    return not transformed() and not is_traced()


def obstacles(tensors, by_weights):
    """Why no kernel can compute with these; nothing where they are ordinary."""
    found = []
    for tensor in tensors:
        if tensor is not None and not ordinary(tensor) and not transformed():
            found.append(f"a tensor of type {type(tensor).__name__} on {tensor.device} has no kernel")
    if transformed():
        found.append("a function transform, forward-mode differentiation or a dispatch mode is active")
    if by_weights:
        found.append("weight, sample_weight or denominator require a gradient")
    return tuple(dict.fromkeys(found))


def is_plain():
    return _plain_only


def transformed():
    return transforms() or forward_ad._current_level >= 0 or _dispatch_modes() or _plain_only


def may_take_over(input):
    """Whether a type's `__torch_function__` gets the call: torch.compile hands it what a tensor's call is made of."""
    return not (_compiling() and isinstance(input, _Tensor))


def is_operator(input):
    """Whether what is compiled calls an operator: for function transforms it is made of what they can transform."""
    return _compiling() and input.device.type == "cpu" and not transforms()


def _overlaps(tensor):
    """Whether elements may share memory."""
    return torch._debug_has_internal_overlap(tensor) != 0  # pyright: ignore[reportPrivateImportUsage]


def needs_composite(gradient):
    """Whether a backward is to be differentiated itself, or runs under a transform, on something without memory.

    `is_grads_batched` runs it under the older vmap, which nothing else gives away.
    """
    return _grad_enabled() or type(gradient) is not _Tensor or transformed() or not _has_storage(gradient)


def in_memory(gradient):
    """As kernels read it: PyTorch stores some imaginary parts with the other sign, and some zeros not at all."""
    if gradient.is_neg() or gradient._is_zerotensor():
        return torch.zeros(gradient.shape, dtype=gradient.dtype) + gradient
    return gradient


def quick_plan(input, target, dim, options):
    """The plan for the sum or mean over full-precision rows with labels that stay in the caches, one quick to call, and
    what makes their gradient's tensor; None for all else.
    """
    plain = (
        (dim is None or type(dim) is int)
        and type(input) is _Tensor
        and type(target) is _Tensor
        and input.is_cpu
        and target.is_cpu
        and input.layout is _STRIDED
        and not _compiling()
        and not input.is_neg()  # which torch.compile cannot trace
        and not _function_modes()
        and not transformed()
    )
    if not plain:
        return None
    try:
        return _quick(
            input.shape, _stride(input), input.dtype, target.shape, _stride(target), target.dtype, dim, options
        )
    except _IsTracedError:
        return None


class _IsTracedError(Exception):
    """Raised, since what is returned would be kept."""


@lru_cache(maxsize=4096)
def _quick(shape, strides, dtype, target_shape, target_strides, target_dtype, dim, options):
    if is_traced():  # then the sizes are tensors, which nothing kept is equal to: this is reached
        raise _IsTracedError
    if dtype not in _number_at or options.loss_dtype not in (None, _STORAGE[dtype]):
        return None
    plan = ready_plan(TORCH, shape, strides, dtype, target_shape, target_strides, target_dtype, dim, options, False)
    if plan is None or plan.quick_forward is None:
        return None
    return plan, torch.empty_like if _is_small(plan.layout, dtype) else partial(_empty, plan.layout)


def _is_small(layout, dtype):
    """Whether a tensor like this needs neither an order of its own nor memory that is used again."""
    return layout.contiguous and layout.rows * layout.classes * dtype.itemsize < LENT_FROM


def compute_dtype(dtype):
    return torch.float64 if dtype is torch.float64 else torch.float32


def autocasts(device):
    """Whether autocast is on there. Whether there is any is not asked where PyTorch 2.11's torch.compile cannot."""
    known = device != "meta" if _compiling() else torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def without_autocast(device):
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def result_dtype(input, options):
    """The caller's choice, or the input's; autocast gives losses in float32."""
    if options.loss_dtype is not None:
        return getattr(torch, options.loss_dtype)
    return _autocast_result(input)


def _autocast_result(input):
    half = input.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half and autocasts(input.device.type) else input.dtype


class _Numbers(dict):
    """dtype -> a tensor of one number, made on first use: at an import a mode may be on that makes it fake."""

    def __missing__(self, dtype):
        made = self[dtype] = torch.zeros((), dtype=dtype, device="cpu")
        return made


_like = _Numbers()


def _empty(layout, like):
    """A new tensor of the logits' shape in the layout's order."""
    if _is_small(layout, like.dtype):
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    if layout.inverse is not None:
        return new_tensor([like.shape[axis] for axis in layout.order], like.dtype).permute(layout.inverse)
    return new_tensor(like.shape, like.dtype)


def new_tensor(shape, dtype):
    """An uninitialised tensor, a large one in memory that is used again."""
    buffer = block(math.prod(shape) * dtype.itemsize)
    if buffer is None:
        return torch.empty(shape, dtype=dtype)
    # Not the view itself: what autograd sees as one is not to be changed in place.
    view = torch.frombuffer(buffer, dtype=dtype).view(shape)
    return torch.empty(0, dtype=dtype).set_(view)  # pyright: ignore[reportArgumentType]


class TORCH:
    """What `_problem` asks of an array library."""

    storages = {**_STORAGE, torch.int64: "labels"}
    threads = staticmethod(torch.get_num_threads)
    address = staticmethod(_address)  # what is written to is new
    strides = staticmethod(torch.Tensor.stride)
    contiguous = staticmethod(torch.Tensor.contiguous)
    broadcast = staticmethod(torch.Tensor.expand)
    empty = staticmethod(_empty)

    @staticmethod
    def storage(tensor):
        return _STORAGE.get(tensor.dtype)

    @staticmethod
    def is_integer(tensor):
        return tensor.dtype in INTEGERS

    @staticmethod
    def is_mask(tensor):
        return tensor.dtype is torch.bool

    @staticmethod
    def new(shape, storage):
        return torch.empty(shape, dtype=getattr(torch, storage))

    @staticmethod
    def copied(layout, tensor):
        return _empty(layout, tensor).copy_(tensor)

    @staticmethod
    def labels(tensor):
        if tensor.dtype is torch.int64:
            return tensor, None
        wide = tensor.to(torch.int64)
        if tensor.dtype is torch.uint64 and bool((wide < 0).any()):
            return wide, int((wide.reshape(-1) < 0).nonzero()[0])
        return wide, None

    @staticmethod
    def cast(tensor, storage):
        return tensor.detach().to(getattr(torch, storage))

    @staticmethod
    def total(tensor):
        return float(tensor.sum(dtype=torch.float64))

    @staticmethod
    def item(tensor, row):
        return tensor.reshape(-1)[row].item()


# Cross entropy


def result(loss, dtype):
    if type(loss) is float:
        if dtype in _number_at:
            return tensor_of(loss, dtype)
        loss = tensor_of(loss, torch.float32)
    return loss.to(dtype)


def tensor_of(value, dtype):
    """A tensor of one full-precision number, in less time than PyTorch takes; infinity where it is too large."""
    tensor = torch.empty_like(_like[dtype])
    _number_at[dtype](_address(tensor)).value = value
    return tensor


def upstream(problem, dloss, scale):
    """The gradient from above, as rows or as part of the scale."""
    if dloss.ndim:
        return TORCH.cast(in_memory(dloss), problem.compute).contiguous(), scale
    return None, scale * float(dloss)


class _CrossEntropy(torch.autograd.Function):
    """Forward makes the gradient in passing where that is best and it is asked for; the first backward hands it out."""

    @staticmethod
    def forward(ctx, input, target, problem, call):
        weight, sample_weight, dim, divisor, out_dtype, in_place = call
        stats = ctx.made = None
        plan = problem.plan
        if plan.unit is None or in_place or ctx.needs_input_grad[1]:
            stats = problem.new_stats()
            loss, scale = problem.forward(divisor, stats)
        else:
            dx, unit = None, problem.unit(divisor)
            if _makes_gradient(plan):
                dx = _empty(problem.layout, input)
                loss, scale = problem.forward_and_backward(divisor, unit, dx)
            else:
                loss, scale = problem.forward(divisor)
            if _rows.workable(scale / unit):
                ctx.made = dx, unit, plan
        ctx.save_for_backward(input, target, weight, sample_weight)
        ctx.kept = problem.options, (dim, divisor, out_dtype, in_place), stats, scale
        return result(loss, out_dtype)

    @staticmethod
    def backward(ctx, dloss):
        tensors = ctx.saved_tensors
        options, (dim, divisor, *_), _, scale = ctx.kept
        if ctx.made is not None:
            dx, unit, plan = ctx.made
            ctx.made, plan.unasked = (None, unit, plan), 0
            factor = math.inf if needs_composite(dloss) else scale / unit * float(in_memory(dloss))
            if abs(factor) < _FINITE:
                if dx is None:
                    dx = _made_again(tensors, dim, options, divisor, unit)
                return dx if factor == 1.0 else dx.mul_(factor), None, None, None
            dx = None  # two are not to wait at once
        return *_gradients(ctx, dloss, tensors, *ctx.kept), None, None


def _made_again(tensors, dim, options, divisor, unit):
    """With the bits that it had in forward, of tensors to which hooks may have given other strides."""
    input, target, weight, sample_weight = tensors
    problem = problem_of(TORCH, input, target, weight, sample_weight, dim, options)
    dx = _empty(problem.layout, input)
    problem.forward_and_backward(divisor, unit, dx)
    return dx


def _makes_gradient(plan):
    """Whether forward is to make the gradient, which is counted: not where the last ones were made for nobody, as in an
    evaluation with gradients on, until a backward pass comes; nor where hooks put away what waits.
    """
    if plan.unasked >= _UNASKED_AT_MOST or packs_what_is_saved():
        return False
    plan.unasked += 1
    return True


def packs_what_is_saved():
    """Whether hooks put away what is saved for backward, as in a checkpoint: then no gradient is to wait beside it."""
    return _top_hooks(True) is not None


def _gradients(ctx, dloss, tensors, options, call, stats, scale):
    """For the logits and the target, made in the backward pass; ignored rows get zeros whatever comes from above."""
    input, target, weight, sample_weight = tensors
    dim, divisor, out_dtype, inplace = call
    if needs_composite(dloss):
        arguments = weight, sample_weight, divisor, dim, options, out_dtype
        return _differentiable_grads(ctx, composite, input, target, dim, arguments, dloss)
    if inplace:
        input.data_ptr()  # after which it shares memory with no copy on write
    problem = problem_of(TORCH, input, target, weight, sample_weight, dim, options)
    in_place = inplace and ctx.needs_input_grad[0] and problem.x is input and not _overlaps(input)
    dx = input.detach() if in_place else _empty(problem.plan.layout, input)
    dtarget, *_ = problem.backward(stats, *upstream(problem, dloss, scale), dx, ctx.needs_input_grad[1])
    if in_place:
        torch.autograd.graph.increment_version(input)
    return dx, dtarget


class _QuickCrossEntropy(torch.autograd.Function):
    """The same for what there is a `quick_plan` for, in less time."""

    @staticmethod
    def forward(ctx, input, target, call):
        plan, new, options, _ = call
        if _makes_gradient(plan):
            dx = new(input)
            addresses = _address(input), _address(target), _address(dx)
            losses, weights = plan.quick_backward(addresses, _threads, (input, target, dx))
        else:
            dx = None
            losses, weights = plan.quick_forward((_address(input), _address(target), 0), _threads, (input, target))
        loss, scale = _rows.reduced(options.reduction, losses, weights, None)
        ctx.save_for_backward(input, target)
        ctx.made = dx, scale, call
        return tensor_of(loss, input.dtype)

    @staticmethod
    def backward(ctx, dloss):
        dx, scale, call = ctx.made
        ctx.made = None, scale, call
        plan, _, options, dim = call
        plan.unasked = 0
        tensors = *ctx.saved_tensors, None, None
        if needs_composite(dloss):
            factor = math.inf  # as what this node leaves to the other
        else:
            dloss = in_memory(dloss)
            factor = _number_at[dloss.dtype](_address(dloss)).value
        if scale != plan.unit:  # where rows are ignored the mean is of fewer
            factor *= scale / plan.unit
        if not abs(factor) < _FINITE:
            dx = None  # two are not to wait at once
            as_called = dim, None, tensors[0].dtype, False
            return *_gradients(ctx, dloss, tensors, options, as_called, None, scale), None
        if dx is None:
            dx = _made_again(tensors, dim, options, None, plan.unit)
        return dx if factor == 1.0 else dx.mul_(factor), None, None


def _differentiable_grads(ctx, function, input, target, dim, arguments, dloss):
    """Gradients that can be differentiated again, by way of plain tensor operations.

    Rows do not depend on each other, so the gradient of their sum times what comes from above is all there is.
    """
    wanted = [t for t, needed in zip((input, target), ctx.needs_input_grad, strict=False) if needed]
    again = _grad_enabled()
    with torch.enable_grad():
        loss = function(input, target, *arguments)
        grads = torch.autograd.grad(loss.sum(), wanted, create_graph=again)
    with torch.set_grad_enabled(again):
        if loss.ndim:
            dloss = dloss.unsqueeze(_rows.class_axis(input.ndim, dim))
        scaled = iter([(grad * dloss).to(grad.dtype) for grad in grads])
    return [next(scaled) if needed else None for needed in ctx.needs_input_grad[:2]]


_OPENMP = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
if _OPENMP:
    use_openmp(str(_OPENMP[0]))


def _applier(function) -> Callable:
    """Function.apply less its checks for function transforms, which have been ruled out where it is called.

    Nor does the node look for a function that is differentiated forward before it calls the one it has.
    """
    function._backward_cls.apply = function.backward
    return super(torch.autograd.Function, function).apply  # pyright: ignore[reportAttributeAccessIssue]


_apply_cross_entropy = _applier(_CrossEntropy)
_apply_quick_cross_entropy = _applier(_QuickCrossEntropy)


def cross_entropy(input, target, weight, sample_weight, denominator, dim, options, inplace_backward):
    if weight is sample_weight is denominator is None and not inplace_backward:
        try:
            quick = quick_plan(input, target, dim, options)
            if quick is not None:
                plan, new = quick
                if input.requires_grad and _grad_enabled():
                    return _apply_quick_cross_entropy(input, target, (plan, new, options, dim))
                losses, weights = plan.quick_forward((_address(input), _address(target), 0), _threads, (input, target))
                return tensor_of(_rows.reduced(options.reduction, losses, weights, None)[0], input.dtype)
        except BadLabel as bad:
            raise label_error(TORCH, target, bad.row, plan.layout, options) from None
        except RuntimeError:  # a sparse tensor has no address, a nested one no shape
            checked(input=input, target=target)
            raise
    tensors = (input, target, weight, sample_weight, denominator)
    if has_torch_function(tensors) and may_take_over(input):
        return handle_torch_function(
            _dispatch.public("cross_entropy"), tensors, input, target, weight, None, options.ignore_index, None,
            options.reduction, options.label_smoothing, dim=dim, sample_weight=sample_weight, denominator=denominator,
            softcap=options.softcap, z_loss=options.z_loss, inplace_backward=inplace_backward,
            loss_dtype=options.loss_dtype,
        )  # fmt: skip
    of_any_type = input
    input, target, weight, sample_weight = checked(
        input=input, target=target, weight=weight, sample_weight=sample_weight
    )
    if input is not of_any_type:  # for which there is a quick plan perhaps
        return cross_entropy(input, target, weight, sample_weight, denominator, dim, options, inplace_backward)
    if type(input) not in _ORDINARY and is_distributed(input):
        arguments = input, target, weight, sample_weight, denominator, dim, options, inplace_backward
        return distributed().loss(cross_entropy, *arguments)
    common = common_dtype(input, target)
    if common is not None:
        input, target = input.to(common), target.to(common)
    out_dtype = result_dtype(input, options)
    divisor = divisor_of(options, denominator, input)
    by_weights = differentiates_weights(weight, sample_weight, divisor)
    if is_operator(input) and not by_weights:
        from crossent.frontends import _torch_operators

        return _torch_operators.loss(input, target, weight, sample_weight, divisor, False, dim, options, out_dtype)
    if by_weights or _compiling() or not ordinary(input, target, weight, sample_weight):
        return composite(input, target, weight, sample_weight, divisor, dim, options, out_dtype)
    problem = problem_of(TORCH, input, target, weight, sample_weight, dim, options)
    divisor = None if divisor is None else float(divisor)  # may be on another device
    if _grad_enabled() and (input.requires_grad or target.requires_grad):
        call = weight, sample_weight, dim, divisor, out_dtype, inplace_backward
        return _apply_cross_entropy(input, target, problem, call)
    return result(problem.forward(divisor)[0], out_dtype)


def common_dtype(input, target):
    """The wider type, in which logits and probabilities meet; None for labels."""
    soft = target.dtype in _STORAGE and input.dtype in _STORAGE and numbers(target.shape) == numbers(input.shape)
    return torch.promote_types(input.dtype, target.dtype) if soft else None


_REQUIRED = ("input", "target", "linear_weight")


def checked(**tensors):
    """These, once they are dense tensors on one device; of subclasses that are plain memory, as plain tensors. None is
    not checked where it may be given.
    """
    for name, tensor in tensors.items():
        if tensor is None and name not in _REQUIRED:
            continue
        plain = type(tensor) in _ORDINARY and tensor.is_cpu and tensor.layout is _STRIDED and not tensor.is_nested
        if not plain:
            return _checked(tensors)
    return tensors.values()


def _checked(tensors):
    device = None
    for name, tensor in tensors.items():
        if tensor is None and name not in _REQUIRED:
            continue
        if not isinstance(tensor, _Tensor):
            raise TypeError(f"{name} must be a tensor like input, got {type(tensor).__name__}")
        if tensor.layout is not _STRIDED or tensor.is_nested:
            got = "a nested one" if tensor.is_nested else f"layout {tensor.layout}"
            raise TypeError(f"{name} must be a dense tensor, got {got}")
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise _device_error(name, tensor, device)
        if type(tensor) not in _ORDINARY:
            _check_distributed(name, tensor, tensors["input"])
            tensors[name] = _plain(tensor)
    return tensors.values()


def is_distributed(tensor):
    """Whether it is a DTensor, of which there is none as long as nobody has imported them."""
    if type(tensor) in _ORDINARY:
        return False
    defined = sys.modules.get("torch.distributed.tensor")
    return defined is not None and isinstance(tensor, defined.DTensor)


def distributed():
    from crossent.frontends import _torch_distributed

    return _torch_distributed


def _check_distributed(name, tensor, input):
    if is_distributed(tensor) and not is_distributed(input):
        raise TypeError(
            f"{name} must be a plain tensor like input, got a DTensor: distribute input as well, or take the "
            "full_tensor() of this"
        )


def _device_error(name, tensor, device):
    return ValueError(f"{name} must be on the device of input, {device}, got {tensor.device}")


def _plain(tensor):
    """A subclass's memory as a plain tensor; itself where operations on it mean something of their own."""
    if _compiling() or type(tensor).__torch_dispatch__ is not _NO_OPERATIONS:
        return tensor
    return tensor.as_subclass(_Tensor)


def divisor_of(options, denominator, input):
    """The caller's denominator: a number where no device has to be waited for and nothing differentiates it.

    It may be on any device from which it can be read.
    """
    if denominator is None:
        return None
    if not isinstance(denominator, torch.Tensor):
        _rows.check_denominator(options, 0)
        return number("denominator", denominator)
    _rows.check_denominator(options, denominator.ndim)
    if denominator.is_meta and not input.is_meta:
        raise _device_error("denominator", denominator, input.device)
    if type(denominator) not in _ORDINARY:
        _check_distributed("denominator", denominator, input)
        denominator = _plain(denominator)
    if _compiling() or denominator.requires_grad or not ordinary(denominator):
        return denominator
    return float(denominator)


def differentiates_weights(weight, sample_weight, divisor):
    return torch.is_grad_enabled() and (
        (weight is not None and weight.requires_grad)
        or (sample_weight is not None and sample_weight.requires_grad)
        or (isinstance(divisor, torch.Tensor) and divisor.requires_grad)
    )


# Plain tensor operations


def checked_rows(input, target, weight, sample_weight, dim, options, soft_allowed):
    """Class axis, kind of target, int64 labels, class weights and what each row counts (0: ignored)."""
    shape = numbers(input.shape)
    axis, soft = _rows.target_kind(shape, numbers(target.shape), dim, soft_allowed)
    if input.dtype not in _STORAGE:
        raise _rows.dtype_error("input", input.dtype)
    _rows.check_target_dtype(soft, target.dtype in _STORAGE, target.dtype in INTEGERS, target.dtype)
    dtype = compute_dtype(input.dtype)
    row_shape = input.shape[:axis] + input.shape[axis + 1 :]
    keep = torch.ones(row_shape, dtype=dtype, device=input.device)
    if sample_weight is not None:
        keep = spread(sample_weight, row_shape).to(dtype)
    if weight is not None:
        _rows.check_weight(numbers(weight.shape), shape[axis])
        if weight.dtype not in _STORAGE:
            raise _rows.dtype_error("weight", weight.dtype)
        weight = weight.to(dtype)
    if soft:
        _rows.check_soft_options(options)
        return axis, soft, target, weight, keep
    if target.dtype is torch.uint64 and concrete(target) is not None:
        row = TORCH.labels(concrete(target))[1]
        if row is not None:
            label = TORCH.item(concrete(target), row)
            raise _rows.label_error(label, row, row_shape, input.shape[axis], options.ignore_index)
    target = target.to(torch.int64)
    keep = torch.where(target == options.ignore_index, 0.0, keep)
    target, keep = _checked_labels(target, keep, input.shape[axis], options.ignore_index)
    return axis, soft, target, weight, keep


def spread(sample_weight, row_shape):
    """Broadcast to the rows."""
    if is_traced():
        with untraced():
            broadcast_samples(TORCH, sample_weight, numbers(row_shape))
        return sample_weight.expand(row_shape)
    return broadcast_samples(TORCH, sample_weight, row_shape)


def outside(labels, classes):
    return (labels < 0) | (labels >= classes)


def _checked_labels(labels, keep, classes, ignore_index):
    """Both as they are; where no label can be looked at, bad ones become a class whose row counts nan.

    What is compiled for the CPU looks when it runs, unless it was exported to where there is nobody to ask; a trace
    refuses what it is made with, and counts nan when it runs.
    """
    if is_traced():
        with untraced():
            _checked_labels(labels, keep, numbers((classes,))[0], ignore_index)
    target, counts = concrete(labels), concrete(keep)
    if target is not None and counts is not None:
        refuse_bad_labels(target, counts, classes, ignore_index)
        return labels, keep
    if _compiling() and labels.device.type == "cpu" and not _plain_only:
        from crossent.frontends import _torch_operators  # noqa: F401 - defines them

        labels = torch.ops.crossent.checked_labels(labels, keep.detach(), classes, ignore_index)
    bad = outside(labels, classes) & (keep != 0)
    return torch.where(bad, 0, labels), torch.where(bad, math.nan, keep)


def refuse_bad_labels(labels, counts, classes, ignore_index):
    bad = outside(labels, classes) & (labels != ignore_index)
    if counts.shape == labels.shape:
        bad = bad & (counts != 0)
    if bool(bad.any()):
        row = int(bad.reshape(-1).nonzero()[0])
        raise _rows.label_error(TORCH.item(labels, row), row, labels.shape, classes, ignore_index)


def concrete(tensor):
    """The tensor with values under function transforms, or None where there are none, or none to wait for."""
    if _compiling() or is_traced() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    fake = tensor.is_meta or is_fake(tensor)
    return None if fake or _dispatch_modes() else tensor.detach()


def composite(input, target, weight, sample_weight, divisor, dim, options, out_dtype):
    axis, soft, target, weight, keep = checked_rows(input, target, weight, sample_weight, dim, options, True)
    target = target.to(keep.dtype) if soft else target
    x, target, keep, axis = _lined_up(input, target, keep, axis)
    rows = array.row_losses(torch, x.to(keep.dtype), target, soft, weight, keep, options, axis, torch.Tensor.detach)
    return _of_rows(input, reduce(rows, target, soft, weight, keep, divisor, options)).to(out_dtype)


def _lined_up(input, target, keep, axis):
    """A single row becomes a line of one: an index without an axis is read, and forward mode gives it another dtype."""
    return (input, target, keep, axis) if keep.ndim else (input[None], target[None], keep[None], 1)


def _of_rows(input, result):
    """Without the axis of `_lined_up`."""
    return result[0] if result.ndim >= input.ndim else result


def reduce(rows, target, soft, weight, keep, divisor, options):
    if options.reduction == "none":
        return rows
    total = rows.sum()
    if options.reduction == "mean":
        if divisor is None:
            divisor = array.row_weights(torch, target, soft, weight, keep).sum()
        total = total / divisor
    return total


# Negative log likelihood


class _NLLLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, problem, call):
        loss, scale = problem.forward(call[3])
        ctx.save_for_backward(input, target, *call[:2])
        ctx.kept = problem.options, call[2:], scale
        return result(loss, call[4])

    @staticmethod
    def backward(ctx, dloss):
        input, target, weight, sample_weight = ctx.saved_tensors
        options, (dim, divisor, out_dtype), scale = ctx.kept
        if needs_composite(dloss):
            arguments = weight, sample_weight, divisor, dim, options, out_dtype
            return *_differentiable_grads(ctx, composite_nll, input, target, dim, arguments, dloss), None, None
        problem = problem_of(TORCH, input, target, weight, sample_weight, dim, options, picks=True)
        dx = _empty(problem.layout, input).zero_()
        problem.backward(None, *upstream(problem, dloss, scale), dx, False)
        return dx, None, None, None


_apply_nll_loss = _applier(_NLLLoss)


def nll_loss(input, target, weight, sample_weight, denominator, dim, options):
    tensors = (input, target, weight, sample_weight, denominator)
    if has_torch_function(tensors) and may_take_over(input):
        return handle_torch_function(
            _dispatch.public("nll_loss"), tensors, input, target, weight, None, options.ignore_index, None,
            options.reduction, dim=dim, sample_weight=sample_weight, denominator=denominator,
            loss_dtype=options.loss_dtype,
        )  # fmt: skip
    input, target, weight, sample_weight = checked(
        input=input, target=target, weight=weight, sample_weight=sample_weight
    )
    if type(input) not in _ORDINARY and is_distributed(input):
        return distributed().loss(nll_loss, input, target, weight, sample_weight, denominator, dim, options)
    out_dtype = result_dtype(input, options)
    divisor = divisor_of(options, denominator, input)
    by_weights = differentiates_weights(weight, sample_weight, divisor)
    if is_operator(input) and not by_weights:
        from crossent.frontends import _torch_operators

        return _torch_operators.loss(input, target, weight, sample_weight, divisor, True, dim, options, out_dtype)
    if by_weights or _compiling() or not ordinary(input, target, weight, sample_weight):
        return composite_nll(input, target, weight, sample_weight, divisor, dim, options, out_dtype)
    problem = problem_of(TORCH, input, target, weight, sample_weight, dim, options, picks=True)
    if _grad_enabled() and input.requires_grad:
        return _apply_nll_loss(input, target, problem, (weight, sample_weight, dim, divisor, out_dtype))
    return result(problem.forward(divisor)[0], out_dtype)


def composite_nll(input, target, weight, sample_weight, divisor, dim, options, out_dtype):
    axis, soft, target, weight, keep = checked_rows(input, target, weight, sample_weight, dim, options, False)
    x, target, keep, axis = _lined_up(input, target, keep, axis)
    rows = array.picked_losses(torch, x.to(keep.dtype), target, weight, keep, axis)
    return _of_rows(input, reduce(rows, target, soft, weight, keep, divisor, options)).to(out_dtype)


# Metrics


def prediction_stats(input, target, dim, options):
    if has_torch_function((input, target)) and may_take_over(input):
        return handle_torch_function(
            _dispatch.public("prediction_stats"), (input, target), input, target, dim=dim,
            ignore_index=options.ignore_index,
        )  # fmt: skip
    input, target = checked(input=input, target=target)
    if type(input) not in _ORDINARY and is_distributed(input):
        return distributed().prediction_stats(input, target, dim, options)
    input = input.detach()
    if not _compiling() and ordinary(input, target):
        return _problem.prediction_stats(TORCH, input, target, dim, options)
    axis, _, target, _, keep = checked_rows(input, target, None, None, dim, options, False)
    x, target, keep, axis = _lined_up(input, target, keep, axis)
    stats = array.prediction_stats(torch, x.to(keep.dtype), target, keep, axis)
    return tuple(_of_rows(input, result) for result in stats)


# Softmax


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, call):
        out = _softmax_of(x, call)
        ctx.save_for_backward(out)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx, dout):
        (out,) = ctx.saved_tensors
        _, _, dim, log = ctx.call
        if needs_composite(dout):
            return _softmax_grad(out, dout, dim, log), None
        dout = in_memory(dout)
        if dout.dtype is not out.dtype:
            dout = dout.to(out.dtype)
        return softmax_backward(TORCH, out, dout, dim, log), None


_apply_softmax = _applier(_Softmax)


@lru_cache(maxsize=4096)
def _softmax_call(shape, strides, dtype, dim, log):
    """The plan for ordinary tensors, what makes their result's, and the rest of the call."""
    if is_traced():
        raise _IsTracedError
    plan = ready_softmax(TORCH, shape, strides, dtype, dim, log)
    if plan is None:
        return None, None, dim, log
    return plan, torch.empty_like if _is_small(plan.layout, dtype) else partial(_empty, plan.layout), dim, log


def _softmax_of(x, call):
    plan, new, dim, log = call
    if plan is None:
        return softmax_forward(TORCH, x, dim, log)
    out = new(x)
    plan.forward((_address(x), _address(out)), _threads, (x, out))
    return out


def _softmax_grad(out, dout, dim, log):
    """The derivative in operations that can be differentiated again: `out` is a function of the input."""
    if not log:
        return out * (dout - (out * dout).sum(dim, keepdim=True))
    return array.log_softmax_grad(torch, out, dout, dim)


def is_tiny(input, dim):
    """Whether PyTorch's node of the graph, which is not in Python, saves more time than its row loop takes longer."""
    short = input.shape[dim] <= _NATIVE_SOFTMAX_CLASSES and input.stride()[dim] == 1
    return short and input.numel() <= _NATIVE_SOFTMAX_NUMBERS and input.dtype in _number_at


def softmax(input, dim, dtype, log, stacklevel):
    plain = (
        dtype is None
        and type(dim) is int
        and type(input) is _Tensor
        and input.is_cpu
        and input.layout is _STRIDED
        and input.ndim
        and not _compiling()
        and not input.is_neg()
        and not _function_modes()
        and not transformed()
    )
    if plain:
        try:
            call = _softmax_call(input.shape, _stride(input), input.dtype, dim, log)
        except (_IsTracedError, RuntimeError):  # a nested tensor has no shape
            pass
        else:
            if not (input.requires_grad and _grad_enabled()):
                return _softmax_of(input, call)
            return input.softmax(dim) if not log and is_tiny(input, dim) else _apply_softmax(input, call)
    name = "log_softmax" if log else "softmax"
    if has_torch_function((input,)) and may_take_over(input):
        return handle_torch_function(_dispatch.public(name), (input,), input, dim, dtype=dtype)
    if dim is None:
        dim = _rows.softmax_axis(input.ndim, dim, name, stacklevel)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    if dtype is None and not input.is_cpu:  # where autocast gives softmax in float32
        dtype = _autocast_result(input)
    if input.is_nested:
        if log and input.layout is _STRIDED:  # which PyTorch does not have
            checked(input=input)
        return _native_softmax(input if dtype is None else input.to(dtype), dim, log)
    x = input if type(input) in _ORDINARY else _plain(input)
    x = x if dtype is None else x.to(dtype)
    if x is not input:
        return softmax(x, dim, None, log, stacklevel)
    if x.dtype not in _STORAGE:
        raise _rows.dtype_error("input", x.dtype)
    if not x.ndim:
        return _native_softmax(x, dim, log)
    axis = _rows.class_axis(x.ndim, dim)
    if type(x) not in _ORDINARY and is_distributed(x):
        return distributed().softmax(x, axis, log)
    if _compiling():
        return _compiled_softmax(x, axis, log)
    if not ordinary(x):
        return _plain_softmax(x, axis, log)
    call = _softmax_call(x.shape, _stride(x), x.dtype, axis, log)
    return _apply_softmax(x, call) if x.requires_grad and _grad_enabled() else _softmax_of(x, call)


class _FusedLogSoftmax(torch.autograd.Function):
    """Plain operations with their derivative by formula, of which the compiler makes fewer loops than it derives: at
    128 x 100 a step takes 127 us instead of 272 (`python -m benchmarks.softmax`).
    """

    @staticmethod
    def forward(ctx, x, axis):
        out = array.log_softmax(torch, x, axis, torch.Tensor.detach)
        ctx.save_for_backward(out)
        ctx.axis = axis
        return out

    @staticmethod
    def backward(ctx, dout):
        return array.log_softmax_grad(torch, ctx.saved_tensors[0], dout, ctx.axis), None


def _compiled_softmax(x, axis, log):
    """For much at once the kernels; less is left to the compiler to fuse, and exported programs to PyTorch."""
    if not is_operator(x) or is_exporting():
        return _plain_softmax(x, axis, log)
    if x.numel() * x.itemsize < _OPERATOR_FROM:
        if log and x.device.type == "cpu":
            return _FusedLogSoftmax.apply(x.to(compute_dtype(x.dtype)), axis).to(x.dtype)
        return _plain_softmax(x, axis, log)
    from crossent.frontends import _torch_operators  # noqa: F401 - defines them

    return torch.ops.crossent.softmax(x, axis, log)


def _plain_softmax(x, axis, log):
    """In plain operations where PyTorch's own lose digits, unless the device is one on which these take several times
    as long.
    """
    if log and x.device.type == "cpu":
        return array.log_softmax(torch, x.to(compute_dtype(x.dtype)), axis, torch.Tensor.detach).to(x.dtype)
    return _native_softmax(x, axis, log)


def _native_softmax(x, dim, log):
    """PyTorch's own; for 16 bits in float32, since its own kernels round on the way."""
    native = torch.log_softmax if log else torch.softmax
    if x.itemsize > 2:
        return native(x, dim)
    if is_traced():  # what TorchScript differentiates when it is told a dtype is a gradient of that dtype
        return native(x.float(), dim).to(x.dtype)
    return native(x, dim, dtype=torch.float32).to(x.dtype)


def value_and_grad(function, input, args, kwargs):
    """The loss and its gradient by `torch.autograd.grad`; `input` need not require one."""
    with torch.enable_grad():
        logits = input.detach().requires_grad_()
        loss = function(logits, *args, **kwargs)
        if loss.ndim:
            raise ValueError(f"value_and_grad needs a loss that is one number, got shape {tuple(loss.shape)}")
        (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def linear_cross_entropy(*arguments):
    """See `_torch_head`, which is imported at its first use."""
    from crossent.frontends import _torch_head

    return _torch_head.linear_cross_entropy(*arguments)


def linear_token_stats(*arguments):
    from crossent.frontends import _torch_head

    return _torch_head.linear_token_stats(*arguments)


def plan(name, arguments, options, how):
    from crossent.frontends import _torch_plans

    return _torch_plans.plan(name, arguments, options, how)
