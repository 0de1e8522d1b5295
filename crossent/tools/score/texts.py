"""What is asked of language models beside the loss of a token: that of a byte, of a word, and of whole documents.

A document is a row of labels along two axes, (rows, time).
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

# Of labels, and which of them count: numbers for each row of the first axis, or one for all.
Measure: TypeAlias = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
UNITS = {"bytes": "byte", "words": "word"}


def shifted(labels: np.ndarray, shift: int, fill: int) -> np.ndarray:
    """Of each row what belongs to the label of so many later ones along the last axis; the last rows have none."""
    if labels.ndim < 2:
        raise ValueError(f"shift needs rows with an axis of time, got labels of shape {labels.shape}")
    found = np.full_like(labels, fill)
    found[..., : max(0, labels.shape[-1] - shift)] = labels[..., shift:]
    return found


def given(lengths: Mapping[str, Any], shift: int) -> Measure:
    """Of lengths in these units: that of all labels, or one for each of them, or for each row of the first axis."""

    def of(length: np.ndarray, kept: np.ndarray) -> np.ndarray:
        if not length.ndim:
            return length
        if length.shape == kept.shape:
            return ((shifted(length, shift, 0) if shift else length) * kept).reshape(len(kept), -1).sum(1)
        return np.where(kept.reshape(len(kept), -1).any(1), length, 0)

    return lambda labels, kept: {name: of(np.asarray(length), kept) for name, length in lengths.items()}


def decoded(tokenizer: Any) -> Measure:
    """Of what the labels of each row say: bytes of UTF-8, and words between blanks."""

    def measure(labels: np.ndarray, kept: np.ndarray) -> dict[str, np.ndarray]:
        rows = [row[counts].tolist() for row, counts in zip(labels, kept)]
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        lengths = [len(text.encode()) for text in texts], [len(text.split()) for text in texts]
        return dict(zip(UNITS, np.array(lengths, int)))

    return measure
