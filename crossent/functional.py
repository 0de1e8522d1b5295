"""The stateless style: losses as functions of arrays. Meaning is in `_rules`, validation in `_options` and `_rows`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from crossent import _dispatch
from crossent._dispatch import frontend_of
from crossent._options import Reduction, head_options, loss_options, of_arguments
from crossent._plan import Plan as Plan
from crossent._public import public
from crossent._rows import SparseTarget as SparseTarget

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray, whose losses that are one number are NumPy scalars


@public
def softmax(input: ArrayT, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> ArrayT:
    """Exponentials of the input, scaled so that they sum to 1 along an axis: logits become probabilities.

        softmax(x)_c = exp(x_c) / sum_k exp(x_k)

    The sum runs over the entries along `dim`. Equals torch.nn.functional.softmax(input, dim, dtype=dtype).

    Args:
        input: tensor or NumPy array of any shape; float16, bfloat16 (for NumPy that of ml_dtypes), float32 or float64,
            and any other dtype that `dtype` is given for.
        dim: the axis whose entries sum to 1; negative ones count from the end. None is PyTorch's deprecated choice,
            with its warning: axis 0 of an input with 0, 1 or 3 axes, else axis 1.
        _stacklevel: as in PyTorch, the caller that this warning points at; the default 3 is who calls `softmax`.
        dtype: the floating dtype that the input is converted to first. None keeps the input's.

    The arithmetic is in float64 for float64 and in float32 for all others, rounded once, at the end. Probabilities have
    no unit; the logits are in nats.

    Returns an array of the input's shape and kind, in its dtype or in `dtype`; under torch.autocast for another device
    than the CPU float16 and bfloat16 give float32, as in PyTorch. A slice of only -inf, or with an inf or a nan in it,
    is nan throughout, as in PyTorch.

    Raises TypeError for an input that is neither a tensor nor a NumPy array, for a masked array, for a dtype other
    than these and for a `dim` that is not an integer; IndexError for a `dim` out of range.

    Differentiates the input, in PyTorch: to every order, in reverse and forward mode and under torch.func. For NumPy
    arrays `crossent.value_and_grad` differentiates the losses, not this function.

    The entries are shifted to be near or below 0 before the exponential. That this costs no accuracy is shown, for a
    shift by the largest, in Blanchard, Higham & Higham, "Accurately computing the log-sum-exp and softmax functions",
    IMA Journal of Numerical Analysis 41 (2021), section 4.

    >>> import numpy as np
    >>> import torch
    >>> import crossent
    >>> crossent.softmax(torch.tensor([[0.0, 0.0], [1000.0, 1001.0]]), dim=1)
    tensor([[0.5000, 0.5000],
            [0.2689, 0.7311]])
    >>> crossent.softmax(np.array([1.0, 2.0, 3.0]), dim=0).round(4)
    array([0.09  , 0.2447, 0.6652])
    """
    return frontend_of(type(input)).softmax(input, dim, dtype, False, _stacklevel)


@public
def log_softmax(input: ArrayT, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> ArrayT:
    """The logarithm of `softmax`, without the digits and the infinities lost by taking the two one after the other.

        log_softmax(x)_c = x_c - log sum_k exp(x_k)

    The sum runs over the entries along `dim`. Equals torch.nn.functional.log_softmax(input, dim, dtype=dtype), but for
    the entry that outweighs all others: -log(1 + the others' share) keeps its digits here, and so does what its
    gradient has of 1 - p, so that `nll_loss` of it is `cross_entropy`. On other devices than the CPU it is PyTorch's.

    Args:
        input: tensor or NumPy array of any shape; float16, bfloat16 (for NumPy that of ml_dtypes), float32 or float64,
            and any other dtype that `dtype` is given for.
        dim: the axis whose entries' exponentials sum to 1; negative ones count from the end. None is PyTorch's
            deprecated choice, with its warning: axis 0 of an input with 0, 1 or 3 axes, else axis 1.
        _stacklevel: as in PyTorch, the caller that this warning points at; the default 3 is who calls `log_softmax`.
        dtype: the floating dtype that the input is converted to first. None keeps the input's.

    The arithmetic is in float64 for float64 and in float32 for all others, rounded once, at the end. Logits and
    log-probabilities are in nats: the logarithm is the natural one.

    Returns an array of the input's shape and kind, in its dtype or in `dtype`; under torch.autocast for another device
    than the CPU float16 and bfloat16 give float32, as in PyTorch. An entry of -inf stays -inf; a slice of only -inf, or
    with an inf or a nan in it, is nan throughout, as in PyTorch.

    Raises TypeError for an input that is neither a tensor nor a NumPy array, for a masked array, for a dtype other
    than these and for a `dim` that is not an integer; IndexError for a `dim` out of range.

    Differentiates the input, in PyTorch: to every order, in reverse and forward mode and under torch.func. For NumPy
    arrays `crossent.value_and_grad` differentiates the losses, not this function.

    The entries are shifted to be near or below 0 before the exponential. That this costs no accuracy is shown, for a
    shift by the largest, in Blanchard, Higham & Higham, "Accurately computing the log-sum-exp and softmax functions",
    IMA Journal of Numerical Analysis 41 (2021), section 4.

    >>> import numpy as np
    >>> import torch
    >>> import crossent
    >>> crossent.log_softmax(torch.tensor([[0.0, 0.0], [0.0, 1000.0]]), dim=1)
    tensor([[-6.9315e-01, -6.9315e-01],
            [-1.0000e+03,  0.0000e+00]])
    >>> crossent.log_softmax(np.array([1.0, 2.0, 3.0]), dim=0).round(4)
    array([-2.4076, -1.4076, -0.4076])
    """
    return frontend_of(type(input)).softmax(input, dim, dtype, True, _stacklevel)


@public
def nll_loss(
    input: ArrayT,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    *,
    dim: int | None = None,
    sample_weight: Any = None,
    denominator: Any = None,
    loss_dtype: Any = None,
) -> ArrayT:
    """Negative log likelihood: minus the log-probability that the input gives to each label.

        loss = -s * w_y * x_y

    for a target with label y and log-probabilities x_1 to x_C, its sample weight s and the class weights w (1 where not
    given); s is 0 where the label is `ignore_index`. "none" gives these losses, "sum" their sum, and "mean" the sum
    divided by the sum of s * w_y, or by `denominator`.

    Equals torch.nn.functional.nll_loss with the same arguments; those after the * are additions. Of
    log_softmax(logits) it is cross_entropy(logits), which needs no memory for the log-probabilities.

    Args:
        input: log-probabilities, of shape (C,), (N, C) or (N, C, d1, ..., dK), tensor or NumPy array of float16,
            bfloat16 (for NumPy that of ml_dtypes), float32 or float64. They are taken as they are, normalised or not.
        target: labels from 0 to C - 1, of the input's shape without the class axis and of any integer dtype.

    `weight`, `ignore_index`, `reduction`, `dim`, `sample_weight`, `denominator`, `loss_dtype` and the deprecated
    `size_average` and `reduce` are those of `crossent.cross_entropy`. The arithmetic is in float64 for a float64 input
    and in float32 for all others, rounded once, at the end. Losses are in nats.

    Returns a 0-dimensional tensor or NumPy scalar, or for reduction="none" an array of the target's shape, in the
    input's dtype or in `loss_dtype`; float16 and bfloat16 give float32 under torch.autocast. The mean of nothing, where
    the batch is empty or every label ignored, is nan, as in PyTorch, unless there is a `denominator`.

    Raises IndexError, with the label, its position and the valid range, for a label that is neither a class nor
    `ignore_index`, before anything is read with it; ValueError for shapes that do not fit and for options that are out
    of range; TypeError for dtypes and kinds of arrays other than those above; IndexError or TypeError for `dim`.

    Differentiates, in PyTorch, the input, `weight`, `sample_weight` and `denominator`, to every order, in reverse and
    forward mode and under torch.func; for NumPy arrays `crossent.value_and_grad` gives the input's gradient. Ignored
    targets and those of sample weight 0 give a gradient of exactly 0, whatever their input holds, inf and nan included.

    >>> import numpy as np
    >>> import torch
    >>> import crossent
    >>> probabilities = [[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]
    >>> crossent.nll_loss(torch.tensor(probabilities).log(), torch.tensor([0, 2]), reduction="none")
    tensor([0.6931, 2.0794])
    >>> loss = crossent.nll_loss(np.log(probabilities), np.array([0, 2]))
    >>> print(round(loss, 4))  # (log 2 + log 8) / 2
    1.3863
    >>> crossent.nll_loss(np.log(probabilities), np.array([0, 3]))
    Traceback (most recent call last):
    IndexError: Target 3 at position 1 is out of bounds: labels must be between 0 and 2, or -100 to be ignored
    """
    frontend = frontend_of(type(input))
    options = loss_options(size_average, reduce, reduction, ignore_index, loss_dtype=loss_dtype)
    return frontend.nll_loss(input, target, weight, sample_weight, denominator, dim, options)


@public
def cross_entropy(
    input: ArrayT,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int | None = None,
    sample_weight: Any = None,
    denominator: Any = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    inplace_backward: bool = False,
    loss_dtype: Any = None,
    group: Any = None,
    first_class: int | None = None,
) -> ArrayT:
    """Cross entropy between targets, labels or class probabilities, and the softmax of logits.

    For a row of logits x_1 to x_C with its target:

        z_c  = x_c, or softcap * tanh(x_c / softcap)
        lse  = log sum_c exp(z_c)
        q_c  = w_c * ((1 - label_smoothing) * t_c + label_smoothing / C)
        loss = s * sum_c q_c * (lse - z_c + z_loss * lse**2)

    t_c is 1 at the label and 0 elsewhere, or the target's probability; w are the class weights and s is the sample
    weight (1 where not given); s is 0 where the label is `ignore_index`. Where q_c is 0 a logit of -inf adds 0.
    "none" gives these losses, "sum" their sum, and "mean" the sum divided by `denominator`, by default the sum of
    s * w_y over the labels y, or the sum of s for probabilities.

    Equals torch.nn.functional.cross_entropy with the same arguments; those after the * are additions.

    Args:
        input: logits of C classes, of shape (C,), (N, C) or (N, C, d1, ..., dK), or with the class axis at `dim`;
            tensor or NumPy array of float16, bfloat16 (for NumPy that of ml_dtypes), float32 or float64, any strides.
        target: labels from 0 to C - 1, of the input's shape without the class axis and of any integer dtype, or class
            probabilities of the input's shape and any of its dtypes, which need not sum to 1. A target of the input's
            shape is always read as probabilities. Logits and probabilities of two dtypes are promoted to one first.
        weight: a weight for each class, of shape (C,), in any of the input's dtypes.
        size_average, reduce: deprecated, as in PyTorch: they override `reduction`, with a warning.
        ignore_index: the label of targets that count for nothing; it may lie outside the classes. Must be negative for
            probabilities, where nothing is ignored.
        reduction: "mean", "sum" or "none".
        label_smoothing: the share of every target, from 0 to 1, that is spread over all classes alike.
        dim: the class axis; negative ones count from the end. None is PyTorch's: axis 1, or axis 0 of an input with one
            axis. For (batch, time, classes) give -1.
        sample_weight: a weight for each target, floats, integers or a mask of booleans (True is 1), of a shape that
            broadcasts to the labels' (the input's without the class axis). Weight 0 is the same as ignored: neither its
            logits nor its label count.
        denominator: what "mean" divides by, a number or 0-dimensional array: the number of targets in the whole batch
            when the batch comes in parts or on several machines. Not a float of 16 bits, which rounds counts.
        softcap: a positive bound for the size of the logits.
        z_loss: the factor of lse**2, which keeps the normaliser near 1. It counts what the row's target weighs, so that
            all class weights may be multiplied by a number without a change of the balance between the terms.
        inplace_backward: PyTorch only: the backward pass may write the gradient over `input`, which saves the memory of
            one. `input` then holds its own gradient, and a backward pass that still needs the logits raises a
            RuntimeError; whoever reads it then finds the gradient. Nothing is overwritten on devices other than the
            CPU, under torch.func and torch.compile, with create_graph, for weights or a denominator that require
            gradient, and where `input` is promoted to the dtype of its probabilities. Without this option no argument
            is ever written to.

        loss_dtype: the dtype of the loss, float32 or float64, of the arrays' library or by name; gradients keep that of
            what they belong to. A loss of bfloat16 has two or three digits, too few for a log, while its sums are made
            in float32 in any case. None is the input's dtype.

        group: PyTorch only: the processes of torch.distributed over which the classes are spread, a process group or a
            DeviceMesh of one axis. `input`, probabilities and class weights then have this process's classes, labels
            count over the classes of all, and targets, sample weights and options are the same in all processes. So
            is the loss. A gradient has the classes of what it belongs to. What one process has to raise, all raise.
        first_class: the number of this process's first class. None says that all processes have as many classes, in the
            order of their ranks; else the processes send where theirs begin, in each call, before anything else.

    Arrays are all of the input's kind; DTensors have their rows or their classes sharded, or are replicated, and one
    number is that of all rows in every process. The arithmetic is in float64 where `input` or probabilities are float64
    and in float32 for all others, rounded once, at the end. Logits and losses are in nats.

    Returns a 0-dimensional tensor or NumPy scalar, or for reduction="none" an array of the labels' shape, in the
    input's dtype, the one promoted to, or `loss_dtype`; float16 and bfloat16 give float32 under torch.autocast. The
    mean of nothing, where the batch is empty or every label ignored, is nan, as in PyTorch, unless there is a
    `denominator`.

    Raises:
        IndexError: for a label that is neither a class nor `ignore_index`, with its value, its position and the valid
            range, before anything is read with it; for a `dim` out of range. In a CUDA graph, and under torch.compile
            on other devices than the CPU, such a label's loss is nan instead.
        ValueError: for shapes that do not fit, with both shapes and what was expected; for tensors on different
            devices, with both (a `denominator` may be on any that holds numbers); for an unknown `reduction`, a
            `label_smoothing` outside 0 to 1, a `softcap` that is not positive and finite, a negative or infinite
            `z_loss`, nan for any of these; for an `ignore_index` of more than 64 bits, or of at least 0 with
            probabilities; for a `denominator` without "mean" or with axes; for `inplace_backward` with NumPy arrays;
            for processes whose classes do not fit together.
        TypeError: for an array that is neither a tensor nor a NumPy array, of another kind than `input`, or masked; for
            a dtype other than those above; for an option that is not a number, a `dim` or `ignore_index` that is not an
            integer.

    Differentiates, in PyTorch, the input, probabilities, `weight`, `sample_weight` and `denominator`, to every order,
    in reverse and forward mode and under torch.func; for NumPy arrays `crossent.value_and_grad` gives the input's
    gradient. Ignored targets and those of sample weight 0 give a gradient of exactly 0, whatever their logits hold, inf
    and nan included.

    Sources: label smoothing, Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016),
    section 7, spread with the class weights as in PyTorch. z-loss, Chowdhery et al., "PaLM" (2022), section 5, with a
    factor of 1e-4. Softcap, Bello et al., "Neural Combinatorial Optimization with Reinforcement Learning" (2017), and
    the Gemma 2 report (2024), section 2, with 30 for the final logits. Where a label outweighs all other classes, its
    lse - z_y is log1p(sum_c exp(z_c - z_y)) over these others, which keeps its digits however confident the row: as in
    Blanchard, Higham & Higham, "Accurately computing the log-sum-exp and softmax functions", IMA Journal of Numerical
    Analysis 41 (2021), algorithm 4.1.

    >>> import numpy as np
    >>> import torch
    >>> import crossent
    >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    >>> labels = torch.tensor([0, 1])
    >>> loss = crossent.cross_entropy(logits, labels)
    >>> print(round(loss.item(), 4))  # (log(1 + 2 * exp(-2)) + log 3) / 2
    0.6691
    >>> loss.backward()
    >>> logits.grad
    tensor([[-0.1065,  0.0533,  0.0533],
            [ 0.1667, -0.3333,  0.1667]])

    The same from two halves of the batch, and with a weight for each target:

    >>> halves = [crossent.cross_entropy(logits[i : i + 1], labels[i : i + 1], denominator=2) for i in (0, 1)]
    >>> print(round(sum(halves).item(), 4))
    0.6691
    >>> weighted = crossent.cross_entropy(logits, labels, sample_weight=torch.tensor([3.0, 1.0]))
    >>> print(round(weighted.item(), 4))  # (3 * log(1 + 2 * exp(-2)) + log 3) / (3 + 1)
    0.4543

    NumPy arrays, here with classes on the last of three axes and with probabilities:

    >>> logits = np.log([[[1.0, 1.0, 2.0], [1.0, 2.0, 1.0]]])
    >>> crossent.cross_entropy(logits, np.array([[2, -100]]), dim=-1, reduction="none").round(4)
    array([[0.6931, 0.    ]])
    >>> loss = crossent.cross_entropy(logits[0], np.array([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]))
    >>> print(round(loss, 4))  # (log 2 + log(8) / 2) / 2
    0.8664
    >>> crossent.cross_entropy(logits[0], np.array([2, 3]))
    Traceback (most recent call last):
    IndexError: Target 3 at position 1 is out of bounds: labels must be between 0 and 2, or -100 to be ignored
    """
    frontend = frontend_of(type(input))
    options = loss_options(size_average, reduce, reduction, ignore_index, label_smoothing, softcap, z_loss, loss_dtype)
    if group is not None or first_class is not None:
        spread, tensors = _dispatch.spread(type(input), group, first_class), (input, target, weight, sample_weight)
        return frontend.spread_cross_entropy(tensors, denominator, dim, options, inplace_backward, spread)
    return frontend.cross_entropy(input, target, weight, sample_weight, denominator, dim, options, inplace_backward)


@public
def linear_cross_entropy(
    input: ArrayT,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    shift: int = 0,
    sample_weight: Any = None,
    denominator: Any = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk_bytes: int | None = None,
    filter_eps: float = 0.0,
    loss_dtype: Any = None,
    group: Any = None,
    first_class: int | None = None,
) -> ArrayT:
    """Cross entropy of a linear layer's output, which is never held as a whole: a language model's head and its loss.

        logits = input @ linear_weight.T + linear_bias
        loss   = cross_entropy(logits, target, ...)

    Rows pass in chunks, and the gradients are made while a chunk's logits are there. Beside its arguments and their
    gradients a call needs the memory of one chunk. Equals torch.nn.functional.linear_cross_entropy of PyTorch 2.13 with
    the same arguments; those from `shift` on are additions.

    Args:
        input: what the layer is applied to, of shape (..., D) with any number of axes before the features: (D,),
            (N, D), (batch, time, D). Tensor or NumPy array of float16, bfloat16 (for NumPy that of ml_dtypes), float32
            or float64.
        linear_weight: of shape (C, D), or (C, d1, ..., dK, D) with an input of shape (N, D) for a K-dimensional loss;
            its dtype is the input's.
        target: labels, of the input's shape without the features, for a K-dimensional loss (N, d1, ..., dK), and any
            integer dtype; or probabilities, which have an axis of C after the input's others and are read in the
            logits' dtype; or a `SparseTarget`.
        linear_bias: of linear_weight's shape without the features, in the input's dtype.
        ignore_index: as in `cross_entropy`; None is -100.
        options: a torch.nn.LinearCrossEntropyOptions. An explicit batch_chunk_size is honoured. acc_policy "accurate"
            and an acc_dtype of torch.float32 keep logits in float32 on every processor and device, as said below. Other
            fields choose between ways of keeping gradients that do not exist here, and change nothing.
        shift: the target of a row is that of `shift` rows later along the last axis before the features: with 1 a
            causal model's hidden states and its input tokens go in as they are. The first `shift` targets count for
            nothing, and reduction "none" gives the losses of the others.
        chunk_bytes: the memory for a chunk of logits. On the CPU it is 64 MB unless given, and more pays where only few
            rows fit. On a GPU all rows are one chunk if that takes a sixteenth of its memory at most, and else it is 2
            GB, or a sixteenth of the memory where that is less: with fewer rows at a time more of the time goes into
            adding up the weight's gradient.
        filter_eps: leave out of the gradients' products, for each chunk, every class for which the derivatives of the
            rows' losses by its logit have a root mean square of at most this; 0 leaves out nothing. What is left out is
            replaced by its projection on the span of its sums over up to 8 parts of the vocabulary (Halko, Martinsson
            and Tropp, Finding Structure with Randomness, 2011, section 4.1), which is never farther from it than 0 is:
            the error of the derivatives by the logits of a chunk's n rows has at most the Frobenius norm
            filter_eps * sqrt(n * classes left out), times the loss's own factor (1/N for a mean), and for a trained
            language model is far smaller. The loss and the bias's gradient stay exact. Beside the chunk it takes up to
            eighteen numbers a class. On other devices than the CPU, where it takes another chunk and copies of the
            weight, classes are left out of bfloat16 on some GPUs alone; `crossent.plan` says why not on others.

    `weight`, `reduction`, `label_smoothing`, `sample_weight`, `denominator`, `softcap`, `z_loss`, `loss_dtype`, `group`
    and `first_class` are those of `crossent.cross_entropy`. Where classes are spread over a group, linear_weight and
    linear_bias have this process's. The gradients of `input` and of a SparseTarget's probabilities, which are the same
    in all processes, are complete in each: sums that are sent once. Rows that count for nothing may hold nan. On the
    CPU they take no part in the products; on a GPU they do as zeros, since how many there are is not waited for.

    All of it is computed in float32, for float64 in float64. Of bfloat16, a processor that multiplies it in pairs
    (AVX-512 BF16) gives logits in float32, whose gradient is rounded once, for its two products. Where logits of 16
    bits are many times faster (processors with a unit for matrices, as AMX, and other devices than the CPU) they are
    rounded too, unless `options` ask for accuracy. `crossent.plan` says which it is. Losses are in nats.

    Returns a 0-dimensional tensor or NumPy scalar, or for reduction="none" an array of the labels' shape, in the
    input's dtype or in `loss_dtype`; float16 and bfloat16 give float32 under torch.autocast.

    Raises what `crossent.cross_entropy` raises, and ValueError for shapes that do not fit each other, TypeError for a
    linear_weight or linear_bias of another dtype than the input.

    Differentiates, in PyTorch, input, linear_weight, linear_bias, probabilities (those of a SparseTarget as well),
    `weight`, `sample_weight` and `denominator`, to every order, in reverse and forward mode and under torch.func; what
    is frozen costs nothing. Derivatives of derivatives make the logits again chunk by chunk; forward mode and
    torch.func hold them all at once. For NumPy arrays `crossent.value_and_grad` gives the gradients of input,
    linear_weight and linear_bias.

    Making the gradients in the forward pass, in chunks, is described in Hsu et al., "Liger Kernel: Efficient Triton
    Kernels for LLM Training" (2024), section 3.2; leaving out classes without influence in Wijmans et al., "Cut Your
    Losses in Large-Vocabulary Language Models" (2024), section 4.3.

    >>> import torch
    >>> import crossent
    >>> hidden, vocabulary = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> crossent.linear_cross_entropy(hidden, vocabulary, torch.tensor([0, 2]))
    tensor(0.8103)
    >>> crossent.cross_entropy(hidden @ vocabulary.T, torch.tensor([0, 2]))
    tensor(0.8103)
    """
    frontend = frontend_of(type(input))
    loss = loss_options(
        None, None, reduction, -100 if ignore_index is None else ignore_index, label_smoothing, softcap, z_loss,
        loss_dtype,
    )  # fmt: skip
    how = head_options(shift, chunk_bytes, filter_eps, options)
    arguments = input, linear_weight, target, linear_bias, weight, sample_weight, denominator, loss, how
    if group is not None or first_class is not None:
        return frontend.spread_linear_cross_entropy(*arguments, _dispatch.spread(type(input), group, first_class))
    return frontend.linear_cross_entropy(*arguments)


def _wrapped_like_torchs(kind):
    """As torch.return_types, also made of one iterable: that is how array subclasses wrap what is in a result."""
    of_fields = kind.__new__

    def __new__(cls, *fields, **named):
        return of_fields(cls, *(fields[0] if len(fields) == 1 and not named else fields), **named)

    kind.__new__ = __new__
    return kind


@_wrapped_like_torchs
class TokenStats(NamedTuple):
    """What `linear_token_stats` returns: four arrays of the targets' shape."""

    logprob: Any
    lse: Any
    entropy: Any
    rank: Any


