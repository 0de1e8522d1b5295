"""Mistakes in the rules are seen: each one made on purpose makes their tests fail.

Kernels and plain operations, whose own tests take longer, compute with the same source.
"""

import ast
from pathlib import Path

import pytest
import test_rules

from crossent import _rules

OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


def mistakes():
    """(rule, description, changed function): each operator as its opposite, each number one larger."""
    for function in ast.parse(Path(_rules.__file__).read_text()).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            before = ast.unparse(node)
            if isinstance(node, ast.BinOp) and type(node.op) in OTHER:
                kept, node.op = node.op, OTHER[type(node.op)]()
                yield function.name, f"{before}  ->  {ast.unparse(node)}", _compiled(function)
                node.op = kept
            elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
                node.value += 1.0
                yield function.name, f"{before}  ->  {ast.unparse(node)}", _compiled(function)
                node.value -= 1.0


def _compiled(function):
    names = {}
    exec(ast.unparse(function), names)
    return names[function.name]


MISTAKES = list(mistakes())


def check():
    test_rules.test_a_soft_target()
    test_rules.test_a_label()
    test_rules.test_what_a_token_says()


@pytest.mark.parametrize(
    ("rule", "changed"), [(m[0], m[2]) for m in MISTAKES], ids=[f"{m[0]}: {m[1]}" for m in MISTAKES]
)
def test_mistakes_in_the_rules_are_seen(rule, changed, monkeypatch):
    monkeypatch.setattr(_rules, rule, changed)
    with pytest.raises(AssertionError):
        check()


def test_there_are_mistakes_to_see():
    assert len(MISTAKES) > 40
    check()
