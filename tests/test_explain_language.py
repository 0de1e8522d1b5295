"""`crossent.explain` in Chinese: every message has both languages, nothing but words differs, and all fits."""

import ast
import re
import string
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import needs_chromium, opened, violations
from matplotlib.text import Text
from rich.console import Console
from test_explain_command import called
from test_explain_findings import CASES
from test_explain_gradient import OPTIONS
from test_explain_names import REFUSED

import crossent
from crossent.tools import language
from crossent.tools.explain import plot
from crossent.tools.explain.command import worked_example
from crossent.tools.explain.findings import FINDINGS

SOURCES = Path(language.__file__).parent / "explain"
CHINESE = re.compile("[\u4e00-\u9fff]")
# What stays English inside a Chinese sentence.
NAMES = r"crossent.watch|binary_\w+|cross_entropy|\w*nll_loss|\w*log_softmax|log-softmax|softmax|softcap|"
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
    for path in SOURCES.parent.rglob("*.py"):
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
    asked = {*asked_for(), *(finding.__name__ for finding in FINDINGS if finding.__name__ in MESSAGES)}
    sources = "".join(path.read_text("utf-8") for kind in ("py", "html") for path in SOURCES.parent.rglob(f"*.{kind}"))
    assert not [pattern for pattern in asked if not any(re.fullmatch(pattern, key) for key in MESSAGES)]
    ours = [key for key in MESSAGES if not key.startswith(("from_english.", "play."))]  # which have tests of their own
    unsaid = [key for key in ours if not any(re.fullmatch(pattern, key) for pattern in asked)]
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


