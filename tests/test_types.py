"""What pyright says of the library, it and mypy of a user's program, and that the stubs tell them the truth."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import stubs
import torch

from crossent import functional

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests/typed_by_users.py"
# mypy does without what no answer here depends on: it takes a third of the time.
UNREAD = """
    torch._inductor torch._dynamo torch._export torch._functorch torch._higher_order_ops torch._prims torch._refs
    torch._subclasses torch.ao torch.cuda torch.distributed torch.export torch.fx torch.jit torch.onnx torch.testing
    torch.utils sympy numba llvmlite crossent.kernels crossent.frontends
"""


def mypy(folder, cache):
    pytest.importorskip("mypy")
    modules = ",".join(f"{name}.*" for name in UNREAD.split())
    (folder / "mypy.ini").write_text(f"[mypy]\ncache_dir = {cache}\n[mypy-{modules}]\nfollow_imports = skip\n")
    return [sys.executable, "-m", "mypy", "program.py"]


def pyright(folder, cache):
    pytest.importorskip("pyright")
    (folder / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT}"], "typeCheckingMode": "standard"}}')
    return [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "program.py"]


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_users_program(checker, tmp_path, pytestconfig):
    """Errors where there are some, and nowhere else."""
    text = PROGRAM.read_text(encoding="utf-8")
    (tmp_path / "program.py").write_text(text, encoding="utf-8")
    command = checker(tmp_path, pytestconfig.cache.mkdir("mypy"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    errors = [line for line in done.stdout.splitlines() if re.search(r"program\.py:\d+:.*(error|warning):", line)]
    found = {int(re.search(r"program\.py:(\d+)", line)[1]) for line in errors}
    refused = {number for number, line in enumerate(text.splitlines(), 1) if line.endswith("  # refused")}
    assert len(refused) > 20 and found == refused, f"{sorted(found ^ refused)}\n{done.stdout}{done.stderr}"


@pytest.mark.skipif(torch.__version__ < stubs.TORCH, reason="PyTorch's own types are other ones there")
def test_the_library():
    """As `make lint` asks it, beside the other tests."""
    pytest.importorskip("pyright")
    done = subprocess.run([sys.executable, "-m", "pyright"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def parameters(node):
    """Names and defaults in order, and whether the first of them may be given by position."""
    a = node.args
    required = [None] * (len(a.posonlyargs + a.args) - len(a.defaults))
    named = {argument.arg: default for argument, default in zip(a.args, [*required, *a.defaults], strict=True)}
    named |= {argument.arg: default for argument, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)}
    variable = [f"*{each.arg}" for each in (a.vararg, a.kwarg) if each]
    return {name: None if default is None else ast.unparse(default) for name, default in named.items()}, variable


@pytest.mark.parametrize("name", [*functional._PLANNED, "value_and_grad", "plan", "empty_cache"])
def test_the_stub_has_the_arguments_of_the_functions(name):
    def functions(path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        return [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]

    path = Path(functional.__file__)
    (made,), typed = functions(path), functions(path.with_suffix(".pyi"))
    wanted, variable = parameters(made)
    for node in typed:
        found, found_variable = parameters(node)
        assert list(found) == list(wanted) and found_variable == variable
        for argument, default in found.items():  # one for a value of its own has no default
            assert default in (wanted[argument], None)
            assert default is not None or wanted[argument] is None or argument == "reduction"
    assert parameters(typed[-1]) == parameters(made)
    kinds = [len(made.args.args), len(made.args.kwonlyargs)]
    assert [len(typed[-1].args.args), len(typed[-1].args.kwonlyargs)] == kinds


needs_their_torch = pytest.mark.skipif(
    not torch.__version__.startswith(f"{stubs.TORCH}."), reason=f"the stubs name what there is in PyTorch {stubs.TORCH}"
)


@needs_their_torch
def test_every_module_of_torch_has_its_stub():
    written = {path.relative_to(stubs.NN): path.read_text() for path in stubs.NN.rglob("*.pyi")}
    assert written == dict(stubs.stubs()), "python tests/stubs.py writes them anew"


@needs_their_torch
@pytest.mark.parametrize("module", ["loss", "activation"])
def test_every_class_of_torch_is_typed(module):
    tree = ast.parse((stubs.NN / f"modules/{module}.py").read_text())
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert set(getattr(torch.nn.modules, module).__all__) <= named | classes
