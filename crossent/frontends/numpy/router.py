"""NumPy: the kernels on arrays of any strides and byte order, and gradients by `value_and_grad`."""

import numpy as np

from crossent import _rows
from crossent.frontends import _plans, _problem
from crossent.frontends._problem import problem_of, softmax_forward
from crossent.frontends.numpy.arrays import NUMPY, Tape, divisor_of, readable, result, tape_of_call


def _inputs(input, target, weight, sample_weight):
    return (
        readable("input", input),
        readable("target", target),
        None if weight is None else readable("weight", weight),
        None if sample_weight is None else readable("sample_weight", sample_weight),
    )


def _promoted(input, target):
    """Logits and probabilities of two float types meet in the wider one."""
    if not (target.shape == input.shape and NUMPY.storage(target) and NUMPY.storage(input)):
        return input, target
    try:
        common = np.promote_types(input.dtype, target.dtype)
    except TypeError:  # float16 and bfloat16, each of which has numbers that the other has not
        common = np.dtype(np.float32)
    return input.astype(common, copy=False), target.astype(common, copy=False)


def cross_entropy(input, target, weight, sample_weight, denominator, dim, options, inplace_backward):
    if inplace_backward:
        raise ValueError("inplace_backward needs PyTorch's autograd; NumPy has value_and_grad")
    logits, target, weight, sample_weight = _inputs(input, target, weight, sample_weight)
    logits, target = _promoted(logits, target)
    divisor, tape = divisor_of(options, denominator), tape_of_call.get()
    problem = problem_of(NUMPY, logits, target, weight, sample_weight, dim, options)
    wanted = tape is not None and tape.input is input
    if wanted and problem.plan.unit is not None:
        loss, gradient = _made_at_once(problem, divisor)
    else:
        stats = problem.new_stats() if wanted else None
        loss, scale = problem.forward(divisor, stats)

        def gradient():
            return _new_gradient(problem, stats, scale)

    loss = result(loss, logits.dtype, options)
    if wanted:
        tape.record(loss, gradient)
    return loss


def _new_gradient(problem, stats, scale):
    dx = NUMPY.empty(problem.layout, problem.x)
    problem.backward(stats, None, scale, dx, False)
    return dx


def _made_at_once(problem, divisor):
    """The loss, and a call that returns the gradient made with it."""
    dx, unit = NUMPY.empty(problem.layout, problem.x), problem.unit(divisor)
    loss, scale = problem.forward_and_backward(divisor, unit, dx)

    def gradient():
        factor = scale / unit
        if not _rows.workable(factor):
            return _new_gradient(problem, None, scale)
        return dx if factor == 1.0 else np.multiply(dx, factor, out=dx)

    return loss, gradient


def nll_loss(input, target, weight, sample_weight, denominator, dim, options):
    logits, target, weight, sample_weight = _inputs(input, target, weight, sample_weight)
    divisor, tape = divisor_of(options, denominator), tape_of_call.get()
    problem = problem_of(NUMPY, logits, target, weight, sample_weight, dim, options, picks=True)
    loss, scale = problem.forward(divisor)
    loss = result(loss, logits.dtype, options)
    if tape is not None and tape.input is input:

        def gradient():
            dx = NUMPY.empty(problem.layout, logits)
            dx[...] = 0
            problem.backward(None, None, scale, dx, False)
            return dx

        tape.record(loss, gradient)
    return loss


def softmax(input, dim, dtype, log, stacklevel):
    x = readable("input", input)
    if dtype is not None:
        if x.dtype.kind not in "fiub" and NUMPY.storage(x) is None:
            raise _rows.dtype_error("input", x.dtype)
        x = x.astype(np.dtype(dtype), copy=False)
    if NUMPY.storage(x) is None:
        raise _rows.dtype_error("input", x.dtype)
    axis = _rows.softmax_axis(x.ndim, dim, "log_softmax" if log else "softmax", stacklevel)
    if not x.ndim:
        return softmax(x[None], 0, None, log, stacklevel)[0]
    return softmax_forward(NUMPY, x, axis, log)


def prediction_stats(input, target, dim, options):
    return _problem.prediction_stats(NUMPY, readable("input", input), readable("target", target), dim, options)


def linear_cross_entropy(*arguments):
    """See `head`, which is imported at its first use."""
    from crossent.frontends.numpy import head

    return head.linear_cross_entropy(*arguments)


def linear_token_stats(*arguments):
    from crossent.frontends.numpy import head

    return head.linear_token_stats(*arguments)


def value_and_grad(function, input, args, kwargs):
    tape = Tape(input)
    token = tape_of_call.set(tape)
    try:
        loss = function(input, *args, **kwargs)
    finally:
        tape_of_call.reset(token)
    if tape.gradient is None or loss is not tape.loss:
        raise TypeError(
            "value_and_grad of NumPy arrays takes cross_entropy, nll_loss or linear_cross_entropy, or a call that "
            "returns its loss"
        )
    if np.ndim(loss):
        raise ValueError(f"value_and_grad needs a loss that is one number, got shape {np.shape(loss)}")
    return loss, tape.gradient()


def plan(name, arguments, options, how):
    from crossent.frontends.numpy import head

    a = arguments
    input = readable("input", a["input"])
    if name in ("softmax", "log_softmax"):
        x = input if a["dtype"] is None else input.astype(a["dtype"])
        return _plans.of_softmax(NUMPY, name, x, _plans.KERNELS, ())
    if how is not None:
        return head.plan(name, a, options, how)
    if name == "prediction_stats":
        return _plans.of_prediction(NUMPY, name, input, readable("target", a["target"]), a["dim"], ())
    return _plans.of_loss(NUMPY, name, input, readable("target", a["target"]), a["dim"], options, ())
