"""The page of `crossent score`: whole or not there, with its plots in it, and on good terms with a browser."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path

import browser
import numpy as np
import pytest
from score_files import example, write

from crossent.tools.score import plots, score
from crossent.tools.score.command import run
from crossent.tools.score.show import of_score

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The path of a page, and the score that it shows."""
    folder = tmp_path_factory.mktemp("page")
    logits, labels = example(rows=2000, classes=12)
    files = write(folder / "x.npy", "npy", logits), write(folder / "y.npy", "npy", labels)
    path = folder / "report.html"
    assert run(files, as_json=False, html=path, top=10) == 0
    return path, score(*files)


class Outline(HTMLParser):
    """Tags, ids and all addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
                self.addresses.append(value)


def test_the_page_is_one_file(report):
    text = report[0].read_text()
    outline = Outline(text)
    assert outline.tags.count("svg") == 4 and "script" not in outline.tags and "img" not in outline.tags
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert len(set(outline.ids)) == len(outline.ids)
    referred = {address[1:] for address in outline.addresses if address.startswith("#")}
    assert referred <= set(outline.ids)
    heard = re.findall(r'<svg role="img" aria-labelledby="([\w-]+)" aria-describedby="([\w-]+)"', text)
    assert len(heard) == 4 and {name for names in heard for name in names} <= set(outline.ids)
    assert "@import" not in text and "#010203" not in text


def test_the_page_shows_the_numbers(report):
    text, m = report[0].read_text(), report[1].metrics
    for number in (
        f"{m.nll:.4f}",
        f"{m.accuracy:.2%}",
        f"{m.numbers['top5']:.2%}",
        f"{m.numbers['brier']:.4f}",
        f"{m.calibration.error:.4f}",
    ):
        assert f"<b>{number}</b>" in text
    assert f"<td>{report[1].worst[0].row}<td>" in text and "2,000 rows of 12 classes" in text


def test_the_page_is_the_same_each_time(report):
    assert of_score(report[1]).html() == report[0].read_text()


@pytest.mark.parametrize("classes", [2, 200])
def test_few_and_many_classes_and_no_errors(tmp_path, classes):
    labels = np.arange(classes).repeat(2)
    logits = 900 * np.eye(classes, dtype=np.float32)[labels]
    found = score(write(tmp_path / "x.npy", "npy", logits), write(tmp_path / "y.npy", "npy", labels), top=0)
    text = of_score(found).html()
    assert text.count("<svg") == 4 and "with the most errors" not in text and "largest loss" not in text


def test_infinite_losses(tmp_path):
    logits, labels = example()
    logits[0, labels[0]] = -np.inf
    found = score(write(tmp_path / "x.npy", "npy", logits), write(tmp_path / "y.npy", "npy", labels))
    assert "probability 0" in of_score(found).html()


def figures(monkeypatch):
    """Plots as figures, not yet drawn."""
    monkeypatch.setattr("crossent.tools.score.plots.svg", lambda figure, *_: figure)


@pytest.mark.parametrize("bad", [-np.inf, -1e4])
def test_few_large_losses_do_not_squash_the_others(tmp_path, bad, monkeypatch):
    logits, labels = example()
    logits[[0, 7], labels[[0, 7]]] = bad
    figures(monkeypatch)
    found = score(write(tmp_path / "x.npy", "npy", logits), write(tmp_path / "y.npy", "npy", labels)).metrics
    axes = plots.losses(found).axes[0]
    heights = np.array([bar.get_height() for bar in axes.patches])
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert heights.sum() == 200 and heights[-1] == 2 and f"mean {found.nll:.4g}" in said
    assert ("2 infinite" in said) == (bad == -np.inf)
    nll = np.delete(-(logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(200), labels], [0, 7])
    edges = plots._EDGES[: len(heights)] / 32
    histogram, _ = np.histogram(nll, edges)
    assert abs(heights[: len(histogram)] - histogram).sum() <= 4  # next to an edge
    assert (np.flatnonzero(heights)[:-1] > 0.4 * len(heights)).any()  # half of the width is that of the others


def test_every_bin_says_how_many_rows_it_has(tmp_path, monkeypatch):
    """Those with hardly any height too."""
    generator = np.random.default_rng(0)
    logits, labels = 2.0 * generator.standard_normal((3000, 100)), generator.integers(100, size=3000)
    files = write(tmp_path / "x.npy", "npy", logits), write(tmp_path / "y.npy", "npy", labels)
    bins = score(*files).metrics.calibration
    used = np.flatnonzero(bins.rows)
    assert used[0] == 0 and bins.accuracy[0] < 0.02
    said = plots.reliability(bins)
    (told,) = re.findall('<desc id="reliability-desc">(.*?)</desc>', said)
    for i in used:
        assert f"above {i / 15:.2g} {bins.rows[i]:,} rows, {bins.accuracy[i]:.2%} right" in told
    figures(monkeypatch)
    upper, lower = plots.reliability(bins).axes
    points = next(line for line in upper.lines if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_xydata(), np.stack([(used + 0.5) / 15, bins.accuracy[used]], 1))
    assert [text.get_text() for text in lower.texts] == [f"{n:,}" for n in bins.rows[used]]
    assert [plots._short(n) for n in (9_999, 10_000, 1_234_567)] == ["9,999", "10k", "1.2M"]


def test_of_many_classes_small_confidences_are_told_apart(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    labels = generator.integers(3000, size=500)
    logits = generator.standard_normal((500, 3000)) + np.eye(3000)[labels] * 6 * generator.random((500, 1))
    files = write(tmp_path / "x.npy", "npy", logits), write(tmp_path / "y.npy", "npy", labels)
    m = score(*files).metrics
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == labels
    assert (confidence < 1 / 15).mean() > 0.5 and m.calibration.rows.argmax() == 0
    edges = [0, *(2.0**-k for k in range(29, -1, -1))]
    found = m.shown_calibration
    for name, weights in (("rows", None), ("accuracy", right * 1.0), ("confidence", confidence)):
        expected, _ = np.histogram(confidence, edges, weights=weights)
        means = expected if name == "rows" else expected / np.maximum(found.rows, 1)
        used = found.rows > 0
        np.testing.assert_allclose(getattr(found, name)[used], means[used], rtol=0.03 if name == "confidence" else 1e-6)
    assert m.calibration.error == pytest.approx(abs(np.bincount(  # still of bins of equal width
        np.ceil(confidence * 15).astype(int) - 1, right - confidence, 15)).sum() / 500, rel=1e-6)  # fmt: skip
    assert run(files, top=0) == 0 and "Rows by confidence" in capsys.readouterr().out
    figures(monkeypatch)
    upper, lower = plots.reliability(found).axes
    assert upper.get_xscale() == upper.get_yscale() == "log"
    assert [text.get_text() for text in lower.texts] == [f"{n:,}" for n in found.rows[used]]
    assert upper.get_xlim()[0] < confidence.min() and used.sum() > 5


def test_names_of_files_are_escaped(tmp_path):
    logits, labels = example()
    name = write(tmp_path / "<script>alert(1)<&.npy", "npy", logits)
    text = of_score(score(name, write(tmp_path / "y.npy", "npy", labels))).html()
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;&amp;.npy" in text


KILLED_AT = {
    "the plots": "crossent.tools.score.plots.losses = kill",
    "half of the file": "Path.write_text = lambda path, text, **_: (open(path, 'w').write(text[:99]), kill())",
    "the end": "os.replace = kill",
}


@pytest.mark.parametrize("moment", KILLED_AT)
@pytest.mark.parametrize("before", [None, "the old report"])
def test_kill_leaves_the_old_report_or_none(tmp_path, moment, before):
    logits, labels = example()
    files = write(tmp_path / "x.npy", "npy", logits), write(tmp_path / "y.npy", "npy", labels)
    path = tmp_path / "report.html"
    if before is not None:
        path.write_text(before)
    source = f"""
        import os, signal
        import crossent.tools.score.plots
        from pathlib import Path
        from crossent.tools.score.command import run
        def kill(*_):
            os.kill(os.getpid(), signal.SIGKILL)
        {KILLED_AT[moment]}
        run([{files[0]!r}, {files[1]!r}], as_json=True, html=Path({str(path)!r}), top=3)
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(source)], env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert (path.read_text() if path.exists() else None) == before
    assert run(files, as_json=True, html=path, top=3) == 0 and path.read_text().endswith("</html>")


