"""Scaling of logits that makes confidence honest: temperature and vector scaling, fitted to rows in float64."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from crossent import cross_entropy, plan, prediction_stats, softmax, value_and_grad
from crossent._rows import class_axis
from crossent.tools.arrays import as_numpy, dtype_of, like, moved_axis
from crossent.tools.files import write

Method: TypeAlias = Literal["temperature", "vector"]
METHODS: tuple[Method, ...] = "temperature", "vector"
# Starts a pass over the rows: float64 logits (rows, classes), some of them -inf, and the label of each.
Passes: TypeAlias = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
_AT_ONCE = 2**21  # numbers in a block
_SETTLED = 1e-4  # Newton steps of a bias that are shorter are taken for none; of one without an end they have length 1
_MOST_PASSES = 2000


@dataclass(frozen=True)
class Scaling:
    """What `crossent.calibrate` has fitted: a function of logits that gives scaled logits.

        scaling(z)_c = weight_c * z_c + bias_c

    `weight` and `bias` have a number for each class, or one for all of them. A temperature T is weight = (1 / T,) and
    bias = (0.0,). A logit of -inf, of a class that is masked, stays one.

    >>> import numpy as np
    >>> import crossent
    >>> crossent.Scaling((0.5,))(np.array([[4.0, 1.0, -np.inf]]))
    array([[ 2. ,  0.5, -inf]])
    """

    weight: tuple[float, ...]
    bias: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        same = len(self.weight) == len(self.bias) or len(self.bias) == 1
        if not (self.weight and same and all(map(math.isfinite, (*self.weight, *self.bias)))):
            raise ValueError("a Scaling must have finite numbers, a weight and a bias for each class or for all")

    @classmethod
    def of_temperature(cls, temperature: float) -> "Scaling":
        if not (temperature > 0 and math.isfinite(temperature) and math.isfinite(1 / temperature)):
            raise ValueError(f"a temperature must be a number above 0, got {temperature}")
        return cls((1 / temperature,))

    @property
    def temperature(self) -> float | None:
        """None where it takes more than one number."""
        return 1 / self.weight[0] if len(self.weight) == 1 and self.weight[0] > 0 and self.bias == (0.0,) else None

    @property
    def said(self) -> str:
        found = self.temperature
        return f"a vector of {len(self.weight)} classes" if found is None else f"temperature {found:.6g}"

    def __call__(self, logits: Any, dim: int | None = None) -> Any:
        """The scaled logits, in float64 for float64 and else in float32; of tensors differentiable."""
        axis = class_axis(logits.ndim, dim)
        if len(self.weight) not in (1, logits.shape[axis]):
            raise ValueError(f"the scaling is of {len(self.weight)} classes, and the logits have {logits.shape[axis]}")
        rows, dtype = moved_axis(logits, axis, -1), "float64" if dtype_of(logits) == "float64" else "float32"
        weight, bias = (like(logits, np.array(values, dtype)) for values in (self.weight, self.bias))
        with np.errstate(invalid="ignore"):
            scaled = rows * weight + bias
        scaled[rows == -math.inf] = -math.inf
        return moved_axis(scaled, -1, axis)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes JSON, which `load` and `crossent score --scaling` read."""
        write(Path(path), json.dumps({"temperature": self.temperature} | asdict(self)) + "\n")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Scaling":
        """What was saved. Raises ValueError, with the path, for a file that is something else."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(*(tuple(map(float, found[name])) for name in ("weight", "bias")))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: is no scaling that crossent calibrate has written") from error


def calibrate(
    input: Any, target: Any, method: Method = "temperature", *, dim: int | None = None, ignore_index: int = -100
) -> Scaling:
    """Fits a scaling of logits to labels, so that probabilities are as high as they should be.

        temperature    z -> z / T                        T > 0 minimises the mean NLL of softmax(z / T)
        vector         z_c -> weight_c * z_c + bias_c    likewise, with a weight and a bias for each class; sum bias = 0

    Args:
        input, target: logits and labels as `crossent.prediction_stats` takes them: rows that the model was not trained
            on, nor is judged by.
        method: "temperature" or "vector".
        dim, ignore_index: as there.

    Returns a `Scaling`: its `temperature` is what to divide logits by, and it is itself a function of logits. Losses
    and their gradients are `crossent.cross_entropy`'s in float64, block by block. A temperature takes about fifteen
    passes over the rows, and is found to ten digits; a vector takes hundreds.

    Raises ValueError where no finite scaling is the best one: where no logit is larger than the label's (the lower the
    temperature, the better), where labels have no larger logits than classes drawn at random (the higher, the better),
    where a label has probability 0, and for a vector where a class has no rows or can be told from all others without
    fail. Raises as `crossent.prediction_stats` for what it does not take.

    PyTorch has no such function. Source: Guo et al., "On calibration of modern neural networks" (2017), section 4.2.
    Needs SciPy.

    >>> import numpy as np
    >>> import crossent
    >>> labels = np.array([0, 1, 2, 2])
    >>> logits = np.array([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])
    >>> scaling = crossent.calibrate(logits, labels)
    >>> print(f"{scaling.temperature:.4f}", crossent.softmax(scaling(logits), 1).max().round(4))
    5.0230 0.75
    """
    plan(prediction_stats, input, target, dim=dim)  # which refuses what is no call
    axis, labels = class_axis(input.ndim, dim), as_numpy(target).reshape(-1)
    rows = moved_axis(input.detach() if hasattr(input, "detach") else input, axis, -1)
    rows, step = rows.reshape(-1, input.shape[axis]), max(1, _AT_ONCE // input.shape[axis])
    stats = prediction_stats(rows, like(rows, labels), ignore_index=ignore_index)  # which refuses what is no label
    bad = np.isnan(as_numpy(stats.logprob)) & (labels != ignore_index)
    if bad.any():
        place = f"row {bad.argmax()}"
        raise ValueError(f"{place}: the logits hold nan or inf, or are all -inf")

    def passes():
        for lo in range(0, len(labels), step):
            kept = labels[lo : lo + step] != ignore_index
            block = as_numpy(rows[lo : lo + step])[kept].astype(np.float64)
            yield block, labels[lo : lo + step][kept].astype(np.int64)

    return fitted(passes, method)


def fitted(passes: Passes, method: Method) -> Scaling:
    """The scaling of least mean NLL. Raises ValueError, with the reason, where none is the best one."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    counts, behind = np.zeros(1, np.int64), 0.0
    for z, labels in passes():
        counts = np.bincount(labels, minlength=z.shape[1]) + counts
        behind += float((z.max(1) - z[np.arange(len(z)), labels]).sum())
    rows = int(counts.sum())
    if not rows:
        raise ValueError("there is no row to fit a scaling to: every label is ignored, or there are no rows")
    if behind == math.inf:
        raise ValueError("the label of a row has probability 0, and has it however logits are scaled: ignore the row")
    if behind == 0:
        raise ValueError(
            f"the label's logit is the largest in each of the {rows:,} rows: the lower the temperature, the better, "
            "and no scaling is the best one: fit it to rows of which some are predicted wrongly"
        )
    return _temperature(passes) if method == "temperature" else _vector(passes, counts)