@public
def linear_token_stats(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any = None,
    ignore_index: int = -100,
    shift: int = 0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
    group: Any = None,
    first_class: int | None = None,
) -> TokenStats:
    """What a language model's head says of every token, without its logits ever being held as a whole.

    For a row of logits z = input @ linear_weight.T + linear_bias (or softcap * tanh(z / softcap)) with its target y:

        lse     = log sum_c exp(z_c)
        logprob = z_y - lse
        entropy = -sum_c p_c * log p_c        with p_c = exp(z_c - lse)
        rank    = how many c have z_c > z_y, or z_c = z_y and c < y

    From these follow the perplexity, exp(-mean logprob), the accuracy, rank == 0, and the top-k accuracy, rank < k.
    PyTorch has no such function: logprob is -linear_cross_entropy(..., reduction="none"), and lse, entropy and rank are
    those of the logits.

    Args: as those of `crossent.linear_cross_entropy`, with labels for targets and a linear_weight of shape (C, D).
    Of logits divided by a temperature T, after their softcap, they are those of input / T, linear_bias / T and
    softcap / T.

    On the CPU logits are summed in float32 whatever the dtype and the processor, for float64 in float64; elsewhere as
    in `crossent.linear_cross_entropy`. lse, logprob and entropy are in nats.

    Returns a `TokenStats` of arrays of the labels' shape, without the first `shift` along the last axis: floats of the
    arithmetic's dtype, and int64 ranks. Where the label is `ignore_index` all are 0, and the rank -1.

    Raises what `crossent.linear_cross_entropy` raises, and ValueError for probabilities and K-dimensional targets.

    Differentiates, in PyTorch, logprob, lse and entropy by input, linear_weight and linear_bias, to every order, in
    reverse and forward mode and under torch.func. The backward pass makes the logits again, chunk by chunk.

    >>> import torch
    >>> import crossent
    >>> hidden, vocabulary = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> stats = crossent.linear_token_stats(hidden, vocabulary, torch.tensor([0, 0]))
    >>> stats.logprob
    tensor([-0.8620, -2.7586])
    >>> stats.rank
    tensor([0, 2])
    """
    frontend = frontend_of(type(input))
    options = loss_options(None, None, "none", ignore_index, 0.0, softcap, 0.0)
    how = head_options(shift, chunk_bytes, exact=True)
    arguments = input, linear_weight, target, linear_bias, options, how
    if group is not None or first_class is not None:
        spread = _dispatch.spread(type(input), group, first_class)
        return TokenStats(*frontend.spread_linear_token_stats(*arguments, spread))
    return TokenStats(*frontend.linear_token_stats(*arguments))