def test_what_is_translated_is_what_plans_say():
    package = SOURCES.parents[1]
    paths = [package / "frontends" / "_plans.py", *package.glob("frontends/torch/*p*s.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    said = "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    for key, message in language.messages()["from_english"].items():
        for part in re.split(r"\{\w+\}", message["en"]):
            known = len(part) < 12 or part in said or part.startswith(PATHS)
            assert known, (key, part)


PATHS = "kernels in", "plain operations in", " chunks of ", " rows, ", " MB beside arguments"  # of Plan


def plans():
    """Calls whose plans have as many reasons as the CPU gives."""
    x, y = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32), np.arange(6)
    tensor = torch.tensor(x, requires_grad=True)
    for options in {}, {"inplace_backward": True}, {"weight": torch.ones(40, requires_grad=True)}:
        yield crossent.cross_entropy, (tensor, torch.tensor(y)), options
    for input in x, np.asfortranarray(x), np.zeros((3, 80, 6), np.float32).transpose(2, 1, 0)[:, ::2, 0]:
        yield crossent.cross_entropy, (input, y.astype(np.int32)), {}
    yield crossent.cross_entropy, (x[:, :3], y % 3), {}
    yield crossent.nll_loss, (x, y), {}
    hidden, weight = torch.randn(6, 5, dtype=torch.bfloat16), torch.randn(9, 5, dtype=torch.bfloat16)
    for reduction in "mean", "none":
        call = hidden.requires_grad_(), weight.requires_grad_(), torch.tensor(y)
        yield crossent.linear_cross_entropy, call, {"reduction": reduction}


def test_plans_are_in_chinese():
    for function, call, options in plans():
        found = crossent.explain(*call, function=function, lang="zh", **options)
        english = [str(found.plan).partition("\n")[0], *found.plan.reasons]
        with language.speaking("zh"):
            chinese = list(map(language.translated, english))
        for line in chinese:
            left = re.sub(rf"{NAMES}|plain operations|MB|int\d+|bfloat16|float\d+", "", line)
            assert CHINESE.search(line) and not re.search("[A-Za-z]{2}", left), (line, left)
        assert all(line in str(found).replace("\n", "") for line in chinese[1:] if language.width(line) < 78)
        assert chinese[-1] in found._repr_html_().replace("&#39;", "'")


def errors_of(call, options):
    """In both languages."""
    for lang in language.LANGUAGES:
        with pytest.raises((ValueError, TypeError, IndexError)) as raised:
            crossent.explain(*call, lang=lang, **options)
        yield raised


def test_errors_are_in_chinese():
    """Those of the function that is explained stand as they are behind what it was called with."""
    x, y = worked_example()
    calls = [((x, y), {"learning_rate": np.inf}), *(((x, y), {"rows": rows}) for rows in ([9], [(0, 0)], ["first"]))]
    calls += [((x, y), {"function": crossent.softmax}), ((np.zeros((2, 0)), np.array([-100, -100])), {})]
    for call, options in [case[:2] for case in REFUSED[:5]] + calls:
        english, chinese = errors_of(call, options)
        assert english.type == chinese.type and CHINESE.search(str(chinese.value))
    foreign = [
        ((x, y[:2]), {}, "input (3, 4) float32、target (2,) int64"),
        ((torch.tensor(x), torch.tensor(y)), {"weight": torch.ones(3).half()}, "weight (3,) float16"),
        (("abc", [0]), {}, "input str、target list"),
        ((x, y), {"dim": 5}, "target (3,) int64"),
        ((x, y), {"label_smoothing": 2}, "input (3, 4) float32"),
        ((x, y + 5), {"reduction": "most"}, "input (3, 4) float32"),
    ]
    for call, options, said in foreign:
        english, chinese = errors_of(call, options)
        assert english.type == chinese.type and str(chinese.value.__cause__) == str(english.value)
        assert re.fullmatch(rf"cross_entropy 不接受 .*{re.escape(said)}.*。它的报错是：.*", str(chinese.value))
        assert str(chinese.value).endswith(str(english.value))


def test_errors_of_files_are_in_chinese(tmp_path, capsys):
    x, y = worked_example()
    for name, array in (("x", x), ("y", y), ("short", y[:2])):
        np.save(tmp_path / f"{name}.npy", array)
    for files in ("no y", "x no", "x short", "y y", "x"):
        assert called("--lang", "zh", *(tmp_path / f"{name}.npy" for name in files.split())) == 2
        said = capsys.readouterr().err
        assert CHINESE.search(said) and said.count("\n") == 1, said
    assert called("--lang", "zh", tmp_path / "x.npy", tmp_path / "y.npy", "--names", tmp_path / "none") == 2
    assert CHINESE.search(capsys.readouterr().err)


@pytest.fixture
def fonts(tmp_path, monkeypatch):
    """Only those of matplotlib; what it returns installs one that has a box for every character."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib import font_manager, get_data_path

    letters = sorted({ord(character) for message in MESSAGES.values() for character in message["zh"]})
    pen, built = TTGlyphPen(None), FontBuilder(1000, isTTF=True)
    for move, place in ("moveTo", (50, 0)), ("lineTo", (50, 700)), ("lineTo", (950, 700)):
        getattr(pen, move)(place)
    pen.closePath()
    box = pen.glyph()
    built.setupGlyphOrder([".notdef", "box"])
    built.setupCharacterMap(dict.fromkeys(letters, "box"))
    built.setupGlyf({".notdef": box, "box": box})
    built.setupHorizontalMetrics({".notdef": (1000, 50), "box": (1000, 50)})
    built.setupHorizontalHeader(ascent=800, descent=-200)
    built.setupNameTable({"familyName": "Boxes Sans", "styleName": "Regular"})
    built.setupOS2()
    built.setupPost()
    built.save(tmp_path / "boxes.ttf")
    own = [font for font in font_manager.fontManager.ttflist if font.fname.startswith(get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    installed = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [*installed, str(tmp_path / "no font.ttf")])
    plot._chinese_fonts.cache_clear()
    yield lambda: installed.append(str(tmp_path / "boxes.ttf"))
    plot._chinese_fonts.cache_clear()


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_the_picture_is_in_chinese(fonts):
    fonts()
    for rows in 3, 60:
        logits = np.random.default_rng(0).normal(size=(rows, 12)).astype(np.float32)
        logits[1, 1] = -np.inf
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of glyphs that are missing
            figure = crossent.explain(logits, np.arange(rows) % 12, lang="zh").plot()
            figure.draw_without_rendering()
        for text in texts(figure):
            left = re.sub(rf"{NAMES}|softmax|log_p|tanh|[pe] = .*|nats|−|\d+(\.\d+)?e[-+]\d+", "", text)
            assert not re.search("[A-Za-z]{2}", left), text
        assert {"第 1 行", "各行的损失" if rows == 3 else "损失，从大到小；1 个不是有限数"} <= {*texts(figure)}


def test_the_picture_is_in_english_where_no_font_has_chinese(fonts, tmp_path, capsys):
    found = crossent.explain(*worked_example(), lang="zh")
    with pytest.warns(UserWarning, match="没有安装带中文的字体") as noted:
        figure = found.plot()
    assert len(noted) == 1 and noted[0].filename == __file__
    assert "loss of each row" in texts(figure) and not CHINESE.search("".join(texts(figure)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.plot() and crossent.explain(*worked_example()).plot()
    plot._chinese_fonts.cache_clear()
    assert called("--lang", "zh", "--plot", tmp_path / "plot.png") == 0
    assert capsys.readouterr().err == "crossent explain: 没有安装带中文的字体：图里的文字是英文。\n"
    for wrong in ("--row", "9"), ("--html", tmp_path), (tmp_path / "no.npy",), ("--logits", "--probabilities"):
        assert called("--lang", "zh", *wrong) == 2
        said = capsys.readouterr().err
        assert CHINESE.search(said) and said.count("\n") == 1, said


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
