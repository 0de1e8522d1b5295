"""Memory that nobody wrote, and processors that this one can stand in for."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Chunks
from poison import poison

import crossent
from crossent.frontends.torch.arrays import new_tensor
from crossent.kernels.cpu import call as kernel_call
from crossent.kernels.cpu.processor import FEATURES, LIBRARY, PAIRS, WIDENED

ROOT = Path(__file__).parent.parent
FILES = [
    f"tests/test_{name}.py"
    for name in (
        "contract", "autograd", "head", "head_autograd", "kernels", "products", "tokens", "prediction_stats", "meaning",
    )
]  # fmt: skip
# What numba is told to compile for, what oneDNN is to use at most, and the products of bfloat16 that follow.
PROCESSORS = {
    "AVX2": ("haswell", "+avx2", "AVX2", (WIDENED, WIDENED)),
    "AVX-512": ("skylake-avx512", "+avx512f", "AVX512_CORE", (WIDENED, WIDENED)),
    "AVX-512 BF16": ("cooperlake", "+avx512f,+avx512bf16", "AVX512_CORE_BF16", (PAIRS, PAIRS)),
    "AMX": ("cooperlake", "+avx512f,+avx512bf16,+amx-bf16", "AVX512_CORE_AMX", (LIBRARY, PAIRS)),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_memory_that_nobody_wrote_changes_no_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    x, matrix, bias, logits = (
        torch.randn(*shape, generator=generator).to(getattr(torch, dtype)).requires_grad_()
        for shape in ((70, 66), (1001, 66), (1001,), (9, 1100))
    )
    labels, few = torch.arange(70), torch.arange(9)
    sparse = crossent.SparseTarget(torch.arange(140).reshape(70, 2), torch.full((70, 2), 0.5))

    def results():
        head = crossent.linear_cross_entropy
        values = [
            head(x, matrix, labels, linear_bias=bias),
            head(x, matrix, labels, reduction="none", options=Chunks(batch_chunk_size=33)),
            head(x, matrix, labels, filter_eps=1e-3, label_smoothing=0.1),
            head(x, matrix, sparse, softcap=3.0),
            *crossent.linear_token_stats(x, matrix, labels)[:3],
            crossent.cross_entropy(logits, few),
            crossent.cross_entropy(logits[:, :7], few % 7, z_loss=0.1),
            crossent.softmax(logits, 0),
        ]
        leaves = x, matrix, bias, logits
        gradients = torch.autograd.grad(sum(value.float().sum() for value in values), leaves)
        return [*values, *gradients, *crossent.prediction_stats(logits.detach(), few)]

    expected, before = results(), torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison(monkeypatch)
        poisoned = results()
    torch.use_deterministic_algorithms(before)
    assert all(torch.equal(ours, other) for ours, other in zip(poisoned, expected, strict=True))


def test_poison_reaches_all_memory(monkeypatch):
    before = torch.are_deterministic_algorithms_enabled()
    poison(monkeypatch)
    try:
        kinds = torch.float16, torch.bfloat16, torch.float32, torch.float64
        assert all(
            new_tensor((2**22,), dtype).isnan().all() and new_tensor((3,), dtype).isnan().all() for dtype in kinds
        )
        assert np.isnan(np.empty(3)).all() and (np.empty_like([1, 2]) > 2**62).all()
        address, owner = kernel_call._scratch(512, 1)
        start = address - owner.__array_interface__["data"][0]
        assert (owner[start : start + 512] == 255).all()
    finally:
        torch.use_deterministic_algorithms(before)


def environment(kind, **more):
    name, features, onednn, _ = PROCESSORS[kind]
    if not all(FEATURES.get(feature.removeprefix("+")) or "amx" in feature for feature in features.split(",")):
        pytest.skip(f"this processor cannot stand in for one with {kind}")
    told = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "ONEDNN_MAX_CPU_ISA": onednn}
    return {**os.environ, "PYTHONPATH": str(ROOT), **told, **more}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_numbas_features_decide(kind):
    program = "from crossent.kernels.cpu import processor, tile; print(processor.PRODUCTS_OF_BFLOAT16, tile.HEIGHT)"
    done = subprocess.run([sys.executable, "-c", program], env=environment(kind), capture_output=True, text=True)
    assert done.stdout.strip() == f"{PROCESSORS[kind][3]} {6 if kind == 'AVX2' else 8}", done.stderr


def run_tests(*arguments, **how):
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *arguments], cwd=ROOT, **how)
    assert done.returncode == 0


@pytest.mark.soak
@pytest.mark.parametrize("file", FILES)
def test_with_memory_that_is_nan(file):
    run_tests("--poison", file)


@pytest.mark.soak
@pytest.mark.parametrize("kind", PROCESSORS)
def test_on_another_processor(kind, tmp_path):
    run_tests("--poison", *FILES, env=environment(kind, NUMBA_CACHE_DIR=str(tmp_path)))
