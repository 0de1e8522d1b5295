"""`crossent.Score`: the metrics of rows that come bit by bit, in one process or in many."""

import pickle
import zlib
from collections.abc import Callable, Container, Sequence
from copy import copy, deepcopy
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from crossent import plan, prediction_stats
from crossent._rows import class_axis
from crossent.tools.arrays import as_numpy, is_numpy, moved_axis
from crossent.tools.score import partial, scales, texts
from crossent.tools.score.held import Held, Options, Part, Seen
from crossent.tools.score.said import result_of
from crossent.tools.score.scaling import Scaling


class Score:
    """The metrics of predictions that come in batches, on one machine or on many.

        Score().update(logits_1, labels_1).update(logits_2, labels_2).result()
        Score().merge(score_of_one_process, score_of_another, ...).result()

    For N rows that are not ignored, with logits z, p = softmax(z) and the label y of each, the main results are

        nll               = -1/N sum log p_y
        perplexity        = exp(nll)
        accuracy          = 1/N sum [prediction == y], the prediction being the first c with the largest z_c
        topK              = 1/N sum [fewer than K c have z_c > z_y, or z_c = z_y and c < y], for each K of `top_k`
        calibration_error = 1/N sum_b abs(sum over the rows in b of ([prediction == y] - max_c p_c))
        brier             = 1/N sum sum_c (p_c - [c == y])**2

    where b runs over 15 bins of equal width of the confidence max_c p_c. However rows are cut into batches, batches are
    spread over processes and Scores are merged, the result is the same to the last bit: what is counted is counted, and
    sums of floats are exact until they are asked for.

    Args:
        top: how many rows with the largest loss are kept.
        ignore_index: the label of rows that do not count.
        scale: what the numbers are: "logits", "probabilities" or "log-probabilities".
        names: of the classes, in their order, where they have some.
        skip_bad: whether rows that cannot count are left out and counted as `skipped`, instead of refused: those whose
            label is no class, whose numbers are not what `scale` says, or which hold nan, inf or nothing but -inf.
        shift: the label of a row is that of `shift` rows later along the last axis of the target, as in
            `crossent.linear_cross_entropy`; the last `shift` rows are ignored.
        top_k: the K of the top-K accuracies, up to 20 numbers.

    A Score holds sums, not rows: a few integers for each class and group, those of 256 cells into which rows fall for
    the intervals, and how often which class was taken for which. Of rows it has the `top` worst ones, and the labels
    and statistics, without logits, of up to 32,768 that wait to be counted together. It can be pickled, and so be sent
    to other processes and machines.

    The intervals say where each of these would lie, 19 times out of 20, in endless rows like these: `docs/score.md` has
    how they are made. Rows that have the same number and come in one call, such as the tokens of a text, are taken to
    be alike, and so are all labels of a row.

    Counts of what classes were taken for are exact while no more than 4,194,304 pairs of classes occur. Beyond that
    they are lower bounds, depend on how rows were cut, and `confusion_short` says how much too small they are at most.

    Losses are in nats, all else is without unit. Differentiates nothing. Raises TypeError or ValueError for options of
    other kinds. PyTorch has no such class.

    >>> import numpy as np
    >>> import crossent
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.125, 0.125, 0.75], [0.25, 0.5, 0.25]])
    >>> labels = np.array([0, 1, 2, 2])
    >>> one = crossent.Score().update(logits[:2], labels[:2], rows=[0, 1])
    >>> other = crossent.Score().update(logits[2:], labels[2:], rows=[2, 3])
    >>> found = one.merge(other).result()
    >>> print(f"{found['nll']:.4f} {found['accuracy']:.0%} {found['brier']:.4f}")
    0.6637 75% 0.3594
    >>> found["worst"][0]["row"], found["worst"][0]["label"], found["worst"][0]["prediction"]
    (3, 2, 1)
    """

    def __init__(
        self,
        *,
        top: int = 10,
        ignore_index: int = -100,
        scale: scales.Scale = "logits",
        names: Sequence[str] | None = None,
        skip_bad: bool = False,
        shift: int = 0,
        scaling: Scaling | None = None,
        top_k: Sequence[int] = (5,),
    ):
        self._held = Held(Options(top, ignore_index, scale, names, skip_bad, shift, scaling, top_k))
        self._own, self._numbered = "", 0

    def update(
        self, input: Any, target: Any, *, dim: int | None = None, rows: Any = None, groups: Any = None,
        bytes: Any = None, words: Any = None, each: Callable[[dict[str, np.ndarray]], Any] | None = None,
    ) -> "Score":  # fmt: skip
        """Counts rows, and returns the Score itself.

        Args:
            input: what `scale` says, as `crossent.prediction_stats` takes logits: of shape (C,), (N, C) or
                (N, C, d1, ..., dK), or with the class axis at `dim`; tensor on any device or NumPy array of float16,
                bfloat16, float32 or float64. C is the same in every call.
            target: labels from 0 to C - 1, of the input's shape without the class axis and of any integer dtype.
            dim: the class axis, as in `crossent.cross_entropy`.
            rows: N integers, the numbers of the rows in the data, by which the worst ones can be found again; counted
                from 0 over the calls where there are none. Scores that are merged should have them.
            groups: N values, or as many as there are labels, of which rows with equal ones are a group; words or
                numbers. Where one call has groups all have.
            bytes, words: how many the labels are, as text: an integer for all of them, or N, or one for each label.
                Those of labels that do not count are left out. Where one call has them all have.
            each: is called with what is known of each row that counts: a dict of arrays "row" (for more axes "index_1"
                and so on as well), "label", "prediction", "rank", "loss", "confidence" and "brier".

        Takes the time of `crossent.prediction_stats`, and the memory of a copy of the rows where the numbers of one do
        not lie side by side. Probabilities are made logarithms in float64.

        Raises IndexError for a label that is neither a class nor `ignore_index`; ValueError for shapes that do not fit,
        for nan, inf or nothing but -inf in a row that counts, for rows that are not what `scale` says, and for more
        than 10,000 groups; TypeError
        for dtypes and kinds of arrays other than those above. Nothing is counted then.
        """
        seen = self._look("Score.update", input, target, dim, rows)
        count, shapes = len(seen.numbers), ((len(seen.numbers),), seen.labels.shape)
        if groups is not None:
            groups = _array(f"groups must be {count} values, or of the shape {shapes[1]}", groups, shapes)
        given = {name: one for name, one in (("bytes", bytes), ("words", words)) if one is not None}
        wanted = f"must be an integer, {count} or as many as there are labels, none negative"
        lengths = {name: _array(f"{name} {wanted}", one, ((), *shapes), 0) for name, one in given.items()}
        self._held.count(seen, groups, texts.given(lengths, self._held.options.shift) if lengths else None)
        self._counted(count)
        if each is not None:
            each(seen.columns())
        return self

    def _look(self, call: str, input: Any, target: Any, dim: int | None, rows: Any) -> Seen:
        if hasattr(input, "placements") or hasattr(target, "placements"):
            raise TypeError(
                f"{call} takes whole rows, got a DTensor: pass to_local() where its rows are spread, and "
                "full_tensor() in one process where its classes are"
            )
        plan(prediction_stats, input, target, dim=dim)  # which refuses what is no call
        axis, labels = class_axis(input.ndim, dim), as_numpy(target)
        block = moved_axis(input if is_numpy(input) else input.detach(), axis, -1)
        count = labels.shape[0] if labels.ndim else 1
        if rows is None:
            rows = np.arange(self._numbered, self._numbered + count)
        return self._held.look(
            block, axis, labels, _array(f"rows must be {count} integers", rows, ((count,),), -np.inf)
        )

    def _counted(self, rows: int) -> None:
        self._numbered += rows
        self._own = self._own or uuid4().hex
        self._held.parts.setdefault(self._own, Part())

    def merge(self, *others: "Score") -> "Score":
        """Adds what other Scores have counted, leaves them as they are, and returns the Score itself.

        Raises ValueError where a Score has other options or another number of classes, and where rows would be counted
        twice: where a Score, or a copy of it, is merged once more, or into itself. TypeError for what is no Score.
        Nothing is merged then.
        """
        held = deepcopy(self._held)
        for i, other in enumerate(others):
            if not isinstance(other, Score):
                raise TypeError(f"others[{i}] must be a Score, got {type(other).__name__}")
            held.merge(f"others[{i}]", other._held)
        self._held = held
        return self

    def result(self) -> dict[str, Any]:
        """What `crossent score --json` shows, for all rows so far; more may follow.

        A dict of Python numbers, lists and dicts:

            nll, perplexity, accuracy, top5, brier, calibration_error    as above
            intervals                                                    of each of these both ends, at 95 %; coverage,
                                                                         groups and documents have theirs
            scored, ignored, impossible                                  numbers of rows; impossible: p_y is 0
            skipped                                                      rows left out for what is wrong in their
                                                                         "labels", "logits" or "scale"
            classes                                                      their number
            baselines                                                    the NLL of equal shares for all classes and
                                                                         of the labels' own, their entropy
            calibration                                                  of each bin: rows, accuracy, mean confidence
            calibration_by_octave                                        the same for each factor of 2 of the confidence
            coverage                                                     of the surest rows, by their share: accuracy,
                                                                         least confidence; the area below that curve
            groups                                                       of each group, worst first: rows, accuracy,
                                                                         nll, mean confidence
            by_class                                                     of each class: rows, recall, precision, nll,
                                                                         and the classes that it was taken for
            confusion_short                                              see above
            bytes, words                                                 where they were given, their numbers
            perplexity_by_byte, perplexity_by_word, bits_per_byte        exp(N nll / bytes), ..., N nll / bytes / log 2
            documents                                                    of labels of two axes, a document in each row
                                                                         of the first: count, mean over them of their
                                                                         mean nll, its perplexity, the worst ones
            worst                                                        the rows with the largest loss
            findings                                                     what looks like a mistake, as in an Explanation

        None is what there is no row for, file where rows came from none. JSON has the words "inf" and "-inf" for these
        numbers. Takes the time of the classes, not of the rows.
        """
        return result_of(self._held, self._held.metrics())

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a partial result, which `load` and `crossent score --merge` read: as a whole, or not at all.

        Raises ValueError where it cannot be written.
        """
        partial.write(Path(path), self._held)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Score":
        """The Score that was saved, or that `crossent score --partial` wrote. No object is unpickled.

        Raises ValueError, with the path, for a file that is something else, of another version, or damaged.
        """
        found = cls()
        found._held = partial.read(Path(path))
        return found

    def __getstate__(self) -> dict[str, Any]:
        held = copy(self._held)
        held.counts = held.counts.settled()  # so that no rows are sent that wait
        packed = zlib.compress(pickle.dumps(held), 1)  # most of its counts are 0
        return vars(self) | {"_held": packed, "version": partial.VERSION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if (version := state.pop("version")) != partial.VERSION:
            raise ValueError(
                f"this Score was pickled by a crossent that writes version {version} of the format, and this one reads "
                f"{partial.VERSION}: use the same on all machines"
            )
        vars(self).update(state | {"_held": pickle.loads(zlib.decompress(state["_held"]))})

    def __repr__(self) -> str:
        return f"<crossent.Score of {self._held.counts.scored:,} rows of {self._held.counts.classes:,} classes>"


def _array(
    what: str, given: Any, shapes: Container[tuple[int, ...]], least: float | None = None
) -> np.ndarray:  # fmt: skip
    """Of a tensor, or of what NumPy makes an array of; of integers, where there is a least one."""
    found = as_numpy(given) if hasattr(given, "detach") else np.asarray(given)
    found = found.reshape(1) if (1,) in shapes and not found.ndim else found
    whole = least is None or not found.size or (found.dtype.kind in "iu" and found.min() >= least)
    if found.shape not in shapes or not whole:
        kind = "" if least is None else f"{found.dtype} of shape "
        raise ValueError(f"{what}, got {kind}{found.shape}")
    return found
