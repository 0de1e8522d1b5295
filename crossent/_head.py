"""The head fused with its loss: rows are taken in chunks, so that only one chunk of logits exists at a time.

The gradients are made while a chunk's logits are there; the gradient of the logits is written over them. That takes
three matrix products for each chunk, and nothing is kept but the gradients themselves.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any


@dataclass
class Head:
    """A call of the head: flat arrays, and the targets that count, `count` of them.

    `products` are the `frontends._products.Products`, and `products.lib` is the array library. `x` holds the rows
    (N, D) and `weight` the classes (V, D). The first axis of target and sample weights is N. Of a sparse target,
    `target` holds the probabilities and `classes` their classes. `kept` are the numbers of the targets that count, a
    slice if all do; target number i belongs to row i - shift. The gradients are multiplied by `scale`. Where the
    classes are spread over processes, `weight` and what every class has one of are those of this process's `shard`.

    Sums and `scale` are numbers on the CPU, and arrays without axes on a device, from which nothing is read.
    """

    products: Any
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
    shard: Any = None
    scale: Any = 1.0
    logit_bytes: int = field(init=False)
    at_once: int = field(init=False)
    count: int = field(init=False)
    _buffer: Any = field(default=None, init=False)
    _dense: Any = field(default=None, init=False)

    def __post_init__(self):
        self.logit_bytes = self.products.logits_dtype.itemsize
        # How many chunks there are at a time, if gradients or losses are made of more than one.
        self.at_once = 1 if self.shard is None else 2
        self.count = self.kept.stop if isinstance(self.kept, slice) else len(self.kept)

    def loss(self, wanted):
        """The sum of the losses, and the gradients of x, weight, bias and target, None where not wanted."""
        options = self.options.summed
        if any(wanted):
            return self._differentiate(wanted, options, None)
        total = 0.0
        for _, _, _, problem in self._problems(self.chunk(wanted, self.at_once)[0], options):
            total += problem.forward(None)[0]
        return total, [None] * 4

    def losses(self):
        """The loss of every target, 0 for targets that do not count."""
        losses, options, lib = self.products.zeros(self.shape.targets), self.options.by_row, self.products.lib
        flat = losses.reshape(self.shape.rows, *self.shape.out)
        for targets, _, _, problem in self._problems(self.chunk((), self.at_once)[0], options):
            flat[targets] = lib.cast(problem.forward(None)[0], lib.storage(losses))
        return losses

    def gradients(self, wanted, upstream):
        """The gradients of losses whose upstream gradients are `upstream`; None stands for 1."""
        return self._differentiate(wanted, self.options.by_row, upstream)[1]

    def tokens(self):
        """Logprob, lse, entropy and rank of every row's label; for ignored rows 0 and rank -1."""
        whole = self.products.token_results(self.shape.rows)
        for targets in self._chunks(self.chunk((), beside=self.products.beside_tokens)[0]):
            results = [array[targets] for array in whole]
            self.products.tokens(self._logits(targets)[1], self.target[targets], self.options, results, self.shard)
            for array, some in zip(whole, results):
                array[targets] = some
        return whole

    def token_gradients(self, wanted, results, upstream):
        """The gradients, given the upstream gradients of logprob, lse and entropy, each an array or None."""
        rows, _ = self.chunk((), beside=self.products.beside_tokens)
        gradients = self._new_gradients(wanted, rows)
        for number, targets in enumerate(self._chunks(rows)):
            x, logits = self._logits(targets)
            some, above = ([None if a is None else a[targets] for a in arrays] for arrays in (results, upstream))
            self.products.token_gradient(logits, self.target[targets], self.options, some, above, self.shard)
            self._add_products(gradients, targets, x, logits, begins=not number)
        return gradients

    def chunk(self, wanted, at_once=1, beside=0):
        """The rows in a chunk, and the bytes of logits and of other arrays as large as these, if there are `at_once`
        chunks at a time. Whatever else the kernels hold are `beside` bytes a logit.
        """
        logit = self.logit_bytes
        # Of shards whether or not this process's device filters: all of them cut the rows alike.
        if self.how.filter_eps and (self.products.filters or self.shard is not None) and any(wanted[:2]):
            beside = self.products.beside_filter
        widened = self.shape.soft and self.target.itemsize != logit  # to the logits' dtype, if it is not sparse
        arrays = 1 + (self.classes is not None or widened) + any(wanted[3:])
        # The most that a process has, so that all of them cut the rows alike: they wait for each other in every chunk.
        classes = len(self.weight) if self.shard is None else self.shard.largest * self.shape.places
        a_row = max(1, (arrays * logit + beside) * classes)
        rows, size, whole = self.how.chunk_rows, self.how.chunk_bytes, self.count * a_row
        if size is None:
            size = whole if whole <= self.products.one_chunk_up_to else self.products.chunk_bytes
        rows = rows or max(1, size // a_row)
        if rows >= self.count:
            return self.count, whole
        if not self.how.chunk_rows:
            rows, multiple = max(1, rows // at_once), self.products.rows_at_once
            if rows > multiple:
                rows -= rows % multiple
                if self.products.evenly:  # as many chunks, none of them much smaller than the others
                    rows = -(-self.count // -(-self.count // rows))
                    rows += -rows % multiple
        return rows, at_once * rows * a_row

    def _chunks(self, rows, at_once=1):
        """The targets of each chunk of so many rows, one chunk after the other."""
        step, count = max(1, rows), self.count
        places = range(min(at_once, -(-count // step)))
        buffers = cycle([self._new_buffer(step) for _ in places])
        dense = cycle([None if self.classes is None else self._new_buffer(step) for _ in places])
        for lo in range(0, count, step):
            hi = min(lo + step, count)
            self._buffer, self._dense = next(buffers), next(dense)
            yield slice(lo, hi) if isinstance(self.kept, slice) else self.kept[lo:hi]
        self._buffer = self._dense = None

    def _problems(self, rows, options):
        """Each chunk's targets, their rows and logits, and the kernels' problem of them.

        Where classes are spread the next chunk's logits are made before one is handed out: meanwhile the processes hear
        of each other's sums.
        """
        waiting, at_once = deque(), self.at_once
        for targets in self._chunks(rows, at_once):
            x, logits = self._logits(targets)
            waiting.append((targets, x, logits, self._problem(targets, logits, options)))
            if len(waiting) == at_once:
                yield waiting.popleft()
        yield from waiting

    def _new_buffer(self, rows):
        """Memory for logits, in which rows begin at lines."""
        classes, line = len(self.weight), self.products.line // self.logit_bytes
        lines = -(-classes // line)
        if self.products.odd:
            lines |= 1
        buffer = self.products.lib.pooled((rows, lines * line), self.products.logits_dtype)
        buffer[:, classes:] = 0  # a library's product may read whole lines; 0 times a nan there is nan
        return buffer[:, :classes]

    def _rows(self, targets):
        return targets if isinstance(targets, slice) else targets - self.how.shift

    def _logits(self, targets):
        x = self.x[self._rows(targets)]
        logits = self._buffer[: len(x)]
        self.products.logits(x, self.weight, self.bias, logits)
        return x, logits

    def _problem(self, targets, logits, options):
        by_class = logits.reshape(len(logits), self.shape.classes, *self.shape.out)
        target, samples = self.target[targets], None if self.samples is None else self.samples[targets]
        if self.classes is not None:
            target = self.products.dense(self.classes[targets], target, self._dense[: len(logits)])
        return self.products.problem(by_class, target, self.class_weight, samples, options, self.shard)

    def _new_gradients(self, wanted, rows):
        """Those of x, weight and bias are sums, which may have more bits than their arrays; of chunks of `rows`."""
        dx, dweight, dbias, dtarget = wanted
        return [
            self._new_by_row(self.x, self.products.input_dtype) if dx else None,
            self.products.new_sum(self.weight.shape, -(-self.count // max(1, rows))) if dweight else None,
            self.products.zeros(self.bias.shape) if dbias else None,
            self._new_by_row(self.target, self.target.dtype) if dtarget else None,
        ]

    def _new_by_row(self, array, dtype):
        """A new array like this one; 0 in the rows that do not count."""
        new = self.products.lib.pooled(array.shape, dtype)
        if not isinstance(self.kept, slice):
            new[...] = 0
        return new

    def _differentiate(self, wanted, options, upstream):
        """The sum of the losses of all chunks, None for those of rows, and the gradients."""
        rows, _ = self.chunk(wanted, self.at_once)
        gradients, total = self._new_gradients(wanted, rows), None if options.reduction == "none" else 0.0
        for number, (targets, x, logits, problem) in enumerate(self._problems(rows, options)):
            dloss, begins = None if upstream is None else upstream[targets], not number
            if self.how.filter_eps and self._filters(dloss):
                dtarget, losses = self._differentiate_filtered(
                    gradients, wanted, targets, x, logits, problem, dloss, begins
                )
            else:
                dtarget, losses, _ = problem.backward(None, dloss, self.scale, problem.x, wanted[3], True)
                self._add_products(gradients, targets, x, logits, begins)
            self._keep(gradients[3], targets, dtarget)
            total = None if total is None else total + losses
        return total, gradients

    def _differentiate_filtered(self, gradients, wanted, targets, x, logits, problem, dloss, begins):
        products, (dx, dweight, dbias, _) = self.products, gradients
        # What a filter leaves out depends on the rows' own derivatives, not on the upstream gradient. These are made in
        # a workable unit: squares of what is scaled far up or down could leave the range of numbers.
        unit, rest = products.workable(self.scale)
        dtarget, losses, _ = problem.backward(None, None, unit, problem.x, wanted[3], True)
        filtered = products.filtered(products, self.weight, x, logits)
        filtered.choose(self.how.filter_eps * unit)
        filtered.multiply(problem.x, dtarget, rest, dloss)
        if dbias is not None:
            products.to_bias(dbias, logits)
        total = None if dx is None else products.zeros(x.shape)
        filtered.add(total, dweight, begins)
        if dx is not None:
            dx[self._rows(targets)] = products.lib.cast(total, products.lib.storage(dx))
        return dtarget, losses

    def _keep(self, dtarget, targets, made):
        if dtarget is not None:
            lib = self.products.lib
            if self.classes is not None:
                made = lib.xp.take_along_axis(made, self.classes[targets], axis=1)
            dtarget[targets] = lib.cast(made, lib.storage(dtarget))

    def _filters(self, dloss):
        """Whether classes are left out: not if a factor is inf or nan, which is to be seen in the gradients. Where
        nothing is read, the filter sees to that.
        """
        if not (self.products.filters and len(self.weight)):
            return False
        if not self.products.lib.reads:
            return True
        above = 1.0 if dloss is None else float(dloss.sum())
        return self.scale and math.isfinite(self.scale * above)

    def _add_products(self, gradients, targets, x, dlogits, begins):
        """Add the gradients that follow from the gradient of the logits; `begins` says that there are none yet."""
        products, (dx, dweight, dbias, _) = self.products, gradients
        if dbias is not None:
            products.to_bias(dbias, dlogits)
        if dx is dweight is None:
            return
        rows, dlogits = self._rows(targets), products.rounded(dlogits)
        if dx is not None:
            dx[rows] = products.to_input(dlogits, self.weight)
        if dweight is not None:
            products.to_weight(dweight, dlogits, x, begins=begins)
