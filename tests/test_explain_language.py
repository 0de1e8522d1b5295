"""`crossent.explain` in Chinese: every message has both languages, nothing but words differs, and all fits."""

import ast
import re
import string
from pathlib import Path

import numpy as np
import pytest
from browser import needs_chromium, opened, violations
from rich.console import Console
from test_explain_findings import CASES
from test_explain_gradient import OPTIONS

import crossent
from crossent.tools.explain import language
from crossent.tools.explain.command import worked_example

SOURCES = Path(language.__file__).parent
CHINESE = re.compile("[\u4e00-\u9fff]")
# What stays English inside a Chinese sentence: names, and the error that the function raised.
NAMES = r"(?:Class|Target) .*?(?=。)|binary_\w+|cross_entropy|\w*nll_loss|\w*log_softmax|log-softmax|softmax|softcap|"
NAMES += r"logits?|\w+_\w+|float\d+|PyTorch|nat|lse|sum|exp|log|loss|mean|max|inf|nan|dim|denominator|input|weight"
NAMES += "|target"


def leaves(found, path=""):
    for key, value in found.items():
        if set(value) == set(language.LANGUAGES):
            yield path + key, value
        else:
            yield from leaves(value, f"{path}{key}.")


MESSAGES = dict(leaves(language.messages()))


def places(text):
    return sorted(name for _, name, spec, conversion in string.Formatter().parse(text) if name is not None)


@pytest.mark.parametrize("key", MESSAGES)
def test_both_languages_say_the_same(key):
    english, chinese = (MESSAGES[key][name] for name in ("en", "zh"))
    assert english and chinese and places(english) == places(chinese)
    assert not CHINESE.search(english)
    assert english.endswith(".") == chinese.endswith("。") or key == "end"


def asked_for():
    """The keys in the sources, those that are put together as patterns."""
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "say":
                first = node.args[0]
                options = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
                for option in options:
                    if isinstance(option, ast.Constant):
                        yield re.escape(option.value)
                    elif isinstance(option, ast.JoinedStr):
                        parts = [re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+" for p in option.values]
                        yield "".join(parts)
    for path in SOURCES.rglob("*.html"):
        yield from map(re.escape, re.findall(r'say\("([\w.]+)"', path.read_text("utf-8")))


def test_what_is_said_is_there_and_what_is_there_is_said():
    asked = set(asked_for())
    sources = "".join(path.read_text("utf-8") for path in [*SOURCES.rglob("*.py"), *SOURCES.rglob("*.html")])
    assert not [pattern for pattern in asked if not any(re.fullmatch(pattern, key) for key in MESSAGES)]
    unsaid = [key for key in MESSAGES if not any(re.fullmatch(pattern, key) for pattern in asked)]
    assert not [key for key in unsaid if f'"{key}"' not in sources and f"say({key})" not in sources]


def sentences(found):
    yield from (step.note for step in found.steps)
    yield from (finding.sentence for finding in found.findings)
    yield from (check.name for check in found.checks)
    yield from (row.reason for row in found.rows if row.reason)


def assert_chinese(found):
    for sentence in sentences(found):
        left = re.sub(NAMES, "", sentence)
        assert CHINESE.search(sentence) and not re.search(r"[A-Za-z]{2}", left), (sentence, left)
        assert not re.search("[\u4e00-\u9fff，。：] +[\u4e00-\u9fff]", sentence), sentence


@pytest.mark.parametrize("name", CASES)
def test_findings_are_the_same_in_chinese(name):
    function, args, options = CASES[name][1]
    english = crossent.explain(*args, function=function, **options)
    chinese = crossent.explain(*args, function=function, lang="zh", **options)
    assert_chinese(chinese)
    apart = "sentence", "note", "formula", "reason", "name"
    same = [[vars(part) for part in (*e.findings, *e.steps, *e.rows)] for e in (english, chinese)]
    for one, other in zip(*same, strict=True):
        np.testing.assert_equal(*({key: v for key, v in part.items() if key not in apart} for part in (one, other)))
    assert [finding.name for finding in english.findings] == [finding.name for finding in chinese.findings]
    digits = [re.findall(r"\d+", " ".join(finding.sentence for finding in e.findings)) for e in (english, chinese)]
    assert set(digits[0]) == set(digits[1])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_chinese_text_fits_its_width(options, width, tmp_path):
    logits = np.random.default_rng(0).normal(size=(4, 12)) * 20
    found = crossent.explain(logits, np.array([0, 11, 3, 4]), lang="zh", **OPTIONS[options])
    assert_chinese(found)
    with open(tmp_path / "text", "w") as file:
        console = Console(width=width, record=True, file=file)
        found.print(console)
    lines = console.export_text().splitlines()
    assert max(map(language.width, lines)) <= width
    assert not [line for line in lines if line[:1] in "，。：；、）" and line]
    if width == 80:
        assert lines == str(found).splitlines()
        (header,), (x,) = ([line for line in lines if line.startswith(start)][:1] for start in ("  类别", "  x "))
        assert language.width(header) - len("others") + 2 >= language.width(x)


def test_line_starts():
    texts = ("one two  three", 7), ("一二三，四五", 7), ("长 word，三四", 9), ("  a", 2), ("toolongforit b", 4)
    for text, room in texts:
        starts = [0, *language.line_starts(text, room), len(text)]
        lines = [text[lo:hi].rstrip() for lo, hi in zip(starts, starts[1:])]
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(language.width(line) <= room for line in lines if line != "toolongforit"), lines
    assert language.line_starts("一二三，四五", 7) == [2, 5]  # no line begins with a comma


def test_language_is_that_of_the_explanation():
    english, chinese = (crossent.explain(*worked_example(), lang=name) for name in language.LANGUAGES)
    assert "还不如一无所知" in str(chinese) and "第 1 行占了损失的 55%" in chinese.to_json().encode().decode(
        "unicode_escape"
    )
    assert not CHINESE.search(str(english)) and not CHINESE.search(english.to_json())
    assert chinese.to_dict()["lang"] == "zh" and 'lang="zh"' in chinese.to_html() and 'lang="en"' in english.to_html()
    assert not CHINESE.search("".join(text.get_text() for axes in chinese.plot().axes for text in axes.texts))
    with pytest.raises(ValueError, match="lang must be one of 'en', 'zh', got 'de'"):
        crossent.explain(*worked_example(), lang="de")
    with pytest.raises(TypeError, match="learning_rate must be a number, got 'fast'"):
        crossent.explain(*worked_example(), learning_rate="fast")


@needs_chromium
@pytest.mark.parametrize(("lang", "width", "dark"), [("en", 1400, False), ("zh", 420, True)])
def test_page_can_be_read_by_all(lang, width, dark, tmp_path):
    path = tmp_path / "page.html"
    logits = np.random.default_rng(0).normal(size=(4, 12)) * 20
    path.write_text(crossent.explain(logits, np.array([0, 11, 3, 4]), lang=lang, **OPTIONS["every option"]).to_html())
    with opened(f"file://{path}", width=width, dark=dark) as page:
        assert not violations(page) and not page.errors
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.documentElement.lang") == lang
