"""One call in two styles: a module holds its options and parameters, a function is told everything."""

import inspect
from typing import Any

import numpy as np

_MODULES = {
    "cross_entropy": "CrossEntropyLoss",
    "nll_loss": "NLLLoss",
    "linear_cross_entropy": "LinearCrossEntropyLoss",
}
_CALLED_WITH = ("input", "target", "sample_weight", "denominator")  # what a module is, which holds all else
_NO_MODULE_HAS = ("group", "first_class")


def styles_of(function, arguments, options) -> dict[str, str]:
    """The call as a "module", if there is one, and as a "function", with arrays by their names and without defaults."""
    told = {}
    for name, parameter in inspect.signature(function).parameters.items():
        value = arguments[name]
        text = _text(name, value if value is None else getattr(options, name, value))
        if parameter.default is parameter.empty:
            told[name] = name
        elif text != repr(parameter.default):
            told[name] = f"{name}={text}"
    calls = {"function": f"crossent.{function.__name__}({', '.join(told.values())})"}
    if any(name in told for name in _NO_MODULE_HAS):
        return calls
    called = [told.pop(name) for name in _CALLED_WITH if name in told]
    held = []
    if told.pop("linear_weight", None):
        classes, *out, features = arguments["linear_weight"].shape
        held = [str(features), str(classes)] + [f"out_features={tuple(out)}"] * bool(out)
        held += ["bias=True"] * bool(told.pop("linear_bias", None))
    module = f"crossent.nn.{_MODULES[function.__name__]}({', '.join([*held, *told.values()])})({', '.join(called)})"
    return {"module": module} | calls


def _text(name: str, value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    return repr(value) if value is None or isinstance(value, int | float | str) else name
