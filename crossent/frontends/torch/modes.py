"""What PyTorch is doing while a call is made: tracing, compiling, transforming functions, autocasting."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch._C import _autograd, _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad

from crossent._options import tell_of_tracing
from crossent._plan import PLAIN
from crossent.kernels.cpu.threads import use_openmp

grad_enabled = torch.is_grad_enabled
compiling = torch.compiler.is_compiling
tell_of_tracing(compiling)
transforms = torch._C._are_functorch_transforms_active
tracer = torch._C._get_tracing_state
_set_tracer = torch._C._set_tracing_state  # pyright: ignore[reportAttributeAccessIssue]
dispatch_modes = torch._C._len_torch_dispatch_stack
function_modes = torch._C._len_torch_function_stack
# Before PyTorch 2.8 this cannot be asked.
top_hooks = getattr(_autograd, "_top_saved_tensors_default_hooks", {}.get)
threads = torch.get_num_threads
forced = None  # the only way that calls may take


@contextmanager
def only(way):
    """Compute everything by PLAIN, as the decompositions of operators are, or losses by STAGES, for tests."""
    global forced
    forced, before = way, forced
    try:
        yield
    finally:
        forced = before


def is_exporting(unknown=False):
    """Whether torch.export records the call; `unknown` before PyTorch 2.7, where nobody says.

    The flag is read, not `torch.compiler.is_exporting()`: that is True in every call which PyTorch 2.10 compiles.
    """
    return getattr(torch.compiler, "_is_exporting_flag", unknown)


def may_be_exporting():
    return is_exporting(unknown=True)


def is_traced():
    """Whether `torch.jit.trace`, or an exporter that traces, records PyTorch's operations; it would not see kernels."""
    return tracer() is not None


@contextmanager
def untraced():
    """Record nothing, so that sizes are numbers."""
    before = tracer()
    _set_tracer(None)
    try:
        yield
    finally:
        _set_tracer(before)


def numbers(shape):
    """The sizes as numbers; traced sizes are tensors. For checks, on whose outcome a trace does not depend."""
    if not is_traced():
        return shape
    with untraced():
        return torch.Size(int(size) for size in shape)


def is_plain():
    return forced is PLAIN


def transformed():
    return transforms() or forward_ad._current_level >= 0 or dispatch_modes() or forced is PLAIN


def unwrapped(tensor):
    """The tensor inside function transforms."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def outside_transforms():
    """Function transforms see nothing of what is done here, and change none of its tensors."""
    if not transforms():
        return nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def constrained():
    """Whether a call is transformed, or only one way is open to it."""
    return transforms() or forward_ad._current_level >= 0 or dispatch_modes() or forced is not None


def may_take_over(input):
    """Whether a type's `__torch_function__` gets the call; torch.compile gives it the operations inside the call."""
    return not (compiling() and isinstance(input, torch.Tensor))


def is_operator(input, devices=("cpu",)):
    """Whether a compiled call becomes an operator, on these devices. In transforms it does not: they cannot see in."""
    return compiling() and input.device.type in devices and not transforms()


class IsTracedError(Exception):
    """Raised by functions whose results are kept: what they would return while tracing must not be kept."""


def autocasts(device):
    """Whether autocast is on for the device. PyTorch 2.11's torch.compile cannot ask whether a device has autocast."""
    known = device != "meta" if compiling() else torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def without_autocast(device):
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def packs_what_is_saved():
    """Whether hooks put away what is saved for backward, as in a checkpoint: then no gradient must wait beside it."""
    return top_hooks(True) is not None


_OPENMP = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
if _OPENMP:
    use_openmp(str(_OPENMP[0]))


def applier(function) -> Callable:
    """Function.apply without its checks for function transforms, which its callers have ruled out.

    Nor does the node look for a `vjp` before it calls its `backward`.
    """
    function._backward_cls.apply = function.backward
    return super(torch.autograd.Function, function).apply  # pyright: ignore[reportAttributeAccessIssue]
