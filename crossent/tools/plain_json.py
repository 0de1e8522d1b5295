"""JSON of numbers, which has no word for those that are not finite."""

import json
import math
from typing import Any


def plain(value: Any) -> Any:
    """The same with the words "nan", "inf" and "-inf" for these numbers, and lists for tuples. None is no number."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def text(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(plain(value), indent=indent, allow_nan=False)