@_wrapped_like_torchs
class PredictionStats(NamedTuple):
    """What `prediction_stats` returns: five arrays of the targets' shape."""

    logprob: Any
    rank: Any
    prediction: Any
    confidence: Any
    brier: Any


@public
def prediction_stats(input: Any, target: Any, *, dim: int | None = None, ignore_index: int = -100) -> PredictionStats:
    """What the usual metrics need of every row of logits, from one pass over them.

    For a row of logits z_1 to z_C with its label y and p = softmax(z):

        logprob    = log p_y
        rank       = how many c have z_c > z_y, or z_c = z_y and c < y
        prediction = the c with the largest z_c, the first of equal ones
        confidence = p_prediction
        brier      = sum_c (p_c - 1[c == y])**2

    From these follow the mean NLL, -mean logprob; the perplexity, exp of that; the accuracy, prediction == y, which is
    rank == 0; the top-k accuracy, rank < k; the calibration error, which compares confidence and accuracy; and the mean
    Brier score. PyTorch has no such function.

    Args:
        input: logits of C classes, of shape (C,), (N, C) or (N, C, d1, ..., dK), or with the class axis at `dim`;
            tensor or NumPy array of float16, bfloat16 (for NumPy that of ml_dtypes), float32 or float64, any strides.
            Where the numbers of a row do not lie side by side, they are copied first.
        target: labels from 0 to C - 1, of the input's shape without the class axis and of any integer dtype.
        dim: the class axis, as in `crossent.cross_entropy`.
        ignore_index: the label of rows that are not looked at.

    The arithmetic is in float64 for float64 and in float32 for all others. logprob is in nats; confidence and brier
    have no unit, and brier is between 0 and 2. No digits are lost where the label's probability is near 1.

    Returns a `PredictionStats` of arrays of the labels' shape: floats of the arithmetic's dtype, int64 for rank and
    prediction. Where the label is `ignore_index` floats are 0 and integers -1. Where the input has nan or inf, or only
    -inf, the floats are nan, and rank and prediction mean nothing.

    Raises IndexError, with the label, its position and the valid range, for a label that is neither a class nor
    `ignore_index`; ValueError for shapes that do not fit; TypeError for dtypes and kinds of arrays other than those
    above; IndexError or TypeError for `dim`.

    Differentiates nothing: the results have no graph.

    The Brier score is that of Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather
    Review 78 (1950), the sum over all classes.

    >>> import numpy as np
    >>> import crossent
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    >>> stats = crossent.prediction_stats(logits, np.array([0, 2]))
    >>> stats.logprob.round(4), stats.prediction, stats.rank
    (array([-0.6931, -2.0794]), array([0, 1]), array([0, 2]))
    >>> stats.brier
    array([0.375  , 1.34375])
    """
    frontend = frontend_of(type(input))
    options = loss_options(None, None, "none", ignore_index)
    return PredictionStats(*frontend.prediction_stats(input, target, dim, options))


