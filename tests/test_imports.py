"""Who may import what, and what an import may load."""

import ast
import graphlib
import subprocess
import sys
import textwrap
import tokenize
from pathlib import Path

import pytest

import crossent

PACKAGE = Path(crossent.__file__).parent

PUBLIC = ("crossent", "crossent.functional", "crossent.nn")
HELPERS = (
    "crossent.frontends._chunks",
    "crossent.frontends._cpu",
    "crossent.frontends._heads",
    "crossent.frontends._memory",
    "crossent.frontends._plans",
    "crossent.frontends._problem",
    "crossent.frontends._products",
    "crossent.frontends._stages",
    "crossent.frontends._tokens",
)
BELOW_FRONTENDS = (
    "crossent.kernels",
    "crossent._call",
    "crossent._kept",
    "crossent._head",
    "crossent._rows",
    "crossent._options",
    "crossent._plan",
    "crossent._public",
    "crossent._rules",
)
# The first row that fits a module holds for it and all below it. A name on the right stands for all below it as well,
# but for "crossent", which is the public functions alone. The standard library is open to all but `_rules`.
MAY_IMPORT = {
    "crossent._rules": (),
    "crossent._options": (),
    "crossent._plan": (),
    "crossent._call": (),
    "crossent._kept": (),
    "crossent._public": (),
    # The latter inside functions, as test_import_loads_no_array_library shows.
    "crossent._dispatch": ("crossent._call", "crossent._kept", "crossent._options", "crossent.frontends"),
    "crossent._rows": ("crossent._kept", "crossent._rules", "crossent._options", "crossent._dispatch"),
    "crossent._head_filter": (),
    "crossent._head": (
        "crossent.kernels",
        "crossent._rules",
        "crossent._options",
        "crossent._rows",
    ),
    "crossent.kernels.triton": ("crossent._kept", "crossent.kernels", "crossent._rules", "torch", "triton"),
    "crossent.kernels": ("crossent._kept", "crossent.kernels", "crossent._rules", "numba", "llvmlite", "numpy"),
    "crossent.frontends._heads": (*BELOW_FRONTENDS, "crossent.frontends._problem"),
    "crossent.frontends._memory": ("numpy",),
    "crossent.frontends._plans": (*BELOW_FRONTENDS, "crossent.frontends._problem"),
    "crossent.frontends._chunks": (*BELOW_FRONTENDS, "crossent.frontends._problem", "crossent.frontends._stages"),
    "crossent.frontends._cpu": (*BELOW_FRONTENDS, "crossent.frontends._problem"),
    "crossent.frontends._stages": (*BELOW_FRONTENDS, "crossent.frontends._problem"),
    "crossent.frontends._problem": BELOW_FRONTENDS,
    "crossent.frontends._products": (
        *BELOW_FRONTENDS,
        "crossent._head_filter",
        "crossent.frontends._problem",
        "numpy",
        "crossent.frontends._chunks",
        "crossent.frontends._cpu",
        "crossent.frontends._tokens",
    ),
    "crossent.frontends._tokens": (*BELOW_FRONTENDS, "crossent.frontends._problem"),
    "crossent.frontends.numpy": (*BELOW_FRONTENDS, *HELPERS, "crossent.frontends.numpy", "numpy"),
    "crossent.frontends.torch": (
        *BELOW_FRONTENDS,
        *HELPERS,
        "crossent._head_filter",
        "crossent.frontends.torch",
        "numpy",
        "torch",
    ),
    "crossent.frontends": (),
    "crossent.functional": (
        "crossent._dispatch",
        "crossent._options",
        "crossent._plan",
        "crossent._public",
        "crossent._rows",
    ),
    "crossent.distributed": ("crossent._options", "crossent.frontends.torch", "crossent.kernels", "torch"),
    "crossent.nn": ("crossent.functional", "crossent.nn", "crossent._options", "crossent._dispatch", "torch"),
    "crossent.tools.demo": (
        *PUBLIC,
        "crossent.tools.bench",
        "crossent.tools.demo",
        "numpy",
        "torch",
        "sklearn",
        "matplotlib",
        "rich",
        "tokenizers",
        "typer",
    ),
    "crossent.tools.score": (
        *PUBLIC,
        "crossent._options",
        "crossent._rows",
        "crossent.tools.score",
        "crossent.tools.explain",
        "crossent.tools.arrays",
        "crossent.tools.files",
        "crossent.tools.language",
        "crossent.tools.pages",
        "crossent.tools.plain_json",
        "numpy",
        "matplotlib",
        "pyarrow",
        "rich",
        "safetensors",
        "scipy",
        "torch",
        "transformers",
    ),
    "crossent.tools.watch": (
        *PUBLIC,
        "crossent._options",
        "crossent._rows",
        "crossent.frontends.numpy.losses",
        "crossent.frontends.torch",
        "crossent.tools.watch",
        "crossent.tools.score",
        "crossent.tools.arrays",
        "crossent.tools.files",
        "crossent.tools.explain.baselines",
        "crossent.tools.explain.explanation",
        "crossent.tools.explain.words",
        "crossent.tools.plain_json",
        "crossent.integrations.callbacks",
        "numpy",
        "torch",
    ),
    "crossent.tools.explain": (
        *PUBLIC,
        "crossent.tools.explain",
        "crossent.tools.score.pairs",
        "crossent.tools.score.readers",
        "crossent.tools.score.scales",
        "crossent.tools.arrays",
        "crossent.tools.files",
        "crossent.tools.language",
        "crossent.tools.pages",
        "crossent.tools.plain_json",
        "crossent._options",
        "crossent._rows",
        "matplotlib",
        "numpy",
        "rich",
        "torch",
    ),
    "crossent.tools.shapes": (),
    "crossent.tools.arrays": ("numpy", "torch"),
    "crossent.tools.pages": ("jinja2",),
    "crossent.tools.files": ("crossent.tools.language",),
    "crossent.tools.language": (),
    "crossent.tools.output": (),
    "crossent.__main__": ("crossent.tools.commands",),
    "crossent.tools.plain_json": (),
    "crossent.tools.plan_of_shapes": (
        "crossent",
        "crossent._rows",
        "crossent.tools.shapes",
        "numpy",
        "torch",
        "rich",
    ),
    "crossent.tools.bench": (
        *PUBLIC,
        "crossent.tools.bench",
        "crossent.tools.files",
        "crossent.tools.shapes",
        "llvmlite",
        "numpy",
        "torch",
        "scipy",
        "sklearn",
        "jax",
        "optax",
        "liger_kernel",
        "cut_cross_entropy",
        "quack",
        "matplotlib",
        "rich",
    ),
    "crossent.explanation": ("crossent.tools.explain",),
    "crossent.integrations.callbacks": ("lightning", "torch", "transformers"),
    "crossent.integrations": ("crossent._options", "crossent.functional", "crossent.integrations", "torch"),
    "crossent.tools.commands": (
        *PUBLIC,
        "crossent.tools.bench",
        "crossent.tools.demo",
        "crossent.tools.explain",
        "crossent.tools.score.calibration",
        "crossent.tools.score.command",
        "crossent.tools.score.compare_command",
        "crossent.tools.score.readers",
        "crossent.tools.score.scaling",
        "crossent.tools.commands",
        "crossent.tools.plan_of_shapes",
        "crossent.tools.language",
        "crossent.tools.output",
        "crossent.kernels",
        "typer",
    ),
    "crossent.tools": (),
    "crossent": ("crossent.functional", "crossent.nn"),
}
# Who may import by a name made at run time, which no reader of the source can check.
MAY_IMPORT_BY_NAME = {"crossent", "crossent.nn._submodules", "crossent.tools.bench.rivals"}


