"""Every small mistake in `_rules.py`, one at a time: which of them do the checks below not see?

Each mistake is made in a copy of the package, which a forked child of this process imports and checks. Prints the
survivors as JSON. `python mutants.py FOLDER` makes its copies in FOLDER.
"""

import ast
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "crossent"
OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


def mistakes(source):
    """(description, changed source): each operator as its opposite, each number one larger."""
    tree = ast.parse(source)
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        for node in ast.walk(function):
            before = ast.unparse(node)
            if isinstance(node, ast.BinOp) and type(node.op) in OTHER:
                kept, node.op = node.op, OTHER[type(node.op)]()
                yield f"{function.name}: {before}  ->  {ast.unparse(node)}", ast.unparse(tree)
                node.op = kept
            elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
                node.value += 1.0
                yield f"{function.name}: {before}  ->  {ast.unparse(node)}", ast.unparse(tree)
                node.value -= 1.0


def check_composite():
    """What the plain tensor operations compute, in a moment."""
    from harness import check
    from test_contract import NLL_OPTIONS, OPTIONS, make
    from test_prediction_stats import check_values

    check_values("composite", "float64", 5)
    for options in OPTIONS.values():
        logits, target, keywords = make((6, 5), None, **options)
        check("composite", "cross_entropy", logits, target, dtype="float64", **keywords)
    for options in NLL_OPTIONS.values():
        logits, target, keywords = make((6, 5), None, **options)
        check("composite", "nll_loss", logits, target, dtype="float64", **keywords)


def check_kernels():
    """What the kernels for rows of float64 compute, compiled anew."""
    from harness import check
    from test_contract import OPTIONS, check_gradient_of_soft_target, make
    from test_tokens import check_values_and_gradients

    for softcap in (None, 5.0):
        check_values_and_gradients("float64", 0, softcap, 10**6)
    for options in OPTIONS.values():
        logits, target, keywords = make((6, 70), None, **options)
        check("torch", "cross_entropy", logits, target, dtype="float64", **keywords)
    check_gradient_of_soft_target("torch", "float64", "soft, everything", (6, 70), None)


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
