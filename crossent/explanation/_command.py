"""`crossent explain`: an explanation of stored logits and labels, or of the worked example."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from crossent._files import check_file, replacing
from crossent.explanation import Explanation, explain

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


def load(path: Path) -> np.ndarray:
    """The array in a .npy file, memory-mapped, or the only one in an .npz file."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    if not zipped:
        return np.lib.format.open_memmap(path, mode="r")
    with np.load(path, allow_pickle=False) as arrays:
        if len(arrays.files) != 1:
            raise ValueError(f"expected one array, got {', '.join(arrays.files) or 'none'}")
        return arrays[arrays.files[0]]


def run(files: list[Path], rows: list[int], html: Path | None, plot: Path | None, json: bool, options: dict) -> int:
    """Print the explanation and write the files asked for. Returns the exit status, 1 where something is wrong.

    Raises ValueError, with one line that says what, for input that cannot be explained.
    """
    for path, option in ((html, "--html"), (plot, "--plot")):
        if path is not None:
            check_file(path, option)
    found = _explained(files, rows, options)
    for path, write in ((html, _write_html), (plot, _write_plot)):
        if path is not None:
            write(found, path)
    if json:
        print(found.to_json(indent=2))
    else:
        found.print()
    return 1 if found.faulty else 0


def _explained(files: list[Path], rows: list[int], options: dict) -> Explanation:
    if len(files) not in (0, 2):
        raise ValueError(f"expected LOGITS and LABELS, or no file for the worked example, got {len(files)} file")
    logits, labels = [_loaded(path) for path in files] or worked_example()
    try:
        return explain(logits, labels, rows=rows or None, **options)
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(str(error)) from error


def _loaded(path: Path) -> np.ndarray:
    try:
        return load(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{path}: {reason}") from error


def _write_html(found: Explanation, path: Path) -> None:
    with replacing(path) as part:
        part.write_text(found.to_html(), encoding="utf-8")


def _write_plot(found: Explanation, path: Path) -> None:
    with replacing(path) as part:
        found.plot(part)