def value_and_grad(function: Callable[..., ArrayT]) -> Callable[..., tuple[ArrayT, ArrayT]]:
    """A function that returns a loss together with its gradient for the first argument.

        value_and_grad(f)(x, ...) = (f(x, ...), df(x, ...) / dx)

    Equals, in PyTorch, torch.func.grad_and_value with the two results the other way round, but computes them like an
    ordinary forward and backward pass.

    Args:
        function: for tensors, any function of a tensor whose result is one number. For NumPy arrays,
            `crossent.cross_entropy`, `crossent.nll_loss`, or a function that hands them its first argument as it is,
            with whatever others, and returns the loss as it is; of several such calls, that of the last.

    The result takes the arguments of `function`, by position or keyword; the first, `input`, is the tensor or NumPy
    array to differentiate, of any shape and dtype that `function` takes. The dtype of the arithmetic is `function`'s.
    The gradient is in the loss's unit per unit of the input: nats per nat, without unit, for the losses here.

    It returns the loss, without a graph behind it, and the gradient, of the input's shape and dtype; for NumPy arrays
    in the loss's dtype and the machine's byte order. A tensor need not require gradient, its `grad` stays as it is, and
    torch.no_grad makes no difference. With `inplace_backward` the gradient is the caller's tensor, written over.

    Raises ValueError where the loss is not one number, so for reduction="none"; TypeError for an input that is neither
    a tensor nor a NumPy array, and for NumPy arrays where `function` returns something else than such a loss; and what
    `function` raises.

    Differentiates the first argument alone, once.

    >>> import numpy as np
    >>> import torch
    >>> import crossent
    >>> gradient_of = crossent.value_and_grad(crossent.cross_entropy)
    >>> loss, dlogits = gradient_of(np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), np.array([0, 1]))
    >>> print(round(loss, 4))
    0.6691
    >>> dlogits.round(4)
    array([[-0.1065,  0.0533,  0.0533],
           [ 0.1667, -0.3333,  0.1667]])
    >>> gradient_of(torch.zeros(1, 4), torch.tensor([3]))
    (tensor(1.3863), tensor([[ 0.2500,  0.2500,  0.2500, -0.7500]]))
    """

    def value_and_gradient(input, *args, **kwargs):
        return frontend_of(type(input)).value_and_grad(function, input, args, kwargs)

    return value_and_gradient