# The doors to the tools: the command, and the names of an explanation. `crossent.explain` opens one by name.
DOORS = {"crossent.__main__", "crossent.explanation"}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def walk(node):
    """All nodes that can run: not those only a type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            for other in child.orelse:
                yield from walk(other)
        else:
            yield from walk(child)


def imports(module, tree):
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*base, source]).rstrip(".")
            for alias in node.names:
                # `from package import name` imports a module where there is one of that name.
                name = f"{source}.{alias.name}"
                yield name if name in MODULES else source


def below(name, ancestor):
    return name == ancestor or name.startswith(ancestor + ".")


def rule_of(module):
    for row, allowed in MAY_IMPORT.items():
        if below(module, row) and (row != "crossent" or module == "crossent"):
            return allowed
    raise AssertionError(f"{module} has no row in MAY_IMPORT")


def forbidden(module, name):
    if name.partition(".")[0] in sys.stdlib_module_names:
        return module == "crossent._rules"
    return not any(name == allowed if allowed == "crossent" else below(name, allowed) for allowed in rule_of(module))


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_what_it_may(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = sorted({name for name in imports(module, tree) if forbidden(module, name)})
    assert not found, f"{module} may not import {', '.join(found)}"


LIBRARY = [name for name in MODULES if name not in DOORS and not below(name, "crossent.tools")]


@pytest.mark.parametrize("module", LIBRARY)
def test_library_imports_no_tools(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert not [name for name in imports(module, tree) if below(name, "crossent.tools")]
    assert module == "crossent" or not any(below(name, "crossent.tools") for name in rule_of(module))


@pytest.mark.parametrize("module", [name for name in MODULES if name not in MAY_IMPORT_BY_NAME])
def test_imports_are_written_as_imports(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    called = {ast.unparse(node.func).rpartition(".")[2] for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"import_module", "resolve_name", "__import__"}


def test_no_circles():
    """Those are seen too that imports inside functions hold open."""
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
    graph = {module: {name for name in imports(module, tree) if name in MODULES} for module, tree in trees.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(f"modules import each other: {' <- '.join(error.args[1])}") from None


def test_import_rules_see_every_way_to_import():
    source = """
        import a.b, c
        from . import _options
        from .nn import functional
        from crossent import _dispatch, softmax
        if TYPE_CHECKING:
            import unseen
        def function():
            from d import e
    """
    found = set(imports("crossent", ast.parse(textwrap.dedent(source))))
    assert found == {"a.b", "c", "crossent._options", "crossent.nn.functional", "crossent._dispatch", "crossent", "d"}


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        ("crossent._rules", "math", True),
        ("crossent._rows", "numpy", True),
        ("crossent._rows", "math", False),
        ("crossent.functional", "crossent.frontends.torch", True),
        ("crossent.kernels.cpu.kernels", "crossent._options", True),
        ("crossent.kernels.cpu.kernels", "numba.core", False),
        ("crossent.frontends.numpy", "torch", True),
        ("crossent.tools.commands", "crossent._rules", True),
        ("crossent.nn.functional", "torch.nn.functional", False),
    ],
)
def test_import_rules_forbid(module, name, expected):
    assert forbidden(module, name) == expected


def run(source):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_loads_no_array_library():
    run(
        """
        import sys
        import crossent
        heavy = {"torch", "numpy", "numba", "llvmlite", "jax", "triton", "scipy"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        """
    )


WITHOUT_TORCH = """
    import sys

    class NoTorch:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "torch":
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    sys.meta_path.insert(0, NoTorch())
"""


def test_numpy_needs_no_torch():
    run(
        textwrap.dedent(WITHOUT_TORCH)
        + textwrap.dedent(
            """
            import numpy as np
            import crossent

            logits = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
            labels = np.array([1, 2])
            shifted = np.exp(logits - logits.max(1, keepdims=True))
            p = shifted / shifted.sum(1, keepdims=True)
            expected = -np.log(p[[0, 1], labels])

            np.testing.assert_allclose(crossent.softmax(logits, 1), p)
            np.testing.assert_allclose(crossent.log_softmax(logits, 1), np.log(p))
            np.testing.assert_allclose(crossent.cross_entropy(logits, labels, reduction="none"), expected)
            np.testing.assert_allclose(crossent.nll_loss(np.log(p), labels), expected.mean())
            loss, dlogits = crossent.value_and_grad(crossent.cross_entropy)(logits, labels)
            np.testing.assert_allclose(loss, expected.mean())
            np.testing.assert_allclose(dlogits, (p - np.eye(3)[labels]) / 2)
            assert "torch" not in sys.modules
            """
        )
    )


@pytest.mark.parametrize(
    "statement",
    [
        "import crossent.nn",
        "import crossent.nn.functional",
        "import crossent.nn.utils",
        "from crossent import nn",
        "crossent.nn",
        "from crossent.nn import Linear",
    ],
)
def test_nn_without_torch_says_what_to_install(statement):
    source = f"""
        import crossent
        try:
            {statement}
        except ImportError as error:
            print(error)
    """
    assert "pip install crossent[torch]" in run(textwrap.dedent(WITHOUT_TORCH) + textwrap.dedent(source))


@pytest.mark.parametrize("name", ["Score", "calibrate", "explain"])
def test_tools_are_imported_when_they_are_first_used(name):
    run(
        f"""
        import sys
        import crossent
        assert "crossent.tools" not in sys.modules and "{name}" in crossent.__all__
        assert crossent.{name}.__module__.startswith("crossent.tools.")
        assert not {{"rich", "torch", "typer"}} & sys.modules.keys()
        """
    )


def test_nn_is_imported_when_it_is_first_used():
    run(
        """
        import sys
        import crossent
        assert "crossent.nn" not in sys.modules
        assert crossent.nn.CrossEntropyLoss.__module__.startswith("crossent.")
        assert not hasattr(crossent, "no_such_name")
        """
    )


OF_AN_OPTION = {
    "_options.py",
    "_rules.py",
    "functional.py",
    "functional.pyi",
    "kernels/cpu/call.py",
    "kernels/cpu/epilogue.py",
    "kernels/cpu/kernels.py",
    "kernels/plain.py",
    "kernels/stages.py",
    "kernels/triton/launches.py",
    "kernels/triton/rows.py",
    "nn/modules/loss.py",
    "tools/explain/play/__init__.py",
    "tools/explain/steps.py",
    "tools/explain/working.py",
}


def test_where_an_option_may_stand():
    """The recipe of CONTRIBUTING: an option's name, here that of our own last one, stands in these files."""
    found = set()
    for path in PACKAGE.rglob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            with tokenize.open(path) as file:
                tokens = list(tokenize.generate_tokens(file.readline))
            code = [token.string.strip("\"'") for token in tokens if token.type in (tokenize.NAME, tokenize.STRING)]
            if "z_loss" in code:
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == OF_AN_OPTION
