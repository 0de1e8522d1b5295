"""The head fused with its loss: rows pass in chunks, so that only one chunk of logits exists at a time.

The gradients are made while a chunk's logits are there, over which the loss's gradient is written: three matrix
products a chunk, and nothing is kept but the gradients themselves. `lib` is the array library's side; beside what
`_problem` asks of it, it has

    logits_bytes(x)                    the size of a logit
    rows_at_once(x)                    of the products: chunks of multiples take less time for each row
    logits(x, weight, bias, out)       write x @ weight.T + bias
    rounded(dlogits)                   dlogits as the next two take them, in the same memory
    to_input(dlogits, weight)          dlogits @ weight, or with `numbers` those rows of it
    to_weight(dweight, dlogits, x)     add dlogits.T @ x to dweight, or with `numbers` to those rows of it
    to_bias(dbias, dlogits)            add the sum of dlogits over rows
    sums(dlogits, parts)               as `_problem.sums`: of squares by column, by row in parts of the columns
    combinations(factors, dlogits)     factors @ dlogits, for few rows of factors
    wide(vectors)                      a NumPy array of float64 whose rows they are
    narrow(array, storage)             the inverse: an array of the library
    numbers(chosen)                    of the columns that are chosen
    columns(dlogits, numbers)          a copy of those columns
    dense(classes, probs, out)         write probabilities between zeros
    picked(dense, classes)             the inverse
    problem(logits, target, weight, sample_weight, options)    as `_problem.problem_of`, for classes along axis 1
    tokens(...), token_gradient(...)   as `_problem.token_forward` and `token_backward`
    token_results(rows, x)             room for their results
    buffer(shape, x), zeros(shape, x)                                  new arrays, the latter for sums
    empty_like(a, unscaled), zeros_like(a, unscaled), accumulator(a)   new gradients, of which those that are still to
                                                                       be divided by a mean's divisor may be wider
"""

import math
from dataclasses import dataclass, field
from typing import Any

from crossent import _rows
from crossent._head_filter import FilteredProducts


