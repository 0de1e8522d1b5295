"""Whether kernels for GPUs can be compiled here."""

import re
from importlib.util import find_spec
from pathlib import Path

import torch


def _has_triton():
    """Whether there is a Triton that the kernels for GPUs are tested with."""
    for_gpus = torch.version.cuda or torch.version.hip
    return bool(for_gpus) and version_of_triton() >= (3, 6)


def version_of_triton() -> tuple[int, int]:
    """The first two numbers, (0, 0) without Triton. It is not imported for that, which takes long, nor looked for among
    the distributions, where it has a name for each kind of GPU.
    """
    spec = find_spec("triton")
    text = Path(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin else ""
    found = re.search(r"__version__ *= *[\"'](\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


GPUS_HAVE_KERNELS = _has_triton()
