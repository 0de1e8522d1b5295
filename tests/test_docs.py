"""The documentation: it builds, its code runs, its links and names lead somewhere, and no message is missing."""

import ast
import doctest
import html
import html.parser
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
import urllib.parse
import warnings
from pathlib import Path

import docstrings
import plots
import pytest
import torch
from browser import needs_chromium, opened, serve, violations
from command_line import typed, write_predictions
from harness import Chunks
from mkdocs.config import load_config
from test_explain_findings import CASES as FAULTS

from crossent.tools.bench import command as bench
from crossent.tools.bench.rivals import RIVALS
from crossent.tools.explain.findings import FINDINGS
from crossent.tools.language import messages as catalogue

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
TYPED = re.compile(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def read(path):
    return path.read_text(encoding="utf-8")


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path):
    return [(language, textwrap.dedent(code)) for _, language, code in BLOCK.findall(read(path))]


@pytest.fixture
def at_a_terminal(tmp_path, monkeypatch):
    """In a folder with the files that the pages name, 80 columns wide."""
    write_predictions(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(torch.nn, "LinearCrossEntropyOptions", Chunks, raising=False)  # before PyTorch 2.13


@pytest.mark.parametrize("path", [path for path in TEXTS if blocks(path)], ids=name_of)
def test_code_runs(path, at_a_terminal):
    """The blocks of a page one after the other, in one session."""
    known = {"__name__": "__main__"}
    with warnings.catch_warnings():
        for language, code in blocks(path):
            if code.startswith('--8<-- "docs/recipes/'):
                continue  # tests/test_recipes.py runs them, in several processes
            if language == "python":
                exec(compile(code, name_of(path), "exec"), known)
            elif language == "pycon":
                session = doctest.DocTestParser().get_doctest(code, {}, name_of(path), name_of(path), 0)
                session.globs = known
                said = []
                failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(session, out=said.append, clear_globs=False)
                assert not failed, "".join(said)
            elif language == "console":
                for command, shown in TYPED.findall(code):
                    _, printed = typed(command)
                    assert doctest.OutputChecker().check_output(shown, printed, FLAGS), printed
            else:
                assert language in ("text", "math", "diff"), f"a block of {language or 'no language'} is run by nobody"


# Commands that are only looked at: why, and how.
NOT_RUN = {
    "make": "sets up .venv and works for minutes; with --dry-run",
    "pip install": "installs packages; the extra has to be one of pyproject.toml",
    "python -m": "measures for an hour; with --help",
    "crossent demo": "trains for minutes; with --help",
    "crossent warmup": "compiles for a minute; with --help",
}


def commands():
    """Those in indented lines and in sentences, where the name alone stands for the command's help."""
    for path in TEXTS:
        text = BLOCK.sub("", read(path))
        yield from re.findall(r"^ {4}((?:make|pip|python|crossent) .+?)(?:  .*)?$", text, re.MULTILINE)
        for command in re.findall(r"`((?:make|pip|python|crossent) [^`]+)`", text):
            yield f"{command} --help" if re.fullmatch(r"crossent \w+", command) else command


COMMANDS = list(dict.fromkeys(commands()))
LOOKED_AT = [command for command in COMMANDS if command.startswith(tuple(NOT_RUN))]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in LOOKED_AT])
def test_commands_run(command, at_a_terminal, monkeypatch):
    """`crossent bench` beside one rival alone, and of itself on small logits: all of it takes minutes."""
    monkeypatch.setattr(bench, "SHAPES", ("64x100",))
    for rival in set(RIVALS) - {"scipy"}:
        monkeypatch.delitem(RIVALS, rival)
    status, printed = typed(command)
    assert status == 0 and printed, printed