@dataclass
class Head:
    """A call of the head: flat arrays, and the targets that count.

    `x` are the rows (N, D), `weight` the classes (V, D); target and sample weights begin with an axis of N. A sparse
    target is its probabilities, with their `classes` beside it. `kept` are the numbers of the targets that count, a
    slice if all do; target number i belongs to row i - shift. `scale` multiplies the gradients.
    """

    lib: Any
    shape: Any
    x: Any
    weight: Any
    bias: Any
    target: Any
    classes: Any
    class_weight: Any
    samples: Any
    kept: Any
    options: Any
    how: Any
    scale: float = 1.0
    _buffer: Any = field(default=None, init=False)
    _dense: Any = field(default=None, init=False)

    def loss(self, wanted):
        """The sum of the losses, and the gradients for x, weight, bias and target, None for what is not wanted."""
        total, gradients, options = 0.0, self._new_gradients(wanted), self.options.changed(reduction="sum")
        for targets in self._chunks(wanted):
            if any(wanted):
                total += self._differentiate(gradients, wanted, targets, options, None)
            else:
                total += self._problem(targets, self._logits(targets)[1], options).forward(None)[0]
        return total, gradients

    def losses(self):
        """The loss of every target, 0 for those that do not count."""
        losses, options = self.lib.zeros(self.shape.targets, self.x), self.options.changed(reduction="none")
        flat = losses.reshape(self.shape.rows, *self.shape.out)
        for targets in self._chunks(()):
            flat[targets] = self._problem(targets, self._logits(targets)[1], options).forward(None)[0]
        return losses

    def gradients(self, wanted, upstream):
        """The gradients for losses that are multiplied by the numbers in `upstream`, None for 1."""
        gradients, options = self._new_gradients(wanted), self.options.changed(reduction="none")
        for targets in self._chunks(wanted):
            dloss = None if upstream is None else upstream[targets]
            self._differentiate(gradients, wanted, targets, options, dloss)
        return gradients

    def tokens(self):
        """What every row says of its label: logprob, lse and entropy, 0 where it is ignored, and rank, there -1."""
        lib, whole = self.lib, self.lib.token_results(self.shape.rows, self.x)
        for targets in self._chunks(()):
            results = [array[targets] for array in whole]
            lib.tokens(self._logits(targets)[1], self.target[targets], self.options, results)
            for array, some in zip(whole, results):
                array[targets] = some
        return whole

    def token_gradients(self, wanted, results, upstream):
        """The gradients from those of logprob, lse and entropy, each an array or None."""
        gradients = self._new_gradients(wanted)
        for targets in self._chunks(()):
            x, logits = self._logits(targets)
            some, above = ([None if a is None else a[targets] for a in arrays] for arrays in (results, upstream))
            self.lib.token_gradient(logits, self.target[targets], self.options, some, above)
            self._add_products(gradients, targets, x, logits)
        return gradients

    def chunk(self, wanted):
        """Rows in a chunk of logits, and its bytes. What is as large as the logits shares their memory."""
        logit = self.lib.logits_bytes(self.x)
        widened = self.shape.soft and self.target.itemsize != logit  # to the logits' dtype, if it is not sparse
        arrays = 1 + (self.classes is not None or widened) + any(wanted[3:])
        a_row = max(1, arrays * logit * len(self.weight))
        rows = self.how.chunk_rows or max(1, self.how.chunk_bytes // a_row)
        multiple = self.lib.rows_at_once(self.x)
        if rows > multiple and not self.how.chunk_rows:
            rows -= rows % multiple
        rows = min(rows, self._count)
        return rows, rows * a_row

    @property
    def _count(self):
        return self.kept.stop if isinstance(self.kept, slice) else len(self.kept)

    def _chunks(self, wanted):
        """The targets of one chunk after the other."""
        step, count = max(1, self.chunk(wanted)[0]), self._count
        self._buffer = self._new_buffer(step)
        self._dense = None if self.classes is None else self._new_buffer(step)
        for lo in range(0, count, step):
            hi = min(lo + step, count)
            yield slice(lo, hi) if isinstance(self.kept, slice) else self.kept[lo:hi]
        self._buffer = self._dense = None

    def _new_buffer(self, rows):
        """Room for logits, whose rows begin at multiples of a cache line, but not of a page: pages share few places."""
        classes = len(self.weight)
        line = 64 // self.lib.logits_bytes(self.x)
        lines = -(-classes // line)
        buffer = self.lib.buffer((rows, (lines | 1) * line), self.x)
        buffer[:, classes:] = 0  # a library's product may read whole lines, and 0 times nan is nan
        return buffer[:, :classes]

    def _rows(self, targets):
        return targets if isinstance(targets, slice) else targets - self.how.shift

    def _logits(self, targets):
        x = self.x[self._rows(targets)]
        logits = self._buffer[: len(x)]
        self.lib.logits(x, self.weight, self.bias, logits)
        return x, logits

    def _problem(self, targets, logits, options):
        by_class = logits.reshape(len(logits), self.shape.classes, *self.shape.out)
        target, samples = self.target[targets], None if self.samples is None else self.samples[targets]
        if self.classes is not None:
            target = self.lib.dense(self.classes[targets], target, self._dense[: len(logits)])
        return self.lib.problem(by_class, target, self.class_weight, samples, options)

    def _new_gradients(self, wanted):
        lib = self.lib
        by_row = lib.empty_like if isinstance(self.kept, slice) else lib.zeros_like
        dx = by_row(self.x, True) if wanted and wanted[0] else None
        dtarget = by_row(self.target, False) if wanted and wanted[3] else None
        summed = [
            lib.accumulator(array) if want else None for array, want in zip((self.weight, self.bias), wanted[1:3])
        ]
        return [dx, *(summed or (None, None)), dtarget]

    def _differentiate(self, gradients, wanted, targets, options, dloss):
        """Add to the gradients those of a chunk of targets; the sum of their losses."""
        x, logits = self._logits(targets)
        problem = self._problem(targets, logits, options)
        if self._filters(dloss):
            dtarget, losses = self._differentiate_filtered(gradients, wanted, targets, x, logits, problem, dloss)
        else:
            dtarget, losses, _ = problem.backward(None, dloss, self.scale, problem.x, wanted[3], True)
            self._add_products(gradients, targets, x, logits)
        self._keep(gradients[3], targets, dtarget)
        return losses

    def _differentiate_filtered(self, gradients, wanted, targets, x, logits, problem, dloss):
        lib, (dx, dweight, dbias, _) = self.lib, gradients
        # What a filter leaves out depends on the rows' own derivatives, not on what comes from above, and squares of
        # derivatives that are scaled far up or down could leave the range of numbers.
        unit = self.scale if _rows.workable(self.scale) else 1.0
        dtarget, losses, _ = problem.backward(None, None, unit, problem.x, wanted[3], True)
        products = FilteredProducts(lib, self.weight, x, logits)
        products.choose(self.how.filter_eps * unit)
        if dloss is not None or unit != self.scale:
            rest = self.scale / unit
            factors = lib.zeros((len(x), *self.shape.out), x) + rest if dloss is None else rest * dloss
            _multiply((problem.x, dtarget), factors[:, None])
            products.add_up()
        if dbias is not None:
            lib.to_bias(dbias, logits)
        total = None if dx is None else lib.accumulator(x)
        products.add(total, dweight)
        if dx is not None:
            dx[self._rows(targets)] = lib.cast(total, lib.storage(dx))
        return dtarget, losses

    def _keep(self, dtarget, targets, made):
        if dtarget is not None:
            made = made if self.classes is None else self.lib.picked(made, self.classes[targets])
            dtarget[targets] = self.lib.cast(made, self.lib.storage(dtarget))

    def _filters(self, dloss):
        """With what is not finite nothing is left out, so that it is seen."""
        above = 1.0 if dloss is None else float(dloss.sum())
        return self.how.filter_eps and self.scale and math.isfinite(self.scale * above)

    def _add_products(self, gradients, targets, x, dlogits):
        """From the gradient of the logits."""
        lib, (dx, dweight, dbias, _) = self.lib, gradients
        if dbias is not None:
            lib.to_bias(dbias, dlogits)
        if dx is dweight is None:
            return
        dlogits = lib.rounded(dlogits)
        if dx is not None:
            dx[self._rows(targets)] = lib.cast(lib.to_input(dlogits, self.weight), lib.storage(dx))
        if dweight is not None:
            lib.to_weight(dweight, dlogits, x)


def _multiply(arrays, factors):
    """Row by row; some rows at a time, since what 16 bits are multiplied by needs 32."""
    for array in arrays:
        if array is not None:
            for lo in range(0, len(array), 16):
                array[lo : lo + 16] *= factors[lo : lo + 16]
