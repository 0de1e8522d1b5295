"""`crossent explain`: an explanation of stored logits and labels, or of the worked example."""

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from crossent import nll_loss
from crossent.tools.arrays import as_numpy
from crossent.tools.explain import Explanation, explain
from crossent.tools.files import check_file, lines_of, replacing, write
from crossent.tools.language import say
from crossent.tools.score.pairs import pair_of
from crossent.tools.score.readers import Reading, paths_of, two_files
from crossent.tools.score.scales import LOGITS, PROBABILITIES, log_of

# torch.manual_seed(42); torch.randn(3, 4), exactly
_LOGITS = [
    [0.33669036626815796, 0.12880940735340118, 0.23446236550807953, 0.23033303022384644],
    [-1.1228563785552979, -0.18632829189300537, 2.2082014083862305, -0.637997031211853],
    [0.46165722608566284, 0.2673508822917938, 0.5349046587944031, 0.809357225894928],
]
_LABELS = [1, 0, 2]


def worked_example() -> tuple[np.ndarray, np.ndarray]:
    """Three rows of four logits, and their labels."""
    return np.array(_LOGITS, np.float32), np.array(_LABELS)


def run(
    files: list[str], reading: Reading, scale: str | None, rows: list[int], html: Path | None, plot: Path | None,
    json: bool, options: dict,
) -> int:  # fmt: skip
    """Print the explanation and write the files asked for. Returns the exit status, 1 where something is wrong.

    Raises ValueError, TypeError or IndexError, with one line that says what, for input that cannot be explained.
    """
    inputs = [path for name in files for path in paths_of(name)]
    check_file(html, "--html", inputs)
    check_file(plot, "--plot", inputs)
    found = _explained(files, reading, scale, rows, options)
    if html is not None:
        write(html, found.to_html())
    if plot is not None:
        with replacing(plot) as part, warnings.catch_warnings(record=True, action="default") as caught:
            found.plot(part)
        _tell(warning.message for warning in caught)
    if json:
        print(found.to_json(indent=2))
    else:
        found.print()
    return 1 if found.faulty else 0


def _tell(notes: Iterable[Any]) -> None:
    for note in notes:
        print(f"crossent explain: {note}", file=sys.stderr)


def _explained(files: list[str], reading: Reading, scale: str | None, rows: list[int], options: dict) -> Explanation:
    options, (logits, labels) = {"dim": reading.dim, "names": None} | options, worked_example()
    if options["names"] is not None:
        options["names"] = lines_of(options["names"], "--names")
    if files:
        pair = pair_of(*two_files(files), reading)
        logits, labels, notes = pair.whole()
        options["names"] = options["names"] or pair.names
        _tell(notes)
    if scale not in (None, LOGITS):
        if options.pop("label_smoothing"):
            raise ValueError(say("wrong.smoothed", scale=scale))
        options["function"] = nll_loss
        if scale == PROBABILITIES:
            logits, labels = log_of(logits), as_numpy(labels)
    return explain(logits, labels, rows=rows or None, **options)
