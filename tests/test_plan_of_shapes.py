"""`crossent plan`: the plan of arrays that nobody has to have."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import crossent
from crossent.tools import commands, plan_of_shapes
from crossent.tools.shapes import shape_of


def plan(*arguments):
    return CliRunner().invoke(commands._application(), ["plan", *arguments])


def planned(*arguments):
    result = plan(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def as_json(plan):
    return json.loads(json.dumps(dataclasses.asdict(plan)))


def tensor(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def labels(*shape):
    return torch.zeros(shape, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "function", "arrays", "options"),
    [
        ("cross_entropy --shape 6x7", crossent.cross_entropy, (tensor(6, 7), labels(6)), {}),
        ("cross_entropy --shape 7", crossent.cross_entropy, (tensor(7), labels()), {}),
        ("cross_entropy --shape 6x7x3", crossent.cross_entropy, (tensor(6, 7, 3), labels(6, 3)), {}),
        (
            "cross_entropy --shape 6x3x7 --option dim=-1 --option inplace_backward=true",
            crossent.cross_entropy,
            (tensor(6, 3, 7), labels(6, 3)),
            {"dim": -1, "inplace_backward": True},
        ),
        (
            "cross_entropy --shape 6x7 --target 6x7 --weight 7 --sample-weight 6 --dtype bfloat16",
            crossent.cross_entropy,
            (tensor(6, 7, dtype=torch.bfloat16), torch.zeros(6, 7, dtype=torch.bfloat16)),
            {"weight": torch.zeros(7), "sample_weight": torch.zeros(6)},
        ),
        (
            "nll_loss --shape 6x7 --option reduction=sum",
            crossent.nll_loss,
            (tensor(6, 7), labels(6)),
            {"reduction": "sum"},
        ),
        ("softmax --shape 6x7 --option dim=1", crossent.softmax, (tensor(6, 7), 1), {}),
        ("log_softmax --shape 6x700 --option dim=1", crossent.log_softmax, (tensor(6, 700), 1), {}),
        (
            "linear_cross_entropy --shape 2x50x4 --linear-weight 90x4 --linear-bias 90 --option shift=1"
            " --option chunk_bytes=3600",
            crossent.linear_cross_entropy,
            (tensor(2, 50, 4), tensor(90, 4), labels(2, 50)),
            {"linear_bias": tensor(90), "shift": 1, "chunk_bytes": 3600},
        ),
        (
            "linear_cross_entropy --shape 50x4 --linear-weight 90x4 --target 50x90 --dtype bfloat16",
            crossent.linear_cross_entropy,
            (tensor(50, 4, dtype=torch.bfloat16), tensor(90, 4, dtype=torch.bfloat16), torch.zeros(50, 90).bfloat16()),
            {},
        ),
        (
            "linear_cross_entropy --shape 5x4 --linear-weight 9x3x2x4",
            crossent.linear_cross_entropy,
            (tensor(5, 4), tensor(9, 3, 2, 4), labels(5, 3, 2)),
            {},
        ),
        (
            "linear_token_stats --shape 50x4 --linear-weight 90x4",
            crossent.linear_token_stats,
            (tensor(50, 4), tensor(90, 4), labels(50)),
            {},
        ),
    ],
)
def test_says_what_the_plan_of_real_arrays_says(arguments, function, arrays, options):
    assert planned(*arguments.split()) == as_json(crossent.plan(function, *arrays, **options))


def test_numpy():
    found = planned(*"linear_cross_entropy --library numpy --shape 50x4 --linear-weight 90x4 --dtype float64".split())
    arrays = np.zeros((50, 4)), np.zeros((90, 4)), np.zeros(50, np.int64)
    assert found == as_json(crossent.plan(crossent.linear_cross_entropy, *arrays))


def test_gradients_count():
    arguments = "linear_cross_entropy --shape 50x4 --linear-weight 90x4 --dtype bfloat16".split()
    assert planned(*arguments)["extra_bytes"] > planned(*arguments, "--no-gradient")["extra_bytes"]


def test_large_arrays_take_no_memory():
    """Logits of 4 GB, in a process that may have half a GB more than it starts with."""
    source = """
        import crossent.tools.bench.memory as memory, crossent.tools.plan_of_shapes as plans
        for library in "numpy", "torch":
            given = "float32", library, [], True
            plans.plan_of("cross_entropy", {"input": "20x50"}, *given)
            before = memory.peak()
            found = plans.plan_of("cross_entropy", {"input": "20000x50000"}, *given)
            assert found.path == "kernels" and memory.peak() - before < 50e6, (library, memory.peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_table():
    result = plan(*"linear_cross_entropy --shape 4096x64 --linear-weight 50304x64".split())
    assert result.exit_code == 0 and max(map(len, result.stdout.splitlines())) <= 80
    for text in ("kernels", "float32", "13 of 333 rows", "67.0 MB", "4096 of 4096 rows count"):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("relu --shape 6x7", "FUNCTION must be one of softmax, log_softmax, nll_loss"),
        ("cross_entropy --shape 6by7", "--shape must be whole numbers with an x between them"),
        ("cross_entropy --shape 6x7 --target 5", "wrong shape"),
        ("cross_entropy --shape 6x7 --option dim=2", "dim must be between -2 and 1"),
        ("cross_entropy --shape 6x7 --option dim=a", "dim must be an integer"),
        ("cross_entropy --shape 6x7 --dtype int8", "--dtype must be one of"),
        ("cross_entropy --shape 6x7 --library jax", "--library must be torch or numpy, got 'jax'"),
        ("cross_entropy --shape 6x7 --library numpy --dtype bfloat16", "--dtype: NumPy has no bfloat16"),
        ("cross_entropy --shape 6x7 --option reduction", "--option must be a name and a value"),
        ("cross_entropy --shape 6x7 --option reduction=some", "reduction must be"),
        ("cross_entropy --shape 6x7 --option shift=1", "cross_entropy has no argument 'shift'; it has input, target"),
        ("cross_entropy --shape 6x7 --linear-weight 7x4", "cross_entropy has no argument 'linear_weight'"),
        ("linear_cross_entropy --shape 6x7", "linear_cross_entropy needs a --linear-weight"),
        ("linear_cross_entropy --shape 6x7 --linear-weight 9x8", "linear_weight"),
        ("softmax --shape 6x7 --target 6", "softmax has no argument 'target'"),
        ("cross_entropy --shape 9000000000x90000000", "are more than this machine gives"),
        ("cross_entropy --library numpy --shape 9000000000x90000000", "are more than this machine gives"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message):
    result = plan(*arguments.split())
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("crossent: ") and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(("text", "shape"), [("7", (7,)), ("2048x32000", (2048, 32000)), ("2X3x0", (2, 3, 0))])
def test_shapes(text, shape):
    assert shape_of(text, "--shape") == shape


@pytest.mark.parametrize("text", ["", "x", "2x", "2 3", "-2x3", "2.0x3", "1e3"])
def test_bad_shapes(text):
    with pytest.raises(ValueError, match="--shape must be whole numbers"):
        shape_of(text, "--shape")


def test_every_function_with_a_plan_is_known():
    known = plan_of_shapes.SOFTMAX + plan_of_shapes.LOSSES + plan_of_shapes.HEADS
    with pytest.raises(TypeError) as found:
        crossent.plan(print)
    assert f"one of {', '.join(known)}, got" in str(found.value)