def plan(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Plan:
    """What a call of one of this library's functions is going to do, without doing it.

        plan(cross_entropy, logits, target)    tells of    cross_entropy(logits, target)

    Args:
        function: `softmax`, `log_softmax`, `nll_loss`, `cross_entropy`, `linear_cross_entropy` or `linear_token_stats`.
        args, kwargs: what it would be called with; the modes that are active now (no_grad, autocast, function
            transforms) count as they would for the call.

    Returns a `Plan`: the path (kernels, plain operations or PyTorch's own), the arithmetic, the chunks of a fused head,
    the memory beside arguments, results and gradients in bytes, and the reasons. Of labels only those of the fused head
    are looked at. For plain operations the memory is an estimate.

    Raises TypeError for another function, and what the call would raise for shapes, dtypes and options.

    >>> import torch
    >>> import crossent
    >>> hidden, vocabulary = torch.zeros(4096, 64), torch.zeros(50304, 64)
    >>> print(crossent.plan(crossent.linear_cross_entropy, hidden, vocabulary, torch.zeros(4096, dtype=torch.int64)))
    linear_cross_entropy: kernels in float32, 13 chunks of 333 rows, 67.0 MB beside arguments, results and gradients
      4096 of 4096 rows count, and only these are computed
      the gradients that are asked for are made in the forward pass, so that the logits are made once
    """
    name = getattr(function, "__name__", "")
    if globals().get(name) is not function or name not in _PLANNED:
        raise TypeError(f"function must be one of {', '.join(_PLANNED)}, got {function!r}")
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    a = bound.arguments
    options = loss_options(**of_arguments({"reduction": "none"} | a))
    how = None
    if name.startswith("linear_"):
        exact = function is linear_token_stats
        how = head_options(a["shift"], a["chunk_bytes"], a.get("filter_eps", 0.0), a.get("options"), exact)
    return _dispatch.plans_of(type(a["input"])).plan(name, a, options, how)


_PLANNED = (
    "softmax", "log_softmax", "nll_loss", "cross_entropy", "prediction_stats", "linear_cross_entropy",
    "linear_token_stats",
)  # fmt: skip


def empty_cache() -> None:
    """Give the memory that is kept for the next large result back to the system now.

    Results and gradients of 4 MB and more live in memory that is used again when they are gone, since having new pages
    mapped and zeroed takes as long as filling them. Four blocks wait at most, and four of 32 MB and more, whose pages
    the system may take back whenever it needs some: so that this function is for those who miss the others, up to 136
    MB, or want to see all of them go, in a measurement of the process's size, say. torch.cuda.empty_cache is the same
    for another device. What is kept of calls goes too, up to 4,096 shapes of each kind, and is made anew when it is
    needed.

    >>> import crossent
    >>> crossent.empty_cache()
    """
    _dispatch.empty_cache()