def test_a_page_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    logits, labels = example()
    files = write(tmp_path / "x.npy", "npy", logits), write(tmp_path / "y.npy", "npy", labels)
    assert run(files, as_json=True, html=tmp_path / "nowhere" / "r.html", top=3) == 2
    assert "there is no folder" in capsys.readouterr().err

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run(files, as_json=True, html=tmp_path / "r.html", top=3) == 2
    out, err = capsys.readouterr()
    assert out == "" and "No space left" in err
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "y.npy"}


@browser.needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [420, 1400])
def test_in_a_browser(report, width, dark):
    path, _ = report
    with browser.opened(path.as_uri(), width, dark) as page:
        assert page.errors == [] and page.requests == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        edge = "Math.max(...[...document.querySelectorAll('figure, table')].map(s => s.getBoundingClientRect().right))"
        assert page.evaluate(edge) > 0.95 * width
        sizes = page.evaluate("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width)")
        assert len(sizes) == 4 and min(sizes) > (300 if width > 1000 else 370)
        bars = page.evaluate("[...document.querySelectorAll('figure svg')].map(s => s.querySelectorAll('path').length)")
        assert min(bars) >= 10
        paper, ink = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
        paper, ink = (sum(map(int, colour[4:-1].split(","))) for colour in (paper, ink))
        assert (paper < 200 and ink > 600) if dark else (paper > 700 and ink < 150)
        assert browser.violations(page) == []


@browser.needs_chromium
def test_the_browser_sees_errors_and_requests(tmp_path):
    """What the test above relies on."""
    file = tmp_path / "bad.html"
    file.write_text('<script>console.error("seen"); nothing()</script><img src="http://127.0.0.1:9/x.png">')
    with browser.opened(file.as_uri()) as page:
        assert any("seen" in error for error in page.errors) and any("Uncaught" in error for error in page.errors)
        assert "http://127.0.0.1:9/x.png" in page.requests
