"""The library's docstrings as Markdown, for mkdocstrings."""

import re

import formulas
from griffe import Extension

SECTION = re.compile(r"(Args|Raises):?$")
ITEM = re.compile(r"    (?! )(.*?): (.*)$")
DOCTEST = re.compile(r"(?:^>>> .*\n(?:^.+\n)*)+", re.MULTILINE)
FORMULA = re.compile(r"(?<=\n\n)((?:^ {4}.*\n)+)(?=\n)", re.MULTILINE)
PUBLIC = re.compile(r"`(crossent\.(?:nn\.)?\w+)`")


class Markdown(Extension):
    """Gives every docstring its Markdown before it is rendered."""

    def on_object(self, *, obj, **_) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    """Formulas as LaTeX, doctests as code, the items of "Args:" and "Raises" as lists, public names as links."""
    text = "\n".join(_lists(docstring.splitlines())) + "\n"
    text = text.replace("\nArgs: ", "\nArguments: ")
    text = re.sub("::$", ":", text, flags=re.MULTILINE)
    text = FORMULA.sub(lambda found: _fenced(_dedented(found[1])), text)
    text = DOCTEST.sub(lambda found: f"```pycon\n{found[0]}```\n", text)
    return PUBLIC.sub(r"[`\1`][\1]", text)


def _lists(lines):
    inside = False
    for line in lines:
        title = SECTION.match(line)
        inside = bool(title) or (inside and line.startswith("    "))
        item = ITEM.match(line)
        if title:
            yield from (f"**{title[1].replace('Args', 'Arguments')}**", "")
        elif inside and item:
            names = ", ".join(f"`{name}`" for name in item[1].split(", "))
            yield f"- {names}: {item[2]}"
        else:
            yield line.removeprefix("    ") if inside else line


def _fenced(block):
    return f"```math\n{formulas.latex(block)}\n```\n" if formulas.is_formula(block) else f"```text\n{block}```\n"


def _dedented(block):
    return re.sub("^ {4}", "", block, flags=re.MULTILINE)
