"""Classification losses, exact and fast, for PyTorch tensors and NumPy arrays."""

from importlib import import_module
from typing import TYPE_CHECKING

from crossent.functional import (
    Plan,
    PredictionStats,
    SparseTarget,
    TokenStats,
    cross_entropy,
    empty_cache,
    linear_cross_entropy,
    linear_token_stats,
    log_softmax,
    nll_loss,
    plan,
    prediction_stats,
    softmax,
    value_and_grad,
)

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "Explanation",
    "NonFiniteError",
    "Plan",
    "PredictionStats",
    "Scaling",
    "Score",
    "SparseTarget",
    "TokenStats",
    "calibrate",
    "cross_entropy",
    "empty_cache",
    "explain",
    "linear_cross_entropy",
    "linear_token_stats",
    "log_softmax",
    "nll_loss",
    "plan",
    "prediction_stats",
    "softmax",
    "value_and_grad",
    "watch",
]

if TYPE_CHECKING:
    from crossent import nn as nn
    from crossent.tools.explain import Explanation as Explanation, explain as explain
    from crossent.tools.score import (
        Comparison as Comparison,
        Scaling as Scaling,
        Score as Score,
        calibrate as calibrate,
    )
    from crossent.tools.watch import NonFiniteError as NonFiniteError, watch as watch
else:

    def __getattr__(name):
        if name == "nn":  # imported at its first use, since it imports torch
            return import_module("crossent.nn")
        if name in ("Explanation", "explain"):  # likewise, since it imports NumPy
            return getattr(import_module("crossent.tools.explain"), name)
        if name in ("Comparison", "Scaling", "Score", "calibrate"):  # likewise
            return getattr(import_module("crossent.tools.score"), name)
        if name in ("NonFiniteError", "watch"):  # likewise, since it imports torch
            return getattr(import_module("crossent.tools.watch"), name)
        raise AttributeError(f"module 'crossent' has no attribute {name!r}")