@pytest.mark.parametrize("command", LOOKED_AT)
def test_commands_exist(command):
    program, *arguments = shlex.split(command)
    if program == "pip":
        extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
        package, extra = re.fullmatch(r"(\w+)(?:\[(\w+)\])?", arguments[1]).groups()
        assert package == "crossent" and (extra is None or extra in extras)
        return
    ways = {
        "make": ["make", "--dry-run", *arguments],
        "crossent": [sys.executable, "-m", "crossent", *arguments, "--help"],
        "python": [sys.executable, *arguments, "--help"],
    }
    done = subprocess.run(ways[program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_is_not_run_is_there():
    assert not [start for start in NOT_RUN if not any(command.startswith(start) for command in COMMANDS)]


def test_oldest_versions_are_those_that_are_promised():
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    promised = dict(text.split(">=") for text in [*project["dependencies"], *project["optional-dependencies"]["torch"]])
    oldest = re.search(r"^OLDEST := (.*)$", read(ROOT / "Makefile"), re.MULTILINE)[1]
    pinned = dict(re.findall(r"(\w+)==([\d.]+?)(?:\.\*|\.0)?[' ]", oldest))
    assert pinned == promised


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_tests_and_files_that_are_named_exist(path):
    text = read(path)
    tests = "".join(map(read, (ROOT / "tests").glob("test_*.py")))
    assert not [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in tests]
    files = re.findall(r"`((?:tests|docs|benchmarks|crossent)/[\w/.]+)`", text)
    assert not [name for name in files if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", TEXTS[:2], ids=name_of)
def test_links_of_the_repository_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", read(path))
    assert not [link for link in links if not (ROOT / link).exists()]


def test_what_a_package_index_shows():
    """The README alone, so that nothing in it may point at a file beside it; and whom and what the package is for."""
    readme = read(ROOT / "README.md")
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)|(?:src|href)=[\"'](?!https?:)", readme)
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    assert project["readme"] == "README.md" and project["authors"] == [{"name": "crossent contributors"}]
    named = [name.rpartition(" :: ")[2] for name in project["classifiers"] if name.startswith("Programming Language")]
    assert project["requires-python"] == f">={min((v for v in named if '.' in v), key=lambda v: int(v[2:]))}"


def messages():
    """Every message that the library raises or warns with, as a pattern."""
    package = ROOT / "crossent"
    yield from (re.sub(r"\\{\w+\\}", ".*?", re.escape(said["en"])) for said in catalogue()["wrong"].values())
    above = (package / "tools" / "demo", package / "kernels")  # kernels raise what nobody gets to see
    for path in sorted(package.rglob("*.py")):
        if any(path.is_relative_to(part) for part in above):
            continue
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.Call) and re.search(r"(Error|BadFile|\.warn)$", ast.unparse(node.func)):
                yield from map(pattern_of, texts_of(node.args[0]) if node.args else [])


def texts_of(message):
    if isinstance(message, ast.IfExp):
        return texts_of(message.body) + texts_of(message.orelse)
    return [message] if isinstance(message, ast.JoinedStr | ast.Constant) else []


def pattern_of(message):
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    return "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".*?" for part in parts)


# The wording is Python's own, or that of the system or of a library that reads files.
UNDOCUMENTED = [r"module\ 'crossent'\ has\ no\ attribute\ .*?", r".*?:\ .*?"]


def test_every_message_has_its_place_in_troubleshooting():
    """That the calls shown there raise the messages quoted there is for `test_code_runs`."""
    text = read(ROOT / "docs/troubleshooting.md")
    quoted = re.findall(r"Traceback .*\n((?: *(?!>>>|```)\S.*\n)+)", text) + re.findall(
        r"`(\w+(?:Error|Warning): [^`]+)`", text
    )
    quoted = [" ".join(message.split()) for message in quoted]
    tabled = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)  # of the commands, "..." being what varies
    found = list(dict.fromkeys(messages()))
    assert len(found) > 100 and len(quoted) > 50 and len(tabled) > 30

    def has_its_place(pattern):
        return any(re.fullmatch(rf"\w+: {pattern}", one) for one in quoted) or any(
            re.fullmatch(rf"(\.\.\.: )?{pattern}", one) for one in tabled
        )

    assert {pattern for pattern in found if not has_its_place(pattern)} <= set(UNDOCUMENTED)
    # Nor does the table have what nobody raises.
    said_by_commands = [rf"(\.\.\.: )?{pattern}" for pattern in found if pattern not in UNDOCUMENTED]
    assert not [one for one in tabled if not any(re.fullmatch(pattern, one) for pattern in said_by_commands)]


def test_the_table_of_findings_has_all_of_them():
    text = read(ROOT / "docs/explain.md")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", text, re.MULTILINE)
    assert [name for name, _ in rows] == [finding.__name__ for finding in FINDINGS]
    for case, (severity, *_) in FAULTS.items():
        assert severity in dict(rows)[case.partition(",")[0]].split(", ")


