"""What a result must not be, as in "nll>1.2"."""

import math
import operator
import re
from collections.abc import Iterable, Iterator
from typing import Any

_FORM = re.compile(r"\s*([\w.]+)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*")
_HOLDS = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}


def parsed(said: str) -> tuple[str, str, float]:
    found = _FORM.fullmatch(said)
    if found is None:
        raise ValueError(f"--fail-if must be a metric, <, <=, > or >=, and a number, got {said!r}")
    return found[1], found[2], float(found[3])


def failures(conditions: Iterable[str], result: dict[str, Any]) -> Iterator[str]:
    """A line for each that holds, or of whose number nothing is known. Points lead into lists and dicts."""
    for said in conditions:
        name, sign, bound = parsed(said)
        value = _found(result, name)
        if value is None or math.isnan(value):
            yield f"{name} is not known, so {said} fails"
        elif _HOLDS[sign](value, bound):
            yield f"{name} is {value:.6g}, so {said} fails"


def _found(result: Any, name: str) -> float | None:
    for part in name.split("."):
        inside = enumerate(result) if isinstance(result, list) else result.items() if isinstance(result, dict) else ()
        known = {str(key): value for key, value in inside}
        if part not in known:
            there = ", ".join(key for key, value in known.items() if not isinstance(value, str | bool))
            raise ValueError(f"--fail-if: there is no number {name}, got {part!r} where there is {there}")
        result = known[part]
    if result is not None and (isinstance(result, bool) or not isinstance(result, int | float)):
        raise ValueError(f"--fail-if: {name} is no number")
    return result
