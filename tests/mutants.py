"""Every small mistake in `_rules.py`, one at a time: which of them do the checks below not see?

Each mistake is made in a copy of the package, which a forked child of this process imports and checks. Prints the
survivors as JSON. `python mutants.py FOLDER` makes its copies in FOLDER.
"""

import ast
import copy
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "crossent"
OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


def mistakes(source):
    """(description, changed source): every operator replaced by its opposite, every number changed, every sign."""
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        for place, node in enumerate(ast.walk(function)):
            changes = []
            if isinstance(node, ast.BinOp) and type(node.op) in OTHER:
                changes.append(("op", OTHER[type(node.op)]()))
                changes.append(("left alone", None))
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
                changes.append(("op", ast.UAdd()))
            elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
                changes.append(("value", node.value + 1.0))
            for kind, change in changes:
                again = copy.deepcopy(tree)
                twin = next(f for f in again.body if getattr(f, "name", None) == function.name)
                target = list(ast.walk(twin))[place]
                before = ast.unparse(target)
                if kind == "left alone":
                    replace(twin, target, target.left)
                    after = ast.unparse(target.left)
                else:
                    setattr(target, kind, change)
                    after = ast.unparse(target)
                yield f"{function.name}: {before}  ->  {after}", ast.unparse(ast.fix_missing_locations(again))


def replace(tree, old, new):
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            if value is old:
                setattr(node, field, new)


def check_composite():
    """What the plain tensor operations compute, in a moment."""
    from test_contract import NLL_OPTIONS, OPTIONS, make

    from harness import check

    for options in OPTIONS.values():
        logits, target, keywords = make((6, 5), None, **options)
        check("composite", "cross_entropy", logits, target, dtype="float64", **keywords)
    for options in NLL_OPTIONS.values():
        logits, target, keywords = make((6, 5), None, **options)
        check("composite", "nll_loss", logits, target, dtype="float64", **keywords)


def check_kernels():
    """What the kernels for rows of float64 compute, compiled anew."""
    from test_contract import OPTIONS, check_gradient_of_soft_target, make

    from harness import check

    for options in OPTIONS.values():
        logits, target, keywords = make((6, 5), None, **options)
        check("torch", "cross_entropy", logits, target, dtype="float64", **keywords)
    check_gradient_of_soft_target("torch", "float64", "soft, everything", (6, 5), None)


def child(folder, source, check):
    """The exit status of a process in which `check` sees the package with `source` for its rules."""
    shutil.copytree(PACKAGE, folder / "crossent", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "crossent" / "_rules.py").write_text(source)
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        sys.path[:0] = [str(folder), str(Path(__file__).parent)]
        sys.stderr = open(folder / "log", "w")
        check()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def survivors(folder, sources, check, at_once):
    """The descriptions of those that `check` does not notice."""
    waiting, running, missed = list(sources.items()), {}, []
    while waiting or running:
        while waiting and len(running) < at_once:
            description, source = waiting.pop()
            place = folder / f"{check.__name__}-{len(waiting)}"
            running[child(place, source, check)] = description, place
        pid, status = os.wait()
        description, place = running.pop(pid)
        if status == 0:
            missed.append(description)
            shutil.rmtree(place)
    return missed


def main(folder):
    # loaded once and inherited; the package itself is imported by the children
    os.environ.update(NUMBA_OPT="0", NUMBA_LOOP_VECTORIZE="0", NUMBA_SLP_VECTORIZE="0")
    import numba  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    source = (PACKAGE / "_rules.py").read_text()
    checks = (check_composite, check_kernels)
    at_once = os.cpu_count() or 1
    controls = [survivors(folder / "control", {"no mistake": source}, check, 1) for check in checks]
    sources = dict(mistakes(source))
    missed = survivors(folder, sources, check_composite, at_once)
    missed = survivors(folder, {key: sources[key] for key in missed}, check_kernels, at_once)
    print(json.dumps({"controls": controls, "made": len(sources), "missed": missed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