REPOSITORY = "https://example.org/them/crossent"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "CROSSENT_REPOSITORY": REPOSITORY}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


class Page(html.parser.HTMLParser):
    """Where a page can be jumped to, what it links to, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = {""}, set(), set()
        self.feed(read(path))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found.get("id"), found.get("name")}
        if tag == "a":
            self.links.add(found.get("href"))
        elif tag != "meta":
            self.loads |= {found.get("src"), found.get("href"), found.get("data")}


def test_links_lead_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= 15
    for path, page in pages.items():
        for link in (page.links | page.loads) - {None}:
            target = urllib.parse.urlsplit(link)
            if target.scheme or target.netloc:
                assert link in page.links or target.scheme == "data", f"{path.name} loads {link}"
                continue
            file = (path.parent / urllib.parse.unquote(target.path)).resolve() if target.path else path
            assert file.is_dir() or file.is_file(), f"{path.name}: {link}"
            if target.fragment and file in pages:
                assert urllib.parse.unquote(target.fragment) in pages[file].ids, f"{path.name}: {link}"


def test_docstrings_are_rendered(site):
    for path in (site / "functions").glob("*.html"):
        text = read(path)
        assert "<blockquote>" not in text and "<em>" not in text and "Args:" not in text
    losses = read(site / "functions/losses.html")
    (formula,) = [found for found in re.findall("<math.*?</math>", losses) if "softcap" in found]
    words = [html.unescape(word).strip() for word in re.findall(">([^<]+)<", formula)]
    assert " ".join(words).endswith("loss = s · ∑ c q c · ( lse − z c + z_loss · lse 2 )")
    for item in ("size_average", "inplace_backward", "IndexError"):
        assert re.search(rf"<li>\s*(<p>)?<code>{item}</code>", losses), item


def test_docstring_to_markdown():
    docstring = """One sentence.

        a = b

        y_c = exp(x_c)**2 * label_smoothing / sum_k exp(x_k), or 1    with p_best == how many c have x_c > 0
        b   = x_c

    See `crossent.softmax` and `other`::

    Args:
        x, y: two
            lines.

    Raises
        ValueError: never.

    >>> 1
    1

    >>> 2
    2
    """
    assert docstrings.markdown(textwrap.dedent("    " + docstring).strip()) == textwrap.dedent("""\
        One sentence.

        ```text
        a = b
        ```

        ```math
        \\begin{split}
        y_c &= \\exp (x_c)^2 \\cdot \\texttt{label_smoothing} / \\sum_k  \\exp (x_k), \\text{ or } 1\
\\quad \\text{with } p_{\\text{best}} = \\text{how } \\text{many } c \\text{ have } x_c > 0 \\\\
        b &= x_c
        \\end{split}
        ```

        See [`crossent.softmax`][crossent.softmax] and `other`:

        **Arguments**

        - `x`, `y`: two
            lines.

        **Raises**

        - `ValueError`: never.

        ```pycon
        >>> 1
        1
        ```

        ```pycon
        >>> 2
        2
        ```
        """)


def test_readme_shows_what_was_measured():
    text = read(ROOT / "README.md")
    shares = [line for line in read(ROOT / "docs/measurements/share.md").splitlines() if line.startswith("|")]
    assert f"\n{plots.gains()}\n" in text and len(shares) == 5 and "\n".join(shares) in text
    assert len(text.splitlines()) < 172
    assert "](" not in text, "an index of packages has none of the repository's files to link to"


def test_plots_show_the_numbers_of_the_tables():
    text = read(plots.MEASURED)
    for measure in (plots.steps, plots.heads):
        cases, series = measure()
        assert len(cases) >= 4
        for case, *values in zip(cases, *series.values(), strict=True):
            assert f"| {case} |" in text and all(re.search(rf"\| {value:g}", text) for value in values)
    for value in plots.memory()[1][""]:
        assert f"| {value:.2f} x the logits |" in text


@pytest.mark.parametrize("name", ["steps", "heads"])
def test_legends_of_plots_are_not_cut_off(name):
    figure = plots.drawn(name)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x1 <= figure.bbox.x1


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_start_page_in_a_browser(site, dark):
    with serve(site) as root, opened(f"{root}/index.html", dark=dark) as page:
        assert not page.errors and page.requests
        assert all(url.startswith((f"{root}/", "data:")) for url in page.requests)
        assert f"{root}/plots/steps-{'dark' if dark else 'light'}.svg" in page.requests
        assert page.evaluate("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")
        assert page.evaluate("document.querySelector('.md-header__source a').href") == REPOSITORY


def test_no_repository_is_named_by_the_pages_themselves(monkeypatch):
    monkeypatch.delenv("CROSSENT_REPOSITORY", raising=False)
    assert load_config(str(ROOT / "mkdocs.yml")).repo_url is None


SEARCH = """
new Promise(done => {
    const field = document.querySelector(".md-search__input"), end = performance.now() + 10000
    document.querySelector("#__search").checked = true
    field.focus()
    field.value = "WORDS"
    field.dispatchEvent(new Event("keyup"))
    const wait = () => {
        const found = [...document.querySelectorAll(".md-search-result__item a")].map(link => link.pathname)
        found.includes("/PAGE") || performance.now() > end ? done(found) : setTimeout(wait, 50)
    }
    wait()
})
"""


@needs_chromium
def test_search_finds(site):
    lesson = "notebooks/lesson.zh.html"
    wanted = {"交叉熵": lesson, "标签平滑": lesson, "梯度": lesson, "label smoothing": "functions/losses.html"}
    with serve(site) as root, opened(f"{root}/index.html") as seen:
        for words, page in wanted.items():
            assert f"/{page}" in seen.evaluate(SEARCH.replace("WORDS", words).replace("PAGE", page)), words


@needs_chromium
def test_the_chinese_page_is_in_chinese(site):
    with serve(site) as root, opened(f"{root}/notebooks/lesson.zh.html", width=1400) as page:
        assert page.evaluate("document.documentElement.lang") == "zh"
        assert page.evaluate("document.title") == "从 softmax 到交叉熵 - crossent"
        names = page.evaluate("[...document.querySelectorAll('nav .md-ellipsis')].map(e => e.innerText.trim())")
        assert {"教程", "中文", "函数"} <= set(names) and not {"Start", "Numerics"} & set(names)
        assert {"首页（英文）", "教程（英文）", "数值精度（英文）"} <= set(names), "what leads to English pages says so"
    assert '<html lang="en"' in read(site / "notebooks/lesson.html") and "Numerics" in read(site / "index.html")


def test_names_that_are_translated_are_those_of_the_navigation():
    config = load_config(str(ROOT / "mkdocs.yml"))
    names = set(re.findall(r"'([^']+)': ", str(config.nav))) - {"中文"}
    assert names == set(config.extra["navigation"]["zh"])


def test_pictures_have_texts(site):
    """Those of measurements the numbers that they show."""
    for path in site.rglob("*.html"):
        for picture in re.findall("<img [^>]*>", read(path)):
            text = html.unescape(re.search('alt="([^"]*)"', picture)[1])
            assert len(text) > 30 or "twemoji" in picture, f"{path.name}: {picture}"
    step = re.search(r"\| 2048 x 32000 \| step \| .*? \| ([\d.]+) \| ([\d.]+) \|", read(plots.MEASURED))
    assert f": 2048 x 32000: PyTorch {float(step[1]):g}, torch.compile {float(step[2]):g}; " in read(
        site / "index.html"
    )


@needs_chromium
@pytest.mark.parametrize(
    ("page", "width", "dark"),
    [
        ("index.html", 420, True),
        ("performance.html", 420, False),
        ("notebooks/lesson.zh.html", 1400, True),
        ("functions/losses.html", 1400, False),
        ("explain.html", 420, True),
    ],
)
def test_other_pages_in_a_browser(site, page, width, dark):
    with serve(site) as root, opened(f"{root}/{page}", width, dark) as seen:
        assert not seen.errors and all(url.startswith((f"{root}/", "data:")) for url in seen.requests)
        assert not violations(seen) and seen.evaluate("document.documentElement.scrollWidth") <= width


def test_tables_of_measurements_have_a_row_for_each_case(site):
    """Whose columns are not as wide as the longest case is then, so that a phone has them all."""
    text = read(site / "performance.html")
    assert '<th colspan="4" scope="colgroup">2048 x 32000, smoothing, class weights</th>' in text
    assert len(re.findall(r"</th></tr>\s*<tr>\s*<td>step</td>", text)) == 34
