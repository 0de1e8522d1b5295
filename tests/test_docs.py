"""The documentation: it builds, its code runs, its links and names lead somewhere, and no message is missing."""

import ast
import doctest
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
from browser import needs_chromium, opened, serve

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def read(path):
    return path.read_text(encoding="utf-8")


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path):
    return [(language, textwrap.dedent(code)) for _, language, code in BLOCK.findall(read(path))]


@pytest.mark.parametrize("path", [path for path in TEXTS if blocks(path)], ids=name_of)
def test_code_runs(path):
    """The blocks of a page one after the other, in one session."""
    known = {"__name__": "__main__"}
    with warnings.catch_warnings():
        for language, code in blocks(path):
            if language == "python":
                exec(compile(code, name_of(path), "exec"), known)
            elif language == "pycon":
                session = doctest.DocTestParser().get_doctest(code, {}, name_of(path), name_of(path), 0)
                session.globs = known
                said = []
                failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(session, out=said.append, clear_globs=False)
                assert not failed, "".join(said)
            else:
                assert language == "text", f"a block of {language or 'no language'} is run by nobody"


def commands():
    """The commands in blocks and in sentences."""
    for path in TEXTS:
        text = BLOCK.sub("", read(path))
        yield from re.findall(r"^ {4}((?:make|pip|python|crossent) .+?)(?:  .*)?$", text, re.MULTILINE)
        yield from re.findall(r"`((?:make|pip|python|crossent) [^`]+)`", text)


@pytest.mark.parametrize("command", dict.fromkeys(commands()))
def test_commands_exist(command):
    """Not run in full: they install packages, run this test or measure for minutes. That they are there is quick."""
    program, *arguments = shlex.split(command)
    if program == "pip":
        extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
        package, extra = re.fullmatch(r"(\w+)(?:\[(\w+)\])?", arguments[1]).groups()
        assert arguments[0] == "install" and package == "crossent" and (extra is None or extra in extras)
        return
    ways = {
        "make": ["make", "--dry-run", *arguments],
        "crossent": [sys.executable, "-m", "crossent.cli", *arguments, "--help"],
        "python": [sys.executable, *arguments, "--help"],
    }
    done = subprocess.run(ways[program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


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


def messages():
    """Every message that the library raises or warns with, as a pattern."""
    package = ROOT / "crossent"
    above = (package / "cli.py", package / "demo", package / "kernels")  # kernels raise what nobody gets to see
    for path in sorted(package.rglob("*.py")):
        if any(path.is_relative_to(part) for part in above):
            continue
        for node in ast.walk(ast.parse(read(path))):
            is_raised = isinstance(node, ast.Call) and re.search(r"(Error|\.warn)$", ast.unparse(node.func))
            if is_raised and node.args and isinstance(node.args[0], ast.JoinedStr | ast.Constant):
                message = node.args[0]
                parts = message.values if isinstance(message, ast.JoinedStr) else [message]
                yield "".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".*?" for p in parts)


# The wording is Python's own.
UNDOCUMENTED = [r"module\ 'crossent'\ has\ no\ attribute\ .*?"]


def test_every_message_has_its_place_in_troubleshooting():
    """That the calls shown there raise the messages quoted there is for `test_code_runs`."""
    text = read(ROOT / "docs/troubleshooting.md")
    quoted = re.findall(r"Traceback .*\n((?: *(?!>>>|```)\S.*\n)+)", text) + re.findall(r"`(\w+Error: [^`]+)`", text)
    quoted = [" ".join(message.split()) for message in quoted]
    found = list(messages())
    assert len(found) > 50 and len(quoted) > 50
    missing = [pattern for pattern in found if not any(re.fullmatch(rf"\w+: {pattern}", one) for one in quoted)]
    assert missing == UNDOCUMENTED


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
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
                assert link in page.links, f"{path.name} loads {link}"
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
    assert "loss = s * (sum_c q_c * (lse - z_c) + z_loss * lse**2)" in re.sub("<[^>]*>", "", losses)
    for item in ("size_average", "inplace_backward", "IndexError"):
        assert re.search(rf"<li>\s*(<p>)?<code>{item}</code>", losses), item


def test_docstring_to_markdown():
    docstring = """One sentence.

        a = b

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


def test_plots_show_the_numbers_of_the_readme():
    text = read(plots.README)
    for measure in (plots.steps, plots.heads):
        cases, series = measure()
        assert len(cases) >= 4
        for case, *values in zip(cases, *series.values(), strict=True):
            assert f"| {case} |" in text and all(re.search(rf"[| *]{value:g}", text) for value in values)
    for value in plots.memory()[1][""]:
        assert f"| {value:.2f} x the logits |" in text


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_start_page_in_a_browser(site, dark):
    with serve(site) as root, opened(f"{root}/index.html", dark=dark) as page:
        assert not page.errors and page.requests
        assert all(url.startswith((f"{root}/", "data:")) for url in page.requests)
        assert f"{root}/plots/steps-{'dark' if dark else 'light'}.svg" in page.requests
        assert page.evaluate("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")


@needs_chromium
@pytest.mark.parametrize("page", ["performance.html", "notebooks/lesson.zh.html", "functions/losses.html"])
def test_other_pages_in_a_browser(site, page):
    with serve(site) as root, opened(f"{root}/{page}", width=480) as seen:
        assert not seen.errors and all(url.startswith((f"{root}/", "data:")) for url in seen.requests)
