"""The machine code of the GPU's kernels, made with no GPU: what a number costs, and what must not be there."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent / "machine_code.py"

triton = pytest.importorskip("triton", minversion="3.7")
# Others make other code, which is for their makers to count.
counted = pytest.mark.skipif(triton.__version__[:4] != "3.7.", reason="instructions are counted with Triton 3.7")

HERE = ["sm_90", "gfx942"]
EVERYWHERE = ["sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"]
ALL = "label_smoothing, softcap, z_loss, weight, sample_weight"


@functools.cache
def kernels(target, *dtypes):
    """What `machine_code.described` says of each kernel, made in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment.setdefault("TRITON_CACHE_DIR", str(TOOL.parents[1] / ".pytest_cache" / "triton"))
    done = subprocess.run(
        [sys.executable, TOOL, target, "json", *dtypes], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def kernel(target, call, name):
    (found,) = [one for one in kernels(target) if (one["call"], one["kernel"]) == (call, name)]
    return found


def class_loops(target, call, name, stores):
    """The two loops over the classes, with stores those of the gradient; first that without labels and masks."""
    found = [loop for loop in kernel(target, call, name)["loops"] if loop["usual"]["exponentials"] >= 8]
    found = [loop for loop in found if bool(loop["usual"]["stores"]) == stores]
    assert len(found) == 2
    return sorted(found, key=lambda loop: loop["usual"]["all"])


LOOPS = {
    "evaluation": ("evaluation, 1024 x 128256, bfloat16", "sums_of_rows", False),
    "step, sums": ("step, 1024 x 128256, bfloat16", "at_once", False),
    "step, gradient": ("step, 1024 x 128256, bfloat16", "at_once", True),
    "rows that begin anywhere, sums": ("step, 1000 x 50257, bfloat16", "at_once", False),
    "rows that begin anywhere, gradient": ("step, 1000 x 50257, bfloat16", "at_once", True),
    "all options, sums": (f"step, 1024 x 128256, bfloat16, {ALL}", "at_once", False),
    "all options, gradient": (f"step, 1024 x 128256, bfloat16, {ALL}", "at_once", True),
}
# Instructions a number on sm_90, at most.
INSTRUCTIONS = {
    "evaluation": 8, "step, sums": 8, "step, gradient": 7, "all options, sums": 16, "all options, gradient": 16,
    "rows that begin anywhere, sums": 8, "rows that begin anywhere, gradient": 7,
}  # fmt: skip


@counted
@pytest.mark.parametrize("target", HERE)
def test_nothing_is_spilled(target):
    """But for what rows that fill all registers may put aside."""
    for found in kernels(target):
        full = "32768" in found["call"] or "softmax, step, 4096 x 30522" in found["call"]
        assert found["spilled"] <= (32 if full else 0), found
        assert found["spilled"] or not found["counts"]["local"]


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("name", LOOPS)
def test_loops_over_classes(name, target):
    """They load and store 128 bits at a time, and no thread waits for another."""
    for loop in class_loops(target, *LOOPS[name]):
        assert loop["usual"]["loads"].keys() == {"16"} and loop["usual"]["stores"].keys() <= {"16"}
        assert loop["all"]["barriers"] == loop["all"]["shuffles"] == loop["all"]["local"] == 0


@counted
@pytest.mark.parametrize("name", LOOPS)
def test_instructions_a_number(name):
    call, *_ = LOOPS[name]
    usual = class_loops("sm_90", *LOOPS[name])[0]["usual"]
    numbers = usual["loads"]["16"] * 16 / (6 if ALL in call else 2)  # beside a bfloat16 its weight, of float32
    assert numbers == 32 and usual["exponentials"] >= numbers
    assert usual["all"] / numbers <= INSTRUCTIONS[name]


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize(
    ("call", "name", "stores"),
    [
        ("step, 4096 x 32768, bfloat16", "at_once", 4),
        ("step, 4096 x 32768, float32", "at_once", 8),
        ("step, 4096 x 30522, bfloat16", "at_once", 4),
        ("softmax, step, 4096 x 30522, bfloat16", "forward", 4),
        ("step, 512 x 16384, bfloat16", "sums_of_rows", 0),
        ("step, 512 x 16384, bfloat16", "gradients_of_rows", 4),
        ("step, 32768 x 1000, float32", "at_once", 8),
        ("step, 16 x 19 x 256 x 256, float32", "at_once", 4),
        ("step, 16 x 150 x 256 x 256, float32", "at_once", 16),
    ],
)
def test_tiles(call, name, stores, target):
    """A thread's numbers come and go 128 bits at a time; on AMD's processors a program has twice as many threads."""
    found = kernel(target, call, name)["counts"]
    halves = 2 if target.startswith("gfx") else 1
    assert found["loads"].get("16", 0) >= stores / halves and found["stores"].get("16", 0) >= stores / halves
    assert found["stores"].get("2" if "bfloat16" in call else "4", 0) <= 10  # of the row


@pytest.mark.parametrize("target", HERE)
def test_statistics_of_tokens(target):
    """The logits are read once, 128 bits at a time, and no thread waits for another; so is their gradient written."""
    call = "tokens, 512 x 32001, bfloat16"
    loops = [one for one in kernel(target, call, "tokens_of_rows")["loops"] if one["usual"]["exponentials"] >= 8]
    assert loops
    for loop in loops:
        assert loop["usual"]["loads"].keys() == {"16"} and not loop["usual"]["stores"]
        assert loop["all"]["barriers"] == loop["all"]["shuffles"] == loop["all"]["local"] == 0
    found = kernel(target, call, "token_gradients_of_rows")["counts"]
    assert found["loads"].get("16") and found["stores"].get("16") and not found["barriers"]


@pytest.mark.soak
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("target", EVERYWHERE)
def test_every_device(target, dtype):
    """All compiles, and accesses are wide but where 999 rows lie side by side, or short rows of 100 classes in 16 bits.
    Gradients of float16 are not made before the upstream gradient is known; few rows of float64 are large enough to be
    read once.
    """
    found, names = kernels(target, dtype), {"sums_of_rows", "gradients_of_rows"}
    if dtype != "float64":
        names.add("losses_of_rows")
    if dtype != "float16":
        names |= {"at_once", "weights_of_rows", "multiplied"}
    assert names <= {one["kernel"] for one in found}
    for one in found:
        uneven = "999" in one["call"] or ("16384 x 100," in one["call"] and dtype in ("float16", "bfloat16"))
        if one["kernel"] in ("at_once", "sums_of_rows", "gradients_of_rows") and not uneven:
            assert one["counts"]["loads"].get("16"), one
        if (target, dtype, one["kernel"]) == ("sm_90", "float64", "at_once") and "x 128256" in one["call"]:
            assert one["spilled"] <= 32, one


OTHER_LOOPS = {
    "log_softmax, sums": ("log_softmax, step, 1024 x 128256, bfloat16", "forward", False, 15),
    "log_softmax, results": ("log_softmax, step, 1024 x 128256, bfloat16", "forward", True, 6),
    "log_softmax, total": ("log_softmax, step, 1024 x 128256, bfloat16", "backward", False, 4),
    "log_softmax, gradient": ("log_softmax, step, 1024 x 128256, bfloat16", "backward", True, 21),
    "log_softmax, rows that begin anywhere": ("log_softmax, step, 1000 x 50257, bfloat16", "forward", False, 15),
    "log_softmax, gradients anywhere": ("log_softmax, step, 1000 x 50257, bfloat16", "backward", True, 21),
    "prediction_stats": ("prediction_stats, evaluation, 1024 x 50265, bfloat16", "statistics_of_rows", False, 17),
}  # the last is how many instructions a number takes on sm_90, at most


def other_loop(name, target):
    call, of_kernel, stores, _ = OTHER_LOOPS[name]
    found = [loop for loop in kernel(target, call, of_kernel)["loops"] if bool(loop["usual"]["stores"]) == stores]
    found = [loop for loop in found if "16" in loop["usual"]["loads"]]  # not that which adds up what programs leave
    return min(found, key=lambda loop: loop["usual"]["all"])


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("name", OTHER_LOOPS)
def test_loops_of_other_functions(name, target):
    loop = other_loop(name, target)
    assert loop["usual"]["loads"].keys() == {"16"} and loop["usual"]["stores"].keys() <= {"16"}
    assert loop["all"]["barriers"] == loop["all"]["shuffles"] == loop["all"]["local"] == 0


@counted
@pytest.mark.parametrize("name", OTHER_LOOPS)
def test_instructions_a_number_of_other_functions(name):
    usual = other_loop(name, "sm_90")["usual"]
    arrays = 2 if name.startswith("log_softmax, gradient") else 1
    assert usual["loads"]["16"] * 8 / arrays == 32 and usual["all"] / 32 <= OTHER_LOOPS[name][-1]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("log_softmax, step, 8192 x 1000, bfloat16", "forward"),
        ("log_softmax, step, 8192 x 1000, bfloat16", "backward"),
        ("nll_loss, step, 8192 x 1000, float32", "gradients_of_labels"),
    ],
)
def test_lines_of_128_bits(call, name):
    """Also where rows are a multiple of 8, and not of 16."""
    found = kernel("sm_90", call, name)["counts"]
    assert found["stores"].keys() == {"16"} and (found["loads"].keys() == {"16"} or name == "gradients_of_labels")