def _loss(passes: Passes, weight: Any, bias: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """The sum of the losses of scaled rows, and its derivative for each class's weight and bias."""
    total, of_weight, of_bias = 0.0, np.zeros(1), np.zeros(1)
    for z, labels in passes():
        if len(z):
            masked = z == -np.inf
            z = np.where(masked, 0.0, z)
            with np.errstate(all="ignore"):  # for weights beyond what a float64 holds
                scaled = np.where(masked, -np.inf, z * weight + bias)
                loss, gradient = value_and_grad(cross_entropy)(scaled, labels, reduction="sum")
                total += float(loss)
                of_weight, of_bias = of_weight + np.einsum("nc,nc->c", gradient, z), of_bias + gradient.sum(0)
    return total, of_weight, of_bias


def _temperature(passes: Passes) -> Scaling:
    """The loss is convex in the inverse of the temperature: there its slope is 0."""
    from scipy.optimize import root_scalar

    @cache
    def slope(inverse: float) -> float:
        return float(_loss(passes, inverse, 0.0)[1].sum())

    if slope(0.0) >= 0:
        raise ValueError(
            "labels have on average no larger logits than other classes: the higher the temperature, the better, and "
            "no scaling is the best one: are these the labels of these logits?"
        )
    low = high = 1.0
    while slope(high) < 0:
        low, high = high, 4 * high
    while slope(low) > 0:
        low, high = low / 4, low
    if not math.isfinite(slope(high)):
        raise ValueError("the logits are so large or so small that no temperature can be found")
    found = root_scalar(slope, bracket=(low, high), method="brentq", xtol=1e-12 * low, rtol=1e-12)
    return Scaling((float(found.root),))


def _vector(passes: Passes, counts: np.ndarray) -> Scaling:
    from scipy.optimize import minimize

    classes, rows = len(counts), counts.sum()
    if not counts.all():
        raise ValueError(
            f"class {counts.argmin()} has none of the rows that are fitted: the lower its bias, the better, and no "
            "vector scaling is the best one: fit a temperature, or to more rows"
        )

    def mean_loss(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        total, *slopes = _loss(passes, numbers[:classes], numbers[classes:])
        return total / rows, np.concatenate(slopes) / rows

    start = np.repeat([1.0, 0.0], classes)
    options = {"maxiter": _MOST_PASSES, "maxfun": _MOST_PASSES, "maxcor": 20, "ftol": 0.0, "gtol": 1e-4 / rows}
    found = minimize(mean_loss, start, jac=True, method="L-BFGS-B", options=options)
    weight, bias = found.x[:classes], found.x[classes:]
    if found.nfev >= _MOST_PASSES:
        raise ValueError(f"no vector scaling was found in {_MOST_PASSES:,} passes over the rows: fit a temperature")
    scaling, curvature = Scaling(tuple(weight.tolist()), tuple(bias.tolist())), np.zeros(classes)
    for z, _ in passes():
        p = softmax(scaling(z), 1)
        curvature += (p * (1 - p)).sum(0)
    # A class that is told from all others without fail has a step of 1 left, however far its numbers have gone.
    left = abs(found.jac[classes:] * rows) >= _SETTLED * curvature
    if left.any():
        raise ValueError(
            f"class {left.argmax()} can be told from all others without fail: the larger its weight, the better, and "
            "no vector scaling is the best one: fit a temperature, or to more rows"
        )
    return scaling


def asked(temperature: float | None, file: str | PathLike[str] | None) -> Scaling | None:
    """What the options of a command ask for."""
    if temperature is not None and file is not None:
        raise ValueError("--temperature and --scaling exclude each other")
    if temperature is not None:
        return Scaling.of_temperature(temperature)
    return None if file is None else Scaling.load(file)
