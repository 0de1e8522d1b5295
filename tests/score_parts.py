"""What Scores are made of in tests, and the documentation's recipes for those who carry them."""

from pathlib import Path

import numpy as np

import crossent

ROOT = Path(__file__).parents[1]


def recipe(name):
    """The function of this name in a block of the documentation, without what it is called with there."""
    text = (ROOT / "docs/score.md").read_text(encoding="utf-8")
    block = next(block for block in text.split("```python\n")[1:] if f"def {name}(" in block)
    known = {"crossent": crossent}
    exec(block.partition("```")[0].partition("\n\n\ncut = ")[0], known)
    return known[name]


def predictions(rows=60, classes=6, dtype="float32", seed=0):
    """With losses that are equal, infinite, and rows that do not count."""
    generator = np.random.default_rng(seed)
    logits = np.round(2 * generator.standard_normal((rows, classes))) / 2
    labels = generator.integers(classes, size=rows)
    labels[generator.random(rows) < 0.1] = -100
    logits[generator.random((rows, classes)) < 0.02] = -np.inf
    logits[:, -1] = np.maximum(logits[:, -1], -9)
    return logits.astype(dtype), labels


def scored(logits, labels, at, library=np.asarray, **options):
    """A Score of the rows at these places."""
    score = crossent.Score(**options)
    return score.update(library(logits[at]), library(labels[at]), rows=at) if len(at) else score
