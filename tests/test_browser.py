"""What the browser of the tests tells of a page."""

from browser import needs_chromium, opened, violations

WITH_FAULTS = "data:text/html,<html><title>a</title><main><h1>b</h1><img src='data:,'><a href='/'></a></main>"


@needs_chromium
def test_violations_are_found(tmp_path):
    with opened(WITH_FAULTS) as page:
        found = violations(page)
        page.screenshot(tmp_path / "page.png")
    assert sorted(line.partition(":")[0] for line in found) == ["html-has-lang", "image-alt", "link-name"]
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
