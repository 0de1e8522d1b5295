"""Formulas as MathML, made while the pages are built: they need no script and no other host."""

import re

from latex2mathml.converter import convert

MATHS = re.compile(r"\b(exp|log|sum_\w)\b|\b[a-z]_[a-z]\b")
CODE = re.compile(r"@|\.\.\.")
SYMBOLS = {"**": "^", " * ": r" \cdot ", "==": "=", "exp": r"\exp ", "log": r"\log ", "tanh": r"\tanh "}
TOKEN = re.compile(r"\*\*| \* |==| {2,}|[A-Za-z]\w*|.")


def is_formula(block: str) -> bool:
    """Whether the indented lines of a docstring are mathematics, and not code."""
    return bool(MATHS.search(block)) and not CODE.search(block)


def latex(block: str) -> str:
    """The formulas of a docstring, which are written as in code, aligned at the first = of each line."""
    lines = [TOKEN.sub(_in_latex, re.sub(" += ", " &= ", line, count=1)) for line in block.splitlines()]
    return "\n".join([r"\begin{split}", " \\\\\n".join(lines), r"\end{split}"])


def _in_latex(token: re.Match) -> str:
    text = token[0]
    if text in SYMBOLS:
        return SYMBOLS[text]
    if text.isspace():
        return text if len(text) == 1 else r"\quad "
    base, _, index = text.partition("_")
    if len(text) == 1 or len(base) == len(index) == 1 or not (index or text.isalpha()):
        return text
    if base == "sum":
        return rf"\sum_{index} "
    if base == "p":
        return rf"p_{{\text{{{index}}}}}"
    if index:
        return rf"\texttt{{{text}}}"
    before, after = token.string[: token.start()], token.string[token.end() :]
    between = " " * bool(re.search(r"((?<![A-Za-z])\w|,) $", before)), " " * bool(re.match(r" \w", after))
    return rf"\text{{{between[0]}{text}{between[1]}}}"


def fence(source, language, css_class, options, md, **_) -> str:
    """A fence of LaTeX, as pymdownx.superfences calls it."""
    return f'<div class="math">{convert(source, display="block")}</div>'
